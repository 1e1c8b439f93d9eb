//! Who may reach a cluster, as its operator sets it through the API: the allowlist, and private endpoints.

use serde_json::{Value, json};

use crate::api::Answer;
use crate::cloud::Cluster;
use crate::provider::with;

/// A private endpoint's id in an address: keys have `/`, `+` and `=` in them, kinds a colon.
fn segment(id: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    id.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

impl Cluster<'_> {
    fn networking(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.cloud.call(method, &format!("/api/v1/clusters/{}/networking/{path}", self.id), body)
    }

    /// Lets a range in to SQL alone, with more or other fields; a refusal is an answer.
    pub fn try_allow(&self, range: &str, more: &Value) -> Answer {
        let (address, mask) = range.split_once('/').expect("a range");
        let mask: u8 = mask.parse().expect("a prefix length");
        let line = json!({ "cidr_ip": address, "cidr_mask": mask, "name": "", "sql": true, "ui": false });
        self.networking("POST", "allowlist", Some(&with(&line, more)))
    }

    /// Lets a range in to SQL alone.
    #[track_caller]
    pub fn allow(&self, range: &str) {
        self.try_allow(range, &json!({})).ok();
    }

    /// Changes fields of a range's line.
    #[track_caller]
    pub fn edit_allowed(&self, range: &str, change: &Value) {
        self.networking("PATCH", &format!("allowlist/{range}"), Some(change)).ok();
    }

    /// Takes a range away.
    #[track_caller]
    pub fn disallow(&self, range: &str) {
        self.networking("DELETE", &format!("allowlist/{range}"), None).ok();
    }

    /// Makes the service that private endpoints find; serverless clusters have it by themselves.
    #[track_caller]
    pub fn make_endpoint_service(&self) {
        self.networking("POST", "private-endpoint-services", None).ok();
    }

    /// Adds a private endpoint, which accepts it, with more fields; a refusal is an answer.
    pub fn try_connect_endpoint(&self, id: &str, more: &Value) -> Answer {
        self.networking(
            "POST",
            "private-endpoint-connections",
            Some(&with(&json!({ "endpoint_id": id }), more)),
        )
    }

    /// Adds a private endpoint, which accepts it.
    #[track_caller]
    pub fn connect_endpoint(&self, id: &str) {
        let added = self.try_connect_endpoint(id, &json!({})).ok();
        assert_eq!(added["status"], "STATUS_AVAILABLE", "{added}");
    }

    /// Accepts or rejects a private endpoint that is known (`AVAILABLE`, `REJECTED`); a refusal is an answer.
    pub fn decide_endpoint(&self, id: &str, status: &str) -> Answer {
        let path = format!("aws-endpoint-connections/{}", segment(id));
        self.networking("PATCH", &path, Some(&json!({ "status": status })))
    }

    /// Removes a private endpoint; a refusal is an answer.
    pub fn remove_endpoint(&self, id: &str) -> Answer {
        self.networking("DELETE", &format!("private-endpoint-connections/{}", segment(id)), None)
    }

    /// The private endpoints that are known, each with its status.
    pub fn endpoints(&self) -> Vec<(String, String)> {
        let known = self.networking("GET", "private-endpoint-connections", None).ok();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let known = known["connections"].as_array().expect("a list").iter();
        known.map(|one| (text(&one["endpoint_id"]), text(&one["status"]))).collect()
    }

    /// What is known of one private endpoint.
    pub fn endpoint_status(&self, id: &str) -> Option<String> {
        self.endpoints().into_iter().find(|(known, _)| known == id).map(|(_, status)| status)
    }

    /// Trusts an owner of private endpoints; returns what the entry is called.
    #[track_caller]
    pub fn trust_owner(&self, owner: &str) -> String {
        let body = json!({ "type": "AWS_ACCOUNT_ID", "external_owner_id": owner });
        let added = self.networking("POST", "private-endpoint-trusted-owners", Some(&body)).ok();
        added["trusted_owner"]["id"].as_str().expect("an id").to_owned()
    }

    /// Trusts an owner no more.
    #[track_caller]
    pub fn distrust_owner(&self, entry: &str) {
        self.networking("DELETE", &format!("private-endpoint-trusted-owners/{entry}"), None).ok();
    }
}

//! What may leave a cluster: policy and rules as the Cloud API writes them, and our own words beside them.

use std::net::IpAddr;

use model::{ClusterId, EgressPolicy};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::Pagination;

/// `POST …/networking/egress-rules`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AddEgressRule {
    /// What people call it.
    pub name: String,
    /// `FQDN` or `CIDR`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A name or a range of addresses.
    pub destination: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// TCP ports; none means every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<i64>>,
    /// A repeated request with the same key finds what the first one made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// `PATCH …/networking/egress-rules/{rule_id}`: what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EditEgressRule {
    /// `FQDN` or `CIDR`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A name or a range of addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// TCP ports; an empty list means every port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<i64>>,
}

/// A rule in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRule {
    /// Names it in calls.
    pub id: String,
    /// Whose it is.
    pub cluster_id: ClusterId,
    /// What people call it.
    pub name: String,
    /// `FQDN` or `CIDR`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A name or a range of addresses, as it was given.
    pub destination: String,
    /// What it is for.
    pub description: String,
    /// TCP ports, as they were given; absent means every port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Always `ACTIVE`: a rule holds when it is answered.
    pub state: String,
    /// Always false: the cloud itself needs none.
    pub crl_managed: bool,
    /// When it was added.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

impl EgressRule {
    /// A cluster's rule.
    pub fn new(cluster_id: ClusterId, rule: &model::EgressRule) -> Self {
        Self {
            id: rule.id.to_string(),
            cluster_id,
            name: rule.name.to_string(),
            kind: rule.destination.kind().to_owned(),
            destination: rule.written.clone(),
            description: rule.description.clone(),
            ports: rule.ports.clone(),
            state: "ACTIVE".to_owned(),
            crl_managed: false,
            created_at: rule.created_at,
        }
    }
}

/// `GET …/networking/egress-rules/{rule_id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownEgressRule {
    /// The rule.
    pub rule: EgressRule,
}

/// The answer to what adds, edits and removes a rule. The contract requires `rule` and describes `Rule`; clients read one
/// or the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedEgressRule {
    /// The rule, in the contract's description.
    #[serde(rename = "Rule")]
    pub described: EgressRule,
    /// The rule, in the contract's list of what must be there.
    pub rule: EgressRule,
}

/// A page of rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRules {
    /// The rules.
    pub rules: Vec<EgressRule>,
    /// How to go on.
    #[serde(default)]
    pub pagination: Pagination,
}

/// `POST …/networking/egress-rules/egress-traffic-policy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetEgressPolicy {
    /// True for `ALLOW_ALL`, false for `DEFAULT_DENY`.
    pub allow_all: bool,
}

/// `GET /chitin/clusters/{id}/egress`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    /// What holds where no rule does.
    pub policy: EgressPolicy,
    /// The rules, by name.
    pub rules: Vec<EgressRule>,
    /// Whether the engine itself may reach what rules name.
    #[serde(default)]
    pub engine: bool,
    /// What it may reach, `NAME:PORT`; empty while it may not.
    #[serde(default)]
    pub outlets: Vec<String>,
    /// Rules that are not offered to it.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    /// What the operator should know.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A rule that is not offered to the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its name.
    pub rule: String,
    /// Why not.
    pub reason: String,
}

/// `PUT /chitin/clusters/{id}/egress`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetEngineEgress {
    /// Whether the engine itself may reach what rules name.
    pub engine: bool,
}

/// `POST /chitin/clusters/{id}/egress/test`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestEgress {
    /// A URL, or `HOST:PORT`.
    pub destination: String,
}

/// Whether something would be let through. Nothing was connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressVerdict {
    /// The destination as it was understood, `HOST:PORT`; empty where it was not.
    pub destination: String,
    /// The cluster's policy.
    pub policy: EgressPolicy,
    /// Whether it would be let through: every address is permitted, and there is one.
    pub is_permitted: bool,
    /// Why there is no address to judge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What became of each address that the name has now.
    pub addresses: Vec<EgressAddress>,
}

/// One address of a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressAddress {
    /// The address.
    pub address: IpAddr,
    /// Whether it would be connected to.
    pub is_permitted: bool,
    /// The first rule that names it, whatever the policy is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

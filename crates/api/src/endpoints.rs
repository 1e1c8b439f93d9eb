//! Private endpoints in the Cloud API's shapes: services, connections, trusted owners.

use model::{ClusterId, Provider};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// A cluster's private endpoint service in one region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateEndpointService {
    /// The region.
    pub region_name: String,
    /// The cloud that the client named when it made the cluster.
    pub cloud_provider: Provider,
    /// Always `AVAILABLE`: what is made is there.
    pub status: String,
    /// The service's name, under which a customer's cloud would find it.
    pub name: String,
    /// The service's id.
    pub endpoint_service_id: String,
    /// Always empty: a machine is in no zone.
    #[serde(default)]
    pub availability_zone_ids: Vec<String>,
    /// The same in AWS's words, for clusters of that provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws: Option<AwsServiceDetail>,
    /// Where this cloud waits for the connections of private endpoints, `HOST:PORT`. Absent where it does not. Ours; the
    /// Cloud API has no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
}

/// A private endpoint service in AWS's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwsServiceDetail {
    /// The service's name.
    pub service_name: String,
    /// The service's id.
    pub service_id: String,
    /// Always empty.
    #[serde(default)]
    pub availability_zone_ids: Vec<String>,
}

/// `GET` and `POST …/private-endpoint-services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateEndpointServices {
    /// One a region; empty until they are made.
    pub services: Vec<PrivateEndpointService>,
}

/// Whether a private endpoint may come in. The Cloud API's further states pass at once here, so they are never shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EndpointStatus {
    /// Nobody decided yet.
    PendingAcceptance,
    /// It may come in.
    Available,
    /// It was rejected.
    Rejected,
    /// Nobody decided in time.
    Expired,
}

impl EndpointStatus {
    /// The status for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PendingAcceptance => "waits for acceptance",
            Self::Available => "available",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
        }
    }
}

/// `POST …/private-endpoint-connections`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddPrivateEndpointConnection {
    /// Which endpoint: `vpce-…`, `psc:NUMBER`, `azure:NUMBER`, `wireguard:PUBLIC-KEY` or `certificate:SHA256`. A bare
    /// number is read in the words of the cluster's provider.
    pub endpoint_id: String,
    /// Whose it is, an AWS account's 12 digits. Needed where the cluster trusts certain owners only. Ours; the Cloud API
    /// has no such field in the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_owner_id: Option<String>,
}

/// A private endpoint that leads to a cluster, or wants to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateEndpointConnection {
    /// Which endpoint. On clusters of provider GCP and AZURE their own endpoints' ids are bare numbers.
    pub endpoint_id: String,
    /// The cloud that the client named when it made the cluster.
    pub cloud_provider: Provider,
    /// The region, by the name that the contract defines.
    pub region_name: String,
    /// The region, by the name that the contract requires.
    pub region: String,
    /// The service that it leads to.
    pub endpoint_service_id: String,
    /// That service's name.
    pub service_name: String,
    /// Whether it may come in.
    #[serde(with = "prefixed")]
    pub status: EndpointStatus,
    /// Whose it is, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_owner_id: Option<String>,
}

/// `GET …/private-endpoint-connections`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateEndpointConnections {
    /// By id.
    pub connections: Vec<PrivateEndpointConnection>,
}

/// The answer of `DELETE …/private-endpoint-connections/{endpoint_id}`: it is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {}

/// A private endpoint in the older form of the contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwsEndpointConnection {
    /// The region.
    pub region_name: String,
    /// The cloud that the client named when it made the cluster.
    pub cloud_provider: Provider,
    /// Whether it may come in. In the answer of `PATCH`, as it was before.
    pub status: EndpointStatus,
    /// Which endpoint.
    pub endpoint_id: String,
    /// The service that it leads to.
    pub service_id: String,
    /// Whose it is, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_owner_id: Option<String>,
}

/// `GET …/aws-endpoint-connections`. Endpoints of every kind are in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwsEndpointConnections {
    /// By id.
    pub connections: Vec<AwsEndpointConnection>,
}

/// What becomes of a private endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EndpointDecision {
    /// It is accepted.
    Available,
    /// It is rejected.
    Rejected,
}

/// `PATCH …/aws-endpoint-connections/{endpoint_id}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetAwsEndpointConnection {
    /// What becomes of it.
    pub status: EndpointDecision,
    /// Whose it is, where that was not said before. Ours; the Cloud API has no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_owner_id: Option<String>,
}

/// How owners are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OwnerType {
    /// By the 12 digits of an AWS account.
    AwsAccountId,
}

/// `POST …/private-endpoint-trusted-owners`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddTrustedOwner {
    /// How the owner is named.
    #[serde(rename = "type")]
    pub kind: OwnerType,
    /// An AWS account's 12 digits, or `*` for every owner.
    pub external_owner_id: String,
}

/// An owner whose private endpoints may be accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedOwner {
    /// Names this entry.
    pub id: Uuid,
    /// The cluster that trusts it.
    pub cluster_id: ClusterId,
    /// How the owner is named.
    #[serde(rename = "type")]
    pub kind: OwnerType,
    /// An AWS account's 12 digits, or `*` for every owner.
    pub external_owner_id: String,
    /// When it was added.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// One trusted owner in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneTrustedOwner {
    /// The owner.
    pub trusted_owner: TrustedOwner,
}

/// `GET …/private-endpoint-trusted-owners`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedOwners {
    /// In the order in which they were added. Without any, every owner is trusted.
    pub trusted_owners: Vec<TrustedOwner>,
}

/// The status with `STATUS_` before it, as the newer calls write it.
mod prefixed {
    use serde::de::value::{Error as ValueError, StrDeserializer};
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::{Serialize, Serializer};

    use super::EndpointStatus;

    #[derive(Serialize)]
    enum Word {
        #[serde(rename = "STATUS_PENDING_ACCEPTANCE")]
        PendingAcceptance,
        #[serde(rename = "STATUS_AVAILABLE")]
        Available,
        #[serde(rename = "STATUS_REJECTED")]
        Rejected,
        #[serde(rename = "STATUS_EXPIRED")]
        Expired,
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands the field over by reference")]
    pub(super) fn serialize<S: Serializer>(status: &EndpointStatus, to: S) -> Result<S::Ok, S::Error> {
        match status {
            EndpointStatus::PendingAcceptance => Word::PendingAcceptance,
            EndpointStatus::Available => Word::Available,
            EndpointStatus::Rejected => Word::Rejected,
            EndpointStatus::Expired => Word::Expired,
        }
        .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<EndpointStatus, D::Error> {
        let text = String::deserialize(from)?;
        let word = text.strip_prefix("STATUS_").ok_or_else(|| D::Error::custom("not a status"))?;
        EndpointStatus::deserialize(StrDeserializer::<ValueError>::new(word)).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_are_those_of_the_contract() {
        let all = [
            (EndpointStatus::PendingAcceptance, "PENDING_ACCEPTANCE"),
            (EndpointStatus::Available, "AVAILABLE"),
            (EndpointStatus::Rejected, "REJECTED"),
            (EndpointStatus::Expired, "EXPIRED"),
        ];
        for (status, word) in all {
            assert_eq!(json!(status), json!(word));
            let shown = PrivateEndpointConnection {
                endpoint_id: "vpce-0abcdef0".to_owned(),
                cloud_provider: Provider::Aws,
                region_name: "local".to_owned(),
                region: "local".to_owned(),
                endpoint_service_id: "a".to_owned(),
                service_name: "b".to_owned(),
                status,
                external_owner_id: None,
            };
            let value = json!(shown);
            assert_eq!(value["status"], json!(format!("STATUS_{word}")));
            assert_eq!(serde_json::from_value::<PrivateEndpointConnection>(value).unwrap(), shown);
        }
        assert_eq!(json!(OwnerType::AwsAccountId), json!("AWS_ACCOUNT_ID"));
        assert_eq!(json!(EndpointDecision::Rejected), json!("REJECTED"));
        assert_eq!(json!(Removed {}), json!({}));
    }
}

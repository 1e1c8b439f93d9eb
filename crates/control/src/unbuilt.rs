//! Calls of the Cloud API that are not built, told apart from paths that never were any.

use axum::http::Uri;

use crate::Refusal;

/// First segments under `/api/v1`.
const AREAS: &[&str] = &[
    "api-keys",
    "auditlogevents",
    "cluster-versions",
    "folders",
    "invoices",
    "jwt-issuers",
    "organization",
    "physical-replication-streams",
    "roles",
    "service-accounts",
    "users",
];

/// What stands under a cluster.
const OF_A_CLUSTER: &[&str] = &[
    "backups",
    "backups-config",
    "blackout-windows",
    "disrupt",
    "logexport",
    "maintenance-window",
    "metricexport",
    "nodes",
    "restores",
    "version-deferral",
];

/// What stands under a cluster's `networking`.
const OF_A_NETWORK: &[&str] = &["egress-private-endpoints"];

/// Answers a path that no verb serves.
pub(crate) async fn fallback(uri: Uri) -> Refusal {
    let segments: Vec<&str> = uri.path().trim_start_matches('/').split('/').collect();
    let is_known = match segments.as_slice() {
        ["api", "v1", "clusters", id, "networking", area, ..] => {
            !id.is_empty() && OF_A_NETWORK.contains(area)
        }
        ["api", "v1", "clusters", id, area, ..] => !id.is_empty() && OF_A_CLUSTER.contains(area),
        ["api", "v1", area, ..] => AREAS.contains(area),
        ["api", "scim", "v2", _, ..] => true,
        _ => false,
    };
    if is_known {
        refuse().await
    } else {
        Refusal::not_found("there is nothing at this path; see /api/v1/openapi.json")
    }
}

/// Refuses a call that is not built.
pub(crate) async fn refuse() -> Refusal {
    Refusal::unbuilt("this part of the Cloud API is")
}

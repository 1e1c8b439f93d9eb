//! What tests of several files need.

/// A serverless cluster as the API answers it.
pub fn cluster() -> api::Cluster {
    let text = r#"{
        "id": "00000000-0000-4000-8000-000000000002", "name": "my-shop", "cockroach_version": "v15.18.0",
        "upgrade_status": "FINALIZED", "plan": "BASIC", "cloud_provider": "AWS", "state": "CREATED",
        "creator_id": "", "operation_status": "UNSPECIFIED",
        "config": {"serverless": {"routing_id": "my-shop-2", "upgrade_type": "AUTOMATIC"}},
        "regions": [], "cidr_range": "", "labels": {}, "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z", "delete_protection": "DISABLED", "parent_id": "root",
        "sql_dns": "my-shop-2.localhost", "network_visibility": "PUBLIC"
    }"#;
    serde_json::from_str(text).expect("the shape of an answer")
}

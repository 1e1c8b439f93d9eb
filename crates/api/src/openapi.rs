//! The OpenAPI document of what is really served, written from one table.

use serde_json::{Map, Value, json};

/// A call that is served: method, path, what it does.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// In lower case.
    pub method: &'static str,
    /// With `{parameters}`.
    pub path: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Whether a JSON body is expected.
    pub has_body: bool,
}

const fn call(method: &'static str, path: &'static str, summary: &'static str) -> Operation {
    Operation { method, path, summary, has_body: false }
}

const fn send(method: &'static str, path: &'static str, summary: &'static str) -> Operation {
    Operation { method, path, summary, has_body: true }
}

/// Every call that is served with a key.
pub const OPERATIONS: &[Operation] = &[
    call("get", "/api/v1/clusters", "Lists clusters."),
    send("post", "/api/v1/clusters", "Creates a cluster. Sizes and usage limits are recorded, not enforced."),
    call("get", "/api/v1/clusters/{cluster_id}", "Shows a cluster."),
    send("patch", "/api/v1/clusters/{cluster_id}", "Changes labels, delete protection and recorded sizes."),
    call("delete", "/api/v1/clusters/{cluster_id}", "Destroys a cluster's key, then its data."),
    call("get", "/api/v1/clusters/{cluster_id}/sql-users", "Lists SQL users."),
    send("post", "/api/v1/clusters/{cluster_id}/sql-users", "Creates a SQL user, a member of admin."),
    call("delete", "/api/v1/clusters/{cluster_id}/sql-users/{name}", "Removes a SQL user."),
    send("put", "/api/v1/clusters/{cluster_id}/sql-users/{name}/password", "Sets a SQL user's password."),
    call("get", "/api/v1/clusters/{cluster_id}/databases", "Lists databases."),
    send("post", "/api/v1/clusters/{cluster_id}/databases", "Creates a database."),
    send("patch", "/api/v1/clusters/{cluster_id}/databases", "Renames the database that the body names."),
    send("patch", "/api/v1/clusters/{cluster_id}/databases/{name}", "Renames a database."),
    call("delete", "/api/v1/clusters/{cluster_id}/databases/{name}", "Removes a database."),
    call("get", "/api/v1/clusters/{cluster_id}/networking/allowlist", "Lists who may connect, by address."),
    send("post", "/api/v1/clusters/{cluster_id}/networking/allowlist", "Adds a range of addresses."),
    send(
        "put",
        "/api/v1/clusters/{cluster_id}/networking/allowlist/{cidr_ip}/{cidr_mask}",
        "Adds or replaces a range.",
    ),
    send(
        "patch",
        "/api/v1/clusters/{cluster_id}/networking/allowlist/{cidr_ip}/{cidr_mask}",
        "Edits a range.",
    ),
    call(
        "delete",
        "/api/v1/clusters/{cluster_id}/networking/allowlist/{cidr_ip}/{cidr_mask}",
        "Removes a range.",
    ),
    call(
        "get",
        "/api/v1/clusters/{cluster_id}/networking/egress-rules",
        "Lists what may leave the cluster under the policy DEFAULT_DENY.",
    ),
    send("post", "/api/v1/clusters/{cluster_id}/networking/egress-rules", "Adds an egress rule."),
    send(
        "post",
        "/api/v1/clusters/{cluster_id}/networking/egress-rules/egress-traffic-policy",
        "Sets the egress policy; it holds at once, also for what is under way.",
    ),
    call("get", "/api/v1/clusters/{cluster_id}/networking/egress-rules/{rule_id}", "Shows an egress rule."),
    send(
        "patch",
        "/api/v1/clusters/{cluster_id}/networking/egress-rules/{rule_id}",
        "Edits an egress rule; an empty list of ports means every port.",
    ),
    call(
        "delete",
        "/api/v1/clusters/{cluster_id}/networking/egress-rules/{rule_id}",
        "Removes an egress rule.",
    ),
    call(
        "get",
        "/api/v1/clusters/{cluster_id}/networking/private-endpoint-services",
        "Lists the private endpoint services.",
    ),
    call(
        "post",
        "/api/v1/clusters/{cluster_id}/networking/private-endpoint-services",
        "Makes the private endpoint services, unless they are there.",
    ),
    call(
        "get",
        "/api/v1/clusters/{cluster_id}/networking/private-endpoint-connections",
        "Lists private endpoints.",
    ),
    send(
        "post",
        "/api/v1/clusters/{cluster_id}/networking/private-endpoint-connections",
        "Adds a private endpoint, which accepts it where its owner is trusted.",
    ),
    call(
        "delete",
        "/api/v1/clusters/{cluster_id}/networking/private-endpoint-connections/{endpoint_id}",
        "Removes a private endpoint.",
    ),
    call(
        "get",
        "/api/v1/clusters/{cluster_id}/networking/aws-endpoint-connections",
        "Lists private endpoints of every kind in the older form.",
    ),
    send(
        "patch",
        "/api/v1/clusters/{cluster_id}/networking/aws-endpoint-connections/{endpoint_id}",
        "Accepts or rejects a private endpoint of any kind. Shows its status from before.",
    ),
    call(
        "get",
        "/api/v1/clusters/{cluster_id}/networking/private-endpoint-trusted-owners",
        "Lists owners whose private endpoints may be accepted.",
    ),
    send(
        "post",
        "/api/v1/clusters/{cluster_id}/networking/private-endpoint-trusted-owners",
        "Adds an owner whose private endpoints may be accepted.",
    ),
    call(
        "get",
        "/api/v1/clusters/{cluster_id}/networking/private-endpoint-trusted-owners/{owner_id}",
        "Shows a trusted owner.",
    ),
    call(
        "delete",
        "/api/v1/clusters/{cluster_id}/networking/private-endpoint-trusted-owners/{owner_id}",
        "Removes a trusted owner and rejects its private endpoints.",
    ),
    call("get", "/api/v1/clusters/{cluster_id}/connection-string", "Says where to connect."),
    call(
        "get",
        "/api/v1/clusters/{cluster_id}/client-ca-cert",
        "Shows whose client certificates are accepted.",
    ),
    send("post", "/api/v1/clusters/{cluster_id}/client-ca-cert", "Sets the client authorities."),
    send("patch", "/api/v1/clusters/{cluster_id}/client-ca-cert", "Sets or replaces the client authorities."),
    call("delete", "/api/v1/clusters/{cluster_id}/client-ca-cert", "Takes the client authorities away."),
    call("get", "/api/v1/clusters/{cluster_id}/cmek", "Shows where the customer-managed key stands."),
    send(
        "post",
        "/api/v1/clusters/{cluster_id}/cmek",
        "Wraps the data key with a key of the customer's. Every region is named, and all name one key.",
    ),
    send(
        "put",
        "/api/v1/clusters/{cluster_id}/cmek",
        "Goes over to another key, or to the newest version of the same. No data are rewritten.",
    ),
    send(
        "patch",
        "/api/v1/clusters/{cluster_id}/cmek",
        "Revokes the key: sessions end and the cluster stops.",
    ),
    call("get", "/api/v1/chitin/status", "Shows the cloud and what its machine gives."),
    call("get", "/api/v1/chitin/ca", "Shows the cloud's root certificate."),
    call("get", "/api/v1/chitin/whoami", "Shows the address that the cloud sees of the caller."),
    call("get", "/api/v1/chitin/organization", "Shows what holds for every cluster."),
    send("put", "/api/v1/chitin/organization", "Changes what holds for clusters that are made from now on."),
    call("get", "/api/v1/chitin/clusters", "Lists the clusters' phases by id."),
    call("get", "/api/v1/chitin/clusters/{cluster_id}", "Shows a cluster's phase, volume and sessions."),
    call("post", "/api/v1/chitin/clusters/{cluster_id}/sleep", "Stops the engine and locks the volume."),
    call("post", "/api/v1/chitin/clusters/{cluster_id}/wake", "Unlocks the volume and starts the engine."),
    call(
        "post",
        "/api/v1/chitin/clusters/{cluster_id}/accept-restored",
        "Accepts the volume as it is, though the cloud has seen a newer one.",
    ),
    send(
        "put",
        "/api/v1/chitin/clusters/{cluster_id}/expiry",
        "Sets when the cluster is deleted by itself, or that it never is.",
    ),
    call("post", "/api/v1/chitin/clusters/{cluster_id}/proof", "Measures what can be proven from inside."),
    call(
        "get",
        "/api/v1/chitin/clusters/{cluster_id}/client-ca",
        "Shows what is in the bundle of authorities.",
    ),
    call("get", "/api/v1/chitin/clusters/{cluster_id}/hba", "Shows the rules of sign-in."),
    send(
        "put",
        "/api/v1/chitin/clusters/{cluster_id}/hba",
        "Sets the rules of sign-in; empty means the default.",
    ),
    send(
        "post",
        "/api/v1/chitin/clusters/{cluster_id}/hba/test",
        "Says which rule a client would meet, and why.",
    ),
    call("get", "/api/v1/chitin/clusters/{cluster_id}/identity-map", "Shows the identity map."),
    send("put", "/api/v1/chitin/clusters/{cluster_id}/identity-map", "Sets the identity map."),
    call(
        "get",
        "/api/v1/chitin/clusters/{cluster_id}/network",
        "Shows who can see a cluster, and its private network.",
    ),
    send(
        "put",
        "/api/v1/chitin/clusters/{cluster_id}/network",
        "Makes a cluster private or public, and gives it a private network.",
    ),
    call(
        "get",
        "/api/v1/chitin/clusters/{cluster_id}/peerings",
        "Lists what a private network is joined with.",
    ),
    send("post", "/api/v1/chitin/clusters/{cluster_id}/peerings", "Proposes a peering."),
    call("get", "/api/v1/chitin/clusters/{cluster_id}/peerings/{name}", "Shows a peering."),
    call("delete", "/api/v1/chitin/clusters/{cluster_id}/peerings/{name}", "Ends a peering."),
    call(
        "post",
        "/api/v1/chitin/clusters/{cluster_id}/peerings/{name}/accept",
        "Accepts a peering. A body is needed only for WireGuard, to name the other side's public key.",
    ),
    call(
        "get",
        "/api/v1/chitin/clusters/{cluster_id}/peerings/{name}/config",
        "Shows the WireGuard configuration for the other side, without private keys.",
    ),
    call("get", "/api/v1/chitin/clusters/{cluster_id}/ocsp", "Shows how revocation is asked for."),
    send("put", "/api/v1/chitin/clusters/{cluster_id}/ocsp", "Sets how revocation is asked for."),
    call("get", "/api/v1/chitin/clusters/{cluster_id}/crls", "Shows the revocation lists."),
    send("put", "/api/v1/chitin/clusters/{cluster_id}/crls", "Sets or replaces the revocation lists."),
    call("delete", "/api/v1/chitin/clusters/{cluster_id}/crls", "Takes the revocation lists away."),
    call(
        "get",
        "/api/v1/chitin/clusters/{cluster_id}/providers",
        "Lists the identity providers of a cluster.",
    ),
    send(
        "put",
        "/api/v1/chitin/clusters/{cluster_id}/providers/{name}",
        "Adds or replaces an identity provider of a cluster. The client secret is never shown.",
    ),
    call(
        "delete",
        "/api/v1/chitin/clusters/{cluster_id}/providers/{name}",
        "Removes an identity provider of a cluster.",
    ),
    call("get", "/api/v1/chitin/clusters/{cluster_id}/egress", "Shows the egress policy and every rule."),
    send(
        "put",
        "/api/v1/chitin/clusters/{cluster_id}/egress",
        "Lets the engine of a dedicated cluster reach what rules name, or not.",
    ),
    send(
        "post",
        "/api/v1/chitin/clusters/{cluster_id}/egress/test",
        "Says whether a destination would be let through, and by which rule. Nothing is connected to.",
    ),
    call("get", "/api/v1/chitin/keys", "Lists the root key, and what wraps the data key of each cluster."),
    call(
        "get",
        "/api/v1/chitin/clusters/{cluster_id}/keys",
        "Shows what encrypts a cluster, as disk and kernel say.",
    ),
    call("post", "/api/v1/chitin/clusters/{cluster_id}/keys/restore", "Gives a revoked key back."),
    call(
        "post",
        "/api/v1/chitin/clusters/{cluster_id}/keys/data-key/rotate",
        "Encrypts the volume anew under another data key, in the background.",
    ),
    call("get", "/api/v1/chitin/root-key", "Describes the cloud's root key."),
    call("post", "/api/v1/chitin/root-key/rotate", "Makes a new version of the root key."),
    call("get", "/api/v1/chitin/key-services", "Lists the key services."),
    call("get", "/api/v1/chitin/key-services/{name}", "Shows a key service. Its secrets are never shown."),
    send("put", "/api/v1/chitin/key-services/{name}", "Adds or replaces a key service."),
    call("delete", "/api/v1/chitin/key-services/{name}", "Removes a key service that no cluster needs."),
    send(
        "post",
        "/api/v1/chitin/key-services/{name}/test",
        "Wraps and unwraps a throw-away data key with a key of the service.",
    ),
    call("get", "/api/v1/chitin/providers", "Lists the identity providers of the cloud."),
    send("put", "/api/v1/chitin/providers/{name}", "Adds or replaces an identity provider of the cloud."),
    call("delete", "/api/v1/chitin/providers/{name}", "Removes an identity provider of the cloud."),
    call("get", "/api/v1/chitin/throttle", "Lists failed sign-ins that are remembered."),
    send("post", "/api/v1/chitin/throttle/clear", "Forgets failed sign-ins."),
    call("get", "/api/v1/openapi.json", "Shows this document."),
];

/// The document.
pub fn document(version: &str) -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let parameters: Vec<Value> = operation
            .path
            .split('/')
            .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
            .collect();
        let object = json!({"application/json": {"schema": {"type": "object"}}});
        let error = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}});
        let mut described = json!({
            "summary": operation.summary,
            "parameters": parameters,
            "responses": {
                "200": {"description": "Done.", "content": object},
                "default": {"description": "Refused.", "content": error},
            },
        });
        if operation.has_body {
            described["requestBody"] = json!({"required": true, "content": object});
        }
        let entry = paths.entry(operation.path).or_insert_with(|| json!({}));
        entry[operation.method] = described;
    }
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "Chitin",
            "version": version,
            "description": "Shapes of clusters, SQL users, databases, the allowlist, private endpoints, egress rules and CMEK \
                are those of the CockroachDB Cloud API, version 2024-09-16. Its other calls answer 501.",
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": {
                "type": "object",
                "required": ["code", "message", "details"],
                "properties": {
                    "code": {"type": "integer"},
                    "message": {"type": "string"},
                    "details": {"type": "array", "items": {"type": "object"}},
                },
            }},
        },
    })
}

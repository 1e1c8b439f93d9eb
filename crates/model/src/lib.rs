//! The words of the house: ids, names, documents and permissions as data, and the clock. No input or output.

mod address;
mod asked;
mod clock;
mod cluster;
mod connections;
mod egress;
mod fetch;
mod forbidden;
mod key;
mod names;
mod network;
mod origin;
mod outlet;
mod printable;
mod resources;
mod role;
mod sign_in;
mod storage;
mod template;
mod volume;

pub use address::{AddressRange, AllowlistEntry, InvalidRange, canonical, neighbourhood};
pub use asked::{Asked, Tier};
pub use clock::{Clock, FixedClock, SystemClock};
pub use cluster::{
    ALLOWLIST_ENTRIES_MAX, Cluster, ClusterState, Encryption, Observation, Organization, Phase, Plan, Power,
    Provider, SilenceSeen, Wish,
};
pub use connections::{CONNECTIONS_PER_CLUSTER_MAX, CONNECTIONS_PER_CLUSTER_MIN, connections_per_user_max};
pub use egress::{
    EGRESS_DESCRIPTION_CHARACTERS_MAX, EGRESS_KEY_BYTES_MAX, EGRESS_PORTS_MAX, EGRESS_RULES_MAX, Egress,
    EgressDestination, EgressHost, EgressPolicy, EgressRule, EgressRuleName, FqdnName, InvalidFqdn,
};
pub use fetch::{Fetch, FetchBody, FetchFailure, Fetched, Fetcher, Hidden};
pub use forbidden::{carried_ipv4, never_reached, never_reached_range};
pub use key::{
    CmekStatus, KEY_SERVICES_MAX, KEY_URI_BYTES_MAX, KEYS_KEPT_MAX, KeptSecret, KeyCredentials, KeyOutage,
    KeySeen, KeyService, KeySpec, KeyType, KeyWish, KeysSeen,
};
pub use names::{
    ClusterHandle, ClusterId, ClusterName, DatabaseName, InvalidHandle, InvalidName, KeyServiceName,
    RoleName, RoutingId,
};
pub use network::{
    ENDPOINT_WAIT_DAYS, ENDPOINTS_MAX, ENDPOINTS_WAITING_MAX, EndpointConnection, EndpointState, Network,
    NetworkSeen, PEERING_RANGES_MAX, PEERINGS_MAX, Peering, PeeringName, PeeringPhase, PeeringWish,
    PeeringWith, TRUSTED_OWNERS_MAX, TrustedOwner, Visibility, WireGuardPeer, is_wireguard_key,
};
pub use origin::{EndpointId, InvalidEndpointId, Origin, Surface, Way};
pub use outlet::{OUTLET_CONNECTIONS_MAX, OUTLETS_MAX, Outlet, Outlets};
pub use printable::{escaped, escaped_but, is_printable};
pub use resources::{MemorySeen, Resources};
pub use role::{RolesSeen, SQL_MEMBERSHIPS_MAX, SQL_ROLES_MAX, SqlRole, SqlRoles};
pub use sign_in::{
    CLAIM_DEFAULT, CLOCK_SKEW_SECONDS_DEFAULT, CRL_TEXT_BYTES_MAX, IdentityProvider, InvalidProviderName,
    OCSP_TIMEOUT_MS_DEFAULT, Ocsp, OcspMode, PROVIDERS_MAX, ProviderName, Provisioned,
    SIGN_IN_TEXT_BYTES_MAX, SignIn,
};
pub use storage::{Enforcement, Fullness, StorageLimit, StorageSeen, StorageUse};
pub use template::Template;
pub use volume::{Checkpoint, VolumeId, VolumeSeen};

/// The database that every cluster starts with, as CockroachDB Cloud names it.
pub const DEFAULT_DATABASE: &str = "defaultdb";
/// The database of the engine's internal superuser: ours alone.
pub const INTERNAL_DATABASE: &str = "chitin_internal";
/// The role that every user made by the API is a member of.
pub const ADMIN_ROLE: &str = "admin";
/// The engine's internal superuser: ours alone, never reachable through the gateway.
pub const INTERNAL_ROLE: &str = "chitin";

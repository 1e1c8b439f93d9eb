//! The HTTPS API in words: the Cloud API's shapes, our own beside them, and a client that speaks both.

mod access;
mod chitin;
mod client;
mod client_egress;
mod client_keys;
mod client_network;
mod client_sign_in;
mod cluster;
mod egress;
mod endpoints;
mod error;
mod key_services;
mod keys;
mod network;
mod number;
pub mod openapi;
mod page;
mod sign_in;
mod transport;

pub use crate::keys::{
    Alert, ClusterKeyLine, ClusterKeys, CmekAction, CmekClusterInfo, CmekKeyInfo, CmekKeySpec,
    CmekRegionInfo, CmekRegionSpec, CmekSpecification, CopyProgress, KeyFacts, KeyList, Outage, RootKey,
    RootKeyProtection, Severity, UpdateCmekStatus,
};
pub use ::keys::SecretText;
pub use access::{
    Allowlist, AllowlistChange, AllowlistEntry, ConnectionParameters, ConnectionString, CreateDatabase,
    CreateSqlUser, Database, Databases, Password, RenameDatabase, RenameNamedDatabase, SqlUser, SqlUsers,
};
pub use chitin::{
    Authority, Caller, Capability, ClusterDetail, ClusterPhase, ClusterPhases, Disk, Expiry, Facts, Machine,
    Organization, Outcome, Postgres, Proof, ProofRow, PutExpiry, Status,
};
pub use client::{Client, DEADLINE};
pub use cluster::{
    Cluster, ClusterConfig, Clusters, CreateCluster, CreateDedicated, CreateServerless, CreateSpec,
    DedicatedConfig, Hardware, MachineSpec, Protection, Region, ServerlessConfig, UpdateCluster,
    UpdateDedicated, UpdateServerless, UpgradeType, UsageLimits,
};
pub use egress::{
    AddEgressRule, ChangedEgressRule, EditEgressRule, Egress, EgressAddress, EgressRule, EgressRules,
    EgressVerdict, LeftOut, SetEgressPolicy, SetEngineEgress, ShownEgressRule, TestEgress,
};
pub use endpoints::{
    AddPrivateEndpointConnection, AddTrustedOwner, AwsEndpointConnection, AwsEndpointConnections,
    AwsServiceDetail, EndpointDecision, EndpointStatus, OneTrustedOwner, OwnerType,
    PrivateEndpointConnection, PrivateEndpointConnections, PrivateEndpointService, PrivateEndpointServices,
    Removed, SetAwsEndpointConnection, TrustedOwner, TrustedOwners,
};
pub use error::{Code, Error, ErrorBody, STOPPING};
pub use key_services::{
    KeyService, KeyServices, KeySignIn, PutKeyCredentials, PutKeyService, TestKey, TestedKey,
};
pub use network::{
    AcceptPeering, ClusterNetwork, CreatePeering, JoinWith, JoinedWith, NetworkState, Peering, PeeringConfig,
    PeeringState, PeeringStatus, Peerings, PutNetwork,
};
pub use page::{PageQuery, Pagination, SortBy, SortOrder};
pub use sign_in::{
    Cleared, ClientAuthorities, ClientAuthority, ClientCa, ClientCaStatus, Crl, Crls, Hba, HbaOutcome,
    HbaStep, HbaVerdict, IdentityProvider, IdentityProviders, Ocsp, PutIdentityProvider, SetClientCa,
    SetCrls, SignInText, TestHba, Throttle, ThrottleFilter, ThrottleLine,
};
pub use transport::{OPERATOR_FOLDER, OPERATOR_SOCKET, encode_segment};

/// The contract's version that we speak.
pub const VERSION: &str = "2024-09-16";

//! The typed client against the router, over real TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use api::{
    AcceptPeering, AddPrivateEndpointConnection, Client, ClientCaStatus, CreateCluster, CreatePeering,
    CreateServerless, CreateSpec, EndpointDecision, EndpointStatus, Error, HbaOutcome, JoinWith,
    NetworkState, PeeringState, PutIdentityProvider, PutNetwork, SetCrls, TestHba, ThrottleFilter,
};
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use keys::{Authority, RootKey, SecretText};
use model::{ClusterState, Provider, SystemClock, Tier, Visibility};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::world::World;

fn authority() -> Authority {
    let folder = tempfile::tempdir().unwrap();
    let kek = RootKey::open_or_create(&folder.path().join("kek")).unwrap();
    Authority::open_or_create(folder.path(), &kek.sealer("authority").unwrap(), &SystemClock).unwrap()
}

async fn serve(router: Router, authority: &Authority) -> SocketAddr {
    let certificate = authority.issue(&["localhost".to_owned()], &SystemClock).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificate.chain.clone(), certificate.key.clone_key())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(tcp).await {
                    let server = auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                }
            });
        }
    });
    address
}

fn client(address: SocketAddr, host: &str, key: &str, root: &Authority) -> Client {
    let key = SecretText::new(key.to_owned());
    Client::new(&format!("https://{host}:{}", address.port()), key, Some(root.root_pem())).unwrap()
}

#[tokio::test]
async fn the_client_speaks_with_the_cloud_and_tells_errors_apart() {
    let (world, root) = (World::new(), authority());
    let address = serve(world.router.clone(), &root).await;
    let cloud = client(address, "localhost", &world.key, &root);
    let request = CreateCluster {
        name: "from-client".to_owned(),
        provider: Provider::Gcp,
        spec: CreateSpec {
            plan: Some(Tier::Basic),
            serverless: Some(CreateServerless { regions: vec!["local".to_owned()], ..Default::default() }),
            ..Default::default()
        },
    };
    let made = cloud.create_cluster(&request).await.unwrap();
    assert_eq!((made.state, made.handle()), (ClusterState::Creating, "from-client-2"));
    assert_eq!(cloud.cluster(made.id).await.unwrap(), made);
    assert_eq!(cloud.cluster_by_name("from-client").await.unwrap().unwrap(), made);
    assert_eq!(cloud.allowlist(made.id).await.unwrap().len(), 2);
    assert_eq!(cloud.status().await.unwrap().clusters, 1);
    let six: model::AddressRange = "::/0".parse().unwrap();
    cloud.delete_allowlist_entry(made.id, six).await.unwrap();
    let url = cloud.connection_string(made.id, Some("a/b"), None).await.unwrap().connection_string;
    assert!(url.starts_with("postgresql://a%2Fb@localhost:26257/defaultdb?"), "{url}");

    let missing = cloud.cluster(model::ClusterId::random()).await;
    assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
    let early = cloud.create_sql_user(made.id, "maria", SecretText::new("long-enough".into())).await;
    assert!(matches!(early, Err(Error::Refused { status: 400, code: 9, .. })), "{early:?}");
    let stranger = client(address, "localhost", "CCDB1_x_y", &root).status().await;
    assert!(matches!(stranger, Err(Error::Refused { status: 401, code: 16, .. })), "{stranger:?}");
}

#[tokio::test]
async fn the_client_waits_out_the_rate_limit() {
    let (world, root) = (World::new(), authority());
    let address = serve(world.router.clone(), &root).await;
    let cloud = client(address, "localhost", &world.key, &root);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let cloud = cloud.clone();
        calls.spawn(async move { cloud.clusters().await.map(|clusters| clusters.len()) });
    }
    for answer in calls.join_all().await {
        assert_eq!(answer.unwrap(), 0);
    }
}

#[tokio::test]
async fn the_client_gives_its_key_to_nobody_else() {
    let (world, root, other) = (World::new(), authority(), authority());
    let modern = serve(world.router.clone(), &root).await;
    let cases = [
        ("another root", client(modern, "localhost", &world.key, &other)),
        ("another name", client(modern, "127.0.0.1", &world.key, &root)),
    ];
    for (case, cloud) in cases {
        let answer = cloud.status().await;
        assert!(matches!(answer, Err(Error::Unreachable { .. })), "{case}: {answer:?}");
    }
}

#[tokio::test]
async fn the_client_sets_how_people_sign_in() {
    let (world, root) = (World::new(), authority());
    let id = world.made("shop-one").await;
    let cloud = client(serve(world.router.clone(), &root).await, "localhost", &world.key, &root);
    let rules = "host all maria 203.0.113.0/24 cert\n";
    assert!(cloud.hba(id).await.unwrap().is_default);
    assert_eq!(cloud.set_hba(id, rules.to_owned()).await.unwrap().text, rules);
    let asked = TestHba {
        user: "maria".to_owned(),
        database: "defaultdb".to_owned(),
        address: "203.0.113.7".to_owned(),
        method: Some("jwt".to_owned()),
        roles: None,
    };
    assert_eq!(cloud.test_hba(id, &asked).await.unwrap().outcome, HbaOutcome::OtherMethod);
    assert_eq!(cloud.set_identity_map(id, "a b c\n".to_owned()).await.unwrap().text, "a b c\n");
    assert_eq!(cloud.identity_map(id).await.unwrap().text, "a b c\n");

    let pem = authority().root_pem().to_owned();
    assert_eq!(cloud.set_client_ca(id, pem.clone()).await.unwrap().status, ClientCaStatus::IsSet);
    assert_eq!(cloud.client_ca(id).await.unwrap().x509_pem_cert, pem);
    assert_eq!(cloud.client_authorities(id).await.unwrap().authorities.len(), 1);
    assert_eq!(cloud.delete_client_ca(id).await.unwrap().status, ClientCaStatus::NotSet);
    let ocsp = api::Ocsp { mode: model::OcspMode::Lax, ..cloud.ocsp(id).await.unwrap() };
    assert_eq!(cloud.set_ocsp(id, &ocsp).await.unwrap(), ocsp);
    assert!(
        cloud.set_crls(id, SetCrls { pem: "none".to_owned(), accept_without_list: false }).await.is_err()
    );
    assert_eq!(cloud.delete_crls(id).await.unwrap(), cloud.crls(id).await.unwrap());

    let issuer = "https://login.example.org".to_owned();
    let provider = PutIdentityProvider { issuer, client_id: Some("a".to_owned()), ..Default::default() };
    for scope in [None, Some(id)] {
        let made = cloud.put_provider(scope, "corp", &provider).await.unwrap();
        assert_eq!(cloud.providers(scope).await.unwrap(), std::slice::from_ref(&made));
        assert_eq!(cloud.delete_provider(scope, "corp").await.unwrap(), made);
        assert!(matches!(cloud.delete_provider(scope, "corp").await, Err(Error::NotFound { .. })));
        // The other scope's turn begins without any.
        assert!(cloud.providers(scope).await.unwrap().is_empty());
    }
    assert_eq!(cloud.throttle().await.unwrap().total, 0);
    assert_eq!(cloud.clear_throttle(&ThrottleFilter::default()).await.unwrap().cleared, 0);
}

#[tokio::test]
async fn the_client_sets_how_a_cluster_is_reached_in_private() {
    let (world, root) = (World::new(), authority());
    let id = world.made("shop-one").await;
    let cloud = client(serve(world.router.clone(), &root).await, "localhost", &world.key, &root);
    let wanted = PutNetwork { visibility: Visibility::Private, cidr_range: Some("10.77.0.0/24".to_owned()) };
    let network = cloud.set_network(id, &wanted).await.unwrap();
    assert_eq!((network.visibility, network.state), (Visibility::Private, NetworkState::Pending));
    assert_eq!(cloud.network(id).await.unwrap(), network);
    assert_eq!(cloud.cluster(id).await.unwrap().network_visibility, Visibility::Private);

    let with = JoinWith::WireGuard { public_key: None, listen_port: None, endpoint: None };
    let ranges = vec!["192.168.5.0/24".to_owned()];
    let made =
        cloud.create_peering(id, &CreatePeering { name: "home".to_owned(), with, ranges }).await.unwrap();
    let name = "home".parse().unwrap();
    assert_eq!(cloud.peering(id, &name).await.unwrap(), made);
    assert_eq!(cloud.peerings(id).await.unwrap(), [made]);
    assert!(cloud.peering_config(id, &name).await.unwrap().config.contains("10.77.0.0/24"));
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let acceptance = AcceptPeering { public_key: Some(key.to_owned()) };
    let accepted = cloud.accept_peering(id, &name, &acceptance).await.unwrap();
    assert_eq!(accepted.status.state, PeeringState::Pending);
    assert_eq!(cloud.delete_peering(id, &name).await.unwrap().status.state, PeeringState::Deleting);
    assert!(matches!(cloud.peering(id, &name).await, Err(Error::NotFound { .. })));

    let services = cloud.endpoint_services(id).await.unwrap();
    assert_eq!(cloud.create_endpoint_services(id).await.unwrap(), services);
    let owner = cloud.add_trusted_owner(id, "012345678901").await.unwrap();
    assert_eq!(cloud.trusted_owners(id).await.unwrap(), std::slice::from_ref(&owner));
    let endpoint = format!("wireguard:{}", key.replace("AAEC", "/+EC"));
    let wanted = AddPrivateEndpointConnection { endpoint_id: endpoint.clone(), external_owner_id: None };
    let added = cloud.add_endpoint_connection(id, &wanted).await.unwrap();
    assert_eq!(added.status, EndpointStatus::PendingAcceptance);
    let whose = Some("012345678901".to_owned());
    let before =
        cloud.decide_endpoint_connection(id, &endpoint, EndpointDecision::Available, whose).await.unwrap();
    assert_eq!(before.status, EndpointStatus::PendingAcceptance);
    assert_eq!(cloud.endpoint_connections(id).await.unwrap()[0].status, EndpointStatus::Available);
    assert_eq!(cloud.delete_trusted_owner(id, owner.id).await.unwrap(), owner);
    assert_eq!(cloud.endpoint_connections(id).await.unwrap()[0].status, EndpointStatus::Rejected);
    cloud.delete_endpoint_connection(id, &endpoint).await.unwrap();
    assert!(cloud.endpoint_connections(id).await.unwrap().is_empty());
}

//! What may leave each cluster: its own policy, and that nobody reaches into another's network.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use api::{EgressAddress, EgressVerdict};
use model::{Cluster, ClusterId, EgressDestination, EgressPolicy, FetchFailure, FqdnName, Wish};
use network::{Destination, Target};
use store::{Snapshot, Store};
use tokio::sync::watch;

/// Judges by the cloud's state, as it is at that moment.
pub struct Perimeter {
    store: Arc<Store>,
}

impl Perimeter {
    /// Of the clusters in this store.
    pub fn new(store: Arc<Store>) -> Arc<Self> {
        Arc::new(Self { store })
    }
}

impl network::Perimeter for Perimeter {
    fn judge(&self, cluster: ClusterId, to: &Destination<'_>) -> Result<(), String> {
        let snapshot = self.store.snapshot();
        match snapshot.get(&cluster).map(|entry| &entry.cluster) {
            Some(known) if known.wish != Wish::Deleted => judge(&snapshot, known, to),
            _ => Err(gone()),
        }
    }

    fn may_look_up(&self, cluster: ClusterId, target: &Target) -> Result<(), String> {
        let snapshot = self.store.snapshot();
        let known = snapshot.get(&cluster).map(|entry| &entry.cluster);
        let known = known.filter(|known| known.wish != Wish::Deleted).ok_or_else(gone)?;
        let Target { host, port } = target;
        // A rule for a range may permit any name; which, only its addresses tell.
        let is_possible = known.egress.rules.iter().any(|rule| match &rule.destination {
            EgressDestination::Cidr(range) => rule.names(host, range.address(), *port),
            EgressDestination::Fqdn(_) => rule.names(host, Ipv4Addr::UNSPECIFIED.into(), *port),
        });
        match known.egress.policy {
            EgressPolicy::DefaultDeny if !is_possible => Err(unnamed(known, target, None)),
            EgressPolicy::DefaultDeny | EgressPolicy::AllowAll => Ok(()),
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.store.changes()
    }
}

fn judge(snapshot: &Snapshot, cluster: &Cluster, to: &Destination<'_>) -> Result<(), String> {
    let Destination { target, address } = to;
    // What NAT64 and 6to4 carry arrives at an IPv4 address.
    let carried = match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => model::carried_ipv4(*address).map(IpAddr::V4),
    };
    // What is everybody's is nobody's own, also where one cluster reaches it by a peering: from here it is another way.
    let owns = |other: &Cluster, address: IpAddr| {
        network::judge(address, &[]).is_err() && other.network.owns(address)
    };
    let is_foreign = snapshot.apart().map(|entry| &entry.cluster).any(|other| {
        other.id != cluster.id && (owns(other, *address) || carried.is_some_and(|inner| owns(other, inner)))
    });
    if is_foreign {
        return Err(format!("{} is at {address}, in another cluster's private network", target.host));
    }
    let Target { host, port } = target;
    if cluster.egress.permits(host, *address, *port) {
        return Ok(());
    }
    Err(unnamed(cluster, target, Some(*address)))
}

fn gone() -> String {
    "the cluster is gone, and nothing leaves on its behalf".to_owned()
}

/// What is said where no rule names a destination; `address` is where it is, once that is known.
fn unnamed(cluster: &Cluster, target: &Target, address: Option<IpAddr>) -> String {
    let (policy, name) = (EgressPolicy::DefaultDeny.as_str(), &cluster.name);
    let Target { host, port } = target;
    let at = address.map(|address| format!(" (at {address})")).unwrap_or_default();
    // A rule for a name must be one that rules can have.
    let wanted = host.to_string().parse::<FqdnName>().map_or_else(
        |_| address.map_or_else(|| host.to_string(), |address| address.to_string()),
        String::from,
    );
    format!(
        "the egress policy of {name} is {policy} and no rule names {host} port {port}{at}; if that is meant: \
         chitin egress add {name} RULE {wanted} --port {port}"
    )
}

/// Says what would become of a connection to a URL or `HOST:PORT`, without opening one.
pub async fn verdict(gate: &network::Gate, cluster: &Cluster, destination: &str) -> EgressVerdict {
    let egress = &cluster.egress;
    let mut verdict = EgressVerdict {
        destination: String::new(),
        policy: egress.policy,
        is_permitted: false,
        reason: None,
        addresses: Vec::new(),
    };
    let judged = match Target::read(destination) {
        Ok(target) => {
            verdict.destination = target.to_string();
            gate.consider(cluster.id, &target).await.map(|judged| (target, judged))
        }
        Err(cause) => Err(cause),
    };
    match judged {
        Ok((target, judged)) => {
            verdict.is_permitted = judged.iter().all(|(_, outcome)| outcome.is_ok());
            verdict.addresses = judged
                .into_iter()
                .map(|(address, outcome)| EgressAddress {
                    address,
                    is_permitted: outcome.is_ok(),
                    rule: egress
                        .rule_for(&target.host, address, target.port)
                        .map(|rule| rule.name.to_string()),
                    reason: outcome.err().map(told),
                })
                .collect();
        }
        Err(cause) => verdict.reason = Some(told(cause)),
    }
    verdict
}

/// What a log begins with is said by the verdict itself.
fn told(cause: FetchFailure) -> String {
    match cause {
        FetchFailure::Refused(why) => why,
        FetchFailure::Failed(_) | FetchFailure::TimedOut | FetchFailure::TooLong(_) => cause.to_string(),
    }
}

impl std::fmt::Debug for Perimeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Perimeter")
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use keys::RootKey;
    use model::{Egress, Network, Peering, PeeringWish, PeeringWith};
    use network::Perimeter as _;
    use time::OffsetDateTime;

    use super::*;

    struct World {
        store: Arc<Store>,
        perimeter: Arc<Perimeter>,
        _folder: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let kek = RootKey::open_or_create(&folder.path().join("kek")).unwrap();
            let store = Store::open(&folder.path().join("state"), kek.sealer("state").unwrap()).unwrap();
            Self { perimeter: Perimeter::new(store.clone()), store, _folder: folder }
        }

        fn cluster(&self, name: &str, network: Network, policy: EgressPolicy) -> ClusterId {
            let egress = Egress { policy, ..Egress::default() };
            let plan = model::Plan::Dedicated;
            let draft = store::Draft { plan, network, egress, ..crate::testing::draft(name) };
            self.store.create(draft, OffsetDateTime::now_utc()).unwrap().id
        }

        fn judge(&self, cluster: ClusterId, text: &str, address: &str) -> Result<(), String> {
            let target = Target::read(text).unwrap();
            self.perimeter.judge(cluster, &Destination { target: &target, address: address.parse().unwrap() })
        }
    }

    fn private(range: &str) -> Network {
        let range = Some(range.parse().unwrap());
        let office = Peering {
            name: "office".parse().unwrap(),
            with: PeeringWith::Namespace {
                namespace: "office".to_owned(),
                address: "10.77.0.2".parse().unwrap(),
            },
            ranges: vec!["192.168.5.0/24".parse().unwrap()],
            wish: PeeringWish::Accepted,
            created_at: OffsetDateTime::UNIX_EPOCH,
        };
        Network { range, peerings: vec![office], ..Network::default() }
    }

    #[test]
    fn a_refusal_says_why_and_what_to_do() {
        let world = World::new();
        let id = world.cluster("shop-one", Network::default(), EgressPolicy::DefaultDeny);
        let why = world.judge(id, "https://a.example/", "192.0.2.1").unwrap_err();
        assert!(why.contains("DEFAULT_DENY") && !why.contains("lock"), "{why}");
        assert!(why.contains("chitin egress add shop-one RULE a.example --port 443"), "{why}");
        let why = world.judge(id, "http://localhost/", "127.0.0.1").unwrap_err();
        assert!(why.contains("chitin egress add shop-one RULE 127.0.0.1 --port 80"), "{why}");
        let open = world.cluster("shop-two", Network::default(), EgressPolicy::AllowAll);
        assert_eq!(world.judge(open, "https://a.example/", "192.0.2.1"), Ok(()));
    }

    #[test]
    fn a_peering_with_public_addresses_takes_them_from_nobody() {
        let world = World::new();
        let mut wide = private("10.77.0.0/24");
        wide.peerings[0].ranges = vec!["8.0.0.0/8".parse().unwrap(), "192.168.5.0/24".parse().unwrap()];
        world.cluster("wide-one", wide, EgressPolicy::AllowAll);
        let other = world.cluster("other-one", Network::default(), EgressPolicy::AllowAll);
        assert_eq!(world.judge(other, "https://a.example/", "8.8.8.8"), Ok(()));
        for address in ["192.168.5.9", "10.77.0.1", "::ffff:192.168.5.9", "64:ff9b::c0a8:509"] {
            assert!(world.judge(other, "https://a.example/", address).is_err(), "{address}");
        }
    }

    #[test]
    fn t51_a_closed_cluster_asks_for_no_name_that_its_rules_cannot_permit() {
        let world = World::new();
        let closed = world.cluster("shop-one", Network::default(), EgressPolicy::DefaultDeny);
        let open = world.cluster("shop-two", Network::default(), EgressPolicy::AllowAll);
        let ask = |cluster, text: &str| world.perimeter.may_look_up(cluster, &Target::read(text).unwrap());
        let why = ask(closed, "https://the-secret.evil.example/").unwrap_err();
        assert!(why.contains("chitin egress add shop-one RULE the-secret.evil.example --port 443"), "{why}");
        assert_eq!(ask(open, "https://a.example/"), Ok(()));
        let add = |destination, ports: &[u16]| {
            let rule = model::EgressRule {
                id: uuid::Uuid::new_v4(),
                name: "one".parse().unwrap(),
                destination,
                written: String::new(),
                ports: ports.to_vec(),
                description: String::new(),
                created_at: OffsetDateTime::UNIX_EPOCH,
                idempotency_key: None,
            };
            let edited = world.store.edit(closed, OffsetDateTime::now_utc(), |cluster| {
                cluster.egress.rules = vec![rule];
                Ok::<_, store::Error>(())
            });
            edited.unwrap();
        };
        add(EgressDestination::Fqdn("a.example".parse().unwrap()), &[443]);
        assert_eq!(ask(closed, "https://a.example/"), Ok(()));
        assert!(ask(closed, "http://a.example/").is_err() && ask(closed, "https://b.example/").is_err());
        add(EgressDestination::Cidr("8.8.0.0/16".parse().unwrap()), &[443]);
        assert_eq!(ask(closed, "https://b.example/"), Ok(()));
        assert!(ask(closed, "http://b.example/").is_err());
        world.store.wish(open, Wish::Deleted, OffsetDateTime::now_utc()).unwrap();
        assert!(
            ask(open, "https://a.example/").is_err()
                && ask(ClusterId::random(), "https://a.example/").is_err()
        );
    }

    #[test]
    fn no_cluster_reaches_into_the_network_of_another() {
        let world = World::new();
        world.cluster("shop-one", private("10.77.0.0/24"), EgressPolicy::AllowAll);
        let other = world.cluster("shop-two", private("10.78.0.0/24"), EgressPolicy::AllowAll);
        for address in ["10.77.0.1", "10.77.0.99", "192.168.5.1", "64:ff9b::a4d:1"] {
            let why = world.judge(other, "a.example:443", address).unwrap_err();
            assert!(why.contains("another cluster") && !why.contains("shop-one"), "{why}");
        }
        for address in ["10.78.0.1", "10.79.0.1", "192.0.2.1"] {
            assert_eq!(world.judge(other, "a.example:443", address), Ok(()), "{address}");
        }
    }

    /// Says the same of every name.
    struct Names(Vec<IpAddr>);

    #[async_trait]
    impl network::Resolver for Names {
        async fn resolve(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
            Ok(self.0.clone())
        }
    }

    #[tokio::test]
    async fn a_verdict_names_the_rule_and_what_stands_against_it() {
        let world = World::new();
        let id = world.cluster("shop-one", Network::default(), EgressPolicy::DefaultDeny);
        let added = world.store.edit(id, OffsetDateTime::now_utc(), |cluster| -> Result<(), store::Error> {
            cluster.egress.rules.push(model::EgressRule {
                id: uuid::Uuid::new_v4(),
                name: "range".parse().unwrap(),
                destination: EgressDestination::Cidr("8.8.0.0/16".parse().unwrap()),
                written: "8.8.0.0/16".to_owned(),
                ports: vec![443],
                description: String::new(),
                created_at: OffsetDateTime::UNIX_EPOCH,
                idempotency_key: None,
            });
            Ok(())
        });
        added.unwrap();
        let told = async |addresses: &[&str], destination: &str| {
            let names = Names(addresses.iter().map(|text| text.parse().unwrap()).collect());
            let settings = network::GateSettings::default();
            let gate = network::Gate::with_resolver(settings, world.perimeter.clone(), Arc::new(names));
            let snapshot = world.store.snapshot();
            verdict(&gate.unwrap(), &snapshot.get(&id).unwrap().cluster, destination).await
        };
        let good = told(&["8.8.8.8"], "https://A.example/x").await;
        assert!(good.is_permitted && good.destination == "a.example:443", "{good:?}");
        assert_eq!(good.addresses[0].rule.as_deref(), Some("range"));
        let mixed = told(&["8.8.8.8", "9.9.9.9"], "https://a.example/").await;
        assert!(!mixed.is_permitted && mixed.addresses[0].is_permitted && !mixed.addresses[1].is_permitted);
        assert!(mixed.addresses[1].reason.as_ref().unwrap().contains("chitin egress add"), "{mixed:?}");
        assert!(!told(&["8.8.8.8"], "a.example:80").await.is_permitted);
        for (addresses, destination) in [(&[][..], "a.example:443"), (&["8.8.8.8"], "nonsense")] {
            let none = told(addresses, destination).await;
            assert!(!none.is_permitted && none.reason.is_some(), "{none:?}");
        }
    }

    #[test]
    fn a_cluster_that_is_going_or_gone_reaches_nothing() {
        let world = World::new();
        let id = world.cluster("shop-one", Network::default(), EgressPolicy::AllowAll);
        let mut changes = world.perimeter.changes();
        assert!(!changes.has_changed().unwrap());
        world.store.wish(id, Wish::Deleted, OffsetDateTime::now_utc()).unwrap();
        assert!(changes.has_changed().unwrap(), "whoever is under way looks again");
        changes.mark_unchanged();
        assert!(world.judge(id, "a.example:443", "192.0.2.1").is_err());
        world.store.forget(id).unwrap();
        assert!(world.judge(id, "a.example:443", "192.0.2.1").is_err());
        assert!(world.judge(ClusterId::random(), "a.example:443", "192.0.2.1").is_err());
    }
}

//! Bridges and interfaces, what fails and why, and what was changed by hand or by a new document.

use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
use std::mem::ManuallyDrop;

use model::{NetworkSeen, PeeringWith};
use network::private::PrivateNetworks;
use nix::sched::CloneFlags;

use crate::ground::{
    Cluster, PORT, Place, assert_refused, links, on_a_machine, on_a_machine_with, sh, until,
};

fn bridge(name: &str, address: &str) -> PeeringWith {
    PeeringWith::Bridge { bridge: name.to_owned(), address: address.parse().unwrap() }
}

fn interface(name: &str, address: &str) -> PeeringWith {
    PeeringWith::Interface { interface: name.to_owned(), address: address.parse().unwrap() }
}

/// A namespace whose `eth0` ends in the machine's network as `wan0`.
fn neighbour(address: &str) -> Place {
    let place = Place::new();
    sh(&format!("ip link add wan0 type veth peer name eth0 netns {}", place.0));
    sh("ip link set wan0 up");
    place.ip(&format!("address add {address} dev eth0 nodad"));
    place.ip("link set eth0 up");
    place
}

#[test]
fn clients_on_a_bridge_come_in_at_our_address_there() {
    for (own, theirs, ours) in
        [("172.20.0.5/24", "172.20.0.9/24", "172.20.0.5"), ("fd00:20::5/64", "fd00:20::9/64", "fd00:20::5")]
    {
        on_a_machine(move || async move {
            let client = neighbour(theirs);
            sh("ip link add br0 type bridge");
            sh("ip link set br0 up");
            sh("ip link set wan0 master br0");
            let before = links();
            let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
            cluster.peer("lan", bridge("br0", own), &[]);
            cluster.open().await;
            let door = (ours.parse().unwrap(), PORT);
            assert_eq!(client.connect(None, door).unwrap(), theirs.split('/').next().unwrap());
            assert_refused(client.attempt(None, (door.0, PORT + 1)), &[ConnectionRefused]);
            cluster.networks.remove(cluster.id).await;
            assert_eq!(links(), before);
        });
    }
}

#[test]
fn clients_behind_an_interface_come_in_at_our_address_there() {
    for (own, theirs, ours) in
        [("172.20.0.5/24", "172.20.0.9/24", "172.20.0.5"), ("fd00:20::5/64", "fd00:20::9/64", "fd00:20::5")]
    {
        on_a_machine(move || async move {
            let client = neighbour(theirs);
            let before = links();
            let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
            cluster.peer("lan", interface("wan0", own), &[]);
            cluster.open().await;
            let door = (ours.parse().unwrap(), PORT);
            assert_eq!(client.connect(None, door).unwrap(), theirs.split('/').next().unwrap());
            assert_refused(client.attempt(None, (door.0, PORT + 1)), &[ConnectionRefused]);
            assert_eq!(links(), before, "the link is in the cluster's network only");
            cluster.networks.remove(cluster.id).await;
            assert_refused(client.attempt(None, door), &[HostUnreachable, TimedOut]);
        });
    }
}

#[test]
fn what_fails_says_what_to_do_and_the_others_stand() {
    on_a_machine(|| async {
        let (office, full) = (Place::new(), Place::new());
        sh("ip link add off0 type veth peer name off1");
        full.ip("route add 10.77.0.0/24 dev lo");
        let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
        cluster.peer_with("office", &office, &[]);
        cluster.peer_with("full", &full, &[]);
        cluster.peer_with("absent", &ManuallyDrop::new(Place("nobody".to_owned())), &[]);
        cluster.peer_with("outside", &ManuallyDrop::new(Place("../../proc/self/ns/net".to_owned())), &[]);
        cluster.peer("no-bridge", bridge("br9", "172.20.0.5/24"), &[]);
        cluster.peer("not-a-bridge", bridge("lo", "172.21.0.5/24"), &[]);
        cluster.peer("no-interface", interface("wan9", "172.22.0.5/24"), &[]);
        cluster.peer("off", interface("off0", "172.23.0.5/24"), &[]);
        let before = links();
        for (name, expected) in [
            ("full", "has a route to 10.77.0.0/24 already"),
            ("absent", "`ip netns add"),
            ("outside", "there is no network namespace named"),
            ("no-bridge", "`ip link add br9 type bridge` makes it"),
            ("not-a-bridge", "'lo' is no bridge"),
            ("no-interface", "there is no interface named 'wan9'"),
            ("off", "`ip link set off0 up`"),
        ] {
            let reason = cluster.reason(name).await;
            assert!(reason.contains(expected), "{name}: {reason}");
        }
        assert_eq!(links(), before, "nothing half made is left");
        assert_eq!(full.links(), ["lo"]);
        cluster.network.peerings.truncate(1);
        cluster.open().await;
        assert_eq!(office.connect(None, cluster.door()).unwrap(), "10.77.0.2");
    });
}

#[test]
fn a_namespace_that_comes_late_is_joined_then() {
    on_a_machine(|| async {
        let office = Place(crate::ground::unique("ns"));
        let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
        cluster.peer_with("office", &office, &[]);
        assert!(cluster.reason("office").await.contains("there is no network namespace"));
        sh(&format!("ip netns add {}", office.0));
        cluster.open().await;
        assert_eq!(office.connect(None, cluster.door()).unwrap(), "10.77.0.2");
        // Another namespace under the same name is another network.
        sh(&format!("ip netns del {}", office.0));
        sh(&format!("ip netns add {}", office.0));
        cluster.stand().await;
        assert_eq!(office.connect(None, cluster.door()).unwrap(), "10.77.0.2");
    });
}

/// As root Chitin has mounts of its own, and names that come later are mounts elsewhere.
#[test]
fn a_namespace_named_after_our_mounts_became_our_own_is_found() {
    for propagation in ["--make-rslave", "--make-rprivate"] {
        let (ask, asked) = std::sync::mpsc::channel::<String>();
        let (answer, answered) = std::sync::mpsc::channel::<()>();
        let outside = std::thread::spawn(move || {
            for command in asked {
                sh(&command);
                answer.send(()).unwrap();
            }
        });
        let root = std::fs::File::open("/").unwrap();
        on_a_machine_with(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS, move || async move {
            sh(&format!("mount {propagation} /"));
            let name = crate::ground::unique("ns");
            ask.send(format!("ip netns add {name}")).unwrap();
            answered.recv().unwrap();
            let networks = PrivateNetworks::with_root(root);
            let mut cluster = Cluster::new(&networks, "10.77.0.0/24");
            let place = ManuallyDrop::new(Place(name.clone()));
            cluster.peer_with("office", &place, &[]);
            let seen = cluster.ensure().await;
            ask.send(format!("ip netns del {name}")).unwrap();
            answered.recv().unwrap();
            assert_eq!(seen.peerings.into_values().collect::<Vec<_>>(), [model::PeeringPhase::Active]);
        });
        outside.join().unwrap();
    }
}

#[test]
fn what_is_removed_by_hand_is_made_again_and_what_stands_is_left_alone() {
    for range in ["10.77.0.0/24", "fd00:77::/64"] {
        on_a_machine(move || async move {
            let office = Place::new();
            let mut cluster = Cluster::new(&PrivateNetworks::new(), range);
            let own = cluster.peer_with("office", &office, &[]);
            cluster.open().await;
            let link = office.link();
            let is_in = || office.attempt(None, cluster.door()).is_ok_and(|seen| seen == own.to_string());
            let number = || office.ip(&format!("-o link show {link}"));

            let before = number();
            cluster.stand().await;
            assert_eq!(number(), before, "nothing was to be done");
            for damage in [
                format!("address flush dev {link}"),
                format!("link set {link} down"),
                format!("-6 route flush dev {link}"),
                format!("-4 route flush dev {link}"),
            ] {
                office.ip(&damage);
                cluster.stand().await;
                assert!(is_in(), "after {damage}");
                assert_eq!(number(), before, "the link itself stayed");
            }
            office.ip(&format!("link del {link}"));
            assert!(!is_in());
            cluster.stand().await;
            assert!(is_in(), "after the link was removed");
            assert_ne!(number(), before);
        });
    }
}

#[test]
fn a_port_that_was_taken_off_its_bridge_is_put_back() {
    on_a_machine(|| async {
        let client = neighbour("172.20.0.9/24");
        sh("ip link add br0 type bridge");
        sh("ip link set br0 up");
        sh("ip link set wan0 master br0");
        let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
        cluster.peer("lan", bridge("br0", "172.20.0.5/24"), &[]);
        cluster.open().await;
        let port = links().into_iter().find(|name| name.starts_with("ct")).unwrap();
        let door = ("172.20.0.5".parse().unwrap(), PORT);
        for damage in ["nomaster", "down"] {
            sh(&format!("ip link set {port} {damage}"));
            cluster.stand().await;
            assert_eq!(client.connect(None, door).unwrap(), "172.20.0.9", "after {damage}");
        }
        sh(&format!("ip link del {port}"));
        cluster.stand().await;
        assert_eq!(client.connect(None, door).unwrap(), "172.20.0.9");
    });
}

#[test]
fn the_kernel_follows_the_document() {
    on_a_machine(|| async {
        let (office, shop) = (Place::new(), Place::new());
        let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
        cluster.peer_with("office", &office, &["192.168.5.0/24"]);
        cluster.open().await;
        office.ip("address add 192.168.5.9 dev lo nodad");
        assert_eq!(office.connect(Some("192.168.5.9"), cluster.door()).unwrap(), "192.168.5.9");

        cluster.network.peerings[0].ranges.clear();
        cluster.stand().await;
        office.learn(cluster.door());
        assert_refused(office.attempt(Some("192.168.5.9"), cluster.door()), &[TimedOut]);

        // Another range moves the front door, and the way to it.
        let old = cluster.door();
        cluster.network.range = Some("10.88.0.0/24".parse().unwrap());
        cluster.network.peerings.clear();
        cluster.peer_with("office", &office, &[]);
        cluster.stand().await;
        assert_eq!(office.connect(None, cluster.door()).unwrap(), "10.88.0.2");
        assert_refused(office.attempt(None, old), &[NetworkUnreachable]);

        // The same name leads elsewhere.
        cluster.network.peerings.clear();
        cluster.peer_with("office", &shop, &[]);
        cluster.stand().await;
        assert_eq!(shop.connect(None, cluster.door()).unwrap(), "10.88.0.2");
        assert_eq!(office.links(), ["lo"]);
        assert_eq!(office.ip("route show"), "");

        // Without a range there is no network.
        cluster.network.range = None;
        assert_eq!(cluster.ensure().await, NetworkSeen::default());
        assert_eq!(shop.links(), ["lo"]);
        assert_eq!(cluster.networks.known(), []);
        assert!(cluster.networks.listen(cluster.id, PORT).await.is_err());
    });
}

#[test]
fn a_session_outlives_what_does_not_concern_it() {
    on_a_machine(|| async {
        let (office, shop) = (Place::new(), Place::new());
        let networks = PrivateNetworks::new();
        let mut cluster = Cluster::new(&networks, "10.77.0.0/24");
        cluster.peer_with("office", &office, &[]);
        cluster.stand().await;
        let listener = networks.listen(cluster.id, PORT).await.unwrap();
        let door = cluster.door();
        let name = office.0.clone();
        let client =
            tokio::task::spawn_blocking(move || Place::connect(&ManuallyDrop::new(Place(name)), None, door));
        let (mut session, _) = listener.accept().await.unwrap();
        cluster.peer_with("shop", &shop, &[]);
        cluster.stand().await;
        cluster.network.peerings.pop();
        cluster.stand().await;
        tokio::io::AsyncWriteExt::write_all(&mut session, b"still here").await.unwrap();
        drop(session);
        assert_eq!(client.await.unwrap().unwrap(), "still here");
    });
}

#[test]
fn many_at_once_stand_and_leave_nothing() {
    on_a_machine(|| async {
        let networks = PrivateNetworks::new();
        let places: Vec<Place> = (0..4).map(|_| Place::new()).collect();
        let clusters: Vec<Cluster> = (0..8)
            .map(|number| {
                let mut cluster = Cluster::new(&networks, &format!("10.{}.0.0/24", 80 + number));
                for (index, place) in places.iter().enumerate() {
                    cluster.peer_with(&format!("p{index}"), place, &[]);
                }
                cluster
            })
            .collect();
        // Twice each and at the same moment: the second finds the first's work, whichever that is.
        futures::future::join_all(clusters.iter().chain(&clusters).map(Cluster::stand)).await;
        assert!(places.iter().all(|place| place.links().len() == 9));
        futures::future::join_all(
            clusters.iter().chain(&clusters).map(|cluster| networks.remove(cluster.id)),
        )
        .await;
        assert!(places.iter().all(|place| place.links() == ["lo"]));
        assert_eq!(networks.known(), []);
        until("links are gone", || links() == ["lo"]).await;
    });
}

//! Who is joined comes in, and nobody else; and only to the front door.

use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
use std::net::IpAddr;

use model::{PeeringPhase, PeeringWish};
use network::private::PrivateNetworks;

use crate::ground::{Cluster, PORT, Place, assert_refused, on_a_machine, sh};

#[test]
fn a_peered_namespace_reaches_the_front_door_and_is_seen_as_itself() {
    for (range, own) in [("10.77.0.0/24", "10.77.0.2"), ("fd00:77::/64", "fd00:77::2")] {
        on_a_machine(move || async move {
            let office = Place::new();
            let mut cluster = Cluster::new(&PrivateNetworks::new(), range);
            cluster.peer_with("office", &office, &[]);
            cluster.open().await;
            assert_eq!(office.connect(None, cluster.door()).unwrap(), own);
        });
    }
}

#[test]
fn clients_behind_a_peering_come_in_from_its_ranges_and_from_no_other_address() {
    for (range, inside, outside, behind) in [
        ("10.77.0.0/24", "192.168.5.9", "192.168.6.9", "192.168.5.0/24"),
        ("fd00:77::/64", "fd00:5::9", "fd00:6::9", "fd00:5::/64"),
    ] {
        on_a_machine(move || async move {
            let office = Place::new();
            for address in [inside, outside] {
                office.ip(&format!("address add {address} dev lo nodad"));
            }
            let mut cluster = Cluster::new(&PrivateNetworks::new(), range);
            cluster.peer_with("office", &office, &[behind]);
            cluster.open().await;
            assert_eq!(office.connect(Some(inside), cluster.door()).unwrap(), inside);
            office.learn(cluster.door());
            assert_refused(office.attempt(Some(outside), cluster.door()), &[TimedOut]);
        });
    }
}

#[test]
fn a_host_behind_a_namespace_that_routes_comes_in() {
    on_a_machine(|| async {
        let (router, host) = (Place::new(), Place::new());
        router.ip(&format!("link add inner type veth peer name eth0 netns {}", host.0));
        router.ip("address add 192.168.5.1/24 dev inner");
        router.ip("link set inner up");
        router.run("sysctl -qw net.ipv4.ip_forward=1");
        host.ip("address add 192.168.5.9/24 dev eth0");
        host.ip("link set eth0 up");
        host.ip("route add default via 192.168.5.1");
        let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
        cluster.peer_with("office", &router, &["192.168.5.0/24"]);
        cluster.open().await;
        assert_eq!(host.connect(None, cluster.door()).unwrap(), "192.168.5.9");
    });
}

#[test]
fn without_an_accepted_peering_nobody_comes_in() {
    on_a_machine(|| async {
        let (office, other) = (Place::new(), Place::new());
        let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
        cluster.peer_with("office", &office, &[]);
        cluster.open().await;
        assert_refused(other.attempt(None, cluster.door()), &[NetworkUnreachable]);

        cluster.network.peerings[0].wish = PeeringWish::Proposed;
        let seen = cluster.ensure().await;
        assert_eq!(seen.peerings.into_values().collect::<Vec<_>>(), [PeeringPhase::Pending]);
        assert_refused(office.attempt(None, cluster.door()), &[NetworkUnreachable]);
        assert_eq!(office.links(), ["lo"]);
    });
}

#[test]
fn every_other_port_is_refused() {
    for range in ["10.77.0.0/24", "fd00:77::/64"] {
        on_a_machine(move || async move {
            let office = Place::new();
            let mut cluster = Cluster::new(&PrivateNetworks::new(), range);
            cluster.peer_with("office", &office, &[]);
            cluster.open().await;
            for port in [1, 22, 53, 80, 443, 5432, PORT - 1, PORT + 1, 51820, 65535] {
                assert_refused(office.attempt(None, (cluster.door().0, port)), &[ConnectionRefused]);
            }
        });
    }
}

#[test]
fn two_clusters_networks_do_not_see_each_other_even_with_the_same_addresses() {
    on_a_machine(|| async {
        let networks = PrivateNetworks::new();
        let (office, shop) = (Place::new(), Place::new());
        let mut one = Cluster::new(&networks, "10.77.0.0/24");
        let mut two = Cluster::new(&networks, "10.77.0.0/24");
        let mut three = Cluster::new(&networks, "10.78.0.0/24");
        one.peer_with("office", &office, &[]);
        two.peer_with("office", &shop, &["192.168.5.0/24"]);
        three.peer_with("office", &shop, &["192.168.5.0/24"]);
        for cluster in [&mut one, &mut two, &mut three] {
            cluster.open().await;
        }
        shop.ip("address add 192.168.5.9 dev lo nodad");
        // Only the second knows that range, so whoever answers is the second.
        assert_eq!(shop.connect(Some("192.168.5.9"), two.door()).unwrap(), "192.168.5.9");
        assert_eq!(office.connect(None, one.door()).unwrap(), "10.77.0.2");
        office.ip("address add 192.168.5.9 dev lo nodad");
        office.learn(one.door());
        assert_refused(office.attempt(Some("192.168.5.9"), one.door()), &[TimedOut]);
        // The third is reached by its own peer, and by nobody through the first's network.
        assert_eq!(shop.connect(None, three.door()).unwrap(), "10.78.0.2");
        office.ip(&format!("route add 10.78.0.0/24 via 10.77.0.1 dev {}", office.link()));
        assert_refused(office.attempt(None, three.door()), &[TimedOut, HostUnreachable]);
    });
}

#[test]
fn nothing_is_forwarded_from_one_peering_to_another() {
    for (range, first, second, door, way) in [
        ("10.77.0.0/24", "10.77.0.2", "10.77.0.3", "10.77.0.1", "route add 10.77.0.3/32"),
        ("fd00:77::/64", "fd00:77::2", "fd00:77::3", "fd00:77::1", "-6 route add fd00:77::3/128"),
    ] {
        on_a_machine(move || async move {
            let (office, shop) = (Place::new(), Place::new());
            let mut cluster = Cluster::new(&PrivateNetworks::new(), range);
            cluster.peer_with("office", &office, &[]);
            cluster.peer_with("shop", &shop, &[]);
            cluster.open().await;
            office.ip(&format!("{way} via {door} dev {}", office.link()));
            let (first, second): (IpAddr, IpAddr) = (first.parse().unwrap(), second.parse().unwrap());
            assert_eq!(office.connect(None, cluster.door()).unwrap(), first.to_string());
            let before = shop.count("Tcp", "InSegs");
            assert_refused(office.attempt(None, (second, PORT)), &[TimedOut, HostUnreachable]);
            // The other side would have refused it, had it arrived.
            assert_eq!(shop.count("Tcp", "InSegs"), before);
        });
    }
}

#[test]
fn the_machine_itself_is_not_in_the_private_network() {
    on_a_machine(|| async {
        let office = Place::new();
        let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
        cluster.peer_with("office", &office, &[]);
        cluster.open().await;
        assert!(!sh("ip route show").contains("10.77"));
        let (address, port) = cluster.door();
        let attempt = std::net::TcpStream::connect((address, port)).map(|_| String::new());
        assert_refused(attempt, &[NetworkUnreachable]);
    });
}

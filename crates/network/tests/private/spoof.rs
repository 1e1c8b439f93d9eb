//! A client's address is what authorization stands on: nobody takes another peering's.

use std::io::ErrorKind::TimedOut;
use std::net::SocketAddrV6;

use network::private::PrivateNetworks;

use crate::ground::{Cluster, Place, assert_refused, on_a_machine};

#[test]
fn a_client_that_takes_another_peering_s_address_gets_no_answer_and_the_other_sees_nothing() {
    for (range, own, behind, stolen) in [
        ("10.77.0.0/24", "10.77.0.2", "192.168.6.0/24", "192.168.6.9"),
        ("fd00:77::/64", "fd00:77::2", "fd00:6::/64", "fd00:6::9"),
    ] {
        on_a_machine(move || async move {
            let (office, shop) = (Place::new(), Place::new());
            let mut cluster = Cluster::new(&PrivateNetworks::new(), range);
            cluster.peer_with("office", &office, &[]);
            let shops = cluster.peer_with("shop", &shop, &[behind]);
            cluster.open().await;
            for place in [&office, &shop] {
                place.ip(&format!("address add {stolen} dev lo nodad"));
            }
            office.ip(&format!("address add {shops} dev lo nodad"));
            assert_eq!(shop.connect(Some(stolen), cluster.door()).unwrap(), stolen);

            assert_eq!(office.connect(None, cluster.door()).unwrap(), own);
            office.learn(cluster.door());

            // Had the front door's network taken the packet, its answer would have gone to the owner, who resets it.
            let resets = shop.count("Tcp", "OutRsts");
            for address in [stolen, &shops.to_string()] {
                assert_refused(office.attempt(Some(address), cluster.door()), &[TimedOut]);
            }
            assert_eq!(
                shop.count("Tcp", "OutRsts"),
                resets,
                "the answer to a stolen address reached its owner"
            );
            assert_eq!(shop.connect(Some(stolen), cluster.door()).unwrap(), stolen);
        });
    }
}

#[test]
fn nobody_comes_from_an_address_that_was_given_to_nobody() {
    for (range, others) in
        [("10.77.0.0/24", ["10.77.0.77", "203.0.113.7"]), ("fd00:77::/64", ["fd00:77::77", "2001:db8::7"])]
    {
        on_a_machine(move || async move {
            let office = Place::new();
            let mut cluster = Cluster::new(&PrivateNetworks::new(), range);
            cluster.peer_with("office", &office, &[]);
            cluster.open().await;
            office.connect(None, cluster.door()).unwrap();
            office.learn(cluster.door());
            for address in others {
                office.ip(&format!("address add {address} dev lo nodad"));

                assert_refused(office.attempt(Some(address), cluster.door()), &[TimedOut]);
            }
        });
    }
}

#[test]
fn a_link_local_address_finds_neighbours_and_nothing_else() {
    on_a_machine(|| async {
        let office = Place::new();
        let mut cluster = Cluster::new(&PrivateNetworks::new(), "fd00:77::/64");
        cluster.peer_with("office", &office, &[]);
        cluster.open().await;
        let link = office.link();
        office.ip(&format!("address add fe80::9/64 dev {link} nodad"));
        let number = office.ip(&format!("-o link show {link}")).split(':').next().unwrap().parse().unwrap();
        let from = SocketAddrV6::new("fe80::9".parse().unwrap(), 0, 0, number);
        assert_refused(office.attempt_over(from, cluster.door()), &[TimedOut]);
        assert_eq!(office.connect(None, cluster.door()).unwrap(), "fd00:77::2");
    });
}

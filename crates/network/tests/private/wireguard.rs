//! WireGuard with another implementation at the other end: Debian's `wireguard-go`, set up with `wg`.

use std::io::ErrorKind::{ConnectionRefused, TimedOut};
use std::process::Command;

use model::{PeeringWith, WireGuardPeer};
use network::private::PrivateNetworks;
use network::wireguard_key;

use crate::ground::{Cluster, PORT, Place, assert_refused, links, on_a_machine, sh, unique, until};

const LISTEN_PORT: u16 = 51820;

/// A network elsewhere: a namespace that is joined with the machine's network by a link that stands for the internet.
struct Elsewhere {
    place: Place,
    tunnel: String,
    private_key: String,
}

impl Elsewhere {
    fn new(outer: [&str; 2]) -> Self {
        let place = Place::new();
        sh(&format!("ip link add wan0 type veth peer name eth0 netns {}", place.0));
        sh(&format!("ip address add {} dev wan0 nodad", outer[0]));
        sh("ip link set wan0 up");
        place.ip(&format!("address add {} dev eth0 nodad", outer[1]));
        place.ip("link set eth0 up");
        let tunnel = unique("wg").chars().take(15).collect();
        Self { place, tunnel, private_key: wireguard_key::generate() }
    }

    fn public_key(&self) -> String {
        wireguard_key::public(&self.private_key).unwrap()
    }

    /// Starts WireGuard there. It ends when its link is removed, with the namespace at the latest.
    fn start(&self, our_key: &str, our_endpoint: Option<&str>, own: &str, range: &str) {
        // It goes to the background by itself.
        self.place.run(&format!("wireguard-go {}", self.tunnel));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &self.private_key).unwrap();
        let endpoint = our_endpoint.map(|at| format!("endpoint {at}")).unwrap_or_default();
        self.place.run(&format!(
            "wg set {} listen-port 4500 private-key {} peer {our_key} allowed-ips {range} {endpoint}",
            self.tunnel,
            file.path().display()
        ));
        self.place.ip(&format!("address add {own} dev {} nodad", self.tunnel));
        self.place.ip(&format!("link set {} mtu 1420 up", self.tunnel));
        self.place.ip(&format!("route add {range} dev {}", self.tunnel));
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["-n", &self.place.0, "link", "del", &self.tunnel]).status();
    }
}

/// Puts the peering into the document and gives our public key.
fn peer(cluster: &mut Cluster, far: &Elsewhere, endpoint: Option<&str>, ranges: &[&str]) -> String {
    let private_key = wireguard_key::generate();
    let public_key = wireguard_key::public(&private_key).unwrap();
    let address = cluster.network.free_address().unwrap();
    cluster.peer(
        "far",
        PeeringWith::WireGuard(WireGuardPeer {
            private_key,
            public_key: Some(far.public_key()),
            listen_port: LISTEN_PORT,
            endpoint: endpoint.map(str::to_owned),
            address,
        }),
        ranges,
    );
    public_key
}

#[test]
fn another_implementation_joins_and_is_seen_as_itself() {
    for (range, own, behind, outer, our_endpoint) in [
        (
            "10.77.0.0/24",
            "10.77.0.2",
            ["192.168.5.9", "192.168.5.0/24"],
            ["198.51.100.1/24", "198.51.100.2/24"],
            "198.51.100.1:51820",
        ),
        (
            "fd00:77::/64",
            "fd00:77::2",
            ["fd00:5::9", "fd00:5::/64"],
            ["2001:db8::1/64", "2001:db8::2/64"],
            "[2001:db8::1]:51820",
        ),
    ] {
        on_a_machine(move || async move {
            let far = Elsewhere::new(outer);
            let before = links();
            let mut cluster = Cluster::new(&PrivateNetworks::new(), range);
            let our_key = peer(&mut cluster, &far, None, &[behind[1]]);
            cluster.open().await;
            far.start(&our_key, Some(our_endpoint), own, range);
            assert_eq!(far.place.connect(None, cluster.door()).unwrap(), own);
            far.place.ip(&format!("address add {} dev lo nodad", behind[0]));
            assert_eq!(far.place.connect(Some(behind[0]), cluster.door()).unwrap(), behind[0]);

            // Only the front door, and only from what the document says.
            assert_refused(far.place.attempt(None, (cluster.door().0, PORT + 1)), &[ConnectionRefused]);
            let stranger = if own.contains(':') { "fd00:6::9" } else { "192.168.6.9" };
            far.place.ip(&format!("address add {stranger} dev lo nodad"));
            assert_refused(far.place.attempt(Some(stranger), cluster.door()), &[TimedOut]);
            assert_eq!(links(), before, "the tunnel's link is in the cluster's network only");

            // Without the range its clients stay out, and the tunnel goes on.
            cluster.network.peerings[0].ranges.clear();
            cluster.stand().await;
            assert_refused(far.place.attempt(Some(behind[0]), cluster.door()), &[TimedOut]);
            assert_eq!(far.place.connect(None, cluster.door()).unwrap(), own);
        });
    }
}

#[test]
fn we_call_where_the_other_side_is_known_and_cannot_call_us() {
    on_a_machine(|| async {
        let far = Elsewhere::new(["198.51.100.1/24", "198.51.100.2/24"]);
        let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
        let our_key = peer(&mut cluster, &far, Some("198.51.100.2:4500"), &[]);
        far.start(&our_key, None, "10.77.0.2", "10.77.0.0/24");
        cluster.open().await;
        let shakes = || far.place.run(&format!("wg show {} latest-handshakes", far.tunnel));
        until("we called", || !shakes().trim_end().ends_with("\t0")).await;
        assert_eq!(far.place.connect(None, cluster.door()).unwrap(), "10.77.0.2");
    });
}

#[test]
fn a_peer_with_another_key_is_nobody() {
    on_a_machine(|| async {
        let mut far = Elsewhere::new(["198.51.100.1/24", "198.51.100.2/24"]);
        let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
        let our_key = peer(&mut cluster, &far, None, &[]);
        cluster.open().await;
        far.private_key = wireguard_key::generate();
        far.start(&our_key, Some("198.51.100.1:51820"), "10.77.0.2", "10.77.0.0/24");
        assert_refused(far.place.attempt(None, cluster.door()), &[TimedOut]);
    });
}

#[test]
fn a_tunnel_follows_its_document_and_ends_with_it() {
    on_a_machine(|| async {
        let far = Elsewhere::new(["198.51.100.1/24", "198.51.100.2/24"]);
        let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
        let our_key = peer(&mut cluster, &far, None, &[]);
        let set = |cluster: &mut Cluster, change: fn(&mut WireGuardPeer)| match &mut cluster.network.peerings
            [0]
        .with
        {
            PeeringWith::WireGuard(peer) => change(peer),
            other => panic!("{other:?}"),
        };
        let sockets = || sh("ss -Hlun").lines().count();

        set(&mut cluster, |peer| peer.public_key = None);
        assert!(cluster.reason("far").await.contains("public key is not known"));
        let key = far.public_key();
        if let PeeringWith::WireGuard(peer) = &mut cluster.network.peerings[0].with {
            peer.public_key = Some(key);
        }
        let taken = std::net::UdpSocket::bind(("::", LISTEN_PORT)).unwrap();
        assert!(cluster.reason("far").await.contains("UDP port 51820 is used by another program"));
        drop(taken);
        set(&mut cluster, |peer| peer.endpoint = Some("nowhere.invalid:51820".to_owned()));
        assert!(cluster.reason("far").await.contains("'nowhere.invalid:51820' was not found"));
        assert_eq!(sockets(), 0);
        set(&mut cluster, |peer| peer.endpoint = None);

        cluster.open().await;
        far.start(&our_key, Some("198.51.100.1:51820"), "10.77.0.2", "10.77.0.0/24");
        assert_eq!(far.place.connect(None, cluster.door()).unwrap(), "10.77.0.2");
        set(&mut cluster, |peer| peer.listen_port = 51821);
        cluster.stand().await;
        far.place.run(&format!("wg set {} peer {our_key} endpoint 198.51.100.1:51821", far.tunnel));
        until("the new port answers", || far.place.connect(None, cluster.door()).is_ok()).await;

        cluster.network.peerings.clear();
        cluster.stand().await;
        until("the socket is closed", || sockets() == 0).await;
        assert_refused(far.place.attempt(None, cluster.door()), &[TimedOut]);
    });
}

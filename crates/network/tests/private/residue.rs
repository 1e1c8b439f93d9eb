//! Nothing outlives the process, whatever way it ends; and whether private networks work here is told.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use model::PeeringWith;
use network::private::PrivateNetworks;

use crate::ground::{Cluster, Place, links, on_a_machine, sh, until};

/// Tells the helper which namespace to join.
const NAMESPACE: &str = "CHITIN_TEST_NAMESPACE";

#[test]
fn a_process_that_is_killed_leaves_nothing() {
    on_a_machine(|| async {
        let office = Place::new();
        sh("ip link add wan0 type veth peer name wan1");
        sh("ip link set wan0 up");
        sh("ip link add br0 type bridge");
        let before = links();
        let mut helper = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "residue::helper_that_stands_until_it_is_killed", "--nocapture"])
            .env(NAMESPACE, &office.0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(helper.stdout.take().unwrap()).lines();
        let ready = lines.map_while(Result::ok).any(|line| line.contains("it stands"));
        let (there, here) = (office.links().len(), links().len());
        helper.kill().unwrap();
        helper.wait().unwrap();
        assert!(ready, "the helper did not get that far");
        assert_eq!((there, here), (2, before.len() + 1), "one end in the namespace, one on the bridge");
        until("the namespace's end is gone", || office.links() == ["lo"]).await;
        until("the bridge's end is gone", || links() == before).await;
        // The tunnel's socket too, and a successor finds its names free.
        assert_eq!(sh("ss -Hlun"), "");
        let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
        cluster.peer_with("office", &office, &[]);
        cluster.open().await;
        assert_eq!(office.connect(None, cluster.door()).unwrap(), "10.77.0.2");
    });
}

/// Not a test by itself: the process that `a_process_that_is_killed_leaves_nothing` kills.
#[test]
fn helper_that_stands_until_it_is_killed() {
    let Ok(name) = std::env::var(NAMESPACE) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let networks = PrivateNetworks::new();
        let mut cluster = Cluster::new(&networks, "10.77.0.0/24");
        cluster.peer_with("office", &std::mem::ManuallyDrop::new(Place(name)), &[]);
        let (own, other) = (network::wireguard_key::generate(), network::wireguard_key::generate());
        let address = cluster.network.free_address().unwrap();
        cluster.peer(
            "far",
            PeeringWith::WireGuard(model::WireGuardPeer {
                private_key: own,
                public_key: network::wireguard_key::public(&other),
                listen_port: 51820,
                endpoint: None,
                address,
            }),
            &[],
        );
        let bridge =
            PeeringWith::Bridge { bridge: "br0".to_owned(), address: "172.20.0.5/24".parse().unwrap() };
        cluster.peer("lan", bridge, &[]);
        let interface = PeeringWith::Interface {
            interface: "wan0".to_owned(),
            address: "172.21.0.5/24".parse().unwrap(),
        };
        cluster.peer("wan", interface, &[]);
        cluster.open().await;
        println!("it stands");
        std::future::pending::<()>().await;
    });
}

#[test]
fn whether_private_networks_work_here_is_told_with_the_next_step() {
    if !rustix::process::geteuid().is_root() {
        return without_rights();
    }
    on_a_machine(|| async {
        PrivateNetworks::probe().await.unwrap();
        assert_eq!(links(), ["lo"]);
    });
    // Root without its capabilities is as good as nobody.
    on_a_machine(|| async {
        let mut helper = Command::new("setpriv");
        helper.args(["--bounding-set", "-all", "--inh-caps", "-all", "--reuid", "65534", "--clear-groups"]);
        let output = helper
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "residue::helper_without_rights", "--nocapture"])
            .env(NAMESPACE, "none")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("told: ") && text.contains("CAP_NET_ADMIN and CAP_SYS_ADMIN"), "{text}");
    });
}

/// Not a test by itself: what `whether_private_networks_work_here_is_told_with_the_next_step` runs as nobody.
#[test]
fn helper_without_rights() {
    if std::env::var(NAMESPACE).is_ok() {
        without_rights();
    }
}

fn without_rights() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let unavailable = PrivateNetworks::probe().await.unwrap_err();
        let mut cluster = Cluster::new(&PrivateNetworks::new(), "10.77.0.0/24");
        cluster.peer_with("office", &std::mem::ManuallyDrop::new(Place("none".to_owned())), &[]);
        let seen = cluster.ensure().await;
        assert_eq!((seen.front_door, seen.reason), (None, Some(unavailable.to_string())));
        assert_eq!(cluster.reason("office").await, unavailable.to_string());
        println!("told: {unavailable}");
    });
}

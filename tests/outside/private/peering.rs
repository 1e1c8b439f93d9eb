//! Peerings: who is joined comes in by the front door's two ports, and what is parted leaves nothing behind.

use std::net::IpAddr;
use std::time::Duration;

use house::cloud::{HTTP_PORT, SQL_PORT};
use house::{Cluster, Host};

use crate::private::world::{
    PARTED, World, accept, assert_cut, assert_unreachable, attempt, attempt_from, enter, enter_from,
    eventually_active, eventually_as_before, network_of, on, peer, private, propose, show, soon, status,
    wireguard_keys, world,
};

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The links that a cloud has made on a host.
fn made_links(host: &Host) -> Vec<String> {
    let said = on(host, "ip -o link");
    let names = said.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
    names.filter(|name| name.starts_with("ct")).map(str::to_owned).collect()
}

/// Sockets that the cloud's host hears UDP on.
fn udp_sockets(host: &Host) -> String {
    on(host, "ss -Hlun")
}

/// Network namespaces that the cloud holds open.
fn networks_held(world: &World) -> usize {
    let folder = std::fs::read_dir(format!("/proc/{}/fd", world.cloud.pid())).expect("the program runs");
    let leads_to_one = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("net:["))
    };
    folder.filter(|entry| entry.as_ref().is_ok_and(leads_to_one)).count()
}

/// A bridge on the cloud's host with another host at it, as a LAN has; the other host has the address `own`.
fn lan(home: &Host, bridge: &str, other: &Host, own: &str) {
    on(home, &format!("ip link add {bridge} type bridge"));
    on(home, &format!("ip link set {bridge} up"));
    cable(home, &format!("{bridge}port"), other, own);
    on(home, &format!("ip link set {bridge}port master {bridge}"));
}

/// An interface of the cloud's host with another host at its other end.
fn cable(home: &Host, interface: &str, other: &Host, own: &str) {
    on(home, &format!("ip link add {interface} type veth peer name {interface} netns {}", other.name()));
    on(home, &format!("ip link set {interface} up"));
    on(other, &format!("ip link set {interface} up"));
    on(other, &format!("ip address add {own} dev {interface}"));
}

pub fn nothing_passes_before_a_peering_is_accepted_and_then_the_front_doors_two_ports() {
    for (name, range, door) in
        [("four-bank", "10.81.0.0/24", "10.81.0.1"), ("six-bank", "fd00:81::/64", "fd00:81::1")]
    {
        let (office, door) = (world().hosts.host(), address(door));
        let one = private(&world().cloud, name, range);
        let before = network_of(&office);
        propose(&one, "office", &["--namespace", office.name()]);
        assert_eq!(status(&show(&one, "office")), "pending");
        assert_unreachable(&office, door);
        assert_eq!(network_of(&office), before, "a proposal changes nothing");

        accept(&one, "office");
        assert_eq!(made_links(&office).len(), 1);
        assert_eq!(enter(&one, &office, door).value("select 1"), "1");
        for port in [SQL_PORT, HTTP_PORT] {
            attempt(&office, door, port).unwrap_or_else(|error| panic!("{door} at {port}: {error}"));
        }
        for port in [1, 22, 53, 80, 443, 5432, SQL_PORT - 1, SQL_PORT + 1, HTTP_PORT + 1, 51_820, 65_535] {
            let refused = attempt(&office, door, port).expect_err("only two ports pass");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "port {port}");
        }
        // Nobody else, the cloud's own host neither.
        assert_unreachable(&world().hosts.host(), door);
        assert_unreachable(&world().home, door);
    }
}

pub fn a_bridge_and_an_interface_lead_to_the_front_door_and_to_nothing_else() {
    let home = &world().home;
    let (shop, yard) = (world().hosts.host(), world().hosts.host());
    let one = private(&world().cloud, "lan-bank", "10.82.0.0/24");
    lan(home, "br82", &shop, "192.168.7.9/24");
    cable(home, "wan82", &yard, "192.168.8.9/24");
    let ways = [
        (&shop, "lan", ["--bridge", "br82", "--address", "192.168.7.2/24"], address("192.168.7.2")),
        (&yard, "wan", ["--interface", "wan82", "--address", "192.168.8.2/24"], address("192.168.8.2")),
    ];
    for (host, name, arguments, door) in &ways {
        propose(&one, name, arguments);
        assert_unreachable(host, *door);
        accept(&one, name);
        assert_eq!(enter(&one, host, *door).value("select 1"), "1", "{name}");
        let refused = attempt(host, *door, 5432).expect_err("only two ports pass");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    assert_unreachable(&shop, ways[1].3);
    assert_unreachable(&yard, ways[0].3);
    for (host, name, _, door) in &ways {
        let mut session = enter(&one, host, *door);
        world().cloud.chitin(["peering", "delete", &one.name, name]).ok();
        assert_cut(&mut session, PARTED);
        soon("the door is gone", || attempt(host, *door, SQL_PORT).is_err());
    }
    assert_eq!(made_links(home), Vec::<String>::new());
    on(home, "ip link del br82");
    on(home, "ip link del wan82");
}

pub fn clients_behind_a_peering_come_in_from_its_ranges_only() {
    let office = world().hosts.host();
    let one = private(&world().cloud, "wide-bank", "10.83.0.0/24");
    let (inside, outside, door) = (address("192.168.5.9"), address("192.168.6.9"), address("10.83.0.1"));
    for own in [inside, outside] {
        on(&office, &format!("ip address add {own} dev lo"));
    }
    peer(&one, "office", &office, &["--range", "192.168.5.0/24"]);
    // So that the front door's place is known to who may not ask for it.
    enter(&one, &office, door);
    let session = enter_from(&one, &office, door, Some(inside));
    assert_eq!(session.expect("behind the peering").value("select 1"), "1");
    attempt_from(&office, outside, door, SQL_PORT).expect_err("it is behind nothing");
}

pub fn ranges_that_lead_to_two_places_are_refused() {
    let (office, shop) = (world().hosts.host(), world().hosts.host());
    let one = private(&world().cloud, "clear-bank", "10.84.0.0/24");
    let two = private(&world().cloud, "plain-bank", "10.85.0.0/24");
    propose(&one, "office", &["--namespace", office.name(), "--range", "192.168.5.0/24"]);
    for range in
        ["192.168.5.0/25", "192.168.0.0/16", "10.84.0.0/25", "10.85.0.0/16", "127.0.0.0/8", "0.0.0.0/0"]
    {
        let said = world().cloud.chitin([
            "peering",
            "create",
            &one.name,
            "shop",
            "--namespace",
            shop.name(),
            "--range",
            range,
        ]);
        let said = said.refused();
        assert!(said.starts_with("error: "), "{range}: {said}");
        let said = world().cloud.chitin(["peering", "show", &one.name, "shop"]).refused();
        assert!(said.contains("shop"), "{said}");
    }
    // What lies behind one cluster's peering may lie behind another's: neither sees the other.
    propose(&two, "office", &["--namespace", office.name(), "--range", "192.168.5.0/24"]);
}

pub fn t73_a_peering_that_is_deleted_cuts_its_sessions_and_leaves_nothing() {
    let world = World::new();
    let (office, shop, yard) = (world.hosts.host(), world.hosts.host(), world.hosts.host());
    let hosts = [&world.home, &office, &shop, &yard];
    let (untouched, unheard) = (networks_held(&world), udp_sockets(&world.home));
    lan(&world.home, "br0", &shop, "192.168.7.9/24");
    cable(&world.home, "wan0", &yard, "192.168.8.9/24");
    // Neighbours that come and go by themselves settle first.
    std::thread::sleep(Duration::from_millis(2_500));
    let before: Vec<Vec<String>> = hosts.iter().map(|host| network_of(host)).collect();

    let one = private(&world.cloud, "gone-bank", "10.77.0.0/24");
    let door = address("10.77.0.1");
    peer(&one, "office", &office, &["--range", "192.168.5.0/24"]);
    on(&office, "ip address add 192.168.5.9/32 dev lo");
    propose(&one, "lan", &["--bridge", "br0", "--address", "192.168.7.2/24"]);
    propose(&one, "wan", &["--interface", "wan0", "--address", "192.168.8.2/24"]);
    propose(&one, "far", &["--wireguard", "--public-key", &wireguard_keys().1]);
    for name in ["lan", "wan", "far"] {
        accept(&one, name);
    }
    assert_ne!(udp_sockets(&world.home), unheard, "the tunnel listens");
    let mut sessions = [
        ("office", enter(&one, &office, door)),
        ("lan", enter(&one, &shop, address("192.168.7.2"))),
        ("wan", enter(&one, &yard, address("192.168.8.2"))),
    ];
    let mut behind = enter_from(&one, &office, door, Some(address("192.168.5.9"))).expect("in the range");
    world.cloud.chitin(["peering", "delete", &one.name, "far"]).ok();
    for (name, session) in &mut sessions {
        assert_eq!(session.value("select 1"), "1", "what becomes of others is nothing to {name}");
        world.cloud.chitin(["peering", "delete", &one.name, name]).ok();
        assert_cut(session, PARTED);
    }
    assert_cut(&mut behind, PARTED);
    on(&office, "ip address del 192.168.5.9/32 dev lo");
    for (host, before) in hosts.iter().zip(&before) {
        eventually_as_before(host, before);
    }
    soon("the tunnel listens no more", || udp_sockets(&world.home) == unheard);
    assert_unreachable(&office, door);

    // With the cluster goes its network, and whoever is in it is told first.
    peer(&one, "office", &office, &[]);
    let mut last = enter(&one, &office, door);
    world.cloud.chitin(["cluster", "delete", &one.name, "--yes"]).ok();
    assert_cut(&mut last, "terminating connection: the cluster is being deleted");
    soon("its network is gone", || networks_held(&world) == untouched);
    eventually_as_before(&office, &before[1]);
}

pub fn networks_are_made_again_after_every_end_and_whenever_somebody_removes_a_link() {
    let world = World::new();
    let (office, shop) = (world.hosts.host(), world.hosts.host());
    lan(&world.home, "br0", &shop, "192.168.7.9/24");
    std::thread::sleep(Duration::from_millis(2_500));
    let before = [network_of(&world.home), network_of(&office)];
    let one = private(&world.cloud, "firm-bank", "10.77.0.0/24");
    let (door, lan_door) = (address("10.77.0.1"), address("192.168.7.2"));
    peer(&one, "office", &office, &[]);
    propose(&one, "lan", &["--bridge", "br0", "--address", "192.168.7.2/24"]);
    accept(&one, "lan");
    let enter_both = |what: &str| {
        soon(what, || enter_from(&one, &office, door, None).is_ok());
        soon(what, || enter_from(&one, &shop, lan_door, None).is_ok());
    };
    enter_both("joined");

    for host in [&office, &world.home] {
        let links = made_links(host);
        assert_eq!(links.len(), 1, "{links:?}");
        on(host, &format!("ip link del {}", links[0]));
        enter_both("a removed link is made again");
    }

    let mut open = enter(&one, &office, door);
    world.cloud.stop();
    assert_cut(&mut open, "terminating connection due to administrator command");
    eventually_as_before(&world.home, &before[0]);
    eventually_as_before(&office, &before[1]);
    world.cloud.boot();
    enter_both("made again after a restart");

    // What a machine is like after its power came back: nothing is left but what its operator makes.
    world.cloud.kill();
    eventually_as_before(&world.home, &before[0]);
    eventually_as_before(&office, &before[1]);
    on(&world.home, "ip link del br0");
    on(&world.home, "ip link del br0port");
    delete_network(&office);
    world.cloud.boot();
    soon("both say that they failed", || {
        ["office", "lan"].iter().all(|name| status(&show(&one, name)) == "failed")
    });
    assert!(show(&one, "office").contains(office.name()), "{}", show(&one, "office"));
    assert!(show(&one, "lan").contains("br0"), "{}", show(&one, "lan"));
    make_network(&office);
    lan(&world.home, "br0", &shop, "192.168.7.9/24");
    for name in ["office", "lan"] {
        eventually_active(&one, name);
    }
    enter_both("made again after a power failure");
}

/// Removes a host's network; what is in it goes too.
fn delete_network(host: &Host) {
    run_ip(&["netns", "delete", host.name()]);
}

/// Makes a network of the host's name again, with nothing in it.
fn make_network(host: &Host) {
    run_ip(&["netns", "add", host.name()]);
    on(host, "ip link set lo up");
}

fn run_ip(arguments: &[&str]) {
    house::command::run(std::process::Command::new("ip").args(arguments)).ok();
}

pub fn a_peering_with_a_namespace_that_is_not_there_fails_with_a_reason_and_follows_by_itself() {
    let office = world().hosts.host();
    let one = private(&world().cloud, "late-bank", "10.86.0.0/24");
    delete_network(&office);
    propose(&one, "office", &["--namespace", office.name()]);
    world().cloud.chitin(["peering", "accept", &one.name, "office"]).ok();
    soon("it says that it failed", || status(&show(&one, "office")) == "failed");
    let listed = world().cloud.chitin(["peering", "list", &one.name]).ok();
    assert!(listed.contains("failed: ") && listed.contains(office.name()), "{listed}");
    assert!(listed.contains("ip netns"), "the next step is told: {listed}");
    make_network(&office);
    eventually_active(&one, "office");
    enter(&one, &office, address("10.86.0.1"));
}

pub fn two_clouds_use_the_same_addresses_and_neither_sees_the_other() {
    let other = World::new();
    let (office, branch) = (world().hosts.host(), other.hosts.host());
    let door = address("10.99.0.1");
    let behind = Some(address("192.168.5.9"));
    let ours = twin(world(), &office, "twin-bank");
    let theirs = twin(&other, &branch, "twin-firm");
    // What came later took nothing away.
    for (one, own, elsewhere) in [(&ours, &office, &branch), (&theirs, &branch, &office)] {
        for source in [None, behind] {
            let mut session = enter_from(one, own, door, source).expect("joined");
            assert_eq!(session.value("select name from whose"), one.name);
        }
        // The other host finds the other cloud at that address, whose certificate is none for this cloud's clients.
        let refusal = enter_from(one, elsewhere, door, None).map(drop).expect_err("another cloud");
        assert!(refusal.code == "closed" && refusal.message.contains("UnknownIssuer"), "{refusal:?}");
    }
}

/// A cluster with the same addresses as its twin, and a table that says whose it is.
fn twin<'world>(world: &'world World, host: &Host, name: &str) -> Cluster<'world> {
    let one = private(&world.cloud, name, "10.99.0.0/24");
    peer(&one, "office", host, &["--range", "192.168.5.0/24"]);
    on(host, "ip address add 192.168.5.9/32 dev lo");
    let mut session = enter(&one, host, address("10.99.0.1"));
    session.query(&format!("create table whose as select '{name}' as name")).expect("a table");
    one
}

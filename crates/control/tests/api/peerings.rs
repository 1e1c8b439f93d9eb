//! What private networks are joined with, as its owner and as an attacker asks.

use model::{ClusterId, NetworkSeen, PEERING_RANGES_MAX, PEERINGS_MAX, PeeringPhase};
use serde_json::{Value, json};

use crate::double::KEY_CANARY;
use crate::world::{Answer, World};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

async fn private(world: &World, name: &str, range: &str) -> ClusterId {
    let id = world.made(name).await;
    let body = json!({"visibility": "PRIVATE", "cidr_range": range});
    let answer = world.call("PUT", &format!("/chitin/clusters/{id}/network"), body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    id
}

fn of(id: ClusterId) -> String {
    format!("/chitin/clusters/{id}/peerings")
}

fn namespace(name: &str, ranges: &[&str]) -> Value {
    json!({"name": name, "with": {"kind": "namespace", "namespace": "office"}, "ranges": ranges})
}

fn bridge(name: &str, address: &str) -> Value {
    json!({"name": name, "with": {"kind": "bridge", "bridge": "br0", "address": address}})
}

fn tunnel(name: &str) -> Value {
    json!({"name": name, "with": {"kind": "wireguard"}})
}

async fn propose(world: &World, id: ClusterId, body: Value) -> Answer {
    world.call("POST", &of(id), body).await
}

#[tokio::test]
async fn a_peering_is_proposed_accepted_seen_and_deleted() {
    let world = World::new();
    let id = private(&world, "shop-one", "10.77.0.0/24").await;
    let made = propose(&world, id, namespace("office", &["192.168.5.0/24"])).await.json();
    assert_eq!(made["with"], json!({"kind": "namespace", "namespace": "office", "address": "10.77.0.2"}));
    assert_eq!((&made["state"], &made["ranges"]), (&json!("pending"), &json!(["192.168.5.0/24"])));
    let one = format!("{}/office", of(id));
    assert_eq!(world.get(&one).await.json(), made);
    assert_eq!(world.get(&of(id)).await.json(), json!({"peerings": [made]}));
    let wish = || world.store.snapshot().get(&id).unwrap().cluster.network.peerings[0].wish;
    assert_eq!(wish(), model::PeeringWish::Proposed);
    // With an empty body, with `{}`, and twice.
    for body in ["", "{}"] {
        let accepted = world.raw("POST", &format!("/api/v1{one}/accept"), body).await;
        assert_eq!((accepted.status, &accepted.json()["state"]), (200, &json!("pending")), "not seen yet");
        assert_eq!(wish(), model::PeeringWish::Accepted);
    }
    for (phase, state) in [(PeeringPhase::Pending, "pending"), (PeeringPhase::Active, "active")] {
        let seen =
            NetworkSeen { peerings: [("office".parse().unwrap(), phase)].into(), ..NetworkSeen::default() };
        world.store.observe_network(id, seen).unwrap();
        assert_eq!(world.get(&one).await.json()["state"], state);
    }
    let gone = world.call("DELETE", &one, Value::Null).await.json();
    assert_eq!((&gone["state"], &gone["with"]), (&json!("deleting"), &made["with"]));
    assert!(world.store.snapshot().get(&id).unwrap().cluster.network.peerings.is_empty());
    // It is shown until a loop has taken it apart, and so long the name is not free.
    assert_eq!(world.get(&one).await.json(), json!({"name": "office", "state": "deleting", "ranges": []}));
    assert_eq!(propose(&world, id, namespace("office", &[])).await.refusal(), (503, 14));
    assert_eq!(world.call("DELETE", &one, Value::Null).await.refusal(), (404, 5));
    assert_eq!(world.call("POST", &format!("{one}/accept"), Value::Null).await.refusal(), (404, 5));
    world.store.observe_network(id, NetworkSeen::default()).unwrap();
    assert_eq!(world.get(&one).await.refusal(), (404, 5));
    assert_eq!(propose(&world, id, namespace("office", &[])).await.status, 200);
}

#[tokio::test]
async fn every_kind_of_network_is_joined_with_and_each_has_its_own_address() {
    let world = World::new();
    let id = private(&world, "shop-one", "10.77.0.0/24").await;
    let interface = json!({"kind": "interface", "interface": "eth1", "address": "192.168.6.2/24"});
    let kinds = [
        ("a", json!({"kind": "namespace", "namespace": "office"}), json!("10.77.0.2")),
        (
            "b",
            json!({"kind": "bridge", "bridge": "br0", "address": "192.168.5.2/24"}),
            json!("192.168.5.2/24"),
        ),
        ("c", interface, json!("192.168.6.2/24")),
        ("d", json!({"kind": "wireguard", "endpoint": "vpn.example.org:51820"}), json!("10.77.0.3")),
        ("e", json!({"kind": "namespace", "namespace": "shop"}), json!("10.77.0.4")),
    ];
    for (name, with, address) in kinds {
        let made = propose(&world, id, json!({"name": name, "with": with})).await;
        assert_eq!((made.status, &made.json()["with"]["address"]), (200, &address), "{}", made.text);
        if name != "d" {
            let accepted = world.call("POST", &format!("{}/{name}/accept", of(id)), Value::Null).await;
            assert_eq!(accepted.status, 200, "{}", accepted.text);
        }
    }
    let refused = propose(&world, id, namespace("a", &[])).await;
    assert_eq!(refused.refusal(), (409, 6));
    let keyed = world.call("POST", &format!("{}/a/accept", of(id)), json!({"public_key": KEY})).await;
    assert_eq!(keyed.refusal(), (400, 3));
    let config = world.get(&format!("{}/a/config", of(id))).await;
    assert_eq!(config.refusal(), (400, 9));
}

#[tokio::test]
async fn without_a_private_network_the_next_step_is_said() {
    let world = World::new();
    let id = world.made("shop-one").await;
    private(&world, "shop-two", "10.224.0.0/24").await;
    let refused = propose(&world, id, namespace("office", &[])).await;
    assert_eq!(refused.refusal(), (400, 9));
    for next in [
        "chitin cluster visibility shop-one private",
        "chitin cluster visibility shop-one public --cidr 10.224.1.0/24",
    ] {
        assert!(refused.text.contains(next), "{}", refused.text);
    }
}

#[tokio::test]
async fn networks_that_cannot_lie_there_are_refused() {
    let world = World::new();
    let id = private(&world, "shop-one", "10.77.0.0/24").await;
    let other = private(&world, "secret-tenant", "10.88.0.0/16").await;
    propose(&world, id, namespace("office", &["192.168.5.0/24"])).await;
    assert_eq!(propose(&world, id, bridge("yard", "192.168.9.2/24")).await.status, 200);
    for (range, why) in [
        ("10.77.0.0/25", "the private network 10.77.0.0/24 itself"),
        ("10.0.0.0/9", "the private network 10.77.0.0/24 itself"),
        ("10.88.4.0/24", "overlaps 10.88.0.0/16"),
        ("192.168.5.128/25", "behind the peering office"),
        ("192.168.0.0/16", "behind the peering"),
        ("192.168.9.0/24", "behind the peering yard"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.169.254/32", "link-local"),
        ("224.0.0.0/8", "multicast"),
        ("0.0.0.0/0", "never lie behind"),
        ("4.0.0.0/6", "wider than /8"),
        ("fd00:1::/64", "is IPv4"),
        ("192.168.7.7/24", "did you mean 192.168.7.0/24"),
        ("office", "not a CIDR range"),
    ] {
        let refused = propose(&world, id, namespace("next", &[range])).await;
        assert_eq!(refused.refusal(), (400, 3), "{range}");
        assert!(refused.text.contains(why), "{range}: {}", refused.text);
        assert!(!refused.text.contains("secret-tenant"), "{}", refused.text);
    }
    for (address, why) in [
        ("10.77.0.9/24", "itself"),
        ("10.88.1.1/24", "overlaps 10.88.0.0/16"),
        ("192.168.5.9/24", "behind the peering office"),
        ("192.168.7.0/24", "the network's own"),
        ("192.168.7.1/32", "no other machine"),
        ("fd00:5::2/64", "is IPv4"),
        ("192.168.7.1", "IP/LENGTH"),
        ("192.168.7.1/24\nx", "IP/LENGTH"),
    ] {
        let refused = propose(&world, id, bridge("next", address)).await;
        assert_eq!(refused.refusal(), (400, 3), "{address}");
        assert!(refused.text.contains(why), "{address}: {}", refused.text);
    }
    let twice = propose(&world, id, namespace("next", &["192.168.7.0/24", "192.168.7.0/25"])).await;
    assert_eq!(twice.refusal(), (400, 3));
    // Two clusters may be in one bridge's network, as two addresses.
    assert_eq!(propose(&world, other, bridge("yard", "192.168.9.2/24")).await.refusal(), (400, 3));
    assert_eq!(propose(&world, other, bridge("yard", "192.168.9.3/24")).await.status, 200);
    // What lies behind a peering becomes nobody's private network, neither by name nor by chance.
    let third = world.made("shop-three").await;
    let put = json!({"visibility": "PRIVATE", "cidr_range": "192.168.5.0/28"});
    let refused = world.call("PUT", &format!("/chitin/clusters/{third}/network"), put).await;
    assert!(refused.status == 400 && refused.text.contains("another cluster"), "{}", refused.text);
    propose(&world, other, namespace("pool", &["10.224.0.0/15"])).await;
    let path = format!("/chitin/clusters/{third}/network");
    let found = world.call("PUT", &path, json!({"visibility": "PRIVATE"})).await;
    assert_eq!(found.json()["cidr_range"], "10.226.0.0/24");
}

#[tokio::test]
async fn names_that_could_be_something_else_are_refused() {
    let world = World::new();
    let id = private(&world, "shop-one", "10.77.0.0/24").await;
    for name in ["", "Office", "of fice", "../x", "-a", "a-", "a/b", "a_b", &"n".repeat(33)] {
        assert_eq!(propose(&world, id, namespace(name, &[])).await.refusal(), (400, 3), "{name}");
    }
    for device in
        ["", ".", "..", "a/b", "../x", "a b", "a\tb", "--help", "eth%d", "a\u{0}b", "sixteen-letters-"]
    {
        for with in [
            json!({"kind": "bridge", "bridge": device, "address": "192.168.5.2/24"}),
            json!({"kind": "interface", "interface": device, "address": "192.168.5.2/24"}),
        ] {
            let refused = propose(&world, id, json!({"name": "office", "with": with})).await;
            assert_eq!(refused.refusal(), (400, 3), "{device:?}");
        }
        if device != "sixteen-letters-" {
            let with = json!({"kind": "namespace", "namespace": device});
            let refused = propose(&world, id, json!({"name": "office", "with": with})).await;
            assert_eq!(refused.refusal(), (400, 3), "{device:?}");
        }
    }
    for with in
        [json!({}), json!({"kind": "vpn"}), json!({"kind": "bridge", "bridge": "br0"}), json!("office")]
    {
        assert_eq!(propose(&world, id, json!({"name": "office", "with": with})).await.refusal(), (400, 3));
    }
    assert_eq!(world.get(&of(id)).await.json(), json!({"peerings": []}));
}

#[tokio::test]
async fn a_tunnel_has_a_port_of_its_own_and_needs_the_other_side_s_key() {
    let world = World::new();
    let (one, two) = (
        private(&world, "shop-one", "10.77.0.0/24").await,
        private(&world, "shop-two", "10.78.0.0/24").await,
    );
    let port = |answer: &Answer| answer.json()["with"]["listen_port"].as_u64();
    let first = propose(&world, one, tunnel("home")).await;
    assert_eq!(port(&first), Some(51820), "{}", first.text);
    assert_eq!(port(&propose(&world, two, tunnel("home")).await), Some(51821));
    let asked = |number: u32| json!({"name": "more", "with": {"kind": "wireguard", "listen_port": number}});
    let taken = propose(&world, two, asked(51820)).await;
    assert_eq!(taken.refusal(), (409, 6));
    assert!(!taken.text.contains("shop-one"));
    for wrong in [0, 65536] {
        assert_eq!(propose(&world, two, asked(wrong)).await.refusal(), (400, 3));
    }
    assert_eq!(port(&propose(&world, two, asked(51822)).await), Some(51822));
    assert_eq!(port(&propose(&world, one, tunnel("third")).await), Some(51823));

    let accept = |name: &str, key: Value| {
        let path = format!("{}/{name}/accept", of(one));
        let body = if key.is_null() { Value::Null } else { json!({"public_key": key}) };
        let world = &world;
        async move { world.call("POST", &path, body).await }
    };
    let unknown = accept("home", Value::Null).await;
    assert_eq!(unknown.refusal(), (400, 9));
    assert!(unknown.text.contains("chitin peering accept shop-one home --public-key"), "{}", unknown.text);
    let ours = first.json()["with"]["own_public_key"].clone();
    assert_eq!(accept("home", ours.clone()).await.refusal(), (400, 3), "our own key");
    assert_eq!(accept("third", ours).await.refusal(), (400, 3), "our own key of another tunnel");
    for wrong in ["", "short", &KEY.replace('A', "-"), &KEY[..43]] {
        let refused = accept("home", json!(wrong)).await;
        assert_eq!(refused.refusal(), (400, 3), "{wrong}");
    }
    let accepted = accept("home", json!(KEY)).await;
    assert_eq!((accepted.status, &accepted.json()["with"]["public_key"]), (200, &json!(KEY)));
    assert_eq!(accept("home", Value::Null).await.status, 200, "the key is known now");
    let other = KEY.replace("AAEC", "BBEC");
    assert_eq!(accept("home", json!(other)).await.refusal(), (400, 9), "an accepted side does not change");
    assert_eq!(accept("third", json!(KEY)).await.refusal(), (409, 6), "one key, one peering of a cluster");
    let named = json!({"name": "named", "with": {"kind": "wireguard", "public_key": KEY}});
    assert_eq!(propose(&world, one, named.clone()).await.refusal(), (409, 6));
    assert_eq!(propose(&world, two, named).await.status, 200, "another cluster has a tunnel of its own");
    for endpoint in ["vpn.example.org", "vpn.example.org:51820\nPostUp = reboot", "[::]:1", ":1"] {
        let with = json!({"kind": "wireguard", "endpoint": endpoint});
        let refused = propose(&world, one, json!({"name": "x", "with": with})).await;
        assert_eq!(refused.refusal(), (400, 3), "{endpoint}");
    }
}

#[tokio::test]
async fn the_other_side_gets_a_file_that_it_can_use() {
    let world = World::new();
    let id = private(&world, "shop-one", "10.77.0.0/24").await;
    let with = json!({"kind": "wireguard", "public_key": KEY, "endpoint": "vpn.example.org:7000"});
    let made = propose(&world, id, json!({"name": "home", "with": with, "ranges": ["192.168.5.0/24"]})).await;
    let own = made.json()["with"]["own_public_key"].as_str().unwrap().to_owned();
    let config =
        world.get(&format!("{}/home/config", of(id))).await.json()["config"].as_str().unwrap().to_owned();
    let lines: Vec<&str> = config.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    assert_eq!(
        lines,
        [
            "[Interface]",
            "PrivateKey = <paste your private key>",
            "Address = 10.77.0.2/32",
            "ListenPort = 7000",
            "[Peer]",
            &format!("PublicKey = {own}"),
            "AllowedIPs = 10.77.0.0/24",
            "Endpoint = cloud.example.org:51820",
            "PersistentKeepalive = 25",
        ]
    );
    assert!(config.contains(KEY) && config.contains("192.168.5.0/24"), "{config}");
    propose(&world, id, tunnel("unknown")).await;
    let config = world.get(&format!("{}/unknown/config", of(id))).await.text;
    assert!(config.contains("chitin peering accept shop-one unknown --public-key KEY"), "{config}");
    assert_eq!(world.get(&format!("{}/nobody/config", of(id))).await.refusal(), (404, 5));
    let six = private(&world, "shop-six", "fd00:77::/64").await;
    propose(&world, six, tunnel("home")).await;
    let config = world.get(&format!("{}/home/config", of(six))).await.text;
    assert!(
        config.contains("Address = fd00:77::2/128") && config.contains("AllowedIPs = fd00:77::/64"),
        "{config}"
    );
}

#[tokio::test]
async fn t43_a_tunnel_s_private_key_is_in_no_answer_and_no_error() {
    let world = World::new();
    let id = private(&world, "shop-one", "10.77.0.0/24").await;
    let mut answers = vec![propose(&world, id, tunnel("home")).await];
    let kept = world.store.snapshot().get(&id).unwrap().cluster.clone();
    let model::PeeringWith::WireGuard(peer) = &kept.network.peerings[0].with else { panic!() };
    assert!(peer.private_key.contains(KEY_CANARY), "without it, the test shows nothing");
    let private_key = peer.private_key.clone();
    assert!(!format!("{kept:?}").contains(&private_key));
    let one = format!("{}/home", of(id));
    for (method, path, body) in [
        ("GET", of(id), Value::Null),
        ("GET", one.clone(), Value::Null),
        ("GET", format!("{one}/config"), Value::Null),
        ("POST", format!("{one}/accept"), Value::Null),
        // Somebody pastes the wrong one of two keys, or guesses.
        ("POST", format!("{one}/accept"), json!({"public_key": format!("{private_key}x")})),
        ("POST", format!("{one}/accept"), json!({"public_key": {&*private_key: 1}})),
        ("POST", format!("{one}/accept"), json!(private_key)),
        ("POST", of(id), json!({"name": "a", "with": {"kind": "wireguard", "listen_port": private_key}})),
        ("POST", of(id), json!({"name": "a", "with": {"kind": "wireguard", "endpoint": private_key}})),
        ("POST", of(id), tunnel("home")),
        ("POST", format!("{one}/accept"), json!({"public_key": KEY})),
        ("GET", format!("/chitin/clusters/{id}/network"), Value::Null),
        ("GET", format!("/chitin/clusters/{id}"), Value::Null),
        ("GET", format!("/clusters/{id}"), Value::Null),
        ("GET", "/clusters".to_owned(), Value::Null),
        ("GET", "/chitin/status".to_owned(), Value::Null),
        ("DELETE", one, Value::Null),
    ] {
        answers.push(world.call(method, &path, body).await);
    }
    for answer in answers {
        assert!(!answer.text.contains(KEY_CANARY), "{}", answer.text);
        assert!(answer.headers.values().all(|value| !value.to_str().unwrap_or("").contains(KEY_CANARY)));
    }
}

#[tokio::test]
async fn there_is_a_most_of_everything() {
    let world = World::new();
    let id = private(&world, "shop-one", "10.77.0.0/24").await;
    let ranges: Vec<String> =
        (0..=PEERING_RANGES_MAX).map(|number| format!("192.168.{number}.0/24")).collect();
    let ranges: Vec<&str> = ranges.iter().map(String::as_str).collect();
    assert_eq!(propose(&world, id, namespace("wide", &ranges)).await.refusal(), (400, 3));
    assert_eq!(propose(&world, id, namespace("wide", &ranges[1..])).await.status, 200);
    for number in 1..PEERINGS_MAX {
        assert_eq!(propose(&world, id, namespace(&format!("p{number}"), &[])).await.status, 200);
    }
    let refused = propose(&world, id, namespace("one-more", &[])).await;
    assert_eq!(refused.refusal(), (400, 9));
    assert!(refused.text.contains("32 peerings"), "{}", refused.text);
    let small = private(&world, "shop-two", "10.78.0.0/29").await;
    for number in 0..5 {
        assert_eq!(propose(&world, small, tunnel(&format!("p{number}"))).await.status, 200);
    }
    let full = propose(&world, small, tunnel("one-more")).await;
    assert_eq!(full.refusal(), (400, 9));
    assert!(full.text.contains("no address"), "{}", full.text);
    assert_eq!(propose(&world, small, bridge("yard", "192.168.100.2/24")).await.status, 200, "needs none");
}

#[tokio::test]
async fn another_cluster_s_peerings_are_out_of_reach() {
    let world = World::new();
    let (one, two) = (
        private(&world, "shop-one", "10.77.0.0/24").await,
        private(&world, "shop-two", "10.78.0.0/24").await,
    );
    propose(&world, one, namespace("office", &[])).await;
    for (method, path) in [
        ("GET", format!("{}/office", of(two))),
        ("GET", format!("{}/office/config", of(two))),
        ("POST", format!("{}/office/accept", of(two))),
        ("DELETE", format!("{}/office", of(two))),
        ("GET", of(ClusterId::random())),
        ("POST", format!("{}/office/accept", of(ClusterId::random()))),
        ("DELETE", format!("{}/office", of(ClusterId::random()))),
    ] {
        assert_eq!(world.call(method, &path, Value::Null).await.refusal(), (404, 5), "{method} {path}");
    }
    assert_eq!(world.get(&of(two)).await.json(), json!({"peerings": []}));
    for trick in ["%2e%2e", "office%2Faccept", "office%00", "%6fffice%20"] {
        let answer = world.get(&format!("{}/{trick}", of(one))).await;
        assert!(matches!(answer.refusal().0, 400 | 404), "{trick}: {}", answer.text);
    }
    world.store.wish(one, model::Wish::Deleted, time::OffsetDateTime::now_utc()).unwrap();
    assert_eq!(world.get(&of(one)).await.refusal(), (404, 5));
    assert_eq!(propose(&world, one, namespace("late", &[])).await.refusal(), (404, 5));
}

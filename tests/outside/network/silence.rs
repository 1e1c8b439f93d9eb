//! Clients whose machine or line is gone, and who can tell nobody.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::network::world::{COPY_OUT, world};
use house::cloud::{HTTP_PORT, PATIENCE};
use house::command::{eventually, run};
use house::machine::{allowed, assert_within};
use house::wire::text;
use house::{Cluster, Host, Wire};

/// A session that holds a lock on the table.
fn holder(one: &Cluster<'_>, guest: &Host) -> Wire {
    let mut wire = world().enter(one, guest, guest.ipv4()).expect("listed");
    wire.query("begin").expect("a transaction");
    wire.query("insert into held values ('a row')").expect("a lock");
    wire
}

/// Connections of this host that the cloud has.
fn connections(guest: &Host) -> Vec<String> {
    let mut command = world().home.command("ss");
    let said = run(command.args(["-Htn", "state", "connected", "dst", &guest.ipv4().to_string()])).ok();
    said.lines().map(str::to_owned).collect()
}

pub fn a_client_that_vanished_holds_no_lock_for_longer_than_a_minute() {
    let world = world();
    let one = world.closed("vanished-client");
    let (guest, native) = (world.hosts.host(), world.hosts.host());
    for host in [&guest, &native] {
        one.allow(&format!("{}/32", host.ipv4()));
    }
    let mut watcher = world.enter(&one, &native, native.ipv4()).expect("listed");
    watcher.query("create table held (line text)").expect("a table");
    let (silent, mut busy, mut unread, mut copying) =
        (holder(&one, &guest), holder(&one, &guest), holder(&one, &guest), holder(&one, &guest));
    busy.send(b'Q', &text("select pg_sleep(600)")).expect("the session stands");
    unread.send(b'Q', &text(COPY_OUT)).expect("the session stands");
    copying.send(b'Q', &text("copy held from stdin")).expect("the session stands");
    assert_eq!(copying.expect_message().expect("COPY begins").tag, b'G');
    // At the API's door, in the middle of a request.
    let api = std::net::SocketAddr::new(world.home.ipv4(), HTTP_PORT);
    let mut asking = guest.connect(api, Some(guest.ipv4())).expect("the door is there");
    asking.handshake(world.cloud.trust(), "localhost").expect("the API speaks TLS 1.3");
    asking.write_all(b"GET /oidc/v1/session HTTP/1.1\r\n").expect("it listens");
    let holders = "select count(distinct pid) from pg_locks where relation = 'held'::regclass and pid <> pg_backend_pid()";
    eventually("they hold locks", PATIENCE, || (watcher.value(holders) == "4").then_some(()));
    // Long enough for every buffer on the way to be full.
    std::thread::sleep(Duration::from_secs(2));
    assert!(connections(&guest).len() >= 4);
    let gone = Instant::now();
    run(guest.command("ip").args(["link", "set", "eth0", "down"])).ok();
    let minute = Duration::from_secs(60);
    eventually("their locks are free", 2 * minute, || (watcher.value(holders) == "0").then_some(()));
    assert_within(minute, gone, "the locks of clients that vanished");
    let left = eventually("the cloud has forgotten them", allowed(minute), || {
        let left = connections(&guest);
        left.is_empty().then_some(left)
    });
    assert!(left.is_empty());
    assert_eq!(watcher.value("select count(*) from held"), "0", "and nothing of theirs was committed");
    drop((silent, busy, unread, copying, asking));
}

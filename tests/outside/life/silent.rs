//! Clients that are there and do nothing: whoever takes no result, stalls in a COPY or stops in the middle of a message holds no
//! lock for longer than the operator says, and holds up no stop.

use std::io::Read;
use std::time::{Duration, Instant};

use house::cloud::PATIENCE;
use house::command::eventually;
use house::wire::{message, text};
use house::{Cloud, Cluster, Options, Wire};

/// Rows without end.
const ROWS: &str =
    "copy (select repeat('x', 8000) from (select generate_series(1, 100000000)) as many) to stdout";
/// How many other transactions hold a lock on the table.
const HOLDERS: &str =
    "select count(distinct pid) from pg_locks where relation = 'held'::regclass and pid <> pg_backend_pid()";

/// What a client does before it does nothing any more.
type Act = fn(&mut Wire);

/// A session that holds a lock on the table.
fn holder(one: &Cluster<'_>) -> Wire {
    let mut wire = one.sign_in();
    wire.query("begin").expect("a transaction");
    wire.query("insert into held values ('a row')").expect("a lock");
    wire
}

/// Asks for rows without end, and takes none of them.
fn deaf(wire: &mut Wire) {
    wire.send(b'Q', &text(ROWS)).expect("the session stands");
}

fn begin_copy(wire: &mut Wire) {
    wire.send(b'Q', &text("copy held from stdin")).expect("the session stands");
    assert_eq!(wire.expect_message().expect("COPY begins").tag, b'G');
}

/// As libpq begins it in the extended protocol: with a Sync that the engine passes over.
fn begin_copy_extended(wire: &mut Wire) {
    let parts = [
        message(b'P', &[text(""), text("copy held from stdin"), vec![0, 0]].concat()),
        message(b'B', &[text(""), text(""), vec![0, 0, 0, 0, 0, 0]].concat()),
        message(b'E', &[text(""), vec![0, 0, 0, 0]].concat()),
        message(b'S', &[]),
    ];
    wire.send_raw(&parts.concat()).expect("the session stands");
    while wire.expect_message().expect("COPY begins").tag != b'G' {}
}

fn stage<'a>(cloud: &'a Cloud, name: &str) -> (Cluster<'a>, Wire) {
    let one = cloud.cluster(name, &[]);
    let mut watcher = one.sign_in();
    watcher.query("create table held (line text)").expect("a table");
    (one, watcher)
}

/// Waits until so many hold a lock.
fn held_by(watcher: &mut Wire, count: usize, what: &str) {
    eventually(what, PATIENCE, || (watcher.value(HOLDERS) == count.to_string()).then_some(()));
}

pub fn clients_that_do_nothing_when_it_is_their_turn_are_idle_and_hold_no_lock() {
    let cloud = Cloud::start(Options::unencrypted(&["--idle-timeout", "6s", "--unread-timeout", "5m"]));
    let (one, mut watcher) = stage(&cloud, "silent-clients");
    let ends: [(&str, Act, &str); 5] = [
        ("in a transaction", |_| {}, "25P03"),
        ("in a COPY", begin_copy, "57P05"),
        ("in a COPY of the extended protocol", begin_copy_extended, "57P05"),
        (
            "in the middle of a row",
            |wire| {
                begin_copy(wire);
                wire.send_raw(b"d\0\0\x10\0half a row").expect("the session stands");
            },
            "57P05",
        ),
        (
            "in the middle of a query",
            |wire| wire.send_raw(b"Q\0\0\x10\0select").expect("the session stands"),
            "25P03",
        ),
    ];
    let mut silent: Vec<(&str, Wire, &str)> = Vec::new();
    for (what, act, code) in ends {
        let mut wire = holder(&one);
        act(&mut wire);
        silent.push((what, wire, code));
    }
    let mut unread = holder(&one);
    deaf(&mut unread);
    held_by(&mut watcher, silent.len() + 1, "they hold locks");
    // Whoever waits for the engine is busy, however long it takes.
    let mut busy = one.sign_in();
    busy.send(b'Q', &text("select 'done' from pg_sleep(15)")).expect("the session stands");
    let mut flushed = one.sign_in();
    let parts = [
        message(b'P', &[text(""), text("select 'done' from pg_sleep(15)"), vec![0, 0]].concat()),
        message(b'B', &[text(""), text(""), vec![0, 0, 0, 0, 0, 0]].concat()),
        message(b'E', &[text(""), vec![0, 0, 0, 0]].concat()),
        message(b'H', &[]),
    ];
    flushed.send_raw(&parts.concat()).expect("the session stands");
    held_by(&mut watcher, 0, "their locks are free");
    for (what, mut wire, code) in silent {
        assert_eq!(wire.expect_refusal().code, code, "{what}");
    }
    assert_eq!(busy.results().expect("it is not idle").len(), 1);
    let mut tags = Vec::new();
    while tags.last() != Some(&b'C') {
        tags.push(flushed.expect_message().expect("it is not idle").tag);
    }
    drop(unread);
    assert!(cloud.log().contains("ended=Idle"));
}

pub fn a_result_that_nobody_takes_ends_the_session_and_one_that_is_taken_slowly_does_not() {
    let cloud = Cloud::start(Options::unencrypted(&["--unread-timeout", "6s"]));
    let (one, mut watcher) = stage(&cloud, "unread-result");
    let mut unread = holder(&one);
    deaf(&mut unread);
    let mut slow = holder(&one);
    deaf(&mut slow);
    held_by(&mut watcher, 2, "they hold locks");
    let begun = Instant::now();
    let mut piece = vec![0; 512 * 1024];
    // For longer than three times the limit.
    while begun.elapsed() < Duration::from_secs(20) {
        slow.read_exact(&mut piece).expect("who takes something stays");
        std::thread::sleep(Duration::from_secs(1));
    }
    held_by(&mut watcher, 1, "the lock of whoever takes nothing is free");
    drop(slow);
    held_by(&mut watcher, 0, "and so is the other's, once it is gone");
    assert!(cloud.log().contains("ended=Unread"));
    drop(unread);
}

pub fn a_longer_time_for_a_result_is_longer_than_the_kernel_s_own() {
    let cloud = Cloud::start(Options::unencrypted(&["--unread-timeout", "5m"]));
    let (one, mut watcher) = stage(&cloud, "unread-longer");
    let mut unread = holder(&one);
    deaf(&mut unread);
    held_by(&mut watcher, 1, "it holds a lock");
    // The kernel by itself would give up on whoever takes nothing after 45 s.
    std::thread::sleep(Duration::from_secs(70));
    held_by(&mut watcher, 1, "it still does");
    let mut piece = vec![0; 16 * 1024 * 1024];
    unread.read_exact(&mut piece).expect("it goes on reading");
    drop(unread);
    held_by(&mut watcher, 0, "it is gone");
}

/// Seconds of the day at which the program logged a line.
fn logged_at(line: &str) -> f64 {
    let time = line.split('T').nth(1).and_then(|rest| rest.split('Z').next()).expect("a time");
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().expect("a number"))
}

pub fn clients_that_do_nothing_hold_up_no_stop() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let (one, mut watcher) = stage(&cloud, "stop-at-once");
    let (mut unread, mut copying, mut extended, mut half) =
        (holder(&one), holder(&one), holder(&one), holder(&one));
    deaf(&mut unread);
    begin_copy(&mut copying);
    begin_copy_extended(&mut extended);
    half.send_raw(b"Q\0\0\x10\0select").expect("the session stands");
    held_by(&mut watcher, 4, "they hold locks");
    // Long enough for every buffer on the way to be full.
    std::thread::sleep(Duration::from_secs(2));
    cloud.stop();
    let log = cloud.log();
    let lines = || log.lines();
    let begun =
        lines().find(|line| line.contains("letting open sessions finish")).expect("sessions were open");
    let last = lines().rfind(|line| line.contains("session ended")).expect("they ended");
    let taken = (logged_at(last) - logged_at(begun)).rem_euclid(86_400.0);
    assert!(lines().filter(|line| line.contains("ended=Cut(Stopping)")).count() >= 5, "{log}");
    assert!(
        taken < 7.0,
        "sessions took {taken} s to end, which is as long as those get in which the engine works"
    );
    for (what, wire) in
        [("COPY", &mut copying), ("extended COPY", &mut extended), ("half a query", &mut half)]
    {
        assert_eq!(wire.expect_refusal().code, "57P01", "{what}");
    }
}

//! Clients that are gone without a word, at every step of a connection.

use std::time::Duration;

use house::cloud::PATIENCE;
use house::command::eventually;
use house::ledger::Ledger;
use house::machine::open_descriptors;
use house::wire::{message, text};
use house::{Cloud, Cluster, Wire};
use rustix::net::sockopt::set_socket_linger;

/// Of each kind, and for each way to go.
const EACH: usize = 6;

/// How far a client comes before it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Encrypted,
    Asked,
    Idle,
    HoldsALock,
    WaitsForAnAnswer,
    HalfAMessage,
    HalfACopy,
    ReadsNothing,
}

const STEPS: [Step; 8] = [
    Step::Encrypted,
    Step::Asked,
    Step::Idle,
    Step::HoldsALock,
    Step::WaitsForAnAnswer,
    Step::HalfAMessage,
    Step::HalfACopy,
    Step::ReadsNothing,
];

impl Step {
    /// A connection that has come so far. Who has signed in has had one row acknowledged.
    fn reach(self, one: &Cluster<'_>, number: usize) -> Wire {
        match self {
            Self::Encrypted => return one.cloud.encrypted(),
            Self::Asked => return one.knock(),
            _ => {}
        }
        let mut wire = one.sign_in();
        wire.query("insert into came values (1)").expect("it is committed");
        let begun = "begin; insert into came values (2)";
        match self {
            Self::HoldsALock => {
                wire.query(begun).expect("a transaction");
                wire.query(&format!("update held set x = x + 1 where id = {number}")).expect("its own row");
            }
            Self::WaitsForAnAnswer => wire.send(b'Q', &text("select pg_sleep(600)")).expect("sent"),
            Self::HalfAMessage => {
                wire.query(begun).expect("a transaction");
                let whole = message(b'Q', &text(&format!("commit --{}", "x".repeat(1 << 16))));
                wire.send_raw(&whole[..whole.len() / 2]).expect("sent");
            }
            Self::HalfACopy => {
                wire.send(b'Q', &text("copy came from stdin")).expect("sent");
                assert_eq!(wire.expect_message().expect("it begins").tag, b'G');
                wire.send(b'd', b"2\n2\n").expect("sent");
            }
            Self::ReadsNothing => {
                let much = "select repeat('x', 1000) from generate_series(1, 1000000)";
                wire.send(b'Q', &text(much)).expect("sent");
            }
            _ => {}
        }
        wire
    }

    fn has_signed_in(self) -> bool {
        !matches!(self, Self::Encrypted | Self::Asked)
    }
}

pub fn clients_that_vanish_leave_no_session_no_lock_and_no_descriptor() {
    let cloud = Cloud::plain();
    let (left, neighbour) = (cloud.cluster("left-behind", &[]), cloud.cluster("is-busy", &[]));
    let ledger = Ledger::open(&neighbour);
    let clients = STEPS.len() * 2 * EACH;
    let mut watcher = left.sign_in();
    watcher.query("create table came (x int)").expect("a table");
    let rows = format!("create table held as select id, 0 as x from generate_series(0, {clients}) id");
    watcher.query(&rows).expect("a table");
    let before = open_descriptors(cloud.pid());

    ledger.during(|| {
        let came: Vec<Wire> =
            (0..clients).map(|number| STEPS[number % STEPS.len()].reach(&left, number)).collect();
        for (number, wire) in came.into_iter().enumerate() {
            if (number / STEPS.len()).is_multiple_of(2) {
                // A reset instead of an end.
                set_socket_linger(wire.socket(), Some(Duration::ZERO)).expect("a socket");
            }
            drop(wire);
        }
        ledger.goes_on();
    });
    ledger.is_kept();

    let others =
        "select count(*) from pg_stat_activity where usename = current_user and pid <> pg_backend_pid()";
    eventually("their sessions end", PATIENCE, || (watcher.value(others) == "0").then_some(()));
    watcher.query("set lock_timeout = '1s'; update held set x = x + 1").expect("nothing is locked any more");
    assert_eq!(
        watcher.value("select count(*) from held where x <> 1"),
        "0",
        "what was not committed is not there"
    );
    let committed = STEPS.iter().filter(|step| step.has_signed_in()).count() * 2 * EACH;
    assert_eq!(watcher.value("select count(*) from came where x = 1"), committed.to_string());
    assert_eq!(
        watcher.value("select count(*) from came where x = 2"),
        "0",
        "what was not committed is not there"
    );
    eventually("their descriptors are closed", PATIENCE, || {
        // A session's own administration may be open for a moment longer.
        (open_descriptors(cloud.pid()) <= before + 4).then_some(())
    });
    drop(watcher);
    cloud.stop();
}

//! An engine that was taken over, and its neighbours.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use house::{Cloud, Options};

const SOCKET: &str = ".s.PGSQL.5432";

pub fn who_signs_in_to_an_engine_that_was_taken_over_is_led_to_no_other() {
    let cloud = Cloud::start(Options::unencrypted(&[]));
    let taken = cloud.cluster("taken-over", &[]);
    let wanted = cloud.cluster("wanted", &[]);
    // Both have a user of the same name, as attackers hope.
    wanted.sign_in().value("select 1");
    taken.sign_in().value("select 1");
    let run = |handle: &str| {
        let number = handle.rsplit_once('-').expect("a handle ends with its number").1;
        cloud.data().join("run").join(number)
    };
    let (mine, theirs) = (run(&taken.handle), run(&wanted.handle));

    // What code in the engine can do with the folder that it owns.
    std::fs::rename(mine.join(SOCKET), mine.join("aside")).expect("the engine's own socket");
    let beside = PathBuf::from("..").join(theirs.file_name().expect("a number")).join(SOCKET);
    symlink(&beside, mine.join(SOCKET)).expect("a link to the neighbour's");

    let refused = taken.try_sign_in().err().expect("led nowhere");
    assert_eq!(refused.code, "08006", "{refused:?}");
    let made = cloud.chitin(["user", "create", "taken-over", "mallory"]).refused();
    assert!(made.contains("socket was refused"), "{made}");
    let users = cloud.json(["user", "list", "wanted"]).to_string();
    assert!(users.contains("maria") && !users.contains("mallory"), "{users}");
    let log = cloud.log();
    assert!(log.contains("may have been taken over"), "the operator is told: {}", cloud.log_end());

    // Others go on, and so does the cluster itself once it has another run.
    wanted.sign_in().value("select 1");
    let said = cloud.chitin(["cluster", "sleep", "taken-over"]).refused();
    assert!(said.contains("--force"), "its users cannot be copied: {said}");
    cloud.chitin(["cluster", "sleep", "taken-over", "--force"]).ok();
    assert_eq!(taken.phase(), "asleep");
    assert_eq!(taken.try_sign_in().err().expect("nobody knows its users").code, "57P03");
    cloud.chitin(["cluster", "wake", "taken-over"]).ok();
    assert_eq!(taken.sign_in().value("select 42"), "42");
}

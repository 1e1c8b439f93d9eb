//! Killed at every step of every change of keys: everything is there, and the change ends by itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use house::command::eventually;
use house::keys::{SOON, files_below};
use house::{Cloud, Cluster};

use crate::keys::world;

/// Steps of wrapping a data key anew.
const REWRAP: [&str; 3] = ["rewrap-unwrapped", "rewrap-wrapped", "rewrap-written"];
/// Steps of copying a volume under another data key.
const COPY: [&str; 4] = ["copy-begun", "copy-keyed", "copy-made", "copy-first-pass"];
/// Steps of switching to it.
const SWITCH: [&str; 6] = [
    "switch-stopped",
    "switch-copied",
    "switch-synced",
    "switch-marked",
    "switch-shredded",
    "switch-destroyed",
];
/// Steps of a rotation of the root key that come at once.
const ROOT: [&str; 3] = ["root-rotation-begun", "root-rotation-authority", "root-rotation-state"];
/// The step that comes when nothing needs the earlier version any more, a minute later. The room's own tests stop there.
const ROOT_LATER: &str = "root-rotation-retired";

const ROTATE_ROOT: &str = "/api/v1/chitin/root-key/rotate";

pub fn every_step_in_the_source_has_a_test_that_stops_there() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let mut in_source = BTreeSet::new();
    for path in files_below(&crates).iter().filter(|path| path.extension().is_some_and(|kind| kind == "rs")) {
        let text = fs::read_to_string(path).expect("UTF-8");
        for rest in text.split("fail_point!(\"").skip(1) {
            in_source.insert(rest.split('"').next().expect("a name").to_owned());
        }
    }
    let tested: BTreeSet<String> = REWRAP
        .iter()
        .chain(&COPY)
        .chain(&SWITCH)
        .chain(&ROOT)
        .chain([&ROOT_LATER])
        .map(|step| (*step).to_owned())
        .collect();
    assert_eq!(in_source, tested);
}

/// Kills the cloud at the step of what `change` begins, and starts it again as usual. `end` is what is logged at the end
/// of the change. The program is not asked meanwhile: a step may stop the threads that would answer. A cloud comes to each
/// step once in its log.
fn killed_at(cloud: &Cloud, step: &str, end: &str, change: impl FnOnce() -> Child) {
    cloud.stop();
    cloud.boot_until(step);
    let ends = || cloud.log().matches(end).count();
    let before = ends();
    let mut call = change();
    cloud.await_step(step);
    assert_eq!(ends(), before, "{step} comes after the end");
    cloud.kill();
    let _ = call.wait();
    cloud.boot();
}

fn the_rows_are_there(one: &Cluster<'_>, rows: &AtomicU32, step: &str) {
    let mut session = eventually("sign-in works again", SOON, || one.try_sign_in().ok());
    let count = rows.load(Ordering::Relaxed).to_string();
    assert_eq!(session.value("select count(*) from kept"), count, "after {step}");
    session.query("insert into kept values (1)").unwrap();
    rows.fetch_add(1, Ordering::Relaxed);
}

fn kept<'cloud>(cloud: &'cloud Cloud, name: &str) -> (Cluster<'cloud>, AtomicU32) {
    let one = cloud.cluster(name, &[]);
    one.sign_in().query("create table kept (x int)").unwrap();
    (one, AtomicU32::new(0))
}

pub fn kill_9_at_every_step_of_a_change_of_keys_loses_nothing() {
    let bao = world::bao();
    let cloud = Cloud::start(world::options(&[]));
    let (one, rows) = kept(&cloud, "steps-rewrap");
    let key = bao.tenant(&cloud, "steps-rewrap");
    bao.make_key("steps-rewrap-2");
    let other = bao.key("steps-rewrap", "steps-rewrap-2");
    for (turn, step) in REWRAP.iter().enumerate() {
        let (method, wanted) = match turn {
            0 => ("POST", &key),
            1 => ("PUT", &other),
            _ => ("PUT", &key),
        };
        killed_at(&cloud, step, "the data key is wrapped anew", || one.begin_to_ask_for_key(method, wanted));
        one.await_key("ENABLED");
        assert_eq!(one.wrapped_key()["key"]["uri"], wanted["uri"], "after {step}");
        the_rows_are_there(&one, &rows, step);
        one.sleep();
        the_rows_are_there(&one, &rows, step);
    }
    cloud.stop();
}

fn with_another_data_key(more: &[&str], name: &str, steps: &[&str]) {
    let cloud = Cloud::start(world::options(more));
    let (one, rows) = kept(&cloud, name);
    for step in steps {
        let before = one.generation();
        let change = || {
            one.sign_in();
            one.begin_to_ask_for_data_key()
        };
        killed_at(&cloud, step, "is encrypted with a new data key", change);
        the_rows_are_there(&one, &rows, step);
        eventually("the change ends by itself", Duration::from_secs(120), || {
            (one.keys()["is_data_key_rotating"] == false).then_some(())
        });
        assert!(one.generation() > before, "after {step}");
        the_rows_are_there(&one, &rows, step);
        // Nothing but the volume that counts is left.
        let volumes: Vec<String> = fs::read_dir(one.folder())
            .expect("the cluster's folder")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("volume-") || name == "key.json")
            .collect();
        let counts = format!("volume-{}", one.generation());
        assert_eq!(volumes, [counts], "after {step}\n{}", cloud.log_end());
    }
    cloud.stop();
}

pub fn kill_9_at_every_step_of_a_copy_loses_nothing() {
    with_another_data_key(&[], "steps-copy", &COPY);
}

pub fn kill_9_at_every_step_of_a_switch_loses_nothing() {
    with_another_data_key(&[], "steps-switch", &SWITCH);
}

pub fn kill_9_at_the_moments_of_a_switch_loses_nothing_with_gocryptfs_either() {
    with_another_data_key(
        &["--encryption", "gocryptfs"],
        "steps-fuse",
        &["copy-first-pass", "switch-copied", "switch-marked", "switch-shredded"],
    );
}

pub fn kill_9_at_every_step_of_a_rotation_of_the_root_key_loses_nothing() {
    let cloud = Cloud::start(world::options(&[]));
    let (one, rows) = kept(&cloud, "steps-root");
    for step in ROOT {
        let version = || cloud.get("/api/v1/chitin/root-key")["version"].as_u64().expect("a version");
        let before = version();
        cloud.stop();
        cloud.boot_until(step);
        let mut call = cloud.begin_call("POST", ROTATE_ROOT, &serde_json::json!({}));
        cloud.await_step(step);
        assert!(call.try_wait().expect("ours").is_none(), "{step} comes after the answer");
        cloud.kill();
        let _ = call.wait();
        cloud.boot();
        let now = version();
        assert_eq!(now, before + 1, "after {step}");
        the_rows_are_there(&one, &rows, step);
        one.sleep();
        the_rows_are_there(&one, &rows, step);
        let wanted = now.to_string();
        eventually("the data key is wrapped by the new version", SOON, || {
            (one.wrapped_key()["key_version"] == wanted.as_str()).then_some(())
        });
        // And it can be repeated.
        cloud.call("POST", ROTATE_ROOT, None).ok();
        assert_eq!(version(), now + 1);
        the_rows_are_there(&one, &rows, step);
    }
    cloud.stop();
}

//! Another data key: the whole volume is encrypted anew while the cluster works, and nothing is lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use house::command::{SetAtEnd, eventually};
use house::{Cloud, Cluster};

use crate::keys::world;

const WRITERS: u64 = 3;
/// For a small volume to be copied on a busy machine.
const COPIED: Duration = Duration::from_secs(120);

/// What one writer saw.
#[derive(Default)]
struct Written {
    /// The last number whose insert was acknowledged.
    acknowledged: AtomicU64,
    /// How often its session ended.
    cuts: AtomicU64,
}

/// Writes numbers one after the other; after a cut it signs in again and goes on with the number that was in doubt.
fn write(one: &Cluster<'_>, writer: usize, seen: &Written, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        let Ok(mut session) = one.try_sign_in() else {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        while !is_over.load(Ordering::Relaxed) {
            let number = seen.acknowledged.load(Ordering::Relaxed) + 1;
            let insert = format!("insert into written values ({writer}, {number}) on conflict do nothing");
            if session.query(&insert).is_err() {
                seen.cuts.fetch_add(1, Ordering::Relaxed);
                break;
            }
            seen.acknowledged.store(number, Ordering::Relaxed);
        }
    }
}

/// Waits until the volume has its other data key; tells whether progress was seen on the way.
fn await_new_volume(one: &Cluster<'_>, demanded_from: u64) -> bool {
    let mut was_progress_seen = false;
    eventually("the volume has another data key", COPIED, || {
        let keys = one.keys();
        let progress = &keys["facts"]["progress"];
        was_progress_seen |= progress["total_bytes"].as_u64().is_some_and(|bytes| bytes > 0);
        (keys["is_data_key_rotating"] == false && one.generation() > demanded_from).then_some(())
    });
    was_progress_seen
}

fn under_load(cloud: &Cloud, name: &str) {
    let one = cloud.cluster(name, &[]);
    one.sign_in()
        .query(
            "create table written (writer int, number bigint, primary key (writer, number));
             create table bulk as select g, repeat(md5(g::text), 30) t from generate_series(1, 60000) g",
        )
        .unwrap();
    let sum = one.sign_in().value("select md5(string_agg(t, '' order by g)) from bulk");
    let (before, old_volume, old_key) = (one.generation(), one.volume(), one.key_file());
    let old_text = std::fs::read_to_string(&old_key).expect("a key file");
    let seen: Vec<Written> = (0..WRITERS).map(|_| Written::default()).collect();
    let is_over = AtomicBool::new(false);
    let was_progress_seen = std::thread::scope(|scope| {
        let _end = SetAtEnd(&is_over);
        for (writer, seen) in seen.iter().enumerate() {
            let (one, is_over) = (&one, &is_over);
            scope.spawn(move || write(one, writer, seen, is_over));
        }
        std::thread::sleep(Duration::from_secs(1));
        one.ask_for_data_key().ok();
        assert!((400..500).contains(&one.ask_for_data_key().status), "two at a time");
        let was_progress_seen = await_new_volume(&one, before);
        // They go on in the new volume.
        let then: Vec<u64> = seen.iter().map(|seen| seen.acknowledged.load(Ordering::Relaxed)).collect();
        eventually("every writer goes on", COPIED, || {
            let now = seen.iter().map(|seen| seen.acknowledged.load(Ordering::Relaxed));
            now.zip(&then).all(|(now, then)| now > *then).then_some(())
        });
        was_progress_seen
    });
    assert!(was_progress_seen, "nobody was told how far it is");
    let mut session = one.sign_in();
    for (writer, seen) in seen.iter().enumerate() {
        let (last, cuts) = (seen.acknowledged.load(Ordering::Relaxed), seen.cuts.load(Ordering::Relaxed));
        let count = session
            .value(&format!("select count(*) from written where writer = {writer} and number <= {last}"));
        assert_eq!(count, last.to_string(), "writer {writer} lost acknowledged commits");
        assert_eq!(cuts, 1, "the session of writer {writer} was cut {cuts} times");
    }
    assert_eq!(session.value("select md5(string_agg(t, '' order by g)) from bulk"), sum);
    assert!(one.keys()["data_key_since"].is_string());
    assert_ne!(
        one.wrapped_key()["wrapped"],
        serde_json::from_str::<serde_json::Value>(&old_text).expect("JSON")["wrapped"]
    );
    // The old key and volume are gone.
    if one.folder() == old_volume {
        for name in ["key.json", "image", "cipher"] {
            assert!(!old_volume.join(name).exists(), "{name} of the old volume is there");
        }
    } else {
        assert!(!old_volume.exists());
    }
    assert!(!old_key.exists(), "the old key is there");
}

pub fn no_committed_row_is_lost_when_the_volume_gets_another_data_key_under_load() {
    under_load(world::native(), "new-key-native");
}

pub fn no_committed_row_is_lost_with_gocryptfs_either() {
    under_load(world::fuse(), "new-key-fuse");
}

pub fn a_sleeping_cluster_gets_another_data_key_and_sleeps_on() {
    let one = world::native().cluster("new-key-asleep", &[]);
    one.sign_in().query("create table kept (x int); insert into kept values (42)").unwrap();
    one.sleep();
    one.await_rest();
    let before = one.generation();
    one.ask_for_data_key().ok();
    await_new_volume(&one, before);
    assert_eq!(one.phase(), "asleep");
    assert!(!one.is_unlocked());
    assert_eq!(one.sign_in().value("select x from kept"), "42");
    // And once more: the volume that is copied is a later one.
    one.ask_for_data_key().ok();
    await_new_volume(&one, before + 1);
    assert_eq!(one.sign_in().value("select x from kept"), "42");
}

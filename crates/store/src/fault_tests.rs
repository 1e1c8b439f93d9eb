//! What happens to the state when its disk does not do what it should.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use model::{Power, Wish};
use time::OffsetDateTime;

use crate::medium::Medium;
use crate::testing::{draft, open, sealer};
use crate::{Error, Store, TroubleKind};

fn kinds(store: &Store) -> Vec<TroubleKind> {
    store.troubles().iter().map(|trouble| trouble.kind).collect()
}

fn names(store: &Store) -> Vec<String> {
    let mut names: Vec<String> =
        store.snapshot().iter().map(|entry| entry.cluster.name.to_string()).collect();
    names.sort();
    names
}

fn make(store: &Store, name: &str) -> Result<model::Cluster, Error> {
    store.create(draft(name), OffsetDateTime::now_utc())
}

/// Tries again as whoever looks after the state does, until it can be changed.
fn until_well(store: &Store) {
    for _ in 0..100 {
        store.look_after();
        if store.troubles().is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("it did not get well: {:?}", store.troubles());
}

#[test]
fn a_failed_write_stops_nothing_once_the_disk_is_well_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    make(&store, "before").unwrap();
    store.with_medium(|medium| medium.faults.writes.store(true, Ordering::Relaxed));
    for name in ["during-one", "during-two"] {
        let refused = make(&store, name);
        assert!(matches!(refused, Err(Error::File { .. } | Error::Unsettled { .. })), "{refused:?}");
    }
    assert_eq!(kinds(&store), [TroubleKind::Unwritable]);
    assert_eq!(names(&store), ["before"], "what is known can be read all the time");
    store.with_medium(|medium| medium.faults.writes.store(false, Ordering::Relaxed));
    until_well(&store);
    make(&store, "afterwards").unwrap();
    assert_eq!(names(&store), ["afterwards", "before"]);
    drop(store);
    assert_eq!(names(&open(folder.path())), ["afterwards", "before"], "nothing of what failed is there");
}

#[test]
fn what_is_put_to_sleep_without_its_roles_is_that_in_both_places_or_in_none() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (kept, now) = (make(&store, "before").unwrap(), OffsetDateTime::now_utc());
    let both = |store: &Store| {
        let entry = store.snapshot().get(&kept.id).cloned().unwrap();
        (entry.cluster.wish == Wish::Exists(Power::Asleep), entry.seen.roles.is_given_up)
    };
    store.with_medium(|medium| medium.faults.writes.store(true, Ordering::Relaxed));
    assert!(store.wish_asleep_without_roles(kept.id, now).is_err());
    store.with_medium(|medium| medium.faults.writes.store(false, Ordering::Relaxed));
    until_well(&store);
    drop(store);
    let store = open(folder.path());
    assert_eq!(both(&store), (false, false));
    store.wish_asleep_without_roles(kept.id, now).unwrap();
    drop(store);
    assert_eq!(both(&open(folder.path())), (true, true));
}

#[test]
fn a_change_that_got_to_the_disk_before_it_failed_is_undone_where_it_was_said_to_have_failed() {
    let (mut undone, mut reached) = (0, 0);
    for syncs in 1..=4 {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let kept = make(&store, "before").unwrap();
        store.with_medium(|medium| medium.faults.after_syncs.store(syncs, Ordering::Relaxed));
        let (asleep, commits) = (Wish::Exists(Power::Asleep), store.commits());
        let failed = store.wish(kept.id, asleep, OffsetDateTime::now_utc()).is_err();
        store.with_medium(|medium| {
            medium.faults.after_syncs.store(0, Ordering::Relaxed);
            medium.faults.writes.store(false, Ordering::Relaxed);
        });
        let wish = |store: &Store| store.snapshot().get(&kept.id).unwrap().cluster.wish;
        assert_eq!(wish(&store) == asleep, !failed, "after {syncs} syncs");
        until_well(&store);
        // The change and its undoing count too where it had got to the disk; once more what showed that all is well.
        reached += u32::from(failed && store.commits() == commits + 3);
        let commits = store.commits();
        make(&store, "afterwards").unwrap();
        assert_eq!(store.commits(), commits + 1);
        drop(store);
        let again = open(folder.path());
        assert_eq!(wish(&again) == asleep, !failed, "after {syncs} syncs, at the next start");
        assert_eq!(names(&again), ["afterwards", "before"]);
        undone += u32::from(failed);
    }
    assert!(undone > 0 && reached > 0, "{undone} failed, {reached} of them had got to the disk");
}

/// As on a path that flaps: the sync fails and everything after it goes well, so what is read may be in memory alone.
#[test]
fn a_sync_that_fails_once_is_a_failure_and_nothing_is_stuck_after_it() {
    for syncs in 1..=4 {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let kept = make(&store, "before").unwrap();
        store.with_medium(|medium| {
            medium.faults.only_once.store(true, Ordering::Relaxed);
            medium.faults.after_syncs.store(syncs, Ordering::Relaxed);
        });
        let asleep = Wish::Exists(Power::Asleep);
        let failed = store.wish(kept.id, asleep, OffsetDateTime::now_utc()).is_err();
        store.with_medium(|medium| medium.faults.after_syncs.store(0, Ordering::Relaxed));
        let wish = |store: &Store| store.snapshot().get(&kept.id).unwrap().cluster.wish;
        assert_eq!(wish(&store) == asleep, !failed, "after {syncs} syncs");
        until_well(&store);
        make(&store, "afterwards").unwrap();
        drop(store);
        let again = open(folder.path());
        assert_eq!(wish(&again) == asleep, !failed, "after {syncs} syncs, at the next start");
    }
}

/// What undoes a change may fail as well, at any of its steps.
#[test]
fn an_undo_that_fails_is_tried_again_and_nothing_is_stuck_after_it() {
    let mut unsettled = 0;
    for syncs in 1..=4 {
        for later in 1..=4 {
            let folder = tempfile::tempdir().unwrap();
            let store = open(folder.path());
            let kept = make(&store, "before").unwrap();
            let arm = |syncs| {
                store.with_medium(|medium| {
                    medium.faults.writes.store(false, Ordering::Relaxed);
                    medium.faults.after_syncs.store(syncs, Ordering::Relaxed);
                });
            };
            arm(syncs);
            let asleep = Wish::Exists(Power::Asleep);
            let failed = store.wish(kept.id, asleep, OffsetDateTime::now_utc());
            unsettled += u32::from(matches!(failed, Err(Error::Unsettled { .. })));
            // The disk comes back, and goes again while it is undone.
            arm(later);
            std::thread::sleep(Duration::from_millis(1_100));
            store.look_after();
            arm(0);
            until_well(&store);
            let wish = |store: &Store| store.snapshot().get(&kept.id).unwrap().cluster.wish;
            assert_eq!(wish(&store) == asleep, failed.is_ok(), "{syncs} and {later} syncs");
            make(&store, "afterwards").unwrap();
            drop(store);
            assert_eq!(wish(&open(folder.path())) == asleep, failed.is_ok(), "{syncs} and {later} syncs");
        }
    }
    assert!(unsettled > 0, "none failed so that nobody knew");
}

#[test]
fn a_state_that_a_link_leads_to_is_in_its_place() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(open(folder.path()));
    let path = folder.path().join("state.redb");
    fs::rename(&path, elsewhere.path().join("state.redb")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("state.redb"), &path).unwrap();
    let store = open(folder.path());
    make(&store, "by-a-link").unwrap();
    store.look_after();
    assert!(store.troubles().is_empty(), "{:?}", store.troubles());
}

#[test]
fn a_state_that_is_removed_or_replaced_is_noticed_and_nothing_is_written_until_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let (path, aside) = (folder.path().join("state.redb"), folder.path().join("aside"));
    let store = open(folder.path());
    make(&store, "before").unwrap();
    let older = folder.path().join("older");
    fs::copy(&path, &older).unwrap();
    make(&store, "newer-one").unwrap();

    fs::rename(&path, &aside).unwrap();
    store.look_after();
    assert_eq!(kinds(&store), [TroubleKind::Removed]);
    let refused = make(&store, "lost-one").unwrap_err();
    assert!(matches!(&refused, Error::Removed { .. }), "{refused}");
    // Nothing is written to what lies there by now.
    let reserve = folder.path().join("state.redb.reserve");
    fs::remove_file(&reserve).unwrap();
    store.look_after();
    assert!(!reserve.exists());
    assert_eq!(kinds(&store), [TroubleKind::Removed]);
    // An older state in its place is not the same state.
    fs::copy(&older, &path).unwrap();
    assert!(matches!(make(&store, "lost-one").unwrap_err(), Error::Removed { .. }));
    assert_eq!(kinds(&store), [TroubleKind::Removed]);
    // The same file, put back.
    fs::rename(&aside, &path).unwrap();
    make(&store, "put-back").unwrap();
    assert!(store.troubles().is_empty(), "{:?}", store.troubles());

    // Removed for good; its content is still open, and the error says where.
    fs::remove_file(&path).unwrap();
    let said = make(&store, "lost-one").unwrap_err().to_string();
    let (_, after) = said.split_once("cp ").unwrap();
    let from = after.split(' ').next().unwrap();
    fs::copy(from, &path).unwrap();
    until_well(&store);
    make(&store, "copied-back").unwrap();
    drop(store);
    assert_eq!(names(&open(folder.path())), ["before", "copied-back", "newer-one", "put-back"]);
}

#[test]
fn no_other_program_gets_at_the_state_while_it_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    let store = open(folder.path());
    store.with_medium(|medium| medium.faults.writes.store(true, Ordering::Relaxed));
    make(&store, "during").unwrap_err();
    assert!(Medium::open(&path).is_err(), "the file stays locked while the library on it is closed");
    assert!(Store::open(&path, sealer(folder.path())).is_err());
    drop(store);
    open(folder.path());
}

/// Bytes that are free for everybody on the file system of the folder.
fn free(folder: &Path) -> u64 {
    let facts = rustix::fs::statvfs(folder).unwrap();
    facts.f_bavail * facts.f_frsize
}

#[test]
fn some_room_is_kept_for_what_cannot_wait() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let reserve = folder.path().join("state.redb.reserve");
    assert!(store.troubles().is_empty(), "{} bytes are free: {:?}", free(folder.path()), store.troubles());
    let kept = fs::metadata(&reserve).unwrap();
    assert!(kept.len() >= 256 << 10);
    assert!(std::os::unix::fs::MetadataExt::blocks(&kept) * 512 >= kept.len(), "it is there, not a hole");
    fs::remove_file(&reserve).unwrap();
    store.look_after();
    assert_eq!(fs::metadata(&reserve).unwrap().len(), kept.len(), "it is made anew");
}

#[test]
fn a_write_that_finds_no_room_has_that_of_the_reserve_where_it_cannot_wait_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let reserve = folder.path().join("state.redb.reserve");
    let is_kept = || reserve.exists();
    // As long as the reserve takes the room, there is none.
    let write = || if is_kept() { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) };
    store.with_medium(|medium| {
        assert!(is_kept());
        medium.permit_reserve(false);
        assert!(medium.with_room(write).is_err() && is_kept(), "what can wait does not use it");
        medium.permit_reserve(true);
        let other = || Err(std::io::Error::from_raw_os_error(5));
        assert!(medium.with_room(other).is_err() && is_kept(), "another failure does not use it");
        medium.with_room(write).unwrap();
        assert!(!is_kept());
        let none_left = || Err(std::io::ErrorKind::StorageFull.into());
        assert!(medium.with_room(none_left).is_err(), "it is used once");
    });
}

//! What somebody can do to the state file who has the disk and not the root key, and that it is found.

use std::fs;
use std::path::{Path, PathBuf};

use ::keys::{RootKey, Sealer};
use model::{Observation, Phase, Power, Wish};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};
use time::OffsetDateTime;

use crate::testing::{draft, open, sealer};
use crate::{Error, Store};

type Row = (String, String, Vec<u8>);

fn state(folder: &Path) -> PathBuf {
    folder.join("state.redb")
}

fn table(name: &str) -> TableDefinition<'_, &'static str, &'static [u8]> {
    TableDefinition::new(name)
}

/// Every row, the manifest's too, as somebody reads them who has the disk.
fn rows(path: &Path) -> Vec<Row> {
    let database = Database::open(path).unwrap();
    let read = database.begin_read().unwrap();
    let mut all = Vec::new();
    for name in read.list_tables().unwrap().map(|table| table.name().to_owned()) {
        for row in read.open_table(table(&name)).unwrap().iter().unwrap() {
            let (key, value) = row.unwrap();
            all.push((name.clone(), key.value().to_owned(), value.value().to_vec()));
        }
    }
    all
}

fn write(path: &Path, name: &str, key: &str, value: Option<&[u8]>) {
    let database = Database::create(path).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut rows = write.open_table(table(name)).unwrap();
        match value {
            Some(value) => rows.insert(key, value).map(drop).unwrap(),
            None => rows.remove(key).map(drop).unwrap(),
        }
    }
    write.commit().unwrap();
}

fn tampered(opened: Result<std::sync::Arc<Store>, Error>) -> String {
    match opened {
        Err(Error::Tampered { what, .. }) => what,
        Err(other) => panic!("found, but as: {other}"),
        Ok(_) => panic!("nothing was found"),
    }
}

fn reopen(folder: &Path) -> Result<std::sync::Arc<Store>, Error> {
    Store::open(&state(folder), sealer(folder))
}

/// A cloud with two clusters, and its rows before one of them was told to sleep.
fn lived(folder: &Path) -> (model::Cluster, Vec<Row>) {
    let now = OffsetDateTime::now_utc();
    let store = open(folder);
    let one = store.create(draft("shop-one"), now).unwrap();
    store.create(draft("shop-two"), now).unwrap();
    drop(store);
    let before = rows(&state(folder));
    let store = open(folder);
    store.wish(one.id, Wish::Exists(Power::Asleep), now).unwrap();
    store.observe(one.id, Observation { phase: Phase::Asleep, ..Observation::nothing_yet() }).unwrap();
    (one, before)
}

#[test]
fn a_removed_row_is_found_and_the_cluster_that_lost_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (one, _) = lived(folder.path());
    for (name, key, value) in rows(&state(folder.path())) {
        write(&state(folder.path()), &name, &key, None);
        let what = tampered(reopen(folder.path()));
        assert!(what.contains(&name) || what.contains("manifest"), "{name}: {what}");
        if name == "clusters" && key == one.id.to_string() {
            assert!(what.contains(&format!("{key} was removed")), "{what}");
        }
        write(&state(folder.path()), &name, &key, Some(&value));
        assert!(reopen(folder.path()).is_ok(), "put right again: {name} {key}");
    }
}

#[test]
fn a_row_put_back_from_an_older_copy_of_its_own_place_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (_, before) = lived(folder.path());
    let now = rows(&state(folder.path()));
    let mut put_back = 0;
    for (name, key, old) in before {
        let Some((_, _, new)) = now.iter().find(|row| (&row.0, &row.1) == (&name, &key) && row.2 != old)
        else {
            continue;
        };
        write(&state(folder.path()), &name, &key, Some(&old));
        let what = tampered(reopen(folder.path()));
        assert!(what.contains(&name) || name == "manifest", "{name}: {what}");
        write(&state(folder.path()), &name, &key, Some(new));
        put_back += 1;
    }
    assert!(put_back >= 3, "cluster, observation and manifest: {put_back}");
    assert!(reopen(folder.path()).is_ok());
}

#[test]
fn a_row_of_one_s_own_table_or_in_a_new_table_is_found() {
    let folder = tempfile::tempdir().unwrap();
    lived(folder.path());
    let (_, _, value) = rows(&state(folder.path()))
        .into_iter()
        .find(|row| row.0 == "api_keys" || row.0 == "clusters")
        .unwrap();
    write(&state(folder.path()), "audit", "planted", Some(&value));
    assert!(tampered(reopen(folder.path())).contains("audit"));
    write(&state(folder.path()), "audit", "planted", None);
    assert!(reopen(folder.path()).is_ok());
}

#[test]
fn a_changed_value_is_named_by_its_row() {
    let folder = tempfile::tempdir().unwrap();
    lived(folder.path());
    for (name, key, value) in rows(&state(folder.path())) {
        for position in [0, 1, 5, 12, 20, 80, value.len() - 1] {
            let mut changed = value.clone();
            changed[position] ^= 1;
            write(&state(folder.path()), &name, &key, Some(&changed));
            let what = tampered(reopen(folder.path()));
            assert!(what.contains(&key) || what.contains("manifest"), "{name} {key} byte {position}: {what}");
        }
        write(&state(folder.path()), &name, &key, Some(&value));
    }
}

#[test]
fn a_single_row_that_was_put_back_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let set = |closed| {
        let wanted = model::Organization { allowlist_starts_closed: closed };
        open(folder.path()).set_organization(wanted).unwrap();
    };
    set(true);
    let before = rows(&state(folder.path()));
    set(false);
    let (name, key, old) = before.iter().find(|row| row.0 == "organization").unwrap();
    write(&state(folder.path()), name, key, Some(old));
    assert_eq!(tampered(reopen(folder.path())), "organization organization was put back from an older copy");
}

#[test]
fn an_emptied_or_cut_file_is_not_a_new_cloud() {
    let folder = tempfile::tempdir().unwrap();
    lived(folder.path());
    let good = fs::read(state(folder.path())).unwrap();
    fs::write(state(folder.path()), b"").unwrap();
    assert!(tampered(reopen(folder.path())).contains("manifest"));
    for length in [1, 100, 4_096, good.len() / 2, good.len() - 1] {
        fs::write(state(folder.path()), &good[..length]).unwrap();
        let opened = reopen(folder.path());
        assert!(
            matches!(opened, Err(Error::Corrupted { .. } | Error::Tampered { .. })),
            "{length}: {:?}",
            opened.err()
        );
    }
    fs::write(state(folder.path()), &good).unwrap();
    assert!(reopen(folder.path()).is_ok());
}

#[test]
fn flipped_bits_of_the_file_are_found_or_hit_nothing_and_never_end_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let (one, _) = lived(folder.path());
    let good = fs::read(state(folder.path())).unwrap();
    let told = |store: &Store| {
        let snapshot = store.snapshot();
        let entry = snapshot.get(&one.id).map(|entry| (entry.cluster.clone(), entry.seen.clone()));
        (snapshot.len(), entry)
    };
    let expected = told(&open(folder.path()));
    let mut found = 0;
    // Every used page is met; between them lie only zeros.
    let used: Vec<usize> = (0..good.len()).filter(|position| good[*position] != 0).collect();
    let step = (used.len() / 400).max(1);
    for position in used.iter().step_by(step) {
        let mut changed = good.clone();
        changed[*position] ^= 0x10;
        fs::write(state(folder.path()), &changed).unwrap();
        match reopen(folder.path()) {
            Err(Error::Tampered { .. } | Error::Corrupted { .. } | Error::File { .. }) => found += 1,
            Err(other) => panic!("byte {position}: {other}"),
            Ok(store) => assert_eq!(told(&store), expected, "byte {position} changed what is believed"),
        }
    }
    assert!(found > 20, "{found} of 400");
}

#[test]
fn a_crash_at_any_moment_leaves_a_file_that_opens() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let now = OffsetDateTime::now_utc();
    for number in 0..5 {
        store.create(draft(&format!("shop-{number}")), now).unwrap();
        // A copy of an open file is what a crash leaves.
        let crashed = tempfile::tempdir().unwrap();
        for name in ["kek", "state.redb"] {
            fs::copy(folder.path().join(name), crashed.path().join(name)).unwrap();
        }
        assert_eq!(reopen(crashed.path()).unwrap().snapshot().len(), number + 1);
    }
    // One that was being made for the first time.
    let half = tempfile::tempdir().unwrap();
    fs::write(half.path().join("state.redb.new"), b"half").unwrap();
    assert!(reopen(half.path()).is_ok());
}

#[test]
fn the_number_of_transactions_only_grows() {
    let folder = tempfile::tempdir().unwrap();
    lived(folder.path());
    let first = open(folder.path()).commits();
    open(folder.path()).create(draft("shop-three"), OffsetDateTime::now_utc()).unwrap();
    assert_eq!(open(folder.path()).commits(), first + 1);
}

/// The rows of a real data directory of the first version of this program, with its key file in the first line.
const FIRST_STATE: &str = include_str!("fixtures/state-1.txt");

fn first_state(folder: &Path) -> Vec<Row> {
    let (kek, rows) = FIRST_STATE.split_once('\n').unwrap();
    ::keys::write_private(&folder.join("kek"), kek.as_bytes()).unwrap();
    let mut all = Vec::new();
    for row in rows.lines() {
        let words: Vec<&str> = row.split(' ').collect();
        let value = hex::decode(words[2]).unwrap();
        write(&state(folder), words[0], words[1], Some(&value));
        all.push((words[0].to_owned(), words[1].to_owned(), value));
    }
    all
}

#[test]
fn a_state_of_the_first_version_is_taken_over_once_and_sealed_anew() {
    let folder = tempfile::tempdir().unwrap();
    first_state(folder.path());
    let store = reopen(folder.path()).unwrap();
    let snapshot = store.snapshot();
    let entry = snapshot.by_name(&"old-shop".parse().unwrap()).unwrap();
    assert!(entry.role("maria").is_some());
    drop(store);
    let sealed = rows(&state(folder.path()));
    assert!(sealed.iter().all(|row| !Sealer::is_first_form(&row.2)));
    assert!(sealed.iter().any(|row| row.0 == "manifest"));
    assert_eq!(reopen(folder.path()).unwrap().snapshot().len(), 1);
    // Without its manifest it is no state of the first version.
    for (name, key, _) in sealed.iter().filter(|row| row.0 == "manifest") {
        write(&state(folder.path()), name, key, None);
    }
    assert!(tampered(reopen(folder.path())).contains("manifest was removed"));
}

#[test]
fn a_changed_state_of_the_first_version_is_not_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let rows = first_state(folder.path());
    let (name, key, mut value) = rows[1].clone();
    value[20] ^= 1;
    write(&state(folder.path()), &name, &key, Some(&value));
    assert!(tampered(reopen(folder.path())).contains(&key));
}

#[test]
fn everything_is_sealed_anew_at_once_and_the_old_root_opens_nothing_then() {
    let folder = tempfile::tempdir().unwrap();
    lived(folder.path());
    let root = RootKey::open_or_create(&folder.path().join("kek")).unwrap();
    let store = Store::open(&state(folder.path()), root.sealer("state").unwrap()).unwrap();
    assert_eq!(store.reseal().unwrap(), 0, "all is current");
    let before = root.version();
    let old_kek = fs::read(folder.path().join("kek")).unwrap();
    root.begin_rotation().unwrap();
    // Half way: a value under the new root beside those under the old.
    store.create(draft("shop-three"), OffsetDateTime::now_utc()).unwrap();
    let resealed = store.reseal().unwrap();
    assert!(resealed >= 4, "{resealed}");
    assert_eq!(store.reseal().unwrap(), 0, "once more does nothing");
    root.retire(&std::collections::BTreeSet::new()).unwrap();
    assert_eq!(store.snapshot().len(), 3);
    drop(store);
    assert_eq!(reopen(folder.path()).unwrap().snapshot().len(), 3);
    assert!(root.version() > before);

    ::keys::write_private(&folder.path().join("kek"), &old_kek).unwrap();
    tampered(reopen(folder.path()));
}

#[test]
#[ignore = "a measurement: cargo test --release -p store -- --ignored --nocapture"]
fn measure_one_hundred_thousand_clusters() {
    let folder = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    let store = open(folder.path());
    let count: u32 = std::env::var("CLUSTERS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let began = std::time::Instant::now();
    for number in 0..count {
        store.create(draft(&format!("shop-{number}")), now).unwrap();
    }
    println!("{count} clusters made, each: {:?}", began.elapsed() / count);
    let began = std::time::Instant::now();
    for entry in store.snapshot().iter().take(1_000) {
        let seen = Observation { phase: Phase::Asleep, ..Observation::nothing_yet() };
        store.observe(entry.cluster.id, seen).unwrap();
    }
    println!("an observation: {:?}", began.elapsed() / 1_000);
    drop(store);
    let began = std::time::Instant::now();
    let store = open(folder.path());
    println!("opened: {:?}", began.elapsed());
    assert_eq!(store.snapshot().len(), count as usize);
}

//! What an engine that was taken over leaves in its folders: links, pipes, trees without end. Nothing outside is read, changed,
//! handed over or removed through them, as root and without, and whoever asks is told what is wrong.
#![expect(clippy::unwrap_used, reason = "a test's way to report is to panic")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Folder, Place, cluster, is_root, place, skipped, volume};
use model::{Cluster, Encryption};
use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat};

/// Deeper than a path can say, than descriptors are given out, and than a thread's stack lasts for.
const LEVELS: usize = 5_000;

/// Files of the machine's own that an engine wants to have read, changed or removed.
struct Machine {
    folder: Folder,
    before: Vec<String>,
}

impl Machine {
    fn new() -> Self {
        let folder = common::folder();
        fs::create_dir(folder.path().join("inner")).unwrap();
        for name in ["shadow", "inner/shadow", "pg_control", "5"] {
            fs::write(folder.path().join(name), "a secret of the machine").unwrap();
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        let before = Self::facts(folder.path());
        Self { folder, before }
    }

    fn shadow(&self) -> PathBuf {
        self.folder.path().join("shadow")
    }

    /// Everything that would tell of a change: the time of the last one is the kernel's word.
    fn facts(folder: &Path) -> Vec<String> {
        let places = ["", "inner", "shadow", "inner/shadow", "pg_control", "5"].map(|name| folder.join(name));
        let facts = places.map(|place| {
            let facts = fs::symlink_metadata(&place).unwrap();
            let text = fs::read_to_string(&place).unwrap_or_default();
            format!(
                "{} {} {} {:o} {} {} {text}",
                place.display(),
                facts.uid(),
                facts.gid(),
                facts.mode(),
                facts.ctime(),
                facts.ctime_nsec()
            )
        });
        facts.into()
    }

    #[track_caller]
    fn assert_untouched(&self) {
        assert_eq!(Self::facts(self.folder.path()), self.before);
    }
}

/// A cluster that was made and stopped, and where its files lie.
async fn stopped(number: u32) -> (Place, Cluster, PathBuf) {
    let place = place(Some(Encryption::None)).await;
    let cluster = cluster(number);
    place.host.create(&cluster).await.unwrap();
    place.host.stop(cluster.id).await.unwrap();
    let files = volume(place.folder.path(), &cluster, 0).join("files");
    (place, cluster, files)
}

/// A way to put something at a place.
type Put = Box<dyn Fn(&Path)>;

/// Puts something in the place of what is there.
fn replace(place: &Path, with: impl FnOnce(&Path)) {
    let _ = fs::rename(place, place.with_extension("aside"));
    with(place);
}

/// Takes it away again.
fn put_back(place: &Path) {
    let _ = fs::remove_file(place);
    let _ = fs::remove_dir_all(place);
    let _ = fs::rename(place.with_extension("aside"), place);
}

fn pipe(place: &Path) {
    mknodat(CWD, place, FileType::Fifo, Mode::RWXU, 0).unwrap();
}

/// Folders in folders, as deep as no path can say.
fn dig(folder: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = openat(CWD, folder, flags, Mode::empty()).unwrap();
    for _ in 0..LEVELS {
        mkdirat(&here, "d", Mode::RWXU).unwrap();
        here = openat(&here, "d", flags, Mode::empty()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_the_place_of_what_is_written_at_a_start_are_replaced() {
    let machine = Machine::new();
    let (place, cluster, files) = stopped(231).await;
    for name in ["pg/postgresql.conf", "pg/postgresql.auto.conf", "pg/pg_hba.conf", "pg/pg_ident.conf"] {
        replace(&files.join(name), |place| symlink(machine.shadow(), place).unwrap());
        symlink(machine.shadow(), files.join(format!("{name}.new"))).unwrap();
    }
    for name in ["pg/postmaster.pid", "log/start.log"] {
        replace(&files.join(name), |place| symlink(machine.shadow(), place).unwrap());
    }
    place.host.start(&cluster).await.unwrap();
    machine.assert_untouched();
    place.host.stop(cluster.id).await.unwrap();
    // Neither do folders and pipes in their place keep it from starting.
    for name in ["pg/postgresql.conf", "pg/pg_ident.conf.new", "log/start.log"] {
        replace(&files.join(name), |place| fs::create_dir_all(place.join("in/it")).unwrap());
    }
    replace(&files.join("pg/pg_hba.conf"), pipe);
    place.host.start(&cluster).await.unwrap();
    place.host.shutdown().await;
    machine.assert_untouched();
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_the_place_of_folders_are_refused_and_named() {
    let machine = Machine::new();
    let (place, cluster, files) = stopped(233).await;
    for name in ["pg", "log"] {
        replace(&files.join(name), |place| symlink(machine.folder.path(), place).unwrap());
        let refused = place.host.start(&cluster).await.unwrap_err().to_string();
        assert!(refused.contains(&format!("/files/{name}")) && refused.contains("a link"), "{refused}");
        machine.assert_untouched();
        put_back(&files.join(name));
    }
    place.host.start(&cluster).await.unwrap();
    // While it runs: what tells how far it is, and what a canary is searched in.
    let folder = machine.folder.path().to_owned();
    let shadow = machine.shadow();
    let puts: [(&str, Put); 4] = [
        ("pg/global/pg_control", Box::new(move |place| symlink(&shadow, place).unwrap())),
        ("pg/global", Box::new(move |place| symlink(&folder, place).unwrap())),
        ("pg/global/pg_control", Box::new(pipe)),
        ("pg/global/pg_control", Box::new(|place| fs::create_dir(place).unwrap())),
    ];
    for (name, put) in puts {
        assert!(place.host.checkpoint(cluster.id).is_some());
        replace(&files.join(name), put);
        assert_eq!(place.host.checkpoint(cluster.id), None, "{name}");
        put_back(&files.join(name));
    }
    for target in [Path::new("/proc"), machine.folder.path()] {
        replace(&files.join("pg/base"), |place| symlink(target, place).unwrap());
        let refused = place.host.search(cluster.id, "secret of the machine").await.unwrap_err().to_string();
        put_back(&files.join("pg/base"));
        assert!(refused.contains("pg/base") && refused.contains("a link"), "{refused}");
    }
    machine.assert_untouched();
    place.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_reads_nothing_outside_while_files_and_folders_become_links() {
    let machine = Machine::new();
    let place = place(Some(Encryption::None)).await;
    let cluster = cluster(235);
    place.host.create(&cluster).await.unwrap();
    let files = volume(place.folder.path(), &cluster, 0).join("files");
    let tables = files.join("pg/base/99999");
    fs::create_dir(&tables).unwrap();
    symlink("/proc", tables.join("proc")).unwrap();
    symlink(machine.folder.path(), tables.join("folder")).unwrap();
    pipe(&tables.join("pipe"));
    let _listening = std::os::unix::net::UnixListener::bind(tables.join("socket")).unwrap();
    let ended = AtomicBool::new(false);
    let host = place.host.clone();
    let swaps = std::thread::scope(|threads| {
        let swapping = threads.spawn(|| {
            let (file, folder, aside) = (tables.join("5"), tables.join("inner"), tables.join("aside"));
            let mut swaps = 0_u64;
            while !ended.load(Ordering::Relaxed) {
                let _ = fs::write(&file, "mine");
                let _ = fs::create_dir(&folder);
                let _ = fs::remove_file(&file);
                let _ = symlink(machine.shadow(), &file);
                let _ = fs::rename(&folder, &aside);
                let _ = symlink(machine.folder.path().join("inner"), &folder);
                let _ = fs::remove_file(&file);
                let _ = fs::remove_file(&folder);
                let _ = fs::remove_dir(&aside);
                swaps += 1;
            }
            swaps
        });
        tokio::task::block_in_place(|| {
            for _ in 0..40 {
                let searching = host.search(cluster.id, "secret of the machine");
                // What changes under it may end a search, with a word about it; it finds nothing.
                if let Ok(found) = tokio::runtime::Handle::current().block_on(searching) {
                    assert_eq!((found.hits, found.hits_in_plaintext), (0, 0), "{found:?}");
                }
            }
        });
        ended.store(true, Ordering::Relaxed);
        swapping.join().unwrap()
    });
    assert!(swaps > 40, "nothing was swapped");
    machine.assert_untouched();
    place.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_a_tree_without_end_and_links_everywhere_is_removed_and_nothing_else() {
    let machine = Machine::new();
    let place = place(Some(Encryption::None)).await;
    let cluster = cluster(237);
    place.host.create(&cluster).await.unwrap();
    let files = volume(place.folder.path(), &cluster, 0).join("files");
    let run = place.folder.path().join("run").join(cluster.routing_id.to_string());
    for folder in [files.clone(), files.join("pg"), files.join("pg/base"), run.clone()] {
        symlink(machine.folder.path(), folder.join("folder")).unwrap();
        symlink(machine.shadow(), folder.join("file")).unwrap();
        // Only where both lie on one file system, which no sandbox lets an engine do.
        let _ = fs::hard_link(machine.folder.path().join("5"), folder.join("second-name"));
        pipe(&folder.join("pipe"));
        dig(&folder);
    }
    if !is_root() {
        fs::create_dir_all(files.join("closed/inner")).unwrap();
        fs::set_permissions(files.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    }
    // A file's link count changes with a second name, and nothing else does.
    let machine_now = Machine::facts(machine.folder.path());
    let refused = place.host.search(cluster.id, "x").await.unwrap_err().to_string();
    assert!(refused.contains("nested too deeply"), "{refused}");
    // A run folder is made anew at each start.
    place.host.stop(cluster.id).await.unwrap();
    place.host.start(&cluster).await.unwrap();
    assert!(!run.join("d").exists() && !run.join("folder").exists());
    place.host.destroy(&cluster).await.unwrap();
    assert!(!volume(place.folder.path(), &cluster, 0).exists() && !run.exists());
    let without_times = |facts: Vec<String>| -> Vec<String> {
        facts.into_iter().filter(|fact| !fact.contains("/5 ")).collect()
    };
    assert_eq!(without_times(Machine::facts(machine.folder.path())), without_times(machine_now));
    assert_eq!(fs::read_to_string(machine.folder.path().join("5")).unwrap(), "a secret of the machine");
    place.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_chitin_left_of_an_engine_s_folders_is_removed_and_nothing_else() {
    let machine = Machine::new();
    let folder = common::folder();
    let (left, half_made) = (folder.path().join("run/7"), folder.path().join("clusters"));
    let half_made = half_made.join(model::ClusterId::random().to_string()).join("files/pg");
    for place in [&left, &half_made] {
        fs::create_dir_all(place).unwrap();
        symlink(machine.folder.path(), place.join("folder")).unwrap();
        dig(place);
    }
    // The wrapped key of one that was never complete is overwritten, and no file of the machine's.
    symlink(machine.shadow(), half_made.parent().unwrap().parent().unwrap().join("key.json")).unwrap();
    let host = common::open(folder.path(), Some(Encryption::None)).await.unwrap();
    assert!(!left.exists() && !half_made.exists());
    machine.assert_untouched();
    host.shutdown().await;
}

#[test]
fn without_root_links_lead_nowhere_either() {
    if !is_root() {
        return skipped("this is no root, so every other test shows it");
    }
    common::pass_as_nobody(&["--skip", "without_root_links_lead_nowhere_either"], 5);
}

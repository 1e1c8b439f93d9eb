//! Copies of trees: what is kept, what is noticed, and what an engine that was taken over cannot do with them.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use super::*;

struct Trees {
    from: tempfile::TempDir,
    to: tempfile::TempDir,
    looks: Looks,
}

impl Trees {
    fn new() -> Self {
        let [from, to] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("pg/pg_tblspc")).unwrap();
        Self { from, to, looks: Looks::default() }
    }

    fn pass(&mut self) -> Result<Passed, Stopped> {
        let (progress, is_given_up) = (Progress::default(), AtomicBool::new(false));
        pass(self.from.path(), self.to.path(), &mut self.looks, &progress, &is_given_up)
    }

    fn from(&self, name: &str) -> PathBuf {
        self.from.path().join(name)
    }

    fn to(&self, name: &str) -> PathBuf {
        self.to.path().join(name)
    }

    /// Makes a file look as if it had last been written long ago.
    fn written_long_ago(&self, name: &str) {
        let file = fs::File::options().write(true).open(self.from(name)).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    }
}

fn names_of(passed: &Passed) -> Vec<String> {
    let mut names: Vec<String> = passed.written.iter().map(|path| path.display().to_string()).collect();
    names.sort();
    names
}

#[test]
fn a_second_pass_writes_what_changed_and_removes_what_is_gone() {
    let mut trees = Trees::new();
    for name in ["pg/same", "pg/longer", "pg/other", "pg/gone"] {
        fs::write(trees.from(name), name).unwrap();
        trees.written_long_ago(name);
    }
    // The change of the times is a change too, and a fresh one.
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    assert_eq!(names_of(&trees.pass().unwrap()).len(), 4);
    assert!(trees.pass().unwrap().written.is_empty(), "nothing changed");
    fs::write(trees.from("pg/longer"), "much longer").unwrap();
    // As long as before, with the old times put back: the change time tells.
    fs::write(trees.from("pg/other"), "PG/OTHER").unwrap();
    trees.written_long_ago("pg/other");
    fs::remove_file(trees.from("pg/gone")).unwrap();
    fs::create_dir(trees.from("pg/new")).unwrap();
    let passed = trees.pass().unwrap();
    assert_eq!(names_of(&passed), ["pg/longer", "pg/other"]);
    assert_eq!(fs::read(trees.to("pg/other")).unwrap(), b"PG/OTHER");
    assert!(!trees.to("pg/gone").exists() && trees.to("pg/new").is_dir());
    compare(trees.from.path(), trees.to.path(), &passed.written).unwrap();
}

#[test]
fn a_file_that_was_just_written_is_copied_again() {
    let mut trees = Trees::new();
    fs::write(trees.from("pg/hot"), "one").unwrap();
    trees.pass().unwrap();
    assert_eq!(
        names_of(&trees.pass().unwrap()),
        ["pg/hot"],
        "it could have changed without looking different"
    );
}

#[test]
fn a_file_that_is_missing_in_the_copy_is_copied_whatever_is_remembered() {
    let mut trees = Trees::new();
    fs::write(trees.from("pg/a"), "a").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    trees.pass().unwrap();
    fs::remove_file(trees.to("pg/a")).unwrap();
    trees.pass().unwrap();
    assert_eq!(fs::read(trees.to("pg/a")).unwrap(), b"a");
}

#[test]
fn modes_times_owners_links_and_holes_are_kept() {
    let mut trees = Trees::new();
    let sparse = fs::File::create(trees.from("pg/sparse")).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    sparse.write_all_at(b"end", 64 << 20).unwrap();
    sparse.set_len(96 << 20).unwrap();
    drop(sparse);
    fs::set_permissions(trees.from("pg/sparse"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(trees.from("pg"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("/volume/spaces/one", trees.from("pg/pg_tblspc/16400")).unwrap();
    if is_root() {
        std::os::unix::fs::chown(trees.from("pg/sparse"), Some(1_900_000_007), Some(1_900_000_007)).unwrap();
    }
    trees.written_long_ago("pg/sparse");
    let passed = trees.pass().unwrap();
    let facts = |path: PathBuf| {
        let facts = fs::symlink_metadata(path).unwrap();
        (facts.len(), facts.mode(), facts.uid(), facts.gid(), facts.mtime())
    };
    assert_eq!(facts(trees.from("pg/sparse")), facts(trees.to("pg/sparse")));
    assert_eq!(facts(trees.from("pg")).1, facts(trees.to("pg")).1);
    assert!(fs::metadata(trees.to("pg/sparse")).unwrap().blocks() * 512 < 4 << 20, "holes stay holes");
    assert_eq!(fs::read(trees.from("pg/sparse")).unwrap(), fs::read(trees.to("pg/sparse")).unwrap());
    assert_eq!(fs::read_link(trees.to("pg/pg_tblspc/16400")).unwrap(), Path::new("/volume/spaces/one"));
    compare(trees.from.path(), trees.to.path(), &passed.written).unwrap();
}

#[test]
fn links_of_an_engine_that_was_taken_over_are_not_followed() {
    let mut trees = Trees::new();
    let machine = tempfile::tempdir().unwrap();
    fs::write(machine.path().join("shadow"), "secret of the machine").unwrap();
    symlink(machine.path().join("shadow"), trees.from("pg/file")).unwrap();
    symlink(machine.path(), trees.from("pg/folder")).unwrap();
    trees.pass().unwrap();
    for name in ["pg/file", "pg/folder"] {
        assert!(fs::symlink_metadata(trees.to(name)).unwrap().is_symlink(), "{name}");
    }
    // A file becomes a link between two passes, and a link a folder: nothing is written through it.
    fs::remove_file(trees.from("pg/folder")).unwrap();
    fs::create_dir(trees.from("pg/folder")).unwrap();
    fs::write(trees.from("pg/folder/shadow"), "overwritten").unwrap();
    fs::remove_file(trees.from("pg/file")).unwrap();
    fs::write(trees.from("pg/file"), "overwritten").unwrap();
    let passed = trees.pass();
    assert_eq!(fs::read(machine.path().join("shadow")).unwrap(), b"secret of the machine");
    passed.unwrap();
    assert_eq!(fs::read(trees.to("pg/file")).unwrap(), b"overwritten");
    assert_eq!(fs::read(trees.to("pg/folder/shadow")).unwrap(), b"overwritten");
}

#[test]
fn a_tablespace_outside_of_the_volume_is_refused_by_name() {
    for target in ["/mnt/fast", "/volume/../etc", "relative"] {
        let mut trees = Trees::new();
        symlink(target, trees.from("pg/pg_tblspc/16400")).unwrap();
        let Err(Stopped::Failed(refused)) = trees.pass() else {
            panic!("{target} was copied");
        };
        let text = refused.to_string();
        assert!(text.contains(target) && text.contains("SET TABLESPACE"), "{text}");
    }
}

#[test]
fn sockets_pipes_and_temporary_files_are_left_out() {
    let mut trees = Trees::new();
    let _socket = std::os::unix::net::UnixListener::bind(trees.from("pg/socket")).unwrap();
    // Whoever opened this to read would wait for ever.
    rustix::fs::mknodat(rustix::fs::CWD, trees.from("pg/pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    fs::create_dir_all(trees.from("pg/base/pgsql_tmp")).unwrap();
    fs::write(trees.from("pg/base/pgsql_tmp/pgsql_tmp1.0"), "a sort").unwrap();
    let passed = trees.pass().unwrap();
    assert!(passed.written.is_empty());
    assert!(!trees.to("pg/pipe").exists() && !trees.to("pg/socket").exists());
    assert!(!trees.to("pg/base/pgsql_tmp").exists());
    compare(trees.from.path(), trees.to.path(), &passed.written).unwrap();
}

#[test]
fn a_copy_that_is_not_one_is_noticed() {
    type Harm = fn(&Trees);
    let harms: [(&str, Harm); 5] = [
        ("its bytes", |trees| fs::write(trees.to("pg/a"), "b").unwrap()),
        ("its length", |trees| fs::write(trees.to("pg/a"), "aa").unwrap()),
        ("one of them only", |trees| fs::write(trees.to("pg/more"), "x").unwrap()),
        ("one of them only", |trees| fs::remove_file(trees.to("pg/a")).unwrap()),
        ("mode", |trees| fs::set_permissions(trees.to("pg/a"), fs::Permissions::from_mode(0o666)).unwrap()),
    ];
    for (how, harm) in harms {
        let mut trees = Trees::new();
        fs::write(trees.from("pg/a"), "a").unwrap();
        let passed = trees.pass().unwrap();
        harm(&trees);
        let text = compare(trees.from.path(), trees.to.path(), &passed.written).unwrap_err().to_string();
        assert!(text.contains(how), "{how}: {text}");
    }
}

#[test]
fn a_copy_that_is_given_up_ends_at_once() {
    let trees = Trees::new();
    fs::write(trees.from("pg/a"), "a").unwrap();
    let ended = pass(
        trees.from.path(),
        trees.to.path(),
        &mut Looks::default(),
        &Progress::default(),
        &AtomicBool::new(true),
    );
    assert!(matches!(ended, Err(Stopped::GivenUp)));
    assert!(!trees.to("pg/a").exists());
}

#[test]
fn folders_without_end_are_refused_and_measured_in_an_end() {
    let mut trees = Trees::new();
    fs::create_dir_all(trees.from("pg").join("d/".repeat(DEPTH_MAX + 10))).unwrap();
    assert!(used_bytes(&Inside::at(trees.from.path()).unwrap()).is_ok());
    let Err(Stopped::Failed(refused)) = trees.pass() else {
        panic!("it was copied");
    };
    assert!(refused.to_string().contains("nested too deeply"), "{refused}");
}

#[test]
fn what_becomes_a_link_while_it_is_copied_and_compared_brings_nothing_of_the_machine() {
    let mut trees = Trees::new();
    let machine = tempfile::tempdir().unwrap();
    fs::create_dir(machine.path().join("folder")).unwrap();
    for name in ["file", "folder/file"] {
        fs::write(machine.path().join(name), "secret of the machine").unwrap();
    }
    let (from, ended) = (trees.from("pg"), AtomicBool::new(false));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                for name in ["file", "folder"] {
                    let _ = fs::rename(from.join(name), from.join("aside"));
                    let _ = symlink(machine.path().join(name), from.join(name));
                    let _ = fs::remove_file(from.join(name));
                    let _ = fs::rename(from.join("aside"), from.join(name));
                }
                let _ = fs::create_dir(from.join("folder"));
                let _ = fs::write(from.join("folder/file"), "mine");
                let _ = fs::write(from.join("file"), "mine");
            }
        });
        for _ in 0..300 {
            if let Ok(passed) = trees.pass() {
                let _ = compare(trees.from.path(), trees.to.path(), &passed.written);
            }
            for place in ["pg/file", "pg/folder/file", "pg/aside", "pg/aside/file"] {
                let copy = trees.to(place);
                let is_link = fs::symlink_metadata(&copy).is_ok_and(|facts| facts.is_symlink())
                    || fs::symlink_metadata(copy.parent().unwrap()).is_ok_and(|facts| facts.is_symlink());
                let text =
                    if is_link { String::new() } else { fs::read_to_string(&copy).unwrap_or_default() };
                assert!(!text.contains("secret"), "{place} holds a file of the machine's");
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
    for name in ["file", "folder/file"] {
        assert_eq!(fs::read_to_string(machine.path().join(name)).unwrap(), "secret of the machine");
    }
}

//! What is found, what is not used, and why.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::installations::Installations;
use super::*;

/// Without a sandbox: for tests that have none.
fn plainly(one: &Postgres, program: &'static str, arguments: &[&str]) -> Result<String, Error> {
    let mut command = Command::new(one.bin.join(program));
    let failed = |cause: std::io::Error| Error::Program { program, reason: cause.to_string() };
    let said = command.args(arguments).env_clear().output().map_err(failed)?;
    Ok(String::from_utf8(said.stdout).unwrap())
}

/// The machine's own.
pub(crate) fn of_machine() -> Postgres {
    let all = Installations::look(&[], None, Box::new(plainly)).unwrap();
    (*all.default().unwrap()).clone()
}

fn pretend(version: &'static str) -> Box<Ask> {
    Box::new(move |_, _, _| Ok(format!("postgres (PostgreSQL) {version}\n")))
}

/// A folder that looks like an installation.
fn install(prefix: &Path) {
    for folder in ["", "bin", "lib", "lib/postgresql", "share", "share/postgresql"] {
        std::fs::create_dir_all(prefix.join(folder)).unwrap();
        set_mode(&prefix.join(folder), 0o755);
    }
    for file in ["bin/postgres", "bin/initdb", "lib/postgresql/plpgsql.so", "share/postgresql/postgres.bki"] {
        std::fs::write(prefix.join(file), "").unwrap();
        set_mode(&prefix.join(file), 0o644);
    }
}

/// Whatever the umask is.
fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let prefix = scratch.path().canonicalize().unwrap().join("pg");
    install(&prefix);
    (scratch, prefix)
}

fn looked(prefix: &Path, ask: Box<Ask>) -> Result<Installations, Error> {
    Installations::look_in((&[prefix.to_owned()], Vec::new), None, ask)
}

/// Why it is not used.
fn refusal(prefix: &Path, version: &'static str) -> String {
    looked(prefix, pretend(version)).err().unwrap().to_string()
}

#[test]
fn versions_are_read_from_what_postgres_says() {
    let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)";
    assert_eq!(parse_version(debian).as_deref(), Some("15.18"));
    assert_eq!(parse_version("postgres (PostgreSQL) 18beta1").as_deref(), Some("18beta1"));
    assert_eq!(parse_version("something else"), None);
}

#[test]
fn the_machine_s_own_is_found_and_a_wrong_folder_is_said() {
    let found = of_machine();
    assert!(MAJOR_VERSIONS.contains(&found.major));
    assert!(found.share.join("postgres.bki").is_file(), "{found:?}");
    let all = Installations::look(&["/nowhere".into()], None, Box::new(plainly)).unwrap();
    assert!(
        all.unusable().iter().any(|one| one.starts_with("/nowhere: no PostgreSQL")),
        "{:?}",
        all.unusable()
    );
    // The clusters of other versions go on where that of new ones is not there.
    let all = Installations::look(&[], Some(9), Box::new(plainly)).unwrap();
    let missing = all.default().unwrap_err().to_string();
    assert!(missing.contains("PostgreSQL 9") && missing.contains(&found.version), "{missing}");
    assert_eq!(all.of(found.major).unwrap().version, found.version);
}

#[test]
fn an_installation_in_a_folder_of_its_own_is_found_by_every_name_of_it() {
    let (scratch, prefix) = place();
    for named in [prefix.clone(), prefix.join("bin"), scratch.path().to_owned()] {
        let all = looked(&named, pretend("17.3")).unwrap();
        let one = all.of(17).unwrap();
        assert_eq!((one.version.as_str(), &one.bin), ("17.3", &prefix.join("bin")));
        let own = [prefix.join("share/postgresql"), prefix.join("lib")];
        assert_eq!(one.folders(), own, "its loadable libraries lie below its own");
        assert!(!one.can_copy());
    }
    let old = refusal(&prefix, "13.1");
    assert!(old.contains("it is PostgreSQL 13.1, and 14 to 18 are supported"), "{old}");
    let unfinished = refusal(&prefix, "18beta1");
    assert!(unfinished.contains("no later version may be able to read"), "{unfinished}");
}

#[test]
fn where_its_files_are_is_asked_only_if_they_are_nowhere_else() {
    let (_scratch, prefix) = place();
    std::fs::rename(prefix.join("share/postgresql"), prefix.join("share/elsewhere")).unwrap();
    let says = |place: PathBuf| -> Box<Ask> {
        Box::new(move |one, program, arguments| match (program, arguments) {
            ("pg_config", ["--sharedir"]) => {
                assert!(one.folders().iter().all(|folder| !folder.ends_with("bin")), "{one:?}");
                Ok(format!("{}\n", place.display()))
            }
            ("postgres", ["--version"]) => Ok("postgres (PostgreSQL) 17.3\n".to_owned()),
            other => panic!("{other:?}"),
        })
    };
    let found = looked(&prefix, says(prefix.join("share/elsewhere"))).unwrap();
    assert_eq!(found.of(17).unwrap().share, prefix.join("share/elsewhere"));
    for (wrong, why) in [("share", "'share'"), ("/nowhere", "/nowhere"), ("/etc", "no postgres.bki in /etc")]
    {
        let said = looked(&prefix, says(wrong.into())).err().unwrap().to_string();
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn what_others_may_write_to_is_not_used() {
    let (_scratch, prefix) = place();
    let all = looked(&prefix, pretend("17.3")).unwrap();
    for (what, mode, good) in [
        ("bin/postgres", 0o775, 0o755),
        ("bin", 0o777, 0o755),
        ("bin/initdb", 0o666, 0o644),
        ("lib/postgresql/plpgsql.so", 0o666, 0o644),
        ("share/postgresql", 0o775, 0o755),
        ("share", 0o775, 0o755),
        ("", 0o775, 0o755),
    ] {
        let path = prefix.join(what);
        set_mode(&path, mode);
        let told = format!("{} may be written to by others: chmod go-w", path.display());
        let said = refusal(&prefix, "17.3");
        assert!(said.contains(&told.replace("pg/ may", "pg may")), "{said}");
        // Also of one that was used before.
        all.look_again();
        assert!(all.all().is_empty(), "{what}");
        let gone = all.of(17).unwrap_err().to_string();
        assert!(gone.contains("not used: ") && gone.contains("chmod go-w"), "{gone}");
        set_mode(&path, good);
        assert_eq!(all.of(17).unwrap().version, "17.3", "{what}");
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(prefix.join("bin/initdb"), Some(4_242), None).unwrap();
        let said = refusal(&prefix, "17.3");
        assert!(said.contains("belongs to user 4242"), "{said}");
    }
}

#[test]
fn what_a_link_leads_to_counts() {
    let (scratch, prefix) = place();
    let elsewhere = scratch.path().canonicalize().unwrap().join("of-another");
    install(&elsewhere);
    for name in ["bin/initdb", "lib", "share/postgresql"] {
        let (own, other) = (prefix.join(name), elsewhere.join(name));
        std::fs::rename(&own, prefix.join("away")).unwrap();
        std::os::unix::fs::symlink(&other, &own).unwrap();
        assert!(looked(&prefix, pretend("17.3")).is_ok(), "{name}");
        // The folder in which it lies is on the way to it.
        set_mode(&elsewhere, 0o777);
        let said = refusal(&prefix, "17.3");
        assert!(said.contains("of-another may be written to by others"), "{name}: {said}");
        set_mode(&elsewhere, 0o755);
        std::fs::remove_file(&own).unwrap();
        std::fs::rename(prefix.join("away"), &own).unwrap();
    }
}

#[test]
fn what_a_sandbox_cannot_have_is_not_used() {
    let scratch = tempfile::tempdir_in("/tmp").unwrap();
    let prefix = scratch.path().canonicalize().unwrap();
    install(&prefix);
    let said = refusal(&prefix, "17.3");
    assert!(said.contains("it is in /tmp, where a sandbox has something else"), "{said}");
}

#[test]
fn an_update_is_seen_when_it_is_next_used_and_so_is_a_removal() {
    let (_scratch, prefix) = place();
    // What it says is what is in the file.
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let ask = move |one: &Postgres, _: &'static str, _: &[&str]| {
        count.fetch_add(1, Ordering::Relaxed);
        let version = std::fs::read_to_string(one.bin.join("postgres")).unwrap();
        Ok(format!("postgres (PostgreSQL) {version}"))
    };
    std::fs::write(prefix.join("bin/postgres"), "16.1").unwrap();
    let all = looked(&prefix, Box::new(ask)).unwrap();
    assert_eq!(all.of(16).unwrap().version, "16.1");
    std::fs::write(prefix.join("bin/postgres"), "16.10").unwrap();
    assert_eq!(all.of(16).unwrap().version, "16.10");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    std::fs::write(prefix.join("bin/postgres"), "13.1").unwrap();
    for _ in 0..3 {
        all.look_again();
    }
    assert_eq!(asked.load(Ordering::Relaxed), 3, "one that cannot be used is asked once, too");
    std::fs::remove_file(prefix.join("bin/postgres")).unwrap();
    let gone = all.of(16).unwrap_err().to_string();
    assert!(gone.contains("postgresql-16") && gone.contains("--postgres"), "{gone}");
}

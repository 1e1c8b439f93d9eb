//! Versions of PostgreSQL side by side: each cluster stays with its own.

use std::path::{Path, PathBuf};

use house::cloud::PATIENCE;
use house::command::eventually;
use house::postgres::{DEFAULT_VERSION, EARLIER, MAJOR_VERSIONS, another, install, shelf};
use house::{Cloud, Cluster, Options};
use tempfile::TempDir;

/// Folders of versions, as `chitin start` is told of them.
struct Shelf(TempDir);

impl Shelf {
    fn new() -> Self {
        Self(shelf())
    }

    fn place(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().expect("a plain path")
    }
}

/// The first value of the first row.
fn ask(one: &Cluster<'_>, sql: &str) -> String {
    one.psql(sql).ok().trim().to_owned()
}

/// What an application that was written for any of them does.
fn use_it(one: &Cluster<'_>) {
    ask(one, "CREATE TABLE kept (id int PRIMARY KEY, what text, made timestamptz DEFAULT now())");
    ask(one, "INSERT INTO kept SELECT n, md5(n::text) FROM generate_series(1, 1000) n");
    assert_eq!(ask(one, "SELECT count(*) FROM kept WHERE what = md5(id::text)"), "1000");
    // Contributed extensions with libraries of their own, time zones, a procedural language, collations of ICU.
    ask(one, "CREATE EXTENSION pgcrypto");
    assert_eq!(ask(one, "SELECT encode(digest('a', 'sha256'), 'hex') LIKE 'ca978112%'"), "t");
    assert_eq!(ask(one, "SELECT count(*) > 300 FROM pg_timezone_names"), "t");
    ask(one, "DO $$ BEGIN PERFORM 1; END $$ LANGUAGE plpgsql");
    assert_eq!(ask(one, "SELECT 'a' < 'B' COLLATE \"en-x-icu\""), "t");
    // Users of its own, and no way to files and programs.
    ask(one, "CREATE ROLE reader LOGIN PASSWORD 'correct-horse-1'");
    ask(one, "GRANT SELECT ON kept TO reader");
    let reader = one.with_user("reader", "correct-horse-1");
    assert_eq!(ask(&reader, "SELECT count(*) FROM kept"), "1000");
    let refused = reader.psql("DELETE FROM kept").refused();
    assert!(refused.contains("permission denied"), "{refused}");
    for sql in [
        "COPY kept TO PROGRAM 'cat'",
        "COPY kept FROM '/etc/passwd'",
        "SELECT pg_read_file('postgresql.conf')",
        "GRANT pg_execute_server_program TO CURRENT_USER",
        "ALTER ROLE CURRENT_USER SUPERUSER",
        "ALTER SYSTEM SET log_min_messages = 'debug1'",
    ] {
        one.psql(sql).refused();
    }
}

pub fn every_version_runs_beside_the_others_and_each_cluster_stays_with_its_own() {
    let shelf = Shelf::new();
    for major in MAJOR_VERSIONS {
        install(&major.to_string(), &shelf.place(&major.to_string()));
    }
    let cloud = Cloud::start(Options::unencrypted(&["--postgres", shelf.path()]));
    let status = cloud.json(["status"]);
    let versions = status["machine"]["postgres"].as_array().expect("a list");
    let majors: Vec<u64> = versions.iter().filter_map(|one| one["major"].as_u64()).collect();
    assert_eq!(majors, [14, 15, 16, 17, 18], "{status}");
    let told = cloud.chitin(["status"]).ok();
    assert!(
        told.lines().any(|line| line.starts_with("engines") && line.contains("(of new clusters)")),
        "{told}"
    );

    let made: Vec<(u32, Cluster<'_>)> = MAJOR_VERSIONS
        .map(|major| (major, cloud.cluster(&format!("of-{major}-shop"), &["--version", &major.to_string()])))
        .collect();
    let newest = cloud.cluster("newest-shop", &[]);
    assert!(ask(&newest, "SHOW server_version").starts_with("18."));
    for (major, one) in &made {
        let version = ask(one, "SHOW server_version");
        assert!(version.starts_with(&format!("{major}.")), "{version}");
        let shown = cloud.chitin(["cluster", "show", &one.name]).ok();
        assert!(shown.contains(&format!("PostgreSQL {version}")), "{shown}");
        use_it(one);
        one.sleep();
    }
    cloud.stop();
    cloud.boot();
    for (major, one) in &made {
        assert!(ask(one, "SHOW server_version").starts_with(&format!("{major}.")));
        assert_eq!(ask(one, "SELECT count(*) FROM kept WHERE what = md5(id::text)"), "1000");
    }
    let refused = cloud.chitin(["cluster", "create", "other-shop", "--version", "13"]).refused();
    assert!(refused.contains("14..=18"), "{refused}");
}

pub fn a_cluster_whose_version_is_gone_says_so_and_comes_back_with_it() {
    let shelf = Shelf::new();
    let gone = another().to_string();
    let place = shelf.place(&gone);
    install(&gone, &place);
    let cloud = Cloud::start(Options::unencrypted(&["--postgres", shelf.path()]));
    let one = cloud.cluster("older-shop", &["--version", &gone]);
    ask(&one, "CREATE TABLE kept AS SELECT 7 AS n");
    cloud.stop();
    std::fs::rename(&place, shelf.place("away")).expect("the same file system");
    hide(&shelf.place("away"));

    cloud.boot();
    // The others go on: only what was made with that version does not.
    let other = cloud.cluster("other-shop", &[]);
    assert!(!ask(&other, "SHOW server_version").starts_with(&format!("{gone}.")));
    eventually("the cluster is broken", PATIENCE, || (one.phase() == "broken").then_some(()));
    let refusal = one.try_sign_in().err().expect("it has no engine");
    assert_eq!(refusal.code, "57P03", "{refusal:?}");
    let alerts = cloud.json(["status"])["alerts"].to_string();
    for told in [alerts, cloud.chitin(["cluster", "show", &one.name]).ok()] {
        assert!(
            told.contains(&format!("PostgreSQL {gone}")) && told.contains("is not installed here"),
            "{told}"
        );
        assert!(
            told.contains(&format!("apt-get install postgresql-{gone}")) && told.contains("--postgres"),
            "{told}"
        );
    }
    assert!(cloud.chitin(["cluster", "list"]).ok().contains("broken"));
    assert!(cloud.chitin(["status"]).ok().contains("1 BROKEN)"));
    let refused = cloud.chitin(["cluster", "create", "third-shop", "--version", &gone]).refused();
    assert!(refused.contains(&format!("PostgreSQL {gone} is not installed here")), "{refused}");

    // Nobody starts Chitin again for it.
    install(&gone, &place);
    eventually("it runs again", PATIENCE, || (one.phase() == "running").then_some(()));
    assert_eq!(ask(&one, "SELECT n FROM kept"), "7");
    cloud.cluster("third-shop", &["--version", &gone]);
}

/// So that nothing finds it.
fn hide(prefix: &Path) {
    std::fs::rename(prefix.join("bin"), prefix.join("hidden")).expect("the same file system");
}

pub fn a_newer_version_that_is_installed_later_is_for_new_clusters_alone() {
    let shelf = Shelf::new();
    install("16", &shelf.place("16"));
    let mut options = Options::unencrypted(&["--postgres", shelf.path()]);
    options.environment.push((DEFAULT_VERSION.to_owned(), "16".to_owned()));
    let cloud = Cloud::start(options);
    let one = cloud.cluster("older-shop", &[]);
    assert!(ask(&one, "SHOW server_version").starts_with("16."));
    ask(&one, "CREATE TABLE kept AS SELECT 7 AS n");
    cloud.stop();
    install("18", &shelf.place("18"));
    cloud.boot_with(&[], &[(DEFAULT_VERSION, "18")]);
    let newer = cloud.cluster("newer-shop", &[]);
    assert!(ask(&newer, "SHOW server_version").starts_with("18."));
    assert!(ask(&one, "SHOW server_version").starts_with("16."));
    assert_eq!(ask(&one, "SELECT n FROM kept"), "7");
}

pub fn a_minor_update_is_told_and_is_taken_at_the_next_start() {
    let shelf = Shelf::new();
    let place = shelf.place("17");
    install(EARLIER, &place);
    let cloud = Cloud::start(Options::unencrypted(&["--postgres", shelf.path()]));
    let one = cloud.cluster("small-shop", &["--version", "17"]);
    let before = ask(&one, "SHOW server_version");
    ask(&one, "CREATE TABLE kept AS SELECT 7 AS n");
    std::fs::rename(&place, shelf.place("away")).expect("the same file system");
    hide(&shelf.place("away"));
    install("17", &place);
    let told = eventually("status tells of it", PATIENCE, || {
        let warnings = cloud.json(["status"])["warnings"].to_string();
        warnings.contains("still with").then_some(warnings)
    });
    assert!(told.contains(&format!("still with {before} run: small-shop")), "{told}");
    assert_eq!(ask(&one, "SHOW server_version"), before, "what runs goes on");
    one.sleep();
    let after = ask(&one, "SHOW server_version");
    assert!(after.starts_with("17.") && after != before, "{before} {after}");
    assert_eq!(ask(&one, "SELECT n FROM kept"), "7");
    let warnings = cloud.json(["status"])["warnings"].to_string();
    assert!(!warnings.contains("still with"), "{warnings}");
}

pub fn a_folder_that_others_may_write_to_is_not_used_and_says_so() {
    let shelf = Shelf::new();
    let version = another().to_string();
    let place = shelf.place(&version);
    install(&version, &place);
    let library = place.join("lib/postgresql/plpgsql.so");
    std::fs::set_permissions(&library, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("a mode");
    let cloud = Cloud::start(Options::unencrypted(&["--postgres", shelf.path()]));
    let refused = cloud.chitin(["cluster", "create", "small-shop", "--version", &version]).refused();
    assert!(refused.contains(&format!("PostgreSQL {version} is not installed here")), "{refused}");
    let told = cloud.chitin(["status"]).ok();
    assert!(
        told.contains("NOT USED") && told.contains("chmod go-w") && told.contains("plpgsql.so"),
        "{told}"
    );
    assert!(cloud.log().contains("chmod go-w"), "{}", cloud.log());
}

//! Passwords: which are taken, from when on they count, and where they never stand.

use std::process::Command;
use std::time::Duration;

use crate::sign_in::cloud;
use house::caller::fresh_address;
use house::cloud::PATIENCE;
use house::command::{eventually, run_with};
use house::machine::assert_within;
use house::{Caller, Cluster};
use serde_json::json;

fn set(one: &Cluster<'_>, user: &str, password: &str) -> house::api::Answer {
    let path = format!("/api/v1/clusters/{}/sql-users/{user}/password", one.id);
    cloud().call("PUT", &path, Some(&json!({ "password": password })))
}

pub fn common_and_guessable_passwords_are_refused() {
    let one = cloud().cluster("passwords-common", &[]);
    one.with_new_user("ottokar");
    // One that is a word of the sentence itself, or of the command's, cannot be told from a repetition.
    let is_repeated = |text: &str, password: &str| {
        password.len() >= 8
            && !["password", "passwords-common"].contains(&password)
            && text.contains(password)
    };
    for (what, password) in [
        ("short", "Xk7-q2"),
        ("the most common", "password"),
        ("common with a digit", "password1"),
        ("a row of keys", "qwertyuiop"),
        ("a row of digits", "1234567890"),
        ("one letter", "aaaaaaaaaaaa"),
        ("the user's name", "ottokar1"),
        ("the user's name twice", "ottokarottokar"),
        ("the cluster's name", "passwords-common"),
        ("a date", "19840101"),
        ("leet", "P@ssw0rd"),
        ("nothing", ""),
    ] {
        let said = set(&one, "ottokar", password);
        assert_eq!(said.status, 400, "{what}: {}", said.text);
        assert!(!is_repeated(&said.text, password), "{what}: the password is repeated: {}", said.text);
        let path = format!("/api/v1/clusters/{}/sql-users", one.id);
        let said = cloud().call("POST", &path, Some(&json!({ "name": "new_one", "password": password })));
        assert_eq!(said.status, 400, "{what}: {}", said.text);
        let mut command =
            cloud().command(["user", "password", "passwords-common", "ottokar", "--password-stdin"]);
        let said =
            run_with(&mut command, format!("{password}\n").as_bytes(), Duration::from_secs(30)).refused();
        assert!(!is_repeated(&said, password), "{said}");
    }
    // Good ones of many kinds, and a long one in good time.
    for password in [
        "vrhelt-7okapi-Kanu",
        "dreizehn Blaumeisen im Regen",
        "Ωmega-Füße-Zürich-93",
        &"kq7Zr-p4Xv".repeat(10),
    ] {
        let begun = std::time::Instant::now();
        set(&one, "ottokar", password).ok();
        assert_within(Duration::from_secs(5), begun, password);
        one.with_user("ottokar", password).welcome(&Caller::with(password));
    }
    assert!(set(&one, "ottokar", &"x7Q-".repeat(1_000)).status >= 400);
}

pub fn generated_passwords_are_good_and_never_the_same() {
    let one = cloud().cluster("passwords-made", &[]);
    let first = cloud().user("passwords-made", "gerda");
    let second = cloud().json(["user", "password", "passwords-made", "gerda"])["password"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(first.len() >= 16 && first != second, "{first} {second}");
    one.with_user("gerda", &second).welcome(&Caller::with(&second));
    assert_eq!(one.with_user("gerda", "").refusal_of("the old one", &Caller::with(&first)).code, "28P01");
}

/// Checks on every way that takes a password that the new one counts and the old one does not.
fn counts_everywhere(one: &Cluster<'_>, user: &str, new: &str, old: &str) {
    let who = one.with_user(user, new);
    for rules in ["", "host all all all scram-sha-256\n", "host all all all password\n"] {
        one.set_rules(rules);
        let wire = who.welcome(&Caller::with(new).from(fresh_address()));
        drop(wire);
        let refusal = who.refusal_of("the old password", &Caller::with(old).from(fresh_address()));
        assert_eq!(refusal.code, "28P01", "{rules}: {refusal:?}");
    }
    one.set_rules("");
}

pub fn t39_a_password_changed_by_sql_is_in_force_also_when_the_cluster_sleeps() {
    let one = cloud().cluster("passwords-sleep", &[]);
    let mut old = one.with_new_user("sleeper").password;
    for (number, new) in ["By-Alter-User-71", "By-Alter-Role-72", "By-A-Verifier-73", "In-A-Transaction-74"]
        .into_iter()
        .enumerate()
    {
        let who = one.with_user("sleeper", &old);
        let mut wire = who.welcome(&Caller::with(&old));
        match number {
            0 => wire.query(&format!("alter user sleeper with password '{new}'")).map(drop),
            1 => wire.query(&format!("alter role sleeper password '{new}'")).map(drop),
            2 => {
                let verifier = house::scram::verifier(new, b"0123456789abcdef", 4_096);
                wire.query(&format!("alter role sleeper password '{verifier}'")).map(drop)
            }
            _ => wire.query(&format!("begin; alter role sleeper password '{new}'; commit")).map(drop),
        }
        .unwrap();
        drop(wire);
        // At once, with the engine awake for the first two, asleep for the others.
        if number >= 2 {
            one.sleep();
            assert_eq!(who.refusal_of("the old one, asleep", &Caller::with(&old)).code, "28P01");
            assert_eq!(one.phase(), "asleep", "a wrong password wakes nobody");
        }
        counts_everywhere(&one, "sleeper", new, &old);
        new.clone_into(&mut old);
    }
    // What was rolled back never counted.
    let who = one.with_user("sleeper", &old);
    who.welcome(&Caller::with(&old))
        .query("begin; alter role sleeper password 'Rolled-Back-75'; rollback")
        .unwrap();
    one.sleep();
    counts_everywhere(&one, "sleeper", &old, "Rolled-Back-75");
    // By the API, and then asleep.
    set(&one, "sleeper", "By-The-Api-Kanu-76").ok();
    one.sleep();
    counts_everywhere(&one, "sleeper", "By-The-Api-Kanu-76", &old);
}

pub fn t39_psqls_own_password_command_works() {
    let one = cloud().cluster("passwords-psql", &[]);
    let who = one.with_new_user("typist");
    // Without a terminal, psql reads the password from its standard input.
    let mut command = Command::new("setsid");
    let psql = who.client("psql", &[]);
    command.args(["-w", "psql", "-X", "-c", "\\password"]);
    command.envs(psql.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let typed = b"Typed-Twice-Okapi-81\nTyped-Twice-Okapi-81\n";
    run_with(&mut command, typed, Duration::from_secs(30)).ok();
    counts_everywhere(&one, "typist", "Typed-Twice-Okapi-81", &who.password);
    one.sleep();
    counts_everywhere(&one, "typist", "Typed-Twice-Okapi-81", &who.password);
}

pub fn a_password_ends_when_it_says_also_while_the_cluster_sleeps() {
    let one = cloud().cluster("passwords-until", &[]);
    let who = one.with_new_user("guest_one");
    let right = || Caller::with(&who.password).from(fresh_address());
    let mut admin = one.welcome(&Caller::with(&one.password));
    let begun = std::time::Instant::now();
    let soon = admin.value("select now() + interval '12 seconds'");
    admin.query(&format!("alter role guest_one valid until '{soon}'")).unwrap();
    drop(admin);
    drop(who.welcome(&right()));
    one.sleep();
    std::thread::sleep(Duration::from_secs(13).saturating_sub(begun.elapsed()));
    let refusal = who.refusal_of("it has ended", &right());
    assert_eq!(refusal.code, "28P01", "{refusal:?}");
    assert!(!refusal.message.contains("expired"), "whoever knows no password learns nothing: {refusal:?}");
    assert_eq!(one.phase(), "asleep");
    one.set_rules("host all all all password\n");
    assert_eq!(who.refusal_of("it has ended", &right()).code, "28P01");
    one.welcome(&Caller::with(&one.password)).query("alter role guest_one valid until 'infinity'").unwrap();
    eventually("it counts again", PATIENCE, || who.enter(&right()).ok());
    // Without a password nobody signs in by one.
    one.welcome(&Caller::with(&one.password)).query("alter role guest_one password null").unwrap();
    eventually("it is gone", PATIENCE, || who.enter(&right()).err());
    assert_eq!(who.refusal_of("an empty one", &Caller::with("")).code, "28P01");
}

pub fn t43_a_password_in_a_statement_stands_in_no_log() {
    let one = cloud().cluster("passwords-log", &[]);
    let mut wire = one.welcome(&Caller::with(&one.password));
    // Right, wrong in many ways, and in every kind of message.
    for sql in [
        "create role logged_a login password 'Logged-Secret-91'",
        "alter role logged_a password 'Logged-Secret-91' and this is no SQL",
        "alter role no_such_role password 'Logged-Secret-91'",
        "create role logged_a login password 'Logged-Secret-91'",
        "do $$ begin execute 'alter role logged_a password ''Logged-Secret-91'''; raise exception 'no'; end $$",
        "set statement_timeout = 50; select pg_sleep(1), 'Logged-Secret-91'",
        "set statement_timeout = 0; select 1 / 0, 'Logged-Secret-91'",
        "set log_statement = 'all'",
        "set log_min_error_statement = 'debug5'",
        "set log_min_duration_statement = 0",
        "alter role logged_a password 'Logged-Secret-91'",
    ] {
        let _ = wire.query(sql);
    }
    for secret in ["Logged-Secret-91", "Clear-Secret-92"] {
        one.set_rules("host all all all password\n");
        let _ = one.with_user("logged_a", "").enter(&Caller::with(secret).from(fresh_address()));
    }
    one.set_rules("");
    set(&one, "logged_a", "Logged-By-Api-Kanu-93").ok();
    set(&one, "logged_a", "password1").refused(400);
    let log = cloud().log();
    for secret in ["Logged-Secret-91", "Clear-Secret-92", "Logged-By-Api-Kanu-93", one.password.as_str()] {
        assert!(!log.contains(secret), "{secret} stands in the log");
    }
    // Nor where the engine itself could show statements to others.
    let shown = wire.query("select pg_current_logfile()").map(|rows| format!("{rows:?}")).unwrap_or_default();
    assert!(!shown.contains("Secret"), "{shown}");
    let other = one.with_new_user("looker");
    let mut looker = other.welcome(&Caller::with(&other.password));
    for table in ["pg_stat_activity", "pg_stat_statements"] {
        let _ = looker.query(&format!("select * from {table}")).map(|rows| {
            let text = format!("{rows:?}");
            assert!(!text.contains("Secret-9"), "{table} shows it");
        });
    }
}

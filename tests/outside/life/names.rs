//! Names that tenants and strangers choose, where the operator and other users of the machine see them.

use std::process::Command;

use house::api::curl;
use house::cloud::PATIENCE;
use house::command::{eventually, run};
use house::shared::cloud;
use house::{Caller, Cloud, Options};

/// Ends a line, looks like fields of a log line, turns the reading direction, and ends a line in another way.
const FORGED: &str = "r2\nchitin  forged";
const FIELDS: &str = "bob from=203.0.113.9 method=cert ok";
const TURNED: &str = "tur\u{202e}ned\u{2028}over";

fn is_shown_plainly(text: &str) -> bool {
    text.chars().all(|c| c == '\n' || !(c.is_control() || "\u{202e}\u{2028}".contains(c)))
}

pub fn a_name_forges_no_row_of_a_table() {
    let one = cloud().cluster("forged-rows", &[]);
    let mut wire = one.sign_in();
    for name in [FORGED, TURNED] {
        wire.query(&format!("create role \"{name}\" login")).unwrap();
    }
    wire.query("create database \"db\n1  forged\"").unwrap();
    let listed = |arguments: [&str; 3]| {
        eventually("the list has the name", PATIENCE, || {
            let text = cloud().chitin(arguments).ok();
            text.contains("forged").then_some(text)
        })
    };
    let users = listed(["user", "list", &one.name]);
    assert!(
        users.contains("r2\\nchitin  forged") && users.contains("tur\\u{202e}ned\\u{2028}over"),
        "{users}"
    );
    assert!(is_shown_plainly(&users) && !users.lines().any(|line| line.starts_with("chitin")), "{users}");
    let databases = listed(["database", "list", &one.name]);
    assert!(databases.contains("db\\n1  forged") && is_shown_plainly(&databases), "{databases}");
    // Programs get the very name, by bytes that steer no terminal.
    let json = run(cloud().command(["user", "list", &one.name]).args(["--output", "json"])).ok();
    assert!(is_shown_plainly(&json) && json.contains("tur\\u202ened\\u2028over"), "{json}");
    let read = cloud().json(["user", "list", &one.name]);
    assert!(read.as_array().expect("a list").iter().any(|user| user["name"] == TURNED), "{read}");

    // A stranger's, at a cloud that counts failures as it does for everybody.
    let mut options = Options::unencrypted(&[]);
    options.environment.push(("CHITIN_THROTTLE_FREE".to_owned(), "1".to_owned()));
    let counting = Cloud::start(options);
    let stranger = |name: &str| one.at(&counting).with_user(name, "wrong");
    let throttle = eventually("the failure is remembered", PATIENCE, || {
        // A line break is in no name that is asked for.
        let refused = stranger(FORGED).refusal_of(FORGED, &Caller::with("wrong"));
        assert!(refused.message.contains("no control characters"), "{refused:?}");
        stranger(TURNED).refusal_of(TURNED, &Caller::with("wrong"));
        let text = counting.chitin(["throttle", "list"]).ok();
        text.contains("ned").then_some(text)
    });
    assert!(throttle.contains("tur\\u{202e}ned\\u{2028}over") && is_shown_plainly(&throttle), "{throttle}");
    assert!(!throttle.contains("r2"), "{throttle}");
}

pub fn a_name_forges_no_field_of_a_log_line() {
    let one = cloud().cluster("forged-fields", &[]);
    let mut wire = one.sign_in();
    for name in [FIELDS, TURNED] {
        let _ = wire.query(&format!("create role \"{name}\" login"));
        wire.query(&format!("alter role \"{name}\" password 'Some-Long-Password-7'")).unwrap();
        let who = one.with_user(name, "Some-Long-Password-7");
        let mut session = eventually("the new role signs in", PATIENCE, || who.try_sign_in().ok());
        assert_eq!(session.value("select 1"), "1");
    }
    let log = cloud().log();
    let signed_in: Vec<&str> = log.lines().filter(|line| line.contains("signed in")).collect();
    let quoted = format!("user=\"{FIELDS}\" from=127.0.0.1 method=");
    assert!(signed_in.iter().any(|line| line.contains(&quoted)), "{signed_in:#?}");
    assert!(!signed_in.iter().any(|line| line.contains("user=bob ")), "{signed_in:#?}");
    assert!(
        signed_in.iter().any(|line| line.contains("user=\"tur\\u{202e}ned\\u{2028}over\"")),
        "{signed_in:#?}"
    );
    assert!(is_shown_plainly(&log), "something steers a terminal");
}

pub fn titles_of_processes_show_no_user_no_database_and_no_statement() {
    let one = cloud().cluster("hidden-titles", &[]);
    let mut wire = one.sign_in();
    wire.query("create role title_canary login password 'Some-Long-Password-7'").unwrap();
    wire.query("create database title_place").unwrap();
    let who = one.with_user("title_canary", "Some-Long-Password-7");
    let mut session = eventually("the new role signs in", PATIENCE, || {
        who.enter(&Caller::with(&who.password).to("title_place")).ok()
    });
    let process = one.process_of(&mut session);
    let maria = one.process_of(&mut wire).command_line();
    assert!(maria.starts_with("postgres: cluster ") && !maria.contains("maria"), "{maria}");
    // What everybody on the machine can read, during a statement and after it.
    let titles = || {
        let mut command = Command::new("sh");
        command
            .args(["-c", "for one in /proc/[0-9]*; do tr '\\0' ' ' < $one/cmdline; echo; done 2>/dev/null"]);
        if rustix::process::geteuid().is_root() {
            let mut stranger = Command::new("setpriv");
            stranger.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
            stranger.arg(command.get_program()).args(command.get_args());
            command = stranger;
        }
        run(&mut command).stdout
    };
    let seen = std::thread::scope(|scope| {
        let busy = scope.spawn(|| session.query("select pg_sleep(2), 'title_statement'").map(drop));
        let mut seen = String::new();
        for _ in 0..8 {
            seen += &titles();
            std::thread::sleep(std::time::Duration::from_millis(250));
        }
        busy.join().expect("a session").unwrap();
        seen + &titles()
    });
    let own = process.command_line();
    assert!(
        own.starts_with("postgres: cluster ") && seen.contains(own.trim()),
        "its own title is found: {own:?}"
    );
    for canary in ["title_canary", "title_place", "title_statement"] {
        let found: Vec<&str> =
            seen.lines().filter(|line| line.contains("postgres:") && line.contains(canary)).collect();
        assert!(found.is_empty(), "{canary}: {found:?}");
    }
    assert_eq!(wire.value("show update_process_title"), "off");
}

pub fn a_rejected_api_key_leaves_a_trace_without_the_key() {
    let before = cloud().log().len();
    let mut command = Command::new("curl");
    command.arg("--cacert").arg(cloud().root_certificate());
    command.args(["-H", "Authorization: Bearer CCDB1_canary0000000000000_canary"]);
    command.arg(cloud().web("/api/v1/clusters"));
    curl(&mut command, None).refused(401);
    // Another test may have been told of a moment ago; then it is counted, and told within ten seconds.
    let line = eventually("the rejection is in the log", PATIENCE, || {
        let log = cloud().log();
        log.get(before..)?.lines().find(|line| line.contains("rejected")).map(str::to_owned)
    });
    assert!(
        line.contains(" audit: ") && (line.contains("from=127.0.0.1") || line.contains("keys=")),
        "{line}"
    );
    assert!(!cloud().log().contains("canary0000000000000"));
}

//! Canaries: what a tenant wrote, and what signs in at key services, stands in plaintext nowhere. And bits that turn.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use house::command::{eventually, run};
use house::key_services::{PIN, set_service};
use house::keys::{SOON, extents, files_below, files_with, is_in};
use house::machine::Process;
use house::{Cloud, Cluster, Options};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::keys::world;

/// Writes texts as a row, and with it into WAL; as a long sort's temporary file; and into the engine's log.
fn write(one: &Cluster<'_>, canaries: &[String; 3]) {
    let [row, temporary, logged] = canaries;
    let mut session = one.sign_in();
    session
        .query(&format!("create table kept as select '{row}'::text x from generate_series(1, 50)"))
        .unwrap();
    session.query(&format!("set work_mem = '64kB'; create table sorted as select '{temporary}' || (g * 7919 % 10007) t from generate_series(1, 60000) g order by 1; drop table sorted")).unwrap();
    session.query(&format!("do $$ begin raise warning '{logged}'; end $$")).unwrap();
    session.query(&format!("select 1/0 as \"{logged}\"")).unwrap_err();
}

fn canaries(turn: &str) -> [String; 3] {
    // Made of parts, so that the test's own binary and its arguments do not hold them.
    ["row", "sort", "log"].map(|place| format!("canary-{place}-{turn}-{}", std::process::id()))
}

fn a_stopped_cloud_shows_nothing(more: &[&str], turn: &str) {
    let mut options = world::options(more);
    options.environment.push(("RUST_LOG".into(), "trace".into()));
    let cloud = Cloud::start(options);
    let one = cloud.cluster("written", &[]);
    let texts = canaries(turn);
    write(&one, &texts);
    one.sleep();
    one.await_rest();
    let status = cloud.json(["status"]).to_string();
    assert_eq!(one.sign_in().value("select count(*) from kept"), "50");
    cloud.stop();
    assert_eq!(files_with(&cloud.data(), &texts), Vec::<String>::new());
    let log = cloud.log();
    for text in &texts {
        assert!(!log.contains(text.as_str()) && !status.contains(text.as_str()), "{text}");
    }
}

pub fn what_a_tenant_wrote_is_in_plaintext_nowhere_on_a_stopped_machine() {
    a_stopped_cloud_shows_nothing(&["--encryption", "fscrypt-image"], "image");
}

pub fn what_a_tenant_wrote_is_in_plaintext_nowhere_with_gocryptfs_either() {
    a_stopped_cloud_shows_nothing(&["--encryption", "gocryptfs"], "fuse");
}

pub fn the_same_search_finds_every_canary_where_nothing_is_encrypted() {
    let cloud = Cloud::start(Options::with(&["--encryption", "none", "--allow-unencrypted"]));
    let one = cloud.cluster("plain-text", &[]);
    let texts = canaries("plain");
    write(&one, &texts);
    one.sleep();
    cloud.stop();
    for text in texts.iter().filter(|text| !text.contains("-sort-")) {
        let found = files_with(&cloud.data(), &[text]);
        assert!(!found.is_empty(), "the search would not find {text}");
    }
}

pub fn t43_what_signs_in_at_key_services_is_in_no_answer_no_log_and_no_file() {
    let bao = world::bao();
    let mut options = world::options(&[]);
    options.environment.push(("RUST_LOG".into(), "trace".into()));
    let cloud = Cloud::start(options);
    bao.make_key("secretive");
    bao.permit("secretive", "secretive");
    let token = bao.token("secretive");
    let credentials = json!({ "token": token });
    let body = json!({ "type": "VAULT_TRANSIT", "address": bao.url(), "credentials": credentials });
    let mut said = set_service(&cloud, "secretive", &body).text;
    said += &set_service(&cloud, "hsm", &world::hsm().service()).text;
    let one = cloud.cluster("secretive", &[]);
    one.enable_key(&bao.key("secretive", "secretive"));
    bao.forbid("secretive");
    one.await_key("REVOKED");
    said += &cloud.call("GET", "/api/v1/chitin/key-services", None).text;
    said += &cloud.call("GET", "/api/v1/chitin/key-services/secretive", None).text;
    said += &one.keys().to_string();
    said += &one.cmek().to_string();
    said += &cloud.json(["status"]).to_string();
    // A changed address is not sent the secret that is kept.
    let elsewhere = json!({ "type": "VAULT_TRANSIT", "address": "http://127.0.0.1:9" });
    said += &set_service(&cloud, "secretive", &elsewhere).refused(400);
    let environment = fs::read(format!("/proc/{}/environ", cloud.pid())).expect("ours");
    let arguments = fs::read(format!("/proc/{}/cmdline", cloud.pid())).expect("ours");
    cloud.stop();
    let kept = fs::read_to_string(cloud.data().join("kek")).expect("the key file");
    let root = kept.split_whitespace().max_by_key(|part| part.len()).expect("a root key").to_owned();
    let log = cloud.log();
    for secret in [token.as_str(), PIN, root.as_str()] {
        assert!(!said.contains(secret), "an answer shows a secret");
        assert!(!log.contains(secret), "the log shows a secret");
        for place in [&environment, &arguments] {
            assert!(!is_in(secret.as_bytes(), place), "the machine shows a secret");
        }
    }
    assert_eq!(files_with(&cloud.data(), &[token, PIN.to_owned()]), Vec::<String>::new());
}

fn status_of(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(field)).expect("the field");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

fn core_limit(process: Process) -> String {
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid)).expect("it runs");
    limits.lines().find(|line| line.starts_with("Max core file size")).expect("the limit").to_owned()
}

pub fn memory_is_in_no_core_file_and_not_in_the_swap() {
    let cloud = world::native();
    let one = cloud.cluster("aborted", &[]);
    let mut session = one.sign_in();
    assert_eq!(session.value("select 1"), "1");
    assert_eq!(status_of(cloud.pid(), "VmSwap"), 0);
    assert!(status_of(cloud.pid(), "VmLck") > 0, "the program's memory is not locked");
    let program = Process::of(cloud.pid()).expect("it runs");
    let engines = one.engine_processes();
    for process in engines.iter().chain([&program]) {
        let limit = core_limit(*process);
        let numbers: Vec<&str> = limit.split_whitespace().skip(4).take(2).collect();
        assert!(numbers.iter().all(|number| ["0", "1"].contains(number)), "{limit}");
    }
    let backend = one.process_of(&mut session);
    let pid = Pid::from_raw(backend.pid.cast_signed()).expect("not zero");
    kill_process(pid, Signal::ABORT).expect("ours");
    eventually("the session ends", SOON, || session.query("select 1").err());
    eventually("the engine recovers", SOON, || one.try_sign_in().ok());
    std::thread::sleep(Duration::from_millis(500));
    let volume_now = eventually("its volume is seen", SOON, || {
        one.engine_processes().iter().find_map(|process| engine_volume(process.pid))
    });
    for path in files_below(&Path::new(&volume_now).join("pg")) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(!name.starts_with("core"), "a core file: {}", path.display());
    }
    let log: String = files_below(&Path::new(&volume_now).join("log"))
        .iter()
        .map(|path| fs::read_to_string(path).unwrap_or_default())
        .collect();
    assert!(log.contains("signal 6"), "the abort is not in the engine's log: {log}");
    assert!(!log.contains("core dumped"), "{log}");
}

/// The volume as a process of the engine sees it.
fn engine_volume(pid: u32) -> Option<String> {
    let path = format!("/proc/{pid}/root/volume");
    Path::new(&path).join("pg").is_dir().then_some(path)
}

pub fn a_state_file_in_which_a_bit_turned_is_refused_and_named() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("turned", &[]);
    one.sign_in().query("create table kept (x int); insert into kept values (42)").unwrap();
    cloud.stop();
    let path = cloud.data().join("state.redb");
    let good = fs::read(&path).expect("the state");
    let used: Vec<usize> = (0..good.len())
        .step_by(4096)
        .filter(|at| {
            let page = &good[*at..(*at + 4096).min(good.len())];
            page.iter().filter(|byte| **byte != 0).count() > 200
        })
        .collect();
    assert!(used.len() > 4, "{} pages of the state are in use", used.len());
    let mut refused = 0;
    for (turn, page) in used.iter().take(10).enumerate() {
        let mut bent = good.clone();
        let within = &good[*page..(*page + 4096).min(good.len())];
        let at = page
            + within
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte != 0)
                .nth(40 + turn * 7)
                .expect("a used page")
                .0;
        bent[at] ^= 1 << (turn % 8);
        fs::write(&path, &bent).expect("ours");
        let starts = {
            let mut command = cloud.program("timeout");
            command.args(["-s", "TERM", "8"]).arg(house::cloud::program());
            command.args(["start", "--data"]).arg(cloud.data());
            command.args([
                "--sql",
                &cloud.sql_address().to_string(),
                "--http",
                &cloud.http_address().to_string(),
            ]);
            run(&mut command)
        };
        // `timeout` ends what starts all the same: a page of an earlier transaction, which nobody reads.
        if starts.status.code() == Some(124) || starts.status.success() {
            continue;
        }
        refused += 1;
        let said = format!("{}{}", starts.stdout, starts.stderr);
        assert!(said.contains("state.redb") || said.contains("table"), "nothing is named: {said}");
    }
    assert!(refused > 0, "no turned bit was noticed");
    fs::write(&path, &good).expect("ours");
    cloud.boot();
    assert_eq!(one.sign_in().value("select x from kept"), "42");
    cloud.stop();
}

fn turned_bits_serve_no_wrong_row(more: &[&str]) {
    let cloud = Cloud::start(world::options(more));
    let one = cloud.cluster("turned", &[]);
    one.sign_in()
        .query("create table kept as select g, md5(g::text) t from generate_series(1, 200000) g")
        .unwrap();
    one.sign_in().query("checkpoint").err();
    cloud.stop();
    let folder = one.volume();
    let files: Vec<_> = ["image", "cipher"].iter().flat_map(|name| files_below(&folder.join(name))).collect();
    let mut count = 0;
    for path in files {
        let file = fs::File::options().write(true).open(&path).expect("ours");
        for (begin, bytes) in extents(&path) {
            let written: Vec<usize> = (0..bytes.len())
                .step_by(4096)
                .filter(|at| bytes[*at..(*at + 4096).min(bytes.len())].iter().any(|byte| *byte != 0))
                .collect();
            // Spread over everything, so that a big table is hit many times.
            for at in written.iter().skip(11).step_by(37) {
                let place = (at + 1234).min(bytes.len() - 1);
                let place_in_file = begin + u64::try_from(place).expect("it fits");
                file.write_all_at(&[bytes[place] ^ 0x10], place_in_file).expect("ours");
                count += 1;
            }
        }
    }
    assert!(count > 50, "only {count} bits were turned");
    cloud.boot();
    let read = one.try_sign_in().and_then(|mut session| {
        session.query("select count(*) from kept where t is distinct from md5(g::text)")
    });
    match read {
        Ok(rows) => panic!("blocks of the table were hit, and it was read all the same: {rows:?}"),
        Err(refusal) => println!("  refused: {} {}", refusal.code, refusal.message),
    }
    // An engine on such a disk may not end as it should, which is not what is looked at here.
    cloud.kill();
}

pub fn bits_that_turned_below_the_encryption_serve_no_wrong_row() {
    turned_bits_serve_no_wrong_row(&["--encryption", "fscrypt-image"]);
}

pub fn bits_that_turned_below_gocryptfs_serve_no_wrong_row() {
    turned_bits_serve_no_wrong_row(&["--encryption", "gocryptfs"]);
}

//! After sign-in: bytes both ways, in step, whatever the client sends.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use house::cloud::PATIENCE;
use house::machine;
use house::shared::{cloud, cluster};
use house::wire::AT_ONCE;
use house::wire::{message, text};

/// Parse, Bind, Describe and Execute of an unnamed statement with text parameters.
fn extended(sql: &str, values: &[&str]) -> Vec<u8> {
    let mut parse = text("");
    parse.extend(text(sql));
    parse.extend([0, 0]);
    let mut bind = [text(""), text("")].concat();
    bind.extend([0, 0]);
    bind.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        bind.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        bind.extend(value.as_bytes());
    }
    bind.extend([0, 0]);
    let mut execute = text("");
    execute.extend([0; 4]);
    [message(b'P', &parse), message(b'B', &bind), message(b'E', &execute)].concat()
}

pub fn a_session_is_exactly_its_user() {
    let mut wire = cluster().sign_in();
    let row = "select session_user || ' ' || current_user || ' ' || current_setting('is_superuser')";
    assert_eq!(wire.value(row), "maria maria off");
    assert_eq!(wire.parameters.get("is_superuser").map(String::as_str), Some("off"));
    assert_eq!(wire.parameters.get("session_authorization").map(String::as_str), Some("maria"));
    assert!(wire.parameters.contains_key("server_version"));
}

pub fn pipelined_statements_answer_in_order() {
    let mut wire = cluster().sign_in();
    let mut batch = Vec::new();
    for number in 0..500 {
        batch.extend(extended("select $1::text", &[&number.to_string()]));
    }
    batch.extend(message(b'S', &[]));
    wire.send_raw(&batch).unwrap();
    let rows = wire.results().unwrap();
    let numbers: Vec<String> = rows.into_iter().map(|row| row[0].clone().unwrap()).collect();
    assert_eq!(numbers, (0..500).map(|number| number.to_string()).collect::<Vec<_>>());
}

pub fn an_error_in_a_pipeline_skips_to_sync_and_no_further() {
    let mut wire = cluster().sign_in();
    let mut batch = extended("select $1::int", &["not a number"]);
    batch.extend(extended("select 'skipped'", &[]));
    batch.extend(message(b'S', &[]));
    batch.extend(extended("select 'after'", &[]));
    batch.extend(message(b'S', &[]));
    wire.send_raw(&batch).unwrap();
    assert_eq!(wire.results().unwrap_err().code, "22P02");
    assert_eq!(wire.results().unwrap(), [[Some("after".to_owned())]]);
}

pub fn rows_of_fifty_megabytes_pass_unchanged() {
    let mut wire = cluster().sign_in();
    let bytes = 50 << 20;
    let rows = wire.query(&format!("select repeat('x', {bytes}), md5(repeat('x', {bytes}))")).unwrap();
    assert_eq!(rows[0][0].as_ref().unwrap().len(), bytes);
    let mut value = "y".repeat(30 << 20);
    value.push('!');
    wire.send_raw(&extended("select length($1) || right($1, 1)", &[&value])).unwrap();
    wire.send(b'S', &[]).unwrap();
    assert_eq!(wire.results().unwrap(), [[Some(format!("{}!", (30 << 20) + 1))]]);
}

pub fn notifications_reach_an_idle_listener() {
    let mut listener = cluster().sign_in();
    listener.query("listen wire_news").unwrap();
    let mut speaker = cluster().sign_in();
    speaker.query("notify wire_news, 'hello'").unwrap();
    let heard = listener.receive().unwrap();
    assert_eq!(heard.tag, b'A');
    assert_eq!(&heard.body[4..], b"wire_news\0hello\0");
}

pub fn notices_and_changed_parameters_pass() {
    let mut wire = cluster().sign_in();
    wire.query("do $$ begin raise notice 'mind the step'; end $$").unwrap();
    assert!(wire.asides.iter().any(|aside| String::from_utf8_lossy(&aside.body).contains("mind the step")));
    wire.query("set application_name = 'renamed'").unwrap();
    assert_eq!(wire.parameters.get("application_name").map(String::as_str), Some("renamed"));
}

pub fn t18_lengths_that_wrap_never_hide_a_message() {
    let mut inner = cluster().sign_in();
    inner.query("create table if not exists t18_hidden (x int)").unwrap();
    let hidden = message(b'Q', &text("insert into t18_hidden values (1)"));
    for length in [0_u32, 1, 3, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_fff0, 0xffff_ffff] {
        let mut wire = cluster().sign_in();
        let mut attack = vec![b'Q'];
        attack.extend(length.to_be_bytes());
        attack.extend(&hidden);
        let _ = wire.send_raw(&attack);
        if length <= 3 || length >= 0x4000_0000 {
            assert!(wire.is_closed_within(AT_ONCE), "length {length:#x} kept the session open");
        }
    }
    assert_eq!(inner.value("select count(*) from t18_hidden"), "0");
}

pub fn t18_a_long_statement_claimed_and_not_sent_costs_no_memory() {
    let before = machine::resident_bytes(cloud().pid());
    let mut wires: Vec<_> = (0..10).map(|_| cluster().sign_in()).collect();
    for wire in &mut wires {
        let mut header = vec![b'Q'];
        header.extend((500_u32 << 20).to_be_bytes());
        wire.send_raw(&header).unwrap();
        wire.send_raw(b"select 1").unwrap();
    }
    std::thread::sleep(Duration::from_millis(500));
    let grown = machine::resident_bytes(cloud().pid()).saturating_sub(before);
    assert!(grown < 24 << 20, "memory grew by {} MiB", grown >> 20);
}

pub fn t19_negative_field_lengths_are_protocol_errors() {
    for length in [-2_i32, -5, i32::MIN] {
        let mut wire = cluster().sign_in();
        let mut parse = text("");
        parse.extend(text("select $1::text"));
        parse.extend([0, 0]);
        let mut bind = [text(""), text("")].concat();
        bind.extend([0, 0, 0, 1]);
        bind.extend(length.to_be_bytes());
        bind.extend([0, 0]);
        let batch = [message(b'P', &parse), message(b'B', &bind), message(b'S', &[])].concat();
        wire.send_raw(&batch).unwrap();
        let refusal = wire.results().unwrap_err();
        assert!(["08P01", "closed"].contains(&refusal.code.as_str()), "{length}: {refusal:?}");
    }
    assert_eq!(cluster().sign_in().value("select 1"), "1");
}

pub fn t24_copy_data_after_a_failed_copy_leaves_the_session_clean() {
    let mut wire = cluster().sign_in();
    wire.query("create temporary table t24 (x int)").unwrap();
    wire.send(b'Q', &text("copy t24 from stdin")).unwrap();
    assert_eq!(wire.expect_message().unwrap().tag, b'G');
    wire.send(b'd', b"not a number\n").unwrap();
    for number in 0..2_000 {
        wire.send(b'd', format!("{number}\n").as_bytes()).unwrap();
    }
    wire.send(b'c', &[]).unwrap();
    assert_eq!(wire.results().unwrap_err().code, "22P02");
    assert_eq!(wire.value("select count(*) from t24"), "0");
    for _ in 0..30 {
        let mut other = cluster().sign_in();
        other.send(b'Q', &text("copy (select generate_series(1, 1000000)) to stdout")).unwrap();
        assert_eq!(other.expect_message().unwrap().tag, b'H');
        // The client leaves in the middle of the copy.
        drop(other);
    }
    assert_eq!(cluster().sign_in().value("select 1"), "1");
}

pub fn copy_in_and_out_is_the_same() {
    let mut wire = cluster().sign_in();
    wire.query("create temporary table copied (x int)").unwrap();
    wire.send(b'Q', &text("copy copied from stdin")).unwrap();
    assert_eq!(wire.expect_message().unwrap().tag, b'G');
    for number in 0..10_000 {
        wire.write_all(&message(b'd', format!("{number}\n").as_bytes())).unwrap();
    }
    wire.send(b'c', &[]).unwrap();
    wire.expect_ready().unwrap();
    wire.send(b'Q', &text("copy copied to stdout")).unwrap();
    let mut copied = Vec::new();
    loop {
        let part = wire.expect_message().unwrap();
        match part.tag {
            b'd' => copied.extend(part.body),
            b'Z' => break,
            _ => {}
        }
    }
    let expected: String = (0..10_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(copied, expected.as_bytes());
}

pub fn a_client_that_does_not_read_costs_bounded_memory() {
    let before = machine::resident_bytes(cloud().pid());
    let mut wires: Vec<_> = (0..5).map(|_| cluster().sign_in()).collect();
    for wire in &mut wires {
        wire.send(b'Q', &text("select repeat('x', 1000) from generate_series(1, 200000)")).unwrap();
    }
    std::thread::sleep(Duration::from_secs(2));
    let grown = machine::resident_bytes(cloud().pid()).saturating_sub(before);
    assert!(grown < 32 << 20, "memory grew by {} MiB for 5 clients that do not read", grown >> 20);
}

pub fn terminate_ends_the_session_in_the_engine_too() {
    let mut watcher = cluster().sign_in();
    let mut wire = cluster().sign_in();
    let process = wire.value("select pg_backend_pid()");
    wire.send(b'X', &[]).unwrap();
    assert!(wire.is_closed_within(AT_ONCE));
    let gone = format!("select count(*) from pg_stat_activity where pid = {process}");
    house::command::eventually("the engine ends the session", PATIENCE, || {
        (watcher.value(&gone) == "0").then_some(())
    });
}

pub fn a_client_that_vanishes_frees_its_session_in_the_engine() {
    let mut watcher = cluster().sign_in();
    let mut wire = cluster().sign_in();
    let process = wire.value("select pg_backend_pid()");
    drop(wire);
    let gone = format!("select count(*) from pg_stat_activity where pid = {process}");
    house::command::eventually("the engine ends the session", PATIENCE, || {
        (watcher.value(&gone) == "0").then_some(())
    });
}

pub fn t23_a_killed_session_ends_at_a_frame_boundary() {
    for round in 0..3 {
        let mut admin = cluster().sign_in();
        let mut wire = cluster().sign_in();
        let process = wire.value("select pg_backend_pid()");
        wire.send(b'Q', &text("select repeat('x', 20000000) from generate_series(1, 100)")).unwrap();
        let mut first = vec![0; 1 << 20];
        wire.read_exact(&mut first[..4096]).unwrap();
        admin.query(&format!("select pg_terminate_backend({process})")).unwrap();
        // Everything that still comes must be whole messages, or end in a torn one with nothing behind it.
        let mut all = first[..4096].to_vec();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            match wire.read(&mut first) {
                Ok(0) | Err(_) => break,
                Ok(count) => all.extend(&first[..count]),
            }
        }
        let mut at = 0;
        while at + 5 <= all.len() {
            let length = u32::from_be_bytes(all[at + 1..at + 5].try_into().unwrap()) as usize;
            assert!(b"TDCZESNA".contains(&all[at]) && length >= 4, "round {round}: not a frame at byte {at}");
            if at + 1 + length > all.len() {
                // A torn row at the very end: a plain close. It must hold nothing but the row's own bytes.
                let torn = &all[at + 5..];
                assert!(!torn.windows(5).any(|part| part == b"FATAL"), "an error inside a torn row");
            }
            at += 1 + length;
        }
    }
}

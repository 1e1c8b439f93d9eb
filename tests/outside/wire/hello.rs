//! Before and around TLS: what may be said first, and what may never be read.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::sync::Arc;
use std::time::{Duration, Instant};

use house::cloud::PATIENCE;
use house::command::eventually;
use house::machine;
use house::scram::{self, Exchange};
use house::shared::{cloud, cluster};
use house::tls;
use house::wire::AT_ONCE;
use house::wire::{GSSENC_REQUEST, PROTOCOL_3_0, SSL_REQUEST, Wire, message, startup, text};

/// Longest that somebody who has not signed in may hold a connection, with room for a busy machine.
const STRANGER_DEADLINE: Duration = Duration::from_secs(20);

fn plaintext_startup() -> Vec<u8> {
    let own = cluster().parameters();
    let all: Vec<(&str, &str)> = own.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    startup(PROTOCOL_3_0, &all)
}

/// Whatever comes back in plaintext may be one error message, never a question for a password or a row.
fn says_no_in_plaintext(wire: &mut Wire) {
    let mut answer = Vec::new();
    let _ = wire.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer[0] == b'E', "answered {:?}", String::from_utf8_lossy(&answer));
}

pub fn plaintext_startup_is_refused() {
    let mut wire = Wire::tcp(cloud().sql_address());
    wire.send_raw(&plaintext_startup()).unwrap();
    let refusal = wire.expect_refusal();
    assert!(["28000", "08004", "08P01"].contains(&refusal.code.as_str()), "{refusal:?}");
    assert!(wire.is_closed_within(AT_ONCE));
}

pub fn t01_a_query_stuffed_behind_ssl_request_is_never_read() {
    let mut inner = cluster().sign_in();
    inner.query("create table if not exists t01_injected (x int)").unwrap();
    let mut attack = SSL_REQUEST.to_vec();
    attack.extend(plaintext_startup());
    attack.extend(message(b'Q', &text("insert into t01_injected values (1)")));
    let mut wire = Wire::tcp(cloud().sql_address());
    wire.send_raw(&attack).unwrap();
    // The door closes: TLS must not begin on a stream that already carries a stranger's plaintext.
    let handshake = wire.ask_then_handshake_after_stuffing();
    assert!(handshake.is_err(), "TLS began behind stuffed bytes");
    assert_eq!(inner.value("select count(*) from t01_injected"), "0");
}

pub fn t01_tls_bytes_in_the_same_segment_as_ssl_request_are_refused() {
    let mut wire = Wire::tcp(cloud().sql_address());
    let mut attack = SSL_REQUEST.to_vec();
    attack.extend(tls::client_hello_1_2());
    wire.send_raw(&attack).unwrap();
    let mut answer = Vec::new();
    let _ = wire.read_to_end(&mut answer);
    assert!(answer.len() <= 1 || answer.get(1) == Some(&21), "the handshake went on: {answer:?}");
}

pub fn t03_gss_encryption_is_declined_and_never_opens_plaintext() {
    let mut wire = Wire::tcp(cloud().sql_address());
    wire.send_raw(&GSSENC_REQUEST).unwrap();
    let mut answer = [0];
    wire.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"N");
    wire.send_raw(&plaintext_startup()).unwrap();
    says_no_in_plaintext(&mut wire);

    let mut wire = Wire::tcp(cloud().sql_address());
    wire.send_raw(&GSSENC_REQUEST).unwrap();
    wire.read_exact(&mut answer).unwrap();
    assert_eq!(wire.ask_for_tls().unwrap(), b'S');
    let _ = wire.send_raw(&plaintext_startup());
    let mut answer = Vec::new();
    let _ = wire.read_to_end(&mut answer);
    // A TLS alert is the only thing that may follow the `S`.
    assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
}

pub fn t03_gss_then_tls_still_works_for_an_honest_client() {
    let mut wire = Wire::tcp(cloud().sql_address());
    wire.send_raw(&GSSENC_REQUEST).unwrap();
    let mut answer = [0];
    wire.read_exact(&mut answer).unwrap();
    assert_eq!(wire.ask_for_tls().unwrap(), b'S');
    wire.handshake(cloud().trust(), "localhost").unwrap();
}

pub fn t04_a_second_ssl_request_is_refused_before_and_inside_tls() {
    let mut wire = Wire::tcp(cloud().sql_address());
    assert_eq!(wire.ask_for_tls().unwrap(), b'S');
    let _ = wire.send_raw(&SSL_REQUEST);
    let mut answer = Vec::new();
    let _ = wire.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer[0] == 21, "a second S was given: {answer:?}");

    let mut wire = cloud().encrypted();
    wire.send_raw(&SSL_REQUEST).unwrap();
    let refusal = wire.expect_refusal();
    assert!(["08P01", "closed"].contains(&refusal.code.as_str()), "{refusal:?}");
}

fn direct(protocols: &[&str]) -> std::io::Result<Wire> {
    let mut wire = Wire::tcp(cloud().sql_address());
    let config = Arc::new(tls::client(&cloud().root_certificate(), protocols));
    wire.handshake(&config, "localhost")?;
    // In TLS 1.3 the client is done first; only what follows tells whether the server agreed.
    wire.send_raw(&plaintext_startup())?;
    let message = wire.receive()?;
    assert_eq!(message.tag, b'R');
    Ok(wire)
}

pub fn t05_direct_tls_needs_the_postgresql_protocol() {
    for wrong in [&[][..], &["http/1.1"], &["h2", "http/1.1"]] {
        let error = direct(wrong).err().unwrap_or_else(|| panic!("direct TLS with {wrong:?} was let in"));
        assert!(error.to_string().contains("NoApplicationProtocol"), "{wrong:?}: {error}");
    }
    for right in [&["postgresql"][..], &["http/1.1", "postgresql"]] {
        let wire = direct(right).unwrap();
        assert_eq!(wire.tls().alpn_protocol(), Some(&b"postgresql"[..]));
    }
}

pub fn direct_tls_signs_in_and_answers() {
    let shared = cluster();
    let mut wire = direct(&["postgresql"]).unwrap();
    scram::prove(&mut wire, &Exchange::bound(&shared.password)).unwrap();
    wire.expect_ready().unwrap();
    assert_eq!(wire.value("select 40 + 2"), "42");
}

pub fn t06_tls_1_2_gets_an_alert() {
    let mut wire = Wire::tcp(cloud().sql_address());
    assert_eq!(wire.ask_for_tls().unwrap(), b'S');
    wire.send_raw(&tls::client_hello_1_2()).unwrap();
    let mut answer = Vec::new();
    let _ = wire.read_to_end(&mut answer);
    // Record type 21 is an alert; 2 is fatal, 70 is protocol_version.
    assert_eq!(
        (answer.first(), answer.get(5), answer.get(6)),
        (Some(&21), Some(&2), Some(&70)),
        "{answer:?}"
    );
}

pub fn t06_early_data_is_never_accepted() {
    let mut config = tls::client(&cloud().root_certificate(), &["postgresql"]);
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    let config = Arc::new(config);
    for _ in 0..2 {
        let mut wire = cloud_socket();
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let mut connection = rustls::ClientConnection::new(config.clone(), name).unwrap();
        assert!(connection.early_data().is_none(), "a ticket allows early data");
        while connection.is_handshaking() {
            connection.complete_io(&mut wire).unwrap();
        }
        connection.writer().write_all(&plaintext_startup()).unwrap();
        connection.complete_io(&mut wire).unwrap();
        assert!(!connection.is_early_data_accepted());
    }
}

fn cloud_socket() -> std::net::TcpStream {
    let stream = std::net::TcpStream::connect(cloud().sql_address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

pub fn the_first_key_exchange_is_the_hybrid_one() {
    let wire = cloud().encrypted();
    let group = wire.tls().negotiated_key_exchange_group().unwrap().name();
    assert_eq!(format!("{group:?}"), "X25519MLKEM768");
}

pub fn t07_close_notify_right_after_client_hello_does_not_spin() {
    let mut wires = Vec::new();
    for _ in 0..20 {
        let mut wire = cloud_socket();
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let mut connection = rustls::ClientConnection::new(cloud().trust().clone(), name).unwrap();
        wire.write_all(&SSL_REQUEST).unwrap();
        let mut answer = [0];
        wire.read_exact(&mut answer).unwrap();
        connection.write_tls(&mut wire).unwrap();
        // An unencrypted warning alert: close_notify.
        wire.write_all(&[21, 3, 3, 0, 2, 1, 0]).unwrap();
        wires.push(wire);
    }
    // What the handshakes themselves cost is over by then.
    std::thread::sleep(Duration::from_secs(1));
    let before = machine::processor_milliseconds(cloud().pid());
    std::thread::sleep(Duration::from_secs(2));
    let used = machine::processor_milliseconds(cloud().pid()) - before;
    // One spinning connection alone would use 2,000 ms here, or its share of a busy machine.
    assert!(used < 400, "{used} ms of processor time for 20 handshakes that were broken off");
}

pub fn t08_a_client_hello_in_one_byte_records_is_no_panic() {
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    let mut connection = rustls::ClientConnection::new(cloud().trust().clone(), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    let mut wire = Wire::tcp(cloud().sql_address());
    assert_eq!(wire.ask_for_tls().unwrap(), b'S');
    for byte in &hello[5..] {
        if wire.send_raw(&tls::record(22, &[*byte])).is_err() {
            break;
        }
    }
    let mut answer = [0];
    let count = wire.read(&mut answer).unwrap_or(0);
    assert!(count == 0 || answer[0] == 21 || answer[0] == 22, "{answer:?}");
    assert_eq!(cluster().sign_in().value("select 1"), "1");
    assert!(!cloud().log().contains("panicked"), "{}", cloud().log_end());
}

pub fn t09_thousands_of_silent_sockets_do_not_keep_others_out() {
    machine::raise_descriptor_limit();
    // Made before the clock runs.
    let one = cluster();
    let address = cloud().sql_address();
    let mut silent: Vec<Wire> = Vec::new();
    for number in 0..2_000_u32 {
        // A third says nothing, a third stops after SSLRequest, a third after half a ClientHello. Each from an
        // address of its own, as in an attack from many places.
        let source = Ipv4Addr::new(127, 1, 0, u8::try_from(number % 250).unwrap() + 1);
        let mut wire = Wire::tcp_from(address, Some(source.into())).unwrap();
        if number % 3 > 0 {
            let _ = wire.send_raw(&SSL_REQUEST);
        }
        if number % 3 == 2 {
            let _ = wire.send_raw(&tls::client_hello_1_2()[..20]);
        }
        silent.push(wire);
    }
    let begun = Instant::now();
    assert_eq!(one.sign_in().value("select 1"), "1");
    machine::assert_within(Duration::from_secs(1), begun, "signing in beside 2,000 silent sockets");
    let until = Instant::now() + STRANGER_DEADLINE;
    for wire in &mut silent {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(200));
        assert!(wire.is_closed_within(left), "a silent socket outlived {STRANGER_DEADLINE:?}");
    }
}

pub fn a_client_that_stops_after_the_handshake_is_dropped() {
    let mut quiet = cloud().encrypted();
    let mut asked = cluster().knock();
    asked.expect_message().unwrap();
    let begun = Instant::now();
    assert!(quiet.is_closed_within(STRANGER_DEADLINE));
    assert!(asked.is_closed_within(STRANGER_DEADLINE.saturating_sub(begun.elapsed())));
}

pub fn t10_aborted_handshakes_leak_nothing() {
    // 2,000 instead of 100,000, to stay within a minute; a leak of one descriptor each would show at once.
    let abort = |count: u32| {
        for number in 0..count {
            let mut wire = Wire::tcp(cloud().sql_address());
            if number % 2 == 0 {
                let _ = wire.ask_for_tls();
                let _ = wire.send_raw(&tls::client_hello_1_2()[..60]);
            }
            let _ = wire.socket().shutdown(Shutdown::Both);
        }
        std::thread::sleep(Duration::from_secs(1));
    };
    abort(500);
    let (memory, descriptors) =
        (machine::resident_bytes(cloud().pid()), machine::open_descriptors(cloud().pid()));
    abort(2_000);
    let grown = machine::resident_bytes(cloud().pid()).saturating_sub(memory);
    assert!(grown < 8 << 20, "memory grew by {} KiB", grown >> 10);
    let open = || machine::open_descriptors(cloud().pid());
    eventually(&format!("descriptors are {descriptors} again, as before"), PATIENCE, || {
        (open() <= descriptors + 20).then_some(())
    });
}

pub fn t16_startup_packets_with_impossible_lengths_are_closed_at_once() {
    for length in [0_u32, 3, 7, 8, 10_001, 0x7fff_ffff, 0xffff_ffff] {
        for is_encrypted in [false, true] {
            let mut wire = if is_encrypted { cloud().encrypted() } else { Wire::tcp(cloud().sql_address()) };
            let mut packet = length.to_be_bytes().to_vec();
            packet.extend(PROTOCOL_3_0.to_be_bytes());
            let _ = wire.send_raw(&packet);
            assert!(wire.is_closed_within(AT_ONCE), "length {length}, in TLS: {is_encrypted}");
        }
    }
}

pub fn t16_messages_before_startup_are_refused() {
    for tag in *b"QPBEXpCdf" {
        let mut wire = cloud().encrypted();
        wire.send(tag, &text("select 1")).unwrap();
        let refusal = wire.expect_refusal();
        assert!(["08P01", "closed"].contains(&refusal.code.as_str()), "{}: {refusal:?}", char::from(tag));
    }
}

pub fn t20_a_cancel_request_that_claims_two_gigabytes_is_closed_at_once() {
    let memory = machine::resident_bytes(cloud().pid());
    let mut wires: Vec<Wire> = (0..20).map(|_| cloud().encrypted()).collect();
    for wire in &mut wires {
        wire.send_raw(&[0x7f, 0xff, 0xff, 0xff, 0x04, 0xd2, 0x16, 0x2e]).unwrap();
    }
    for wire in &mut wires {
        assert!(wire.is_closed_within(AT_ONCE));
    }
    let grown = machine::resident_bytes(cloud().pid()).saturating_sub(memory);
    assert!(grown < 16 << 20, "memory grew by {} KiB", grown >> 10);
}

trait AfterStuffing {
    fn ask_then_handshake_after_stuffing(self) -> std::io::Result<()>;
}

impl AfterStuffing for Wire {
    /// Reads the answer to an SSLRequest that was sent already, and tries to go on with TLS.
    fn ask_then_handshake_after_stuffing(mut self) -> std::io::Result<()> {
        let mut answer = [0];
        self.read_exact(&mut answer)?;
        if answer[0] != b'S' {
            return Err(std::io::Error::other("refused before TLS"));
        }
        self.handshake(cloud().trust(), "localhost")
    }
}

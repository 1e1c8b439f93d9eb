//! Places at the sign-in with a browser: who has only begun takes none, and where somebody has to give way it is the crowd.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use crate::sign_in::browser::{as_person, bare_from, header, stage, waits_from};
use crate::sign_in::cloud;
use house::api::{Answer, curl};
use house::cloud::PATIENCE;
use house::command::eventually;
use house::provider::Provider;

/// Sign-ins that the cloud once had places for.
const PLACES: usize = 10_000;
/// What one address may ask at once.
const BURST: usize = 60;
/// Sessions of one cluster that may wait for people, and those of one address.
const TICKETS: usize = 200;
const TICKETS_OF_AN_ADDRESS: usize = 20;

/// Asks so often for one page in one piece over one connection from this address, and returns how many were led on.
fn led_on(from: IpAddr, path: &str) -> usize {
    let mut wire = cloud().connect(cloud().http_address(), Some(from)).expect("the API listens");
    wire.handshake(cloud().trust(), "localhost").expect("the API speaks TLS 1.3");
    let ask = |more: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
    wire.send_raw((ask("").repeat(BURST - 1) + &ask("Connection: close\r\n")).as_bytes())
        .expect("it is read");
    let mut bytes = Vec::new();
    // The end may be ragged; what was answered is what counts.
    let _ = wire.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).matches("HTTP/1.1 307").count()
}

/// Signs in at the provider, without a browser, and returns where it leads back to.
fn at_provider(provider: &Provider, place: &str, name: &str) -> String {
    let jar = tempfile::NamedTempFile::new().expect("a scratch file");
    let ask = |url: &str, more: &[&str]| -> Answer {
        let mut command = Command::new("curl");
        command.arg("-i").arg("-b").arg(jar.path()).arg("-c").arg(jar.path());
        curl(command.args(more).arg(url), None)
    };
    let form = ["-d", "prompt=login", "-d", &format!("login={name}"), "-d", "password=x"];
    let mut next = place.to_owned();
    for _ in 0..10 {
        let is_form = next.contains("/interaction/");
        let answer = ask(&next, if is_form { &form } else { &[] });
        let onward = header(&answer, "location").unwrap_or_else(|| panic!("{next}: {}", answer.text));
        next = if onward.starts_with('/') { format!("{}{onward}", provider.issuer()) } else { onward };
        if next.starts_with("https://") {
            return next;
        }
    }
    panic!("the provider leads nowhere: {next}");
}

/// The cookie that an answer sets, as a request brings it back.
fn kept(answer: &Answer) -> String {
    let set = header(answer, "set-cookie").expect("a cookie");
    format!("Cookie: {}", set.split(';').next().expect("a value"))
}

pub fn t70_ten_thousand_sign_ins_from_a_person_s_own_network_take_nobody_s_place() {
    let (one, provider) = stage("places-flows");
    let path = format!("/oidc/v1/login?cluster={}&provider=corp", one.handle);
    let neighbour = |last: usize| {
        IpAddr::V4(Ipv4Addr::new(127, 200, 7, u8::try_from(last).expect("one of the network's")))
    };
    let person = neighbour(1);
    let get = |url: &str, more: &[&str]| bare_from(&person.to_string(), "GET", url, more);
    let begun = get(&cloud().web(&path), &[]);
    let (place, cookie) = (header(&begun, "location").expect("the provider"), kept(&begun));
    assert!(cookie.len() < 600, "a sign-in that is under way is kept in a cookie: {cookie}");
    // More than there ever were places, all from the network of the person.
    let flood: usize = (2..=PLACES / BURST + 8).map(|last| led_on(neighbour(last), &path)).sum();
    assert!(flood > PLACES, "{flood} began");
    let back = at_provider(&provider, &place, "maria");
    // The cookie is for this browser, this state, and once.
    let other = kept(&get(&cloud().web(&path), &[]));
    for (what, more) in [("no cookie", &[][..]), ("another sign-in's cookie", &["-H", &other])] {
        assert_eq!(get(&back, more).status, 400, "{what}");
    }
    let arrived = get(&back, &["-H", &cookie]);
    assert_eq!(header(&arrived, "location").as_deref(), Some("/oidc/v1/done/web"), "{}", arrived.text);
    assert_eq!(get(&back, &["-H", &cookie]).status, 400, "a second time");
    // A person who gives up lets nobody in, and one whose provider is another one by now neither.
    let begun = get(&cloud().web(&path), &[]);
    let (place, cookie) = (header(&begun, "location").expect("the provider"), kept(&begun));
    one.set_provider("corp", &provider.settings()).ok();
    let back = at_provider(&provider, &place, "maria");
    assert_eq!(get(&back, &["-H", &cookie]).status, 400);
    // Those that take no place are counted all the same.
    eventually("the log counts them", 2 * PATIENCE, || {
        let log = cloud().log();
        let lines = log.lines().filter(|line| line.contains("people went to identity providers"));
        let begun = lines.filter_map(|line| line.split(" begun=").nth(1)?.split(' ').next());
        let begun: usize = begun.filter_map(|count| count.parse::<usize>().ok()).sum();
        (begun > flood).then_some(())
    });
}

pub fn ten_addresses_do_not_hold_all_places_at_a_cluster() {
    let (one, _provider) = stage("places-tickets");
    let crowd = |number: usize| {
        let last = u8::try_from(number / TICKETS_OF_AN_ADDRESS + 1).expect("ten addresses and more");
        IpAddr::V4(Ipv4Addr::new(127, 201, 7, last))
    };
    let mut waiting: Vec<_> = (0..TICKETS).map(|number| waits_from(&one, crowd(number))).collect();
    // One from elsewhere is let wait, and those of the crowd who come after it push out their own.
    let (mut person, told) = waits_from(&one, [127, 202, 7, 1].into());
    waiting.extend((TICKETS..TICKETS + 40).map(|number| waits_from(&one, crowd(number))));
    as_person(&told, "maria").reads("close this window").at(cloud()).ok();
    person.expect_ready().expect("who came from elsewhere is let in");
    let refusal = waiting[0].0.expect_ready().expect_err("the oldest of the crowd made room");
    assert_eq!(refusal.message, "the sign-in with the browser was given up", "{refusal:?}");
    // It is told once a minute, by whoever looks next.
    eventually("the log counts them", 2 * PATIENCE, || {
        let log = cloud().log();
        let mut lines = log.lines().filter(|line| line.contains("had to begin again"));
        lines.any(|line| line.contains("places-tickets") && line.contains("127.201.7.0/24")).then_some(())
    });
}

//! Tests of asking, keeping and deciding. The responder behind the fetcher is the real `openssl ocsp`.

use std::collections::HashMap;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration as Wait;

use async_trait::async_trait;
use keys::client::{ClientAuthorities, Crls};
use model::{FetchFailure, Fetched};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, CustomExtension, DnType, IsCa,
    KeyPair, KeyUsagePurpose, SerialNumber,
};
use time::Duration;

use super::*;

type Ca = CertifiedIssuer<'static, KeyPair>;

const URL: &str = "http://ocsp.example.org";
const OTHER: &str = "http://other.example.org";

/// How a responder behaves.
#[derive(Clone)]
enum Manner {
    /// As `openssl ocsp` answers, with this authority's name and further arguments.
    Real(&'static str, Vec<&'static str>),
    /// The same bytes again as the last real answer.
    Replay,
    Down,
    Hang,
    Says(u16, &'static str, Vec<u8>),
}

struct World {
    folder: tempfile::TempDir,
    manners: Mutex<HashMap<String, Manner>>,
    asked: Mutex<Vec<String>>,
    last: Mutex<Vec<u8>>,
}

impl World {
    fn new() -> Arc<Self> {
        let (manners, asked, last) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { folder: tempfile::tempdir().unwrap(), manners, asked, last })
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// Writes an authority's files and what it says of the serial numbers: `V` good, `R` revoked.
    fn states(&self, name: &str, ca: &Ca, states: &[(&str, &str)]) {
        self.write(&format!("{name}.pem"), &ca.pem());
        self.write(&format!("{name}.key"), &ca.key().serialize_pem());
        let line = |(serial, state): &(&str, &str)| match *state {
            "R" => format!("R\t400101000000Z\t240102030405Z\t{serial}\tunknown\t/CN=a\n"),
            _ => format!("V\t400101000000Z\t\t{serial}\tunknown\t/CN=a\n"),
        };
        self.write(&format!("{name}.txt"), &states.iter().map(line).collect::<String>());
    }

    fn set(&self, url: &str, manner: Manner) {
        self.manners.lock().unwrap().insert(url.to_owned(), manner);
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn real(&self, name: &str, more: &[&str], request: &[u8]) -> Vec<u8> {
        let path = |what: &str| self.folder.path().join(what);
        let number = self.asked();
        let (question, answer) = (format!("{number}.req"), format!("{number}.resp"));
        std::fs::write(path(&question), request).unwrap();
        let [index, pem, key] = ["txt", "pem", "key"].map(|kind| format!("{name}.{kind}"));
        let output = Command::new("openssl")
            .args(["ocsp", "-index", &index, "-CA", &pem, "-rsigner", &pem, "-rkey", &key])
            .args(["-reqin", &question, "-respout", &answer])
            .args(more)
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(path(&answer)).unwrap()
    }
}

#[async_trait]
impl Fetcher for World {
    async fn fetch(&self, fetch: Fetch) -> Result<Fetched, FetchFailure> {
        self.asked.lock().unwrap().push(fetch.url.clone());
        assert_eq!((fetch.accept, fetch.bytes_max), (ocsp::RESPONSE_KIND, ocsp::RESPONSE_BYTES_MAX));
        let body = fetch.body.unwrap();
        assert_eq!(body.kind, ocsp::REQUEST_KIND);
        let manner = self.manners.lock().unwrap().get(&fetch.url).cloned().unwrap_or(Manner::Down);
        let (status, kind, body) = match manner {
            Manner::Real(name, more) => {
                let answer = self.real(name, &more, &body.bytes.0);
                self.last.lock().unwrap().clone_from(&answer);
                (200, ocsp::RESPONSE_KIND, answer)
            }
            Manner::Replay => (200, ocsp::RESPONSE_KIND, self.last.lock().unwrap().clone()),
            Manner::Down => return Err(FetchFailure::Failed("connection refused at 10.1.2.3".to_owned())),
            Manner::Hang => std::future::pending().await,
            Manner::Says(status, kind, bytes) => (status, kind, bytes),
        };
        tokio::task::yield_now().await;
        Ok(Fetched { status, kind: kind.to_owned(), max_age: None, body })
    }
}

/// A clock that the test sets.
struct SetClock(Mutex<OffsetDateTime>);

impl SetClock {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(OffsetDateTime::now_utc())))
    }

    fn pass(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

impl Clock for SetClock {
    fn now(&self) -> OffsetDateTime {
        *self.0.lock().unwrap()
    }
}

fn ca_params(name: &str, serial: u64, urls: &[&str]) -> CertificateParams {
    let mut params = leaf_params(name, serial, urls);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn leaf_params(name: &str, serial: u64, urls: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(serial));
    if !urls.is_empty() {
        let tlv = |tag: u8, content: &[u8]| {
            let length = u8::try_from(content.len()).unwrap();
            assert!(length < 0x80);
            [&[tag, length], content].concat()
        };
        let oid = [0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01];
        let one = |url: &&str| tlv(0x30, &[&oid, tlv(0x86, url.as_bytes()).as_slice()].concat());
        let all: Vec<u8> = urls.iter().flat_map(one).collect();
        let access = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], tlv(0x30, &all));
        params.custom_extensions = vec![access];
    }
    params
}

fn root(name: &str) -> Ca {
    CertifiedIssuer::self_signed(ca_params(name, 1, &[]), KeyPair::generate().unwrap()).unwrap()
}

fn issue(params: &CertificateParams, by: &Ca) -> Certificate {
    params.signed_by(&KeyPair::generate().unwrap(), by).unwrap()
}

fn verified(root: &Ca, presented: &[&Certificate]) -> Verified {
    let authorities = ClientAuthorities::parse(&root.pem()).unwrap();
    let presented: Vec<_> = presented.iter().map(|certificate| certificate.der().clone()).collect();
    authorities.verify(&presented, &Crls::empty(), OffsetDateTime::now_utc()).unwrap()
}

fn mode(mode: OcspMode) -> Ocsp {
    Ocsp { mode, timeout_ms: 300, ..Ocsp::default() }
}

const LAX: OcspMode = OcspMode::Lax;
const STRICT: OcspMode = OcspMode::Strict;

/// One authority whose client 7 names the responder [`URL`], and a revocation room before it.
struct Room {
    world: Arc<World>,
    clock: Arc<SetClock>,
    revocation: Revocation,
    ca: Ca,
    maria: Verified,
    cluster: ClusterId,
}

impl Room {
    fn new(state: &str) -> Self {
        let (world, clock, ca) = (World::new(), SetClock::new(), root("ours"));
        world.states("ca", &ca, &[("07", state)]);
        world.set(URL, Manner::Real("ca", vec!["-ndays", "1"]));
        let revocation = Revocation::new(world.clone(), clock.clone());
        let maria = verified(&ca, &[&issue(&leaf_params("maria", 7, &[URL]), &ca)]);
        Self { world, clock, revocation, ca, maria, cluster: ClusterId::random() }
    }

    async fn check(&self, ocsp: &Ocsp) -> Result<Passed, Refused> {
        self.revocation.check(self.cluster, &self.maria, ocsp).await
    }

    /// What lax and strict make of a fresh look.
    async fn both(&self) -> (Result<Passed, Refused>, Result<Passed, Refused>) {
        self.clock.pass(Duration::minutes(2));
        let lax = self.check(&mode(LAX)).await;
        self.clock.pass(Duration::minutes(2));
        (lax, self.check(&mode(STRICT)).await)
    }
}

#[tokio::test]
async fn t45_good_passes_and_revoked_is_refused_in_lax_and_strict() {
    let good = Room::new("V");
    let passed = Ok(Passed { warning: None });
    assert_eq!(good.both().await, (passed.clone(), passed.clone()));
    let revoked = Room::new("R");
    assert_eq!(revoked.check(&mode(OcspMode::Off)).await, passed);
    assert_eq!(revoked.world.asked(), 0, "off asks nobody");
    let (lax, strict) = revoked.both().await;
    for refused in [lax.unwrap_err(), strict.unwrap_err()] {
        assert!(refused.is_revoked());
        assert_eq!(refused.to_string(), "OCSP server says cert is revoked");
        assert!(refused.detail().contains("2024-01-02"), "{}", refused.detail());
    }
}

#[tokio::test]
async fn t45_without_an_answer_that_counts_lax_warns_and_strict_refuses() {
    let real = |more: &[&'static str]| Manner::Real("ca", more.to_vec());
    let garbage = Manner::Says(200, ocsp::RESPONSE_KIND, b"garbage".to_vec());
    let html = Manner::Says(200, "text/html", b"<html>".to_vec());
    let redirect = Manner::Says(302, ocsp::RESPONSE_KIND, Vec::new());
    for (manner, detail) in [
        (Manner::Down, "connection refused"),
        (Manner::Hang, "no answer in time"),
        (garbage, "not an OCSP response"),
        (html, "does not answer with application/ocsp-response"),
        (redirect, "HTTP status 302"),
        (Manner::Real("impostor", vec!["-ndays", "1"]), "not signed by the issuer"),
        (real(&["-ndays", "1", "-rmd", "sha1"]), "not signed by the issuer"),
        // The clock of the test is two minutes ahead of the responder's.
        (real(&["-nmin", "1"]), "out of date"),
    ] {
        let room = Room::new("V");
        room.world.states("impostor", &root("ours"), &[("07", "V")]);
        room.world.set(URL, manner);
        let (lax, strict) = room.both().await;
        let warning = lax.unwrap().warning.unwrap();
        assert!(warning.contains(detail), "{warning}");
        let refused = strict.unwrap_err();
        assert!(!refused.is_revoked());
        assert!(refused.to_string().starts_with("OCSP check failed in strict mode"), "{refused}");
        assert!(refused.detail().contains(detail), "{}", refused.detail());
        assert!(!refused.to_string().contains("10.1.2.3"), "what was reached is not for clients");
    }
}

#[tokio::test]
async fn t45_unknown_is_not_good() {
    let room = Room::new("V");
    room.world.states("ca", &room.ca, &[("08", "V")]);
    let (lax, strict) = room.both().await;
    assert!(lax.unwrap().warning.unwrap().contains("does not know"));
    assert!(strict.unwrap_err().to_string().contains("does not know"));
}

#[tokio::test]
async fn t45_strict_is_closed_also_without_a_responder() {
    let mut room = Room::new("V");
    room.maria = verified(&room.ca, &[&issue(&leaf_params("maria", 7, &[]), &room.ca)]);
    assert!(room.check(&mode(LAX)).await.unwrap().warning.unwrap().contains("no OCSP responder"));
    assert!(room.check(&mode(STRICT)).await.unwrap_err().to_string().contains("names no responder"));
    let accepted = Ocsp { accept_without_responder: true, ..mode(STRICT) };
    assert_eq!(room.check(&accepted).await, Ok(Passed { warning: None }));
    assert_eq!(room.world.asked(), 0);
    // The cluster's own responder is asked instead; that it is silent is not "no responder".
    let set = Ocsp { responder: Some(OTHER.to_owned()), ..accepted };
    assert!(room.check(&set).await.is_err());
    room.world.set(OTHER, Manner::Real("ca", vec!["-ndays", "1"]));
    room.clock.pass(Duration::seconds(6));
    assert_eq!(room.check(&set).await, Ok(Passed { warning: None }));
    assert_eq!(*room.world.asked.lock().unwrap(), [OTHER, OTHER]);
}

#[tokio::test]
async fn t45_every_certificate_of_the_chain_but_the_root_is_asked_about() {
    let (world, clock, top) = (World::new(), SetClock::new(), root("top"));
    let params = ca_params("middle", 5, &[OTHER]);
    let middle = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &top).unwrap();
    let leaf = issue(&leaf_params("maria", 7, &[URL]), &middle);
    let maria = verified(&top, &[&leaf, middle.as_ref()]);
    world.states("top", &top, &[("05", "V")]);
    world.states("middle", &middle, &[("07", "V")]);
    world.set(OTHER, Manner::Real("top", vec!["-ndays", "1"]));
    world.set(URL, Manner::Real("middle", vec!["-ndays", "1"]));
    let revocation = Revocation::new(world.clone(), clock.clone());
    let cluster = ClusterId::random();
    assert!(revocation.check(cluster, &maria, &mode(STRICT)).await.is_ok());
    assert_eq!(world.asked(), 2);
    world.states("top", &top, &[("05", "R")]);
    clock.pass(Duration::minutes(2));
    // The intermediate one is revoked; that the other hangs is not waited for.
    world.set(URL, Manner::Hang);
    let slow = Ocsp { timeout_ms: 60_000, ..mode(LAX) };
    // From here on time passes when everybody waits, and by as much as they wait for.
    tokio::time::pause();
    let began = Instant::now();
    assert!(revocation.check(cluster, &maria, &slow).await.unwrap_err().is_revoked());
    assert!(began.elapsed() < Wait::from_secs(60));
}

#[tokio::test]
async fn several_responders_are_asked_in_their_order_and_all_within_the_time() {
    let mut room = Room::new("V");
    room.maria = verified(&room.ca, &[&issue(&leaf_params("maria", 7, &[OTHER, URL]), &room.ca)]);
    for first in [Manner::Down, Manner::Hang] {
        room.world.set(OTHER, first);
        room.clock.pass(Duration::minutes(2));
        let ocsp = Ocsp { timeout_ms: 2_000, ..mode(STRICT) };
        assert_eq!(room.check(&ocsp).await, Ok(Passed { warning: None }));
    }
    assert_eq!(*room.world.asked.lock().unwrap(), [OTHER, URL, OTHER, URL]);
    room.world.set(URL, Manner::Hang);
    room.world.set(OTHER, Manner::Hang);
    let room = Room { revocation: Revocation::new(room.world.clone(), room.clock.clone()), ..room };
    // From here on time passes when everybody waits, and by as much as they wait for.
    tokio::time::pause();
    let began = Instant::now();
    assert!(room.check(&mode(STRICT)).await.is_err());
    assert!(began.elapsed() < Wait::from_millis(600), "300 ms are for all of them together");
}

#[tokio::test]
async fn answers_are_kept_and_a_responder_that_falls_silent_is_bridged_while_they_are_valid() {
    let room = Room::new("V");
    for _ in 0..3 {
        assert!(room.check(&mode(STRICT)).await.is_ok());
    }
    assert_eq!(room.world.asked(), 1);
    room.world.set(URL, Manner::Down);
    room.clock.pass(Duration::hours(23));
    assert!(room.check(&mode(STRICT)).await.is_ok());
    assert_eq!(room.world.asked(), 2, "asked again, in vain");
    assert!(room.check(&mode(STRICT)).await.is_ok());
    assert_eq!(room.world.asked(), 2, "and not at once once more");
    room.clock.pass(Duration::hours(2));
    assert!(room.check(&mode(STRICT)).await.is_err(), "no longer valid");
    // Another cluster does not believe what was said to this one.
    let elsewhere = room.revocation.check(ClusterId::random(), &room.maria, &mode(STRICT)).await;
    assert!(elsewhere.is_err());
    assert_eq!(room.world.asked(), 4);
}

#[tokio::test]
async fn a_dead_responder_is_asked_every_five_seconds_at_most() {
    let room = Room::new("V");
    room.world.set(URL, Manner::Down);
    for _ in 0..5 {
        assert!(room.check(&mode(STRICT)).await.is_err());
        room.clock.pass(Duration::milliseconds(900));
    }
    assert_eq!(room.world.asked(), 1);
    room.clock.pass(Duration::seconds(1));
    room.world.set(URL, Manner::Real("ca", vec!["-ndays", "1"]));
    assert!(room.check(&mode(STRICT)).await.is_ok());
}

#[tokio::test]
async fn a_thousand_at_once_are_one_question() {
    let room = Room::new("V");
    let strict = Ocsp { timeout_ms: 10_000, ..mode(STRICT) };
    let all = futures::future::join_all((0..1_000).map(|_| room.check(&strict))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(room.world.asked(), 1);
}

#[tokio::test]
async fn t46_who_is_revoked_while_a_session_is_open_is_found_at_the_next_look() {
    let room = Room::new("V");
    let strict = mode(STRICT);
    assert!(room.check(&strict).await.is_ok());
    room.world.states("ca", &room.ca, &[("07", "R")]);
    let look = || room.revocation.recheck(room.cluster, &room.maria, &strict);
    assert!(look().await.is_none(), "asked a moment ago");
    room.clock.pass(Duration::seconds(2));
    assert!(look().await.unwrap().is_revoked());
    assert_eq!(room.world.asked(), 2);
    // From then on it cannot come back either, though the first answer would still be valid.
    assert!(room.check(&mode(LAX)).await.unwrap_err().is_revoked());
    room.world.set(URL, Manner::Down);
    room.clock.pass(Duration::hours(1));
    assert!(room.check(&mode(LAX)).await.unwrap_err().is_revoked(), "silence does not bring it back");
    assert!(room.revocation.recheck(room.cluster, &room.maria, &mode(OcspMode::Off)).await.is_none());
}

#[tokio::test]
async fn an_open_session_is_not_cut_because_a_responder_is_silent() {
    let room = Room::new("V");
    room.world.set(URL, Manner::Down);
    assert!(room.revocation.recheck(room.cluster, &room.maria, &mode(STRICT)).await.is_none());
}

#[tokio::test]
async fn an_old_answer_played_back_does_not_hide_a_revocation() {
    let room = Room::new("V");
    // A responder without nonces, and somebody between it and us who kept its answer.
    let plain = room.world.real("ca", &["-ndays", "1"], &without_nonce(&room.maria.steps[0]));
    tokio::time::sleep(Wait::from_millis(1_100)).await;
    room.world.states("ca", &room.ca, &[("07", "R")]);
    room.clock.pass(Duration::seconds(2));
    assert!(room.check(&mode(LAX)).await.unwrap_err().is_revoked());
    room.world.set(URL, Manner::Replay);
    *room.world.last.lock().unwrap() = plain;
    room.clock.pass(Duration::minutes(2));
    assert!(room.check(&mode(LAX)).await.unwrap_err().is_revoked());
    // With a nonce, an old answer is none.
    let fresh = Room::new("V");
    assert!(fresh.check(&mode(STRICT)).await.is_ok());
    fresh.world.set(URL, Manner::Replay);
    let elsewhere = fresh.revocation.check(ClusterId::random(), &fresh.maria, &mode(STRICT)).await;
    assert!(elsewhere.unwrap_err().detail().contains("nonce"));
}

/// The question without its extensions, which are its last 53 bytes.
fn without_nonce(step: &Step) -> Vec<u8> {
    let whole = ocsp::request(step, &[0; 32]);
    let extensions = whole.len() - 53;
    assert_eq!(whole[extensions], 0xa2);
    let list = &whole[4..extensions];
    let length = u8::try_from(list.len()).unwrap();
    [&[0x30, length + 2, 0x30, length], list].concat()
}

#[tokio::test]
async fn what_is_kept_is_bounded() {
    let (world, clock, ca) = (World::new(), SetClock::new(), root("ours"));
    let settings = Settings { entries_max: 10, ..Settings::default() };
    let revocation = Revocation::with_settings(world, clock.clone(), settings);
    for serial in 10..60 {
        let who = verified(&ca, &[&issue(&leaf_params("x", serial, &[URL]), &ca)]);
        assert!(revocation.check(ClusterId::random(), &who, &mode(STRICT)).await.is_err());
        clock.pass(Duration::seconds(1));
    }
    assert!((5..=10).contains(&revocation.cache.len()), "{}", revocation.cache.len());
}

//! Certificates that no longer count: asked about by OCSP, listed in a CRL, and cut while they are in use.

use std::time::{Duration, Instant};

use crate::sign_in::cloud;
use house::authority::{Authority, Identity, Leaf, self_signed};
use house::caller::fresh_address;
use house::machine::assert_within;
use house::ports::free_port;
use house::responder::{Mood, Responder};
use house::{Caller, Cluster, Refusal};
use serde_json::json;

/// A cluster that takes certificates only, with an authority and its responder.
struct Stage {
    cluster: Cluster<'static>,
    root: Authority,
    responder: Responder,
    scratch: tempfile::TempDir,
}

fn stage(name: &str) -> Stage {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let root = Authority::root(scratch.path(), "root");
    let responder = Responder::of(&root);
    let cluster = cloud().cluster(name, &[]);
    cluster.set_authorities(&root.pem());
    cluster.set_rules("host all all all cert\n");
    Stage { cluster, root, responder, scratch }
}

impl Stage {
    fn mode(&self, mode: &str) {
        self.cluster.set_ocsp(&json!({ "mode": mode, "timeout_ms": 1_500 }));
    }

    /// A certificate of maria that names the responder.
    fn leaf(&self) -> Identity {
        self.root.issue(&Leaf::of("maria").asked_at(&self.responder.url()))
    }

    fn enter(&self, identity: &Identity) -> Result<(), Refusal> {
        self.cluster.enter(&Caller::holding(identity).from(fresh_address())).map(drop)
    }

    #[track_caller]
    fn lets_in(&self, what: &str, identity: &Identity) {
        if let Err(refusal) = self.enter(identity) {
            panic!("{what} was refused: {refusal:?}");
        }
    }

    #[track_caller]
    fn refuses(&self, what: &str, identity: &Identity, text: &str) {
        let refusal = self.enter(identity).err().unwrap_or_else(|| panic!("{what} was let in"));
        assert_eq!(refusal.code, "28000", "{what}: {refusal:?}");
        assert!(refusal.message.contains(text), "{what}: {refusal:?}");
        let told = format!("{refusal:?}");
        assert!(!told.contains(&self.responder.url()), "a client learns nothing of the responder: {told}");
    }
}

const STRICT: &str = "OCSP check failed in strict mode";
const REVOKED: &str = "revoked";
const WITHOUT_LIST: &str = "has no revocation list";

pub fn t45_good_revoked_and_unknown_in_every_mode() {
    let stage = stage("ocsp-answers");
    for mode in ["off", "lax", "strict"] {
        stage.mode(mode);
        let (good, revoked, unknown) = (stage.leaf(), stage.leaf(), stage.leaf());
        stage.root.revoke(&revoked);
        stage.root.forget(&unknown);
        stage.lets_in(mode, &good);
        match mode {
            "off" => {
                stage.lets_in(mode, &revoked);
                stage.lets_in(mode, &unknown);
                assert_eq!(stage.responder.asked(), 0, "nobody is asked");
            }
            "lax" => {
                stage.refuses(mode, &revoked, REVOKED);
                stage.lets_in("unknown is no answer, which lax lets pass", &unknown);
            }
            _ => {
                stage.refuses(mode, &revoked, REVOKED);
                stage.refuses("unknown is not good", &unknown, STRICT);
            }
        }
    }
    assert!(cloud().log().contains("OCSP check failed in non-strict mode"), "lax warns in the log");
}

pub fn t45_answers_that_cannot_be_trusted_count_as_none() {
    let stage = stage("ocsp-faults");
    let stranger = Authority::root(stage.scratch.path(), "stranger");
    let other = stage.leaf();
    let faults = [
        Mood::Down,
        Mood::Hanging,
        Mood::Garbage,
        Mood::Unavailable,
        Mood::Expired,
        Mood::Future,
        Mood::WrongSigner(stranger.signer()),
        Mood::WrongSigner(stranger.delegate()),
        // A certificate of the same authority that may not sign answers.
        Mood::WrongSigner(other.clone()),
        Mood::BadSignature,
        Mood::About(other),
        Mood::Huge,
    ];
    for fault in faults {
        stage.responder.set(fault.clone());
        stage.mode("lax");
        stage.lets_in(&format!("lax, {fault:?}"), &stage.leaf());
        stage.mode("strict");
        let begun = Instant::now();
        stage.refuses(&format!("strict, {fault:?}"), &stage.leaf(), STRICT);
        assert_within(Duration::from_secs(4), begun, &format!("{fault:?}"));
    }
    // An old answer to somebody else's question, with that question's nonce: it is for this very certificate, and good.
    let leaf = stage.leaf();
    stage.responder.set(Mood::Replayed);
    assert!(stage.responder.tells(&stage.root, &leaf).contains(": good"));
    stage.root.revoke(&leaf);
    stage.refuses("strict, replayed", &leaf, STRICT);
    // Whatever lies about one certificate, a revoked one with an honest answer stays revoked in lax.
    stage.responder.set(Mood::Honest);
    stage.mode("lax");
    std::thread::sleep(Duration::from_secs(6));
    stage.refuses("lax, honest again", &leaf, REVOKED);
    assert!(!cloud().log().contains("panicked"));
}

pub fn t45_a_hanging_responder_costs_the_timeout_once_and_nobody_else() {
    let stage = stage("ocsp-hanging");
    stage.responder.set(Mood::Hanging);
    stage.mode("strict");
    let leaf = stage.leaf();
    let other = crate::sign_in::cluster();
    other.sign_in();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| stage.refuses("hanging", &leaf, STRICT));
        }
        // Others in the same cloud wait for none of it.
        let begun = Instant::now();
        other.sign_in();
        assert_within(Duration::from_secs(1), begun, "somebody else waited");
    });
    assert_within(Duration::from_secs(4), begun, "the timeout, once for all");
}

pub fn t45_without_a_responder_strict_refuses_unless_told_otherwise() {
    let stage = stage("ocsp-none");
    let bare = stage.root.issue(&Leaf::of("maria"));
    for mode in ["off", "lax"] {
        stage.mode(mode);
        stage.lets_in(mode, &bare);
    }
    stage.mode("strict");
    stage.refuses("strict, no responder", &bare, STRICT);
    stage.cluster.set_ocsp(&json!({ "mode": "strict", "accept_without_responder": true }));
    stage.lets_in("told otherwise", &bare);
    // That is for certificates that name none, not for responders that do not answer.
    stage.responder.set(Mood::Down);
    stage.refuses("down", &stage.leaf(), STRICT);
    stage.responder.set(Mood::Honest);
    // The cluster's own responder answers for certificates that name none, and instead of those that they name.
    stage.cluster.set_ocsp(&json!({ "mode": "strict", "responder_url": stage.responder.url() }));
    stage.lets_in("the cluster's responder", &bare);
    let elsewhere = stage.root.issue(&Leaf::of("maria").asked_at(&format!("http://{}/", free_port())));
    stage.lets_in("instead of the one that it names", &elsewhere);
    let revoked = stage.root.issue(&Leaf::of("maria"));
    stage.root.revoke(&revoked);
    stage.refuses("revoked by the cluster's responder", &revoked, REVOKED);
}

pub fn t45_several_responders_are_asked_in_order() {
    let stage = stage("ocsp-several");
    stage.mode("strict");
    let (dead, second) = (format!("http://{}/", free_port()), Responder::of(&stage.root));
    let leaf = Leaf::of("maria").asked_at(&dead).asked_at(&stage.responder.url()).asked_at(&second.url());
    stage.lets_in("the second answers", &stage.root.issue(&leaf));
    assert!(stage.responder.asked() > 0);
    assert_eq!(second.asked(), 0, "the third is not asked where the second answers");
    stage.responder.set(Mood::Garbage);
    let third = stage.root.issue(&leaf);
    stage.lets_in("the third answers", &third);
    assert!(stage.responder.asked_about(&third) > 0 && second.asked_about(&third) > 0);
    let revoked = stage.root.issue(&leaf);
    stage.root.revoke(&revoked);
    stage.refuses("revoked", &revoked, REVOKED);
}

pub fn t45_every_certificate_of_the_chain_is_asked_for() {
    let stage = stage("ocsp-chain");
    let middle = stage.root.intermediate("middle", &[stage.responder.url()]);
    // Answers about the intermediate's certificates are signed by somebody whom it let do so.
    let delegated = Responder::signed_by(&middle, middle.delegate());
    let leaf = || middle.issue(&Leaf::of("maria").asked_at(&delegated.url()));
    stage.mode("strict");
    let first = leaf();
    stage.lets_in("a good chain", &first);
    assert!(stage.responder.asked() > 0 && delegated.asked_about(&first) > 0);
    // Somebody whom the root let sign answers has no say about the intermediate's certificates.
    let usurper = Responder::signed_by(&middle, stage.root.delegate());
    stage.refuses(
        "a delegate of another",
        &middle.issue(&Leaf::of("maria").asked_at(&usurper.url())),
        STRICT,
    );
    // Another intermediate, which is revoked; its leaf is good.
    let fallen = stage.root.intermediate("fallen", &[stage.responder.url()]);
    let own = Responder::of(&fallen);
    let leaf = fallen.issue(&Leaf::of("maria").asked_at(&own.url()));
    stage.root.revoke_authority(&fallen);
    for mode in ["lax", "strict"] {
        stage.mode(mode);
        stage.refuses(mode, &leaf, REVOKED);
    }
}

pub fn t45_answers_are_kept_as_long_as_they_say() {
    let stage = stage("ocsp-kept");
    stage.mode("strict");
    let leaf = stage.leaf();
    // Sessions that are open have their certificates asked about every two seconds.
    let began = Instant::now();
    let permitted = || 2 + usize::try_from(began.elapsed().as_secs()).expect("seconds") / 2;
    for _ in 0..6 {
        stage.lets_in("again", &leaf);
    }
    assert!(stage.responder.asked() <= permitted(), "asked {} times", stage.responder.asked());
    // What is kept carries through a responder that is down.
    stage.responder.set(Mood::Down);
    stage.lets_in("kept", &leaf);
    stage.refuses("another certificate is not kept", &stage.leaf(), STRICT);
    // A dead responder is not hammered.
    let (other, began) = (stage.leaf(), Instant::now());
    for _ in 0..10 {
        stage.refuses("down", &other, STRICT);
    }
    let (asked, permitted) = (stage.responder.asked_about(&other), 1 + began.elapsed().as_secs() / 5);
    assert!(asked as u64 <= permitted, "asked {asked} times");
    // What is kept is this cluster's: another one with its own responder asks for itself.
    let elsewhere = cloud().cluster("ocsp-elsewhere", &[]);
    elsewhere.set_authorities(&stage.root.pem());
    elsewhere.set_rules("host all all all cert\n");
    let dead = format!("http://{}/", free_port());
    elsewhere.set_ocsp(&json!({ "mode": "strict", "responder_url": dead }));
    let refusal = elsewhere.refusal_of("its own responder is dead", &Caller::holding(&leaf));
    assert!(refusal.message.contains(STRICT), "{refusal:?}");
}

pub fn t45_a_list_refuses_whom_it_names_and_a_stale_one_everybody() {
    let stage = stage("crl-lists");
    let (good, revoked) = (stage.root.issue(&Leaf::of("maria")), stage.root.issue(&Leaf::of("maria")));
    stage.root.revoke(&revoked);
    stage.lets_in("without a list", &revoked);
    let set = stage.cluster.try_set_lists(&stage.root.list()).ok();
    assert_eq!((&set["lists"][0]["revoked"], set["lists"].as_array().unwrap().len()), (&json!(1), 1));
    stage.lets_in("not on the list", &good);
    stage.refuses("on the list", &revoked, REVOKED);
    stage.cluster.try_set_lists(&stage.root.stale_list()).ok();
    stage.refuses("a stale list", &good, "");
    stage.refuses("a stale list", &revoked, "");
    // A list of another authority, and one that somebody else signed under the same name.
    let other = Authority::root(stage.scratch.path(), "other");
    let set = stage.cluster.try_set_lists(&other.list()).ok();
    assert_eq!(set["authorities_without_list"].as_array().map(Vec::len), Some(1), "{set}");
    stage.refuses("the list of another authority only", &good, WITHOUT_LIST);
    stage.cluster.set_lists_and_accept_without(&other.list()).ok();
    stage.lets_in("an authority that needs no list", &good);
    let below = stage.scratch.path().join("forged");
    std::fs::create_dir(&below).unwrap();
    let namesake = Authority::root(&below, "root");
    stage.cluster.try_set_lists(&namesake.list());
    stage.refuses("a list that its authority did not sign", &good, "");
    for (what, text) in [
        ("a delta list", stage.root.delta_list()),
        ("no list", "hello".to_owned()),
        ("a certificate", stage.root.pem()),
        ("too long", stage.root.list().repeat(1_000)),
    ] {
        let said = stage.cluster.try_set_lists(&text);
        assert_eq!(said.status, 400, "{what}: {}", said.text);
    }
    stage.cluster.forget_lists();
    stage.lets_in("no list", &good);
    // An intermediate on the root's list.
    let middle = stage.root.intermediate("middle", &[]);
    let leaf = middle.issue(&Leaf::of("maria"));
    stage.root.revoke_authority(&middle);
    stage.lets_in("no list", &leaf);
    stage.cluster.try_set_lists(&format!("{}{}", stage.root.list(), middle.list())).ok();
    stage.refuses("an intermediate on the list", &leaf, REVOKED);
}

pub fn t45_every_authority_of_a_chain_needs_a_list_where_lists_are_set() {
    let stage = stage("crl-chain");
    let middle = stage.root.intermediate("middle", &[]);
    let (leaf, fired) = (middle.issue(&Leaf::of("maria")), middle.issue(&Leaf::of("maria")));
    let direct = stage.root.issue(&Leaf::of("maria"));
    middle.revoke(&fired);
    stage.lets_in("no list", &leaf);
    // The operator revoked somebody at the intermediate authority and set the root's list only.
    stage.cluster.try_set_lists(&stage.root.list()).ok();
    stage.lets_in("whom the root certified", &direct);
    stage.refuses("an intermediate without a list", &leaf, WITHOUT_LIST);
    stage.refuses("an intermediate without a list, revoked there", &fired, WITHOUT_LIST);
    stage.cluster.try_set_lists(&middle.list()).ok();
    stage.refuses("a root without a list", &leaf, WITHOUT_LIST);
    stage.cluster.try_set_lists(&format!("{}{}", stage.root.list(), middle.list())).ok();
    stage.lets_in("a list of each", &leaf);
    stage.refuses("a list of each", &fired, REVOKED);
    // The operator's own word.
    let said = stage.cluster.set_lists_and_accept_without(&stage.root.list()).ok();
    assert_eq!(said["accept_without_list"], json!(true));
    stage.lets_in("accepted without a list", &leaf);
}

/// How long the session lived on after `begun`.
fn cut(what: &str, wire: &mut house::Wire, begun: Instant) -> Refusal {
    let refusal = wire.expect_refusal();
    assert_within(Duration::from_secs(5), begun, what);
    assert_eq!(refusal.fields.get(&'S').map(String::as_str), Some("FATAL"), "{what}: {refusal:?}");
    assert_eq!(refusal.code, "57P01", "{what}: {refusal:?}");
    refusal
}

pub fn t46_a_session_ends_within_five_seconds_when_its_certificate_is_revoked() {
    let stage = stage("ocsp-cut");
    stage.mode("strict");
    let (leaf, other) = (stage.leaf(), stage.leaf());
    let enter = |identity: &Identity| stage.cluster.welcome(&Caller::holding(identity));
    let (mut idle, mut busy, mut innocent) = (enter(&leaf), enter(&leaf), enter(&other));
    busy.send(b'Q', &house::wire::text("select pg_sleep(600)")).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(idle.value("select 1"), "1", "nothing happens before");
    stage.root.revoke(&leaf);
    let begun = Instant::now();
    cut("the idle session", &mut idle, begun);
    cut("the busy session", &mut busy, begun);
    println!("  cut after {:.1} s", begun.elapsed().as_secs_f64());
    assert_eq!(innocent.value("select 1"), "1", "another certificate is untouched");
    stage.refuses("revoked", &leaf, REVOKED);
    // A responder that goes away ends nobody's session; only a revoked answer does.
    stage.responder.set(Mood::Down);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(innocent.value("select 1"), "1", "a dead responder ends no session");
}

pub fn t46_a_session_ends_when_its_certificate_comes_on_a_list_or_expires() {
    let stage = stage("crl-cut");
    let (leaf, other) = (stage.root.issue(&Leaf::of("maria")), stage.root.issue(&Leaf::of("maria")));
    let short = stage.root.issue(&Leaf { until: "+15 seconds".into(), ..Leaf::of("maria") });
    let born = Instant::now();
    let enter = |identity: &Identity| stage.cluster.welcome(&Caller::holding(identity));
    let (mut listed, mut innocent, mut ending) = (enter(&leaf), enter(&other), enter(&short));
    stage.root.revoke(&leaf);
    let list = stage.root.list();
    let begun = Instant::now();
    stage.cluster.try_set_lists(&list).ok();
    cut("the listed one", &mut listed, begun);
    assert_eq!(innocent.value("select 1"), "1");
    let refusal = ending.expect_refusal();
    assert_eq!(refusal.code, "57P01", "{refusal:?}");
    assert_within(Duration::from_secs(21), born, "it lived on");
    assert_eq!(innocent.value("select 1"), "1");
}

pub fn a_stranger_never_makes_us_ask_anybody() {
    // Whoever is not of the cluster's authorities could name any address to be asked.
    let stage = stage("ocsp-stranger");
    stage.mode("strict");
    let stranger = Authority::root(stage.scratch.path(), "stranger");
    let lure = Responder::of(&stranger);
    for identity in [
        stranger.issue(&Leaf::of("maria").asked_at(&lure.url())),
        self_signed(stage.scratch.path(), "maria"),
        stage.root.issue(&Leaf {
            until: "-1 minute".into(),
            from: "-2 days".into(),
            ..Leaf::of("maria").asked_at(&lure.url())
        }),
    ] {
        assert!(stage.enter(&identity).is_err());
    }
    assert_eq!(lure.asked(), 0);
}

pub fn the_command_line_sets_revocation() {
    let stage = stage("ocsp-command");
    cloud().chitin(["ocsp", "set", "ocsp-command", "--mode", "strict", "--timeout-ms", "700"]).ok();
    let shown = cloud().json(["ocsp", "show", "ocsp-command"]);
    assert_eq!((&shown["mode"], &shown["timeout_ms"]), (&json!("strict"), &json!(700)));
    for wrong in [
        ["--timeout-ms", "50"],
        ["--timeout-ms", "60000"],
        ["--responder", "file:///etc/passwd"],
        ["--mode", "maybe"],
    ] {
        let refused = cloud().chitin(["ocsp", "set", "ocsp-command", wrong[0], wrong[1]]);
        assert!([1, 2].contains(&refused.code()), "{wrong:?}: {refused:?}");
    }
    stage.lets_in("strict", &stage.leaf());
    let revoked = stage.root.issue(&Leaf::of("maria"));
    stage.root.revoke(&revoked);
    let file = stage.scratch.path().join("list.pem");
    std::fs::write(&file, stage.root.list()).unwrap();
    cloud().chitin(["ocsp", "set", "ocsp-command", "--mode", "off"]).ok();
    cloud().chitin(["crl", "set", "ocsp-command", file.to_str().unwrap()]).ok();
    assert_eq!(cloud().json(["crl", "show", "ocsp-command"])["lists"][0]["revoked"], 1);
    stage.refuses("listed", &revoked, REVOKED);
    cloud().chitin(["crl", "delete", "ocsp-command"]).ok();
    stage.lets_in("no list", &revoked);
}

//! OAUTHBEARER (RFC 7628), raw and by libpq 18.

use std::path::Path;
use std::time::Duration;

use crate::sign_in::cloud;
use house::caller::{Wanted, bear, fresh_address, say_bearer};
use house::command::run_with;
use house::provider::{CLIENT_ID, Provider};
use house::scram::initial_response;
use house::{Caller, Cluster, Wire};
use serde_json::{Value, json};

fn stage(name: &str) -> (Cluster<'static>, Provider) {
    let provider = Provider::start("ES256");
    let one = cloud().cluster(name, &[]);
    one.set_provider("corp", &provider.settings()).ok();
    one.set_rules("host all all all oauth\n");
    (one, provider)
}

/// A connection that has been asked for a token.
fn asked(one: &Cluster<'_>) -> Wire {
    let mut wire = one.knock_as(&Caller::default().from(fresh_address())).expect("the gateway listens");
    let request = wire.expect_message().expect("a question");
    assert_eq!(Wanted::of(&request), Wanted::Sasl(vec!["OAUTHBEARER".into()]));
    wire
}

pub fn a_good_token_signs_in() {
    let (one, provider) = stage("bearer-good");
    let mut wire = one.welcome(&Caller::with(&provider.token("maria")));
    assert_eq!(wire.value("select session_user"), "maria");
    // The scheme is not case-sensitive (RFC 7235, section 2.1), and unknown keys are ignored (RFC 7628, section 3.1).
    for words in [
        format!("n,,\x01auth=bearer {}\x01\x01", provider.token("maria")),
        format!(
            "n,,\x01host=localhost\x01port=5432\x01auth=Bearer {}\x01later=x\x01\x01",
            provider.token("maria")
        ),
    ] {
        let mut wire = asked(&one);
        let welcome = say_bearer(&mut wire, &words).unwrap_or_else(|refusal| panic!("{words}: {refusal:?}"));
        assert_eq!(Wanted::of(&welcome), Wanted::Nothing);
        wire.expect_ready().unwrap();
    }
}

/// The failure that the server tells in JSON.
fn failure(wire: &mut Wire, words: &str) -> Value {
    wire.send(b'p', &initial_response("OAUTHBEARER", words)).unwrap();
    let answer = wire.expect_message().unwrap();
    assert_eq!((answer.tag, &answer.body[..4]), (b'R', &[0, 0, 0, 11][..]));
    serde_json::from_slice(&answer.body[4..]).expect("JSON")
}

pub fn without_a_token_the_client_learns_where_to_get_one() {
    let (one, provider) = stage("bearer-discover");
    let mut wire = asked(&one);
    let told = failure(&mut wire, "n,,\x01auth=\x01\x01");
    let place = format!("{}/.well-known/openid-configuration", provider.issuer());
    assert_eq!((&told["status"], &told["openid-configuration"]), (&json!("invalid_token"), &json!(place)));
    assert!(
        told["scope"].as_str().is_some_and(|scope| scope.split(' ').any(|word| word == "openid")),
        "{told}"
    );
    wire.send(b'p', b"\x01").unwrap();
    let refusal = wire.expect_refusal();
    assert_eq!(refusal.code, "28000", "{refusal:?}");
    // A rule's own scope is what is told.
    one.set_rules("host all all all oauth scope=\"openid sql\"\n");
    assert_eq!(failure(&mut asked(&one), "n,,\x01auth=\x01\x01")["scope"], "openid sql");
    // A look for a token is no wrong token.
    let lines = cloud().call("GET", "/api/v1/chitin/throttle", None).ok()["lines"].clone();
    assert!(!lines.to_string().contains(&one.handle), "{lines}");
}

pub fn bad_tokens_are_told_where_to_get_a_good_one_and_refused() {
    let (one, provider) = stage("bearer-bad");
    let stranger = Provider::start("ES256");
    for (what, token) in [
        ("expired", provider.token_with("maria", &json!({ "exp": 1_000_000_000 }))),
        ("another's", provider.token("bob")),
        ("of a stranger", stranger.token("maria")),
        ("for another audience", provider.token_with("maria", &json!({ "aud": "elsewhere" }))),
        (
            "unsigned",
            provider.mint(&json!({ "claims": provider.claims("maria"), "alg": "none", "key": "none" })),
        ),
        ("no token", "abc".to_owned()),
    ] {
        let mut wire = asked(&one);
        let told = failure(&mut wire, &format!("n,,\x01auth=Bearer {token}\x01\x01"));
        assert_eq!(told["status"], "invalid_token", "{what}");
        assert!(!told.to_string().contains(&token), "{what}");
        wire.send(b'p', b"\x01").unwrap();
        let refusal = wire.expect_refusal();
        assert_eq!(refusal.code, "28000", "{what}: {refusal:?}");
    }
    let bob = one.with_user("nobody_here", "");
    let refusal = bob.refusal_of("nobody", &Caller::with(&provider.token("nobody_here")));
    assert!(["28000", "28P01"].contains(&refusal.code.as_str()), "{refusal:?}");
}

pub fn words_that_bend_the_rules_are_refused() {
    let (one, provider) = stage("bearer-words");
    let token = provider.token("maria");
    let good = format!("n,,\x01auth=Bearer {token}\x01\x01");
    for (what, words) in [
        ("channel binding", format!("p=tls-server-end-point,,\x01auth=Bearer {token}\x01\x01")),
        ("a downgrade", format!("y,,\x01auth=Bearer {token}\x01\x01")),
        ("another identity", format!("n,a=root,\x01auth=Bearer {token}\x01\x01")),
        ("no header", format!("\x01auth=Bearer {token}\x01\x01")),
        ("no end", format!("n,,\x01auth=Bearer {token}\x01")),
        ("more after the end", format!("{good}x")),
        ("two tokens", format!("n,,\x01auth=Bearer {token}\x01auth=Bearer {token}\x01\x01")),
        ("no key", format!("n,,\x01=Bearer {token}\x01\x01")),
        ("a zero byte", format!("n,,\x01auth=Bearer {token}\0\x01\x01")),
        ("another scheme", "n,,\x01auth=Basic bWFyaWE6eA==\x01\x01".to_owned()),
        ("nothing", String::new()),
        ("no auth", "n,,\x01host=x\x01\x01".to_owned()),
        ("a long one", format!("n,,\x01auth=Bearer {}\x01\x01", "a".repeat(64_000))),
    ] {
        let mut wire = asked(&one);
        let _ = wire.send(b'p', &initial_response("OAUTHBEARER", &words));
        // Some are answered with the failure in JSON first.
        let refusal = match wire.expect_message() {
            Err(refusal) => refusal,
            Ok(answer) => {
                assert_eq!(&answer.body[..4], &[0, 0, 0, 11], "{what} was let in");
                wire.send(b'p', b"\x01").unwrap();
                wire.expect_refusal()
            }
        };
        assert!(["28000", "08P01", "closed"].contains(&refusal.code.as_str()), "{what}: {refusal:?}");
    }
    for mechanism in ["SCRAM-SHA-256", "oauthbearer", "PLAIN", ""] {
        let mut wire = asked(&one);
        wire.send(b'p', &initial_response(mechanism, &good)).unwrap();
        assert_eq!(wire.expect_refusal().code, "08P01", "{mechanism}");
    }
    // After a failure only its acknowledgement may come: a second token is not a second try.
    for next in [good.as_bytes(), b"", b"\x01\x01", b"n,,"] {
        let mut wire = asked(&one);
        failure(&mut wire, "n,,\x01auth=\x01\x01");
        wire.send(b'p', next).unwrap();
        let refusal = wire.expect_refusal();
        assert!(["28000", "08P01"].contains(&refusal.code.as_str()), "{next:?}: {refusal:?}");
    }
    // The same words still sign in when they are right, so none of this was refused for another reason.
    assert_eq!(Wanted::of(&bear(&mut asked(&one), &token).unwrap()), Wanted::Nothing);
    assert!(!cloud().log().contains("panicked"));
}

pub fn libpq_18_signs_in_with_a_token() {
    let (one, provider) = stage("bearer-libpq");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = here.join("../target/test-clients/python/bin/python");
    for (token, is_good) in [(provider.token("maria"), true), (provider.token("bob"), false)] {
        let mut command = one.client(python.to_str().expect("ASCII"), &[]);
        command.arg(here.join("clients/python/oauthbearer_client.py"));
        command
            .env_remove("PGPASSWORD")
            .env("TOKEN", token)
            .env("ISSUER", provider.issuer())
            .env("CLIENT_ID", CLIENT_ID);
        // Lets libpq speak of a provider without TLS, which the one of these tests is.
        command.env("PGOAUTHDEBUG", "UNSAFE");
        let finished = run_with(&mut command, b"", Duration::from_secs(60));
        if is_good {
            let said = finished.ok();
            assert!(said.contains("signed in as maria"), "{said}");
            // Discovery first, as libpq does, and then the token.
            assert!(
                said.contains(&format!("{}/.well-known/openid-configuration", provider.issuer())),
                "{said}"
            );
        } else {
            let said = finished.refused();
            assert!(said.contains("JWT authentication"), "{said}");
        }
    }
}

//! The tools of these tests, tried without the program: an authority, a responder, a provider and a browser that did not
//! do what they say would prove nothing.

use std::process::Command;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use house::api::curl;
use house::authority::{Authority, Identity, Leaf, self_signed};
use house::browser::Person;
use house::command::{Finished, run};
use house::provider::{CLIENT_ID, CLIENT_SECRET, Provider};
use house::responder::{Mood, Responder};
use serde_json::{Value, json};

/// What `openssl verify` says of a client certificate under this root.
fn verified(root: &Authority, identity: &Identity, more: &[&str]) -> Finished {
    let mut command = Command::new("openssl");
    command.args(["verify", "-purpose", "sslclient", "-CAfile"]).arg(root.certificate());
    command.arg("-untrusted").arg(&identity.chain).args(more).arg(&identity.certificate);
    run(&mut command)
}

pub fn the_authority_signs_what_it_is_told_to() {
    let scratch = tempfile::tempdir().unwrap();
    let root = Authority::root(scratch.path(), "root one");
    let middle = root.intermediate("middle", &[]);
    let good = middle.issue(&Leaf::of("maria"));
    verified(&root, &good, &[]).ok();
    let other = Authority::root(scratch.path(), "other");
    for (what, identity, expected) in [
        ("expired", middle.issue(&Leaf { until: "-1 minute".into(), ..Leaf::of("maria") }), "expired"),
        ("not yet", middle.issue(&Leaf { from: "+1 hour".into(), ..Leaf::of("maria") }), "not yet valid"),
        ("usage", middle.issue(&Leaf { usage: Some("serverAuth".into()), ..Leaf::of("maria") }), "purpose"),
        ("other", other.issue(&Leaf::of("maria")), "unable to get"),
        ("self-signed", self_signed(scratch.path(), "maria"), "self-signed"),
    ] {
        let said = verified(&root, &identity, &[]).refused();
        assert!(said.contains(expected), "{what}: {said}");
    }
    let fancy = Leaf {
        names: vec!["email:maria@example.org".into(), "DNS:maria.example.org".into()],
        ..Leaf::of("x")
    }
    .with_subject("/O=Firma/CN=maria/CN=root")
    .asked_at("http://127.0.0.1:1/");
    let fancy = root.issue(&fancy);
    let text =
        run(Command::new("openssl").args(["x509", "-noout", "-text", "-in"]).arg(&fancy.certificate)).ok();
    for part in ["CN = maria, CN = root", "email:maria@example.org", "OCSP - URI:http://127.0.0.1:1/"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let list = scratch.path().join("list.pem");
    let revoked = middle.issue(&Leaf::of("maria"));
    middle.revoke(&revoked);
    std::fs::write(&list, middle.list()).unwrap();
    let with_list = ["-crl_check", "-CRLfile", list.to_str().unwrap()];
    verified(&root, &good, &with_list).ok();
    assert!(verified(&root, &revoked, &with_list).refused().contains("revoked"));
    std::fs::write(&list, middle.stale_list()).unwrap();
    assert!(verified(&root, &good, &with_list).refused().contains("CRL has expired"));
    let mut command = Command::new("openssl");
    std::fs::write(&list, middle.delta_list()).unwrap();
    let text = run(command.args(["crl", "-noout", "-text", "-in"]).arg(&list)).ok();
    assert!(text.contains("Delta CRL Indicator"), "{text}");
}

pub fn the_responder_answers_and_misbehaves_as_told() {
    let scratch = tempfile::tempdir().unwrap();
    let root = Authority::root(scratch.path(), "root");
    let stranger = Authority::root(scratch.path(), "stranger");
    let (good, revoked, unknown) =
        (root.issue(&Leaf::of("maria")), root.issue(&Leaf::of("maria")), root.issue(&Leaf::of("maria")));
    root.revoke(&revoked);
    root.forget(&unknown);
    for signer in [root.signer(), root.delegate()] {
        let responder = Responder::signed_by(&root, signer);
        for (identity, expected) in [(&good, ": good"), (&revoked, ": revoked"), (&unknown, ": unknown")] {
            let said = responder.tells(&root, identity);
            assert!(said.contains(expected) && said.contains("Response verify OK"), "{said}");
        }
        assert_eq!(responder.asked(), 3);
    }
    let responder = Responder::of(&root);
    responder.tells(&root, &good);
    for (mood, expected) in [
        (Mood::Garbage, "Error"),
        (Mood::Unavailable, "Error"),
        (Mood::Down, "Error"),
        (Mood::Hanging, "timeout"),
        (Mood::Expired, "Status times invalid"),
        (Mood::Future, "Status times invalid"),
        (Mood::WrongSigner(stranger.signer()), "Verify Failure"),
        (Mood::WrongSigner(good.clone()), "Verify Failure"),
        (Mood::BadSignature, "Verify Failure"),
        (Mood::About(revoked.clone()), "No Status found"),
        (Mood::Replayed, ": good"),
        (Mood::Replayed, "Nonce Verify error"),
        (Mood::Huge, "rror"),
    ] {
        responder.set(mood.clone());
        let said = responder.tells(&root, &good);
        assert!(said.contains(expected), "{mood:?}: {said}");
    }
}

fn part(token: &str, number: usize) -> Value {
    let part = token.split('.').nth(number).expect("three parts");
    serde_json::from_slice(&BASE64.decode(part).expect("base64url")).expect("JSON")
}

/// Whether the first key that the provider publishes signed the token.
fn is_signed(provider: &Provider, token: &str) -> bool {
    let key = &provider.keys()["keys"][0];
    let bytes = |name: &str| BASE64.decode(key[name].as_str().expect("a key's part")).expect("base64url");
    let (signed, signature) = token.rsplit_once('.').expect("three parts");
    let signature = BASE64.decode(signature).expect("base64url");
    if key["kty"] == "RSA" {
        let key = RsaPublicKeyComponents { n: bytes("n"), e: bytes("e") };
        return key.verify(&RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), &signature).is_ok();
    }
    let point = [vec![4], bytes("x"), bytes("y")].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed.as_bytes(), &signature).is_ok()
}

pub fn the_provider_mints_good_and_bad_tokens() {
    for algorithm in ["RS256", "ES256"] {
        let provider = Provider::start(algorithm);
        let token = provider.token("maria");
        assert!(is_signed(&provider, &token), "{algorithm}");
        assert_eq!(part(&token, 0)["alg"], algorithm);
        assert_eq!(part(&token, 1)["sub"], "maria");
        assert_eq!(part(&provider.token_with("maria", &json!({ "exp": null })), 1)["exp"], Value::Null);
        let claims = provider.claims("maria");
        for (request, header) in [
            (json!({ "key": "fresh" }), json!(algorithm)),
            (json!({ "key": "none", "alg": "none" }), json!("none")),
            (json!({ "key": "public-as-hmac", "alg": "HS256" }), json!("HS256")),
        ] {
            let token = provider.mint(&house::provider::with(&json!({ "claims": claims }), &request));
            assert!(!is_signed(&provider, &token), "{request}");
            assert_eq!(part(&token, 0)["alg"], header);
        }
        assert_eq!(part(&provider.mint(&json!({ "claims": claims, "kid": null })), 0)["kid"], Value::Null);
        provider.rotate(None, false);
        assert!(!is_signed(&provider, &token), "the old key is gone");
        assert!(is_signed(&provider, &provider.token("maria")));
        let url = format!("{}/jwks", provider.issuer());
        assert_eq!(curl(Command::new("curl").arg(&url), None).ok(), provider.keys());
        assert_eq!(provider.count("/jwks"), 1);
        provider.set_fault("/jwks", &json!("status"));
        assert_eq!(curl(Command::new("curl").arg(&url), None).status, 503);
        provider.set_fault("*", &json!("down"));
        assert_eq!(run(Command::new("curl").args(["-s", &url])).code(), 52, "an empty reply");
        provider.set_fault("*", &Value::Null);
        assert_eq!(curl(Command::new("curl").arg(&url), None).status, 200);
    }
}

pub fn a_person_signs_in_at_the_provider_with_a_browser() {
    let provider = Provider::start("ES256");
    // The provider itself is where the browser is sent back to: the address is all that is looked at.
    let back = format!("{}/back", provider.issuer());
    provider.set(&json!({ "clients": [{
        "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, "redirect_uris": [back], "application_type": "native",
    }] }));
    provider.set_account("maria", &json!({ "email": "maria@example.org", "groups": ["dba", "sales"] }));
    let verifier = "a-verifier-of-pkce-with-more-than-43-characters";
    let challenge = BASE64.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.as_bytes()));
    let address = format!(
        "{}/auth?client_id={CLIENT_ID}&response_type=code&scope=openid+email+groups&state=s1&nonce=n1&redirect_uri={back}",
        provider.issuer()
    );
    let without = Person::default().goes_to(&address).with_pin("").last;
    assert!(without.url.contains("error=invalid_request"), "PKCE is required: {}", without.url);
    let visit = Person::default()
        .goes_to(&format!("{address}&code_challenge={challenge}&code_challenge_method=S256"))
        .looks("form")
        .signs_in_as("maria")
        // Asked of programs on the person's own machine only, which this one has to be for its plain address.
        .clicks("button[type=submit]")
        .with_pin("");
    assert!(visit.page("form").text.contains("Sign-in"), "{}", visit.page("form").text);
    let after = |name: &str| {
        let (_, rest) = visit.last.url.split_once(&format!("{name}=")).expect("in the address");
        rest.split('&').next().expect("a value").to_owned()
    };
    assert_eq!(after("state"), "s1");
    let mut command = Command::new("curl");
    command.args(["-u", &format!("{CLIENT_ID}:{CLIENT_SECRET}"), &format!("{}/token", provider.issuer())]);
    for (name, value) in [
        ("grant_type", "authorization_code"),
        ("code", after("code").as_str()),
        ("code_verifier", verifier),
        ("redirect_uri", &back),
    ] {
        command.args(["--data-urlencode", &format!("{name}={value}")]);
    }
    let tokens = curl(&mut command, None).ok();
    let token = tokens["id_token"].as_str().expect("an ID token");
    assert!(is_signed(&provider, token));
    let claims = part(token, 1);
    assert_eq!(
        (&claims["sub"], &claims["nonce"], &claims["aud"]),
        (&json!("maria"), &json!("n1"), &json!(CLIENT_ID))
    );
    assert_eq!(
        (&claims["groups"], &claims["email"]),
        (&json!(["dba", "sales"]), &json!("maria@example.org"))
    );
}

//! The user's and the attacker's tests of tokens.

use std::sync::Arc;

use keys::SecretText;
use model::IdentityProvider;
use serde_json::{Value, json};

use super::testing::{
    DISCOVERY_URL, ISSUER, KEYS_URL, NOW, Signer, World, claims, claims_with, hs256, message, provider, text,
};
use super::{Claims, KeySet, Kind, TokenRefused};

async fn id_token(world: &World, changes: &Value, nonce: &str) -> Result<Claims, TokenRefused> {
    let mut claims = claims_with(&json!({"aud": "client-7", "nonce": "n-1"}));
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    let token = world.signer.token("a", &claims);
    let kind = Kind::IdToken { nonce, access_token: None };
    world.tokens.verify(std::slice::from_ref(&world.provider), &token, kind).await
}

#[tokio::test]
async fn a_good_token_names_its_person() {
    let world = World::new();
    let read = world.with_claims(&json!({})).await.unwrap();
    assert_eq!((read.principals, read.subject.as_str()), (vec!["maria".to_owned()], "maria"));
    assert_eq!(read.groups, None);
    assert_eq!(read.expires_at, NOW + time::Duration::minutes(10));
    // The keys are kept.
    world.with_claims(&json!({})).await.unwrap();
    assert_eq!(world.fetcher.count(), 1);
}

#[tokio::test]
async fn every_public_key_algorithm_counts() {
    for signer in [Signer::es256(), Signer::es384(), Signer::ed()] {
        let world = World::with(signer, provider());
        assert!(world.with_claims(&json!({})).await.is_ok(), "{}", world.signer.algorithm());
    }
    let world = World::new();
    let token = world.signer.token_with(&json!({"alg": "PS256", "kid": "a"}), &claims());
    assert!(world.verify(&token).await.is_ok());
}

#[tokio::test]
async fn t49_what_is_missing_refuses() {
    let world = World::new();
    for missing in ["exp", "aud", "iss"] {
        assert!(world.with_claims(&json!({missing: null})).await.is_err(), "{missing}");
    }
    let missing = world.with_claims(&json!({"sub": null})).await.unwrap_err();
    assert_eq!(missing.to_string(), "JWT authentication: missing claim");
    // Without `kid` and with one key that fits, there is nothing to choose; with two there is.
    let nameless = world.signer.token_with(&json!({"alg": "RS256"}), &claims());
    assert!(world.verify(&nameless).await.is_ok());
    let keys = [world.signer.jwk(Some("a")), Signer::rsa().jwk(Some("b"))];
    world.fetcher.answer(KEYS_URL, &json!({ "keys": keys }));
    world.clock.advance(time::Duration::hours(2));
    let late = claims_with(&json!({"exp": NOW.unix_timestamp() + 8_000}));
    let nameless = world.signer.token_with(&json!({"alg": "RS256"}), &late);
    assert!(world.verify(&nameless).await.is_err());
    assert!(world.verify(&world.signer.token("a", &late)).await.is_ok());
}

#[tokio::test]
async fn t49_unsigned_tokens_are_refused() {
    let world = World::new();
    for name in ["none", "None", "NONE", "nOnE", ""] {
        let message = message(&json!({"alg": name, "kid": "a"}), &claims());
        for token in [format!("{message}."), message.clone(), format!("{message}.{}", text("x"))] {
            assert_eq!(world.verify(&SecretText::new(token)).await.unwrap_err(), TokenRefused::InvalidToken);
        }
    }
    let good = world.signer.token("a", &claims());
    let (message, signature) = good.expose().rsplit_once('.').unwrap();
    assert!(world.verify(&SecretText::new(format!("{message}."))).await.is_err());
    // Another payload under a real signature.
    let other =
        message.replace(&text(claims().to_string()), &text(claims_with(&json!({"sub": "root"})).to_string()));
    assert_ne!(message, other);
    assert!(world.verify(&SecretText::new(format!("{other}.{signature}"))).await.is_err());
}

#[tokio::test]
async fn t49_a_public_key_is_no_shared_secret() {
    let world = World::new();
    let jwk = world.signer.jwk(Some("a"));
    let secrets =
        [world.signer.public_der(), jwk.to_string().into_bytes(), jwk["n"].to_string().into_bytes(), vec![]];
    for secret in secrets {
        for algorithm in ["HS256", "HS384", "HS512", "RS256"] {
            let token = hs256(&secret, &json!({"alg": algorithm, "kid": "a"}), &claims());
            let refused = world.verify(&token).await.unwrap_err();
            // Shared secrets are refused by their name already, before any key is looked at.
            assert_eq!(refused == TokenRefused::InvalidToken, algorithm.starts_with("HS"), "{algorithm}");
        }
    }
    // And a provider that publishes a shared secret has published nothing that is used.
    let oct = json!({"kty": "oct", "kid": "s", "k": text("secret"), "alg": "HS256"});
    world.fetcher.answer(KEYS_URL, &json!({"keys": [oct]}));
    world.clock.advance(time::Duration::hours(2));
    let token = hs256(b"secret", &json!({"alg": "HS256", "kid": "s"}), &claims());
    assert!(world.verify(&token).await.is_err());
}

#[tokio::test]
async fn t49_a_key_of_another_type_is_refused() {
    let world = World::new();
    let (rsa, es256, ed) = (&world.signer, Signer::es256(), Signer::ed());
    let mut for_pss = rsa.jwk(Some("pss"));
    for_pss["alg"] = "PS256".into();
    let mut for_encryption = rsa.jwk(Some("enc"));
    for_encryption["use"] = "enc".into();
    let mut for_wrapping = rsa.jwk(Some("wrap"));
    for_wrapping["key_ops"] = json!(["wrapKey"]);
    let mut published = rsa.jwk(Some("private"));
    published["d"] = "AQAB".into();
    let all = [
        rsa.jwk(Some("a")),
        es256.jwk(Some("e")),
        ed.jwk(Some("o")),
        for_pss,
        for_encryption,
        for_wrapping,
        published,
    ];
    world.fetcher.answer(KEYS_URL, &json!({ "keys": all }));
    let refused = async |signer: &Signer, header: Value| {
        let refused = world.verify(&signer.token_with(&header, &claims())).await.unwrap_err();
        assert_eq!(refused.to_string(), "JWT authentication: invalid token", "{header}");
    };
    for (algorithm, kid) in [
        ("ES256", "a"),
        ("EdDSA", "a"),
        ("RS256", "e"),
        ("ES384", "e"),
        ("RS256", "o"),
        ("RS256", "pss"),
        ("RS256", "enc"),
        ("RS256", "wrap"),
        ("RS256", "private"),
        ("RS512", "a"),
        ("PS256x", "a"),
    ] {
        refused(rsa, json!({"alg": algorithm, "kid": kid})).await;
    }
    // Somebody else's key under a name that is known, and one that the token brings along.
    let stranger = Signer::rsa();
    refused(&stranger, json!({"alg": "RS256", "kid": "a"})).await;
    refused(&stranger, json!({"alg": "RS256", "kid": "x", "jwk": stranger.jwk(Some("x"))})).await;
    refused(&stranger, json!({"alg": "RS256", "kid": "a", "jku": "https://evil.example/keys"})).await;
    assert!(world.verify(&rsa.token_with(&json!({"alg": "PS256", "kid": "pss"}), &claims())).await.is_ok());
    let asked: Vec<_> = world.fetcher.asked.lock().unwrap().iter().map(|fetch| fetch.url.clone()).collect();
    assert!(asked.iter().all(|url| url == KEYS_URL), "{asked:?}");
}

#[tokio::test]
async fn weak_keys_are_left_out() {
    let good = Signer::rsa().jwk(Some("a"));
    let mut one = good.clone();
    one["e"] = "AQ".into();
    let mut short = good.clone();
    short["n"] = text([0xff; 128]).into();
    let mut even = good.clone();
    even["e"] = "AQAC".into();
    let mut curve = Signer::es256().jwk(Some("a"));
    curve["crv"] = "P-521".into();
    let mut point = Signer::es256().jwk(Some("a"));
    point["x"] = text([1; 33]).into();
    for weak in [one, short, even, curve, point, json!({"kty": "RSA"}), json!(7), json!({"kty": 1})] {
        assert!(KeySet::parse(json!({"keys": [weak]}).to_string().as_bytes()).unwrap().is_empty(), "{weak}");
    }
    assert_eq!(KeySet::parse(json!({"keys": [good]}).to_string().as_bytes()).unwrap().len(), 1);
    for wrong in ["", "[]", "{}", "{\"keys\":{}}", "null", "\u{0}"] {
        assert!(KeySet::parse(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn t49_clocks_may_differ_by_30_seconds() {
    let world = World::new();
    let now = NOW.unix_timestamp();
    for (claim, good, wrong) in [("exp", -29, -31), ("nbf", 29, 31), ("iat", 29, 31)] {
        assert!(world.with_claims(&json!({claim: now + good})).await.is_ok(), "{claim}");
        let refused = world.with_claims(&json!({claim: now + wrong})).await.unwrap_err();
        assert_eq!(refused.to_string(), "JWT authentication: invalid token", "{claim}");
    }
    assert!(world.with_claims(&json!({"exp": now - 30})).await.is_err());
    let fraction = now as f64 + 0.5;
    assert!(world.with_claims(&json!({"exp": fraction})).await.is_ok());
    for wrong in [
        json!("9999999999"),
        json!(1e300),
        json!(-1e300),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(true),
        json!([]),
    ] {
        assert!(world.with_claims(&json!({"exp": wrong})).await.is_err(), "{wrong}");
        assert!(world.with_claims(&json!({"nbf": wrong})).await.is_err(), "{wrong}");
    }
    // Whatever a document says, not more than five minutes.
    let world = World::with(Signer::ed(), IdentityProvider { clock_skew_seconds: u32::MAX, ..provider() });
    assert!(world.with_claims(&json!({"exp": now - 299})).await.is_ok());
    assert!(world.with_claims(&json!({"exp": now - 301})).await.is_err());
}

#[tokio::test]
async fn t49_the_audience_must_be_ours() {
    let world = World::with(Signer::ed(), provider());
    for good in [json!("chitin"), json!(["other", "chitin"]), json!("client-7")] {
        assert!(world.with_claims(&json!({"aud": good})).await.is_ok(), "{good}");
    }
    for wrong in [
        json!("other"),
        json!(["other"]),
        json!([]),
        json!(""),
        json!("CHITIN"),
        json!({"chitin": 1}),
        json!(["chitin", 7]),
    ] {
        let refused = world.with_claims(&json!({"aud": wrong})).await.unwrap_err();
        assert_eq!(refused.to_string(), "JWT authentication: invalid audience", "{wrong}");
    }
    // A provider whose document names no audience accepts none, also not an empty one.
    let nobody = IdentityProvider { audiences: vec![], client_id: None, ..provider() };
    let world = World::with(Signer::ed(), nobody);
    for wrong in [json!("chitin"), json!(""), json!([]), Value::Null] {
        assert!(world.with_claims(&json!({"aud": wrong})).await.is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn t49_names_that_stand_twice_are_refused() {
    let world = World::with(Signer::ed(), provider());
    let sign = |header: &str, claims: &str| {
        let message = format!("{}.{}", text(header), text(claims));
        SecretText::new(format!("{message}.{}", text(world.signer.sign(message.as_bytes(), "EdDSA"))))
    };
    let (header, good) = (r#"{"alg":"EdDSA","kid":"a"}"#, claims().to_string());
    assert!(world.verify(&sign(header, &good)).await.is_ok());
    let twice = good.replacen('{', r#"{"aud":"other","#, 1);
    assert_eq!(world.verify(&sign(header, &twice)).await.unwrap_err(), TokenRefused::InvalidToken);
    let header = r#"{"alg":"EdDSA","kid":"a","alg":"EdDSA"}"#;
    assert_eq!(world.verify(&sign(header, &good)).await.unwrap_err(), TokenRefused::InvalidToken);
}

#[tokio::test]
async fn tokens_for_another_purpose_are_refused() {
    let world = World::with(Signer::ed(), provider());
    let with = |header: Value| {
        let mut all = json!({"alg": "EdDSA", "kid": "a"});
        for (name, value) in header.as_object().unwrap() {
            all[name] = value.clone();
        }
        world.signer.token_with(&all, &claims())
    };
    for good in ["JWT", "jwt", "at+jwt", "application/at+jwt"] {
        assert!(world.verify(&with(json!({"typ": good}))).await.is_ok(), "{good}");
    }
    for wrong in ["logout+jwt", "dpop+jwt", "secevent+jwt", "x"] {
        assert!(world.verify(&with(json!({"typ": wrong}))).await.is_err(), "{wrong}");
    }
    for wrong in
        [json!({"crit": ["b64"], "b64": false}), json!({"crit": []}), json!({"kid": 7}), json!({"typ": 7})]
    {
        assert!(world.verify(&with(wrong.clone())).await.is_err(), "{wrong}");
    }
    for wrong in [json!({"events": {}}), json!({"cnf": {"jkt": "x"}})] {
        assert!(world.with_claims(&wrong).await.is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn texts_that_are_no_tokens_are_refused() {
    let world = World::with(Signer::ed(), provider());
    let long = format!("{}.e30.c2ln", "a".repeat(super::TOKEN_BYTES_MAX));
    let deep = format!("{}.{}.c2ln", text(r#"{"alg":"EdDSA"}"#), text("[".repeat(9_000)));
    for wrong in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "e30.e30.e30",
        "e30.e30",
        "hunter2",
        "\u{e4}.\u{e4}.\u{e4}",
        &long,
        &deep,
    ] {
        assert_eq!(
            world.verify(&SecretText::new(wrong.into())).await.unwrap_err(),
            TokenRefused::InvalidToken
        );
    }
    assert_eq!(world.fetcher.count(), 0);
    let nobody =
        world.tokens.verify(&[], &world.signer.token("a", &claims()), Kind::Password).await.unwrap_err();
    assert_eq!(nobody.to_string(), "JWT authentication: not enabled");
}

#[tokio::test]
async fn a_stranger_s_issuer_is_not_asked() {
    let world = World::with(Signer::ed(), provider());
    for wrong in ["https://evil.example", "https://issuer.example/", "https://ISSUER.example", ""] {
        let refused = world.with_claims(&json!({"iss": wrong})).await.unwrap_err();
        assert_eq!(refused.to_string(), "JWT authentication: invalid token");
    }
    let noisy =
        world.with_claims(&json!({"iss": format!("\u{1b}[31m\n{}", "x".repeat(9_000))})).await.unwrap_err();
    let detail = noisy.detail().unwrap();
    assert!(detail.len() < 400 && !detail.contains(['\n', '\u{1b}']), "{detail}");
    assert_eq!(world.fetcher.count(), 0);
}

#[tokio::test]
async fn claims_are_strings_or_lists_of_them() {
    let provider = IdentityProvider { claim: "email".into(), ..provider() };
    let world = World::with(Signer::ed(), provider);
    let read =
        async |value: Value| world.with_claims(&json!({"email": value})).await.map(|read| read.principals);
    assert_eq!(read(json!("m@x.org")).await.unwrap(), ["m@x.org"]);
    assert_eq!(read(json!(["a", "b"])).await.unwrap(), ["a", "b"]);
    for wrong in [
        json!(7),
        json!([]),
        json!([7]),
        json!(["a", null]),
        json!({}),
        json!(""),
        json!(true),
        json!("x".repeat(2_000)),
    ] {
        let refused = read(wrong.clone()).await.unwrap_err();
        assert_eq!(refused.to_string(), "JWT authentication: invalid claim value", "{wrong}");
    }
    let unverified = json!({"email": "m@x.org", "email_verified": false});
    assert!(world.with_claims(&unverified).await.is_err());
    assert!(world.with_claims(&json!({"email": "m@x.org", "email_verified": true})).await.is_ok());
}

#[tokio::test]
async fn groups_come_from_the_token_or_from_userinfo() {
    let provider = IdentityProvider { group_claim: Some("groups".into()), jwks_uri: None, ..provider() };
    let world = World::with(Signer::ed(), provider);
    let userinfo = format!("{ISSUER}/me");
    let document = json!({"issuer": ISSUER, "jwks_uri": KEYS_URL, "userinfo_endpoint": userinfo});
    world.fetcher.answer(DISCOVERY_URL, &document);
    let read = async |changes: Value| world.with_claims(&changes).await.map(|read| read.groups.unwrap());
    assert_eq!(read(json!({"groups": ["a", "b"]})).await.unwrap(), ["a", "b"]);
    assert_eq!(read(json!({"groups": []})).await.unwrap(), Vec::<String>::new());
    assert!(read(json!({"groups": [7]})).await.is_err());

    let failed = read(json!({})).await.unwrap_err();
    assert_eq!(failed.to_string(), "JWT authorization: userinfo lookup failed");
    assert!(!failed.is_wrong());
    world.fetcher.answer(&userinfo, &json!({"sub": "maria", "groups": ["c"]}));
    assert_eq!(read(json!({})).await.unwrap(), ["c"]);
    assert!(world.fetcher.last().authorization.unwrap().0.starts_with("Bearer ey"));
    world.fetcher.answer(&userinfo, &json!({"sub": "somebody", "groups": ["admin"]}));
    assert!(read(json!({})).await.is_err());
    world.fetcher.answer(&userinfo, &json!({"sub": "maria"}));
    assert_eq!(read(json!({})).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn an_id_token_belongs_to_one_sign_in() {
    let world = World::with(Signer::ed(), provider());
    assert!(id_token(&world, &json!({}), "n-1").await.is_ok());
    for nonce in ["n-2", "", "n-11"] {
        assert!(id_token(&world, &json!({}), nonce).await.is_err());
    }
    assert!(id_token(&world, &json!({"nonce": null}), "n-1").await.is_err());
    assert!(id_token(&world, &json!({"nonce": ""}), "").await.is_err());
    // An audience of passwords is none of ID tokens; and of several, ours must have asked.
    for wrong in [
        json!({"aud": "chitin"}),
        json!({"aud": ["client-7", "other"]}),
        json!({"aud": ["client-7", "other"], "azp": "other"}),
        json!({"azp": "other"}),
        json!({"aud": ["other"], "azp": "client-7"}),
    ] {
        let refused = id_token(&world, &wrong, "n-1").await.unwrap_err();
        assert_eq!(refused.to_string(), "JWT authentication: invalid audience", "{wrong}");
    }
    assert!(id_token(&world, &json!({"aud": ["client-7", "other"], "azp": "client-7"}), "n-1").await.is_ok());
}

#[tokio::test]
async fn several_providers_stand_side_by_side() {
    let world = World::with(Signer::ed(), provider());
    let other_signer = Signer::es256();
    let other = IdentityProvider {
        name: "other".parse().unwrap(),
        jwks: Some(json!({"keys": [other_signer.jwk(Some("a"))]}).to_string()),
        ..provider()
    };
    let both = [Arc::new(other), world.provider.clone()];
    let by = async |signer: &Signer| {
        let read = world.tokens.verify(&both, &signer.token("a", &claims()), Kind::Password).await;
        read.map(|read| read.provider.name.to_string())
    };
    assert_eq!(by(&world.signer).await.unwrap(), "corp");
    assert_eq!(by(&other_signer).await.unwrap(), "other");
    assert!(by(&Signer::es256()).await.is_err());
}

#[test]
fn a_token_is_checked_without_a_fetch_too() {
    let signer = Signer::ed();
    let keys = KeySet::parse(json!({"keys": [signer.jwk(Some("a"))]}).to_string().as_bytes()).unwrap();
    let check = |token: &SecretText| super::check(&provider(), &keys, token.expose(), Kind::Password, NOW);
    assert_eq!(check(&signer.token("a", &claims())).unwrap(), ["maria"]);
    assert!(check(&signer.token("b", &claims())).is_err());
    assert!(check(&signer.token("a", &claims_with(&json!({"iss": "x"})))).is_err());
}

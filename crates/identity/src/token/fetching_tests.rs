//! The user's and the attacker's tests of fetching a provider's keys.

use std::sync::Arc;
use std::time::Duration;

use model::{FetchFailure, IdentityProvider};
use serde_json::json;

use super::testing::{DISCOVERY_URL, ISSUER, KEYS_URL, NOW, Signer, World, claims, fetched, provider};
use super::{ANSWER_BYTES_MAX, KEYS_MAX, Kind, TokenRefused};

#[tokio::test]
async fn given_keys_ask_nobody() {
    let signer = Signer::es256();
    let jwks = json!({"keys": [signer.jwk(Some("a"))]}).to_string();
    let world = World::with(signer, IdentityProvider { jwks: Some(jwks), ..provider() });
    assert!(world.with_claims(&json!({})).await.is_ok());
    assert!(world.verify(&world.signer.token("b", &claims())).await.is_err());
    assert_eq!(world.fetcher.count(), 0);
    // Other keys are in force at once.
    let other = json!({"keys": [Signer::es256().jwk(Some("a"))]}).to_string();
    let changed = Arc::new(IdentityProvider { jwks: Some(other), ..(*world.provider).clone() });
    let token = world.signer.token("a", &claims());
    assert!(world.tokens.verify(&[changed], &token, Kind::Password).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn t50_unknown_keys_cost_one_fetch_a_window() {
    let world = Arc::new(World::with(Signer::ed(), provider()));
    world.with_claims(&json!({})).await.unwrap();
    assert_eq!(world.fetcher.count(), 1);
    *world.fetcher.delay.lock().unwrap() = Duration::from_millis(50);
    let flood = async |parallel: usize| {
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..parallel {
            let world = world.clone();
            tasks.spawn(async move {
                let token = world.signer.token(&format!("unknown-{index}"), &claims());
                assert!(world.verify(&token).await.is_err());
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        world.fetcher.count()
    };
    assert_eq!(flood(100).await, 1, "a fetch was just made");
    world.clock.advance(time::Duration::seconds(29));
    assert_eq!(flood(100).await, 1);
    world.clock.advance(time::Duration::seconds(2));
    assert_eq!(flood(1_000).await, 2);
    world.clock.advance(time::Duration::seconds(268));
    assert_eq!(flood(1_000).await, 3);
    // A known one never waits for it.
    assert!(world.with_claims(&json!({})).await.is_ok());
    assert_eq!(world.fetcher.count(), 3);
}

#[tokio::test]
async fn t50_a_new_key_is_found_at_once() {
    let world = World::with(Signer::ed(), provider());
    world.with_claims(&json!({})).await.unwrap();
    world.clock.advance(time::Duration::seconds(31));
    let rotated = Signer::es256();
    world.fetcher.answer(KEYS_URL, &json!({"keys": [rotated.jwk(Some("b"))]}));
    assert!(world.verify(&rotated.token("b", &claims())).await.is_ok());
    assert!(world.with_claims(&json!({})).await.is_err(), "the old key is gone");
}

#[tokio::test]
async fn t50_leaving_early_does_not_use_up_the_next_try() {
    let world = World::with(Signer::ed(), provider());
    world.with_claims(&json!({})).await.unwrap();
    world.clock.advance(time::Duration::seconds(31));
    let rotated = Signer::ed();
    world.fetcher.answer(KEYS_URL, &json!({"keys": [rotated.jwk(Some("b"))]}));
    *world.fetcher.delay.lock().unwrap() = Duration::from_millis(100);
    let stranger = world.signer.token("x", &claims());
    assert!(tokio::time::timeout(Duration::from_millis(20), world.verify(&stranger)).await.is_err());
    assert!(world.verify(&rotated.token("b", &claims())).await.is_ok());
    assert_eq!(world.fetcher.count(), 2);
}

#[tokio::test]
async fn a_provider_may_be_down_for_a_while() {
    let world = World::with(Signer::ed(), provider());
    let down = || Err(FetchFailure::Failed("connection refused by 10.0.0.7".into()));
    world.fetcher.reply(KEYS_URL, down());
    let refused = world.with_claims(&json!({})).await.unwrap_err();
    assert_eq!(refused.to_string(), "JWT authentication: unable to validate token");
    assert!(!refused.is_wrong() && refused.detail().unwrap().contains("10.0.0.7"));
    // Not at every sign-in.
    assert!(world.with_claims(&json!({})).await.is_err());
    assert_eq!(world.fetcher.count(), 1);
    world.fetcher.answer(KEYS_URL, &json!({"keys": [world.signer.jwk(Some("a"))]}));
    world.clock.advance(time::Duration::seconds(6));
    assert!(world.with_claims(&json!({})).await.is_ok());

    world.fetcher.reply(KEYS_URL, down());
    let later = async |hours: i64| {
        world.clock.advance(time::Duration::hours(hours));
        world.with_claims(&json!({"exp": NOW.unix_timestamp() + 1_000_000})).await.is_ok()
    };
    assert!(later(2).await && later(20).await);
    assert!(!later(4).await, "keys of yesterday are no keys");
}

#[tokio::test]
async fn keys_are_kept_as_long_as_the_provider_says_within_bounds() {
    for (said, fresh_seconds) in [(None, 3_600), (Some(0), 300), (Some(600), 600), (Some(u64::MAX), 86_400)] {
        let world = World::with(Signer::ed(), provider());
        let body = json!({"keys": [world.signer.jwk(Some("a"))]}).to_string().into_bytes();
        let mut answer = fetched(200, body);
        answer.max_age = said.map(Duration::from_secs);
        world.fetcher.reply(KEYS_URL, Ok(answer));
        let at = async |advance: i64| {
            world.clock.advance(time::Duration::seconds(advance));
            world.with_claims(&json!({"exp": NOW.unix_timestamp() + 1_000_000})).await.unwrap();
            world.fetcher.count()
        };
        assert_eq!(at(0).await, 1);
        assert_eq!(at(fresh_seconds - 1).await, 1, "{said:?}");
        assert_eq!(at(1).await, 2, "{said:?}");
    }
}

#[tokio::test]
async fn t51_huge_answers_and_key_sets_are_refused() {
    let many: Vec<_> = (0..=KEYS_MAX).map(|index| json!({"kid": index.to_string()})).collect();
    for body in [
        vec![b' '; ANSWER_BYTES_MAX + 1],
        json!({ "keys": many }).to_string().into_bytes(),
        b"<html>".to_vec(),
        [b"{\"keys\":".as_slice(), &b"[".repeat(60_000)].concat(),
    ] {
        let world = World::with(Signer::ed(), provider());
        world.fetcher.reply(KEYS_URL, Ok(fetched(200, body)));
        assert!(matches!(world.with_claims(&json!({})).await, Err(TokenRefused::Unavailable(_))));
        assert_eq!(world.fetcher.last().bytes_max, 64 * 1024);
    }
}

#[tokio::test]
async fn t51_redirects_and_errors_are_no_answers() {
    for status in [204, 301, 302, 307, 404, 500] {
        let world = World::with(Signer::ed(), provider());
        let body = json!({"keys": [world.signer.jwk(Some("a"))]}).to_string().into_bytes();
        world.fetcher.reply(KEYS_URL, Ok(fetched(status, body)));
        let refused = world.with_claims(&json!({})).await.unwrap_err();
        assert!(refused.detail().unwrap().contains(&status.to_string()), "{refused:?}");
        assert_eq!(world.fetcher.count(), 1);
    }
}

#[tokio::test]
async fn t51_discovery_must_speak_for_its_issuer_and_lead_to_https() {
    let discovered = || World::with(Signer::ed(), IdentityProvider { jwks_uri: None, ..provider() });
    let world = discovered();
    world.fetcher.answer(DISCOVERY_URL, &json!({"issuer": ISSUER, "jwks_uri": KEYS_URL}));
    assert!(world.with_claims(&json!({})).await.is_ok());
    for (issuer, keys) in [
        ("https://evil.example", KEYS_URL),
        ("https://issuer.example/", KEYS_URL),
        (ISSUER, "http://issuer.example/keys"),
        (ISSUER, "http://127.0.0.1/keys"),
        (ISSUER, "http://169.254.169.254/latest"),
        (ISSUER, "file:///etc/passwd"),
        (ISSUER, "https://user:secret@issuer.example/keys"),
        (ISSUER, "/keys"),
        (ISSUER, ""),
    ] {
        let world = discovered();
        world.fetcher.answer(DISCOVERY_URL, &json!({"issuer": issuer, "jwks_uri": keys}));
        world.fetcher.answer(keys, &json!({"keys": [world.signer.jwk(Some("a"))]}));
        let refused = world.with_claims(&json!({})).await.unwrap_err();
        assert!(matches!(refused, TokenRefused::Unavailable(_)), "{issuer} {keys}");
        assert_eq!(world.fetcher.count(), 1, "{keys} must not be asked");
    }
    for (issuer, is_used) in
        [("http://127.0.0.1:7000", true), ("http://[::1]:7", true), ("http://10.0.0.1", false)]
    {
        let keys = format!("{issuer}/keys");
        let world = World::with(
            Signer::ed(),
            IdentityProvider { issuer: issuer.into(), jwks_uri: Some(keys.clone()), ..provider() },
        );
        world.fetcher.answer(&keys, &json!({"keys": [world.signer.jwk(Some("a"))]}));
        assert_eq!(world.with_claims(&json!({"iss": issuer})).await.is_ok(), is_used, "{issuer}");
    }
}

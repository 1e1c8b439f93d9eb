//! The user's and the attacker's tests of signing in through a browser.

use std::collections::HashMap;

use model::FetchFailure;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::*;
use crate::digest_of;
use crate::token::testing::{
    DISCOVERY_URL, ISSUER, KEYS_URL, Signer, TestClock, TestFetcher, claims_with, fetched, provider,
};

const TOKEN_URL: &str = "https://issuer.example/token";
const CALLBACK: &str = "https://chitin.example/oidc/v1/callback";

struct World {
    clock: Arc<TestClock>,
    fetcher: Arc<TestFetcher>,
    flows: Flows<String>,
    provider: Arc<IdentityProvider>,
    signer: Signer,
}

/// What the provider's page is asked with.
struct Asked {
    query: HashMap<String, String>,
    cookie: String,
}

impl World {
    fn new() -> Self {
        Self::with(&json!({}), provider())
    }

    fn with(discovery: &Value, provider: IdentityProvider) -> Self {
        let (clock, fetcher, signer) = (TestClock::new(), TestFetcher::new(), Signer::ed());
        let mut document = json!({
            "issuer": ISSUER,
            "jwks_uri": KEYS_URL,
            "authorization_endpoint": "https://issuer.example/authorize?tenant=1",
            "token_endpoint": TOKEN_URL,
        });
        for (name, value) in discovery.as_object().unwrap() {
            document[name] = value.clone();
        }
        fetcher.answer(DISCOVERY_URL, &document);
        fetcher.answer(KEYS_URL, &json!({"keys": [signer.jwk(Some("a"))]}));
        let tokens = Arc::new(Tokens::new(fetcher.clone(), clock.clone()));
        let flows = Flows::new(tokens, fetcher.clone(), clock.clone());
        Self { clock, fetcher, flows, provider: Arc::new(provider), signer }
    }

    async fn begin(&self) -> Asked {
        let begun = self.flows.begin(self.provider.clone(), CALLBACK, "purpose".to_owned()).await.unwrap();
        let query = begun.location.query_pairs().into_owned().collect();
        Asked { query, cookie: begun.state_cookie.expose().to_owned() }
    }

    /// The provider's answer to the code.
    fn answer(&self, asked: &Asked, changes: &Value) {
        let mut claims = claims_with(&json!({"aud": "client-7", "nonce": asked.query["nonce"]}));
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let id_token = self.signer.token("a", &claims);
        let answer = json!({"access_token": "at-1", "token_type": "Bearer", "id_token": id_token.expose()});
        self.fetcher.answer(TOKEN_URL, &answer);
    }

    async fn finish(&self, asked: &Asked) -> Result<(Claims, String), OidcRefused> {
        self.finish_with(&asked.query["state"], Some(&asked.cookie), "code-1", None).await
    }

    async fn finish_with(
        &self,
        state: &str,
        cookie: Option<&str>,
        code: &str,
        iss: Option<&str>,
    ) -> Result<(Claims, String), OidcRefused> {
        self.flows.finish(state, cookie, code, iss, |_| vec![self.provider.clone()]).await
    }
}

/// The form that was posted last.
fn posted(world: &World) -> HashMap<String, String> {
    let fetch =
        world.fetcher.asked.lock().unwrap().iter().rfind(|fetch| fetch.url == TOKEN_URL).cloned().unwrap();
    let text = String::from_utf8(fetch.body.unwrap().bytes.0).unwrap();
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8().unwrap().into_owned();
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

#[tokio::test]
async fn a_person_signs_in_with_a_code() {
    let world = Arc::new(World::new());
    let asked = world.begin().await;
    let query = |name: &str| asked.query[name].as_str();
    assert_eq!((query("response_type"), query("client_id"), query("tenant")), ("code", "client-7", "1"));
    assert_eq!((query("scope"), query("redirect_uri")), ("openid", CALLBACK));
    assert_eq!(query("code_challenge_method"), "S256");
    for name in ["state", "nonce", "code_challenge"] {
        assert_eq!(query(name).len(), 43, "{name} has 256 bits");
    }
    world.answer(&asked, &json!({}));
    // Whoever calls may be on any thread.
    let inside = world.clone();
    let task = tokio::spawn(async move { (inside.finish(&asked).await, asked) });
    let (finished, asked) = task.await.unwrap();
    let (claims, purpose) = finished.unwrap();
    assert_eq!((claims.principals, purpose), (vec!["maria".to_owned()], "purpose".to_owned()));
    let form = posted(&world);
    assert_eq!((form["grant_type"].as_str(), form["code"].as_str()), ("authorization_code", "code-1"));
    assert_eq!((form["redirect_uri"].as_str(), form["client_id"].as_str()), (CALLBACK, "client-7"));
    let challenge = digest_of(&form["code_verifier"]);
    assert_eq!(URL_SAFE_NO_PAD.encode(challenge), asked.query["code_challenge"]);
}

#[tokio::test]
async fn t53_a_state_counts_once_and_in_its_browser_only() {
    let world = World::new();
    let asked = world.begin().await;
    world.answer(&asked, &json!({}));
    assert!(world.finish(&asked).await.is_ok());
    let again = world.finish(&asked).await.unwrap_err();
    assert_eq!(again.to_string(), "OIDC: unable to complete authentication");
    assert_eq!((world.flows.take_counts(), world.flows.take_counts()), ((1, 1), (0, 0)));

    // Without a cookie, with another flow's, with a part, and with one that was changed.
    let other = world.begin().await;
    let asked = world.begin().await;
    world.answer(&asked, &json!({}));
    let mut changed = asked.cookie.clone().into_bytes();
    changed[40] = if changed[40] == b'A' { b'B' } else { b'A' };
    let changed = String::from_utf8(changed).unwrap();
    let part = &asked.cookie[..asked.cookie.len() - 4];
    for cookie in [None, Some(other.cookie.as_str()), Some(""), Some(part), Some(changed.as_str())] {
        let count = world.fetcher.count();
        let refused = world.finish_with(&asked.query["state"], cookie, "code-1", None).await;
        assert!(matches!(refused, Err(OidcRefused::NoFlow(_))), "{cookie:?}");
        assert_eq!(world.fetcher.count(), count, "no provider is asked");
    }
    for state in ["", "x", &"x".repeat(100_000)] {
        assert!(world.finish_with(state, Some(&other.cookie), "code-1", None).await.is_err());
    }
    assert!(world.finish(&asked).await.is_ok(), "nobody else's try takes it away");
    assert_eq!(world.flows.give_up(&other.query["state"], Some(&other.cookie)).unwrap(), "purpose");
    assert!(world.flows.give_up(&other.query["state"], Some(&asked.cookie)).is_err());
    // Another process knows nothing of it.
    let elsewhere = World::new();
    assert!(elsewhere.flows.give_up(&other.query["state"], Some(&other.cookie)).is_err());
}

#[tokio::test]
async fn t53_of_two_ends_of_one_flow_one_counts() {
    let world = World::new();
    let asked = world.begin().await;
    world.answer(&asked, &json!({}));
    let (one, other) = tokio::join!(world.finish(&asked), world.finish(&asked));
    assert_eq!([&one, &other].iter().filter(|end| end.is_ok()).count(), 1, "{one:?} {other:?}");
}

#[tokio::test]
async fn a_provider_that_was_changed_or_removed_meanwhile_ends_no_flow() {
    let world = World::new();
    let changed = Arc::new(IdentityProvider { client_secret: Some("other".into()), ..provider() });
    for now in [vec![], vec![changed]] {
        let asked = world.begin().await;
        world.answer(&asked, &json!({}));
        let state = &asked.query["state"];
        let refused = world.flows.finish(state, Some(&asked.cookie), "code-1", None, |_| now).await;
        assert!(matches!(refused, Err(OidcRefused::NoFlow(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn a_cookie_tells_nothing_and_has_one_length() {
    let world = World::new();
    let mut lengths = Vec::new();
    for purpose in [String::new(), "a longer purpose".to_owned(), "x".repeat(190)] {
        let begun = world.flows.begin(world.provider.clone(), CALLBACK, purpose).await.unwrap();
        let cookie = begun.state_cookie.expose();
        assert!(
            cookie.len() <= 512 && cookie.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
        );
        lengths.push(cookie.len());
        let plain = URL_SAFE_NO_PAD.decode(cookie).unwrap();
        assert!(!plain.windows(6).any(|part| part == b"chitin" || part == b"purpos"), "it is sealed");
    }
    lengths.dedup();
    assert_eq!(lengths.len(), 1, "{lengths:?}");
    for (callback, purpose) in [(CALLBACK.to_owned(), 192), (format!("{CALLBACK}/{}", "x".repeat(300)), 1)] {
        let refused = world.flows.begin(world.provider.clone(), &callback, "x".repeat(purpose)).await;
        assert!(matches!(refused, Err(OidcRefused::Initiate(_))), "{purpose}");
    }
}

#[tokio::test]
async fn t53_a_flow_lapses() {
    let world = World::new();
    for (seconds, is_good) in [(599, true), (600, false)] {
        let asked = world.begin().await;
        world.answer(&asked, &json!({"exp": 4_000_000_000_u32}));
        world.clock.advance(time::Duration::seconds(seconds));
        assert_eq!(world.finish(&asked).await.is_ok(), is_good, "{seconds}");
    }
}

#[tokio::test]
async fn tokens_of_another_sign_in_are_refused() {
    let world = World::new();
    for wrong in [
        json!({"nonce": "another"}),
        json!({"nonce": null}),
        json!({"aud": "chitin"}),
        json!({"aud": "other"}),
        json!({"iss": "https://evil.example"}),
        json!({"exp": 1}),
        json!({"sub": null}),
    ] {
        let asked = world.begin().await;
        world.answer(&asked, &wrong);
        let refused = world.finish(&asked).await.unwrap_err();
        assert_eq!(refused.to_string(), "OIDC: unable to complete authentication", "{wrong}");
        assert!(matches!(refused, OidcRefused::Complete(_)));
    }
}

#[tokio::test]
async fn what_a_provider_answers_instead_of_tokens_is_refused_and_not_shown() {
    let world = World::new();
    let refusal = json!({"error": "invalid_grant", "error_description": "no"}).to_string().into_bytes();
    let secret = json!({"access_token": "secret-1", "token_type": "Bearer", "expires_in": []}).to_string();
    let without = json!({"access_token": "secret-1", "token_type": "Bearer"}).to_string().into_bytes();
    for reply in [
        Ok(fetched(400, refusal)),
        Ok(fetched(200, secret.into_bytes())),
        Ok(fetched(200, without)),
        Ok(fetched(200, b"<html>secret-1".to_vec())),
        Ok(fetched(302, vec![])),
        Ok(fetched(9_999, vec![])),
        Ok(fetched(200, vec![b' '; 70_000])),
        Err(FetchFailure::TimedOut),
    ] {
        let asked = world.begin().await;
        world.fetcher.reply(TOKEN_URL, reply);
        let refused = world.finish(&asked).await.unwrap_err();
        assert_eq!(refused.to_string(), "OIDC: unable to complete authentication");
        assert!(!format!("{refused:?}").contains("secret-1"), "{refused:?}");
    }
    for code in ["", &"x".repeat(5_000)] {
        let asked = world.begin().await;
        let count = world.fetcher.count();
        let state = &asked.query["state"];
        assert!(world.finish_with(state, Some(&asked.cookie), code, None).await.is_err());
        assert_eq!(world.fetcher.count(), count);
    }
}

#[tokio::test]
async fn answers_of_another_issuer_are_refused() {
    let world = World::with(&json!({"authorization_response_iss_parameter_supported": true}), provider());
    for (iss, is_good) in [(Some(ISSUER), true), (Some("https://evil.example"), false), (None, false)] {
        let asked = world.begin().await;
        world.answer(&asked, &json!({}));
        let finished = world.finish_with(&asked.query["state"], Some(&asked.cookie), "code-1", iss).await;
        assert_eq!(finished.is_ok(), is_good, "{iss:?}");
    }
}

#[tokio::test]
async fn a_client_secret_goes_to_the_token_endpoint_only() {
    let secret = || IdentityProvider { client_secret: Some("s3cret&:".into()), ..provider() };
    let world = World::with(&json!({}), secret());
    let asked = world.begin().await;
    assert!(!asked.query.values().any(|value| value.contains("s3cret")));
    world.answer(&asked, &json!({}));
    world.finish(&asked).await.unwrap();
    let all = world.fetcher.asked.lock().unwrap().clone();
    let with: Vec<_> = all.iter().filter(|fetch| fetch.authorization.is_some()).collect();
    assert_eq!((with.len(), with[0].url.as_str()), (1, TOKEN_URL));
    assert!(with[0].authorization.as_ref().unwrap().0.starts_with("Basic "));
    assert!(!format!("{all:?}").contains("s3cret"));

    let methods = json!({"token_endpoint_auth_methods_supported": ["client_secret_post"]});
    let world = World::with(&methods, secret());
    let asked = world.begin().await;
    world.answer(&asked, &json!({}));
    world.finish(&asked).await.unwrap();
    assert_eq!(posted(&world)["client_secret"], "s3cret&:");
}

#[tokio::test]
async fn groups_of_a_person_come_from_userinfo_where_the_id_token_has_none() {
    let userinfo = "https://issuer.example/me";
    let with_groups = IdentityProvider { group_claim: Some("groups".into()), ..provider() };
    let world = World::with(&json!({ "userinfo_endpoint": userinfo }), with_groups);
    world.fetcher.answer(userinfo, &json!({"sub": "maria", "groups": ["ops"]}));
    let asked = world.begin().await;
    world.answer(&asked, &json!({}));
    let (claims, _) = world.finish(&asked).await.unwrap();
    assert_eq!(claims.groups.unwrap(), ["ops"]);
    assert_eq!(world.fetcher.last().authorization.unwrap().0, "Bearer at-1");
}

#[tokio::test]
async fn a_provider_that_cannot_be_used_is_refused_at_the_beginning() {
    let begin = async |world: &World| {
        world
            .flows
            .begin(world.provider.clone(), CALLBACK, "purpose".to_owned())
            .await
            .map(|_| ())
            .unwrap_err()
    };
    let world = World::with(&json!({}), IdentityProvider { client_id: None, ..provider() });
    assert_eq!(begin(&world).await.to_string(), "OIDC: disabled");
    for wrong in [
        json!({"authorization_endpoint": null}),
        json!({"token_endpoint": null}),
        json!({"authorization_endpoint": "http://issuer.example/authorize"}),
        json!({"authorization_endpoint": "javascript:alert(1)"}),
        json!({"issuer": "https://evil.example"}),
    ] {
        let refused = begin(&World::with(&wrong, provider())).await;
        assert_eq!(refused.to_string(), "OIDC: unable to initiate authentication", "{wrong}");
    }
    // Down at the beginning, it works as soon as it is up.
    let world = World::new();
    world.fetcher.reply(DISCOVERY_URL, Err(FetchFailure::TimedOut));
    assert!(matches!(begin(&world).await, OidcRefused::Initiate(_)));
    let document = json!({"issuer": ISSUER, "jwks_uri": KEYS_URL, "authorization_endpoint": ISSUER, "token_endpoint": TOKEN_URL});
    world.fetcher.answer(DISCOVERY_URL, &document);
    world.clock.advance(time::Duration::seconds(6));
    world.begin().await;
}

#[tokio::test]
async fn t70_no_number_of_strangers_takes_the_place_of_a_person_at_the_provider() {
    let world = World::new();
    let person = world.begin().await;
    // Twice as many as there once were places.
    for _ in 0..20_000 {
        world.flows.begin(world.provider.clone(), CALLBACK, "flood".to_owned()).await.unwrap();
    }
    world.answer(&person, &json!({}));
    assert!(world.finish(&person).await.is_ok(), "a person who began before the flood comes back");
}

#[test]
fn flows_that_ended_are_remembered_until_they_would_have_lapsed_and_bounded() {
    let (used, now) = (Used::default(), time::OffsetDateTime::UNIX_EPOCH);
    let later = now + FLOW_LIFE;
    assert!(used.insert("a", later, now) && !used.insert("a", later, now) && used.contains("a"));
    assert!(used.insert("b", later, later), "the first one has lapsed");
    assert!(!used.contains("a") && used.contains("b"));
    for number in 0..10_000 {
        used.insert(&number.to_string(), later + FLOW_LIFE, later);
    }
    assert!(!used.contains("b") && used.contains("0") && used.contains("9999"));
}

/// What comes of trying the provider before it is set.
async fn tried(world: &World) -> Result<(), String> {
    try_out(&world.provider, CALLBACK, world.fetcher.clone(), world.clock.clone()).await
}

fn with_secret() -> IdentityProvider {
    IdentityProvider { client_secret: Some("canary-secret".to_owned()), ..provider() }
}

#[tokio::test]
async fn what_is_set_is_tried_as_far_as_that_goes_without_a_person() {
    let world = World::with(&json!({}), with_secret());
    let refuses = |status: u16, body: &str| {
        world.fetcher.reply(TOKEN_URL, Ok(fetched(status, body.as_bytes().to_vec())));
    };
    // A provider that knows the client says that it does not know the code.
    for (status, body) in [
        (400, r#"{"error": "invalid_grant"}"#),
        (400, r#"{"error": "invalid_request"}"#),
        (400, "<html>"),
        (400, r#"{"error": {"of": "another form"}}"#),
    ] {
        refuses(status, body);
        assert_eq!(tried(&world).await, Ok(()), "{body}");
    }
    let form = posted(&world);
    assert_eq!(
        (form["grant_type"].as_str(), form["redirect_uri"].as_str()),
        ("authorization_code", CALLBACK)
    );
    assert_eq!((form["code"].len(), form["code_verifier"].len()), (43, 43), "nobody was given that code");

    for (status, body, why) in [
        (401, r#"{"error": "invalid_client"}"#, "give the secret that belongs to the client id"),
        (400, r#"{"error": "invalid_client", "error_description": "canary-secret"}"#, "invalid_client"),
        (400, r#"{"error": "unauthorized_client"}"#, "authorization code flow"),
        (401, "<html>", "HTTP status 401"),
        (503, "<html>", "HTTP status 503"),
        (200, r#"{"access_token": "a", "token_type": "Bearer"}"#, "made up"),
    ] {
        refuses(status, body);
        let refused = tried(&world).await.unwrap_err();
        assert!(refused.contains(why) && refused.contains(ISSUER), "{body}: {refused}");
        assert!(!refused.contains("canary"), "{refused}");
    }
    world.fetcher.reply(TOKEN_URL, Err(FetchFailure::TimedOut));
    assert!(tried(&world).await.is_err(), "who does not answer accepts nothing");
}

#[tokio::test]
async fn a_provider_that_does_not_publish_what_sign_ins_need_is_noticed_before_it_counts() {
    let world = World::new();
    assert_eq!(tried(&world).await, Ok(()), "without a secret there is nothing to ask the token endpoint");
    assert!(world.fetcher.asked.lock().unwrap().iter().all(|fetch| fetch.url != TOKEN_URL));
    world.fetcher.answer(KEYS_URL, &json!({"keys": "none"}));
    assert!(tried(&world).await.unwrap_err().contains("jwks"));

    let no_endpoint = World::with(&json!({"token_endpoint": null}), provider());
    assert!(tried(&no_endpoint).await.unwrap_err().contains("token endpoint"));
    let liar = World::with(&json!({"issuer": "https://other.example"}), provider());
    assert!(tried(&liar).await.unwrap_err().contains("https://other.example"));
    let nowhere =
        World::with(&json!({}), IdentityProvider { issuer: "https://typo.example".into(), ..provider() });
    assert!(tried(&nowhere).await.unwrap_err().contains("https://typo.example"));

    // Keys that are given, and no browser: nobody is asked.
    let jwks = json!({"keys": [world.signer.jwk(Some("a"))]}).to_string();
    let given = IdentityProvider { jwks: Some(jwks), client_id: None, ..provider() };
    let alone = World::with(&json!({}), given);
    assert_eq!(tried(&alone).await, Ok(()));
    assert_eq!(alone.fetcher.count(), 0);
}

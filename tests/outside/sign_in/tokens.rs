//! Tokens in a password's place: whose are good, for whom, and what forgers try.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::sign_in::cloud;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use house::caller::{Wanted, fresh_address};
use house::cloud::PATIENCE;
use house::command::{eventually, run_with};
use house::provider::{AUDIENCE, CLIENT_ID, CLIENT_SECRET, Provider, now, with};
use house::scram::{self, Exchange};
use house::{Caller, Cloud, Cluster, Options, Refusal, machine};
use serde_json::json;

/// A cluster that takes tokens of a new provider, and that provider.
fn stage(name: &str, algorithm: &str) -> (Cluster<'static>, Provider) {
    let provider = Provider::start(algorithm);
    let one = cloud().cluster(name, &[]);
    one.set_provider("corp", &provider.settings()).ok();
    one.set_rules("host all all all jwt\n");
    (one, provider)
}

fn bearing(token: &str) -> Caller {
    Caller::with(token).from(fresh_address())
}

/// Every word that a client may hear when a token is refused.
const WORDS: [&str; 8] = [
    "JWT authentication: invalid token",
    "JWT authentication: unable to validate token",
    "JWT authentication: missing claim",
    "JWT authentication: invalid claim value",
    "JWT authentication: invalid principal",
    "JWT authentication: invalid identity",
    "JWT authentication: invalid audience",
    "JWT authentication: not enabled",
];

#[track_caller]
fn is_refused(what: &str, one: &Cluster<'_>, token: &str) -> Refusal {
    let refusal = one.refusal_of(what, &bearing(token));
    assert_eq!(refusal.code, "28000", "{what}: {refusal:?}");
    assert!(WORDS.contains(&refusal.message.as_str()), "{what}: {refusal:?}");
    let told = format!("{refusal:?}");
    assert!(!told.contains("127.0.0.1") && (token.len() < 20 || !told.contains(token)), "{what}: {told}");
    refusal
}

pub fn t49_a_good_token_signs_in_as_a_password() {
    let one = cloud().cluster("tokens-good", &[]);
    for algorithm in ["RS256", "PS256", "ES256", "EdDSA"] {
        let provider = Provider::start(algorithm);
        one.set_provider("corp", &provider.settings()).ok();
        one.set_rules("host all all all jwt\n");
        assert_eq!(one.wants_of(&Caller::default()), Ok(Wanted::Clear));
        let token = provider.token("maria");
        assert_eq!(one.welcome(&bearing(&token)).value("select session_user"), "maria", "{algorithm}");
        // By the option, under the default rules, as CockroachDB's clients do it.
        one.set_rules("");
        let caller = Caller::with_token(&token);
        assert_eq!(one.wants_of(&caller), Ok(Wanted::Clear));
        assert_eq!(one.welcome(&caller).value("select session_user"), "maria");
        assert!(
            matches!(one.wants_of(&Caller::with(&token)), Ok(Wanted::Sasl(_))),
            "only who says so is asked for one"
        );
        // A rule that wants something else is not talked out of it.
        one.set_rules("host all all all scram-sha-256\n");
        assert!(matches!(one.wants_of(&caller), Ok(Wanted::Sasl(_))));
    }
}

pub fn t49_good_tokens_come_in_many_forms() {
    let (one, provider) = stage("tokens-forms", "ES256");
    for (what, more) in [
        ("two audiences, one of them ours", json!({ "aud": ["elsewhere", AUDIENCE] })),
        ("the client id as audience", json!({ "aud": CLIENT_ID })),
        ("expired within the skew", json!({ "exp": now() - 15 })),
        ("not yet valid within the skew", json!({ "nbf": now() + 15 })),
        ("issued a little later", json!({ "iat": now() + 15 })),
        ("no time of issue", json!({ "iat": null })),
        (
            "other claims",
            json!({ "groups": ["x"], "email": "maria@example.org", "deep": { "er": [1, 2, 3] } }),
        ),
    ] {
        let token = provider.token_with("maria", &more);
        match one.enter(&bearing(&token)) {
            Ok(mut wire) => assert_eq!(wire.value("select session_user"), "maria"),
            Err(refusal) => panic!("{what}: {refusal:?}"),
        }
    }
    // Without a key id: good as long as there is only one key that could be meant.
    let claims = provider.claims("maria");
    one.welcome(&bearing(&provider.mint(&json!({ "claims": claims, "kid": null }))));
}

pub fn t49_forged_and_unfit_tokens_are_refused() {
    let (one, provider) = stage("tokens-forged", "RS256");
    let stranger = Provider::start("RS256");
    one.welcome(&bearing(&provider.token("maria")));
    for (what, more) in [
        ("no expiry", json!({ "exp": null })),
        ("expired", json!({ "exp": now() - 45 })),
        ("expired long ago", json!({ "exp": 1 })),
        ("an expiry that is text", json!({ "exp": "tomorrow" })),
        ("a negative expiry", json!({ "exp": -1 })),
        ("an expiry beyond all numbers", json!({ "exp": 1e300 })),
        ("not yet valid", json!({ "nbf": now() + 60 })),
        ("issued in the future", json!({ "iat": now() + 120 })),
        ("no issuer", json!({ "iss": null })),
        ("another issuer", json!({ "iss": "https://login.example.org" })),
        ("almost the issuer", json!({ "iss": format!("{}/", provider.issuer()) })),
        ("issuers as a list", json!({ "iss": [provider.issuer()] })),
        ("no audience", json!({ "aud": null })),
        ("another audience", json!({ "aud": "elsewhere" })),
        ("an empty list of audiences", json!({ "aud": [] })),
        ("an audience that begins so", json!({ "aud": format!("{AUDIENCE}-2") })),
        ("an audience that is a number", json!({ "aud": 7 })),
        ("no subject", json!({ "sub": null })),
        ("an empty subject", json!({ "sub": "" })),
        ("another subject", json!({ "sub": "bob" })),
        ("a subject that is a number", json!({ "sub": 7 })),
        ("a subject with a zero byte", json!({ "sub": "maria\u{0}x" })),
        ("a subject in other letters", json!({ "sub": "MARIA" })),
        ("the subject of the house", json!({ "sub": "root" })),
    ] {
        is_refused(what, &one, &provider.token_with("maria", &more));
    }
    let claims = provider.claims("maria");
    let other_claims = stranger.claims("maria");
    let key = provider.keys()["keys"][0].clone();
    for (what, minter, request) in [
        ("no signature", &provider, json!({ "claims": claims, "alg": "none", "key": "none" })),
        (
            "no signature, in other letters",
            &provider,
            json!({ "claims": claims, "alg": "nOnE", "key": "none" }),
        ),
        (
            "no signature, said to be one",
            &provider,
            json!({ "claims": claims, "alg": "RS256", "key": "none" }),
        ),
        (
            "the public key as a secret",
            &provider,
            json!({ "claims": claims, "alg": "HS256", "key": "public-as-hmac" }),
        ),
        ("a key of the forger's own", &provider, json!({ "claims": claims, "key": "fresh" })),
        (
            "an unknown key id",
            &provider,
            json!({ "claims": claims, "kid": "0123456789abcdef", "key": "fresh" }),
        ),
        (
            "a key id that is a path",
            &provider,
            json!({ "claims": claims, "kid": "../../../dev/null", "key": "fresh" }),
        ),
        ("another algorithm than the key's", &provider, json!({ "claims": claims, "alg": "PS256" })),
        ("an algorithm for another kind of key", &provider, json!({ "claims": claims, "alg": "ES256" })),
        ("an algorithm of nobody", &provider, json!({ "claims": claims, "alg": "RS1" })),
        ("a critical extension", &provider, json!({ "claims": claims, "header": { "crit": ["exp"] } })),
        (
            "a header with its own key",
            &provider,
            json!({ "claims": claims, "key": "fresh", "header": { "jwk": key } }),
        ),
        (
            "a header that names keys elsewhere",
            &stranger,
            json!({ "claims": claims, "header": { "jku": format!("{}/jwks", stranger.issuer()) } }),
        ),
        ("signed by another provider", &stranger, json!({ "claims": claims })),
        ("of another provider", &stranger, json!({ "claims": other_claims })),
        ("claims that are no object", &provider, json!({ "claims": "[1]" })),
        ("claims that are no JSON", &provider, json!({ "claims": "{" })),
        (
            "the same claim twice",
            &provider,
            json!({ "claims": format!(
            "{{\"iss\":\"{}\",\"sub\":\"bob\",\"sub\":\"maria\",\"aud\":\"{AUDIENCE}\",\"exp\":{}}}", provider.issuer(), now() + 300) }),
        ),
    ] {
        is_refused(what, &one, &minter.mint(&request));
    }
    assert_eq!(stranger.count("/jwks"), 0, "a token never says where its keys are");
    let good = provider.token("maria");
    let mut parts: Vec<&str> = good.split('.').collect();
    let other = provider.token("bob");
    let other: Vec<&str> = other.split('.').collect();
    let altered = format!("{}x", &parts[2][..parts[2].len() - 1]);
    for (what, token) in [
        ("another's signature", [parts[0], parts[1], other[2]].join(".")),
        ("another's claims", [parts[0], other[1], parts[2]].join(".")),
        ("a changed signature", [parts[0], parts[1], &altered].join(".")),
        ("no signature part", [parts[0], parts[1]].join(".")),
        ("an empty signature", format!("{}.{}.", parts[0], parts[1])),
        ("four parts", format!("{good}.x")),
        ("five parts", format!("{good}..")),
        ("a space before it", format!(" {good}")),
        ("padding", format!("{good}==")),
        ("nothing", String::new()),
        ("only dots", "..".to_owned()),
        ("a password", one.password.clone()),
        ("a token within a token", BASE64.encode(&good)),
    ] {
        is_refused(what, &one, &token);
    }
    let padding = "x".repeat(20_000);
    parts[1] = &padding;
    let refusal = one.refusal_of("a token of 20 kB", &bearing(&parts.join(".")));
    assert!(["28000", "08P01"].contains(&refusal.code.as_str()), "{refusal:?}");
    // Two keys that could be meant, and a token that says neither.
    provider.rotate(None, true);
    let unsure = provider.mint(&json!({ "claims": provider.claims("maria"), "kid": null, "key": "old" }));
    let named = provider.token("maria");
    eventually("the new key is known", PATIENCE, || one.enter(&bearing(&named)).ok());
    is_refused("no key id, and two keys", &one, &unsure);
    assert!(!cloud().log().contains("panicked"));
}

pub fn t49_a_token_is_for_one_user_and_never_for_the_house() {
    let (one, provider) = stage("tokens-users", "ES256");
    let bob = one.with_new_user("bob");
    is_refused("bob with maria's token", &bob, &provider.token("maria"));
    for user in ["root", "node", "chitin", "chitin_admin", "postgres", "admin", "public", "pg_monitor"] {
        let who = one.with_user(user, "");
        let refusal = who.refusal_of(user, &bearing(&provider.token(user)));
        assert!(["28000", "28P01"].contains(&refusal.code.as_str()), "{refusal:?}");
    }
    let nobody = one.with_user("nobody_here", "");
    let refusal = nobody.refusal_of("a user that does not exist", &bearing(&provider.token("nobody_here")));
    assert!(["28000", "28P01"].contains(&refusal.code.as_str()), "{refusal:?}");
    // Another claim, with a list, and a map of the issuer's name.
    one.set_provider("corp", &provider.settings_with(&json!({ "claim": "emails" }))).ok();
    let emails = json!({ "emails": ["maria@example.org", "chef@example.org"] });
    let token = provider.token_with("0815", &emails);
    is_refused("without a map", &one, &token);
    one.set_map(&format!("{} /^(.*)@example\\.org$ \\1\n", provider.issuer()));
    assert_eq!(one.welcome(&bearing(&token)).value("select session_user"), "maria");
    for (what, more) in [
        ("another domain", json!({ "emails": ["maria@example.com"] })),
        ("a longer name", json!({ "emails": ["maria@example.org.evil.com", "x maria@example.org"] })),
        ("the house by the map", json!({ "emails": ["root@example.org"] })),
        ("no claim", json!({})),
        ("an empty list", json!({ "emails": [] })),
        ("a list of lists", json!({ "emails": [["maria@example.org"]] })),
    ] {
        is_refused(what, &one, &provider.token_with("maria", &more));
    }
    is_refused(
        "root by the map",
        &one.with_user("root", ""),
        &provider.token_with("x", &json!({ "emails": ["root@example.org"] })),
    );
    // A rule's own map instead.
    one.set_map("others chef@example.org maria\n");
    one.set_rules("host all all all jwt map=others\n");
    one.welcome(&bearing(&token));
}

pub fn t49_providers_belong_to_their_cluster_and_rules_may_name_one() {
    let (one, first) = stage("tokens-tenants", "ES256");
    let second = Provider::start("RS256");
    let other = cloud().cluster("tokens-other", &[]);
    other.set_rules("host all all all jwt\n");
    is_refused("a provider of another cluster", &other, &first.token("maria"));
    one.set_provider("second", &second.settings()).ok();
    for provider in [&first, &second] {
        one.welcome(&bearing(&provider.token("maria")));
    }
    for (rule, is_first) in [("provider=corp", true), ("provider=second", false)] {
        one.set_rules(&format!("host all all all jwt {rule}\n"));
        let (good, bad) = if is_first { (&first, &second) } else { (&second, &first) };
        one.welcome(&bearing(&good.token("maria")));
        is_refused(rule, &one, &bad.token("maria"));
    }
    one.set_rules(&format!("host all all all jwt issuer={}\n", first.issuer()));
    one.welcome(&bearing(&first.token("maria")));
    is_refused("by issuer", &one, &second.token("maria"));
    // One of the whole cloud counts everywhere, until it is removed.
    one.set_rules("host all all all jwt\n");
    let common = Provider::start("ES256");
    let all = common.settings();
    // For tokens only: elsewhere in this cloud is a cluster that has no provider for browsers.
    let settings = json!({ "issuer": all["issuer"], "audiences": all["audiences"] });
    cloud().set_provider("tokens-common", &settings).ok();
    for cluster in [&one, &other] {
        cluster.welcome(&bearing(&common.token("maria")));
    }
    cloud().chitin(["provider", "remove", "tokens-common"]).ok();
    for cluster in [&one, &other] {
        is_refused("removed", cluster, &common.token("maria"));
    }
    cloud().chitin(["provider", "remove", "second", "--cluster", "tokens-tenants"]).ok();
    is_refused("removed", &one, &second.token("maria"));
    one.welcome(&bearing(&first.token("maria")));
}

pub fn given_keys_need_no_look_outside() {
    let provider = Provider::start("ES256");
    let one = cloud().cluster("tokens-given", &[]);
    one.set_rules("host all all all jwt\n");
    let file = cloud().scratch().join("keys.json");
    std::fs::write(&file, provider.keys().to_string()).unwrap();
    cloud()
        .chitin([
            "provider",
            "set",
            "given",
            "--cluster",
            "tokens-given",
            "--issuer",
            provider.issuer(),
            "--audience",
            AUDIENCE,
            "--jwks",
            file.to_str().unwrap(),
        ])
        .ok();
    one.welcome(&bearing(&provider.token("maria")));
    is_refused(
        "no client id, so it is no audience",
        &one,
        &provider.token_with("maria", &json!({ "aud": CLIENT_ID })),
    );
    provider.rotate(None, false);
    is_refused("keys that were given do not rotate", &one, &provider.token("maria"));
    assert_eq!((provider.count("/jwks"), provider.count("/.well-known/openid-configuration")), (0, 0));
    // Keys that would be secrets, or are none, are refused when they are set.
    for jwks in ["{", "{}", "{\"keys\":[]}", "{\"keys\":[{\"kty\":\"oct\",\"k\":\"c2VjcmV0\"}]}"] {
        let settings = provider.settings_with(&json!({ "jwks": jwks }));
        assert_eq!(one.set_provider("wrong", &settings).status, 400, "{jwks}");
    }
}

pub fn t50_rotated_keys_are_found_and_unknown_ones_ask_once() {
    let (one, provider) = stage("tokens-rotate", "RS256");
    let before = provider.token("maria");
    one.welcome(&bearing(&before));
    one.welcome(&bearing(&before));
    assert_eq!(provider.count("/jwks"), 1, "keys are kept");
    provider.rotate(Some("ES256"), true);
    let after = provider.token("maria");
    let begun = Instant::now();
    eventually("the new key is found", PATIENCE, || one.enter(&bearing(&after)).ok());
    println!("  a new key was found after {:.1} s", begun.elapsed().as_secs_f64());
    one.welcome(&bearing(&before));
    // Forgers with made-up key ids, all at once: one look at most in half a minute.
    let (seen, tried) = (provider.count("/jwks"), AtomicUsize::new(0));
    let forged: Vec<String> = (0..8)
        .map(|number| provider.mint(&json!({ "claims": provider.claims("maria"), "kid": format!("made-up-{number}"), "key": "fresh" })))
        .collect();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for token in &forged {
            scope.spawn(|| {
                while begun.elapsed() < Duration::from_secs(20)
                    && tried.fetch_add(1, Ordering::Relaxed) < 1_000
                {
                    is_refused("made up", &one, token);
                }
            });
        }
    });
    let asked = provider.count("/jwks") - seen;
    println!("  {} forged tokens made it ask {asked} times", tried.load(Ordering::Relaxed));
    assert!(asked <= 2, "asked {asked} times");
    one.welcome(&bearing(&after));
    // The old key is withdrawn: once that is seen, its tokens are worth nothing, however long they say.
    provider.rotate(None, false);
    let newest = provider.token("maria");
    eventually("the newest key is found", PATIENCE, || one.enter(&bearing(&newest)).ok());
    is_refused("a withdrawn key", &one, &before);
    is_refused("a withdrawn key", &one, &after);
}

pub fn t51_a_provider_that_misbehaves_costs_nothing() {
    // A cloud of its own, whose memory nobody else uses.
    let cloud = Cloud::start(Options::unencrypted(&["--fetch-allow", "127.0.0.0/8"]));
    let (one, other) = (cloud.cluster("tokens-faults", &[]), cloud.cluster("tokens-everybody", &[]));
    one.set_rules("host all all all jwt\n");
    let memory = machine::resident_bytes(cloud.pid());
    let lure = Provider::start("ES256");
    for fault in [
        json!("huge"),
        json!("many"),
        json!("garbage"),
        json!("status"),
        json!("down"),
        json!("hang"),
        json!({ "redirect": format!("{}/jwks", lure.issuer()) }),
    ] {
        for path in ["/jwks", "/.well-known/openid-configuration"] {
            let provider = Provider::start("ES256");
            provider.set_fault(path, &fault);
            one.set_provider("corp", &provider.settings()).ok();
            let begun = Instant::now();
            is_refused(&format!("{path} {fault}"), &one, &provider.token("maria"));
            machine::assert_within(Duration::from_secs(20), begun, &format!("{path} {fault}"));
            // Everybody else signs in as ever.
            other.sign_in();
        }
    }
    assert_eq!(lure.count("/jwks"), 0, "no redirect is followed");
    let grown = machine::resident_bytes(cloud.pid()).saturating_sub(memory);
    assert!(grown < 96 << 20, "memory grew by {} MiB", grown >> 20);
    // A discovery document that speaks for somebody else.
    let (liar, honest) = (Provider::start("ES256"), Provider::start("ES256"));
    let settings = honest.settings_with(&json!({ "issuer": format!("{}/other", liar.issuer()) }));
    one.set_provider("corp", &settings).ok();
    let token = liar.token_with("maria", &json!({ "iss": format!("{}/other", liar.issuer()) }));
    is_refused("another issuer's document", &one, &token);
}

pub fn t51_addresses_inside_are_not_reached_unless_the_operator_opens_them() {
    let cloud = Cloud::plain();
    let one = cloud.cluster("closed-inside", &[]);
    one.set_rules("host all all all jwt\n");
    let provider = Provider::start("ES256");
    let port = provider.issuer().rsplit_once(':').unwrap().1;
    let token = provider.token("maria");
    let mut settings = vec![provider.settings()];
    for host in
        ["localhost", "127.1.2.3", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "169.254.169.254"]
    {
        settings.push(provider.settings_with(&json!({ "jwks_uri": format!("http://{host}:{port}/jwks") })));
    }
    for settings in settings {
        let place = settings["jwks_uri"].to_string();
        if one.set_provider("corp", &settings).status >= 400 {
            continue;
        }
        let begun = Instant::now();
        let refusal = one.refusal_of(&place, &bearing(&token));
        assert_eq!(refusal.code, "28000", "{place}: {refusal:?}");
        machine::assert_within(Duration::from_secs(20), begun, &place);
    }
    assert_eq!((provider.count("/jwks"), provider.count("/.well-known/openid-configuration")), (0, 0));
}

pub fn a_provider_that_is_down_at_first_is_asked_again() {
    let (port, issuer) = Provider::of_the_future();
    let one = cloud().cluster("tokens-late", &[]);
    one.set_rules("host all jwt_user all jwt\nhost all all all cert-password\n");
    let settings = json!({ "issuer": issuer, "audiences": [AUDIENCE] });
    one.set_provider("late", &settings).ok();
    let person = one.with_new_user("jwt_user");
    let other = Provider::start("ES256");
    let early = other.token_with("jwt_user", &json!({ "iss": issuer }));
    let refusal = is_refused("nobody there yet", &person, &early);
    assert_eq!(refusal.message, "JWT authentication: unable to validate token");
    one.welcome(&Caller::with(&one.password));
    let provider = Provider::start_at("ES256", port);
    let token = provider.token("jwt_user");
    eventually("it is found", PATIENCE, || person.enter(&bearing(&token)).ok());
    is_refused("another's token", &person, &early);
    // Down again: keys that are known still count.
    provider.set_fault("*", &json!("down"));
    person.welcome(&bearing(&token));
}

pub fn t52_a_client_cannot_say_what_only_the_gateway_knows() {
    let (one, provider) = stage("tokens-words", "ES256");
    let token = provider.token("maria");
    for options in [
        "--crdb:remote_addr=10.0.0.1",
        "--crdb:session_revival_token_base64=x",
        "--crdb:jwt_auth_enabled=perhaps",
        "-c chitin.user=root",
        "--session_authorization=root",
        "-c role=admin",
    ] {
        let caller = Caller::with(&token).saying(options);
        if let Ok(mut wire) = one.enter(&caller) {
            assert_eq!(wire.value("select session_user || current_user"), "mariamaria", "{options}");
            assert_eq!(
                wire.value("select host(inet_client_addr()) is distinct from '10.0.0.1'"),
                "t",
                "{options}"
            );
        }
    }
    for name in
        ["crdb:jwt_auth_enabled", "crdb:remote_addr", "chitin.identity", "role", "session_authorization"]
    {
        let mut wire = one.knock_with(&[(name, "true")]);
        let refusal = wire.expect_refusal();
        assert!(["42501", "28000", "08004"].contains(&refusal.code.as_str()), "{name}: {refusal:?}");
    }
    // A name that means nothing to the gateway means nothing to PostgreSQL either.
    one.set_rules("");
    let mut wire = one.knock_with(&[("x-forwarded-for", "10.0.0.1")]);
    wire.expect_message().expect("a question");
    scram::prove(&mut wire, &Exchange::bound(&one.password)).expect("the right password");
    assert_eq!(wire.expect_ready().expect_err("no such parameter").code, "42704");
}

pub fn t43_tokens_and_client_secrets_are_shown_to_nobody() {
    let (one, provider) = stage("tokens-secret", "ES256");
    let token = provider.token("maria");
    one.welcome(&bearing(&token));
    is_refused("bob", &one.with_user("bob", ""), &token);
    let given = run_with(
        &mut cloud().command([
            "provider",
            "set",
            "piped",
            "--cluster",
            "tokens-secret",
            "--issuer",
            "https://login.example.org",
            "--client-id",
            "x",
            "--client-secret-stdin",
            // Nobody is there.
            "--force",
        ]),
        CLIENT_SECRET.as_bytes(),
        Duration::from_secs(30),
    );
    let mut told = given.ok();
    let list = format!("/api/v1/chitin/clusters/{}/providers", one.id);
    let shown = cloud().call("GET", &list, None).ok();
    let providers = shown["providers"].as_array().expect("a list");
    assert!(providers.iter().all(|provider| provider["has_client_secret"] == true), "{shown}");
    // A change without the secret keeps it.
    let mut settings = provider.settings();
    settings.as_object_mut().unwrap().remove("client_secret");
    told += &one.set_provider("corp", &with(&settings, &json!({ "clock_skew_seconds": 5 }))).ok().to_string();
    let again = cloud().call("GET", &list, None).ok();
    assert_eq!(again["providers"][0]["has_client_secret"], true);
    told += &(shown.to_string() + &again.to_string());
    told += &cloud().chitin(["provider", "list", "--cluster", "tokens-secret"]).ok();
    told += &cloud().log();
    let signature = token.rsplit('.').next().unwrap();
    for (what, secret) in
        [("the client secret", CLIENT_SECRET), ("the token", &token), ("the token's signature", signature)]
    {
        assert!(!told.contains(secret), "{what} was shown");
    }
    // On the disk it is encrypted.
    for file in files_below(&cloud().data()) {
        let bytes = std::fs::read(&file).unwrap_or_default();
        let is_there = bytes.windows(CLIENT_SECRET.len()).any(|piece| piece == CLIENT_SECRET.as_bytes());
        assert!(!is_there, "{} holds the client secret in clear", file.display());
    }
}

/// Files that are small enough to be documents, not a cluster's volume.
fn files_below(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(facts) if facts.is_dir() => found.extend(files_below(&entry.path())),
            Ok(facts) if facts.is_file() && facts.len() < 8 << 20 => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

pub fn wrong_settings_of_a_provider_are_refused() {
    let one = cloud().cluster("tokens-settings", &[]);
    let good = json!({ "issuer": "https://login.example.org", "audiences": ["x"] });
    for (what, more) in [
        ("no issuer", json!({ "issuer": null })),
        ("an issuer that is no URL", json!({ "issuer": "login" })),
        ("an issuer with a query", json!({ "issuer": "https://login.example.org/?x=1" })),
        ("an issuer with a password", json!({ "issuer": "https://u:p@login.example.org" })),
        ("an issuer of another kind", json!({ "issuer": "file:///etc/passwd" })),
        ("keys of another kind", json!({ "jwks_uri": "ftp://login.example.org/keys" })),
        ("too much skew", json!({ "clock_skew_seconds": 301 })),
        ("a CA that is none", json!({ "ca_pem": "hello" })),
        (
            "a role of the house for a group",
            json!({ "group_claim": "groups", "group_roles": { "x": "root" } }),
        ),
        ("too many audiences", json!({ "audiences": vec!["x"; 1_000] })),
    ] {
        let said = one.set_provider("wrong", &with(&good, &more));
        assert_eq!(said.status, 400, "{what}: {}", said.text);
    }
    for name in ["2nd", "a%20b", "-x", &"a".repeat(64)] {
        assert!(one.set_provider(name, &good).status >= 400, "{name}");
    }
    assert_eq!(cloud().json(["provider", "list", "--cluster", "tokens-settings"]), json!([]));
}

pub fn a_map_for_certificates_is_not_for_tokens() {
    let (one, provider) = stage("tokens-maps", "ES256");
    let dba = one.with_new_user("dba_maria");
    one.set_map("staff maria dba_maria\n");
    let token = provider.token("maria");
    for rules in ["host all all all cert-password map=staff\n", "host all all all cert-password\n"] {
        one.set_rules(rules);
        let refusal = dba.refusal_of(rules, &Caller::with_token(&token).from(fresh_address()));
        assert_eq!(refusal.message, "JWT authentication: invalid principal", "{rules}");
        one.welcome(&Caller::with_token(&token));
    }
    // A rule for tokens may name the same map, and such a rule may narrow whose tokens count.
    one.set_rules("host all all all jwt map=staff\n");
    dba.welcome(&bearing(&token));
    one.set_rules("host all all all cert-password issuer=https://elsewhere.example\n");
    let refusal = one.refusal_of("another issuer's rule", &Caller::with_token(&token).from(fresh_address()));
    assert_eq!(refusal.message, "JWT authentication: invalid token");
    one.set_rules("host all all all cert-password provider=corp\n");
    one.welcome(&Caller::with_token(&token));
}

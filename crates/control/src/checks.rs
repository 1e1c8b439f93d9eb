//! What clients send about sign-in, checked by the rooms that will use it: a mistake is found when it is set, not when
//! somebody signs in.

mod certificates;
mod keys;
mod rules;

use std::net::IpAddr;

use serde_json::Value;
use url::{Host, Url};

use crate::Refusal;

pub(crate) use certificates::{authorities, client_ca, crls, roots};
pub(crate) use keys::{key, key_service};
pub(crate) use rules::{Client, Surroundings, hba, hba_test, identity_map, new_hba};

const URL_BYTES_MAX: usize = 2_048;
const JWKS_BYTES_MAX: usize = 64 * 1024;
const JWKS_KEYS_MAX: usize = 100;
/// Members of a JWK that hold what only its owner may have (RFC 7518 section 6).
const PRIVATE_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// Where a URL may do without TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plaintext {
    /// Everywhere, because what comes from there is signed by itself.
    Anywhere,
    /// On this machine only.
    OnLoopback,
}

/// A URL to fetch from. Whether its address may be reached is decided when it is fetched.
pub(crate) fn url(what: &str, text: &str, plaintext: Plaintext) -> Result<Url, Refusal> {
    let wrong = |why: &str| Refusal::invalid(format_args!("{what} is not a URL that can be asked: {why}"));
    if text.len() > URL_BYTES_MAX {
        return Err(wrong("it is longer than 2048 bytes"));
    }
    // The parser would drop line breaks and tabs, and encode spaces, without a word.
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong("it holds spaces, control characters or characters that must be encoded"));
    }
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    let is_loopback = match url.host() {
        None => return Err(wrong("it has no host")),
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => model::canonical(IpAddr::V6(address)).is_loopback(),
    };
    match (url.scheme(), plaintext) {
        ("https", _) | ("http", Plaintext::Anywhere) => {}
        ("http", Plaintext::OnLoopback) if is_loopback => {}
        ("http", Plaintext::OnLoopback) => {
            return Err(wrong("what it answers decides who signs in, so it must be https"));
        }
        _ => return Err(wrong("it must be https")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("it holds a user or a password"));
    }
    if url.fragment().is_some() {
        return Err(wrong("it has a fragment (`#…`)"));
    }
    Ok(url)
}

/// An issuer (OpenID Connect Discovery 1.0 section 2: no query, no fragment). It is compared byte by byte with `iss`.
pub(crate) fn issuer(text: &str) -> Result<(), Refusal> {
    let url = url("issuer", text, Plaintext::OnLoopback)?;
    if url.query().is_some() {
        return Err(Refusal::invalid(
            "issuer has a query (`?…`); write it exactly as tokens carry it in `iss`",
        ));
    }
    if text.contains("/.well-known/") {
        return Err(Refusal::invalid("issuer is the address before `/.well-known/…`"));
    }
    Ok(())
}

/// A JWK Set (RFC 7517) of public keys.
pub(crate) fn jwks(text: &str) -> Result<(), Refusal> {
    let wrong = |why: &str| Refusal::invalid(format_args!("jwks is not a set of public keys: {why}"));
    if text.len() > JWKS_BYTES_MAX {
        return Err(wrong("it is longer than 64 KiB"));
    }
    // What the reader says of a wrong text may repeat a part of it.
    let set: Value = serde_json::from_str(text).map_err(|_| wrong("it is not JSON"))?;
    let keys = set.get("keys").and_then(Value::as_array).ok_or_else(|| wrong("it has no list `keys`"))?;
    if keys.is_empty() || keys.len() > JWKS_KEYS_MAX {
        return Err(wrong("`keys` has 1 to 100 entries"));
    }
    for (number, key) in keys.iter().enumerate() {
        let wrong = |why: &str| wrong(&format!("key {}: {why}", number + 1));
        let kind = key.get("kty").and_then(Value::as_str).ok_or_else(|| wrong("it has no `kty`"))?;
        if kind == "oct" {
            return Err(wrong("a shared secret (`oct`) would let everybody who knows it sign in as anybody"));
        }
        if PRIVATE_MEMBERS.iter().any(|member| key.get(member).is_some()) {
            return Err(wrong("it is a private key; send public ones only, and take this one out of use"));
        }
        if !["RSA", "EC", "OKP"].contains(&kind) {
            return Err(wrong("`kty` is RSA, EC or OKP"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_who_signs_in_is_asked_over_tls() {
        for good in
            ["https://login.example.org", "https://login.example.org/realms/a", "http://127.0.0.1:9/x"]
        {
            assert!(issuer(good).is_ok(), "{good}");
        }
        assert!(issuer("http://localhost:3000").is_ok());
        assert!(issuer("http://[::1]:3000").is_ok());
        for wrong in [
            "",
            "login.example.org",
            "http://login.example.org",
            "http://localhost.example.org",
            "http://10.0.0.1",
            "ftp://login.example.org",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "https://maria:pw@login.example.org",
            "https://login.example.org#x",
            "https://login.example.org?x=1",
            "https://login.example.org/.well-known/openid-configuration",
            "https://login.example.org/ x",
            "https://login.exa\nmple.org",
            "https://",
        ] {
            assert!(issuer(wrong).is_err(), "{wrong}");
        }
        assert!(issuer(&format!("https://{}", "a".repeat(3_000))).is_err());
        assert!(url("responder_url", "http://ocsp.example.org/q?a=b", Plaintext::Anywhere).is_ok());
        assert!(url("responder_url", "ldap://ocsp.example.org", Plaintext::Anywhere).is_err());
    }

    #[test]
    fn only_public_keys_are_kept_and_a_private_one_is_not_repeated() {
        assert!(jwks(r#"{"keys":[{"kty":"RSA","kid":"a","n":"AQAB","e":"AQAB"}]}"#).is_ok());
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"keys":[]}"#,
            r#"{"keys":{}}"#,
            r#"{"keys":[1]}"#,
            r#"{"keys":[{"kty":"oct","k":"canary"}]}"#,
            r#"{"keys":[{"kty":"EC","crv":"P-256","x":"a","y":"b","d":"canary"}]}"#,
            r#"{"keys":[{"kty":"none"}]}"#,
        ] {
            let refused = jwks(wrong).unwrap_err();
            assert!(!refused.message.contains("canary"), "{wrong}");
        }
        let many = format!(r#"{{"keys":[{}]}}"#, vec![r#"{"kty":"RSA"}"#; 101].join(","));
        assert!(jwks(&many).is_err());
    }
}

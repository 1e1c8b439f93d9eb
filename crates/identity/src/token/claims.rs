//! What a token's claims must say, after its signature was found good (RFC 7519, section 4.1; OpenID Connect Core, section
//! 3.1.3.7).

use aws_lc_rs::constant_time;
use model::IdentityProvider;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{Kind, TokenRefused, quoted};

/// Most values of one claim.
const VALUES_MAX: usize = 1_000;
/// Longest value that names somebody, in bytes.
const VALUE_BYTES_MAX: usize = 1_024;
/// Clocks may not differ by more, whatever a provider's document says.
const CLOCK_SKEW_SECONDS_MAX: u32 = 300;

/// What good claims say.
pub(super) struct Read {
    pub(super) principals: Vec<String>,
    /// `None` where the token lists none.
    pub(super) groups: Option<Vec<String>>,
    pub(super) expires_at: OffsetDateTime,
    pub(super) subject: String,
}

/// Checks the claims and reads whom they name.
pub(super) fn check(
    claims: &Map<String, Value>,
    provider: &IdentityProvider,
    kind: Kind<'_>,
    now: OffsetDateTime,
) -> Result<Read, TokenRefused> {
    let expires_at = times(claims, provider, now)?;
    audience(claims, provider, kind)?;
    let subject = match claims.get("sub") {
        Some(Value::String(subject)) if is_value(subject) => subject.clone(),
        None if matches!(kind, Kind::Password) => String::new(),
        None => return Err(TokenRefused::MissingClaim("token does not contain a claim for sub".to_owned())),
        Some(_) => return Err(invalid("sub", provider)),
    };
    if let Kind::IdToken { nonce, .. } = kind {
        let said = claims.get("nonce").and_then(Value::as_str).unwrap_or_default();
        if nonce.is_empty()
            || constant_time::verify_slices_are_equal(said.as_bytes(), nonce.as_bytes()).is_err()
        {
            return Err(TokenRefused::Untrusted("the token belongs to another sign-in (nonce)".to_owned()));
        }
    }
    let principals = principals(claims, provider)?;
    let groups = match &provider.group_claim {
        Some(claim) => groups(claims, claim)?,
        None => None,
    };
    Ok(Read { principals, groups, expires_at, subject })
}

/// The groups under a claim: a list of strings, or one string; `None` where there is no such claim.
pub(super) fn groups(claims: &Map<String, Value>, claim: &str) -> Result<Option<Vec<String>>, TokenRefused> {
    let Some(value) = claims.get(claim) else {
        return Ok(None);
    };
    texts(value).map(|groups| Some(groups.into_iter().map(str::to_owned).collect())).ok_or_else(|| {
        TokenRefused::InvalidClaimValue(format!("the value of {} is no list of groups", quoted(claim)))
    })
}

fn times(
    claims: &Map<String, Value>,
    provider: &IdentityProvider,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, TokenRefused> {
    let untrusted =
        |why: &str| TokenRefused::Untrusted(format!("token issued by {}: {why}", quoted(&provider.issuer)));
    let skew = time::Duration::seconds(provider.clock_skew_seconds.min(CLOCK_SKEW_SECONDS_MAX).into());
    let read = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(value) => instant(value).map(Some).ok_or_else(|| untrusted("a time in it is none")),
    };
    let expires_at = read("exp")?.ok_or_else(|| untrusted("it does not say when it ends"))?;
    // "On or after" counts as ended (RFC 7519, section 4.1.4). Times near the ends of the calendar must not overflow.
    if now.checked_sub(skew).is_none_or(|earliest| earliest >= expires_at) {
        return Err(untrusted("it has expired"));
    }
    let latest = now.checked_add(skew).ok_or_else(|| untrusted("the clock is wrong"))?;
    if read("nbf")?.is_some_and(|begin| begin > latest) {
        return Err(untrusted("it does not count yet"));
    }
    if read("iat")?.is_some_and(|issued| issued > latest) {
        return Err(untrusted("it was issued in the future"));
    }
    Ok(expires_at)
}

/// A `NumericDate`: seconds since 1970, perhaps with a fraction, which is cut.
fn instant(value: &Value) -> Option<OffsetDateTime> {
    let number = value.as_number()?;
    let seconds = number.as_i64().or_else(|| {
        let seconds = number.as_f64()?;
        // Far above the calendar's end, and far below where a float loses whole seconds.
        #[expect(clippy::cast_possible_truncation, reason = "the range was checked")]
        (seconds.abs() < 1e12).then_some(seconds.floor() as i64)
    })?;
    OffsetDateTime::from_unix_timestamp(seconds).ok()
}

fn audience(
    claims: &Map<String, Value>,
    provider: &IdentityProvider,
    kind: Kind<'_>,
) -> Result<(), TokenRefused> {
    let said = claims.get("aud").and_then(texts).unwrap_or_default();
    let refused = || {
        let list: Vec<_> = said.iter().take(8).map(|audience| quoted(audience)).collect();
        TokenRefused::InvalidAudience(format!("token issued with an audience of {list:?}"))
    };
    let client = provider.client_id.as_deref().filter(|client| !client.is_empty());
    let fits = match kind {
        Kind::Password => said.iter().any(|audience| {
            client == Some(*audience) || provider.audiences.iter().any(|wanted| wanted == audience)
        }),
        Kind::IdToken { .. } => {
            let for_us = client.is_some_and(|client| said.contains(&client));
            // Made for several: then it must say that it was made at our request.
            let asked_by_us = match claims.get("azp") {
                Some(party) => client.is_some() && party.as_str() == client,
                None => said.len() == 1,
            };
            for_us && asked_by_us
        }
    };
    if fits { Ok(()) } else { Err(refused()) }
}

fn principals(claims: &Map<String, Value>, provider: &IdentityProvider) -> Result<Vec<String>, TokenRefused> {
    let claim = if provider.claim.is_empty() { model::CLAIM_DEFAULT } else { provider.claim.as_str() };
    let value = claims.get(claim).ok_or_else(|| {
        TokenRefused::MissingClaim(format!("token does not contain a claim for {}", quoted(claim)))
    })?;
    // Some providers let people write any address into their profile; one that the provider itself calls unconfirmed names
    // nobody.
    let is_denied = |flag: &Value| flag.as_bool() != Some(true) && flag.as_str() != Some("true");
    if claim == "email" && claims.get("email_verified").is_some_and(is_denied) {
        return Err(TokenRefused::InvalidClaimValue(
            "the provider has not verified the email address".to_owned(),
        ));
    }
    let values = texts(value).filter(|values| !values.is_empty()).ok_or_else(|| invalid(claim, provider))?;
    if !values.iter().all(|value| is_value(value)) {
        return Err(invalid(claim, provider));
    }
    Ok(values.into_iter().map(str::to_owned).collect())
}

fn invalid(claim: &str, provider: &IdentityProvider) -> TokenRefused {
    TokenRefused::InvalidClaimValue(format!(
        "the value of {} for the issuer {} is invalid",
        quoted(claim),
        quoted(&provider.issuer)
    ))
}

fn is_value(text: &str) -> bool {
    !text.is_empty() && text.len() <= VALUE_BYTES_MAX
}

/// A string, or a list of strings. Anything else would have to be turned into text by a rule that nobody wrote down.
fn texts(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(text) => Some(vec![text]),
        Value::Array(list) if list.len() <= VALUES_MAX => list.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

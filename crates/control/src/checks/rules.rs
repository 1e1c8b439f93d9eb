//! Rules and identity maps, checked by the room that decides by them.

use std::net::IpAddr;
use std::sync::Arc;

use api::{Hba, HbaOutcome, HbaStep, HbaVerdict};
use identity::hba::{self, Method, Mistake, Rule, Rules};
use identity::identity_map::IdentityMap;
use model::{IdentityProvider, SIGN_IN_TEXT_BYTES_MAX, SignIn};

use crate::Refusal;

/// Most notes that are shown of a text.
const NOTES_MAX: usize = 100;

/// What rules may lean on.
pub(crate) struct Surroundings<'a> {
    /// The cluster's map and authorities.
    pub(crate) sign_in: &'a SignIn,
    /// The providers whose tokens count there.
    pub(crate) providers: &'a [Arc<IdentityProvider>],
}

/// Who would sign in, and how.
pub(crate) struct Client<'a> {
    pub(crate) user: &'a str,
    pub(crate) database: &'a str,
    pub(crate) roles: &'a [String],
    pub(crate) address: IpAddr,
    pub(crate) method: Option<&'a str>,
}

/// Reads rules that are to be set, as [`hba`] does.
pub(crate) fn new_hba(text: Option<&str>, around: &Surroundings<'_>) -> Result<Hba, Refusal> {
    let answer = hba(text, around)?;
    match text.map(Rules::parse_new) {
        Some(Err(mistake)) => Err(refuse(&mistake)),
        Some(Ok(_)) | None => Ok(answer),
    }
}

/// Reads a cluster's own rules, or the default, and says what the operator should know of them.
pub(crate) fn hba(text: Option<&str>, around: &Surroundings<'_>) -> Result<Hba, Refusal> {
    let rules = rules(text)?;
    let mut notes = rules.notes();
    let map = around.sign_in.identity_map.as_deref().and_then(|text| IdentityMap::parse(text).ok());
    for rule in rules.iter() {
        needs(rule, around, map.as_ref(), &mut notes);
    }
    notes.truncate(NOTES_MAX);
    Ok(Hba { text: text.unwrap_or(hba::STANDARD).to_owned(), is_default: text.is_none(), notes })
}

/// What a rule leans on and what is not there. It may be set later, so this is no mistake.
fn needs(rule: &Rule, around: &Surroundings<'_>, map: Option<&IdentityMap>, notes: &mut Vec<String>) {
    let (line, options) = (rule.line(), rule.options());
    let mut note = |what: String| notes.push(format!("line {line}: {what}"));
    let needs_certificate = rule.method() == Method::Cert || options.clientcert.is_some();
    if needs_certificate && around.sign_in.client_ca.is_none() {
        note("no certificate is accepted until you say whose: chitin client-ca set".to_owned());
    }
    if let Some(name) = &options.map
        && !map.is_some_and(|map| map.has(name))
    {
        note(format!("the identity map has no lines of `{name}`; add them with: chitin identity-map set"));
    }
    if !matches!(rule.method(), Method::Jwt | Method::Oauth | Method::Browser) {
        return;
    }
    let is_meant = |one: &&Arc<IdentityProvider>| match (&options.provider, &options.issuer) {
        (Some(name), _) => one.name == *name,
        (None, Some(issuer)) => one.issuer == *issuer,
        (None, None) => true,
    };
    let meant: Vec<_> = around.providers.iter().filter(is_meant).collect();
    if meant.is_empty() {
        let which = match (&options.provider, &options.issuer) {
            (Some(name), _) => format!("no identity provider `{name}` is known"),
            (None, Some(issuer)) => format!("no identity provider has the issuer `{issuer}`"),
            (None, None) => "no identity provider is known".to_owned(),
        };
        note(format!("{which}; add it with: chitin provider set"));
    } else if rule.method() == Method::Browser && meant.iter().all(|one| one.client_id.is_none()) {
        note(
            "a browser needs a provider with a client id; set it with: chitin provider set --client-id"
                .to_owned(),
        );
    }
}

/// Says which rule the client meets.
pub(crate) fn hba_test(text: Option<&str>, client: &Client<'_>) -> Result<HbaVerdict, Refusal> {
    let rules = rules(text)?;
    let method: Option<Method> = client
        .method
        .map(str::parse)
        .transpose()
        .map_err(|error: hba::InvalidMethod| Refusal::invalid(format_args!("{error}")))?;
    let asked = hba::Client {
        user: client.user,
        database: client.database,
        roles: client.roles,
        address: client.address,
    };
    let rule = rules.find(&asked);
    let outcome = match (rule.map(Rule::method), method) {
        (None, _) => HbaOutcome::NoRule,
        (Some(Method::Reject), _) => HbaOutcome::Rejected,
        (Some(wanted), Some(brought)) if !wanted.takes(brought) => HbaOutcome::OtherMethod,
        (Some(_), _) => HbaOutcome::Proceeds,
    };
    let steps = rules.explain(&asked, method).into_iter().map(|step| HbaStep {
        line: step.line,
        text: step.text,
        is_match: step.is_match,
        why: step.why,
    });
    Ok(HbaVerdict {
        line: rule.map(Rule::line),
        text: rule.map(|rule| rule.text().to_owned()),
        method: rule.map(|rule| rule.method().to_string()),
        outcome,
        steps: steps.collect(),
    })
}

fn rules(text: Option<&str>) -> Result<Rules, Refusal> {
    match text {
        None => Ok(Rules::standard()),
        Some(text) => {
            bounded(text)?;
            Rules::parse(text).map_err(|mistake| refuse(&mistake))
        }
    }
}

/// Reads an identity map.
pub(crate) fn identity_map(text: &str) -> Result<(), Refusal> {
    bounded(text)?;
    IdentityMap::parse(text).map(drop).map_err(|mistake| refuse(&mistake))
}

fn bounded(text: &str) -> Result<(), Refusal> {
    if text.len() > SIGN_IN_TEXT_BYTES_MAX {
        return Err(Refusal::invalid(format_args!("the text is longer than {SIGN_IN_TEXT_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn refuse(mistake: &Mistake) -> Refusal {
    match &mistake.hint {
        Some(hint) => Refusal::invalid(format_args!("{mistake}; {hint}")),
        None => Refusal::invalid(mistake),
    }
}

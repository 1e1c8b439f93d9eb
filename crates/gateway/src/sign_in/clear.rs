//! What a client sends in clear, inside TLS: a password that a rule wants so, or a token in a password's place.

use identity::hba::RuleOptions;
use keys::SecretText;
use wire::backend;
use wire::password::PASSWORD_BYTES_MAX;

use super::{Case, Proof, scram};
use crate::refusal::Refusal;
use crate::stream::{ClientStream, read_answer, send};

/// Longest password in bytes, as libpq and PostgreSQL's own SCRAM code bound it.
const LONGEST: usize = identity::password::BYTES_MAX;

/// Most iterations of a verifier that is checked in clear. By SCRAM the client pays for them, here we do.
const ITERATIONS_MAX: u32 = 100_000;

/// A password in clear, checked against the same verifier as SCRAM.
pub(super) async fn password(case: &Case<'_>, client: &mut ClientStream) -> Result<Proof, Refusal> {
    let password = ask(client).await?;
    if password.expose().len() > LONGEST {
        return Err(case.wrong());
    }
    let known = scram::verifier(case).filter(|verifier| verifier.iterations() <= ITERATIONS_MAX);
    let is_known = known.is_some();
    let verifier = known.unwrap_or_else(|| scram::stand_in(case).at_most(ITERATIONS_MAX));
    // Few at a time: everybody else's sign-in goes on meanwhile.
    let cluster = case.claim.cluster.as_ref().map(|cluster| cluster.id);
    let turn = case.house.clear_checks.turn(cluster, verifier.iterations()).await?;
    case.still_heard()?;
    let check = move || {
        // Given back when the work is done, not when somebody stops waiting for it.
        let _turn = turn;
        verifier.fits(&password)
    };
    let fits = tokio::task::spawn_blocking(check).await.unwrap_or(false);
    if fits && is_known { Ok(Proof::default()) } else { Err(case.wrong()) }
}

/// A token in a password's place.
pub(super) async fn token(case: &Case<'_>, client: &mut ClientStream) -> Result<Proof, Refusal> {
    let token = ask(client).await?;
    case.still_heard()?;
    vouched(case, token).await
}

/// Has a token checked. Where there is no such cluster or user, the cloud's providers are asked all the same, and a token
/// that is good leads as far as it would for a user who does not exist.
pub(super) async fn vouched(case: &Case<'_>, token: SecretText) -> Result<Proof, Refusal> {
    let map = case.rule.token_map(case.method).map(str::to_owned);
    let rule = RuleOptions { map, ..case.rule.clone() };
    let examined = match case.guest() {
        Some(guest) => case.examiner().token(&guest, token, &rule).await,
        None => match case.examiner().stray_token(case.claim.user.as_str(), token).await {
            Ok(()) => return Err(case.wrong()),
            Err(why) => Err(why),
        },
    };
    let vouched = examined.map_err(Refusal::NotVouched)?;
    Ok(Proof { vouched: Some(vouched), ..Proof::default() })
}

async fn ask(client: &mut ClientStream) -> Result<SecretText, Refusal> {
    send(client, &backend::authentication_cleartext_password()).await?;
    let body = zeroize::Zeroizing::new(read_answer(client, PASSWORD_BYTES_MAX).await?);
    Ok(SecretText::new(wire::password::parse(&body)?.to_owned()))
}

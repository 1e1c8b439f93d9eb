//! A token by OAUTHBEARER (RFC 7628), as libpq 18 speaks it.

use std::time::Duration;

use keys::SecretText;
use tokio::time::timeout;
use wire::backend;
use wire::oauthbearer::{self, Initial as Bearer};
use wire::password::PASSWORD_BYTES_MAX;
use wire::sasl::Initial;

use super::{Case, Proof, clear};
use crate::refusal::Refusal;
use crate::stream::{ClientStream, read_answer, send};

/// For a client to say that it has understood.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
const DUMMY_BYTES_MAX: usize = 64;

/// Takes a bearer token, or tells where to get one and refuses.
pub(super) async fn prove(case: &Case<'_>, client: &mut ClientStream) -> Result<Proof, Refusal> {
    send(client, &backend::authentication_sasl(&[oauthbearer::MECHANISM])).await?;
    let body = zeroize::Zeroizing::new(read_answer(client, PASSWORD_BYTES_MAX).await?);
    let initial = Initial::parse(&body)?;
    if initial.mechanism != oauthbearer::MECHANISM.as_bytes() {
        return Err(Refusal::Protocol("client selected an invalid SASL authentication mechanism"));
    }
    case.still_heard()?;
    let refusal = match oauthbearer::parse(initial.response)? {
        Bearer::Discovery => Refusal::NoToken,
        Bearer::Token(token) => match clear::vouched(case, SecretText::new(token.to_owned())).await {
            Ok(proof) => return Ok(proof),
            Err(refusal) => refusal,
        },
    };
    // However the client takes it, a wrong token stays one: it must count, also for a client that hangs up now.
    match timeout(FAREWELL_MAX, tell(case, client)).await {
        Ok(Err(broken)) if matches!(refusal, Refusal::NoToken) => Err(broken),
        _ => Err(refusal),
    }
}

/// Tells where to get a good token; then the client must say that it has understood (RFC 7628, section 3.2.3).
async fn tell(case: &Case<'_>, client: &mut ClientStream) -> Result<(), Refusal> {
    let place = case.place.as_ref();
    let discovery = place.and_then(|(cluster, _)| case.examiner().discovery(cluster.id, &case.rule));
    let status = match discovery {
        Some(found) => oauthbearer::failure(Some(&found.configuration), Some(&found.scope)),
        None => oauthbearer::failure(None, None),
    };
    send(client, &backend::authentication_sasl_continue(status.as_bytes())).await?;
    Ok(oauthbearer::check_dummy(&read_answer(client, DUMMY_BYTES_MAX).await?)?)
}

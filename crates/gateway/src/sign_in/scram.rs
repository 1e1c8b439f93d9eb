//! A password by SCRAM: the gateway never sees it.

use identity::scram::{self, Exchange, Mechanism, Verifier};
use keys::ChannelBinding;
use wire::backend;
use wire::sasl::{Initial, SASL_BYTES_MAX};

use super::{Case, Proof};
use crate::refusal::Refusal;
use crate::stream::{ClientStream, read_answer, send};

/// Runs SCRAM against the user's verifier, or against a stand-in that nothing fits.
pub(super) async fn prove(
    case: &Case<'_>,
    client: &mut ClientStream,
    binding: &ChannelBinding,
) -> Result<Proof, Refusal> {
    let channel = binding.data();
    let offered: &[&str] = match channel {
        Some(_) => &[Mechanism::Sha256Plus.name(), Mechanism::Sha256.name()],
        None => &[Mechanism::Sha256.name()],
    };
    send(client, &backend::authentication_sasl(offered)).await?;

    let body = read_answer(client, SASL_BYTES_MAX).await?;
    let initial = Initial::parse(&body)?;
    let mechanism = Mechanism::from_name(initial.mechanism)
        .filter(|mechanism| offered.contains(&mechanism.name()))
        .ok_or(Refusal::Protocol("client selected an invalid SASL authentication mechanism"))?;
    let known = verifier(case);
    let is_known = known.is_some();
    let (exchange, server_first) =
        Exchange::begin(mechanism, initial.response, channel, known.unwrap_or_else(|| stand_in(case)))
            .map_err(Refusal::Channel)?;
    send(client, &backend::authentication_sasl_continue(server_first.as_bytes())).await?;

    let client_final = read_answer(client, SASL_BYTES_MAX).await?;
    case.still_heard()?;
    let server_final = exchange.finish(&client_final).map_err(|refusal| match refusal {
        scram::Refusal::WrongProof => case.wrong(),
        other => Refusal::Channel(other),
    })?;
    if !is_known {
        return Err(case.wrong());
    }
    send(client, &backend::authentication_sasl_final(server_final.as_bytes())).await?;
    Ok(Proof::default())
}

/// The verifier of the user's password, if there is a password that counts now.
pub(super) fn verifier(case: &Case<'_>) -> Option<Verifier> {
    case.account.person()?.verifier.clone()
}

/// What nothing fits, always the same for the same names.
pub(super) fn stand_in(case: &Case<'_>) -> Verifier {
    let claim = case.claim;
    let cluster = claim.cluster.as_ref().map(|cluster| cluster.id);
    case.house.directory.stand_in(claim.handle, cluster, claim.user.as_str())
}

//! A client certificate as the proof, or beside another. The handshake proved that the client holds its key.

use std::sync::Arc;

use identity::hba::ClientCert;
use keys::client::Verified;

use super::{Case, Proof};
use crate::examine::Certificate;
use crate::refusal::{NoCertificate, Refusal};

/// `cert`: nothing else will do.
pub(super) async fn only(case: &Case<'_>) -> Result<Proof, Refusal> {
    let certificate = good(case).await?;
    named(case, &certificate)?;
    Ok(Proof { certificate: Some(certificate), ..Proof::default() })
}

/// `cert-password`: a certificate of the cluster's authorities, and then it must be right; without one, a password.
pub(super) async fn first(case: &Case<'_>) -> Result<Option<Proof>, Refusal> {
    match good(case).await {
        Ok(certificate) => {
            named(case, &certificate)?;
            Ok(Some(Proof { certificate: Some(certificate), ..Proof::default() }))
        }
        // Many clients send whatever certificate they have; one that means nothing here is as good as none.
        Err(Refusal::NoCertificate(_)) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// `clientcert=`: a certificate beside another proof (PostgreSQL's manual, 21.12).
pub(super) async fn beside(case: &Case<'_>, wanted: ClientCert) -> Result<Arc<Verified>, Refusal> {
    let certificate = good(case).await?;
    if wanted == ClientCert::VerifyFull {
        named(case, &certificate)?;
    }
    Ok(certificate)
}

async fn good(case: &Case<'_>) -> Result<Arc<Verified>, Refusal> {
    let presented = &case.claim.presented;
    if presented.is_empty() {
        return Err(Refusal::NoCertificate(NoCertificate::None));
    }
    // A cluster that does not exist has no authorities. A user who cannot exist is looked at all the same: a certificate
    // of such a name is refused, and not overlooked.
    let Some(cluster) = &case.claim.cluster else {
        return Err(Refusal::NoCertificate(NoCertificate::Stranger));
    };
    match case.examiner().certificate(cluster.id, presented).await {
        Certificate::Good(certificate) => Ok(certificate),
        Certificate::Stranger => Err(Refusal::NoCertificate(NoCertificate::Stranger)),
        Certificate::Bad(why) => Err(Refusal::NotVouched(why)),
    }
}

fn named(case: &Case<'_>, certificate: &Verified) -> Result<(), Refusal> {
    let is_named = case
        .place
        .as_ref()
        .is_some_and(|(cluster, user)| case.examiner().is_named(cluster.id, certificate, user, &case.rule));
    if is_named { Ok(()) } else { Err(Refusal::Certificate { user: case.claim.user.to_string() }) }
}

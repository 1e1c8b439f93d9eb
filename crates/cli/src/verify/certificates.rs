//! Attacks with client certificates: of another authority, for another user, on a list, revoked by a responder.

use api::{Ocsp, SetCrls};
use model::OcspMode;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use super::responder::Responder;
use super::row::{Row, Verdict};
use super::session::{Shown, offer_certificate};
use super::stage::{Stage, USER};
use super::wire::{Fault, Refusal};

const FEATURE: &str = "client certificates and OCSP";
const REVOKED_SERIAL: [u8; 2] = [0x12, 0x34];
const GOOD_SERIAL: [u8; 2] = [0x12, 0x35];

/// A certificate and its key, as a client shows them.
pub struct Card {
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
}

/// An authority of our own.
pub struct Office {
    pub issuer: CertifiedIssuer<'static, KeyPair>,
    /// The same key again, for the responder.
    pub key: KeyPair,
}

/// Every attack of this file.
pub async fn attack(stage: &Stage<'_>) -> Vec<Row> {
    let office = match Office::open("verify clients") {
        Ok(office) => office,
        Err(fault) => {
            return vec![Verdict::failed(fault.to_string()).on(FEATURE, "certificates of an authority")];
        }
    };
    vec![
        Verdict::from(identities(stage, &office).await)
            .on(FEATURE, "a certificate signs in as its user and as nobody else"),
        Verdict::from(listed(stage, &office).await)
            .on(FEATURE, "a certificate on a revocation list is refused"),
        Verdict::from(revoked(stage, office).await)
            .on(FEATURE, "a certificate that its responder calls revoked is refused in lax and strict"),
    ]
}

async fn identities(stage: &Stage<'_>, office: &Office) -> Result<Verdict, Fault> {
    let api = &stage.cloud.api;
    api.set_client_ca(stage.id, office.issuer.pem()).await.map_err(setup)?;
    match show(stage, USER, &office.card(USER, &GOOD_SERIAL)?).await? {
        Shown::Entered(who) if who == USER => {}
        Shown::Entered(who) => {
            return Ok(Verdict::failed(format!("a certificate for {USER} signed in as {who}")));
        }
        Shown::Ignored => return Ok(Verdict::failed("a good certificate was ignored")),
        Shown::Refused(refusal) => {
            return Ok(Verdict::failed(format!("a good certificate was refused: {refusal}")));
        }
    }
    let strangers = Office::open("somebody else")?;
    match show(stage, USER, &strangers.card(USER, &GOOD_SERIAL)?).await? {
        Shown::Entered(_) => return Ok(Verdict::failed("a certificate of another authority was let in")),
        // A password is asked for as if there were no certificate; or the rules want one of this cluster's.
        Shown::Ignored | Shown::Refused(_) => {}
    }
    for user in ["root", "node", "chitin", "somebody"] {
        let card = office.card(if user == "somebody" { USER } else { user }, &GOOD_SERIAL)?;
        match show(stage, user, &card).await? {
            Shown::Entered(who) => return Ok(Verdict::failed(format!("{user}: let in as {who}"))),
            Shown::Ignored => return Ok(Verdict::failed(format!("{user}: went on to a password"))),
            Shown::Refused(_) => {}
        }
    }
    Ok(Verdict::proven("its own user in; of another authority, for root, node, chitin and another user not"))
}

async fn listed(stage: &Stage<'_>, office: &Office) -> Result<Verdict, Fault> {
    let api = &stage.cloud.api;
    api.set_crls(stage.id, SetCrls { pem: office.list()?, accept_without_list: false })
        .await
        .map_err(setup)?;
    let good = show(stage, USER, &office.card(USER, &GOOD_SERIAL)?).await;
    let listed = show(stage, USER, &office.card(USER, &REVOKED_SERIAL)?).await;
    api.delete_crls(stage.id).await.map_err(setup)?;
    Ok(match (good?, listed?) {
        (Shown::Entered(_), Shown::Refused(refusal)) => {
            Verdict::proven(format!("{refusal}; one that is not on it in"))
        }
        (Shown::Entered(_), _) => Verdict::failed("a certificate on the list was let in, or ignored"),
        (_, _) => Verdict::failed("a certificate that is not on the list was not let in"),
    })
}

async fn revoked(stage: &Stage<'_>, office: Office) -> Result<Verdict, Fault> {
    let api = &stage.cloud.api;
    let (good, revoked) = (office.card(USER, &GOOD_SERIAL)?, office.card(USER, &REVOKED_SERIAL)?);
    let responder = Responder::open(office.key, &[&REVOKED_SERIAL]).await?;
    let mut evidence = Vec::new();
    for mode in [OcspMode::Lax, OcspMode::Strict] {
        let ocsp = Ocsp {
            mode,
            responder_url: Some(responder.url()),
            accept_without_responder: false,
            timeout_ms: model::OCSP_TIMEOUT_MS_DEFAULT,
        };
        api.set_ocsp(stage.id, &ocsp).await.map_err(setup)?;
        let seen = show(stage, USER, &revoked).await?;
        if responder.asked() == 0 {
            return Ok(Verdict::missing(format!(
                "the cloud did not ask a responder on {}: it is another machine, or may not fetch from there (chitin start --fetch-allow 127.0.0.1/32)",
                responder.url()
            )));
        }
        match seen {
            Shown::Refused(Refusal { message, .. }) => evidence.push(format!("{}: {message}", mode.as_str())),
            Shown::Entered(_) | Shown::Ignored => {
                return Ok(Verdict::failed(format!(
                    "{}: a revoked certificate was let in, or ignored",
                    mode.as_str()
                )));
            }
        }
        match show(stage, USER, &good).await? {
            Shown::Entered(_) => {}
            Shown::Ignored | Shown::Refused(_) => {
                return Ok(Verdict::failed(format!("{}: a good certificate was not let in", mode.as_str())));
            }
        }
    }
    Ok(Verdict::proven(format!("{}; a good one in", evidence.join("; "))))
}

/// Offers a certificate to the cluster of the stage.
pub async fn show(stage: &Stage<'_>, user: &str, card: &Card) -> Result<Shown, Fault> {
    let key = PrivateKeyDer::Pkcs8(card.key.clone_key());
    let shown = offer_certificate(&stage.target, user, card.chain.clone(), key).await?;
    if let (Shown::Refused(_), Some(amnesty)) = (&shown, &stage.target.amnesty) {
        amnesty.grant().await;
    }
    Ok(shown)
}

impl Office {
    /// Opens one.
    pub fn open(name: &str) -> Result<Self, Fault> {
        let key = KeyPair::generate().map_err(setup)?;
        let again = KeyPair::try_from(key.serialize_der().as_slice()).map_err(setup)?;
        let mut params = params(name)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(setup)?;
        Ok(Self { issuer, key: again })
    }

    /// A certificate for a user.
    pub fn card(&self, user: &str, serial: &[u8]) -> Result<Card, Fault> {
        let key = KeyPair::generate().map_err(setup)?;
        let mut params = params(user)?;
        params.serial_number = Some(SerialNumber::from_slice(serial));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = params.signed_by(&key, &self.issuer).map_err(setup)?;
        Ok(Card {
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
    }

    /// A list with the one serial number.
    fn list(&self) -> Result<String, Fault> {
        let now = OffsetDateTime::now_utc();
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from_slice(&REVOKED_SERIAL),
            revocation_time: now - Duration::minutes(1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - Duration::minutes(1),
            next_update: now + Duration::hours(1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).and_then(|list| list.pem()).map_err(setup)
    }
}

fn params(name: &str) -> Result<CertificateParams, Fault> {
    let mut params = CertificateParams::new(Vec::new()).map_err(setup)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - Duration::hours(1), now + Duration::hours(1));
    Ok(params)
}

fn setup(error: impl std::fmt::Display) -> Fault {
    Fault::Setup(error.to_string())
}

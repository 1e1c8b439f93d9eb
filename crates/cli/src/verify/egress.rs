//! Attacks on what leaves a cluster: a strict look at revocation is sent where nothing may go, and must fail closed.

use api::{AddEgressRule, Ocsp};
use model::OcspMode;

use super::certificates::{Office, show};
use super::responder::Responder;
use super::row::{Row, Verdict};
use super::session::Shown;
use super::stage::{Stage, USER};
use super::wire::Fault;

const FEATURE: &str = "egress perimeter";
/// Where the clouds keep their machines' secrets.
const METADATA: &str = "http://169.254.169.254/latest/meta-data/";

/// Every attack of this file. The policy and the rules end with the cluster.
pub async fn attack(stage: &Stage<'_>) -> Vec<Row> {
    vec![
        Verdict::from(metadata(stage).await).on(FEATURE, "the clouds' metadata is never reached from here"),
        Verdict::from(denied(stage).await)
            .on(FEATURE, "under default-deny only what a rule names is reached, and a change counts at once"),
    ]
}

fn strict(url: String) -> Ocsp {
    Ocsp {
        mode: OcspMode::Strict,
        responder_url: Some(url),
        accept_without_responder: false,
        timeout_ms: model::OCSP_TIMEOUT_MS_DEFAULT,
    }
}

async fn metadata(stage: &Stage<'_>) -> Result<Verdict, Fault> {
    let api = &stage.cloud.api;
    let office = Office::open("verify egress")?;
    api.set_client_ca(stage.id, office.issuer.pem()).await.map_err(setup)?;
    api.set_ocsp(stage.id, &strict(METADATA.to_owned())).await.map_err(setup)?;
    let shown = show(stage, USER, &office.card(USER, &[0x21, 0x01])?).await?;
    let judged = api.test_egress(stage.id, METADATA.to_owned()).await.map_err(setup)?;
    let why = judged.addresses.first().and_then(|address| address.reason.clone()).unwrap_or_default();
    Ok(match shown {
        Shown::Refused(refusal) if !judged.is_permitted => {
            Verdict::proven(format!("as a responder in strict: {refusal}; the gate: {why}"))
        }
        Shown::Refused(_) => Verdict::failed("the gate would let it through"),
        Shown::Entered(_) | Shown::Ignored => Verdict::failed("a sign-in that needs it was let in"),
    })
}

async fn denied(stage: &Stage<'_>) -> Result<Verdict, Fault> {
    let api = &stage.cloud.api;
    let office = Office::open("verify egress")?;
    api.set_client_ca(stage.id, office.issuer.pem()).await.map_err(setup)?;
    let cards: Vec<_> =
        [1, 2, 3].into_iter().map(|number| office.card(USER, &[0x22, number])).collect::<Result<_, _>>()?;
    let responder = Responder::open(office.key, &[]).await?;
    api.set_ocsp(stage.id, &strict(responder.url())).await.map_err(setup)?;
    let is_in = |shown: &Shown| matches!(shown, Shown::Entered(_));
    // A control: while everything may leave, the responder is asked. Each certificate is new, so no answer is kept.
    if !is_in(&show(stage, USER, &cards[0]).await?) {
        return Ok(Verdict::missing(format!(
            "the cloud may not fetch from {} (chitin start --fetch-allow 127.0.0.1/32)",
            responder.url()
        )));
    }
    api.set_egress_policy(stage.id, false).await.map_err(setup)?;
    let asked = responder.asked();
    if is_in(&show(stage, USER, &cards[1]).await?) || responder.asked() != asked {
        return Ok(Verdict::failed("the responder was asked although no rule names it"));
    }
    let port = responder.url().trim_end_matches('/').rsplit(':').next().and_then(|port| port.parse().ok());
    let rule = AddEgressRule {
        name: "responder".to_owned(),
        kind: "CIDR".to_owned(),
        destination: "127.0.0.1/32".to_owned(),
        ports: Some(vec![port.ok_or_else(|| setup("the responder has no port"))?]),
        ..AddEgressRule::default()
    };
    api.add_egress_rule(stage.id, &rule).await.map_err(setup)?;
    Ok(if is_in(&show(stage, USER, &cards[2]).await?) {
        Verdict::proven(
            "a responder: asked; default-deny: not asked, sign-in refused; with a rule: asked again",
        )
    } else {
        Verdict::failed("the responder is not asked although a rule names it")
    })
}

fn setup(error: impl std::fmt::Display) -> Fault {
    Fault::Setup(error.to_string())
}

//! `chitin ocsp`: show, set.

use api::Ocsp;

use crate::cloud::Cloud;
use crate::command::{OcspCommand, OcspSet};
use crate::failure::Failure;
use crate::output::{self, Printer, facts};

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: OcspCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        OcspCommand::Show(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let ocsp = cloud.api.ocsp(cluster.id).await?;
            printer.result(&ocsp, || shown(&ocsp))
        }
        OcspCommand::Set(change) => {
            let cluster = cloud.cluster(&change.cluster).await?;
            let wanted = changed(cloud.api.ocsp(cluster.id).await?, change);
            let ocsp = cloud.api.set_ocsp(cluster.id, &wanted).await?;
            printer.result(&ocsp, || shown(&ocsp))?;
            if ocsp.mode == model::OcspMode::Strict && !printer.is_json() {
                output::say("note: while the responder is down, nobody signs in with a certificate");
            }
            Ok(())
        }
    }
}

fn changed(mut ocsp: Ocsp, change: OcspSet) -> Ocsp {
    if let Some(mode) = change.mode {
        ocsp.mode = mode.into();
    }
    if let Some(url) = change.responder {
        ocsp.responder_url = Some(url).filter(|url| !url.is_empty());
    }
    ocsp.accept_without_responder = change.accept_without_responder.unwrap_or(ocsp.accept_without_responder);
    ocsp.timeout_ms = change.timeout_ms.unwrap_or(ocsp.timeout_ms);
    ocsp
}

fn shown(ocsp: &Ocsp) -> String {
    let without = if ocsp.accept_without_responder { "accepted" } else { "refused" };
    let without = if ocsp.mode == model::OcspMode::Strict { without } else { "accepted (not strict)" };
    facts([
        ("mode", ocsp.mode.as_str().to_owned()),
        ("responder", ocsp.responder_url.clone().unwrap_or_else(|| "as certificates say".to_owned())),
        ("without responder", without.to_owned()),
        ("timeout", format!("{} ms", ocsp.timeout_ms)),
    ])
}

#[cfg(test)]
mod tests {
    use model::OcspMode;

    use super::*;
    use crate::command::sign_in::ModeName;

    fn kept() -> Ocsp {
        Ocsp {
            mode: OcspMode::Strict,
            responder_url: Some("http://ocsp.example.org".to_owned()),
            accept_without_responder: true,
            timeout_ms: 500,
        }
    }

    fn nothing() -> OcspSet {
        OcspSet {
            cluster: "my-shop".to_owned(),
            mode: None,
            responder: None,
            accept_without_responder: None,
            timeout_ms: None,
        }
    }

    #[test]
    fn what_is_not_said_stays() {
        assert_eq!(changed(kept(), nothing()), kept());
        let mode = changed(kept(), OcspSet { mode: Some(ModeName::Lax), ..nothing() });
        assert_eq!(mode, Ocsp { mode: OcspMode::Lax, ..kept() });
        let all = OcspSet {
            mode: Some(ModeName::Off),
            responder: Some(String::new()),
            accept_without_responder: Some(false),
            timeout_ms: Some(900),
            ..nothing()
        };
        let Ocsp { mode, responder_url, accept_without_responder, timeout_ms } = changed(kept(), all);
        assert_eq!(
            (mode, responder_url, accept_without_responder, timeout_ms),
            (OcspMode::Off, None, false, 900)
        );
    }

    #[test]
    fn leniency_is_said_where_it_applies() {
        assert!(shown(&kept()).contains("without responder  accepted"));
        let strict = Ocsp { accept_without_responder: false, ..kept() };
        assert!(shown(&strict).contains("without responder  refused"));
    }
}

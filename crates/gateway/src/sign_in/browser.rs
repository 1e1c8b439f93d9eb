//! A person signs in with a browser while the client waits: any client that shows notices will do.

use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep_until, timeout_at};
use wire::backend::{Report, Severity, authentication_ok};

use super::{Case, Proof};
use crate::refusal::Refusal;
use crate::stream::{ClientStream, send};

/// Tells the client where its person must go, and waits for the person.
pub(super) async fn prove(case: &Case<'_>, client: &mut ClientStream) -> Result<Proof, Refusal> {
    let guest = case.guest().ok_or_else(Refusal::no_browser)?;
    let opened = timeout_at(case.deadline, case.examiner().browser(&guest, &case.rule)).await?;
    let waiting = opened.map_err(Refusal::NotVouched)?;
    let patience = case.house.settings.browser_max;
    let notice = Report {
        severity: Severity::Notice,
        code: "00000",
        message: format!(
            "Sign in at {}\nand check that the page shows the code {}",
            waiting.url, waiting.code
        ),
        hint: Some(format!("This waits for {} s.", patience.as_secs())),
    };
    // Clients show notices only once they are told that they are in (libpq's `PQconnectPoll`). Nothing is open to them
    // yet: no engine, no session, no key.
    let mut messages = authentication_ok();
    messages.extend(notice.to_notice());
    timeout_at(case.deadline, send(client, &messages)).await??;
    let until = Instant::now() + patience;
    let mut byte = [0];
    let vouched = tokio::select! {
        vouched = waiting.outcome => vouched.map_err(Refusal::NotVouched)?,
        () = sleep_until(until) => return Err(Refusal::BrowserTooSlow),
        // A client has nothing to say now. One that leaves takes the page with it.
        read = client.read(&mut byte) => {
            return Err(match read {
                Ok(1..) => Refusal::Protocol("nothing may be sent before the session is ready"),
                Ok(0) | Err(_) => Refusal::Lost,
            });
        }
    };
    Ok(Proof { vouched: Some(vouched), is_greeted: true, ..Proof::default() })
}

//! `chitin throttle`: list, clear.

use api::{Throttle, ThrottleFilter};

use crate::cloud::Cloud;
use crate::command::ThrottleCommand;
use crate::failure::Failure;
use crate::output::{self, Printer, table};

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: ThrottleCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        ThrottleCommand::List => {
            let throttle = cloud.api.throttle().await?;
            if throttle.lines.is_empty() && !printer.is_json() {
                output::say("no failed sign-in is remembered");
                return Ok(());
            }
            printer.result(&throttle, || listed(&throttle))?;
            let rest = throttle.total.saturating_sub(throttle.lines.len());
            if rest > 0 && !printer.is_json() {
                output::say(&format!("note: {rest} more with fewer failures are not shown"));
            }
            Ok(())
        }
        ThrottleCommand::Clear { cluster, user, address, .. } => {
            // Failures at a cluster that does not exist are counted too, so its name is not looked up here.
            let filter =
                ThrottleFilter { cluster, user, address: address.map(|address| address.to_string()) };
            let answer = cloud.api.clear_throttle(&filter).await?;
            printer.result(&answer, || match answer.cleared {
                0 => "nothing was remembered of these".to_owned(),
                1 => "forgot 1 line".to_owned(),
                many => format!("forgot {many} lines"),
            })
        }
    }
}

fn listed(throttle: &Throttle) -> String {
    let rows = throttle.lines.iter().map(|line| {
        let until = line.until.and_then(|at| {
            at.replace_nanosecond(0).ok()?.format(&time::format_description::well_known::Rfc3339).ok()
        });
        let [cluster, user, address] = [&line.cluster, &line.user, &line.address]
            .map(|text| text.clone().unwrap_or_else(|| "any".to_owned()));
        [cluster, user, address, line.failures.to_string(), line.state.clone(), until.unwrap_or_default()]
    });
    table(["CLUSTER", "USER", "ADDRESS", "FAILURES", "STATE", "REFUSED UNTIL"], rows)
}

#[cfg(test)]
mod tests {
    use api::ThrottleLine;
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn a_line_says_whom_it_slows_and_until_when_and_cannot_steer_the_terminal() {
        let line = ThrottleLine {
            cluster: Some("my-shop-2".to_owned()),
            user: Some("ma\x1b[2Jria".to_owned()),
            address: None,
            failures: 7,
            state: "slowed".to_owned(),
            until: Some(OffsetDateTime::UNIX_EPOCH + time::Duration::milliseconds(1_500)),
        };
        let text = listed(&Throttle { lines: vec![line], total: 1 });
        for part in ["my-shop-2", "ma\\u{1b}[2Jria", "any", "7", "slowed", "1970-01-01T00:00:01Z"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains('\x1b'));
    }
}

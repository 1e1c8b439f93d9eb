//! `chitin hba`: show, set, test.

use api::{Hba, HbaOutcome, HbaVerdict, TestHba};

use crate::cloud::Cloud;
use crate::command::{HbaCommand, HbaTest};
use crate::failure::Failure;
use crate::output::{self, Printer, facts, table};
use crate::text;

/// Carries out a command.
pub async fn run(cloud: &Cloud, command: HbaCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        HbaCommand::Show(one) => {
            let cluster = cloud.cluster(&one.cluster).await?;
            let hba = cloud.api.hba(cluster.id).await?;
            printer.result(&hba, || text::shown(&hba.text))?;
            if hba.is_default && !printer.is_json() {
                output::say(&format!("note: this is the default; {} has no rules of its own", cluster.name));
            }
            warn(&hba, printer);
            Ok(())
        }
        HbaCommand::Set { cluster, file, .. } => {
            // Read before anything is asked, so that a wrong file costs nothing.
            let rules = match &file {
                Some(file) => text::read(file, model::SIGN_IN_TEXT_BYTES_MAX)?,
                None => String::new(),
            };
            let cluster = cloud.cluster(&cluster).await?;
            let hba = cloud.api.set_hba(cluster.id, rules).await?;
            printer.result(&hba, || {
                let whose = if hba.is_default { "the default rules" } else { "these rules" };
                format!("new connections to {} meet {whose} from now on", cluster.name)
            })?;
            warn(&hba, printer);
            Ok(())
        }
        HbaCommand::Test(test) => {
            let cluster = cloud.cluster(&test.cluster).await?;
            let asked = question(test);
            let verdict = cloud.api.test_hba(cluster.id, &asked).await?;
            printer.result(&verdict, || shown(&verdict, asked.method.as_deref()))
        }
    }
}

fn warn(hba: &Hba, printer: Printer) {
    if !printer.is_json() {
        for note in &hba.notes {
            output::say(&format!("note: {note}"));
        }
    }
}

fn question(test: HbaTest) -> TestHba {
    TestHba {
        user: test.user,
        database: test.database,
        address: test.address.to_string(),
        method: test.method,
        roles: (!test.role.is_empty()).then_some(test.role),
    }
}

/// A rule with spaces where its columns are parted by tabs.
fn in_columns(rule: &str) -> String {
    rule.replace('\t', " ")
}

fn shown(verdict: &HbaVerdict, asked: Option<&str>) -> String {
    let method = verdict.method.clone().unwrap_or_default();
    let line = verdict.line.map(|line| format!("line {line}")).unwrap_or_default();
    let outcome = match verdict.outcome {
        HbaOutcome::Proceeds => format!("asked to sign in by {method}"),
        HbaOutcome::OtherMethod => {
            format!("refused: the rule wants {method}, not {}", asked.unwrap_or_default())
        }
        HbaOutcome::Rejected => "refused by the rule".to_owned(),
        HbaOutcome::NoRule => "refused: no rule matches".to_owned(),
    };
    let head = facts([
        ("outcome", outcome),
        (
            "rule",
            [line, in_columns(verdict.text.as_deref().unwrap_or_default())].join("  ").trim().to_owned(),
        ),
    ]);
    if verdict.steps.is_empty() {
        return head;
    }
    let rows = verdict.steps.iter().map(|step| {
        let mark = if step.is_match { "yes" } else { "no" }.to_owned();
        [step.line.to_string(), in_columns(&step.text), mark, step.why.clone()]
    });
    format!("{head}\n\n{}", table(["LINE", "RULE", "MATCHES", "WHY"], rows))
}

#[cfg(test)]
mod tests {
    use api::HbaStep;

    use super::*;

    fn verdict(outcome: HbaOutcome) -> HbaVerdict {
        HbaVerdict {
            line: Some(2),
            text: Some("host all maria all cert".to_owned()),
            method: Some("cert".to_owned()),
            outcome,
            steps: vec![HbaStep {
                line: 1,
                text: "host all all 10.0.0.0/8 reject".to_owned(),
                is_match: false,
                why: "the address is not in 10.0.0.0/8".to_owned(),
            }],
        }
    }

    #[test]
    fn a_verdict_says_the_rule_and_why_others_were_passed_over() {
        let text = shown(&verdict(HbaOutcome::Proceeds), None);
        for part in ["by cert", "line 2  host all maria", "10.0.0.0/8 reject", "the address is not in"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_refusal_is_never_taken_for_a_pass() {
        for outcome in [HbaOutcome::OtherMethod, HbaOutcome::Rejected, HbaOutcome::NoRule] {
            let text = shown(&verdict(outcome), Some("jwt"));
            assert!(text.starts_with("outcome  refused"), "{text}");
        }
        assert!(shown(&verdict(HbaOutcome::OtherMethod), Some("jwt")).contains("wants cert, not jwt"));
    }

    #[test]
    fn roles_that_were_not_said_are_left_to_the_cloud() {
        let mut test = HbaTest {
            cluster: "my-shop".to_owned(),
            user: "maria".to_owned(),
            database: "defaultdb".to_owned(),
            address: "203.0.113.7".parse().unwrap(),
            method: None,
            role: Vec::new(),
        };
        assert_eq!(question(test.clone()).roles, None);
        test.role = vec!["dba".to_owned()];
        assert_eq!(question(test).roles, Some(vec!["dba".to_owned()]));
    }
}

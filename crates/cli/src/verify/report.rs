//! The security table, for people and for programs.

use serde::Serialize;

use super::row::{Outcome, Row};
use crate::failure::{Failure, Kind};
use crate::output::{self, Printer, table};

#[derive(Serialize)]
struct Report<'a> {
    cluster: &'a str,
    failed: usize,
    rows: &'a [Row],
}

/// Prints the table and, for people, its sum.
pub fn print(cluster: &str, rows: &[Row], printer: Printer) -> Result<(), Failure> {
    let report = Report { cluster, failed: count(rows, Outcome::Failed), rows };
    printer.result(&report, || shown(rows))?;
    if !printer.is_json() {
        output::say(&sum(rows));
    }
    Ok(())
}

/// Fails if any claim does.
pub fn verdict(rows: &[Row]) -> Result<(), Failure> {
    match count(rows, Outcome::Failed) {
        0 => Ok(()),
        failed => Err(Failure::new(Kind::Failed, format!("{failed} of {} claims failed", rows.len()))
            .next("read their evidence above; do not trust the cluster with data before it is understood")),
    }
}

fn shown(rows: &[Row]) -> String {
    let mut cells: Vec<[String; 4]> = Vec::new();
    let mut before = None;
    for row in rows {
        let is_new = before.replace(&row.feature) != Some(&row.feature);
        if is_new && !cells.is_empty() {
            cells.push(Default::default());
        }
        // A feature's name once, above all its claims.
        let feature = if is_new { row.feature.clone() } else { String::new() };
        cells.push([feature, row.claim.clone(), row.outcome.as_str().to_owned(), row.evidence.clone()]);
    }
    table(["FEATURE", "CLAIM", "OUTCOME", "EVIDENCE"], cells)
}

/// The rows with those of one feature together, features in the order of their first row.
pub fn grouped(rows: Vec<Row>) -> Vec<Row> {
    let mut features: Vec<String> = Vec::new();
    for row in &rows {
        if !features.contains(&row.feature) {
            features.push(row.feature.clone());
        }
    }
    let mut rows = rows;
    rows.sort_by_key(|row| features.iter().position(|feature| *feature == row.feature));
    rows
}

fn sum(rows: &[Row]) -> String {
    let outcomes = [Outcome::Proven, Outcome::Stated, Outcome::Missing, Outcome::NotBuilt, Outcome::Failed];
    let parts: Vec<String> = outcomes
        .into_iter()
        .map(|outcome| (outcome, count(rows, outcome)))
        .filter(|(outcome, count)| *count > 0 || *outcome == Outcome::Failed)
        .map(|(outcome, count)| format!("{count} {}", outcome.as_str()))
        .collect();
    parts.join(", ")
}

fn count(rows: &[Row], outcome: Outcome) -> usize {
    rows.iter().filter(|row| row.outcome == outcome).count()
}

#[cfg(test)]
mod tests {
    use super::super::later;
    use super::super::row::Verdict;
    use super::*;

    #[test]
    fn one_failed_claim_fails_the_whole_and_is_seen() {
        let mut rows = later::rows();
        rows.insert(0, Verdict::proven("seen").on("TLS", "1.2 is refused"));
        assert_eq!(verdict(&rows), Ok(()));
        assert!(sum(&rows).ends_with("0 FAILED"), "{}", sum(&rows));
        rows.push(Verdict::failed("let in").on("TLS", "1.1 is refused"));
        assert_eq!(verdict(&rows).unwrap_err().kind, Kind::Failed);
        let text = shown(&rows);
        assert!(text.contains("FAILED") && text.contains("let in") && text.contains("not built"), "{text}");
    }

    #[test]
    fn claims_of_one_feature_stand_together_in_the_order_of_the_first() {
        let row = |feature: &str, claim: &str| Verdict::proven("").on(feature, claim);
        let rows = grouped(vec![row("b", "1"), row("a", "2"), row("b", "3")]);
        assert_eq!(rows.iter().map(|row| row.claim.as_str()).collect::<String>(), "132");
    }

    #[test]
    fn missing_and_not_built_are_no_failures_and_no_proofs() {
        let rows = [Verdict::missing("no second address").on("a", "b")];
        assert_eq!((verdict(&rows), sum(&rows).as_str()), (Ok(()), "1 missing, 0 FAILED"));
    }
}

//! Features of the design that do not exist yet, each with a row, so that a missing tick is seen as missing.

use super::row::{Outcome, Row};

const LATER: &[(&str, &str)] = &[
    ("inter-node identity, TLS 1.3", "nodes know each other by certificate"),
    ("backups encrypted", "backups are sealed before they leave"),
    ("cluster API with login tokens", "/api/v2/ with login tokens"),
    ("SQL audit log", "every statement in a signed, chained log"),
];

/// A row for each of them.
pub fn rows() -> Vec<Row> {
    LATER
        .iter()
        .map(|(feature, claim)| Row {
            feature: (*feature).to_owned(),
            claim: (*claim).to_owned(),
            outcome: Outcome::NotBuilt,
            evidence: String::new(),
        })
        .collect()
}

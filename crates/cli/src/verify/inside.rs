//! What can be shown only from inside, asked of the cloud: the raw bytes of the volume, the kernel's word, the sandbox.

use api::{Client, Outcome as Told};
use model::ClusterId;

use super::row::{Outcome, Row, Verdict};

/// The rows that the cloud proves of itself.
pub async fn rows(api: &Client, cluster: ClusterId) -> Vec<Row> {
    match api.prove(cluster).await {
        Ok(proof) if proof.rows.is_empty() => {
            vec![Verdict::failed("the cloud showed nothing").on(FEATURE, CLAIM)]
        }
        Ok(proof) => proof
            .rows
            .into_iter()
            .map(|row| Row {
                feature: row.feature,
                claim: row.claim,
                outcome: match row.outcome {
                    Told::Proven => Outcome::Proven,
                    Told::Failed => Outcome::Failed,
                    Told::Missing => Outcome::Missing,
                    Told::Stated => Outcome::Stated,
                },
                evidence: row.evidence,
            })
            .collect(),
        Err(error) => {
            vec![Verdict::failed(format!("the cloud could not show it: {error}")).on(FEATURE, CLAIM)]
        }
    }
}

const FEATURE: &str = "all data encrypted at rest";
const CLAIM: &str = "encryption and sandbox, shown from inside";

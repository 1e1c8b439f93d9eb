//! What holds while a cluster sleeps; can be seen only if it does when the check begins.

use api::{Client, Cluster};
use model::Phase;

use super::row::{Outcome, Row, Verdict};
use super::session::{Channel, Claim, sign_in};
use super::target::Target;
use super::wire::Fault;

const KEY: (&str, &str) =
    ("all data encrypted at rest", "while the cluster sleeps, its key is not in the kernel");
const WAKE: (&str, &str) = ("username and password", "a failed sign-in does not wake a sleeping cluster");

/// Every attack of this file. Must be made before anything wakes the cluster.
pub async fn attack(api: &Client, cluster: &Cluster, target: &Target) -> Vec<Row> {
    let (key, wake) = match asleep(api, cluster, target).await {
        Ok(verdicts) => verdicts,
        Err(fault) => {
            let failed = Verdict::from(Err::<Verdict, _>(fault));
            (failed.clone(), failed)
        }
    };
    vec![key.on(KEY.0, KEY.1), wake.on(WAKE.0, WAKE.1)]
}

async fn asleep(api: &Client, cluster: &Cluster, target: &Target) -> Result<(Verdict, Verdict), Fault> {
    let look = async || api.detail(cluster.id).await.map_err(|error| Fault::Setup(error.to_string()));
    let seen = look().await?;
    if seen.phase != Phase::Asleep {
        let awake = Verdict {
            outcome: Outcome::Stated,
            evidence: format!(
                "it was {} when the check began; to see it: chitin cluster sleep {}, then verify",
                seen.phase.as_str(),
                cluster.name
            ),
        };
        return Ok((awake.clone(), awake));
    }
    let nobody = Claim {
        handle: &target.handle,
        user: "verify_nobody",
        password: "not the password",
        channel: Channel::Bound,
        source: None,
    };
    let attempt = sign_in(target, nobody).await?;
    let after = look().await?;
    let wake = match (&attempt.session, &attempt.refusal, after.phase == Phase::Asleep) {
        (Some(_), _, _) => Verdict::failed("a user that does not exist was let in"),
        (None, None, _) => Verdict::failed("the server did not ask for SCRAM"),
        (None, Some(refusal), true) => Verdict::proven(format!("{refusal}; still asleep")),
        (None, Some(_), false) => Verdict::failed(format!("it is {} now", after.phase.as_str())),
    };
    let evidence = seen.facts.volume_evidence.unwrap_or_default();
    Ok((key(seen.facts.is_unlocked, evidence), wake))
}

fn key(is_unlocked: Option<bool>, evidence: String) -> Verdict {
    match is_unlocked {
        Some(false) => Verdict::proven(evidence),
        Some(true) => Verdict::failed(format!("the key is still there: {evidence}")),
        None => Verdict::missing(format!("the volume has no key: {evidence}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_no_is_a_proof() {
        let outcome = |is_unlocked| key(is_unlocked, String::new()).outcome;
        assert_eq!(
            [outcome(Some(false)), outcome(Some(true)), outcome(None)],
            [Outcome::Proven, Outcome::Failed, Outcome::Missing]
        );
    }
}

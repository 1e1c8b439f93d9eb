//! Attacks with cancel requests: forged keys, encrypted and in plaintext; and the right key, to show that they could work.

use std::time::Duration;

use super::row::{Row, Verdict};
use super::session::{Claim, Session, enter};
use super::target::{ANSWER_MAX, Target};
use super::wire::{Fault, Wire, cancel_request};

const FEATURE: &str = "users and privileges";
/// A query long enough for a cancel to arrive in.
const QUERY: &str = "select pg_sleep(1.5)";
/// `query_canceled`.
const CANCELED: &str = "57014";
/// For the query to have begun before the cancel arrives.
const HEAD_START: Duration = Duration::from_millis(300);

/// Every attack of this file.
pub async fn attack(target: &Target, honest: Claim<'_>, takes_plaintext: bool) -> Vec<Row> {
    vec![
        Verdict::from(forged(target, honest, takes_plaintext).await)
            .on(FEATURE, "nobody cancels a query without its key"),
    ]
}

async fn forged(target: &Target, honest: Claim<'_>, takes_plaintext: bool) -> Result<Verdict, Fault> {
    let mut session = enter(target, honest).await?;
    let key = session.cancel_key.clone();
    if key.len() < 8 {
        return Ok(Verdict::failed("the session has no cancel key"));
    }
    // The last bit alone differs: a comparison of a part of the key would let it pass.
    let mut forged = key.clone();
    if let Some(last) = forged.last_mut() {
        *last ^= 1;
    }
    for is_encrypted in [true, false] {
        if is_canceled(target, &mut session, &forged, is_encrypted).await? {
            return Ok(Verdict::failed("a forged key canceled a query"));
        }
    }
    // Ours comes from the session's own address.
    let in_plaintext = match (is_canceled(target, &mut session, &key, false).await?, takes_plaintext) {
        (true, false) => {
            return Ok(Verdict::failed("a cancel in plaintext was obeyed, which the cluster refuses"));
        }
        (true, true) => {
            "right key in plaintext from the session's own address: canceled, as the cluster takes such requests (chitin cluster \
             update NAME --plaintext-cancels off)"
        }
        (false, _) => "right key in plaintext: no effect",
    };
    Ok(if is_canceled(target, &mut session, &key, true).await? {
        Verdict::proven(format!("forged key: no effect; {in_plaintext}; right key inside TLS: canceled"))
    } else {
        Verdict::failed("the right key inside TLS had no effect either, so the attacks show nothing")
    })
}

async fn is_canceled(
    target: &Target,
    session: &mut Session,
    key: &[u8],
    is_encrypted: bool,
) -> Result<bool, Fault> {
    let asking = async {
        tokio::time::sleep(HEAD_START).await;
        let request = cancel_request(key);
        if is_encrypted {
            let mut wire = target.encrypted(None).await?;
            wire.send(&request).await?;
            // The server closes without a word in every case.
            let _ = wire.receive(ANSWER_MAX).await;
        } else {
            let mut wire = Wire::new(target.connect(None).await?);
            wire.send(&request).await?;
            let _ = wire.receive(ANSWER_MAX).await;
        }
        Ok::<(), Fault>(())
    };
    let (answer, asked) = tokio::join!(session.wire.query(QUERY, ANSWER_MAX), asking);
    asked?;
    Ok(answer?.error.is_some_and(|refusal| refusal.code == CANCELED))
}

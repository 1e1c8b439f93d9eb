//! Attacks on the sign-in: wrong passwords, strangers, downgrades, a man in the middle, identities that are ours.

use super::row::{Row, Verdict};
use super::session::{Attempt, Channel, Claim, enter, sign_in};
use super::target::Target;
use super::wire::{Fault, Refusal};

const FEATURE: &str = "username and password";
const IDENTITIES: &str = "users and privileges";

/// Authentication requests that are part of SCRAM.
const SCRAM_STEPS: [u32; 4] = [10, 11, 12, 0];
/// Nobody outside may sign in as these.
const RESERVED: [&str; 5] = ["chitin", "postgres", "root", "node", "admin"];

/// Every attack of this file. `user` and `password` are the throw-away user's.
pub async fn attack(target: &Target, user: &str, password: &str) -> Vec<Row> {
    let mut asked = Vec::new();
    let honest = Claim { handle: &target.handle, user, password, channel: Channel::Bound, source: None };
    let mut rows = vec![
        Verdict::from(right_password(target, honest, &mut asked).await)
            .on(FEATURE, "SCRAM-SHA-256-PLUS signs in as exactly that user"),
        Verdict::from(wrong_password(target, honest, &mut asked).await)
            .on(FEATURE, "a wrong password is refused"),
        Verdict::from(strangers(target, honest, &mut asked).await)
            .on(FEATURE, "unknown users and clusters look like a wrong password"),
        Verdict::from(downgrade(target, honest, &mut asked).await)
            .on(FEATURE, "a channel-binding downgrade is refused"),
        Verdict::from(in_between(target, honest, &mut asked).await)
            .on(FEATURE, "a sign-in through somebody else's TLS is refused"),
    ];
    rows.push(never_cleartext(&asked).on(FEATURE, "a password is never asked for in cleartext"));
    rows.push(
        Verdict::from(reserved(target, honest).await).on(IDENTITIES, "internal identities cannot sign in"),
    );
    rows
}

async fn right_password(target: &Target, honest: Claim<'_>, asked: &mut Vec<u32>) -> Result<Verdict, Fault> {
    let attempt = sign_in(target, honest).await?;
    asked.extend(&attempt.asked);
    let mechanisms = attempt.mechanisms.join(", ");
    let Attempt { session: Some(mut session), .. } = attempt else {
        let refusal = refusal(attempt)?.unwrap_or_default();
        return Ok(Verdict::failed(format!("not let in: {refusal}")));
    };
    let who = session.wire.value("select current_user || '/' || session_user").await?;
    Ok(if who == format!("{0}/{0}", honest.user) {
        Verdict::proven(format!(
            "offered {mechanisms}; the server proved its side; select current_user: {}",
            honest.user
        ))
    } else {
        Verdict::failed(format!("signed in as {}, but current_user/session_user is {who}", honest.user))
    })
}

async fn wrong_password(target: &Target, honest: Claim<'_>, asked: &mut Vec<u32>) -> Result<Verdict, Fault> {
    let mut seen = String::new();
    for channel in [Channel::Bound, Channel::Unsupported] {
        let attempt = sign_in(target, Claim { password: "not the password", channel, ..honest }).await?;
        asked.extend(&attempt.asked);
        match refusal(attempt)? {
            None => return Ok(Verdict::failed("a wrong password was let in")),
            Some(refusal) if refusal.code == "28P01" => seen = refusal.to_string(),
            Some(refusal) => return Ok(Verdict::failed(format!("expected 28P01, got {refusal}"))),
        }
    }
    Ok(Verdict::proven(format!("with and without channel binding: {seen}")))
}

async fn strangers(target: &Target, honest: Claim<'_>, asked: &mut Vec<u32>) -> Result<Verdict, Fault> {
    let wrong = |user, handle| Claim { user, handle, password: "not the password", ..honest };
    let nobody = format!("{}x", honest.user);
    let nowhere = stranger_of(&target.handle);
    let mut seen = Vec::new();
    for (what, user, handle) in [
        ("wrong password", honest.user, target.handle.as_str()),
        ("unknown user", &nobody, &target.handle),
        ("unknown user again", &nobody, &target.handle),
        ("unknown cluster", honest.user, &nowhere),
    ] {
        let attempt = sign_in(target, wrong(user, handle)).await?;
        asked.extend(&attempt.asked);
        let shape = (attempt.asked.clone(), attempt.mechanisms.clone());
        let Some(challenge) = attempt.challenge.clone() else {
            return Ok(Verdict::failed(format!("{what}: the server stopped before the password was tried")));
        };
        let Some(refusal) = refusal(attempt)? else {
            return Ok(Verdict::failed(format!("{what}: let in")));
        };
        let text = format!("{} {}", refusal.code, refusal.message.replace(user, "USER"));
        seen.push((what, text, shape, challenge));
    }
    let [known, first, again, cluster] = seen.as_slice() else {
        return Err(Fault::Unexpected("an attempt is missing".to_owned()));
    };
    for other in [first, again, cluster] {
        if (&other.1, &other.2, other.3.iterations) != (&known.1, &known.2, known.3.iterations) {
            return Ok(Verdict::failed(format!(
                "{} differs: `{}` instead of `{}` ({} iterations instead of {})",
                other.0, other.1, known.1, other.3.iterations, known.3.iterations
            )));
        }
    }
    if first.3.salt != again.3.salt {
        return Ok(Verdict::failed("an unknown user gets a new salt each time, a real one does not"));
    }
    Ok(Verdict::proven(format!(
        "all `{}`, same steps, {} iterations, steady salt",
        known.1, known.3.iterations
    )))
}

/// A cluster's label that is well formed and means no cluster.
fn stranger_of(handle: &str) -> String {
    let name = handle.rsplit_once('-').map_or(handle, |(name, _)| name);
    format!("{name}-99999998")
}

async fn downgrade(target: &Target, honest: Claim<'_>, asked: &mut Vec<u32>) -> Result<Verdict, Fault> {
    let attempt = sign_in(target, Claim { channel: Channel::Downgraded, ..honest }).await?;
    asked.extend(&attempt.asked);
    if !attempt.mechanisms.iter().any(|name| name == "SCRAM-SHA-256-PLUS") {
        return Ok(Verdict::failed("the server does not offer SCRAM-SHA-256-PLUS"));
    }
    Ok(match refusal(attempt)? {
        None => Verdict::failed("a client that was told `no channel binding` was let in"),
        Some(refusal) if refusal.code == "28P01" => Verdict::failed(format!(
            "refused as if the password were wrong, not for the downgrade: {refusal}"
        )),
        Some(refusal) => Verdict::proven(format!("right password, flag `y`: {refusal}")),
    })
}

async fn in_between(target: &Target, honest: Claim<'_>, asked: &mut Vec<u32>) -> Result<Verdict, Fault> {
    let attempt = sign_in(target, Claim { channel: Channel::Foreign, ..honest }).await?;
    asked.extend(&attempt.asked);
    Ok(match refusal(attempt)? {
        None => Verdict::failed("a sign-in bound to another certificate was let in"),
        Some(refusal) if !refusal.code.starts_with("28") => {
            Verdict::failed(format!("refused, but not for its channel: {refusal}"))
        }
        Some(refusal) => Verdict::proven(format!("right password, other certificate: {refusal}")),
    })
}

fn never_cleartext(asked: &[u32]) -> Verdict {
    let mut before = None;
    for kind in asked {
        if !SCRAM_STEPS.contains(kind) {
            return Verdict::failed(format!("the server asked for authentication kind {kind}"));
        }
        // `AuthenticationOk` may only follow the end of SCRAM.
        if *kind == 0 && before != Some(12) {
            return Verdict::failed("the server let somebody in without asking for anything");
        }
        before = Some(*kind);
    }
    if asked.is_empty() {
        return Verdict::failed("no sign-in came far enough to be asked for anything");
    }
    Verdict::proven(format!("{} authentication messages, all of SCRAM", asked.len()))
}

async fn reserved(target: &Target, honest: Claim<'_>) -> Result<Verdict, Fault> {
    for user in RESERVED {
        for password in ["", user, honest.password] {
            let attempt = sign_in(target, Claim { user, password, ..honest }).await?;
            match refusal(attempt)? {
                None => return Ok(Verdict::failed(format!("{user} was let in"))),
                Some(refusal) if refusal.code.starts_with("28") => {}
                Some(refusal) => return Ok(Verdict::failed(format!("{user}: unexpected answer {refusal}"))),
            }
        }
    }
    // A control: the front door was open to somebody honest all the while.
    enter(target, honest).await?;
    Ok(Verdict::proven(format!("{} refused", RESERVED.join(", "))))
}

/// The server's refusal; none if it let the client in. A sign-in that was not SCRAM is neither: it proves nothing.
fn refusal(attempt: Attempt) -> Result<Option<Refusal>, Fault> {
    match (attempt.session, attempt.refusal) {
        (Some(_), _) => Ok(None),
        (None, Some(refusal)) => Ok(Some(refusal)),
        (None, None) => {
            let asked = attempt
                .asked
                .last()
                .map_or("nothing".to_owned(), |kind| format!("authentication kind {kind}"));
            Err(Fault::Unexpected(format!("the server asked for {asked} instead of SCRAM")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::row::Outcome;

    #[test]
    fn a_cleartext_request_fails_the_claim_and_no_sign_in_proves_nothing() {
        assert_eq!(never_cleartext(&[10, 11, 12, 0]).outcome, Outcome::Proven);
        assert_eq!(never_cleartext(&[10, 11, 3]).outcome, Outcome::Failed);
        assert_eq!(never_cleartext(&[0]).outcome, Outcome::Failed);
        assert_eq!(never_cleartext(&[5]).outcome, Outcome::Failed);
        assert_eq!(never_cleartext(&[]).outcome, Outcome::Failed);
    }

    #[test]
    fn the_stranger_is_another_cluster_with_the_same_name() {
        assert_eq!(stranger_of("lazy-roach-3"), "lazy-roach-99999998");
    }
}

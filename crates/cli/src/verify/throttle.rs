//! Guessing a password: it must be slowed down and then refused, and its owner must still get in from elsewhere.

use std::net::{IpAddr, Ipv4Addr};

use super::row::{Row, Verdict};
use super::session::{Channel, Claim, enter, sign_in};
use super::stage::{Stage, USER};
use super::target::Target;
use super::wire::Fault;

const FEATURE: &str = "username and password";
const CLAIM: &str = "guessing is refused after a few failures, its owner gets in from elsewhere";
/// Guesses before we give up waiting for a refusal.
const GUESSES_MAX: usize = 40;
const REFUSED: &str = "too many failed authentication attempts";
/// Another address of this machine's loopback network.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 78));

/// Every attack of this file.
pub async fn attack(stage: &Stage<'_>) -> Vec<Row> {
    vec![Verdict::from(guess(stage).await).on(FEATURE, CLAIM)]
}

async fn guess(stage: &Stage<'_>) -> Result<Verdict, Fault> {
    let unforgiven = Target { amnesty: None, ..stage.target.clone() };
    let handle = &stage.target.handle;
    let honest = Claim {
        handle,
        user: USER,
        password: stage.password.expose(),
        channel: Channel::Bound,
        source: None,
    };
    // A control: nothing is refused yet.
    enter(&stage.target, honest).await?;
    let mut guesses = 0;
    let refused = loop {
        let guess = format!("guess number {guesses}");
        let attempt = sign_in(&unforgiven, Claim { password: &guess, ..honest }).await?;
        match attempt.refusal {
            None => return Ok(Verdict::failed("a guess was let in")),
            Some(refusal) if refusal.message.contains(REFUSED) => break refusal,
            Some(_) if guesses >= GUESSES_MAX => {
                return Ok(Verdict::failed(format!("{guesses} guesses, and none was refused unheard")));
            }
            Some(_) => guesses += 1,
        }
    };
    let elsewhere = if unforgiven.address.ip().is_loopback() {
        enter(&unforgiven, Claim { source: Some(ELSEWHERE), ..honest }).await?;
        format!("; the right password from {ELSEWHERE} is let in meanwhile")
    } else {
        String::new()
    };
    if let Some(amnesty) = &stage.target.amnesty {
        amnesty.grant().await;
    }
    // The operator forgave, so the owner is let in from here too.
    enter(&stage.target, honest).await?;
    Ok(Verdict::proven(format!("after {guesses} guesses: {refused}{elsewhere}")))
}

//! Station 6: the client proves who it is. Unknown cluster, unknown user and wrong password go the same way.

use std::time::Duration;

use identity::scram::{self, Exchange, Mechanism, Verifier};
use keys::ChannelBinding;
use model::{ClusterHandle, RoleName};
use tokio::time::{Instant, sleep_until};
use wire::backend;
use wire::sasl::Initial;

use crate::directory::{Credential, Directory, Found};
use crate::pace::{self, Pace};
use crate::refusal::Refusal;
use crate::stream::{ClientStream, read_sasl, send};

/// Somebody who has proven who it is. Only this station makes one.
pub(crate) struct Identity {
    user: RoleName,
    cluster: Found,
    connections_max: Option<u32>,
}

impl Identity {
    pub(crate) fn user(&self) -> &RoleName {
        &self.user
    }

    pub(crate) fn cluster(&self) -> &Found {
        &self.cluster
    }

    /// Somebody who has proven nothing, for tests of what comes after.
    #[cfg(test)]
    pub(crate) fn for_test(user: &str) -> Self {
        let cluster =
            Found { id: model::ClusterId::random(), connections_max: 10, connections_per_user_max: 10 };
        Self { user: user.parse().unwrap(), cluster, connections_max: None }
    }

    /// The role's own connection limit.
    pub(crate) fn connections_max(&self) -> Option<u32> {
        self.connections_max
    }
}

/// Who wants to sign in, and where; `cluster` is none where no such cluster exists.
pub(crate) struct Claim<'a> {
    pub(crate) handle: &'a ClusterHandle,
    pub(crate) cluster: Option<Found>,
    pub(crate) user: &'a str,
}

/// Runs SCRAM against the claim's verifier, or against a stand-in that nothing fits.
pub(crate) async fn prove(
    client: &mut ClientStream,
    directory: &dyn Directory,
    claim: Claim<'_>,
    binding: &ChannelBinding,
    pace: &Pace,
    answer_step: Duration,
) -> Result<Identity, Refusal> {
    let channel = binding.data();
    let offered: &[&str] = match channel {
        Some(_) => &[Mechanism::Sha256Plus.name(), Mechanism::Sha256.name()],
        None => &[Mechanism::Sha256.name()],
    };
    send(client, &backend::authentication_sasl(offered)).await?;

    let body = read_sasl(client).await?;
    let initial = Initial::parse(&body)?;
    let mechanism = Mechanism::from_name(initial.mechanism)
        .filter(|mechanism| offered.contains(&mechanism.name()))
        .ok_or(Refusal::Protocol("client selected an invalid SASL authentication mechanism"))?;

    // Looked up for every claim that could exist, so that the work is the same for a good one and a bad one.
    // Its time is counted from here: counted from earlier, the client's own part would leave less of the step to hide it.
    let asked = Instant::now();
    let known = known(directory, &claim).await;
    let counted = pace.level(asked.elapsed());
    let verifier = match &known {
        Some((_, _, credential)) => credential.verifier.clone(),
        None => Verifier::stand_in(&directory.stand_in_seed(claim.handle, claim.user)),
    };
    let (exchange, server_first) =
        Exchange::begin(mechanism, initial.response, channel, verifier).map_err(Refusal::Channel)?;
    sleep_until(asked + whole_steps(counted, answer_step) + pace::blur(answer_step)).await;
    send(client, &backend::authentication_sasl_continue(server_first.as_bytes())).await?;

    let client_final = read_sasl(client).await?;
    let wrong = || Refusal::Password { user: claim.user.to_owned() };
    let server_final = exchange.finish(&client_final).map_err(|refusal| match refusal {
        scram::Refusal::WrongProof => wrong(),
        other => Refusal::Channel(other),
    })?;
    let (cluster, user, credential) = known.ok_or_else(wrong)?;
    let mut messages = backend::authentication_sasl_final(server_final.as_bytes());
    messages.extend(backend::authentication_ok());
    send(client, &messages).await?;
    Ok(Identity { user, cluster, connections_max: credential.connections_max })
}

async fn known(directory: &dyn Directory, claim: &Claim<'_>) -> Option<(Found, RoleName, Credential)> {
    let cluster = claim.cluster.clone()?;
    // Our own roles and PostgreSQL's are nobody's to sign in as, whatever the engine's catalog says.
    let user: RoleName = claim.user.parse().ok().filter(|user: &RoleName| !user.is_reserved())?;
    let credential = directory.credential(cluster.id, &user).await?;
    Some((cluster, user, credential))
}

/// The time in whole steps: a look-up that took a little longer answers at the same moment.
fn whole_steps(time: Duration, step: Duration) -> Duration {
    let step = step.as_nanos().max(1);
    let steps = time.as_nanos() / step + 1;
    Duration::from_nanos(u64::try_from(steps * step).unwrap_or(u64::MAX))
}

//! Station 6: the client proves who it is, in the way that the cluster's rules choose. Unknown cluster, unknown user and
//! wrong password go the same way.

mod bearer;
mod browser;
mod certificate;
pub(crate) mod checks;
mod clear;
mod scram;

use std::sync::Arc;
use std::time::Instant as Moment;

use identity::hba::{Client, Method, RuleOptions};
use identity::throttle::{Attempt, Verdict};
use keys::ChannelBinding;
use keys::client::Verified;
use model::{ClusterHandle, DatabaseName, Origin, RoleName};
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use wire::backend;

use crate::directory::{Account, Found, NotReady};
use crate::examine::{Examiner, Guest, Vouched};
use crate::listen::House;
use crate::pace;
use crate::refusal::Refusal;
use crate::stream::{ClientStream, send};

/// Somebody who has proven who it is. Only this station makes one.
pub(crate) struct Identity {
    user: RoleName,
    cluster: Found,
    connections_max: Option<u32>,
    proof: Proof,
    method: Method,
}

/// What a client has shown, beyond that it is who it says.
#[derive(Default)]
struct Proof {
    certificate: Option<Arc<Verified>>,
    vouched: Option<Vouched>,
    /// The client has been told that it is in, before the rest was known.
    is_greeted: bool,
}

impl Identity {
    pub(crate) fn user(&self) -> &RoleName {
        &self.user
    }

    pub(crate) fn cluster(&self) -> &Found {
        &self.cluster
    }

    /// By which method, for the log.
    pub(crate) fn method(&self) -> Method {
        self.method
    }

    /// The certificate that was the proof, or part of it.
    pub(crate) fn certificate(&self) -> Option<&Arc<Verified>> {
        self.proof.certificate.as_ref()
    }

    /// What a provider said of the user.
    pub(crate) fn vouched(&self) -> Option<&Vouched> {
        self.proof.vouched.as_ref()
    }

    /// Somebody who has proven nothing, for tests of what comes after.
    #[cfg(test)]
    pub(crate) fn for_test(user: &str) -> Self {
        let cluster =
            Found { id: model::ClusterId::random(), connections_max: 10, connections_per_user_max: 10 };
        Self {
            user: user.parse().unwrap(),
            cluster,
            connections_max: None,
            proof: Proof::default(),
            method: Method::ScramSha256,
        }
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
    pub(crate) user: &'a RoleName,
    pub(crate) database: &'a DatabaseName,
    pub(crate) origin: &'a Origin,
    pub(crate) brings_token: bool,
    pub(crate) presented: Vec<CertificateDer<'static>>,
}

/// A claim that could be somebody's, with the rule that it meets.
struct Case<'a> {
    house: &'a House,
    claim: &'a Claim<'a>,
    attempt: Attempt<'a>,
    /// When the throttle let the attempt in.
    heard_at: Moment,
    method: Method,
    rule: RuleOptions,
    /// The cluster and the user, where both could exist.
    place: Option<(Found, RoleName)>,
    /// What there is under the user's name.
    account: Account,
    deadline: Instant,
}

impl Case<'_> {
    /// What everybody reads whose proof was wrong.
    fn wrong(&self) -> Refusal {
        Refusal::Password { user: self.claim.user.to_string() }
    }

    /// Asked again just before a proof is looked at: of many that come at once, those after the first wrong ones are
    /// refused unseen.
    fn still_heard(&self) -> Result<(), Refusal> {
        match self.house.throttle.recheck(&self.attempt, self.heard_at, Moment::now()) {
            Verdict::Go { .. } => Ok(()),
            Verdict::Refuse { retry_after } => Err(Refusal::Throttled { retry_after }),
        }
    }

    fn examiner(&self) -> &dyn Examiner {
        &*self.house.examiner
    }

    /// For whom somebody else may vouch; `None` where nobody can.
    fn guest(&self) -> Option<Guest> {
        let (cluster, user) = self.place.clone()?;
        let (handle, origin) = (self.claim.handle.clone(), self.claim.origin.clone());
        Some(Guest { cluster: cluster.id, handle, user, origin })
    }
}

/// Lets the client prove itself, or refuses it. What fails counts against its address and its user.
pub(crate) async fn prove(
    house: &House,
    client: &mut ClientStream,
    claim: &Claim<'_>,
    binding: &ChannelBinding,
    deadline: Instant,
) -> Result<Identity, Refusal> {
    let handle = counted_as(claim.handle, claim.cluster.as_ref());
    let attempt = Attempt { cluster: &handle, user: claim.user.as_str(), address: claim.origin.address };
    let heard_at = Moment::now();
    match house.throttle.check(&attempt, heard_at) {
        Verdict::Go { wait } => timeout_at(deadline, sleep(wait)).await?,
        Verdict::Refuse { retry_after } => return Err(Refusal::Throttled { retry_after }),
    }
    let proven = attempt_once(house, client, claim, (attempt, heard_at), binding, deadline).await;
    match &proven {
        Ok(_) => house.throttle.succeeded(&attempt, Moment::now()),
        Err(refusal) if refusal.is_wrong_proof() => house.throttle.failed(&attempt, Moment::now()),
        Err(_) => {}
    }
    proven
}

/// The cluster's name at the throttle. One that does not exist on this way is counted apart, so that who only guesses at
/// the name of a cluster in another network neither slows the people there nor learns from a delay that there are any.
fn counted_as(handle: &ClusterHandle, cluster: Option<&Found>) -> String {
    match cluster {
        Some(_) => handle.to_string(),
        None => format!("?{handle}"),
    }
}

async fn attempt_once(
    house: &House,
    client: &mut ClientStream,
    claim: &Claim<'_>,
    (attempt, heard_at): (Attempt<'_>, Moment),
    binding: &ChannelBinding,
    deadline: Instant,
) -> Result<Identity, Refusal> {
    // Looked up for every claim that could exist, so that the work is the same for a good one and a bad one.
    let asked = Instant::now();
    let place = place(claim);
    let rules = match &claim.cluster {
        Some(cluster) => house.directory.rules(cluster.id),
        None => house.standard.clone(),
    };
    let named = rules.roles_named(claim.database.as_str());
    let account = if let Some((cluster, user)) = &place {
        timeout_at(deadline, house.directory.account(cluster.id, user, &named)).await?
    } else {
        timeout_at(deadline, house.directory.nobody(claim.user, &named)).await?;
        Account::Missing
    };
    // Before the rules, which may ask for roles, and before any proof: it is the same for everybody.
    if let Account::Unknown = account {
        return Err(Refusal::NotReady(NotReady::Unasked));
    }
    sleep_until(pace::answer_at(asked, Instant::now(), house.settings.lookup_levelled)).await;

    let roles = account.person().map(|person| person.member_of.clone()).unwrap_or_default();
    let facts = Client {
        user: claim.user.as_str(),
        database: claim.database.as_str(),
        roles: &roles,
        address: claim.origin.address,
    };
    let rule = rules.find(&facts).ok_or_else(|| Refusal::NoRule {
        user: claim.user.to_string(),
        database: claim.database.to_string(),
        address: claim.origin.address,
    })?;
    let options = rule.options().clone();
    let method = rule.method();
    let case = Case { house, claim, attempt, heard_at, method, rule: options, place, account, deadline };
    let proof = by_method(&case, client, binding).await?;

    let wrong = case.wrong();
    // Whoever proved something must also exist, or be somebody who is made now; a role that may not sign in is neither.
    let may_be_made = proof.vouched.as_ref().is_some_and(|vouched| vouched.source.is_some());
    let connections_max = match case.account {
        Account::Open(person) => person.connections_max,
        Account::Missing if may_be_made => None,
        Account::Missing | Account::Barred | Account::Unknown => return Err(wrong),
    };
    let (cluster, user) = case.place.ok_or(wrong)?;
    // The rules once more: they may have changed while a person was at the browser, and a rule about a role must not be
    // passed by the very sign-in that gives the role.
    let given = proof.vouched.as_ref().and_then(|vouched| vouched.memberships.as_ref());
    let roles = match given {
        None => roles.clone(),
        // A person at a browser may have taken longer than a program may.
        Some(given) => timeout_at(
            deadline.max(Instant::now() + house.settings.attach_max),
            house.directory.with_inherited(cluster.id, given),
        )
        .await?
        .ok_or(Refusal::NotReady(NotReady::Unasked))?,
    };
    let rules = house.directory.rules(cluster.id);
    // What new rules ask of memberships was not found out.
    if given.is_none() && rules.roles_named(claim.database.as_str()) != named {
        return Err(Refusal::Rejected);
    }
    let decides = rules.find(&Client { roles: &roles, ..facts });
    if decides.map(|rule| (rule.method(), rule.options())) != Some((method, &case.rule)) {
        return Err(Refusal::Rejected);
    }
    if !proof.is_greeted {
        timeout_at(deadline, send(client, &backend::authentication_ok())).await??;
    }
    Ok(Identity { user, cluster, connections_max, proof, method })
}

async fn by_method(
    case: &Case<'_>,
    client: &mut ClientStream,
    binding: &ChannelBinding,
) -> Result<Proof, Refusal> {
    let deadline = case.deadline;
    // A certificate that the rule wants beside the proof is looked at first: without it no secret is asked for.
    let beside = match case.rule.clientcert {
        Some(wanted) => Some(timeout_at(deadline, certificate::beside(case, wanted)).await??),
        None => None,
    };
    let brings_token = case.claim.brings_token;
    let mut proof = match case.method {
        Method::Reject => return Err(Refusal::Rejected),
        Method::Cert => timeout_at(deadline, certificate::only(case)).await??,
        Method::CertPassword => match timeout_at(deadline, certificate::first(case)).await?? {
            Some(proof) => proof,
            None if brings_token => timeout_at(deadline, clear::token(case, client)).await??,
            None => timeout_at(deadline, scram::prove(case, client, binding)).await??,
        },
        Method::Password if brings_token => timeout_at(deadline, clear::token(case, client)).await??,
        Method::Password => timeout_at(deadline, clear::password(case, client)).await??,
        Method::Jwt => timeout_at(deadline, clear::token(case, client)).await??,
        Method::ScramSha256 => timeout_at(deadline, scram::prove(case, client, binding)).await??,
        Method::Oauth => timeout_at(deadline, bearer::prove(case, client)).await??,
        // A person with a browser has longer than a program.
        Method::Browser => browser::prove(case, client).await?,
    };
    if proof.certificate.is_none() {
        proof.certificate = beside;
    }
    Ok(proof)
}

/// The cluster and the user, where both could exist. Our own roles and PostgreSQL's are nobody's to sign in as, whatever
/// the engine's catalog says.
fn place(claim: &Claim<'_>) -> Option<(Found, RoleName)> {
    let cluster = claim.cluster.clone()?;
    (!claim.user.is_reserved()).then(|| (cluster, claim.user.clone()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use identity::throttle::{Settings, Throttle};
    use model::ClusterId;

    use super::*;

    #[test]
    fn t31_guesses_from_where_a_cluster_is_not_cost_the_people_there_nothing() {
        let (throttle, now) = (Throttle::new(Settings::default()), Moment::now());
        let handle: ClusterHandle = "my-bank-3".parse().unwrap();
        let found = Found { id: ClusterId::random(), connections_max: 10, connections_per_user_max: 10 };
        let address = "192.168.5.9".parse().unwrap();
        let (outside, inside) = (counted_as(&handle, None), counted_as(&handle, Some(&found)));
        let attempt = |cluster| Attempt { cluster, user: "maria", address };
        for _ in 0..100 {
            throttle.failed(&attempt(&outside), now);
        }
        assert!(matches!(throttle.check(&attempt(&outside), now), Verdict::Refuse { .. }));
        assert_eq!(throttle.check(&attempt(&inside), now), Verdict::Go { wait: Duration::ZERO });
        assert!(outside.parse::<ClusterHandle>().is_err(), "no cluster's own name is written like it");
    }
}

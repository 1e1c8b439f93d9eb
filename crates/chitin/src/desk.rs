//! Answers the sign-in pages: sends people to their provider, takes them back, and tells whoever waits at a terminal.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use control::{
    Arrival, Callback, Departure, DeskRefused, Login, SignInDesk, Waiting, WebSession, WebSessions,
};
use gateway::directory::{Account, Directory as _, Waker as _};
use gateway::examine::Vouched;
use identity::hba::Client;
use identity::oidc::{Begun, Flows};
use identity::ticket::TicketFacts;
use identity::token::Claims;
use keys::SecretText;
use model::{Clock, ClusterHandle, ClusterId, DEFAULT_DATABASE, IdentityProvider, Origin, RoleName, Surface};
use serde::{Deserialize, Serialize};
use store::Store;
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::examiner::{Tickets, counts, given_up, vouch};
use crate::pages::Pages;
use crate::policy::{Policies, Policy};
use crate::presence::Presence;
use crate::waker::Waker;

/// Where providers send people back to, below the public URL.
pub const CALLBACK: &str = "/oidc/v1/callback";
/// Most SQL users that one person is tried as.
const CANDIDATES_MAX: usize = 50;

/// Between two looks at what was abandoned.
const COUNTED_EVERY: Duration = Duration::from_secs(60);

/// What a person went to the provider for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Purpose {
    /// A web session of a cluster.
    Login { cluster: ClusterId, handle: String },
    /// A cluster that does not exist: the way there looks the same, and ends in a refusal.
    Nowhere,
    /// Whoever waits at a terminal.
    Ticket { id: String },
}

/// The desk.
pub struct Desk {
    store: Arc<Store>,
    policies: Arc<Policies>,
    clock: Arc<dyn Clock>,
    flows: Flows<Purpose>,
    tickets: Arc<Tickets>,
    sessions: WebSessions,
    directory: Arc<Directory>,
    waker: Arc<Waker>,
    presence: Arc<Presence>,
    pages: Arc<Pages>,
}

/// What the desk is put together from.
pub struct Parts {
    /// The cloud's state.
    pub store: Arc<Store>,
    /// How clusters let people in.
    pub policies: Arc<Policies>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// The ways to providers and back.
    pub flows: Flows<Purpose>,
    /// Who waits at a terminal.
    pub tickets: Arc<Tickets>,
    /// Who exists.
    pub directory: Arc<Directory>,
    /// Who wakes engines.
    pub waker: Arc<Waker>,
    /// Who uses a cluster.
    pub presence: Arc<Presence>,
    /// Where people's browsers find us.
    pub pages: Arc<Pages>,
}

impl Desk {
    /// Puts the desk together.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { store, policies, clock, flows, tickets, directory, waker, presence, pages } = parts;
        let sessions = WebSessions::default();
        Arc::new(Self { store, policies, clock, flows, tickets, sessions, directory, waker, presence, pages })
    }

    /// Tells the log of what was begun and abandoned, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(COUNTED_EVERY) => {}
            }
            self.tickets.tell_abandoned();
            let (begun, finished) = self.flows.take_counts();
            if begun > finished {
                tracing::info!(
                    begun,
                    finished,
                    "people went to identity providers, and not all of them came back"
                );
            }
        }
    }

    async fn depart(
        &self,
        provider: Arc<IdentityProvider>,
        purpose: Purpose,
        from: &Origin,
    ) -> Result<Departure, DeskRefused> {
        let redirect_url = format!("{}{CALLBACK}", self.pages.origin(&from.way));
        match self.flows.begin(provider, &redirect_url, purpose).await {
            Ok(Begun { location, state_cookie }) => {
                Ok(Departure { location: location.to_string(), state_cookie })
            }
            Err(refused) => {
                tracing::warn!(detail = refused.detail().unwrap_or_default(), "{refused}");
                Err(DeskRefused::NotBegun)
            }
        }
    }

    /// The providers that count for what somebody went to one of them for.
    fn providers(&self, purpose: &Purpose) -> Vec<Arc<IdentityProvider>> {
        let snapshot = self.store.snapshot();
        match purpose {
            Purpose::Login { cluster, .. } => snapshot.providers(*cluster),
            Purpose::Nowhere => snapshot.own_providers(None),
            Purpose::Ticket { id } => match self.tickets.look(id, self.clock.now()) {
                Some((facts, _)) => snapshot.providers(facts.cluster),
                None => Vec::new(),
            },
        }
    }

    /// The waiting session, for a browser to which its cluster's pages are open. To others it does not exist.
    fn look(&self, id: &str, from: Option<&Origin>) -> Result<(TicketFacts, String), DeskRefused> {
        let (facts, code) = self.tickets.look(id, self.clock.now()).ok_or(DeskRefused::Gone)?;
        let is_open = |from: &&Origin| self.directory.admits_to(facts.cluster, from, Surface::Web);
        from.filter(is_open).ok_or(DeskRefused::Gone)?;
        Ok((facts, code))
    }

    /// Hands what a person brought to whoever waits.
    fn hand_over(&self, id: &str, claims: &Claims) -> Result<Arrival, DeskRefused> {
        let (facts, _) = self.tickets.look(id, self.clock.now()).ok_or(DeskRefused::Gone)?;
        if !facts.accepts(&claims.provider) || !self.still_counts(facts.cluster, claims) {
            return Err(DeskRefused::Forbidden);
        }
        let policy = self.policies.of(facts.cluster);
        let outcome = vouch(claims, &policy, facts.map.as_deref(), &facts.user, "oidc");
        let is_good = outcome.is_ok();
        self.tickets.complete(id, outcome, self.clock.now()).map_err(|_| DeskRefused::Gone)?;
        if !is_good {
            return Err(DeskRefused::Forbidden);
        }
        Ok(Arrival::Ticket { user: facts.user.to_string(), cluster: facts.handle.to_string() })
    }

    /// Opens a web session as the SQL user that the person is: where a token would let it into SQL, and nowhere else.
    async fn let_in(
        &self,
        cluster: ClusterId,
        handle: String,
        from: Option<Origin>,
        claims: &Claims,
    ) -> Result<Arrival, DeskRefused> {
        let is_open = |from: &Origin| self.directory.admits_to(cluster, from, Surface::Web);
        // As of a cluster that does not exist: whoever begins at one address and comes back from another learns nothing.
        let Some(from) = from.filter(is_open).map(|from| from.address) else {
            tracing::info!(%cluster, "somebody came back from a provider whose address is not on the list for the pages");
            return Err(DeskRefused::Forbidden);
        };
        let policy = self.policies.of(cluster);
        for user in candidates(claims, &policy) {
            let Some(vouched) = self.welcome(cluster, from, claims, &policy, &user).await else {
                continue;
            };
            if vouched.source.is_some() || vouched.memberships.is_some() {
                // Counted as using the cluster, so that it does not fall asleep meanwhile.
                let _errand = self.presence.errand(cluster);
                let granted = self.waker.engine(cluster, &user, Some(&vouched)).await;
                granted.map_err(|_| DeskRefused::NotCompleted)?;
            }
            let session = WebSession {
                cluster: handle,
                user: user.to_string(),
                provider: claims.provider.name.to_string(),
                expires_at: self.clock.now(),
            };
            let (token, lasts, session) = self.sessions.open(session, self.clock.now());
            tracing::info!(%cluster, %user, provider = %claims.provider.name, "signed in on the web");
            return Ok(Arrival::Session { token, lasts, session });
        }
        tracing::info!(%cluster, provider = %claims.provider.name, "a person whom no rule lets in wanted in on the web");
        Err(DeskRefused::Forbidden)
    }

    /// What the person gets as this user, if the cluster's rules let a token in for it.
    async fn welcome(
        &self,
        cluster: ClusterId,
        from: IpAddr,
        claims: &Claims,
        policy: &Policy,
        user: &RoleName,
    ) -> Option<Vouched> {
        let named = policy.rules.roles_named(DEFAULT_DATABASE);
        let account = self.directory.account(cluster, user, &named).await;
        let roles = account.person().map(|person| person.member_of.clone()).unwrap_or_default();
        let facts = Client { user: user.as_str(), database: DEFAULT_DATABASE, roles: &roles, address: from };
        let rule = policy.rules.find(&facts)?;
        if !rule.method().takes_tokens() || !counts(rule.options(), &claims.provider) {
            return None;
        }
        let mut vouched =
            vouch(claims, policy, rule.options().token_map(rule.method()), user, "oidc").ok()?;
        match account {
            Account::Open(_) => vouched.source = None,
            Account::Missing if vouched.source.is_some() => {}
            Account::Missing | Account::Barred | Account::Unknown => return None,
        }
        if let Some(given) = &vouched.memberships {
            let roles = self.directory.with_inherited(cluster, given).await?;
            let decides = policy.rules.find(&Client { roles: &roles, ..facts });
            decides.filter(|other| other.line() == rule.line())?;
        }
        Some(vouched)
    }

    /// The provider as it is now, if it is still as it was when somebody was sent there.
    fn still_counts(&self, cluster: ClusterId, claims: &Claims) -> bool {
        self.store.snapshot().providers(cluster).iter().any(|provider| **provider == *claims.provider)
    }
}

/// The SQL users that the person could be, in the order of the claim: by the map of the issuer or of a rule, or by name.
fn candidates(claims: &Claims, policy: &Policy) -> Vec<RoleName> {
    let mut maps: Vec<&str> =
        policy.rules.iter().filter_map(|rule| rule.options().token_map(rule.method())).collect();
    maps.push(&claims.provider.issuer);
    let mut users: Vec<RoleName> = Vec::new();
    for principal in &claims.principals {
        let mapped = maps.iter().flat_map(|map| policy.map.users(map, principal));
        for name in mapped.chain([principal.clone()]) {
            let Ok(user) = name.parse::<RoleName>() else { continue };
            if !user.is_reserved() && !users.contains(&user) && users.len() < CANDIDATES_MAX {
                users.push(user);
            }
        }
    }
    users
}

#[async_trait]
impl SignInDesk for Desk {
    async fn begin_login(&self, login: Login) -> Result<Departure, DeskRefused> {
        let from = login.from.ok_or(DeskRefused::NotBegun)?;
        // Before the cluster is looked for: whom none lets in is to learn of none whether it exists.
        if !self.directory.admits_anywhere(&from, Surface::Web) {
            return Err(DeskRefused::Address);
        }
        let handle: ClusterHandle = login.cluster.parse().map_err(|_| DeskRefused::NotBegun)?;
        let snapshot = self.store.snapshot();
        let (providers, purpose) = match self.directory.visible(&handle, &from.way) {
            Some(entry) => {
                let cluster = entry.cluster.id;
                if !self.directory.admits_to(cluster, &from, Surface::Web) {
                    return Err(DeskRefused::Address);
                }
                (snapshot.providers(cluster), Purpose::Login { cluster, handle: handle.to_string() })
            }
            None => (snapshot.own_providers(None), Purpose::Nowhere),
        };
        let provider = providers.into_iter().find(|provider| {
            provider.client_id.is_some()
                && login.provider.as_ref().is_none_or(|name| name == provider.name.as_str())
        });
        self.depart(provider.ok_or(DeskRefused::NotBegun)?, purpose, &from).await
    }

    async fn finish(&self, callback: Callback) -> Result<Arrival, DeskRefused> {
        let Callback { state, cookie, outcome, issuer, from } = callback;
        let cookie = cookie.as_ref().map(SecretText::expose);
        let code = match &outcome {
            Ok(code) => code.expose(),
            Err(error) => {
                tracing::info!(%error, "a provider sent somebody back with an error");
                // Whoever waits at a terminal hears of it at once.
                if let Ok(Purpose::Ticket { id }) = self.flows.give_up(&state, cookie) {
                    let _ = self.tickets.complete(&id, Err(given_up()), self.clock.now());
                }
                return Err(DeskRefused::NotCompleted);
            }
        };
        let providers = |purpose: &Purpose| self.providers(purpose);
        let finished = self.flows.finish(&state, cookie, code, issuer.as_deref(), providers).await;
        let (claims, purpose) = finished.map_err(|refused| {
            tracing::info!(detail = refused.detail().unwrap_or_default(), "{refused}");
            DeskRefused::NotCompleted
        })?;
        match purpose {
            Purpose::Ticket { id } => {
                self.look(&id, from.as_ref())?;
                self.hand_over(&id, &claims)
            }
            Purpose::Login { cluster, handle } if self.still_counts(cluster, &claims) => {
                self.let_in(cluster, handle, from, &claims).await
            }
            Purpose::Login { .. } | Purpose::Nowhere => Err(DeskRefused::Forbidden),
        }
    }

    async fn ticket(&self, id: &str, from: Option<&Origin>) -> Result<Waiting, DeskRefused> {
        let (facts, code) = self.look(id, from)?;
        Ok(Waiting {
            user: facts.user.to_string(),
            cluster: facts.handle.to_string(),
            address: facts.origin.address,
            provider: facts.provider.to_string(),
            code,
        })
    }

    async fn begin_ticket(&self, id: &str, from: Option<&Origin>) -> Result<Departure, DeskRefused> {
        let (facts, _) = self.look(id, from)?;
        let from = from.ok_or(DeskRefused::Gone)?;
        let providers = self.store.snapshot().providers(facts.cluster);
        let provider = providers.into_iter().find(|provider| facts.accepts(provider));
        self.depart(provider.ok_or(DeskRefused::NotBegun)?, Purpose::Ticket { id: id.to_owned() }, from).await
    }

    async fn session(&self, token: &SecretText, from: Option<&Origin>) -> Option<WebSession> {
        let session = self.sessions.find(token, self.clock.now())?;
        // Whoever may no longer sign in, or whose cluster is gone, has no session any more.
        let handle: ClusterHandle = session.cluster.parse().ok()?;
        let cluster = self.store.snapshot().by_handle(&handle)?.cluster.id;
        // The session stays, for the addresses that are let in: its owner may only have come another way this time.
        from.filter(|from| self.directory.admits_to(cluster, from, Surface::Web))?;
        let user: RoleName = session.user.parse().ok()?;
        match self.directory.account(cluster, &user, &[]).await {
            Account::Open(_) => Some(session),
            // Nobody can say now; the session may be good again in a moment.
            Account::Unknown => None,
            Account::Missing | Account::Barred => {
                self.sessions.close(token);
                None
            }
        }
    }

    async fn log_out(&self, token: &SecretText) -> bool {
        self.sessions.close(token)
    }
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Desk")
    }
}

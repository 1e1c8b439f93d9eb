//! Answers the gateway about proofs that need a look outside: certificates and their revocation, tokens, browsers.

use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt;
use gateway::examine::{Certificate, Discovery, Guest, NotVouched, Vouched, Waiting};
use identity::authorize;
use identity::hba::{ClientName, RuleOptions};
use identity::identity_map::IdentityMap;
use identity::revocation::Revocation;
use identity::ticket::TicketFacts;
use identity::token::{Claims, Kind, TokenRefused, Tokens};
use keys::SecretText;
use keys::client::{CertRefused, Verified};
use model::{Clock, ClusterId, IdentityProvider, RoleName};
use rustls::pki_types::CertificateDer;
use store::Store;

use crate::pages::Pages;
use crate::policy::{Policies, Policy};

/// What a person in a browser brings back to whoever waits at a terminal.
pub type Outcome = Result<Vouched, NotVouched>;
/// Everybody who waits at a terminal.
pub type Tickets = identity::ticket::Tickets<Outcome>;

/// Checks proofs.
pub struct Examiner {
    store: Arc<Store>,
    policies: Arc<Policies>,
    clock: Arc<dyn Clock>,
    revocation: Arc<Revocation>,
    tokens: Arc<Tokens>,
    tickets: Arc<Tickets>,
    pages: Arc<Pages>,
}

impl Examiner {
    /// Puts the examiner together.
    pub fn new(
        store: Arc<Store>,
        policies: Arc<Policies>,
        clock: Arc<dyn Clock>,
        revocation: Arc<Revocation>,
        tokens: Arc<Tokens>,
        tickets: Arc<Tickets>,
        pages: Arc<Pages>,
    ) -> Arc<Self> {
        Arc::new(Self { store, policies, clock, revocation, tokens, tickets, pages })
    }

    /// The providers that count under a rule.
    fn providers(&self, cluster: ClusterId, rule: &RuleOptions) -> Vec<Arc<IdentityProvider>> {
        let mut all = self.store.snapshot().providers(cluster);
        all.retain(|provider| counts(rule, provider));
        all
    }

    /// Why a certificate that an open session stands on counts no longer, as far as that is known here.
    pub fn looks_bad(&self, cluster: ClusterId, certificate: &Verified) -> Option<&'static str> {
        if certificate.not_after <= self.clock.now() {
            return Some("it has expired");
        }
        self.policies.of(cluster).crls.revokes(certificate).then_some("it is on a revocation list")
    }

    /// Whether a responder says by now that a certificate is revoked, on which an open session stands.
    pub async fn is_revoked(&self, cluster: ClusterId, certificate: &Verified) -> bool {
        let policy = self.policies.of(cluster);
        self.revocation.recheck(cluster, certificate, &policy.ocsp).await.is_some()
    }
}

/// Whether a provider's tokens count under a rule.
pub fn counts(rule: &RuleOptions, provider: &IdentityProvider) -> bool {
    rule.provider.as_ref().is_none_or(|name| *name == provider.name)
        && rule.issuer.as_ref().is_none_or(|issuer| *issuer == provider.issuer)
}

/// What a token gives its holder as this SQL user.
pub fn vouch(claims: &Claims, policy: &Policy, map: Option<&str>, user: &RoleName, kind: &str) -> Outcome {
    let granted =
        authorize::authorize(claims, &policy.map, map, user.as_str()).and_then(|_| authorize::roles(claims));
    let memberships = granted.map_err(|refused| not_vouched(&refused))?;
    let provider = &claims.provider;
    let source = provider.provisions.then(|| format!("{kind}:{}", provider.issuer));
    Ok(Vouched { memberships, source })
}

/// Nobody came back from the provider with a proof.
pub fn given_up() -> NotVouched {
    NotVouched {
        message: "the sign-in with the browser was given up".to_owned(),
        hint: Some("Connect again."),
        is_wrong: false,
    }
}

/// The client hears the kind of the refusal; whose token it was and for whom is for the log.
pub fn not_vouched(refused: &TokenRefused) -> NotVouched {
    tracing::info!(reason = %refused, detail = refused.detail().unwrap_or_default(), "a token was refused");
    // A cluster without providers must look like one whose providers did not sign the token.
    let message = match refused {
        TokenRefused::NotEnabled => TokenRefused::InvalidToken.to_string(),
        other => other.to_string(),
    };
    NotVouched { message, hint: None, is_wrong: refused.is_wrong() }
}

#[async_trait]
impl gateway::examine::Examiner for Examiner {
    async fn certificate(&self, cluster: ClusterId, presented: &[CertificateDer<'static>]) -> Certificate {
        let policy = self.policies.of(cluster);
        let Some(authorities) = &policy.authorities else {
            return Certificate::Stranger;
        };
        let verified = match authorities.verify(presented, &policy.crls, self.clock.now()) {
            Ok(verified) => verified,
            Err(CertRefused::Stranger | CertRefused::Malformed) => return Certificate::Stranger,
            Err(refused) => {
                tracing::info!(%cluster, %refused, "a client certificate was refused");
                let message = format!("client certificate refused: {refused}");
                let hint = (refused == CertRefused::NoCrl).then_some(
                    "The cluster's operator sets a list of every authority, or permits that one has none: chitin crl set --accept-without-list",
                );
                // Who holds a certificate that nobody's list is about has not guessed.
                let is_wrong = refused != CertRefused::NoCrl;
                return Certificate::Bad(NotVouched { message, hint, is_wrong });
            }
        };
        match self.revocation.check(cluster, &verified, &policy.ocsp).await {
            Ok(passed) => {
                if let Some(warning) = passed.warning {
                    tracing::warn!(%cluster, subject = verified.subject, %warning, "OCSP check failed in non-strict mode");
                }
                Certificate::Good(Arc::new(verified))
            }
            Err(refused) => {
                tracing::info!(%cluster, subject = verified.subject, detail = refused.detail(), "{refused}");
                Certificate::Bad(NotVouched {
                    message: refused.to_string(),
                    hint: None,
                    is_wrong: refused.is_revoked(),
                })
            }
        }
    }

    fn is_named(
        &self,
        cluster: ClusterId,
        certificate: &Verified,
        user: &RoleName,
        rule: &RuleOptions,
    ) -> bool {
        if user.is_reserved() {
            return false;
        }
        let policy = self.policies.of(cluster);
        let is_user = |name: &String| match &rule.map {
            Some(map) => policy.map.permits(map, name, user.as_str()),
            None => name == user.as_str(),
        };
        let names = &certificate.alternative_names;
        let is_named = match rule.clientname {
            ClientName::Cn => certificate.common_name.iter().any(is_user),
            ClientName::Dn => !certificate.is_constrained && is_user(&certificate.subject),
            ClientName::SanDns => names.dns.iter().any(is_user),
            ClientName::SanEmail => names.emails.iter().any(is_user),
            ClientName::SanUri => names.uris.iter().any(is_user),
            ClientName::San => {
                // No e-mail address is meant by a URI that has one in it.
                let mut uris = names.uris.iter().filter(|uri| !uri.contains('@'));
                names.dns.iter().any(is_user) || names.emails.iter().any(is_user) || uris.any(is_user)
            }
        };
        let by_subject = matches!(rule.clientname, ClientName::Cn | ClientName::Dn);
        if !is_named && by_subject && certificate.is_constrained {
            tracing::info!(
                %cluster,
                serial = certificate.serial,
                "a certificate's subject names nobody, because an authority of its chain has name constraints that do not \
                 permit it; rules can name by an alternative name (clientname=SAN-DNS)"
            );
        }
        is_named
    }

    async fn token(&self, guest: &Guest, token: SecretText, rule: &RuleOptions) -> Outcome {
        let providers = self.providers(guest.cluster, rule);
        let verified = self.tokens.verify(&providers, &token, Kind::Password).await;
        let claims = verified.map_err(|refused| not_vouched(&refused))?;
        let policy = self.policies.of(guest.cluster);
        vouch(&claims, &policy, rule.map.as_deref(), &guest.user, "jwt_token")
    }

    async fn stray_token(&self, user: &str, token: SecretText) -> Result<(), NotVouched> {
        let providers = self.store.snapshot().own_providers(None);
        let verified = self.tokens.verify(&providers, &token, Kind::Password).await;
        let granted = verified.and_then(|claims| {
            authorize::authorize(&claims, &IdentityMap::default(), None, user)?;
            authorize::roles(&claims)
        });
        granted.map(drop).map_err(|refused| not_vouched(&refused))
    }

    fn discovery(&self, cluster: ClusterId, rule: &RuleOptions) -> Option<Discovery> {
        let providers = self.providers(cluster, rule);
        let provider = providers.first()?;
        let configuration =
            format!("{}/.well-known/openid-configuration", provider.issuer.trim_end_matches('/'));
        let scope = rule.scope.clone().unwrap_or_else(|| provider.scopes.join(" "));
        Some(Discovery { configuration, scope })
    }

    async fn browser(&self, guest: &Guest, rule: &RuleOptions) -> Result<Waiting, NotVouched> {
        let providers = self.providers(guest.cluster, rule);
        let provider = providers.into_iter().find(|provider| provider.client_id.is_some());
        let Some(provider) = provider else {
            return Err(NotVouched::no_browser());
        };
        let facts = TicketFacts {
            cluster: guest.cluster,
            handle: guest.handle.clone(),
            user: guest.user.clone(),
            origin: guest.origin.clone(),
            provider: provider.name.clone(),
            issuer: provider.issuer.clone(),
            map: rule.map.clone(),
        };
        let opened = self.tickets.open(facts, self.clock.now()).map_err(|_| NotVouched {
            message: "too many people are signing in with a browser".to_owned(),
            hint: Some("Try again in a minute."),
            is_wrong: false,
        })?;
        let origin = self.pages.origin_for(guest.cluster, &guest.origin.way);
        let url = format!("{origin}/sign-in/{}", opened.id.as_str());
        let code = opened.code.clone();
        let outcome = async move { opened.ticket.await.unwrap_or_else(|_| Err(given_up())) }.boxed();
        Ok(Waiting { url, code, outcome })
    }
}

impl std::fmt::Debug for Examiner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Examiner")
    }
}

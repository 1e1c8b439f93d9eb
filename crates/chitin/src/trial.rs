//! Trying what somebody wants to set, on what it will be used for, before it replaces what is there.

use std::sync::Arc;
use std::time::Duration;

use control::{KeyInUse, Refusal};
use engine::Host;
use keys::KeyFailure;
use model::{Clock, Fetcher, IdentityProvider, KeyService, Way};
use tokio::time::timeout;

use crate::desk::CALLBACK;
use crate::pages::Pages;
use crate::ring::Ring;

/// For all keys of one key service.
const KEYS_MAX: Duration = Duration::from_secs(60);
/// For an identity provider: discovery, keys and a question to the token endpoint.
const PROVIDER_MAX: Duration = Duration::from_secs(15);

/// Tries.
pub struct Trial {
    /// The wrapped data keys.
    pub host: Arc<Host>,
    /// The keys that wrap them.
    pub ring: Arc<Ring>,
    /// The way out.
    pub fetcher: Arc<dyn Fetcher>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Where providers send people back to.
    pub pages: Arc<Pages>,
}

impl Trial {
    /// Uses each key through the service as it would be set, one after the other: a first failure is the answer, so that a
    /// wrong PIN is tried once.
    pub async fn key_service(&self, service: &KeyService, keys: &[KeyInUse]) -> Result<(), Refusal> {
        let tried = async {
            for key in keys {
                self.key(service, key).await.map_err(|cause| refusal(service, key, &cause))?;
            }
            Ok(())
        };
        timeout(KEYS_MAX, tried).await.unwrap_or_else(|_| {
            Err(Refusal::busy(format!(
                "the keys that clusters use through '{}' could not all be tried within {} s, so nothing was changed; \
                 to set it untried: --force",
                service.name,
                KEYS_MAX.as_secs()
            )))
        })
    }

    async fn key(&self, service: &KeyService, key: &KeyInUse) -> Result<(), KeyFailure> {
        let KeyInUse { spec, cluster, cluster_name: _, is_denied } = key;
        // A file that cannot be read, or that another key wraps by now, says nothing of the credentials.
        let own = self.host.wrapped_key(*cluster).await.ok().filter(|own| own.key == *spec);
        match self.ring.try_through(service, spec, *cluster, own.as_ref()).await {
            // It is denied already, and stays so with these: that is no fault of theirs.
            Err(KeyFailure::Denied { .. }) if *is_denied => Ok(()),
            other => other,
        }
    }

    /// Asks the provider for what sign-ins need of it.
    pub async fn provider(&self, provider: IdentityProvider) -> Result<(), Refusal> {
        let redirect_url = format!("{}{CALLBACK}", self.pages.origin(&Way::Public));
        let (provider, fetcher, clock) = (Arc::new(provider), self.fetcher.clone(), self.clock.clone());
        let tried = identity::oidc::try_out(&provider, &redirect_url, fetcher, clock);
        let tried = timeout(PROVIDER_MAX, tried).await.unwrap_or_else(|_| {
            Err(format!("{} gave no answer within {} s", provider.issuer, PROVIDER_MAX.as_secs()))
        });
        tried.map_err(|why| {
            Refusal::wrong_state(format!(
                "the identity provider '{}' was tried before it counts, and it does not work: {why}; nothing was changed. \
                 To set it all the same: --force",
                provider.name
            ))
        })
    }
}

fn refusal(service: &KeyService, key: &KeyInUse, cause: &KeyFailure) -> Refusal {
    let text = format!(
        "the key service '{}' was tried on the key of {} before it counts, and it does not work: {cause}; nothing was \
         changed. To set it all the same: --force",
        service.name, key.cluster_name
    );
    match cause {
        KeyFailure::Unreachable { .. } => Refusal::busy(text),
        KeyFailure::Denied { .. }
        | KeyFailure::Unauthenticated { .. }
        | KeyFailure::Unusable { .. }
        | KeyFailure::DoesNotOpen { .. }
        | KeyFailure::NotItsKey { .. } => Refusal::wrong_state(text),
    }
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trial")
    }
}

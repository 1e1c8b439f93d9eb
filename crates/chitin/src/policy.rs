//! A cluster's way of letting people in, read from its document once and kept until the document changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use identity::hba::Rules;
use identity::identity_map::IdentityMap;
use keys::client::{ClientAuthorities, Crls};
use model::{ClusterId, Ocsp, SignIn};
use store::Store;

/// What nobody gets past: the answer to rules that cannot be read.
const NOBODY: &str = "host all all all reject\n";
/// Clusters whose policy is kept; more are read again when they are asked for.
const KEPT_MAX: usize = 10_000;

/// How one cluster lets people in.
pub struct Policy {
    /// Who may come in and how.
    pub rules: Arc<Rules>,
    /// Who may be whom.
    pub map: IdentityMap,
    /// Whose certificates count; `None` where nobody's do.
    pub authorities: Option<ClientAuthorities>,
    /// Which of them do not.
    pub crls: Crls,
    /// How revocation is asked for.
    pub ocsp: Ocsp,
    source: SignIn,
}

/// The policies of all clusters.
pub struct Policies {
    store: Arc<Store>,
    standard: Arc<Policy>,
    kept: Mutex<HashMap<ClusterId, Arc<Policy>>>,
}

impl Policies {
    /// Of the clusters in this store.
    pub fn new(store: Arc<Store>) -> Arc<Self> {
        let standard = Arc::new(Policy::read(&SignIn::default()));
        Arc::new(Self { store, standard, kept: Mutex::default() })
    }

    /// The cluster's policy at this moment. A cluster that is gone has the default, which opens nothing.
    pub fn of(&self, cluster: ClusterId) -> Arc<Policy> {
        let snapshot = self.store.snapshot();
        let Some(wanted) = snapshot.get(&cluster).map(|entry| &entry.cluster.sign_in) else {
            return self.standard.clone();
        };
        if *wanted == self.standard.source {
            return self.standard.clone();
        }
        // Single inserts.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(&cluster).filter(|known| known.source == *wanted) {
            return known.clone();
        }
        let read = Arc::new(Policy::read(wanted));
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(cluster, read.clone());
        read
    }
}

impl Policy {
    /// Texts were checked when they were set. One that cannot be read all the same lets nobody in.
    fn read(source: &SignIn) -> Self {
        let mut rules = match &source.hba {
            None => Rules::standard(),
            Some(text) => Rules::parse(text).unwrap_or_else(|mistake| {
                tracing::error!(%mistake, "the rules of a cluster cannot be read: nobody is let in; set them again with: chitin hba set");
                nobody()
            }),
        };
        let map = source.identity_map.as_deref().map_or_else(IdentityMap::default, |text| {
            IdentityMap::parse(text).unwrap_or_else(|mistake| {
                tracing::error!(%mistake, "the identity map of a cluster cannot be read: nobody is let in; set it again with: chitin identity-map set");
                // Without its map a name of the outside would count as it is.
                rules = nobody();
                IdentityMap::default()
            })
        });
        let mut authorities = source.client_ca.as_deref().and_then(|pem| {
            ClientAuthorities::parse(pem)
                .inspect_err(|cause| tracing::error!(%cause, "the client authorities of a cluster cannot be read: no certificate counts; set them again with: chitin client-ca set"))
                .ok()
        });
        let crls = source.crls.as_deref().map_or_else(|| Ok(Crls::empty()), Crls::parse).unwrap_or_else(|cause| {
            tracing::error!(%cause, "the revocation lists of a cluster cannot be read: no certificate counts; set them again with: chitin crl set");
            authorities = None;
            Crls::empty()
        });
        Self {
            rules: Arc::new(rules),
            map,
            authorities,
            crls: crls.accepting_without_list(source.accept_without_list),
            ocsp: source.ocsp.clone(),
            source: source.clone(),
        }
    }
}

/// Rules that let nobody in; an empty list would be read as the default.
fn nobody() -> Rules {
    Rules::parse(NOBODY).unwrap_or_else(|_| Rules::standard())
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Policies")
    }
}

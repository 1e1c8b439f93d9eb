//! Key services: providers of key-encryption keys that are not the cloud's own. Each wraps data keys without ever giving
//! its key away.
//!
//! What a failure means to a cluster depends on its kind alone, so each provider says with care which it is:
//! [`KeyFailure::Denied`] only when the service itself, signed in to, says that the key may not be used;
//! [`KeyFailure::Unauthenticated`] when it does not let us sign in, which is no word about the key;
//! [`KeyFailure::Unreachable`] when nothing is known; [`KeyFailure::Unusable`] when something is set that cannot be.

mod asking;
mod aws;
mod form;
mod gcp;
mod pkcs11;
mod transit;

use std::sync::Arc;

use model::{Clock, Fetcher, KeyService, KeySpec, KeyType};

use crate::{KeyEncryption, KeyFailure};
pub use form::{check, check_service};

/// The key-encryption key that the specification names, at the service. Asks nobody yet.
///
/// Keep what this returns: it holds what a sign-in at the service gave, and signs in again when that has expired.
///
/// # Errors
/// [`KeyFailure::Unusable`] if the two do not belong together, or one is not well formed.
pub fn open(
    service: &KeyService,
    spec: &KeySpec,
    fetcher: Arc<dyn Fetcher>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn KeyEncryption>, KeyFailure> {
    let unusable = |reason: String| KeyFailure::Unusable { key: spec.to_string(), reason };
    if service.kind != spec.kind {
        return Err(unusable(format!(
            "the key service {} is of the kind {}; name one of the kind {}",
            service.name,
            service.kind.as_str(),
            spec.kind.as_str()
        )));
    }
    check(spec.kind, &spec.uri, &spec.auth_principal).map_err(unusable)?;
    check_service(service).map_err(unusable)?;
    let asker = asking::Asker::new(service, spec, fetcher, clock);
    Ok(match spec.kind {
        KeyType::Vault => Arc::new(transit::Transit::new(service, asker)?),
        KeyType::Aws => Arc::new(aws::AwsKms::new(service, asker)?),
        KeyType::Gcp => Arc::new(gcp::GcpKms::new(service, asker)?),
        KeyType::Pkcs11 => Arc::new(pkcs11::Token::new(service, spec)?),
        KeyType::Null | KeyType::Azure => {
            return Err(unusable(format!("{} is not kept at a key service", spec.kind.as_str())));
        }
    })
}

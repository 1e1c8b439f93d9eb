//! A flow that is under way, as its browser keeps it for us: sealed, so that there is nothing here that strangers could fill.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keys::{RotatingKey, SecretText, fill_random};
use model::IdentityProvider;
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{COOKIE_CHARACTERS_MAX, FLOW_LIFE, OidcRefused};
use crate::digest_of;

/// Longest address of our own callback, in bytes.
const REDIRECT_BYTES_MAX: usize = 300;
/// What a flow is for takes so many bytes, whatever it is for: the cookie of a cluster that does not exist has the length of
/// any other.
const PURPOSE_BYTES: usize = 192;
const SEED_BYTES: usize = 32;
const DIGEST_BYTES: usize = 32;
/// Flows that came to their end and are remembered until they would have lapsed. Nobody is, for whom no provider has vouched.
const USED_MAX: usize = 10_000;

/// What is remembered of a flow while its person is at the provider.
pub(super) struct Flow<P> {
    /// When it lapses.
    pub(super) until: OffsetDateTime,
    /// The provider's document as it was.
    pub(super) provider: [u8; DIGEST_BYTES],
    /// Our own callback, as the provider was told.
    pub(super) redirect_url: String,
    /// What it is for.
    pub(super) purpose: P,
    seed: Zeroizing<[u8; SEED_BYTES]>,
}

impl<P: Serialize + DeserializeOwned> Flow<P> {
    /// One that begins now.
    pub(super) fn new(
        provider: &IdentityProvider,
        redirect_url: &str,
        purpose: P,
        now: OffsetDateTime,
    ) -> Option<Self> {
        let mut seed = Zeroizing::new([0; SEED_BYTES]);
        fill_random(seed.as_mut());
        let (until, redirect_url) = (now + FLOW_LIFE, redirect_url.to_owned());
        Some(Self { until, provider: document_digest(provider)?, redirect_url, purpose, seed })
    }

    /// What the ID token must repeat: 43 characters.
    pub(super) fn nonce(&self) -> SecretText {
        self.derived("nonce")
    }

    /// PKCE's code verifier (RFC 7636, section 4.1): 43 characters.
    pub(super) fn verifier(&self) -> SecretText {
        self.derived("verifier")
    }

    /// The digest of the purpose and a secret of 256 bits, which tells neither the secret nor another's digest.
    fn derived(&self, what: &str) -> SecretText {
        let text = Zeroizing::new(format!("{what} {}", URL_SAFE_NO_PAD.encode(self.seed.as_ref())));
        SecretText::new(URL_SAFE_NO_PAD.encode(digest_of(&text)))
    }

    /// The cookie, which opens for this state only. `None` where something in it is longer than it may be.
    pub(super) fn seal(&self, key: &RotatingKey, state: &str) -> Option<SecretText> {
        let redirect_length = u16::try_from(self.redirect_url.len()).ok()?;
        if self.redirect_url.len() > REDIRECT_BYTES_MAX {
            return None;
        }
        let mut purpose = serde_json::to_vec(&self.purpose).ok()?;
        if purpose.len() > PURPOSE_BYTES {
            return None;
        }
        purpose.resize(PURPOSE_BYTES, b' ');
        let mut plain = Zeroizing::new(Vec::new());
        plain.extend_from_slice(&self.until.unix_timestamp().to_be_bytes());
        plain.extend_from_slice(&self.provider);
        plain.extend_from_slice(self.seed.as_ref());
        plain.extend_from_slice(&redirect_length.to_be_bytes());
        plain.extend_from_slice(self.redirect_url.as_bytes());
        plain.extend_from_slice(&purpose);
        let sealed = key.seal(state.as_bytes(), &plain, Instant::now()).ok()?;
        Some(SecretText::new(URL_SAFE_NO_PAD.encode(sealed)))
    }

    /// Reads a browser's cookie for this state.
    pub(super) fn open(
        key: &RotatingKey,
        state: &str,
        cookie: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<Self, OidcRefused> {
        let cookie = cookie.ok_or(OidcRefused::NoFlow("the browser brought no cookie"))?;
        if state.len().max(cookie.len()) > COOKIE_CHARACTERS_MAX {
            return Err(OidcRefused::NoFlow("state or cookie are too long"));
        }
        let unknown =
            OidcRefused::NoFlow("state and cookie are of no flow that is under way in this process");
        let sealed = URL_SAFE_NO_PAD.decode(cookie).map_err(|_| unknown.clone())?;
        let plain = key.open(state.as_bytes(), &sealed, Instant::now()).map_err(|_| unknown.clone())?;
        let flow = Self::read(plain.expose()).ok_or(unknown)?;
        if now >= flow.until {
            return Err(OidcRefused::NoFlow("it took too long"));
        }
        Ok(flow)
    }

    fn read(plain: &[u8]) -> Option<Self> {
        let (until, rest) = plain.split_first_chunk::<8>()?;
        let (provider, rest) = rest.split_first_chunk::<DIGEST_BYTES>()?;
        let (seed, rest) = rest.split_first_chunk::<SEED_BYTES>()?;
        let (redirect_length, rest) = rest.split_first_chunk::<2>()?;
        let (redirect_url, purpose) = rest.split_at_checked(u16::from_be_bytes(*redirect_length).into())?;
        Some(Self {
            until: OffsetDateTime::from_unix_timestamp(i64::from_be_bytes(*until)).ok()?,
            provider: *provider,
            redirect_url: String::from_utf8(redirect_url.to_vec()).ok()?,
            purpose: serde_json::from_slice(purpose).ok()?,
            seed: Zeroizing::new(*seed),
        })
    }
}

impl<P> Flow<P> {
    /// The provider of these to which the person was sent, if it is still as it was.
    pub(super) fn provider_among(&self, all: Vec<Arc<IdentityProvider>>) -> Option<Arc<IdentityProvider>> {
        all.into_iter().find(|provider| document_digest(provider) == Some(self.provider))
    }
}

fn document_digest(provider: &IdentityProvider) -> Option<[u8; DIGEST_BYTES]> {
    let document = Zeroizing::new(serde_json::to_string(provider).ok()?);
    Some(digest_of(&document))
}

/// The flows that came to their end, so that none does so twice, whatever its provider makes of a code that comes again.
#[derive(Default)]
pub(super) struct Used(Mutex<Ended>);

#[derive(Default)]
struct Ended {
    states: HashSet<[u8; 32]>,
    /// The oldest first.
    order: VecDeque<([u8; 32], OffsetDateTime)>,
}

impl Used {
    /// Whether the flow of this state has come to its end before.
    pub(super) fn contains(&self, state: &str) -> bool {
        self.lock().states.contains(&digest_of(state))
    }

    /// The flow of this state comes to its end; false if it did before.
    pub(super) fn insert(&self, state: &str, until: OffsetDateTime, now: OffsetDateTime) -> bool {
        let (mut ended, digest) = (self.lock(), digest_of(state));
        while let Some((oldest, lapsed)) = ended.order.front().copied()
            && (lapsed <= now || ended.order.len() >= USED_MAX)
        {
            ended.order.pop_front();
            ended.states.remove(&oldest);
        }
        let is_first = ended.states.insert(digest);
        if is_first {
            ended.order.push_back((digest, until));
        }
        is_first
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ended> {
        // No step in between can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! A key that lives in memory only and is replaced by itself: for what others keep for us for a short time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::aead::Aead;
use crate::secret::fill_random;
use crate::{Error, Secret};

/// Seals and opens with a random key of AES-256-GCM that is replaced after a time, and forgotten after twice that time. It
/// ends with the process: what it sealed does not open in another one.
pub struct RotatingKey {
    life: Duration,
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    /// The present one, and since when it seals.
    present: Option<(Aead, Instant)>,
    previous: Option<(Aead, Instant)>,
}

impl RotatingKey {
    /// What is sealed opens for at least this long, and for no longer than twice as long.
    pub fn new(life: Duration) -> Self {
        Self { life, keys: Mutex::default() }
    }

    /// Seals the bytes for this context: 28 bytes longer. Elsewhere they do not open.
    pub fn seal(&self, context: &[u8], plain: &[u8], now: Instant) -> Result<Vec<u8>, Error> {
        let mut keys = self.at(now);
        if keys.present.is_none() {
            let mut key = Zeroizing::new([0; 32]);
            fill_random(key.as_mut());
            keys.present = Some((Aead::new(&key)?, now));
        }
        let mut sealed = Vec::new();
        match &keys.present {
            Some((key, _)) => key.seal_onto(&mut sealed, context, plain)?,
            None => return Err(Error::Unsealable),
        }
        Ok(sealed)
    }

    /// Opens what was sealed for this context, if its key is still there.
    pub fn open(&self, context: &[u8], sealed: &[u8], now: Instant) -> Result<Secret, Error> {
        let keys = self.at(now);
        let known = [&keys.present, &keys.previous].into_iter().flatten();
        known.map(|(key, _)| key.open(context, sealed)).find(Result::is_ok).unwrap_or(Err(Error::Unsealable))
    }

    /// The keys that count at this moment.
    fn at(&self, now: Instant) -> MutexGuard<'_, Keys> {
        // Keys are put and taken whole.
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |since: &Instant| now.saturating_duration_since(*since);
        if keys.present.as_ref().is_some_and(|(_, since)| age(since) >= self.life) {
            keys.previous = keys.present.take();
        }
        if keys.previous.as_ref().is_some_and(|(_, since)| age(since) >= 2 * self.life) {
            keys.previous = None;
        }
        keys
    }
}

impl std::fmt::Debug for RotatingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RotatingKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(600);

    #[test]
    fn what_is_sealed_opens_for_its_life_and_not_for_twice_that() {
        let (key, begun) = (RotatingKey::new(LIFE), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let first = key.seal(b"a", b"early", at(0)).unwrap();
        let late = key.seal(b"a", b"late", at(599)).unwrap();
        assert_eq!(first.len(), 5 + 28);
        let next = key.seal(b"a", b"next", at(600)).unwrap();
        for sealed in [&first, &late, &next] {
            assert!(key.open(b"a", sealed, at(1_199)).is_ok());
        }
        assert!(key.open(b"a", &late, at(1_200)).is_err() && key.open(b"a", &first, at(1_200)).is_err());
        assert!(key.open(b"a", &next, at(1_200)).is_ok());
        assert!(key.open(b"a", &next, at(1_800)).is_err());
        assert!(key.keys.lock().unwrap().present.is_none(), "a key that nobody uses is forgotten");
    }

    #[test]
    fn another_context_another_process_and_changed_bytes_open_nothing() {
        let (key, now) = (RotatingKey::new(LIFE), Instant::now());
        let sealed = key.seal(b"a", b"plain", now).unwrap();
        assert_eq!(key.open(b"a", &sealed, now).unwrap().expose(), b"plain");
        assert!(key.open(b"b", &sealed, now).is_err());
        assert!(RotatingKey::new(LIFE).open(b"a", &sealed, now).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open(b"a", &changed, now).is_err() && key.open(b"a", &sealed[..at], now).is_err());
        }
        assert_ne!(key.seal(b"a", b"plain", now).unwrap(), sealed);
        assert_eq!(format!("{key:?}"), "RotatingKey");
    }
}

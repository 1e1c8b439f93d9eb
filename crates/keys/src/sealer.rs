//! Authenticated encryption of small pieces of state, each under a data key of its own and bound to its place.
//!
//! A sealed value, version 2: one byte `2`, one byte for the algorithm, the root key's id (8 bytes) and version (4 bytes,
//! big endian), the value's data key wrapped by a key of the sealer's purpose (60 bytes), and the value under its data
//! key. Header and place are associated data of both. Version 1 was one byte `1` and the value under the purpose's key;
//! such values open, and none is made.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::aead::{Aead, OVERHEAD_BYTES};
use crate::root::Shared;
use crate::root::version::{ID_BYTES, Version};
use crate::secret::fill_random;
use crate::{Error, Secret};

const FIRST: u8 = 1;
const SECOND: u8 = 2;
const AES_256_GCM: u8 = 1;
const HEADER_BYTES: usize = 2 + ID_BYTES + 4;
const WRAPPED_BYTES: usize = 32 + OVERHEAD_BYTES;
/// The root version under which everything was before there were others.
const FIRST_ROOT: u32 = 1;

/// Seals and opens for one purpose: always with the root key's newest version, from each that is still kept. Follows a
/// rotation of the root key by itself.
pub struct Sealer {
    root: Arc<Shared>,
    purpose: String,
}

impl Sealer {
    pub(crate) fn new(root: Arc<Shared>, purpose: &str) -> Self {
        Self { root, purpose: purpose.to_owned() }
    }

    /// Seals the bytes for this context; elsewhere they do not open.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let version = self.root.current();
        let purpose = version.purpose(&self.purpose)?;
        let header = header_of(&version);
        let bound = [&header[..], context].concat();
        let mut key = Zeroizing::new([0; 32]);
        fill_random(key.as_mut());
        let mut sealed = Vec::with_capacity(HEADER_BYTES + WRAPPED_BYTES + OVERHEAD_BYTES + plain.len());
        sealed.extend_from_slice(&header);
        purpose.wrapper.seal_onto(&mut sealed, &bound, key.as_ref())?;
        Aead::new(&key)?.seal_onto(&mut sealed, &bound, plain)?;
        Ok(sealed)
    }

    /// Opens what was sealed for this context.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Secret, Error> {
        match sealed.first() {
            Some(&FIRST) => {
                let version = self.root.numbered(FIRST_ROOT).ok_or(Error::Unsealable)?;
                version.purpose(&self.purpose)?.first.open(context, &sealed[1..])
            }
            Some(&SECOND) => {
                let (header, rest) = sealed.split_at_checked(HEADER_BYTES).ok_or(Error::Unsealable)?;
                let (wrapped, body) = rest.split_at_checked(WRAPPED_BYTES).ok_or(Error::Unsealable)?;
                let number = version_in(header).ok_or(Error::Unsealable)?;
                let version = self.root.numbered(number).ok_or(Error::Unsealable)?;
                // Also what names the right number must name the right root and the one algorithm.
                if header != header_of(&version) {
                    return Err(Error::Unsealable);
                }
                let bound = [header, context].concat();
                let key = version.purpose(&self.purpose)?.wrapper.open(&bound, wrapped)?;
                let key = <&[u8; 32]>::try_from(key.expose()).map_err(|_| Error::Unsealable)?;
                Aead::new(key)?.open(&bound, body)
            }
            _ => Err(Error::Unsealable),
        }
    }

    /// Whether the value is sealed in the newest form under the root key's newest version. Looks at its header only.
    pub fn is_current(&self, sealed: &[u8]) -> bool {
        sealed.starts_with(&header_of(&self.root.current()))
    }

    /// Whether the value is in the form that was made before there were data keys for each. Looks at its header only.
    pub fn is_first_form(sealed: &[u8]) -> bool {
        sealed.first() == Some(&FIRST)
    }

    /// The secret that values of this purpose were derived from before it was kept by itself.
    pub fn first_secret(&self) -> Result<Secret, Error> {
        Ok(self.root.oldest().purpose(&self.purpose)?.first_secret.clone())
    }
}

fn header_of(version: &Version) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0] = SECOND;
    header[1] = AES_256_GCM;
    header[2..2 + ID_BYTES].copy_from_slice(&version.id);
    header[2 + ID_BYTES..].copy_from_slice(&version.number.to_be_bytes());
    header
}

fn version_in(header: &[u8]) -> Option<u32> {
    let number = header.get(2 + ID_BYTES..HEADER_BYTES)?;
    Some(u32::from_be_bytes(number.try_into().ok()?))
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RootKey;

    fn sealer(root: u8, purpose: &str) -> Sealer {
        RootKey::for_test(&[(1, root)]).sealer(purpose).unwrap()
    }

    fn sealed_first(sealer: &Sealer, context: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut sealed = vec![FIRST];
        let purpose = sealer.root.current().purpose(&sealer.purpose).unwrap();
        purpose.first.seal_onto(&mut sealed, context, plain).unwrap();
        sealed
    }

    #[test]
    fn sealed_bytes_open_only_in_their_place_and_unchanged() {
        let mine = sealer(7, "state");
        let old = sealed_first(&mine, b"cluster 2", b"verifier");
        let new = mine.seal(b"cluster 2", b"verifier").unwrap();
        assert!(mine.is_current(&new) && !mine.is_current(&old));
        for sealed in [old, new] {
            assert_eq!(mine.open(b"cluster 2", &sealed).unwrap().expose(), b"verifier");
            assert!(mine.open(b"cluster 3", &sealed).is_err());
            assert!(sealer(7, "other").open(b"cluster 2", &sealed).is_err());
            assert!(sealer(8, "state").open(b"cluster 2", &sealed).is_err());
            for position in 0..sealed.len() {
                for bit in 0..8 {
                    let mut changed = sealed.clone();
                    changed[position] ^= 1 << bit;
                    assert!(mine.open(b"cluster 2", &changed).is_err(), "bit {bit} of byte {position}");
                }
                assert!(mine.open(b"cluster 2", &sealed[..position]).is_err(), "cut at {position}");
            }
            assert!(mine.open(b"cluster 2", &[&sealed[..], b"x"].concat()).is_err(), "longer");
        }
    }

    #[test]
    fn each_value_has_a_data_key_of_its_own() {
        let sealer = sealer(7, "state");
        let (one, two) = (sealer.seal(b"a", b"same").unwrap(), sealer.seal(b"a", b"same").unwrap());
        let body = HEADER_BYTES + WRAPPED_BYTES;
        let mixed = [&one[..body], &two[body..]].concat();
        assert!(sealer.open(b"a", &mixed).is_err(), "the one's key does not open the other's value");
    }

    #[test]
    fn values_made_by_the_first_version_of_this_program_open() {
        // Made by an independent program of that version's rules: root key of 32 bytes 07, purpose "state", context "counters/next_routing_id", value "42".
        let sealed = hex::decode(include_str!("fixtures/sealed-1.hex").trim()).unwrap();
        let sealer = sealer(7, "state");
        assert_eq!(sealer.open(b"counters/next_routing_id", &sealed).unwrap().expose(), b"42");
    }
}

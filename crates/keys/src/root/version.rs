//! One version of the root key, and the keys that come out of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest;
use zeroize::Zeroizing;

use crate::aead::{Aead, derive};
use crate::secret::fill_random;
use crate::{Error, Secret};

/// Bytes of a root key's id.
pub(crate) const ID_BYTES: usize = 8;

/// 256 random bits with a number.
pub(crate) struct Version {
    pub(crate) number: u32,
    pub(crate) id: [u8; ID_BYTES],
    root: Zeroizing<[u8; 32]>,
    /// Wraps data keys.
    pub(crate) wrapper: Aead,
    purposes: Mutex<HashMap<String, Arc<Purpose>>>,
}

/// The keys of one purpose.
pub(crate) struct Purpose {
    /// Sealed values directly, in the sealed form's first version.
    pub(crate) first: Aead,
    /// Wraps the data key of each sealed value.
    pub(crate) wrapper: Aead,
    /// The secret behind `first`: values were once derived from it that must stay what they are.
    pub(crate) first_secret: Secret,
}

impl Version {
    pub(crate) fn new(number: u32, root: Zeroizing<[u8; 32]>) -> Result<Self, Error> {
        let mut named = Zeroizing::new(b"chitin kek id".to_vec());
        named.extend_from_slice(root.as_ref());
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&digest::digest(&digest::SHA256, &named).as_ref()[..ID_BYTES]);
        let wrapper = derive(root.as_ref(), &[b"chitin sealer v1 ", b"data keys"])?;
        Ok(Self { number, id, wrapper: Aead::new(&wrapper)?, root, purposes: Mutex::default() })
    }

    pub(crate) fn random(number: u32) -> Result<Self, Error> {
        let mut root = Zeroizing::new([0; 32]);
        fill_random(root.as_mut());
        Self::new(number, root)
    }

    pub(crate) fn id(&self) -> String {
        hex::encode(self.id)
    }

    /// The bits themselves, for the file that keeps them.
    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.root
    }

    /// The keys of a purpose, derived once.
    pub(crate) fn purpose(&self, name: &str) -> Result<Arc<Purpose>, Error> {
        let mut known = self.purposes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(purpose) = known.get(name) {
            return Ok(purpose.clone());
        }
        let first =
            derive(self.root.as_ref(), &[b"chitin sealer v1 ", format!("purpose {name}").as_bytes()])?;
        let wrapper =
            derive(self.root.as_ref(), &[b"chitin sealer v2 ", format!("purpose {name}").as_bytes()])?;
        let purpose = Arc::new(Purpose {
            first: Aead::new(&first)?,
            wrapper: Aead::new(&wrapper)?,
            first_secret: Secret::new(first.to_vec()),
        });
        known.insert(name.to_owned(), purpose.clone());
        Ok(purpose)
    }
}

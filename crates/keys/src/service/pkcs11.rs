//! Hardware security modules over PKCS #11: AES-256-GCM inside the token, with a key that never leaves it.
//!
//! A key's versions are objects of one label with different ids (`CKA_ID`): the newest is the one with the highest id,
//! read as a number, and a wrapped key remembers the id of its own.

mod module;
mod uri;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cryptoki::context::{Function, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use model::{KeptSecret, KeyCredentials, KeyService, KeySpec};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::asking::{Subject, clean};
use crate::secret::fill_random;
use crate::{Binding, DataKey, KeyEncryption, KeyFailure, WrappedKey};
use module::{Module, Refused};
pub(super) use uri::Uri;

const ALGORITHM: &str = "CKM_AES_GCM";
const KEY_BYTES: u64 = 32;
const IV_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// An IV, the data key, a tag.
const WRAPPED_BYTES: usize = IV_BYTES + 64 + TAG_BYTES;
/// Most slots that are looked at.
const SLOTS_MAX: usize = 256;
/// Most objects with one label; a key with more versions is refused.
const OBJECTS_MAX: usize = 256;
/// Longest id of a key (`CKA_ID`), in bytes.
const ID_BYTES_MAX: usize = 255;

/// Whether the path can be one of a module. Whether it is there, and safe, is looked at when it is loaded.
pub(super) fn check_module(path: &str) -> Result<(), String> {
    let is_path = (2..=4_096).contains(&path.len()) && path.starts_with('/') && !path.contains('\0');
    if is_path {
        Ok(())
    } else {
        Err("the address of a PKCS #11 service is the absolute path of its module, such as \
             /usr/lib/softhsm/libsofthsm2.so"
            .to_owned())
    }
}

/// One key in one token.
#[derive(Debug)]
pub(super) struct Token {
    module: Arc<Module>,
    key: Key,
}

/// What each use takes along to the module's thread.
#[derive(Clone, Debug)]
struct Key {
    spec: KeySpec,
    subject: Subject,
    uri: Uri,
    pin: KeptSecret,
    service: String,
    set_at: OffsetDateTime,
}

/// A key that was found.
struct Found {
    handle: ObjectHandle,
    id: Vec<u8>,
}

impl Token {
    pub(super) fn new(service: &KeyService, spec: &KeySpec) -> Result<Self, KeyFailure> {
        let subject = Subject::of(spec);
        let KeyCredentials::Pkcs11Pin(pin) = &service.credentials else {
            return Err(subject.unusable("the key service has credentials of another kind"));
        };
        let uri = Uri::parse(&spec.uri).map_err(|why| subject.unusable(why))?;
        let key = Key {
            spec: spec.clone(),
            subject,
            uri,
            pin: pin.clone(),
            service: service.name.to_string(),
            set_at: service.updated_at,
        };
        Ok(Self { module: Module::at(Path::new(&service.address)), key })
    }
}

impl Key {
    /// The token that the URI names, and no second one.
    fn slot(&self, context: &Pkcs11) -> Result<(Slot, TokenInfo), KeyFailure> {
        let slots = context.get_slots_with_token().map_err(|cause| self.meaning(&cause))?;
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|text| text == found);
        let mut found = slots
            .into_iter()
            .take(SLOTS_MAX)
            // A token can be taken away between the two questions.
            .filter_map(|slot| Some((slot, context.get_token_info(slot).ok()?)))
            .filter(|(_, token)| {
                is(&self.uri.token, token.label())
                    && is(&self.uri.serial, token.serial_number())
                    && is(&self.uri.manufacturer, token.manufacturer_id())
                    && is(&self.uri.model, token.model())
            });
        let first = found.next().ok_or_else(|| {
            self.subject.unreachable("no slot of the module holds the token that the URI names")
        })?;
        if found.next().is_some() {
            return Err(self.subject.unusable("several tokens are named so; put the serial into the URI"));
        }
        Ok(first)
    }

    /// A session that is signed in. Closing it, also by dropping it, signs out: it is the process's only one.
    fn session(&self, module: &Module, context: &Pkcs11) -> Result<(Session, TokenInfo), KeyFailure> {
        let (slot, token) = self.slot(context)?;
        let pin = Refused {
            serial: token.serial_number().to_owned(),
            service: self.service.clone(),
            set_at: self.set_at,
        };
        if module.was_refused(&pin) {
            return Err(self.subject.unauthenticated(
                "the token refused this PIN before, and it is not tried again, since the token would lock itself; set \
                 the key service with the right one",
            ));
        }
        let session = context.open_ro_session(slot).map_err(|cause| self.meaning(&cause))?;
        match session.login(UserType::User, Some(&AuthPin::from(self.pin.expose().to_owned()))) {
            Ok(()) => Ok((session, token)),
            Err(Error::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, _)) => {
                module.remember_refused(pin);
                Err(self
                    .subject
                    .unauthenticated("the token refuses the PIN; set the key service with the right one"))
            }
            Err(cause) => Err(self.meaning(&cause)),
        }
    }

    /// All keys that the URI names, or the one with this id.
    fn find(&self, session: &Session, id: Option<&[u8]>) -> Result<Vec<Found>, KeyFailure> {
        let mut template = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
        ];
        template.extend(self.uri.object.as_ref().map(|label| Attribute::Label(label.clone().into_bytes())));
        template.extend(id.or(self.uri.id.as_deref()).map(|id| Attribute::Id(id.to_vec())));
        let handles: Vec<ObjectHandle> = session
            .iter_objects(&template)
            .and_then(|objects| objects.take(OBJECTS_MAX + 1).collect())
            .map_err(|cause| self.meaning(&cause))?;
        if handles.len() > OBJECTS_MAX {
            return Err(self.subject.unusable(format!("more than {OBJECTS_MAX} keys are named so")));
        }
        let with_id = |handle| {
            let attributes =
                session.get_attributes(handle, &[AttributeType::Id]).map_err(|cause| self.meaning(&cause))?;
            let id = attributes.into_iter().find_map(|attribute| match attribute {
                Attribute::Id(id) => Some(id),
                _ => None,
            });
            Ok(Found { handle, id: id.unwrap_or_default() })
        };
        handles.into_iter().map(with_id).collect()
    }

    /// The newest version, which must be one key and not two.
    fn newest(&self, session: &Session) -> Result<Found, KeyFailure> {
        let mut keys = self.find(session, None)?;
        keys.sort_by(|a, b| number(&a.id).cmp(&number(&b.id)));
        let newest = keys.pop().ok_or_else(|| self.gone())?;
        if newest.id.is_empty() || newest.id.len() > ID_BYTES_MAX {
            return Err(self.subject.unusable(
                "the key has no id (CKA_ID) by which it would be found again; give it one, such as 01",
            ));
        }
        if keys.last().is_some_and(|next| number(&next.id) == number(&newest.id)) {
            return Err(self.subject.unusable(format!(
                "two keys have the id {}; give each version of a key an id of its own, a higher one to a newer one",
                hex::encode(&newest.id)
            )));
        }
        Ok(newest)
    }

    /// The key of this id.
    fn of_version(&self, session: &Session, id: &[u8]) -> Result<Found, KeyFailure> {
        let mut keys = self.find(session, Some(id))?;
        let key = keys.pop().ok_or_else(|| self.gone())?;
        if !keys.is_empty() {
            return Err(self.subject.unusable(format!("two keys have the id {}", hex::encode(id))));
        }
        Ok(key)
    }

    /// The token answered, signed in to, and the key is not there.
    fn gone(&self) -> KeyFailure {
        self.subject.denied("the token holds no such AES key")
    }

    /// A key that could leave the token is no better than a file.
    fn check_kept(&self, session: &Session, key: &Found) -> Result<(), KeyFailure> {
        let asked = [
            AttributeType::ValueLen,
            AttributeType::Extractable,
            AttributeType::Sensitive,
            AttributeType::Encrypt,
            AttributeType::Decrypt,
        ];
        let found = session.get_attributes(key.handle, &asked).map_err(|cause| self.meaning(&cause))?;
        let has = |wanted: &Attribute| found.contains(wanted);
        let wrong = |what: &str| self.subject.unusable(format!("the key {what}; make another in the token"));
        if !has(&Attribute::ValueLen(KEY_BYTES.into())) {
            return Err(wrong("is not AES-256"));
        }
        if !has(&Attribute::Extractable(false)) || !has(&Attribute::Sensitive(true)) {
            return Err(wrong(
                "may leave the token (CKA_EXTRACTABLE is not false, or CKA_SENSITIVE is not true)",
            ));
        }
        if !has(&Attribute::Encrypt(true)) || !has(&Attribute::Decrypt(true)) {
            return Err(wrong("may not encrypt and decrypt (CKA_ENCRYPT, CKA_DECRYPT)"));
        }
        Ok(())
    }

    fn wrap(
        &self,
        module: &Module,
        context: &Pkcs11,
        data_key: &DataKey,
        place: &Binding,
    ) -> Result<WrappedKey, KeyFailure> {
        let (session, token) = self.session(module, context)?;
        let key = self.newest(&session)?;
        self.check_kept(&session, &key)?;
        let sealed = encrypt(&session, &key, data_key.expose(), place.context().as_bytes())
            .map_err(|cause| self.meaning(&cause))?;
        if sealed.len() != WRAPPED_BYTES {
            return Err(self.subject.unusable("the module's AES-GCM adds no tag of 128 bits"));
        }
        let key_id = Uri {
            token: Some(token.label().to_owned()),
            serial: Some(token.serial_number().to_owned()),
            object: self.uri.object.clone(),
            ..Uri::default()
        };
        Ok(WrappedKey {
            key: self.spec.clone(),
            key_id: key_id.to_string(),
            key_version: hex::encode(&key.id),
            algorithm: ALGORITHM.to_owned(),
            wrapped: STANDARD.encode(sealed),
        })
    }

    fn unwrap(
        &self,
        module: &Module,
        context: &Pkcs11,
        wrapped: &WrappedKey,
        place: &Binding,
    ) -> Result<DataKey, KeyFailure> {
        let does_not_open = || self.subject.does_not_open();
        let id = hex::decode(&wrapped.key_version)
            .ok()
            .filter(|id| (1..=ID_BYTES_MAX).contains(&id.len()))
            .filter(|id| self.uri.id.as_ref().is_none_or(|wanted| wanted == id))
            .filter(|_| wrapped.algorithm == ALGORITHM)
            .ok_or_else(does_not_open)?;
        let sealed = STANDARD.decode(&wrapped.wrapped).map_err(|_| does_not_open())?;
        if sealed.len() != WRAPPED_BYTES {
            return Err(does_not_open());
        }
        let (session, _) = self.session(module, context)?;
        let key = self.of_version(&session, &id)?;
        match decrypt(&session, &key, &sealed, place.context().as_bytes()) {
            Ok(plain) => DataKey::from_bytes(&plain).ok_or_else(does_not_open),
            // Some modules say no more of a wrong tag. Whether the token still works tells the two apart.
            Err(Error::Pkcs11(RvError::GeneralError | RvError::FunctionFailed, Function::Decrypt)) => {
                let tried = encrypt(&session, &key, b"is it the token?", b"")
                    .and_then(|sealed| decrypt(&session, &key, &sealed, b""));
                match tried {
                    Ok(_) => Err(does_not_open()),
                    Err(cause) => Err(self.meaning(&cause)),
                }
            }
            Err(cause) => Err(self.meaning(&cause)),
        }
    }

    /// What a failure of the module's means to the key.
    fn meaning(&self, cause: &Error) -> KeyFailure {
        let said = clean(&cause.to_string());
        let Error::Pkcs11(value, _) = cause else {
            return self.subject.unusable(format!("the PKCS #11 module: {said}"));
        };
        match value {
            RvError::PinIncorrect
            | RvError::PinInvalid
            | RvError::PinLenRange
            | RvError::PinExpired
            | RvError::PinLocked
            | RvError::UserPinNotInitialized => self.subject.unauthenticated(format!(
                "the token does not let its user sign in ({said}); have the PIN unlocked or set by whoever runs the \
                 token, and set the key service with it"
            )),
            RvError::KeyFunctionNotPermitted | RvError::ActionProhibited => self.subject.denied(said),
            RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange => self.subject.does_not_open(),
            RvError::MechanismInvalid
            | RvError::MechanismParamInvalid
            | RvError::KeyTypeInconsistent
            | RvError::KeySizeRange
            | RvError::ArgumentsBad
            | RvError::FunctionNotSupported
            | RvError::AttributeTypeInvalid
            | RvError::AttributeValueInvalid
            | RvError::TemplateInconsistent => self.subject.unusable(said),
            // The token was taken away, or restarts, or has no room: nothing is known of the key.
            _ => self.subject.unreachable(said),
        }
    }
}

/// Ids as numbers, so that 10 comes after 9 in whatever length they were written.
fn number(id: &[u8]) -> (usize, &[u8]) {
    let digits = &id[id.iter().take_while(|byte| **byte == 0).count()..];
    (digits.len(), digits)
}

/// AES-GCM with an IV of ours, which comes first; the tag comes last.
fn encrypt(session: &Session, key: &Found, plain: &[u8], context: &[u8]) -> Result<Vec<u8>, Error> {
    let mut iv = [0; IV_BYTES];
    fill_random(&mut iv);
    let parameters = GcmParams::new(&mut iv, context, (TAG_BYTES as u64 * 8).into())?;
    let sealed = session.encrypt(&Mechanism::AesGcm(parameters), key.handle, plain)?;
    // Some modules put an IV of their own in the place of ours, so it is taken after its use.
    Ok([iv.as_slice(), &sealed].concat())
}

fn decrypt(
    session: &Session,
    key: &Found,
    sealed: &[u8],
    context: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let (iv, sealed) = sealed.split_first_chunk::<IV_BYTES>().ok_or(Error::InvalidValue)?;
    let mut iv = *iv;
    let parameters = GcmParams::new(&mut iv, context, (TAG_BYTES as u64 * 8).into())?;
    session.decrypt(&Mechanism::AesGcm(parameters), key.handle, sealed).map(Zeroizing::new)
}

#[async_trait]
impl KeyEncryption for Token {
    async fn wrap(&self, data_key: &DataKey, place: &Binding) -> Result<WrappedKey, KeyFailure> {
        let (key, data_key, place) = (self.key.clone(), data_key.clone(), *place);
        self.module
            .with(&self.key.subject, move |module, context| key.wrap(module, context, &data_key, &place))
            .await
    }

    async fn unwrap(&self, wrapped: &WrappedKey, place: &Binding) -> Result<DataKey, KeyFailure> {
        let (key, wrapped, place) = (self.key.clone(), wrapped.clone(), *place);
        self.module
            .with(&self.key.subject, move |module, context| key.unwrap(module, context, &wrapped, &place))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_higher_id_is_a_newer_version_in_whatever_length() {
        assert!(number(&[10]) > number(&[9]));
        assert!(number(&[0, 10]) > number(&[9]) && number(&[1, 0]) > number(&[255]));
        assert_eq!(number(&[0, 1]), number(&[1]));
        assert!(number(&[]) < number(&[1]));
    }

    #[test]
    fn a_pin_that_is_not_accepted_says_nothing_of_the_key() {
        let spec = KeySpec { kind: model::KeyType::Pkcs11, ..KeySpec::root() };
        let key = Key {
            subject: Subject::of(&spec),
            spec,
            uri: Uri::parse("pkcs11:token=chitin;object=shop").unwrap(),
            pin: KeptSecret::new("canary".to_owned()),
            service: "hsm".to_owned(),
            set_at: OffsetDateTime::UNIX_EPOCH,
        };
        let meaning = |value| key.meaning(&Error::Pkcs11(value, Function::Login));
        for value in [
            RvError::PinIncorrect,
            RvError::PinInvalid,
            RvError::PinLenRange,
            RvError::PinExpired,
            RvError::PinLocked,
            RvError::UserPinNotInitialized,
        ] {
            let refused = meaning(value);
            assert!(matches!(refused, KeyFailure::Unauthenticated { .. }), "{refused}");
            assert!(!refused.to_string().contains("canary"), "{refused}");
        }
        assert!(matches!(meaning(RvError::KeyFunctionNotPermitted), KeyFailure::Denied { .. }));
        assert!(matches!(meaning(RvError::DeviceRemoved), KeyFailure::Unreachable { .. }));
    }

    #[test]
    fn modules_are_absolute_paths() {
        assert!(check_module("/usr/lib/softhsm/libsofthsm2.so").is_ok());
        for wrong in ["", "/", "libsofthsm2.so", "https://hsm.example", "/a\0b"] {
            assert!(check_module(wrong).is_err(), "{wrong:?}");
        }
    }
}

//! The cloud's own certificate authority: one root, from which the front door's certificates are issued.

use std::net::IpAddr;
use std::path::Path;

use model::Clock;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::certificate::span;
use crate::private_file::{read_private, write_atomically, write_private};
use crate::{Error, Sealer, ServerCertificate};

/// How long the root is good for: people install it once.
pub const ROOT_VALIDITY: Duration = Duration::days(3_650);
/// How long a server certificate is good for; renewed at two thirds of it.
pub const SERVER_VALIDITY: Duration = Duration::days(30);

/// How long before its making a server certificate begins: a clock that is put back by less, ours or a client's, makes none
/// of them a certificate that is not valid yet.
const SERVER_BACKDATE: Duration = Duration::days(2);
/// When roots begin, whatever the clock says. Their spans are no secret and protect nobody: clients trust a root because it
/// was given to them. So a root that is made while the clock is ahead is valid once it is put right.
const ROOT_FROM: OffsetDateTime = datetime!(2020-01-01 00:00 UTC);
/// No clock is right that says an earlier time: this program did not exist. A root that is made while the clock is behind
/// ends [`ROOT_VALIDITY`] after this, and so has not ended once it is put right.
const CLOCK_EARLIEST: OffsetDateTime = datetime!(2026-11-01 00:00 UTC);
/// A root of an earlier version of the program that began later than this before now is signed anew when it is opened.
const ROOT_BEGAN_MIN: Duration = Duration::days(1);
const KEY_CONTEXT: &[u8] = b"authority key";

/// Issues certificates under the cloud's root.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    root: CertificateDer<'static>,
}

impl Authority {
    /// Opens the authority in the folder, or makes it: `ca.pem` (public) and `ca.key` (sealed, mode 0600).
    pub fn open_or_create(folder: &Path, sealer: &Sealer, clock: &dyn Clock) -> Result<Self, Error> {
        let (root_path, key_path) = (folder.join("ca.pem"), folder.join("ca.key"));
        let Some(sealed) = read_private(&key_path)? else {
            return Self::create(&root_path, &key_path, sealer, clock);
        };
        let der = sealer.open(KEY_CONTEXT, sealed.expose())?;
        let pkcs8 = PrivatePkcs8KeyDer::from(der.expose());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| Error::Damaged { path: key_path.clone(), reason: "it holds no usable key" })?;
        let root_pem = std::fs::read_to_string(&root_path).map_err(Error::file("read", &root_path))?;
        let damaged = |reason| Error::Damaged { path: root_path.clone(), reason };
        let root = CertificateDer::from_pem_slice(root_pem.as_bytes())
            .map_err(|_| damaged("it holds no PEM certificate"))?;
        // A root of another key would issue certificates that no client accepts.
        if !holds_key(&root, &key) {
            return Err(damaged("its key is not the one in ca.key"));
        }
        let ((from, until), now) = (span(&root)?, clock.now());
        if until <= now {
            return Err(Error::Certificate(format!(
                "the cloud's root in {} has expired: it was good until {until}, and this machine's clock says {now}. If the clock is wrong, set it right and start again; if it is right, move ca.pem and ca.key away and start again, then hand the new ca.pem to your clients",
                root_path.display()
            )));
        }
        let began_late = from > now.saturating_sub(ROOT_BEGAN_MIN) && from > ROOT_FROM;
        if let Some(again) = began_late.then(|| sign_anew(&root, &key, until)).flatten() {
            write_atomically(&root_path, again.pem().as_bytes())?;
            tracing::warn!(
                file = %root_path.display(), began = %from, clock = %now,
                "the cloud's root began in the future or a moment ago; it is signed anew with the same name and the same key and begins at {ROOT_FROM}. Clients that check when the root begins (libpq does) need the new ca.pem if theirs began in the future; all others go on with what they have"
            );
            let issuer = Issuer::from_ca_cert_der(again.der(), key).map_err(unusable)?;
            return Ok(Self { issuer, root_pem: again.pem(), root: again.der().clone() });
        }
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(unusable)?;
        Ok(Self { issuer, root_pem, root })
    }

    /// From when to when the root is valid.
    pub fn root_span(&self) -> Result<(OffsetDateTime, OffsetDateTime), Error> {
        span(&self.root)
    }

    /// Seals the key anew, if it is not yet under the root key's newest version. Nothing else changes.
    pub fn reseal(folder: &Path, sealer: &Sealer) -> Result<(), Error> {
        let path = folder.join("ca.key");
        let Some(sealed) = read_private(&path)? else {
            return Ok(());
        };
        if sealer.is_current(sealed.expose()) {
            return Ok(());
        }
        let der = sealer.open(KEY_CONTEXT, sealed.expose())?;
        write_private(&path, &sealer.seal(KEY_CONTEXT, der.expose())?)
    }

    fn create(root_path: &Path, key_path: &Path, sealer: &Sealer, clock: &dyn Clock) -> Result<Self, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
        let now = clock.now();
        let name = format!("Chitin root {}", hex::encode(random_bytes::<4>()));
        let mut root = root_parameters(&name, now.max(CLOCK_EARLIEST).saturating_add(ROOT_VALIDITY));
        root.not_before = ROOT_FROM.min(now.saturating_sub(SERVER_BACKDATE));
        let certificate = root.self_signed(&key).map_err(unusable)?;
        let der = Zeroizing::new(key.serialize_der());
        let (root_pem, root_der) = (certificate.pem(), certificate.der().clone());
        // The root before its key: a crash in between leaves a root without a key, and the next start makes both anew.
        write_atomically(root_path, root_pem.as_bytes())?;
        write_private(key_path, &sealer.seal(KEY_CONTEXT, &der)?)?;
        Ok(Self { issuer: Issuer::new(root, key), root_pem, root: root_der })
    }

    /// The root in PEM, for `sslrootcert`.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The root in DER.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Issues a server certificate for DNS names and addresses, with a key of its own.
    pub fn issue(&self, names: &[String], clock: &dyn Clock) -> Result<ServerCertificate, Error> {
        let first =
            names.first().ok_or_else(|| Error::Certificate("a certificate needs a name".to_owned()))?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
        let mut leaf = CertificateParams::new(names.to_vec()).map_err(unusable)?;
        // The common name ends at 64 characters (RFC 5280, appendix A.1); clients read the alternative names anyway.
        if first.len() <= 64 && first.parse::<IpAddr>().is_err() {
            leaf.distinguished_name.push(DnType::CommonName, first.as_str());
        } else {
            leaf.distinguished_name.push(DnType::CommonName, "chitin");
        }
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        let now = clock.now();
        leaf.not_before = now.saturating_sub(SERVER_BACKDATE);
        leaf.not_after = now.saturating_add(SERVER_VALIDITY);
        let certificate = leaf.signed_by(&key, &self.issuer).map_err(unusable)?;
        Ok(ServerCertificate {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

fn root_parameters(common_name: &str, not_after: OffsetDateTime) -> CertificateParams {
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::OrganizationName, "Chitin");
    root.distinguished_name.push(DnType::CommonName, common_name);
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    root.not_before = ROOT_FROM;
    root.not_after = not_after;
    // Another certificate of the same name and key needs another number.
    root.serial_number = Some(SerialNumber::from_slice(&random_bytes::<16>()));
    root
}

/// The same root with a span that has begun. Whoever trusts the earlier one trusts this one too, since name and key are the
/// same; `None` where that cannot be had, and the earlier one is used as it is.
fn sign_anew(root: &CertificateDer<'_>, key: &KeyPair, not_after: OffsetDateTime) -> Option<Certificate> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(root).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    let again = root_parameters(name, not_after).self_signed(key).ok()?;
    let is_same = {
        let (_, made) = X509Certificate::from_der(again.der()).ok()?;
        made.subject().as_raw() == parsed.subject().as_raw()
    };
    is_same.then_some(again)
}

fn holds_key(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    use x509_parser::prelude::{FromDer, X509Certificate};
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| {
        parsed.public_key().subject_public_key.data.as_ref() == rcgen::PublicKeyData::der_bytes(key)
    })
}

fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    crate::secret::fill_random(&mut bytes);
    bytes
}

fn unusable(cause: rcgen::Error) -> Error {
    Error::Certificate(cause.to_string())
}

#[cfg(test)]
mod tests {
    use model::SystemClock;
    use rustls_pki_types::{ServerName, UnixTime};
    use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

    use super::*;
    use crate::RootKey;

    fn sealer(folder: &Path) -> Sealer {
        RootKey::open_or_create(&folder.join("kek")).unwrap().sealer("authority").unwrap()
    }

    #[test]
    fn an_issued_certificate_verifies_for_its_names_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let authority =
            Authority::open_or_create(folder.path(), &sealer(folder.path()), &SystemClock).unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "demo-cluster-2.localhost".to_owned()];
        let issued = authority.issue(&names, &SystemClock).unwrap();
        let anchor = [anchor_from_trusted_cert(authority.root()).unwrap()];
        let leaf = EndEntityCert::try_from(&issued.chain[0]).unwrap();
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchor,
            &[],
            UnixTime::now(),
            KeyUsage::server_auth(),
            None,
            None,
        )
        .unwrap();
        for name in &names {
            leaf.verify_is_valid_for_subject_name(&ServerName::try_from(name.as_str()).unwrap()).unwrap();
        }
        let other = ServerName::try_from("other-cluster-3.localhost").unwrap();
        assert!(leaf.verify_is_valid_for_subject_name(&other).is_err());
    }

    #[test]
    fn the_authority_outlives_a_restart_and_its_key_is_sealed() {
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::open_or_create(folder.path(), &sealer(folder.path()), &SystemClock).unwrap();
        let second = Authority::open_or_create(folder.path(), &sealer(folder.path()), &SystemClock).unwrap();
        assert_eq!(first.root_pem(), second.root_pem());
        second.issue(&["localhost".to_owned()], &SystemClock).unwrap();

        let other = RootKey::for_test(&[(1, 9)]).sealer("authority").unwrap();
        assert!(matches!(
            Authority::open_or_create(folder.path(), &other, &SystemClock),
            Err(Error::Unsealable)
        ));
    }

    #[test]
    fn its_key_follows_a_rotation_of_the_root_key() {
        let folder = tempfile::tempdir().unwrap();
        let root = RootKey::open_or_create(&folder.path().join("kek")).unwrap();
        let sealer = root.sealer("authority").unwrap();
        let first = Authority::open_or_create(folder.path(), &sealer, &SystemClock).unwrap();
        root.begin_rotation().unwrap();
        Authority::reseal(folder.path(), &sealer).unwrap();
        let once = std::fs::read(folder.path().join("ca.key")).unwrap();
        Authority::reseal(folder.path(), &sealer).unwrap();
        assert_eq!(std::fs::read(folder.path().join("ca.key")).unwrap(), once, "once more does nothing");
        root.retire(&std::collections::BTreeSet::new()).unwrap();
        let again = Authority::open_or_create(folder.path(), &sealer, &SystemClock).unwrap();
        assert_eq!(again.root_pem(), first.root_pem());
    }

    fn at(moment: OffsetDateTime) -> model::FixedClock {
        model::FixedClock(moment)
    }

    #[test]
    fn a_root_that_is_made_while_the_clock_is_wrong_is_valid_once_it_is_right() {
        let now = OffsetDateTime::now_utc();
        for wrong in [
            now + 365 * Duration::DAY,
            now + 3 * Duration::HOUR,
            OffsetDateTime::UNIX_EPOCH,
            now - 3_650 * Duration::DAY,
            datetime!(9999-12-31 23:59 UTC),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let made = Authority::open_or_create(folder.path(), &sealer(folder.path()), &at(wrong)).unwrap();
            made.issue(&["localhost".to_owned()], &at(wrong)).unwrap();
            let again =
                Authority::open_or_create(folder.path(), &sealer(folder.path()), &SystemClock).unwrap();
            assert_eq!(again.root_pem(), made.root_pem(), "{wrong}");
            let (from, until) = again.root_span().unwrap();
            assert!(from < now - 365 * Duration::DAY && until > now + 3_600 * Duration::DAY, "{wrong}");
        }
    }

    #[test]
    fn an_earlier_version_s_root_that_begins_in_the_future_is_signed_anew_with_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let (sealer, now) = (sealer(folder.path()), OffsetDateTime::now_utc());
        // As the first version wrote it: from an hour before the clock's time on.
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let until = now + 4_000 * Duration::DAY;
        let mut old = root_parameters("Chitin root 0badcafe", until);
        (old.not_before, old.serial_number) = (now + 365 * Duration::DAY, None);
        let old = old.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), old.pem()).unwrap();
        let sealed = sealer.seal(KEY_CONTEXT, &key.serialize_der()).unwrap();
        write_private(&folder.path().join("ca.key"), &sealed).unwrap();

        let authority = Authority::open_or_create(folder.path(), &sealer, &SystemClock).unwrap();
        let (from, kept_until) = authority.root_span().unwrap();
        assert!(from < now && kept_until.unix_timestamp() == until.unix_timestamp());
        assert_eq!(std::fs::read_to_string(folder.path().join("ca.pem")).unwrap(), authority.root_pem());
        let issued = authority.issue(&["localhost".to_owned()], &SystemClock).unwrap();
        for root in [old.der(), authority.root()] {
            let anchor = [anchor_from_trusted_cert(root).unwrap()];
            let leaf = EndEntityCert::try_from(&issued.chain[0]).unwrap();
            let usage = KeyUsage::server_auth();
            let (all, time) = (webpki::ALL_VERIFICATION_ALGS, UnixTime::now());
            leaf.verify_for_usage(all, &anchor, &[], time, usage, None, None).unwrap();
        }
        let again = Authority::open_or_create(folder.path(), &sealer, &SystemClock).unwrap();
        assert_eq!(again.root_pem(), authority.root_pem(), "once is enough");
    }

    #[test]
    fn a_swapped_root_is_found() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::open_or_create(one.path(), &sealer(one.path()), &SystemClock).unwrap();
        Authority::open_or_create(two.path(), &sealer(two.path()), &SystemClock).unwrap();
        std::fs::copy(two.path().join("ca.pem"), one.path().join("ca.pem")).unwrap();
        assert!(matches!(
            Authority::open_or_create(one.path(), &sealer(one.path()), &SystemClock),
            Err(Error::Damaged { .. })
        ));
    }
}

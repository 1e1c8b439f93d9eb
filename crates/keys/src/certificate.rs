//! A server certificate with its key, from our own authority or from the operator's files.

use std::path::Path;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{ChannelBinding, Error};

/// What the front door shows to prove who it is.
pub struct ServerCertificate {
    /// The certificate first, then its issuers, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The certificate's private key.
    pub key: PrivateKeyDer<'static>,
    /// When it begins.
    pub not_before: OffsetDateTime,
    /// When it expires.
    pub not_after: OffsetDateTime,
}

impl ServerCertificate {
    /// Reads a PEM chain and a PEM key, and checks that the chain is not empty, readable and not expired at `now`.
    /// Whether key and certificate belong together is checked where TLS is configured with them.
    pub fn load(chain: &Path, key: &Path, now: OffsetDateTime) -> Result<Self, Error> {
        let read = |path: &Path| std::fs::read(path).map_err(Error::file("read", path));
        let chain_pem = read(chain)?;
        let key_pem = zeroize::Zeroizing::new(read(key)?);
        let certificates =
            CertificateDer::pem_slice_iter(&chain_pem).collect::<Result<Vec<_>, _>>().map_err(|_| {
                Error::Certificate(format!("{} holds no readable PEM certificate", chain.display()))
            })?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| {
            Error::Certificate(format!("{} holds no readable PEM private key", key.display()))
        })?;
        let leaf = certificates
            .first()
            .ok_or_else(|| Error::Certificate(format!("{} holds no certificate", chain.display())))?;
        let (not_before, not_after) = span(leaf)?;
        if not_after <= now {
            return Err(Error::Certificate(format!("{} expired on {}", chain.display(), not_after.date())));
        }
        Ok(Self { chain: certificates, key, not_before, not_after })
    }

    /// The channel binding data (`tls-server-end-point`) of this certificate, where its algorithm defines one.
    pub fn channel_binding(&self) -> ChannelBinding {
        self.chain.first().map_or(ChannelBinding::none(), |leaf| ChannelBinding::of(leaf))
    }
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// From when to when a certificate is valid.
pub(crate) fn span(certificate: &CertificateDer<'_>) -> Result<(OffsetDateTime, OffsetDateTime), Error> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| Error::Certificate("it is not a readable X.509 certificate".to_owned()))?;
    let validity = parsed.validity();
    Ok((validity.not_before.to_datetime(), validity.not_after.to_datetime()))
}

//! The TLS side of port 1515: our certificate, and whom we let in by theirs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_config::Auth;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

/// Why TLS cannot be set up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}; `muster-control cert` makes a certificate and a key", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {what} in PEM form", path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// An old certificate: `openssl x509 -req` without an extension file makes such ones.
    #[error(
        "{} is an X.509 v1 certificate, which TLS libraries of today refuse; \
         make a v3 one with `muster-control cert`, agents need not be changed", path.display()
    )]
    Version1 {
        /// Which file.
        path: PathBuf,
    },
    /// Certificate and key were refused, such as a key of another certificate, or one that is too short.
    #[error("cannot use {} with {}", certificate.display(), key.display())]
    Refused {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The CA for agents was refused.
    #[error("cannot use {} as the CA of agents: {reason}", path.display())]
    Ca {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl TlsError {
    /// Whether a file is there and we may not read it.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// What TLS 1.2 and 1.3 are spoken with. Neither tickets nor sessions are kept: an agent comes once.
pub fn server_config(auth: &Auth) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&auth.ssl_manager_cert)?;
    if chain.iter().any(|certificate| is_version_1(certificate)) {
        return Err(TlsError::Version1 {
            path: auth.ssl_manager_cert.clone(),
        });
    }
    let builder = ServerConfig::builder();
    let builder = match &auth.ssl_agent_ca {
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots(path)?));
            let verifier = verifier.build().map_err(|error| TlsError::Ca {
                path: path.clone(),
                reason: error.to_string(),
            })?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(chain, private_key(&auth.ssl_manager_key)?)
        .map_err(|source| TlsError::Refused {
            certificate: auth.ssl_manager_cert.clone(),
            key: auth.ssl_manager_key.clone(),
            source,
        })?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::Ca {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let missing = || TlsError::Pem {
        path: path.to_owned(),
        what: "certificate",
    };
    let found: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|_| missing())?;
    if found.is_empty() { Err(missing()) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|_| TlsError::Pem {
        path: path.to_owned(),
        what: "private key",
    })
}

fn read(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, TlsError> {
    fs::read(path)
        .map(zeroize::Zeroizing::new)
        .map_err(|source| TlsError::Read {
            path: path.to_owned(),
            source,
        })
}

fn is_version_1(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, certificate)| certificate.version() == X509Version::V1)
}

#[cfg(test)]
mod tests;

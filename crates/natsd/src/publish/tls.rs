//! TLS to the broker: whom we believe, who we are, and whom we have met.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use muster_config::Nats;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use sha2::{Digest, Sha256};

/// Whose certificate was accepted last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer(Arc<Mutex<Option<String>>>);

impl Peer {
    /// The SHA-256 of the certificate, as hex. Nothing without TLS.
    pub(crate) fn fingerprint(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn met(&self, certificate: &CertificateDer<'_>) {
        let digest = Sha256::digest(certificate.as_ref());
        let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(hex);
    }
}

/// The configured authority or the system's, and our certificate. Who is accepted is noted.
pub(crate) fn client_config(nats: &Nats, peer: &Peer) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match &nats.tls_ca {
        Some(path) => {
            for certificate in certificates(path)? {
                let added = roots.add(certificate);
                added.map_err(|error| format!("cannot read the authority {}: {error}", path.display()))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let verifier = WebPkiServerVerifier::builder(Arc::new(roots)).build();
    let noting = Noting {
        verifier: verifier.map_err(|error| format!("there is no authority to believe: {error}"))?,
        peer: peer.clone(),
    };
    let builder = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(noting));
    match (&nats.tls_cert, &nats.tls_key) {
        (Some(certificate), Some(key)) => {
            let secret = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| format!("cannot read the key {}: {error}", key.display()))?;
            let with = builder.with_client_auth_cert(certificates(certificate)?, secret);
            with.map_err(|error| format!("cannot use {}: {error}", certificate.display()))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|error| format!("cannot read the certificate {}: {error}", path.display()))
}

/// Judges as rustls does, and notes whom it has accepted.
#[derive(Debug)]
struct Noting {
    verifier: Arc<WebPkiServerVerifier>,
    peer: Peer,
}

impl ServerCertVerifier for Noting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .verifier
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        self.peer.met(end_entity);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

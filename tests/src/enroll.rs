//! Enrollment at port 1515 as agents do it: TLS, one line, one answer.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::agent::Key;

/// How long one conversation may be silent.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which TLS a client offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// 1.3 and 1.2, as Wazuh agents.
    New,
    /// 1.2 only, as OSSEC agents.
    Old,
}

/// A TLS connection to the enrollment port, handshake not yet begun.
pub fn connect(port: u16, tls: Tls) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let versions: &[&rustls::SupportedProtocolVersion] = match tls {
        Tls::New => &[&rustls::version::TLS13, &rustls::version::TLS12],
        Tls::Old => &[&rustls::version::TLS12],
    };
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let name = ServerName::IpAddress(address.ip().into());
    Ok(StreamOwned::new(ClientConnection::new(Arc::new(config), name)?, stream))
}

/// Sends a request line as it is and gives everything that comes back until the server closes.
///
/// A server that closes without close_notify makes OSSEC's `agent-auth` complain: here it is an error.
pub fn ask(port: u16, tls: Tls, request: &[u8]) -> Result<String> {
    let mut stream = connect(port, tls)?;
    stream.write_all(request).context("sending the request")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("reading the answer")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Enrolls under a name, as a Wazuh agent, and gives the key line.
pub fn enroll(port: u16, name: &str) -> Result<Key> {
    key_of(&ask(
        port,
        Tls::New,
        format!("OSSEC A:'{name}' V:'v4.14.7'\n").as_bytes(),
    )?)
}

/// Enrolls under a name, as an OSSEC agent: TLS 1.2 and the bare line.
pub fn enroll_ossec(port: u16, name: &str) -> Result<Key> {
    key_of(&ask(port, Tls::Old, format!("OSSEC A:'{name}'\n").as_bytes())?)
}

/// The key line in an answer.
pub fn key_of(answer: &str) -> Result<Key> {
    let line = answer
        .strip_prefix("OSSEC K:'")
        .and_then(|rest| rest.split('\'').next())
        .with_context(|| format!("no key in the answer {answer:?}"))?;
    Key::from_line(line)
}

impl Key {
    /// A line of `client.keys`.
    pub fn from_line(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let [id, name, address, key] = fields[..] else {
            bail!("a key line has four fields: {line:?}");
        };
        Ok(Self {
            id: id.into(),
            name: name.into(),
            address: address.into(),
            key: key.into(),
        })
    }
}

/// Agents without a CA take any certificate.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

//! Getting keys: over port 1515 as agents do, or from a key file.

use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use muster_proto::keys::{Secret, file};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time,
};
use tokio_rustls::TlsConnector;

use crate::{agent::Identity, scenario::Recruit};

/// Enrollments under way at the same time.
const AT_ONCE: usize = 32;
/// How long an enrollment is tried again that ended without an answer: managers close connections that come too fast,
/// and a large fleet from one address does.
const PERSISTENCE: Duration = Duration::from_secs(60);
/// Before the second attempt; doubled for each further one, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// For one whole conversation.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer: one key line, or an error text.
const MAX_ANSWER_LEN: u64 = 4096;
/// How many refusals are told in the manager's words.
const MAX_REASONS: usize = 5;

/// What an agent got.
pub(crate) struct Enrolled {
    pub(crate) recruit: Recruit,
    pub(crate) identity: Identity,
    pub(crate) key: Secret,
}

/// What a fleet got.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) enrolled: Vec<Enrolled>,
    pub(crate) refused: usize,
    pub(crate) reasons: Vec<String>,
}

/// Enrolls these agents; those that are refused are counted.
pub(crate) async fn over_tls(server: SocketAddr, password: Option<&Secret>, recruits: Vec<Recruit>) -> Result<Outcome> {
    let request = Rc::new(Requests {
        server,
        password: password.cloned(),
        new: connector(&[&rustls::version::TLS13, &rustls::version::TLS12])?,
        old: connector(&[&rustls::version::TLS12])?,
    });
    let recruits = Rc::new(recruits);
    let next = Rc::new(Cell::new(0));
    // Answers may come in any order; the fleet keeps the order of its names.
    let answers: Rc<RefCell<Vec<Option<Result<Enrolled>>>>> =
        Rc::new(RefCell::new(recruits.iter().map(|_| None).collect()));
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (request, recruits, next, answers) = (
            Rc::clone(&request),
            Rc::clone(&recruits),
            Rc::clone(&next),
            Rc::clone(&answers),
        );
        workers.spawn_local(async move {
            loop {
                let place = next.get();
                next.set(place + 1);
                let Some(recruit) = recruits.get(place) else { break };
                let answer = request.until_answered(recruit).await;
                if let Some(slot) = answers.borrow_mut().get_mut(place) {
                    *slot = Some(answer);
                }
            }
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended.context("an enrollment task failed")?;
    }
    let mut outcome = Outcome::default();
    for answer in answers.take().into_iter().flatten() {
        match answer {
            Ok(enrolled) => outcome.enrolled.push(enrolled),
            Err(error) => {
                outcome.refused += 1;
                let reason = format!("{error:#}");
                if outcome.reasons.len() < MAX_REASONS && !outcome.reasons.contains(&reason) {
                    outcome.reasons.push(reason);
                }
            }
        }
    }
    Ok(outcome)
}

/// Gives these agents the keys of a key file, in its order; they take its names.
pub(crate) fn from_key_file(text: &[u8], recruits: Vec<Recruit>) -> Outcome {
    let enrolled = file::parse(text)
        .entries
        .into_iter()
        .zip(recruits)
        .map(|(entry, recruit)| Enrolled {
            identity: Identity {
                id: entry.id.as_str().to_owned(),
                name: entry.name.clone(),
                address: entry.address.text().to_owned(),
                version: Rc::clone(&recruit.version),
            },
            key: entry.key.clone(),
            recruit,
        })
        .collect();
    Outcome {
        enrolled,
        ..Outcome::default()
    }
}

/// The agents' keys as a key file.
pub(crate) fn to_key_file(agents: &[Enrolled]) -> String {
    let mut text = String::new();
    for Enrolled { identity, key, .. } in agents {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{} {} {} {}",
            identity.id,
            identity.name,
            identity.address,
            key.expose()
        );
    }
    text
}

struct Requests {
    server: SocketAddr,
    password: Option<Secret>,
    /// What Wazuh agents speak.
    new: TlsConnector,
    /// What OSSEC agents speak.
    old: TlsConnector,
}

/// How one conversation ended.
enum Answer {
    Key(Identity, Secret),
    Refused(String),
}

impl Requests {
    async fn until_answered(&self, recruit: &Recruit) -> Result<Enrolled> {
        let mut pause = FIRST_PAUSE;
        let give_up = time::Instant::now() + PERSISTENCE;
        let name = &recruit.name;
        loop {
            let Ok(answer) = time::timeout(PATIENCE, self.once(recruit)).await else {
                bail!("no answer to the enrollment of {name} within {} s", PATIENCE.as_secs());
            };
            match answer {
                Ok(Answer::Key(identity, key)) => {
                    return Ok(Enrolled {
                        recruit: recruit.clone(),
                        identity: Identity {
                            version: Rc::clone(&recruit.version),
                            ..identity
                        },
                        key,
                    });
                }
                Ok(Answer::Refused(text)) => bail!("{text}"),
                Err(error) if time::Instant::now() >= give_up => return Err(error),
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), name, "enrollment ended without an answer");
                    time::sleep(pause).await;
                    pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn once(&self, recruit: &Recruit) -> Result<Answer> {
        let stream = TcpStream::connect(self.server)
            .await
            .with_context(|| format!("cannot connect to {} for enrollment", self.server))?;
        let connector = if recruit.kind.family.is_ossec() {
            &self.old
        } else {
            &self.new
        };
        let host = ServerName::IpAddress(self.server.ip().into());
        let mut tls = connector
            .connect(host, stream)
            .await
            .context("the TLS handshake of an enrollment failed")?;
        tls.write_all(self.line(recruit).expose().as_bytes())
            .await
            .context("cannot send an enrollment")?;
        let mut answer = Vec::new();
        // Some servers close without close_notify: what came before it counts.
        let read = tls.take(MAX_ANSWER_LEN).read_to_end(&mut answer).await;
        if answer.is_empty() {
            read.context("cannot read the answer to an enrollment")?;
            bail!("an enrollment was closed without an answer");
        }
        parse_answer(&answer)
    }

    fn line(&self, recruit: &Recruit) -> Secret {
        let password = self
            .password
            .as_ref()
            .map(|password| format!("OSSEC PASS: {} ", password.expose()))
            .unwrap_or_default();
        let version = if recruit.kind.family.is_ossec() {
            String::new()
        } else {
            format!(" V:'v{}'", recruit.version)
        };
        Secret::new(format!("{password}OSSEC A:'{}'{version}\n", recruit.name))
    }
}

fn parse_answer(answer: &[u8]) -> Result<Answer> {
    let text = String::from_utf8_lossy(answer);
    if let Some(rest) = text.strip_prefix("OSSEC K:'") {
        let line = rest.split('\'').next().unwrap_or_default();
        let mut fields = line.splitn(4, ' ');
        if let (Some(id), Some(name), Some(address), Some(key)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        {
            let identity = Identity {
                id: id.to_owned(),
                name: name.to_owned(),
                address: address.to_owned(),
                version: "".into(),
            };
            return Ok(Answer::Key(identity, Secret::new(key.to_owned())));
        }
    }
    match text.strip_prefix("ERROR: ") {
        Some(reason) => Ok(Answer::Refused(reason.trim_end().to_owned())),
        None => bail!("the answer to an enrollment is neither a key nor an error"),
    }
}

fn connector(versions: &[&'static rustls::SupportedProtocolVersion]) -> Result<TlsConnector> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .context("the TLS library lacks a version")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Agents without a CA of their own take any certificate, and so does the fleet.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_error_are_told_apart() {
        let Answer::Key(identity, key) = parse_answer(b"OSSEC K:'001 web-01 any 00ff'\n\n").unwrap() else {
            panic!("a key")
        };
        assert_eq!(
            (identity.id.as_str(), identity.name.as_str(), identity.address.as_str()),
            ("001", "web-01", "any")
        );
        assert_eq!(key.expose(), "00ff");
        let Answer::Refused(reason) = parse_answer(b"ERROR: Invalid password. Unable to add agent").unwrap() else {
            panic!("a refusal")
        };
        assert_eq!(reason, "Invalid password. Unable to add agent");
        assert!(parse_answer(b"HTTP/1.1 400").is_err());
        assert!(parse_answer(b"OSSEC K:'001 web-01'").is_err());
    }

    #[test]
    fn key_file_goes_out_and_comes_back() {
        let habits = crate::agent::Habits::stock(Duration::from_secs(20));
        let kind = "ossec4".parse().unwrap();
        let scenario = crate::scenario::Scenario {
            groups: vec![crate::scenario::Group::of_kind(kind, 1, habits)],
            ..crate::scenario::Scenario::default()
        };
        let recruits = scenario.recruits(1, crate::scenario::Naming::Through("sim-"));
        let text = format!("001 a any {}\n", "0".repeat(64));
        let outcome = from_key_file(text.as_bytes(), recruits);
        assert_eq!(to_key_file(&outcome.enrolled), text);
    }
}

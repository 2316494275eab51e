//! `nats request` and `nats request-key`: ask a manager over NATS, with a signed request.
//!
//! For operators, who may be on another machine: with `--server` no home is needed. The manager's own credentials are
//! never used for it; they may not ask.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf, absolute},
    time::Duration,
};

use anyhow::{Context as _, bail};
use async_nats::{Client, ConnectOptions, HeaderMap, HeaderValue, Message, RequestErrorKind};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Args, builder::PossibleValuesParser};
use muster_proto::{
    agent::AgentId,
    command::{Address, Outcome, Reply, Request as Body, Unsigned, Verb, is_signed_for},
    event::{header, preamble::Preamble, subject::token},
};
use muster_service::{
    clock,
    exit::{DONE, Exit, FAILED, NOT_PERMITTED, UNREACHABLE},
};
use nkeys::{KeyPair, KeyPairType};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::{
    cli::OutputFormat,
    context::Context,
    output::{self, say, tame},
};

/// Seconds for which a request is worth something.
const LIFE_S: u64 = 20;
/// How long the connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a nonce, before they are written as text.
const NONCE_LEN: usize = 18;

/// `nats request`
#[derive(Args, Debug)]
pub struct Request {
    /// what is asked for
    #[arg(value_name = "VERB", value_parser = PossibleValuesParser::new(Verb::ALL.map(Verb::as_str)))]
    pub verb: String,

    /// the agent's id, for verbs that are about an agent
    #[arg(value_name = "AGENT")]
    pub agent: Option<String>,

    /// the file with the seed that the request is signed with; its public half must be a <control_key> of the manager
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,

    /// the manager's name, or any: then the one that has the agent answers
    #[arg(long, value_name = "NAME", default_value = "any")]
    pub node: String,

    /// what the verb needs besides, as a JSON object: for agent.ar {"command", "extra_args": [], "alert": {}}
    #[arg(long, value_name = "JSON")]
    pub arguments: Option<String>,

    /// the NATS server; with it nothing of the home is read [default: those of the home, with its TLS settings]
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// what subjects begin with [default: that of the home, else wazuh.xdr]
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,

    /// a .creds file to log in with
    #[arg(long, value_name = "FILE")]
    pub creds: Option<PathBuf>,

    /// a file with an nkey seed to log in with
    #[arg(long, value_name = "FILE", conflicts_with = "creds")]
    pub nkey: Option<PathBuf>,

    /// the CA of the server [default: that of the home, else the system's]
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// our client certificate
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// its private key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// where replies go: what our user may listen to and others may not
    #[arg(long, value_name = "PREFIX", default_value = "_INBOX.operator")]
    pub inbox: String,

    /// a public key of the manager; may be repeated [default: those of the home, if they may be read]
    #[arg(long = "manager", value_name = "KEY")]
    pub managers: Vec<String>,

    /// seconds until it is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub timeout: u64,
}

/// `nats request-key`
#[derive(Args, Debug)]
pub struct RequestKey {
    /// where the seed goes; a file that exists is not overwritten
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

pub(crate) fn new_key(arguments: &RequestKey) -> anyhow::Result<u8> {
    let path = &arguments.file;
    let key = KeyPair::new(KeyPairType::User);
    let seed = Zeroizing::new(format!("{}\n", key.seed().context("making a key")?));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("making {}", path.display()))?;
    file.write_all(seed.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("writing {}", path.display()))?;
    output::line(key.public_key())?;
    Ok(DONE)
}

/// Where to ask, and whom to believe.
struct Way {
    servers: Vec<String>,
    prefix: String,
    tls_required: bool,
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    managers: Vec<String>,
}

pub(crate) async fn request(home: Option<&Path>, format: OutputFormat, arguments: &Request) -> anyhow::Result<u8> {
    // Before the home becomes the working directory.
    let key = read_seed(&absolute(&arguments.key)?)?;
    let credentials = (given(&arguments.creds)?, given(&arguments.nkey)?);
    let way = way(home, format, arguments)?;
    let (address, body) = asked(arguments)?;
    let subject = address.subject(&way.prefix);
    let (headers, body, nonce) = sign(&key, &subject, body)?;
    // A second call is the only way to fail.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = connect(&way, credentials, arguments).await?;
    let asked = client.request_with_headers(subject.clone(), headers, body.into());
    let patience = Duration::from_secs(arguments.timeout);
    let answered = tokio::time::timeout(patience, asked).await;
    let message = match answered {
        Ok(Ok(message)) => message,
        Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
            let why = "nobody listens: no such manager, or <control> is not enabled there";
            return Err(Exit::new(UNREACHABLE, why).into());
        }
        Ok(Err(error)) if error.kind() != RequestErrorKind::TimedOut => return Err(error).context("asking"),
        Ok(Err(_)) | Err(_) => {
            let why = "no answer: no manager has this agent, or our user may not ask there or hear replies";
            return Err(Exit::new(UNREACHABLE, why).into());
        }
    };
    let (reply, key_id) = read(&message, &subject, &nonce)?;
    if way.managers.is_empty() {
        say(format!(
            "the reply is signed with {key_id}, which was not checked; name it with --manager"
        ));
    } else if !way.managers.contains(&key_id) {
        bail!("the reply is signed with {key_id}, which is no key of the manager; do not believe it");
    }
    print(format, &reply, &key_id)?;
    Ok(match reply.outcome {
        Outcome::Done | Outcome::Accepted => DONE,
        Outcome::Refused => NOT_PERMITTED,
        Outcome::Failed | Outcome::Unconfirmed => FAILED,
    })
}

fn given(path: &Option<PathBuf>) -> anyhow::Result<Option<PathBuf>> {
    Ok(path.as_deref().map(absolute).transpose()?)
}

fn way(home: Option<&Path>, format: OutputFormat, arguments: &Request) -> anyhow::Result<Way> {
    let (ca, cert) = (given(&arguments.tls_ca)?, given(&arguments.tls_cert)?);
    let identity = cert.zip(given(&arguments.tls_key)?);
    let mut way = match &arguments.server {
        Some(server) => Way {
            servers: vec![server.clone()],
            prefix: muster_config::Nats::default().subject_prefix,
            tls_required: false,
            ca: None,
            identity: None,
            managers: Vec::new(),
        },
        None => of_home(&Context::open(home, format)?)?,
    };
    if let Some(prefix) = &arguments.prefix {
        way.prefix.clone_from(prefix);
    }
    way.ca = ca.or(way.ca);
    way.identity = identity.or(way.identity);
    if !arguments.managers.is_empty() {
        way.managers.clone_from(&arguments.managers);
    }
    Ok(way)
}

fn of_home(context: &Context) -> anyhow::Result<Way> {
    let nats = context.settings()?.nats;
    if !nats.enabled {
        bail!("etc/ossec.conf has no <nats> that is enabled; name the server with --server");
    }
    let in_home = |path: PathBuf| context.home.join(path);
    // Whoever may not read the seeds names the manager's key, or goes without.
    let managers = super::key::KeyFile::read(&in_home(nats.signing_key.clone())).and_then(|file| file.public());
    let identity = nats.tls_cert.zip(nats.tls_key);
    Ok(Way {
        servers: nats.servers,
        prefix: nats.subject_prefix,
        tls_required: nats.encrypt_messages,
        ca: nats.tls_ca.map(in_home),
        identity: identity.map(|(cert, key)| (in_home(cert), in_home(key))),
        managers: managers.unwrap_or_default(),
    })
}

/// What is asked, and what of the body does not depend on the moment.
fn asked(arguments: &Request) -> anyhow::Result<(Address, Map<String, Value>)> {
    let verb = Verb::from_text(&arguments.verb).context("there is no such verb")?;
    let agent = match (&arguments.agent, verb.is_of_an_agent()) {
        (Some(id), true) => {
            let agent = AgentId::new(id);
            if !agent.is_numeric() {
                bail!("{id} is no agent's id: 1 to 8 digits");
            }
            Some(agent)
        }
        (None, false) => None,
        (None, true) => bail!("{} needs the id of an agent", verb.as_str()),
        (Some(_), false) => bail!("{} is about no single agent", verb.as_str()),
    };
    let further = match &arguments.arguments {
        Some(text) => serde_json::from_str(text).context("--arguments is no JSON object")?,
        None => Map::new(),
    };
    let address = Address {
        node: token(&arguments.node).into_owned(),
        verb,
        agent,
    };
    Ok((address, further))
}

/// The first seed of a user in a file.
pub(in crate::nats) fn read_seed(path: &Path) -> anyhow::Result<KeyPair> {
    let name = path.display();
    let text = Zeroizing::new(fs::read_to_string(path).with_context(|| format!("reading {name}"))?);
    let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
    let seed = seed.with_context(|| format!("{name} holds no seed of a user (SU…)"))?;
    KeyPair::from_seed(seed).with_context(|| format!("the seed in {name} is damaged"))
}

/// Headers, body and nonce of a request that begins to live now.
fn sign(key: &KeyPair, subject: &str, arguments: Map<String, Value>) -> anyhow::Result<(HeaderMap, Vec<u8>, String)> {
    let mut random = [0; NONCE_LEN];
    getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("the system has no random numbers: {error}"))?;
    let nonce = URL_SAFE_NO_PAD.encode(random);
    let now = clock::unix_ms();
    let body = Body {
        exp: now / 1000 + LIFE_S,
        nonce: nonce.clone(),
        arguments,
    };
    let unsigned = Unsigned {
        subject: subject.to_owned(),
        message_id: nonce.clone(),
        time_ms: now,
        body: serde_json::to_vec(&body)?,
    };
    // A key from a seed can always sign.
    let sign = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(key.sign(bytes).unwrap_or_default());
    let headers = in_order(unsigned.sign(&key.public_key(), sign));
    Ok((headers, unsigned.body, nonce))
}

fn in_order(signed: Vec<(&'static str, String)>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in signed {
        headers.insert(name, value);
    }
    headers
}

async fn connect(
    way: &Way,
    (creds, nkey): (Option<PathBuf>, Option<PathBuf>),
    arguments: &Request,
) -> anyhow::Result<Client> {
    let mut options = ConnectOptions::new()
        .name("muster-control")
        .connection_timeout(CONNECT_DEADLINE)
        .request_timeout(None)
        .custom_inbox_prefix(&arguments.inbox);
    let tls = |server: &String| server.starts_with("tls://");
    if way.tls_required || way.servers.iter().any(tls) {
        options = options.require_tls(true);
    }
    if let Some(ca) = &way.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let Some((cert, key)) = &way.identity {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    if let Some(path) = nkey {
        options = options.nkey(read_seed(&path)?.seed().context("the seed is damaged")?);
    }
    if let Some(path) = creds {
        let read = options.credentials_file(&path).await;
        options = read.with_context(|| format!("reading {}", path.display()))?;
    }
    let connected = tokio::time::timeout(CONNECT_DEADLINE * 2, options.connect(way.servers.as_slice())).await;
    let servers = way.servers.join(", ");
    match connected {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => {
            let exit = Exit::new(UNREACHABLE, format!("cannot connect to {servers}"));
            Err(anyhow::Error::new(error).context(exit))
        }
        Err(_) => Err(Exit::new(UNREACHABLE, format!("cannot connect to {servers}: no answer")).into()),
    }
}

/// The reply, if it is signed and answers our request; and with which key.
fn read(message: &Message, subject: &str, nonce: &str) -> anyhow::Result<(Reply, String)> {
    let headers = message.headers.as_ref();
    let header = |name: &str| headers.and_then(|headers| headers.get(name)).map(HeaderValue::as_str);
    let body: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
    let (Some(preamble), Some(signature)) = (Preamble::of(header), header(header::SIGNATURE)) else {
        if let Some(stream) = body["stream"].as_str() {
            let stream = tame(stream);
            bail!("the stream {stream} has answered: it takes the subjects of requests, and must not");
        }
        bail!("the reply is not signed");
    };
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
    let signed = preamble.signed_bytes(&message.payload);
    let fits = KeyPair::from_public_key(preamble.key_id).is_ok_and(|key| key.verify(&signed, &signature).is_ok());
    if !fits || !is_signed_for(preamble.subject, &message.subject) {
        bail!("the signature of the reply does not fit");
    }
    let reply: Reply = serde_json::from_value(body["reply"].clone()).context("the reply makes no sense")?;
    // What was refused unread has no nonce.
    let ours = reply.nonce == nonce || (reply.nonce.is_empty() && reply.outcome == Outcome::Refused);
    if !ours || reply.subject != subject {
        bail!("the reply answers another request");
    }
    Ok((reply, preamble.key_id.to_owned()))
}

fn print(format: OutputFormat, reply: &Reply, key_id: &str) -> anyhow::Result<()> {
    if format == OutputFormat::Json {
        return output::json(&json!({
            "node": reply.node, "timestamp": reply.timestamp, "outcome": reply.outcome, "reason": reply.reason,
            "text": reply.text, "ticket": reply.ticket, "data": reply.data, "kid": key_id,
        }));
    }
    let outcome = serde_json::to_value(reply.outcome)?;
    let outcome = outcome.as_str().unwrap_or_default();
    let reason = reply.reason.as_ref().map(|reason| format!(" ({})", tame(reason)));
    output::line(format!(
        "{}: {outcome}{}: {}",
        tame(&reply.node),
        reason.unwrap_or_default(),
        tame(&reply.text)
    ))?;
    if let Some(ticket) = &reply.ticket {
        output::line(format!("ticket: {}", tame(ticket)))?;
    }
    if let Some(data) = &reply.data {
        for line in serde_json::to_string_pretty(data)?.lines() {
            output::line(tame(line))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: &str = "wazuh.xdr.control.any.node.self.status";

    fn answer(key: &KeyPair, nonce: &str, to: &str) -> Message {
        let reply = json!({"reply": {
            "nonce": nonce, "subject": to, "node": "mgr-a", "timestamp": 1, "outcome": "done", "reason": null,
            "text": "", "ticket": null, "data": null,
        }});
        let unsigned = Unsigned {
            subject: "_INBOX.operator.1".to_owned(),
            message_id: nonce.to_owned(),
            time_ms: 1,
            body: reply.to_string().into_bytes(),
        };
        let sign = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(key.sign(bytes).expect("signs"));
        Message {
            subject: "_INBOX.operator.1".into(),
            reply: None,
            headers: Some(in_order(unsigned.sign(&key.public_key(), sign))),
            payload: unsigned.body.into(),
            status: None,
            description: None,
            length: 0,
        }
    }

    fn refused(message: &Message) -> String {
        read(message, SUBJECT, "nonce-of-our-request")
            .expect_err("is refused")
            .to_string()
    }

    #[test]
    fn only_a_signed_reply_to_our_request_is_believed() {
        let key = KeyPair::new_user();
        let good = answer(&key, "nonce-of-our-request", SUBJECT);
        let (reply, key_id) = read(&good, SUBJECT, "nonce-of-our-request").expect("is good");
        assert_eq!((reply.outcome, key_id), (Outcome::Done, key.public_key()));
        let mut changed = good.clone();
        changed.payload = String::from_utf8_lossy(&good.payload).replace("mgr-a", "mgr-b").into();
        assert!(refused(&changed).contains("does not fit"));
        let mut moved = good.clone();
        moved.subject = "_INBOX.operator.2".into();
        assert!(refused(&moved).contains("does not fit"));
        let mut bare = good;
        bare.headers = None;
        assert!(refused(&bare).contains("not signed"));
        assert!(refused(&answer(&key, "nonce-of-another-one", SUBJECT)).contains("another request"));
        let other = "wazuh.xdr.control.any.agents.all.summary";
        assert!(refused(&answer(&key, "nonce-of-our-request", other)).contains("another request"));
    }

    #[test]
    fn a_streams_acknowledgement_is_no_reply() {
        let mut message = answer(&KeyPair::new_user(), "x", SUBJECT);
        message.headers = None;
        message.payload = r#"{"stream":"EVERYTHING","seq":7}"#.into();
        assert!(refused(&message).contains("EVERYTHING"));
    }
}

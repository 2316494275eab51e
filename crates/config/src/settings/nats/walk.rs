//! Which options `<nats>` has, and which of them go together.

use super::{
    Encrypt, EventFormat, Family, KeepaliveEvents, Kv, Nats, Ownership, Publish, PublishMode, Recipient, Spool,
    SpoolFsync, control::user_key, escalation::escalation,
};
use crate::{
    kind::{Reading, Special, bytes, maybe, number, path, secret, span, text, word, words, yes_no},
    settings::global::node_name,
    walk::{Block, Need, Origin, Repeated, Walk},
};

const DAY: u64 = 86_400;
/// Servers that one file may name.
const MAX_SERVERS: usize = 64;
/// Recipients of one sealed body: more would make the header too large.
const MAX_RECIPIENTS: usize = 8;

impl Block for Nats {
    fn found(&mut self) {
        self.enabled = true;
    }

    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.own("enabled", yes_no(), &mut self.enabled);
        let mut servers = std::mem::take(&mut self.servers)
            .into_iter()
            .map(|server| vec![server])
            .collect();
        walk.list(Origin::Own, Need::Optional, "server_url", server_urls(), &mut servers);
        self.servers = servers.concat();
        walk.own("credentials_file", maybe(path()), &mut self.credentials_file);
        walk.own("nkey_file", maybe(path()), &mut self.nkey_file);
        walk.own("user", maybe(text(255)), &mut self.user);
        walk.own("password", maybe(secret(1024)), &mut self.password);
        walk.own("token", maybe(secret(4096)), &mut self.token);
        walk.own("subject_prefix", subject_prefix(), &mut self.subject_prefix);
        walk.own("tls_cert", maybe(path()), &mut self.tls_cert);
        walk.own("tls_key", maybe(path()), &mut self.tls_key);
        walk.own("tls_ca", maybe(path()), &mut self.tls_ca);
        walk.own("node_name", maybe(node_name()), &mut self.node_name);
        walk.own("max_reconnects", max_reconnects(), &mut self.max_reconnects);
        walk.own("reconnect_delay", span(1, 3600), &mut self.reconnect_delay);
        walk.own("encrypt_messages", yes_no(), &mut self.encrypt_messages);
        walk.own("message_signing", yes_no(), &mut self.message_signing);
        walk.own("audit_logging", yes_no(), &mut self.audit_logging);
        walk.own("signing_key", path(), &mut self.signing_key);
        walk.own("trust_key", maybe(user_key()), &mut self.trust_key);
        walk.own("key_overlap", span(1, 7 * DAY), &mut self.key_overlap);
        walk.blocks(Origin::Own, "recipient", &mut self.recipients);
        walk.block(Origin::Own, "encrypt", &mut self.encrypt);
        walk.block(Origin::Own, "publish", &mut self.publish);
        walk.block(Origin::Own, "spool", &mut self.spool);
        let formats = word(&[
            ("native", EventFormat::Native),
            ("cloudevents", EventFormat::Cloudevents),
            ("cloudevents-structured", EventFormat::CloudeventsStructured),
            ("ocsf", EventFormat::Ocsf),
            ("ocsf-1.9", EventFormat::Ocsf19),
        ]);
        walk.own("format", formats, &mut self.format);
        walk.own("keepalive_events", keepalive_events(), &mut self.keepalive_events);
        walk.own("keepalive_received", yes_no(), &mut self.keepalive_received);
        walk.optional(Origin::Own, "kv", Repeated::Merged, &mut self.kv);
        walk.optional(Origin::Own, "ownership", Repeated::Merged, &mut self.ownership);
        walk.block(Origin::Own, "control", &mut self.control);
        walk.blocks(Origin::Own, "control_key", &mut self.control_keys);
        walk.own("local_alerts", yes_no(), &mut self.local_alerts);
        walk.own("source", text(128), &mut self.source);
        walk.own("escalation", escalation(), &mut self.escalation);
        self.check(walk);
    }
}

impl Nats {
    fn check<W: Walk>(&self, walk: &mut W) {
        if self.enabled && walk.lacks("server_url") {
            walk.error(
                "",
                "<nats> has no <server_url>; write one, such as nats://127.0.0.1:4222, or <enabled>no</enabled>",
            );
        }
        if self.servers.len() > MAX_SERVERS {
            walk.error("server_url", &format!("there are more than {MAX_SERVERS} servers"));
        }
        for (one, other, purpose) in [
            ("tls_cert", "tls_key", ": both together are our client certificate"),
            ("tls_key", "tls_cert", ": both together are our client certificate"),
            ("user", "password", ""),
            ("password", "user", ""),
        ] {
            if walk.lacks(other) && walk.order(one).is_some() {
                walk.error(one, &format!("<{one}> needs <{other}>{purpose}"));
            }
        }
        let ways = [
            ("credentials_file", self.credentials_file.is_some()),
            ("nkey_file", self.nkey_file.is_some()),
            ("user", self.user.is_some()),
            ("token", self.token.is_some()),
        ];
        let used: Vec<_> = ways
            .iter()
            .filter(|(_, is_used)| *is_used)
            .map(|(name, _)| *name)
            .collect();
        if let [first, second, ..] = used.as_slice() {
            walk.error(
                second,
                &format!("<{first}> and <{second}> are two ways to log in; keep one"),
            );
        }
        if self.recipients.len() > MAX_RECIPIENTS {
            walk.error("recipient", &format!("there are more than {MAX_RECIPIENTS} recipients"));
        }
        if !self.message_signing && self.trust_key.is_some() {
            walk.warning("trust_key", "it vouches for no key, since <message_signing> is no");
        }
        if !self.encrypt_messages && !self.recipients.is_empty() {
            walk.warning("recipient", "nothing is sealed, since <encrypt_messages> is no");
        }
        self.check_control(walk);
    }
}

/// One or more URLs with commas between them.
fn server_urls() -> Special<Vec<String>> {
    Special {
        accepts: "a server such as nats://host:4222 or tls://host:4222, or several with commas",
        read: |text| {
            let mut urls = Vec::new();
            for url in text.split(',').map(str::trim) {
                match server_url(url) {
                    Ok(()) => urls.push(url.to_owned()),
                    Err(reason) => return Reading::Because(reason),
                }
            }
            Reading::Value(urls)
        },
        write: |urls| Some(urls.join(",")),
    }
}

/// Checks one URL. It is printed in logs, so nothing secret may be in it.
fn server_url(url: &str) -> Result<(), String> {
    const FORM: &str = "write nats://host:4222 or tls://host:4222";
    let shown = crate::source::quoted(url);
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        None => ("nats", url),
    };
    if !matches!(scheme, "nats" | "tls") {
        return Err(format!("must begin with nats:// or tls://, not {shown}; {FORM}"));
    }
    if rest.contains('@') {
        return Err(
            "has a user or token in it, and it is printed in logs; use <credentials_file>, <user> or <token>"
                .to_owned(),
        );
    }
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
            (host, port.strip_prefix(':').or(none_if_empty(port)))
        }
        Some(_) => return Err(format!("has no IPv6 address between its brackets: {shown}; {FORM}")),
        None => match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || host.len() > 253 || !host.chars().all(is_host) {
        return Err(format!("has no usable host: {shown}; {FORM}"));
    }
    match port {
        Some(port) if !matches!(port.parse::<u16>(), Ok(1..)) || port.starts_with('+') => {
            Err(format!("has a port that is no number from 1 to 65535: {shown}; {FORM}"))
        }
        _ => Ok(()),
    }
}

/// What follows a bracket and is no port: nothing is fine, anything else is taken for a bad port.
fn none_if_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// 1 to 6 tokens with dots between them.
fn subject_prefix() -> Special<String> {
    Special {
        accepts: "1 to 6 tokens of letters, digits, '-' and '_' with dots between them, such as wazuh.xdr",
        read: |text| {
            let is_token = |token: &str| {
                !token.is_empty()
                    && token
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            };
            let fits = text.len() <= 128 && text.split('.').count() <= 6 && text.split('.').all(is_token);
            fits.then(|| text.to_owned()).into()
        },
        write: |prefix| Some(prefix.clone()),
    }
}

/// A count, or `-1` for ever, which is zero here.
fn max_reconnects() -> Special<u32> {
    Special {
        accepts: "a number from 0 to 1000000, or -1; 0 and -1 mean for ever",
        read: |text| match text {
            "-1" => Reading::Value(0),
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|count| *count <= 1_000_000).into()
            }
            _ => Reading::Refused,
        },
        write: |count| {
            Some(if *count == 0 {
                "-1".to_owned()
            } else {
                count.to_string()
            })
        },
    }
}

fn keepalive_events() -> Special<KeepaliveEvents> {
    Special {
        accepts: "'all', 'off' or 'sample:N' with N from 1 to 1000000",
        read: |text| match text {
            "all" => Reading::Value(KeepaliveEvents::All),
            "off" => Reading::Value(KeepaliveEvents::Off),
            _ => {
                let every = text
                    .strip_prefix("sample:")
                    .filter(|every| every.bytes().all(|byte| byte.is_ascii_digit()));
                let every = every
                    .and_then(|every| every.parse().ok())
                    .filter(|every| (1..=1_000_000).contains(every));
                every.map(KeepaliveEvents::Sample).into()
            }
        },
        write: |events| {
            Some(match events {
                KeepaliveEvents::All => "all".to_owned(),
                KeepaliveEvents::Sample(every) => format!("sample:{every}"),
                KeepaliveEvents::Off => "off".to_owned(),
            })
        },
    }
}

/// A name that stands in headers between separators, and in bucket names.
pub(super) fn name() -> Special<String> {
    Special {
        accepts: "a name of 1 to 64 letters, digits, '-' and '_'",
        read: |text| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            ((1..=64).contains(&text.len()) && text.bytes().all(fits))
                .then(|| text.to_owned())
                .into()
        },
        write: |name| Some(name.clone()),
    }
}

/// The shape of a public key: its letter and 55 characters of base32. The check sum is left to who uses it.
pub(super) fn public_key(text: &str, letter: char) -> Option<String> {
    let is_base32 = |byte: u8| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte);
    (text.len() == 56 && text.starts_with(letter) && text.bytes().all(is_base32)).then(|| text.to_owned())
}

impl Block for Recipient {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.attribute(Origin::Own, Need::Required, "id", name(), &mut self.id);
        let key = Special {
            accepts: "a public xkey: 56 characters that begin with X",
            read: |text| public_key(text, 'X').into(),
            write: |key: &String| Some(key.clone()),
        };
        walk.text(key, &mut self.key);
    }
}

impl Block for Encrypt {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        let families = words(&[
            ("keepalive", Family::Keepalive),
            ("status", Family::Status),
            ("enrollment", Family::Enrollment),
            ("keypoll", Family::Keypoll),
            ("alerts", Family::Alerts),
            ("archives", Family::Archives),
            ("agentless", Family::Agentless),
            ("osquery", Family::Osquery),
        ]);
        walk.attribute(Origin::Own, Need::Optional, "families", families, &mut self.families);
    }
}

impl Block for Publish {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        let modes = word(&[
            ("auto", PublishMode::Auto),
            ("jetstream", PublishMode::Jetstream),
            ("core", PublishMode::Core),
        ]);
        walk.attribute(Origin::Own, Need::Optional, "mode", modes, &mut self.mode);
        walk.attribute(
            Origin::Own,
            Need::Optional,
            "window",
            number(1, 65536),
            &mut self.window,
        );
        walk.attribute(
            Origin::Own,
            Need::Optional,
            "ack_timeout",
            span(1, 300),
            &mut self.ack_timeout,
        );
        walk.attribute(
            Origin::Own,
            Need::Optional,
            "drain_rate",
            number(0, 10_000_000),
            &mut self.drain_rate,
        );
    }
}

impl Block for Spool {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.attribute(Origin::Own, Need::Optional, "dir", path(), &mut self.dir);
        walk.attribute(
            Origin::Own,
            Need::Optional,
            "max_bytes",
            bytes(16 << 20, 1 << 44),
            &mut self.max_bytes,
        );
        walk.attribute(
            Origin::Own,
            Need::Optional,
            "max_age",
            span(60, 365 * DAY),
            &mut self.max_age,
        );
        let modes = word(&[
            ("batch", SpoolFsync::Batch),
            ("each", SpoolFsync::Each),
            ("never", SpoolFsync::Never),
        ]);
        walk.attribute(Origin::Own, Need::Optional, "fsync", modes, &mut self.fsync);
        if self.fsync == SpoolFsync::Never {
            walk.warning("fsync", "a power cut may lose events that a daemon was told are safe");
        }
    }
}

impl Block for Kv {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.attribute(Origin::Own, Need::Optional, "enabled", yes_no(), &mut self.enabled);
        walk.attribute(Origin::Own, Need::Optional, "bucket", name(), &mut self.bucket);
    }
}

impl Block for Ownership {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.attribute(Origin::Own, Need::Optional, "bucket", name(), &mut self.bucket);
        walk.attribute(Origin::Own, Need::Optional, "ids", yes_no(), &mut self.ids);
    }
}

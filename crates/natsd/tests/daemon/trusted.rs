//! A manager with a trust key, for tests of what consumers believe.

use std::{fs, process::Output};

use async_nats::{HeaderMap, jetstream};
use muster_natsd::verify::Message;
use muster_proto::{
    event::key::CoSignature,
    ipc::control::{Request, Response, SigningKey},
};
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::{block_on, json, natsd::Home, provisioned, server::Server, wait_for};

/// A manager with a trust key, which has vouched for its first key.
pub(crate) struct Trusted {
    pub(crate) server: Server,
    pub(crate) home: Home,
    pub(crate) trust: KeyPair,
    _natsd: crate::natsd::Natsd,
}

impl Trusted {
    pub(crate) fn start() -> Self {
        let trust = KeyPair::new_user();
        let server = Server::start();
        let home = provisioned(
            &server,
            &format!(
                "<message_signing>yes</message_signing><kv bucket=\"agents\"/><key_overlap>1s</key_overlap>\
                 <trust_key>{}</trust_key>",
                trust.public_key()
            ),
        );
        let natsd = home.start();
        let trusted = Self {
            server,
            home,
            trust,
            _natsd: natsd,
        };
        trusted.vouch();
        trusted
    }

    pub(crate) fn keys(&self) -> Vec<SigningKey> {
        let answer = block_on(async {
            let mut control = self.home.control().await.expect("connects");
            control.ask(&Request::NatsKeys).await.expect("answers")
        });
        match answer {
            Response::NatsKeys(keys) => keys,
            other => unreachable!("no keys: {other:?}"),
        }
    }

    /// The trust key signs what it has not, and natsd hears of it.
    pub(crate) fn vouch(&self) {
        let mut lines = String::new();
        for SigningKey { mut record, .. } in self.keys() {
            record.trust = Some(sign(&self.trust, record.introduction()));
            lines += &format!("signed {}\n", json!(record));
        }
        self.append(&lines);
        wait_for("the mirror has the co-signed key", || {
            self.stream("KV_muster_keys")
                .iter()
                .any(|message| json(message)["key"]["trust"].is_object())
        });
    }

    /// Puts lines into the file of keys.
    pub(crate) fn append(&self, lines: &str) {
        let file = self.home.path("etc/nats/signing.nk");
        let text = fs::read_to_string(&file).expect("reads");
        fs::write(&file, format!("{}\n{lines}", text.trim_end())).expect("writes");
        let answer = block_on(async {
            let mut control = self.home.control().await.expect("connects");
            control.ask(&Request::Reload).await.expect("answers")
        });
        assert!(matches!(answer, Response::Done(_)), "{answer:?}");
    }

    pub(crate) fn stream(&self, name: &str) -> Vec<Message> {
        block_on(async { Server::messages(&self.server.client().await, name).await })
    }

    /// The broker puts a message into its streams.
    pub(crate) fn store(&self, subject: &str, message: &Message) {
        block_on(async {
            let mut headers = HeaderMap::new();
            for (name, value) in &message.headers {
                headers.insert(name.as_str(), value.as_str());
            }
            let jetstream = jetstream::new(self.server.client().await);
            let sent = jetstream
                .publish_with_headers(subject.to_owned(), headers, message.body.clone().into())
                .await;
            sent.expect("publishes").await.expect("is stored");
        });
    }

    pub(crate) fn verify(&self) -> (Output, Vec<Value>) {
        let trust = self.trust.public_key();
        let streams = ["--stream", "MUSTER_AUDIT", "--stream", "MUSTER_STATE"];
        let mut arguments = vec!["verify", "--trust-key", &trust];
        arguments.extend(streams);
        let output = self.home.run(&arguments);
        let lines = String::from_utf8_lossy(&output.stdout);
        let lines = lines.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let refused = lines.filter(|line: &Value| line["failed"].is_string()).collect();
        (output, refused)
    }
}

/// A statement, signed.
pub(crate) fn sign(key: &KeyPair, text: Option<String>) -> CoSignature {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let sig = key.sign(text.expect("a statement").as_bytes()).expect("signs");
    CoSignature {
        kid: key.public_key(),
        sig: URL_SAFE_NO_PAD.encode(sig),
    }
}

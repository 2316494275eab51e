//! The server configuration that is shipped: TLS with client certificates, and each user's rights and no others.

use std::{fs, path::Path, time::Duration};

use async_nats::{ConnectOptions, jetstream};
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair as TlsKey};
use serde_json::Value;

use crate::{block_on, natsd::Home, producer, server::Server, wait_for};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/nats");

/// `ca.pem`, and certificates `server` and `client` signed by it.
pub(crate) fn certificates(folder: &Path) {
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = TlsKey::generate().expect("a key");
    let ca = params.self_signed(&key).expect("signs");
    fs::write(folder.join("ca.pem"), ca.pem()).expect("writes");
    let issuer = Issuer::new(params, key);
    for name in ["server", "client"] {
        let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("parameters");
        let key = TlsKey::generate().expect("a key");
        let certificate = params.signed_by(&key, &issuer).expect("signs");
        fs::write(folder.join(format!("{name}.pem")), certificate.pem()).expect("writes");
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).expect("writes");
    }
}

/// A server with a shipped configuration, and keys for its users.
pub(crate) struct Shipped {
    folder: tempfile::TempDir,
    pub(crate) server: Server,
    pub(crate) manager: KeyPair,
    pub(crate) consumer: KeyPair,
    pub(crate) operator: KeyPair,
    pub(crate) administrator: KeyPair,
}

impl Shipped {
    pub(crate) fn start() -> Self {
        Self::with("nats-server.conf")
    }

    pub(crate) fn with(config: &str) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let [manager, consumer, operator, administrator] = [(); 4].map(|()| KeyPair::new_user());
        let folder = tempfile::tempdir().expect("directory");
        certificates(folder.path());
        let server = Server::with_config(|store, port| {
            let path = |name: &str| folder.path().join(name).display().to_string();
            fs::read_to_string(Path::new(DEPLOY).join(config))
                .expect("the shipped configuration")
                .replace("0.0.0.0:4222", &format!("127.0.0.1:{port}"))
                .replace("127.0.0.1:8222", "127.0.0.1:-1")
                .replace("<server.pem>", &path("server.pem"))
                .replace("<server.key>", &path("server.key"))
                .replace("<ca.pem>", &path("ca.pem"))
                .replace("<store>", &store.display().to_string())
                .replace("max_file_store: 100GB", "max_file_store: 10GB")
                .replace("<manager>", &manager.public_key())
                .replace("<consumer>", &consumer.public_key())
                .replace("<operator>", &operator.public_key())
                .replace("<administrator>", &administrator.public_key())
        });
        Self {
            folder,
            server,
            manager,
            consumer,
            operator,
            administrator,
        }
    }

    /// How a user logs in.
    pub(crate) fn options(&self, user: &KeyPair, inbox: &str) -> ConnectOptions {
        let path = |name: &str| self.folder.path().join(name);
        ConnectOptions::new()
            .nkey(user.seed().expect("a seed"))
            .require_tls(true)
            .custom_inbox_prefix(inbox)
            .add_root_certificates(path("ca.pem"))
            .add_client_certificate(path("client.pem"), path("client.key"))
    }

    /// A file with a user's seed.
    pub(crate) fn seed(&self, name: &str, key: &KeyPair) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, key.seed().expect("a seed")).expect("writes");
        path.display().to_string()
    }

    /// A home of the manager, with further options inside of `<nats>`.
    pub(crate) fn home(&self, further: &str) -> Home {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        Home::new(&format!(
            "<server_url>nats://127.0.0.1:{}</server_url><node_name>mgr-a</node_name><nkey_file>{}</nkey_file>\
             <tls_ca>{}</tls_ca><tls_cert>{}</tls_cert><tls_key>{}</tls_key><encrypt_messages>yes</encrypt_messages>\
             <message_signing>yes</message_signing>{further}",
            self.server.port,
            self.seed("manager.nk", &self.manager),
            path("ca.pem"),
            path("client.pem"),
            path("client.key"),
        ))
    }

    /// Makes the streams, with the administrator's key.
    pub(crate) fn provision(&self, home: &Home) {
        let administrator = self.seed("administrator.nk", &self.administrator);
        let made = home.run(&["provision", "--share", "5", "--nkey", &administrator]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

#[test]
fn each_user_of_the_shipped_configuration_may_do_its_own_and_no_more() {
    let shipped = Shipped::start();
    let server = &shipped.server;
    let home = shipped.home("<kv bucket=\"agents\"/>");
    let own = home.run(&["provision", "--share", "5"]);
    assert!(
        !own.status.success(),
        "the manager's own credentials may not administer"
    );
    shipped.provision(&home);

    let _natsd = home.start();
    let mut producer = producer(&home);
    for place in 0..20 {
        producer.put(producer::change(place % 3, place / 3));
    }
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    assert!(home.facts()["trust"].contains("TLS required"));
    let report = crate::probe::ask(&home);
    assert_eq!(report.failed, None, "{report:?}");
    assert_eq!(home.facts()["name_is_ours"], "yes");
    assert!(
        report
            .tls
            .is_some_and(|tls| tls.starts_with("TLSv1.3, certificate SHA-256 "))
    );

    block_on(async {
        let admin = server
            .client_with(shipped.options(&shipped.administrator, "_INBOX"))
            .await;
        assert_eq!(Server::messages(&admin, "MUSTER_STATE").await.len(), 20);
        let manager = server
            .client_with(shipped.options(&shipped.manager, "_INBOX.natsd"))
            .await;
        let context = jetstream::new(manager);
        let deleted = context.delete_stream("MUSTER_STATE");
        assert!(!matches!(
            tokio::time::timeout(Duration::from_secs(1), deleted).await,
            Ok(Ok(_))
        ));

        let client = server
            .client_with(shipped.options(&shipped.consumer, "_INBOX.xdr"))
            .await;
        client
            .publish("wazuh.xdr.manager.keepalive.001", "{}".into())
            .await
            .expect("is queued");
        let context = jetstream::new(client);
        let stream: jetstream::stream::Stream<()> = context.get_stream_no_info("MUSTER_STATE").await.expect("a name");
        let pull: jetstream::consumer::PullConsumer = stream.get_consumer("xdr-status").await.expect("may look");
        let mut messages = pull.fetch().max_messages(20).messages().await.expect("may fetch");
        let mut count = 0;
        while let Some(message) = futures_util::StreamExt::next(&mut messages).await {
            message.expect("a message").ack().await.expect("may acknowledge");
            count += 1;
        }
        assert_eq!(count, 20);
        let stream: jetstream::stream::Stream<()> = context.get_stream_no_info("MUSTER_AUDIT").await.expect("a name");
        let pull: jetstream::consumer::PullConsumer = stream.get_consumer("xdr-keys").await.expect("may look");
        let mut messages = pull.fetch().max_messages(1).messages().await.expect("may fetch");
        let announced = futures_util::StreamExt::next(&mut messages)
            .await
            .expect("one")
            .expect("a message");
        assert_eq!(announced.subject.as_str(), "wazuh.xdr.manager.keys.mgr-a");
        announced.double_ack().await.expect("may acknowledge");
        let forged = Server::messages(&admin, "MUSTER_KEEPALIVE").await;
        assert!(
            forged.iter().all(|message| !message.subject.ends_with("keepalive.001")),
            "a keepalive was forged"
        );
    });
    wait_for("the bucket has the agents", || {
        block_on(async {
            let admin = server
                .client_with(shipped.options(&shipped.administrator, "_INBOX"))
                .await;
            let entries = Server::messages(&admin, "KV_agents").await;
            let disconnected = |id: &str| {
                let entry = entries.iter().rfind(|entry| entry.subject.ends_with(id));
                entry.and_then(|entry| serde_json::from_slice::<Value>(&entry.body).ok())
            };
            ["000", "001", "002"]
                .iter()
                .all(|id| disconnected(id).is_some_and(|entry| entry["agent_id"] == *id))
        })
    });
}

//! Requests over NATS, with the rights of the configuration that is shipped.

use std::{fs, time::Duration};

use async_nats::{Client, HeaderMap, Message};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::StreamExt;
use muster_natsd::{
    audit,
    keys::KeyFile,
    signature::{Preamble, public_key, verifies},
};
use muster_proto::command::{self, Reply, Request, Unsigned};
use muster_service::clock;
use nkeys::KeyPair;
use serde_json::{Map, Value};

use crate::{block_on, natsd::Home, permissions::Shipped, server::Server, wait_for};

/// Requests that an earlier process may have seen are refused for so long.
const GUARD: Duration = Duration::from_secs(6);

/// A manager with requests switched on, at a server with a shipped configuration, and who may ask it.
pub(crate) struct Desk {
    // The first to go.
    _natsd: crate::natsd::Natsd,
    pub(crate) shipped: Shipped,
    home: Home,
    pub(crate) reader: KeyPair,
    pub(crate) actor: KeyPair,
}

fn keys(reader: &KeyPair, actor: &KeyPair) -> String {
    format!(
        "<audit_logging>yes</audit_logging><control enabled=\"yes\"/>\
         <control_key id=\"reader\" roles=\"read\">{}</control_key>\
         <control_key id=\"actor\" roles=\"read,act\" rate=\"1/s burst 4\">{}</control_key>",
        reader.public_key(),
        actor.public_key()
    )
}

impl Desk {
    fn open() -> Self {
        Self::at(Shipped::start())
    }

    pub(crate) fn at(shipped: Shipped) -> Self {
        let (reader, actor) = (KeyPair::new_user(), KeyPair::new_user());
        let home = shipped.home(&keys(&reader, &actor));
        shipped.provision(&home);
        let natsd = home.start();
        wait_for("requests are heard", || {
            home.facts()
                .get("control")
                .is_some_and(|control| control == "listening")
        });
        let desk = Self {
            shipped,
            home,
            _natsd: natsd,
            reader,
            actor,
        };
        pass_guard();
        assert!(desk.home.status().is_some());
        desk
    }

    pub(crate) async fn operator(&self) -> Client {
        let options = self.shipped.options(&self.shipped.operator, "_INBOX.operator");
        self.shipped.server.client_with(options).await
    }

    /// The lines of the audit trail that tell of requests.
    fn trail(&self) -> Vec<Value> {
        let path = self.home.path("logs/natsd-audit.json");
        audit::check(&path).expect("an unbroken chain");
        let text = fs::read_to_string(path).expect("reads");
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines
            .filter(|line| line["act"].as_str().is_some_and(|act| act.starts_with("control")))
            .collect()
    }

    /// A reply that its manager has signed, to this nonce.
    fn read(&self, message: &Message) -> Reply {
        let headers = message.headers.as_ref().expect("headers");
        let header = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
        let preamble = Preamble::of(header).expect("complete");
        assert!(command::is_signed_for(preamble.subject, &message.subject));
        let own = KeyFile::read(&self.home.path("etc/nats/signing.nk"))
            .expect("reads")
            .public();
        assert_eq!(own, [preamble.key_id]);
        let key = public_key(preamble.key_id).expect("a key");
        let signature = header("Muster-Sig").expect("a signature");
        assert!(verifies(&key, &preamble.signed_bytes(&message.payload), signature));
        let body: Value = serde_json::from_slice(&message.payload).expect("JSON");
        serde_json::from_value(body["reply"].clone()).expect("a reply")
    }

    pub(crate) async fn ask(&self, client: &Client, subject: &str, headers: HeaderMap, body: Vec<u8>) -> Reply {
        let asked = client.request_with_headers(subject.to_owned(), headers, body.into());
        let message = tokio::time::timeout(Duration::from_secs(10), asked).await;
        self.read(&message.expect("in time").expect("a reply"))
    }
}

/// Waits until requests are younger than the daemon.
#[expect(clippy::disallowed_methods, reason = "only time makes them so")]
pub(crate) fn pass_guard() {
    std::thread::sleep(GUARD);
}

pub(crate) fn request(key: &KeyPair, subject: &str, nonce: &str, life: u64) -> (HeaderMap, Vec<u8>) {
    let now = clock::unix_ms();
    let request = Request {
        exp: now / 1000 + life,
        nonce: nonce.to_owned(),
        arguments: Map::new(),
    };
    let unsigned = Unsigned {
        subject: subject.to_owned(),
        message_id: nonce.to_owned(),
        time_ms: now,
        body: serde_json::to_vec(&request).expect("JSON"),
    };
    let sign = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(key.sign(bytes).expect("signs"));
    let mut headers = HeaderMap::new();
    for (name, value) in unsigned.sign(&key.public_key(), sign) {
        headers.insert(name, value);
    }
    (headers, unsigned.body)
}

#[test]
fn requests_are_obeyed_refused_signed_and_written_down() {
    let desk = Desk::open();
    let node = "wazuh.xdr.control.mgr-a.node.self.status";
    let restart = "wazuh.xdr.control.mgr-a.agent.001.restart";
    block_on(async {
        let client = desk.operator().await;

        let (headers, body) = request(&desk.reader, node, "nonce-of-the-status", 20);
        let reply = desk.ask(&client, node, headers.clone(), body.clone()).await;
        assert_eq!(
            (reply.nonce.as_str(), reply.node.as_str()),
            ("nonce-of-the-status", "mgr-a")
        );
        assert_eq!(serde_json::to_value(reply.outcome).expect("a word"), "done");
        let daemons = reply.data.expect("data")["daemons"].clone();
        let natsd = daemons
            .as_array()
            .expect("a list")
            .iter()
            .find(|daemon| daemon["daemon"] == "natsd");
        assert_eq!(natsd.expect("natsd")["state"], "running");

        let again = desk.ask(&client, node, headers, body).await;
        assert_eq!(again.reason.as_deref(), Some("replayed"));
        let unsigned = desk.ask(&client, restart, HeaderMap::new(), b"{}".to_vec()).await;
        assert_eq!(unsigned.reason.as_deref(), Some("unsigned"));
        let (headers, body) = request(&desk.reader, restart, "nonce-of-the-reader", 20);
        let reply = desk.ask(&client, restart, headers, body).await;
        assert_eq!(reply.reason.as_deref(), Some("role"));
        let (headers, body) = request(&KeyPair::new_user(), restart, "nonce-of-a-stranger", 20);
        let reply = desk.ask(&client, restart, headers, body).await;
        assert_eq!(reply.reason.as_deref(), Some("unknown_key"));
        let (headers, body) = request(&desk.actor, restart, "nonce-that-is-too-long", 60);
        let reply = desk.ask(&client, restart, headers, body).await;
        assert_eq!(reply.reason.as_deref(), Some("too_long_lived"));
        // Nobody else runs in this home.
        let (headers, body) = request(&desk.actor, restart, "nonce-of-the-actor", 20);
        let reply = desk.ask(&client, restart, headers, body).await;
        assert_eq!(reply.text, "remoted does not run");
        let any = "wazuh.xdr.control.any.node.self.status";
        let (headers, body) = request(&desk.reader, any, "nonce-for-any-of-us", 20);
        let reply = desk.ask(&client, any, headers, body).await;
        assert_eq!(reply.node, "mgr-a");
    });
    let trail: Vec<_> = desk
        .trail()
        .into_iter()
        .map(|line| {
            let of = |name: &str| line["detail"][name].as_str().unwrap_or("-").to_owned();
            format!(
                "{} {} {} {} {}",
                line["act"].as_str().expect("an act"),
                of("verb"),
                of("key"),
                of("outcome"),
                of("reason")
            )
        })
        .collect();
    assert_eq!(
        trail,
        [
            "control node.status reader done -",
            "control node.status reader refused replayed",
            "control agent.restart - refused unsigned",
            "control agent.restart reader refused role",
            "control agent.restart - refused unknown_key",
            "control agent.restart actor refused too_long_lived",
            "control_granted agent.restart actor - -",
            "control agent.restart actor failed -",
            "control node.status reader done -",
        ]
    );
    wait_for("the trail is in its stream too", || {
        let published = block_on(async {
            let options = desk.shipped.options(&desk.shipped.administrator, "_INBOX");
            let admin = desk.shipped.server.client_with(options).await;
            Server::messages(&admin, "MUSTER_AUDIT").await
        });
        let acts = published.iter().map(|message| {
            crate::json(message)["audit"]["act"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        });
        acts.filter(|act| act.starts_with("control")).count() == 9
    });
}

#[test]
fn rights_are_what_the_configuration_says_from_the_reload_on() {
    let desk = Desk::open();
    let node = "wazuh.xdr.control.mgr-a.node.self.status";
    block_on(async {
        let client = desk.operator().await;
        for place in 0..4 {
            let (headers, body) = request(&desk.actor, node, &format!("nonce-of-the-{place:04}"), 20);
            let reply = desk.ask(&client, node, headers, body).await;
            assert_eq!(reply.reason, None);
        }
        let mut refused = 0;
        for place in 4..10 {
            let (headers, body) = request(&desk.actor, node, &format!("nonce-of-the-{place:04}"), 20);
            let reply = desk.ask(&client, node, headers, body).await;
            refused += usize::from(reply.reason.as_deref() == Some("over_rate"));
        }
        assert!(refused >= 4, "{refused} of 6 beyond the rate were refused");
    });
    let config = fs::read_to_string(desk.home.path("etc/ossec.conf")).expect("reads");
    let without = config.replace(&desk.reader.public_key(), &KeyPair::new_user().public_key());
    fs::write(desk.home.path("etc/ossec.conf"), without).expect("writes");
    block_on(async {
        let mut control = desk.home.control().await.expect("answers");
        let reloaded = control.ask(&muster_proto::ipc::control::Request::Reload).await;
        let told = format!("{:?}", reloaded.expect("answers"));
        assert!(told.contains("2 control keys in force"), "{told}");
        let client = desk.operator().await;
        let (headers, body) = request(&desk.reader, node, "nonce-of-one-who-left", 20);
        let reply = desk.ask(&client, node, headers, body).await;
        assert_eq!(reply.reason.as_deref(), Some("unknown_key"));
    });
}

#[test]
fn a_right_to_publish_is_needed_as_well_as_a_key() {
    let desk = Desk::open();
    let restart = "wazuh.xdr.control.mgr-a.agent.001.restart";
    block_on(async {
        // The consumer may ask for a status and for nothing else, whatever it signs.
        let options = desk.shipped.options(&desk.shipped.consumer, "_INBOX.xdr");
        let consumer = desk.shipped.server.client_with(options).await;
        let (headers, body) = request(&desk.actor, restart, "nonce-of-the-consumer", 20);
        let asked = consumer.request_with_headers(restart, headers, body.into());
        let answered = tokio::time::timeout(Duration::from_secs(2), asked).await;
        assert!(!matches!(answered, Ok(Ok(_))), "the consumer has ordered a restart");
        let status = "wazuh.xdr.control.mgr-a.agent.001.status";
        let (headers, body) = request(&desk.reader, status, "nonce-of-the-consumer", 20);
        let reply = desk.ask(&consumer, status, headers, body).await;
        assert_eq!(reply.text, "remoted does not run");

        let operator = desk.operator().await;
        let found = operator
            .request("$SRV.PING.muster-natsd", "".into())
            .await
            .expect("is found");
        let found: Value = serde_json::from_slice(&found.payload).expect("JSON");
        assert_eq!(found["metadata"]["node"], "mgr-a");

        operator
            .publish("wazuh.xdr.agent.001.status_change", "{}".into())
            .await
            .expect("is queued");
        operator.flush().await.expect("flushes");
        // A reply to anything but an inbox would be a message in somebody else's name.
        let (headers, body) = request(&desk.reader, status, "nonce-of-the-forger", 20);
        operator
            .publish_with_reply_and_headers(status, "wazuh.xdr.agent.001.status_change", headers, body.into())
            .await
            .expect("is queued");
        operator.flush().await.expect("flushes");
    });
    wait_for("the forger is in the trail", || {
        desk.trail().iter().any(|line| line["detail"]["reason"] == "bad_inbox")
    });
    block_on(async {
        let options = desk.shipped.options(&desk.shipped.administrator, "_INBOX");
        let admin = desk.shipped.server.client_with(options).await;
        let forged = Server::messages(&admin, "MUSTER_STATE").await;
        assert!(forged.is_empty(), "{:?}", forged[0]);
    });
}

/// A manager of this name at a server that is open to everybody.
fn open_home(server: &Server, node: &str, reader: &KeyPair) -> Home {
    Home::new(&format!(
        "<server_url>{}</server_url><node_name>{node}</node_name><reconnect_delay>1</reconnect_delay>\
         <message_signing>yes</message_signing>{}",
        server.url(),
        keys(reader, &KeyPair::new_user())
    ))
}

fn wait_until_heard(home: &Home) {
    wait_for("requests are heard", || {
        home.facts()
            .get("control")
            .is_some_and(|control| control == "listening")
    });
}

/// What comes back of a request within a second.
async fn replies(client: &Client, key: &KeyPair, subject: &str, nonce: &str) -> Vec<String> {
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(inbox.clone()).await.expect("subscribes");
    let (headers, body) = request(key, subject, nonce, 20);
    let published = client.publish_with_reply_and_headers(subject.to_owned(), inbox, headers, body.into());
    published.await.expect("is queued");
    let mut outcomes = vec![];
    while let Ok(Some(reply)) = tokio::time::timeout(Duration::from_secs(1), replies.next()).await {
        let body: Value = serde_json::from_slice(&reply.payload).unwrap_or_default();
        outcomes.push(body["reply"]["outcome"].as_str().unwrap_or("no reply").to_owned());
    }
    outcomes
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "only time makes requests younger than the daemon"
)]
fn of_several_managers_one_answers_and_after_an_outage_too() {
    let mut server = Server::start();
    let reader = KeyPair::new_user();
    let homes = ["mgr-a", "mgr-b"].map(|node| open_home(&server, node, &reader));
    let _natsds = [homes[0].start(), homes[1].start()];
    homes.iter().for_each(wait_until_heard);
    std::thread::sleep(GUARD);
    block_on(async {
        let client = server.client().await;
        let any = "wazuh.xdr.control.any.node.self.status";
        assert_eq!(replies(&client, &reader, any, "nonce-for-any-of-them").await, ["done"]);
        let own = "wazuh.xdr.control.mgr-b.node.self.status";
        assert_eq!(replies(&client, &reader, own, "nonce-for-the-second").await, ["done"]);
        // Neither has the agent: neither is the one to say so.
        let nobodys = "wazuh.xdr.control.any.agent.001.status";
        assert_eq!(
            replies(&client, &reader, nobodys, "nonce-for-its-owner").await,
            [] as [&str; 0]
        );
    });
    server.restart();
    homes.iter().for_each(|home| {
        wait_for("the outage was noticed", || {
            home.log().contains("requests over NATS are not heard")
        });
        wait_until_heard(home);
    });
    block_on(async {
        let client = server.client().await;
        let any = "wazuh.xdr.control.any.node.self.status";
        assert_eq!(replies(&client, &reader, any, "nonce-after-the-outage").await, ["done"]);
    });
}

#[test]
fn a_missing_right_to_listen_is_told_of() {
    let manager = KeyPair::new_user();
    let server = Server::with_config(|store, port| {
        format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\n\
             authorization {{ users: [ {{ nkey: \"{}\", permissions: {{ subscribe: [\"_INBOX.natsd.>\"] }} }} ] }}\n",
            store.display(),
            manager.public_key()
        )
    });
    let home = open_home(&server, "mgr-a", &KeyPair::new_user());
    let seed = home.path("manager.nk");
    fs::write(&seed, manager.seed().expect("a seed")).expect("writes");
    let config = fs::read_to_string(home.path("etc/ossec.conf")).expect("reads");
    let nkey = format!("<nats><nkey_file>{}</nkey_file>", seed.display());
    fs::write(home.path("etc/ossec.conf"), config.replacen("<nats>", &nkey, 1)).expect("writes");
    let _natsd = home.start();
    wait_for("natsd says what it may not", || {
        let degraded = home.status().map(|status| status.degraded.join("\n"));
        degraded.is_some_and(|degraded| {
            degraded.contains("requests over NATS are not heard") && degraded.contains("Subscription")
        })
    });
    assert!(home.log().contains("service discovery will not find this manager"));
}

#[test]
fn a_stream_that_takes_requests_is_told_of() {
    let shipped = Shipped::start();
    let home = shipped.home(&keys(&KeyPair::new_user(), &KeyPair::new_user()));
    block_on(async {
        let options = shipped.options(&shipped.administrator, "_INBOX");
        let admin = shipped.server.client_with(options).await;
        let config = async_nats::jetstream::stream::Config {
            name: "EVERYTHING".to_owned(),
            subjects: vec!["wazuh.xdr.>".to_owned()],
            ..Default::default()
        };
        async_nats::jetstream::new(admin)
            .create_stream(config)
            .await
            .expect("creates");
    });
    let _natsd = home.start();
    wait_for("natsd says which stream answers in its place", || {
        home.status().is_some_and(|status| {
            status
                .degraded
                .join("\n")
                .contains("the stream EVERYTHING takes requests")
        })
    });
}

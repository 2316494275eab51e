//! The configuration and the messages of the article that the events come from, word for word: only the address of the
//! server and the place of the home differ.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use futures_util::StreamExt;
use muster_proto::{
    agent::{AgentId, AgentStatus, Reason},
    event::{
        Event,
        body::{Keepalive, KeepaliveType, StatusChange},
    },
};
use muster_service::clock;

use crate::{
    audit::acts, block_on, jwt::Site, natsd::Home, permissions::certificates, producer, server::Server, verifier,
    wait_for,
};

const CONFIGURATION: &str = "\
<ossec_config>
  <cluster>
    <node_name>wazuh-manager-01</node_name>
  </cluster>
  <nats>
    <enabled>yes</enabled>
    <server_url>nats://xdr-nats:4222</server_url>
    <credentials_file>/var/ossec/etc/nats.creds</credentials_file>
    <subject_prefix>wazuh.xdr</subject_prefix>
    <tls_cert>/var/ossec/etc/nats-client.crt</tls_cert>
    <tls_key>/var/ossec/etc/nats-client.key</tls_key>
    <max_reconnects>10</max_reconnects>
    <reconnect_delay>5</reconnect_delay>

    <!-- Security settings -->
    <encrypt_messages>yes</encrypt_messages>
    <message_signing>yes</message_signing>
    <audit_logging>yes</audit_logging>
  </nats>
</ossec_config>
";

/// A server of the operator mode that wants certificates of its clients.
fn server(site: &Site, folder: &Path) -> Server {
    Server::with_config(|store, port| {
        let path = |name: &str| folder.join(name).display().to_string();
        let tls = format!(
            "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true, timeout: 10 }}\n",
            path("server.pem"),
            path("server.key"),
            path("ca.pem")
        );
        format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\", max_file_store: 10GB }}\n{}{}",
            store.display(),
            tls,
            site.config()
        )
    })
}

fn home(site: &Site, folder: &Path, port: u16) -> Home {
    let mut home = Home::new("");
    let place = home.path("").display().to_string();
    let text = CONFIGURATION
        .replace("xdr-nats:4222", &format!("127.0.0.1:{port}"))
        .replace("/var/ossec/", &place);
    fs::write(home.path("etc/ossec.conf"), text).expect("writes");
    site.write_credentials(&home.path("etc/nats.creds"), 3600);
    let files = [
        ("client.pem", "nats-client.crt"),
        ("client.key", "nats-client.key"),
        ("ca.pem", "system.pem"),
    ];
    for (from, to) in files {
        fs::copy(folder.join(from), home.path("etc").join(to)).expect("copies");
    }
    home.trust(home.path("etc/system.pem"));
    home
}

fn events() -> [Event; 2] {
    let agent_id = &AgentId::new("001");
    // Events of the article's days would have waited too long.
    let now = clock::unix_ms();
    [
        Keepalive {
            agent_id,
            agent_name: "web-server-01",
            ip_address: "192.168.1.100",
            timestamp: 1_716_897_300,
            event_type: KeepaliveType::KeepaliveSent,
            manager_node: "wazuh-manager-01",
            interval: 60,
        }
        .into_event(now),
        StatusChange {
            agent_id,
            agent_name: "web-server-01",
            previous_status: AgentStatus::Active,
            current_status: AgentStatus::Disconnected,
            ip_address: "192.168.1.100",
            timestamp: 1_716_897_360,
            reason: Reason::KeepaliveTimeout,
            missed_keepalives: 3,
            alert_level: 8,
        }
        .into_event(now),
    ]
}

async fn put(home: &Home) {
    let mut producer = producer(home);
    events().into_iter().for_each(|event| producer.put(event));
    producer.hand_over_all().await;
}

#[test]
fn articles_configuration_publishes_the_articles_messages_signed_and_over_tls() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().expect("directory");
    certificates(folder.path());
    let site = Site::new();
    let server = server(&site, folder.path());
    let home = home(&site, folder.path(), server.port);
    let made = home.run(&["provision", "--share", "1"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let natsd = home.start();
    let heard = block_on(async {
        let options = async_nats::ConnectOptions::with_credentials_file(home.path("etc/nats.creds"))
            .await
            .expect("credentials")
            .require_tls(true)
            .add_root_certificates(folder.path().join("ca.pem"))
            .add_client_certificate(folder.path().join("client.pem"), folder.path().join("client.key"));
        let client = server.client_with(options).await;
        let subjects = [
            "wazuh.xdr.manager.keepalive.001",
            "wazuh.xdr.agent.001.status_change",
            "wazuh.xdr.alerts.agent_disconnected",
        ];
        let mut subscriptions = vec![];
        for subject in subjects {
            subscriptions.push(client.subscribe(subject).await.expect("subscribes"));
        }
        client.flush().await.expect("flushes");
        put(&home).await;
        let mut heard = vec![];
        for subscription in &mut subscriptions {
            let next = tokio::time::timeout(crate::PATIENCE, subscription.next()).await;
            heard.push(next.expect("comes in time").expect("is there"));
        }
        heard
    });
    natsd.stop();

    let text = |place: usize| String::from_utf8(heard[place].payload.to_vec()).expect("a text");
    let header = |place: usize, name: &str| {
        let headers = heard[place].headers.as_ref().expect("headers");
        headers.get(name).expect("the header").as_str().to_owned()
    };
    let keepalive: serde_json::Value = serde_json::from_str(&text(0)).expect("JSON");
    assert_eq!(
        text(0),
        format!(
            r#"{{"event":{{"agent_id":"001","agent_name":"web-server-01","ip_address":"192.168.1.100","timestamp":1716897300,"event_type":"keepalive_sent","manager_node":"wazuh-manager-01","interval":60}},"security":{{"source":"wazuh-manager","version":{},"sequence":{}}}}}"#,
            keepalive["security"]["version"],
            header(0, "Muster-Seq")
        )
    );
    let change = r#"{"status_change":{"agent_id":"001","agent_name":"web-server-01","previous_status":0,"current_status":1,"ip_address":"192.168.1.100","timestamp":1716897360,"reason":"keepalive_timeout","missed_keepalives":3,"alert_level":8}}"#;
    assert_eq!(text(1), change);
    assert_eq!(text(2), change, "from the level 8 up the same goes out as an alert");
    assert_eq!(header(2, "Muster-Copy-Of"), header(1, "Nats-Msg-Id"));

    let mut verifier = verifier(&home);
    for message in &heard {
        let headers = message.headers.as_ref().expect("headers");
        let headers = headers.iter().flat_map(|(name, values)| {
            let name = name.to_string();
            values.iter().map(move |value| (name.clone(), value.to_string()))
        });
        let message = muster_natsd::verify::Message {
            subject: message.subject.to_string(),
            headers: headers.collect(),
            body: message.payload.to_vec(),
            from_stream: true,
        };
        let verdict = verifier.check(&message, 0);
        assert!(verdict.passed.contains(&"signature"), "{verdict:?}");
    }
    let connected = acts(&home).into_iter().find(|line| line["act"] == "connected");
    assert!(connected.is_some(), "an audit trail is kept");
}

#[test]
fn articles_configuration_says_nothing_to_a_server_without_tls() {
    let folder = tempfile::tempdir().expect("directory");
    certificates(folder.path());
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let port = listener.local_addr().expect("an address").port();
    let home = home(&Site::new(), folder.path(), port);
    let info = r#"INFO {"server_id":"X","server_name":"x","version":"2.9.10","proto":1,"headers":true,"jetstream":true,"max_payload":1048576,"auth_required":true,"nonce":"abc"}"#;
    let heard = Arc::new(Mutex::new(vec![]));
    let all = Arc::clone(&heard);
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let mut said = vec![];
            // It may be gone already. Else it may well begin with TLS, which is not understood; in the end it goes.
            let _ = write!(connection, "{info}\r\n");
            let _ = connection.set_read_timeout(Some(crate::PATIENCE));
            let _ = connection.read_to_end(&mut said);
            all.lock().expect("no panic").extend(said);
        }
    });
    let natsd = home.start();
    block_on(put(&home));
    wait_for("the reason is told", || home.log().to_lowercase().contains("tls"));
    assert_ne!(home.facts()["waiting_events"], "0");
    natsd.stop();
    let said = String::from_utf8_lossy(&heard.lock().expect("no panic")).into_owned();
    for word in ["CONNECT", "PUB", "jwt", "web-server-01"] {
        assert!(!said.contains(word), "{said}");
    }
}

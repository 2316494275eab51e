//! What `provision` makes, as the server returns it, and what the daemon says when that is no longer so.

use serde_json::{Value, json};

use crate::{block_on, natsd::Home, permissions::Shipped, producer, provisioned, server::Server, wait_for};

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 24 * 3600 * SECOND;
const GIB: u64 = 1024 * 1024 * 1024;

async fn ask(client: &async_nats::Client, what: &str, request: Value) -> Value {
    let answer = client
        .request(format!("$JS.API.{what}"), request.to_string().into())
        .await;
    let answer: Value = serde_json::from_slice(&answer.expect("answers").payload).expect("JSON");
    assert_eq!(answer["error"], Value::Null, "{what}");
    answer["config"].clone()
}

/// Changes some settings of a stream, as an administrator would.
fn change(server: &Server, stream: &str, settings: &Value) {
    block_on(async {
        let client = server.client().await;
        let mut config = ask(&client, &format!("STREAM.INFO.{stream}"), json!({})).await;
        for (key, value) in settings.as_object().expect("settings") {
            config[key] = value.clone();
        }
        ask(&client, &format!("STREAM.UPDATE.{stream}"), config).await;
    });
}

fn acts(home: &Home, act: &str) -> usize {
    let trail = std::fs::read_to_string(home.path("logs/natsd-audit.json")).unwrap_or_default();
    trail
        .lines()
        .filter(|line| line.contains(&format!("\"act\":\"{act}\"")))
        .count()
}

fn degraded(home: &Home) -> String {
    home.status().expect("answers").degraded.join("\n")
}

#[test]
fn streams_are_on_the_server_as_the_table_says() {
    let server = Server::with_config(|store, port| {
        format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\", max_file_store: 300GB }}\n",
            store.display()
        )
    });
    let home = Home::new(&format!("<server_url>{}</server_url>", server.url()));
    let made = home.run(&["provision", "--with", "kv,consumers,archives"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // Name, subjects below the prefix, days, bytes, of each subject, discard, seconds of the window, kept for ever.
    let table = [
        (
            "KEEPALIVE",
            vec!["manager.keepalive.*", "manager.health.*"],
            1,
            GIB / 4,
            3,
            "old",
            120,
            false,
        ),
        (
            "STATE",
            vec![
                "agent.*.>",
                "alerts.agent_disconnected",
                "manager.enrollment.>",
                "manager.keypoll.>",
                "agentless.>",
            ],
            30,
            4 * GIB,
            -1,
            "old",
            600,
            false,
        ),
        ("ALERTS", vec!["alerts.rule.>"], 7, 50 * GIB, -1, "old", 600, false),
        ("OSQUERY", vec!["osquery.>"], 3, 20 * GIB, -1, "old", 120, false),
        ("ARCHIVES", vec!["archives.*"], 1, 50 * GIB, -1, "old", 120, false),
        (
            "AUDIT",
            vec!["manager.audit.>", "manager.spool.>", "manager.keys.>"],
            400,
            10 * GIB,
            -1,
            "new",
            600,
            true,
        ),
    ];
    block_on(async {
        let client = server.client().await;
        for (name, subjects, days, bytes, each, discard, window, kept) in table {
            let has = ask(&client, &format!("STREAM.INFO.MUSTER_{name}"), json!({})).await;
            let subjects: Vec<_> = subjects.iter().map(|subject| format!("wazuh.xdr.{subject}")).collect();
            let wanted = json!({
                "subjects": subjects, "max_age": days * DAY, "max_bytes": bytes, "max_msgs_per_subject": each,
                "discard": discard, "duplicate_window": window * SECOND, "deny_delete": kept, "deny_purge": kept,
                "storage": "file", "retention": "limits", "num_replicas": 1, "allow_direct": true, "max_msgs": -1,
            });
            for (key, value) in wanted.as_object().expect("settings") {
                assert_eq!(&has[key], value, "{name} {key}");
            }
        }
        for bucket in ["agents", "muster_nodes", "muster_keys", "agent_owner"] {
            let has = ask(&client, &format!("STREAM.INFO.KV_{bucket}"), json!({})).await;
            let wanted = json!({
                "subjects": [format!("$KV.{bucket}.>")], "max_msgs_per_subject": 5, "discard": "new", "storage": "file",
                "allow_rollup_hdrs": true, "deny_delete": true, "allow_direct": true, "duplicate_window": 120 * SECOND,
            });
            for (key, value) in wanted.as_object().expect("settings") {
                assert_eq!(&has[key], value, "{bucket} {key}");
            }
        }
        for (stream, consumer, filter) in [
            ("STATE", "xdr-status", "agent.*.status_change"),
            ("STATE", "xdr-disconnect", "alerts.agent_disconnected"),
            ("ALERTS", "siem-alerts-high", "alerts.rule.high.*"),
            ("ALERTS", "siem-alerts-critical", "alerts.rule.critical.*"),
            ("AUDIT", "audit-archive", "manager.audit.>"),
            ("AUDIT", "xdr-keys", "manager.keys.*"),
        ] {
            let has = ask(&client, &format!("CONSUMER.INFO.MUSTER_{stream}.{consumer}"), json!({})).await;
            let wanted = json!({
                "filter_subject": format!("wazuh.xdr.{filter}"), "ack_policy": "explicit", "max_deliver": 10,
                "max_ack_pending": 1000, "ack_wait": 30 * SECOND,
                "backoff": [30 * SECOND, 60 * SECOND, 120 * SECOND, 300 * SECOND],
            });
            for (key, value) in wanted.as_object().expect("settings") {
                assert_eq!(&has[key], value, "{consumer} {key}");
            }
        }
    });
}

#[test]
fn two_prefixes_share_the_streams_of_an_account_and_nothing_is_taken_from_either() {
    let server = Server::start();
    let first = provisioned(&server, "");
    let options = |bucket: &str| {
        format!(
            "<server_url>{}</server_url><subject_prefix>site.b</subject_prefix>{bucket}",
            server.url()
        )
    };
    let second = Home::new(&options(""));
    let refused = second.run(&["provision", "--share", "1", "--update"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(
        told.contains("xdr-status: filters for \"wazuh.xdr.agent.*.status_change\""),
        "{told}"
    );
    second.configure(&options("<kv bucket=\"agents_site_b\"/>"));
    for home in [&second, &first, &second] {
        let made = home.run(&["provision", "--share", "1", "--update"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    block_on(async {
        let client = server.client().await;
        let has = ask(&client, "STREAM.INFO.MUSTER_ALERTS", json!({})).await;
        let mut subjects: Vec<_> = has["subjects"].as_array().expect("subjects").iter().collect();
        subjects.sort_by_key(|subject| subject.as_str());
        assert_eq!(subjects, ["site.b.alerts.rule.>", "wazuh.xdr.alerts.rule.>"]);
        for (consumer, prefix) in [("xdr-status", "wazuh.xdr"), ("xdr-status_site_b", "site.b")] {
            let has = ask(&client, &format!("CONSUMER.INFO.MUSTER_STATE.{consumer}"), json!({})).await;
            assert_eq!(has["filter_subject"], format!("{prefix}.agent.*.status_change"));
        }
    });
    let _natsd = second.start();
    wait_for("the second compares the streams", || {
        second
            .facts()
            .get("streams")
            .is_some_and(|streams| streams == "8 as provisioned")
    });
    assert!(!degraded(&second).contains("not as provisioned"));
}

#[test]
fn changed_streams_are_told_once_and_what_an_operator_may_choose_is_not() {
    let mut server = Server::start();
    let home = provisioned(&server, "<audit_logging>yes</audit_logging>");
    change(
        &server,
        "MUSTER_STATE",
        &json!({"max_age": 3600 * SECOND, "max_bytes": 20_000_000}),
    );
    let natsd = home.start();
    wait_for("the streams are compared", || {
        home.facts()
            .get("streams")
            .is_some_and(|streams| streams == "8 as provisioned")
    });
    assert_eq!(degraded(&home), "");

    change(&server, "MUSTER_STATE", &json!({"duplicate_window": 60 * SECOND}));
    for connections in 2..4 {
        server.restart();
        wait_for("the drift is seen over another connection", || {
            let status = home.status().expect("answers");
            let connected = status
                .counters
                .iter()
                .any(|(name, count)| name == "nats_connections_total" && *count >= connections);
            let streams = status
                .facts
                .iter()
                .any(|(name, value)| name == "streams" && value == "7 as provisioned, 1 differ");
            connected && streams
        });
    }
    wait_for("status says what differs", || {
        degraded(&home).contains("MUSTER_STATE is not as provisioned: duplicate_window is 60 s, not 600 s")
    });
    wait_for("the drift is in the audit trail", || {
        acts(&home, "provisioning_drift") > 0
    });

    change(&server, "MUSTER_STATE", &json!({"duplicate_window": 600 * SECOND}));
    server.restart();
    wait_for("it is in the audit trail that it is mended", || {
        acts(&home, "provisioning_mended") == 1
    });
    assert_eq!(acts(&home, "provisioning_drift"), 1);
    natsd.stop();
}

/// A server with streams and one user who may publish events, and whatever else `allow` says.
fn narrow(allow: &str) -> Server {
    Server::with_config(|store, port| {
        format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\nauthorization {{ users: [\n\
             {{ user: admin, password: a }}\n\
             {{ user: natsd, password: n, permissions: {{\n\
             publish: [\"wazuh.xdr.>\"{allow}], subscribe: [\"_INBOX.natsd.>\"] }} }} ] }}\n",
            store.display()
        )
    })
}

fn narrow_home(server: &Server, options: &str, with: &str) -> Home {
    let options = |user: &str| {
        format!(
            "<server_url>{}</server_url><node_name>mgr-a</node_name><reconnect_delay>1</reconnect_delay>{user}{options}",
            server.url()
        )
    };
    let home = Home::new(&options("<user>admin</user><password>a</password>"));
    let made = home.run(&["provision", "--share", "1", "--with", with]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    home.configure(&options("<user>natsd</user><password>n</password>"));
    home
}

fn publish_one(home: &Home) {
    let mut producer = producer(home);
    producer.put(producer::change(1, 0));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
}

#[test]
fn without_the_right_to_compare_or_to_use_buckets_events_go_out_and_nothing_is_degraded() {
    let server = narrow("");
    let home = narrow_home(&server, "", "kv,consumers");
    let natsd = home.start();
    publish_one(&home);
    wait_for("it says that it could not compare", || {
        home.facts()
            .get("streams")
            .is_some_and(|streams| streams.contains("could not be compared"))
    });
    let streams = home.facts()["streams"].clone();
    assert!(
        streams.contains("needs the right to publish $JS.API.STREAM.INFO."),
        "{streams}"
    );
    assert_eq!(degraded(&home), "");
    assert_eq!(home.facts()["name_is_ours"], "nobody looks after it");
    assert!(!home.log().contains("$KV.agents"), "{}", home.log());
    natsd.stop();
}

#[test]
fn buckets_that_are_not_there_are_missed_only_by_who_has_asked_for_them() {
    let server = Server::start();
    for (options, missed) in [("", false), ("<kv/>", true), ("<kv enabled=\"no\"/>", false)] {
        let home = Home::new(&format!("<server_url>{}</server_url>{options}", server.url()));
        let made = home.run(&["provision", "--share", "1", "--with", "consumers"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let natsd = home.start();
        publish_one(&home);
        wait_for("the streams are compared", || {
            home.facts()
                .get("streams")
                .is_some_and(|streams| streams == "5 as provisioned")
        });
        let told = degraded(&home);
        assert_eq!(
            told.contains("no bucket agents; `muster-natsd provision` makes it"),
            missed,
            "{options}: {told}"
        );
        assert_eq!(told.is_empty(), !missed, "{options}: {told}");
        natsd.stop();
    }
}

#[test]
fn shipped_configuration_lets_the_manager_compare_all_that_it_writes() {
    let shipped = Shipped::start();
    let home = shipped.home("");
    shipped.provision(&home);
    let natsd = home.start();
    wait_for("all is compared", || {
        home.facts()
            .get("streams")
            .is_some_and(|streams| streams == "8 as provisioned")
    });
    wait_for("the name is ours without a word in the configuration", || {
        home.facts().get("name_is_ours").is_some_and(|ours| ours == "yes")
    });
    assert!(!home.log().contains("Permissions Violation"), "{}", home.log());
    natsd.stop();
}

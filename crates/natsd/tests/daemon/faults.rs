//! Servers that misbehave, refuse, forget, or change their mind: events wait, the log says once why, and all arrive.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    thread,
    time::SystemTime,
};

use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair as TlsKey, date_time_ymd};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    accepted, audit::acts, block_on, json as body, jwt::Site, natsd::Home, producer, provisioned, server::Server,
    state_and_audit, verifier, wait_for,
};

fn put(home: &Home, places: std::ops::Range<u32>) {
    let mut producer = producer::Producer::new(home.path("queue/muster/events"), &format!("producer-{}", places.start));
    for place in places {
        producer.put(producer::change(1, place));
    }
    block_on(producer.hand_over_all());
}

fn wait_until_degraded(home: &Home, why: &str) {
    wait_for(&format!("natsd says {why}"), || {
        home.status()
            .is_some_and(|status| status.degraded.join("\n").contains(why))
    });
}

/// Each of the changes 0.. once and in order.
fn check_places(server: &Server, count: u32) {
    let messages = block_on(async { Server::messages(&server.client().await, "MUSTER_STATE").await });
    let places = messages
        .iter()
        .map(|message| body(message)["status_change"]["missed_keepalives"].clone());
    assert_eq!(
        places.collect::<Vec<_>>(),
        (0..count).map(Value::from).collect::<Vec<_>>()
    );
}

fn told(home: &Home, what: &str) -> usize {
    home.log().matches(what).count()
}

#[test]
fn server_that_accepts_and_never_answers_is_left_for_the_next_one() {
    let mute = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = mute.local_addr().expect("address").port();
    let accepting = thread::spawn(move || {
        // The connections are held open.
        let held: Vec<_> = mute.incoming().take(2).collect();
        drop(held);
    });
    let server = Server::start();
    let home = provisioned(&server, "");
    home.configure(&format!(
        "<server_url>nats://127.0.0.1:{port}</server_url><server_url>{}</server_url><reconnect_delay>1</reconnect_delay>",
        server.url()
    ));
    let _natsd = home.start();
    put(&home, 0..3);
    home.wait_until_all_is_published();
    check_places(&server, 3);
    assert_eq!(told(&home, "cannot connect to NATS"), 1, "{}", home.log());
    drop(accepting);
}

#[test]
fn errors_that_a_server_repeats_are_told_once_and_events_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("address").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut writer = stream.try_clone().expect("clones");
            let _ = writer.write_all(b"INFO {\"server_id\":\"x\",\"server_name\":\"x\",\"version\":\"2.9.10\",\"go\":\"x\",\"host\":\"x\",\"port\":1,\"max_payload\":1048576,\"proto\":1,\"headers\":true,\"client_id\":1}\r\n");
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let answer = match line.split(' ').next() {
                        Some("PING") => "PONG\r\n",
                        Some("HPUB" | "PUB") => "-ERR 'Something Strange'\r\n",
                        _ => continue,
                    };
                    if writer.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let home = Home::new(&format!(
        "<server_url>nats://127.0.0.1:{port}</server_url><publish ack_timeout=\"1s\"/>"
    ));
    let _natsd = home.start();
    put(&home, 0..5);
    wait_for("the error is told", || told(&home, "NATS reports an error") > 0);
    put(&home, 5..10);
    wait_for("it was tried again", || {
        home.status().is_some_and(|status| {
            status
                .counters
                .iter()
                .any(|(name, value)| name == "events_retried_total" && *value > 5)
        })
    });
    assert!(told(&home, "NATS reports an error") <= 3, "{}", home.log());
    let waiting: u64 = home.facts()["waiting_events"].parse().expect("a number");
    assert!(waiting >= 10);
}

/// A certificate and its key as PEM, signed by a CA whose PEM comes first.
fn certificate(name: &str, expired: bool) -> [String; 3] {
    let mut ca = CertificateParams::new(vec![]).expect("parameters");
    // Another name each time, as other authorities have.
    let name_of_ca = format!("authority of {name} {expired} {:?}", SystemTime::now());
    ca.distinguished_name.push(rcgen::DnType::CommonName, name_of_ca);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = TlsKey::generate().expect("a key");
    let ca_pem = ca.self_signed(&ca_key).expect("signs").pem();
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    if expired {
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    }
    let key = TlsKey::generate().expect("a key");
    let signed = params.signed_by(&key, &Issuer::new(ca, ca_key)).expect("signs");
    [ca_pem, signed.pem(), key.serialize_pem()]
}

#[test]
fn certificates_that_are_wrong_are_named_and_events_wait_for_the_right_one() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().expect("directory");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let install = |[ca, certificate, key]: [String; 3]| {
        for (name, text) in [("ca.pem", ca), ("server.pem", certificate), ("server.key", key)] {
            fs::write(at(name), text).expect("writes");
        }
    };
    install(certificate("127.0.0.1", false));
    let mut server = Server::with_config(|store, port| {
        format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\ntls {{ cert_file: \"{}\", key_file: \"{}\" }}\n",
            store.display(),
            at("server.pem"),
            at("server.key")
        )
    });
    let home = provisioned(
        &server,
        &format!(
            "<encrypt_messages>yes</encrypt_messages><tls_ca>{}</tls_ca><audit_logging>yes</audit_logging>",
            at("ca.pem")
        ),
    );
    let natsd = home.start();
    put(&home, 0..1);
    home.wait_until_all_is_published();
    let good = ["ca.pem", "server.pem", "server.key"].map(|name| fs::read_to_string(at(name)).expect("reads"));

    let other_ca = {
        let [_, certificate, key] = certificate("127.0.0.1", false);
        [good[0].clone(), certificate, key]
    };
    let wrongs = [
        (other_ca, "UnknownIssuer"),
        (certificate("nats.example.org", false), "nats.example.org"),
        (certificate("127.0.0.1", true), "xpired"),
    ];
    for ((wrong, why), place) in wrongs.into_iter().zip(1..) {
        install(wrong);
        server.restart();
        put(&home, place..place + 1);
        wait_until_degraded(&home, why);
    }
    install(good);
    server.restart();
    home.wait_until_all_is_published();
    let changed = |home: &Home| {
        let acts = acts(home);
        acts.iter().filter(|line| line["act"] == "certificate_changed").count()
    };
    assert_eq!(changed(&home), 0, "the good one is the one from before");
    let new = certificate("127.0.0.1", false);
    let new_der = CertificateDer::from_pem_slice(new[1].as_bytes()).expect("reads");
    let new_print: String = Sha256::digest(&new_der)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    install(new);
    server.restart();
    wait_for("another certificate is an act", || changed(&home) == 1);
    home.wait_until_all_is_published();
    let connected = acts(&home).into_iter().rfind(|line| line["act"] == "connected");
    assert_eq!(
        connected.expect("an act")["detail"]["certificate_sha256"],
        Value::from(new_print)
    );
    natsd.stop();
    let state = block_on(async {
        let options = async_nats::ConnectOptions::new()
            .require_tls(true)
            .add_root_certificates(at("ca.pem").into());
        Server::messages(&server.client_with(options).await, "MUSTER_STATE").await
    });
    assert_eq!(state.len(), 4);
}

#[test]
fn expired_credentials_are_told_and_new_ones_in_the_file_go_on_without_a_restart() {
    let site = Site::new();
    let server = Server::with_config(|store, port| {
        format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\", max_file_store: 10GB }}\n{}",
            store.display(),
            site.config()
        )
    });
    let folder = tempfile::tempdir().expect("directory");
    let file = folder.path().join("nats.creds");
    site.write_credentials(&file, 600);
    let home = provisioned(
        &server,
        &format!("<credentials_file>{}</credentials_file>", file.display()),
    );
    site.write_credentials(&file, 5);
    let natsd = home.start();
    put(&home, 0..3);
    home.wait_until_all_is_published();
    wait_for("the token expires", || home.log().contains("xpired"));
    wait_for("the server lets nobody in", || home.facts()["nats"] != "connected");
    put(&home, 3..6);
    wait_until_degraded(&home, "uthor");
    assert!(told(&home, "cannot connect to NATS") <= 2, "{}", home.log());
    site.write_credentials(&file, 600);
    home.wait_until_all_is_published();
    natsd.stop();
    let state = block_on(async {
        let options = async_nats::ConnectOptions::with_credentials_file(&file)
            .await
            .expect("reads");
        Server::messages(&server.client_with(options).await, "MUSTER_STATE").await
    });
    assert_eq!(state.len(), 6);
}

fn with_rights(server: &Server, denied: &str) {
    let path = server.directory.path().join("server.conf");
    let text = fs::read_to_string(&path).expect("reads");
    let kept: String = text
        .lines()
        .filter(|line| !line.starts_with("authorization"))
        .map(|line| format!("{line}\n"))
        .collect();
    let rights = format!(
        "authorization {{ users: [ {{ user: a, password: b, permissions: {{ publish: {{ allow: \">\", deny: \"{denied}\" }}, subscribe: \">\" }} }} ] }}\n"
    );
    fs::write(path, kept + &rights).expect("writes");
    server.signal(Signal::SIGHUP);
}

#[test]
fn right_that_is_taken_and_given_back_delays_its_family_only() {
    let server = Server::with_config(|store, port| {
        format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\n\
             authorization {{ users: [ {{ user: a, password: b }} ] }}\n",
            store.display()
        )
    });
    let home = provisioned(
        &server,
        "<user>a</user><password>b</password><message_signing>yes</message_signing>",
    );
    let _natsd = home.start();
    put(&home, 0..3);
    home.wait_until_all_is_published();
    with_rights(&server, "wazuh.xdr.agent.>");
    wait_for("the server has read it", || server.log().contains("Reloaded"));
    let mut fleet = producer::Producer::new(home.path("queue/muster/events"), "fleet");
    (100..150).for_each(|agent| fleet.put(producer::change(agent, 0)));
    block_on(fleet.hand_over_all());
    put(&home, 3..6);
    wait_until_degraded(&home, "MUSTER_STATE");
    let mut keepalives = producer::Producer::new(home.path("queue/muster/events"), "keepalives");
    keepalives.put(producer::keepalive(7));
    block_on(keepalives.hand_over_all());
    let options = || async_nats::ConnectOptions::new().user_and_password("a".to_owned(), "b".to_owned());
    wait_for("other families go on", || {
        let messages =
            block_on(async { Server::messages(&server.client_with(options()).await, "MUSTER_KEEPALIVE").await });
        messages
            .iter()
            .any(|message| message.subject.ends_with("keepalive.007"))
    });
    // For some subjects, and not for each of fifty agents again and again.
    assert!(told(&home, "NATS reports an error") <= 22, "{}", home.log());
    with_rights(&server, "nothing.at.all");
    home.wait_until_all_is_published();
    let mut verifier = verifier(&home);
    let messages = block_on(async { Server::messages(&server.client_with(options()).await, "MUSTER_STATE").await });
    assert_eq!(accepted(&mut verifier, &messages).len(), 56);
    wait_for("nothing is degraded", || {
        home.status().is_some_and(|status| status.degraded.is_empty())
    });
}

#[test]
fn server_that_comes_back_without_jetstream_makes_events_wait() {
    let mut server = Server::start();
    let home = provisioned(&server, "");
    let _natsd = home.start();
    put(&home, 0..3);
    home.wait_until_all_is_published();
    let path = server.directory.path().join("server.conf");
    let whole = fs::read_to_string(&path).expect("reads");
    let without: String = whole
        .lines()
        .filter(|line| !line.starts_with("jetstream"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&path, without).expect("writes");
    server.restart();
    put(&home, 3..6);
    wait_until_degraded(&home, "no stream that takes");
    fs::write(&path, whole).expect("writes");
    server.restart();
    home.wait_until_all_is_published();
    check_places(&server, 6);
}

#[test]
fn stream_that_was_put_back_to_an_earlier_state_gets_what_it_lost_again() {
    let mut server = Server::start();
    // The claim to the name is put back, too, and would count as another manager's for half a minute.
    let home = provisioned(
        &server,
        "<message_signing>yes</message_signing><audit_logging>yes</audit_logging><kv enabled=\"no\"/>",
    );
    let _natsd = home.start();
    put(&home, 0..10);
    home.wait_until_all_is_published();
    server.kill();
    let (store, backup) = (
        server.directory.path().join("store"),
        server.directory.path().join("backup"),
    );
    let copy = |from: &Path, to: &Path| {
        let done = std::process::Command::new("cp").arg("-a").args([from, to]).status();
        assert!(done.expect("runs").success());
    };
    copy(&store, &backup);
    server.restart();
    put(&home, 10..50);
    home.wait_until_all_is_published();
    server.kill();
    fs::remove_dir_all(&store).expect("removes");
    copy(&backup, &store);
    server.restart();
    put(&home, 50..60);
    wait_for("what was lost came again", || {
        let messages = block_on(async { Server::messages(&server.client().await, "MUSTER_STATE").await });
        messages.len() >= 60
    });
    home.wait_until_all_is_published();
    check_places(&server, 60);
    let mut verifier = verifier(&home);
    let (state, audit) = state_and_audit(&server);
    accepted(&mut verifier, &audit);
    assert_eq!(accepted(&mut verifier, &state).len(), 60);
    assert!(verifier.undeclared().is_empty());
    assert!(
        audit
            .iter()
            .any(|message| body(message)["audit"]["act"] == "broker_lost_events"),
        "the audit trail tells"
    );
    assert!(told(&home, "the broker has lost events that it had acknowledged") >= 1);
}

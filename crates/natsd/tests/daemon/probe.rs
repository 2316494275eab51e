//! `nats test`, as the control program asks for it.

use std::{fs, time::Duration};

use muster_proto::ipc::control::{NatsReport, Request, Response};
use muster_service::client::Client;

use crate::{block_on, natsd::Home, provisioned, server::Server, wait_for};

/// What a test of the way to the broker gives.
pub(crate) fn ask(home: &Home) -> NatsReport {
    block_on(async {
        let path = home.path("queue/muster/natsd.ctl");
        let mut client = Client::connect(&path, "test", Duration::from_secs(60))
            .await
            .expect("connects");
        let answer = client.ask(&Request::NatsTest).await.expect("answers");
        let Response::NatsTest(report) = answer else {
            unreachable!("{answer:?}")
        };
        *report
    })
}

fn legs(report: &NatsReport) -> Vec<&str> {
    report.legs.iter().map(|leg| leg.leg.as_str()).collect()
}

fn failed(report: &NatsReport) -> (&str, &str) {
    let fault = report.failed.as_ref().expect("fails");
    (&fault.leg, &fault.cure)
}

#[test]
fn probe_goes_to_the_stream_and_comes_back_signed() {
    let server = Server::start();
    let home = provisioned(&server, "<message_signing>yes</message_signing>");
    let _natsd = home.start();
    for _ in 0..2 {
        let report = ask(&home);
        assert_eq!(report.failed, None, "{report:?}");
        assert_eq!(
            legs(&report),
            ["connect", "log_in", "spool", "acknowledge", "read_back", "verify"]
        );
        assert!(report.jetstream && report.max_payload == 1_048_576, "{report:?}");
        assert!(report.version.starts_with("2."), "{report:?}");
    }
    let home = provisioned(&server, "<node_name>mgr-b</node_name>");
    let _natsd = home.start();
    let report = ask(&home);
    assert_eq!(
        legs(&report),
        ["connect", "log_in", "spool", "acknowledge", "read_back"]
    );
}

#[test]
fn server_without_streams_or_jetstream_is_told_with_its_cure() {
    let server = Server::start();
    let home = Home::new(&format!("<server_url>{}</server_url>", server.url()));
    let _natsd = home.start();
    wait_for("it is connected", || {
        home.facts().get("nats").is_some_and(|link| link == "connected")
    });
    let report = ask(&home);
    assert_eq!(failed(&report).0, "acknowledge");
    assert!(failed(&report).1.contains("muster-natsd provision"), "{report:?}");

    let plain = Server::with_config(|_, port| format!("listen: \"127.0.0.1:{port}\"\n"));
    let home = Home::new(&format!("<server_url>{}</server_url>", plain.url()));
    let _natsd = home.start();
    let report = ask(&home);
    assert_eq!(failed(&report).0, "log_in");
    assert!(
        !report.jetstream && failed(&report).1.contains("jetstream"),
        "{report:?}"
    );
}

#[test]
fn server_that_is_away_and_one_that_is_none_fail_at_the_first_step() {
    let mut server = Server::start();
    let home = provisioned(&server, "");
    let _natsd = home.start();
    server.kill();
    let report = ask(&home);
    assert_eq!(failed(&report).0, "connect");
    assert!(failed(&report).1.contains("start nats-server"), "{report:?}");

    let listener = std::net::TcpListener::bind(("127.0.0.1", server.port)).expect("binds");
    let answers = std::thread::spawn(move || {
        for stream in listener.incoming().take(30).flatten() {
            use std::io::Write;
            let mut stream = stream;
            let _ = stream.write_all(b"220 mail.example.org ESMTP\r\n");
        }
    });
    let report = ask(&home);
    assert!(
        report
            .failed
            .as_ref()
            .is_some_and(|fault| fault.why.contains("no NATS server")),
        "{report:?}"
    );
    drop(answers);
}

#[test]
fn wrong_credentials_and_untrusted_certificates_are_blamed_on_their_step() {
    let server = Server::with_config(|store, port| {
        format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\nauthorization {{ user: a, password: b }}\n",
            store.display()
        )
    });
    let home = Home::new(&format!(
        "<server_url>{}</server_url><user>a</user><password>c</password>",
        server.url()
    ));
    let _natsd = home.start();
    let report = ask(&home);
    assert_eq!(failed(&report).0, "log_in", "{report:?}");
    assert!(failed(&report).1.contains("<credentials_file>"), "{report:?}");
    let home = Home::new(&format!(
        "<server_url>{}</server_url><encrypt_messages>yes</encrypt_messages>",
        server.url()
    ));
    let _natsd = home.start();
    let report = ask(&home);
    assert_eq!(failed(&report).0, "tls", "{report:?}");
    assert!(!fs::exists(home.path("etc/nats")).expect("looks"));
}

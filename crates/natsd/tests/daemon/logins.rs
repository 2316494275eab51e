//! Tokens, and names with passwords, against a server that asks for them.

use std::fs;

use async_nats::ConnectOptions;
use nix::sys::signal::Signal;

use crate::{block_on, natsd::Home, producer, server::Server, wait_for};

/// A server that lets in who knows this.
fn server_asking(authorization: &str) -> Server {
    Server::with_config(|store, port| {
        format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\nauthorization {{ {authorization} }}\n",
            store.display()
        )
    })
}

fn configure(server: &Server, login: &str) -> String {
    format!(
        "<server_url>{}</server_url><node_name>mgr-a</node_name><reconnect_delay>1</reconnect_delay>{login}",
        server.url()
    )
}

/// With the right login events arrive; with the wrong one they wait, and it is said why, without the secret.
fn is_asked_for(authorization: &str, right: &str, wrong: &str, options: fn() -> ConnectOptions) {
    let server = server_asking(authorization);
    let home = Home::new(&configure(&server, right));
    let made = home.run(&["provision", "--share", "1"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    home.configure(&configure(&server, wrong));
    let natsd = home.start();
    let mut producer = producer(&home);
    (0..3).for_each(|place| producer.put(producer::change(1, place)));
    block_on(producer.hand_over_all());
    wait_for("it is said that nobody lets us in", || {
        let degraded = home.status().map(|status| status.degraded.join("\n"));
        degraded.is_some_and(|degraded| degraded.to_lowercase().contains("authorization"))
    });
    assert_ne!(home.facts()["waiting_events"], "0");
    natsd.stop();
    home.configure(&configure(&server, right));
    let natsd = home.start();
    home.wait_until_all_is_published();
    let stored = block_on(async { Server::messages(&server.client_with(options()).await, "MUSTER_STATE").await });
    assert_eq!(stored.len(), 3);
    natsd.stop();
    for secret in ["s3cr3t-of-muster", "s3cr3t-of-somebody"] {
        assert!(!home.log().contains(secret), "{}", home.log());
    }
}

#[test]
fn token_lets_in_and_a_wrong_one_makes_events_wait() {
    is_asked_for(
        "token: \"s3cr3t-of-muster\"",
        "<token>s3cr3t-of-muster</token>",
        "<token>s3cr3t-of-somebody</token>",
        || ConnectOptions::with_token("s3cr3t-of-muster".to_owned()),
    );
}

#[test]
fn user_and_password_let_in_and_a_wrong_password_makes_events_wait() {
    is_asked_for(
        "user: muster, password: \"s3cr3t-of-muster\"",
        "<user>muster</user><password>s3cr3t-of-muster</password>",
        "<user>muster</user><password>s3cr3t-of-somebody</password>",
        || ConnectOptions::with_user_and_password("muster".to_owned(), "s3cr3t-of-muster".to_owned()),
    );
}

#[test]
fn password_that_the_server_takes_back_and_gives_again_loses_nothing() {
    let server = server_asking("user: muster, password: right");
    let home = Home::new(&configure(&server, "<user>muster</user><password>right</password>"));
    let made = home.run(&["provision", "--share", "1"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let _natsd = home.start();
    let mut producer = producer(&home);
    let path = server.directory.path().join("server.conf");
    let text = fs::read_to_string(&path).expect("reads");
    producer.put(producer::change(1, 0));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    fs::write(&path, text.replace("password: right", "password: other")).expect("writes");
    server.signal(Signal::SIGHUP);
    wait_for("natsd is out", || home.facts()["nats"] != "connected");
    producer.put(producer::change(1, 1));
    block_on(producer.hand_over_all());
    wait_for("it is said why", || {
        let degraded = home.status().map(|status| status.degraded.join("\n"));
        degraded.is_some_and(|degraded| degraded.to_lowercase().contains("authorization"))
    });
    fs::write(&path, text).expect("writes");
    server.signal(Signal::SIGHUP);
    home.wait_until_all_is_published();
    let stored = block_on(async {
        let options = ConnectOptions::with_user_and_password("muster".to_owned(), "right".to_owned());
        Server::messages(&server.client_with(options).await, "MUSTER_STATE").await
    });
    assert_eq!(stored.len(), 2);
}

//! Two managers of one name.

use std::fs;

use crate::{
    accepted, block_on,
    natsd::Home,
    producer::{self, Producer},
    provisioned,
    server::Server,
    verifier, wait_for,
};

const OPTIONS: &str = "<message_signing>yes</message_signing><kv bucket=\"agents\"/>";

fn put(home: &Home, place: u32) {
    let mut producer = Producer::new(home.path("queue/muster/events"), "remoted");
    producer.put(producer::change(1, place));
    block_on(producer.hand_over_all());
}

fn is_ours(home: &Home) -> bool {
    home.facts().get("name_is_ours").is_some_and(|ours| ours == "yes")
}

#[test]
fn second_manager_of_a_name_publishes_nothing_until_the_first_lets_go() {
    let server = Server::start();
    let (first, second) = (provisioned(&server, OPTIONS), provisioned(&server, OPTIONS));
    let natsd = first.start();
    wait_for("the name is taken", || is_ours(&first));
    put(&first, 0);
    first.wait_until_all_is_published();
    let _other = second.start();
    wait_for("the second one says so", || {
        second.status().is_some_and(|status| {
            status
                .degraded
                .join("\n")
                .contains("another manager publishes as mgr-a")
        })
    });
    let fault = crate::probe::ask(&second).failed.expect("fails");
    assert!(
        fault.leg == "acknowledge" && fault.cure.contains("<node_name>"),
        "{fault:?}"
    );
    put(&second, 7);
    assert_ne!(second.facts()["waiting_events"], "0");
    let stored = || block_on(async { Server::messages(&server.client().await, "MUSTER_STATE").await });
    assert_eq!(stored().len(), 1);
    accepted(&mut verifier(&first), &stored());
    wait_for("the broker's clock is the same", || {
        first.facts().get("broker_skew_ms").is_some_and(|skew| skew == "0")
    });
    natsd.stop();
    // It has let go: no deadline is waited for.
    second.wait_until_all_is_published();
    assert!(is_ours(&second));
    assert_eq!(stored().len(), 2);
}

#[test]
fn restarted_manager_takes_its_own_name_at_once_and_a_clone_does_not() {
    let server = Server::start();
    let home = provisioned(&server, OPTIONS);
    let natsd = home.start();
    wait_for("the name is taken", || is_ours(&home));
    natsd.kill();
    let clone = provisioned(&server, OPTIONS);
    let state = |home: &Home| home.path("queue/nats/node.state");
    fs::create_dir_all(clone.path("queue/nats")).expect("makes it");
    fs::copy(state(&home), state(&clone)).expect("copies");
    let _natsd = home.start();
    put(&home, 0);
    home.wait_until_all_is_published();
    assert!(is_ours(&home));
    let _clone = clone.start();
    wait_for("the clone says so", || {
        clone
            .status()
            .is_some_and(|status| status.degraded.join("\n").contains("another manager"))
    });
    assert!(is_ours(&home));
}

#[test]
fn bucket_of_keys_has_each_key_with_its_announcements_own_signature() {
    let server = Server::start();
    let home = provisioned(&server, OPTIONS);
    let _natsd = home.start();
    let kid = muster_natsd::keys::KeyFile::read(&home.path("etc/nats/signing.nk"))
        .expect("reads")
        .public()
        .remove(0);
    let entries = || block_on(async { Server::messages(&server.client().await, "KV_muster_keys").await });
    wait_for("the key is there", || !entries().is_empty());
    let mut entry = entries().remove(0);
    assert_eq!(entry.subject, format!("$KV.muster_keys.mgr-a.{kid}"));
    entry.subject = entry.header("Muster-Subject").expect("a subject").to_owned();
    let believed = accepted(&mut verifier(&home), std::slice::from_ref(&entry)).len();
    assert_eq!(believed, 1);
    assert_eq!(crate::json(&entry)["key"]["kid"], kid);
}

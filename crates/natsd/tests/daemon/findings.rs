//! In OCSF the return of an agent closes the finding that its absence has opened.

use muster_natsd::verify::Message;
use serde_json::Value;

use crate::{accepted, block_on, json, natsd::Home, producer, provisioned, server::Server, verifier};

fn stored(server: &Server, stream: &str) -> Vec<Message> {
    block_on(async { Server::messages(&server.client().await, stream).await })
}

/// What `alerts.agent_disconnected` has, in order.
fn findings(server: &Server, home: &Home) -> Vec<Value> {
    let mut verifier = verifier(home);
    // Keys and epochs are announced there.
    accepted(&mut verifier, &stored(server, "MUSTER_AUDIT"));
    accepted(&mut verifier, &stored(server, "MUSTER_STATE"))
        .into_iter()
        .filter(|message| message.subject == "wazuh.xdr.alerts.agent_disconnected")
        .map(json)
        .collect()
}

fn told(findings: &[Value]) -> Vec<(u64, u64)> {
    let number = |body: &Value, name: &str| body[name].as_u64().expect("a number");
    findings
        .iter()
        .map(|body| (number(body, "class_uid"), number(body, "activity_id")))
        .collect()
}

#[test]
fn finding_of_a_lost_agent_is_closed_by_its_return() {
    let server = Server::start();
    let home = provisioned(&server, "<message_signing>yes</message_signing><format>ocsf</format>");
    let _natsd = home.start();
    let mut producer = producer(&home);
    // Away with an alert, back, away without one, back.
    for (place, level) in [(0, 8), (1, 3), (2, 3), (3, 3)] {
        producer.put(producer::change_of_level(1, place, level));
    }
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    let findings = findings(&server, &home);
    assert_eq!(told(&findings), [(2004, 1), (2004, 3)]);
    assert_eq!(findings[0]["finding_info"]["uid"], findings[1]["finding_info"]["uid"]);
}

#[test]
fn finding_is_closed_by_a_natsd_that_did_not_open_it() {
    let server = Server::start();
    let home = provisioned(&server, "<message_signing>yes</message_signing><format>ocsf</format>");
    let natsd = home.start();
    let mut producer = producer(&home);
    producer.put(producer::change_of_level(1, 0, 8));
    block_on(producer.hand_over_all());
    natsd.kill();
    let _natsd = home.start();
    for (place, level) in [(1, 3), (2, 8)] {
        producer.put(producer::change_of_level(1, place, level));
    }
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    let findings = findings(&server, &home);
    assert_eq!(told(&findings), [(2004, 1), (2004, 3), (2004, 1)]);
    let uid = |place: usize| &findings[place]["finding_info"]["uid"];
    assert_eq!(uid(0), uid(1));
    assert_ne!(uid(1), uid(2), "another absence is another finding");
}

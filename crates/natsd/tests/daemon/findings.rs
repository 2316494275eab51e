//! In OCSF the return of an agent closes the finding that its absence has opened.

use crate::{accepted, block_on, json, producer, provisioned, server::Server, verifier};

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
    let state = block_on(async { Server::messages(&server.client().await, "MUSTER_STATE").await });
    let findings: Vec<_> = accepted(&mut verifier(&home), &state)
        .into_iter()
        .filter(|message| message.subject == "wazuh.xdr.alerts.agent_disconnected")
        .map(json)
        .collect();
    let told: Vec<_> = findings
        .iter()
        .map(|body| (&body["class_uid"], &body["activity_id"]))
        .collect();
    assert_eq!(told, [(&2004.into(), &1.into()), (&2004.into(), &3.into())]);
    assert_eq!(findings[0]["finding_info"]["uid"], findings[1]["finding_info"]["uid"]);
}

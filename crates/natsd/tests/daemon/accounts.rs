//! The shipped configuration with accounts: what of a manager can be reached from another account, and what not.

use std::time::Duration;

use async_nats::{Client, HeaderMap, RequestErrorKind, jetstream};
use futures_util::StreamExt;
use nkeys::KeyPair;

use crate::{
    block_on,
    permissions::Shipped,
    requests::{Desk, request},
};

/// What the broker says to a request of another account.
async fn refused_by_broker(client: &Client, key: &KeyPair, subject: &str) -> bool {
    let (headers, body): (HeaderMap, Vec<u8>) = request(key, subject, "nonce-behind-the-wall", 20);
    let asked = client.request_with_headers(subject.to_owned(), headers, body.into());
    let answered = tokio::time::timeout(Duration::from_secs(10), asked).await;
    let error = answered.expect("in time").expect_err("somebody answered");
    error.kind() == RequestErrorKind::NoResponders
}

#[test]
fn other_accounts_read_and_only_the_one_that_may_gives_orders() {
    let desk = Desk::at(Shipped::with("nats-server-accounts.conf"));
    let status = "wazuh.xdr.control.mgr-a.agent.001.status";
    let restart = "wazuh.xdr.control.mgr-a.agent.001.restart";
    block_on(async {
        let options = desk.shipped.options(&desk.shipped.consumer, "_INBOX.xdr");
        let consumer = desk.shipped.server.client_with(options).await;
        let operator = desk.operator().await;
        // Nobody but natsd runs in this home. The replies are checked for its signature.
        for (client, subject, key, nonce) in [
            (&consumer, status, &desk.reader, "nonce-of-the-consumer"),
            (&operator, status, &desk.reader, "nonce-of-the-operator"),
            (&operator, restart, &desk.actor, "nonce-of-the-order"),
        ] {
            let (headers, body) = request(key, subject, nonce, 20);
            let reply = desk.ask(client, subject, headers, body).await;
            assert_eq!(
                (reply.nonce.as_str(), reply.text.as_str()),
                (nonce, "remoted does not run")
            );
        }
        // The right key does not help who may not get through, nor the other way round.
        assert!(refused_by_broker(&consumer, &desk.actor, restart).await);
        let remove = "wazuh.xdr.control.mgr-a.agent.001.remove";
        assert!(refused_by_broker(&operator, &desk.actor, remove).await);
        let (headers, body) = request(&desk.reader, restart, "nonce-without-the-role", 20);
        let reply = desk.ask(&operator, restart, headers, body).await;
        assert_eq!(reply.reason.as_deref(), Some("role"));
    });
}

#[test]
fn events_are_taken_from_another_account_and_none_is_made_there() {
    let shipped = Shipped::with("nats-server-accounts.conf");
    let home = shipped.home("");
    shipped.provision(&home);
    let _natsd = home.start();
    let mut producer = crate::producer(&home);
    for place in 0..20 {
        producer.put(crate::producer::change(place % 3, place / 3));
    }
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    block_on(async {
        let options = shipped.options(&shipped.consumer, "_INBOX.xdr");
        let consumer = shipped.server.client_with(options).await;
        consumer
            .publish("wazuh.xdr.agent.001.status_change", "{}".into())
            .await
            .expect("is queued");
        let context = jetstream::with_prefix(consumer, "managers.js");
        let stream: jetstream::stream::Stream<()> = context.get_stream_no_info("MUSTER_STATE").await.expect("a name");
        let pull: jetstream::consumer::PullConsumer = stream.get_consumer("xdr-status").await.expect("may look");
        let mut messages = pull.fetch().max_messages(20).messages().await.expect("may fetch");
        let mut subjects = vec![];
        while let Some(message) = messages.next().await {
            let message = message.expect("a message");
            let signed = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get("Muster-Subject"));
            subjects.push((message.subject.to_string(), signed.expect("a subject").to_string()));
            message.double_ack().await.expect("may acknowledge");
        }
        assert_eq!(subjects.len(), 20);
        let expected =
            |(subject, signed): &(String, String)| subject == signed && signed.starts_with("wazuh.xdr.agent.");
        assert!(subjects.iter().all(expected), "{subjects:?}");
        let stream: jetstream::stream::Stream<()> = context.get_stream_no_info("MUSTER_AUDIT").await.expect("a name");
        let pull: jetstream::consumer::PullConsumer = stream.get_consumer("xdr-keys").await.expect("may look");
        let mut messages = pull.fetch().max_messages(1).messages().await.expect("may fetch");
        let announced = messages.next().await.expect("one").expect("a message");
        assert_eq!(announced.subject.as_str(), "wazuh.xdr.manager.keys.mgr-a");
        announced.double_ack().await.expect("may acknowledge");
    });
}

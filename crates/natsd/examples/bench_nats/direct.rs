//! The same messages without a spool.

use std::time::Instant;

use anyhow::{Context, Result};
use async_nats::{HeaderMap, jetstream};
use futures_util::{StreamExt, stream::FuturesUnordered};
use muster_proto::event::Event;

use crate::{as_f64, feeder::event, rig::Server};

const WINDOW: usize = 256;

/// The same messages from the same client, without a spool.
pub(crate) async fn direct(server: &Server, events: u64) -> Result<f64> {
    let client = async_nats::connect(server.url()).await?;
    let jetstream = jetstream::new(client);
    let mut under_way = FuturesUnordered::new();
    let begun = Instant::now();
    for seq in 0..events {
        let (subject, headers, event) = message(seq, event(seq));
        if under_way.len() >= WINDOW {
            under_way.next().await.context("none under way")??;
        }
        let acknowledged = jetstream
            .publish_with_headers(subject, headers, event.body.into())
            .await?;
        under_way.push(acknowledged.into_future());
    }
    while let Some(acknowledged) = under_way.next().await {
        acknowledged?;
    }
    Ok(as_f64(events) / begun.elapsed().as_secs_f64())
}

/// As natsd sends it, but for the signature.
pub(crate) fn message(seq: u64, event: Event) -> (String, HeaderMap, Event) {
    let subject = format!("wazuh.xdr.agent.{}.status_change", event.subject_key);
    let mut headers = HeaderMap::new();
    let id = format!("mgr-a:1:{seq}");
    let numbers = [
        seq.to_string(),
        seq.saturating_sub(1).to_string(),
        event.created_ms.to_string(),
    ];
    for (name, value) in [
        ("Nats-Msg-Id", id.as_str()),
        ("Content-Type", "application/json"),
        ("Muster-Ver", "1"),
        ("Muster-Type", "agent.status_change"),
        ("Muster-Subject", subject.as_str()),
        ("Muster-Node", "mgr-a"),
        ("Muster-Epoch", "1"),
        ("Muster-Seq", &numbers[0]),
        ("Muster-Prev", &numbers[1]),
        ("Muster-Time", &numbers[2]),
        ("Muster-Status", "active>disconnected"),
        ("Nats-Expected-Stream", "MUSTER_STATE"),
    ] {
        headers.insert(name, value);
    }
    (subject, headers, event)
}

//! The announcements of our signing keys, mirrored into the bucket `muster_keys`: `<node>.<public key>`, the newest of each
//! key, with the headers and the signature that it was published with. A consumer that comes late finds every key there;
//! what it believes is still the signature and not the bucket.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use async_nats::{Client, HeaderMap, StatusCode};
use tokio::time::{sleep, timeout};

use super::{
    answer::Answer,
    fence::{self, KEYS},
};
use crate::{keeper::Shared, spool::record::Stored};

/// How often it is looked for announcements. They are rare, and nobody waits for them here.
const LOOK: Duration = Duration::from_secs(2);
/// How long until what was not taken is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long the broker may take for an answer.
const ANSWER: Duration = Duration::from_secs(3);

/// Writes what was not yet written over this connection. Never ends by itself.
pub(super) async fn run(client: &Client, shared: &Shared, node: &str) -> Infallible {
    let mut written = BTreeMap::new();
    loop {
        let mut pause = LOOK;
        for (kid, announcement) in shared.announced() {
            if written.get(&kid) == Some(&announcement.seq) {
                continue;
            }
            if write(client, node, &kid, &announcement).await {
                written.insert(kid, announcement.seq);
            } else {
                pause = AGAIN;
            }
        }
        sleep(pause).await;
    }
}

/// Whether the bucket has it.
async fn write(client: &Client, node: &str, kid: &str, announcement: &Stored) -> bool {
    let subject = format!("$KV.{KEYS}.{}.{kid}", fence::key(node));
    let mut headers = HeaderMap::new();
    for (name, value) in &announcement.headers {
        headers.insert(name.as_ref(), value.as_str());
    }
    let asked = client.request_with_headers(subject, headers, announcement.body.clone().into());
    let Ok(Ok(answer)) = timeout(ANSWER, asked).await else {
        return false;
    };
    let nobody = answer.status == Some(StatusCode::NO_RESPONDERS);
    matches!(Answer::read(nobody, &answer.payload), Answer::Kept { .. })
}

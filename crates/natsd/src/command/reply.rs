//! What is answered and what is written down: pure.

use muster_proto::{
    command::{Outcome, Reply, Unsigned},
    event::body::{MAX_BODY_LEN, wrapped},
};
use serde_json::{Value, json};

use super::{
    act::Done,
    gate::{Judgement, Refusal},
};

/// Longer subjects are cut in the audit trail and in replies.
const MAX_SHOWN: usize = 512;

/// What became of a request.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) outcome: Outcome,
    pub(crate) reason: Option<&'static str>,
    pub(crate) text: String,
    pub(crate) ticket: Option<String>,
    pub(crate) data: Option<Value>,
}

impl From<Refusal> for Settled {
    fn from(refusal: Refusal) -> Self {
        Self {
            outcome: Outcome::Refused,
            reason: Some(refusal.reason()),
            text: refusal.to_string(),
            ticket: None,
            data: None,
        }
    }
}

impl From<Done> for Settled {
    fn from(done: Done) -> Self {
        Self {
            outcome: done.outcome,
            reason: None,
            text: done.text,
            ticket: None,
            data: done.data,
        }
    }
}

/// The detail of a line in the audit trail; without an outcome yet before something is changed.
pub(crate) fn detail(subject: &str, judgement: &Judgement, settled: Option<&Settled>) -> Value {
    let signer = judgement.signer.as_ref();
    json!({
        "subject": shown(subject),
        "verb": judgement.verb.map(muster_proto::command::Verb::as_str),
        "key": signer.map(|signer| &signer.id),
        "kid": signer.map(|signer| &signer.key_id),
        "nonce": judgement.nonce,
        "outcome": settled.map(|settled| settled.outcome),
        "reason": settled.and_then(|settled| settled.reason),
        "text": settled.map(|settled| &settled.text),
        "ticket": settled.and_then(|settled| settled.ticket.as_ref()),
    })
}

/// The reply, to be signed.
pub(crate) fn reply(
    inbox: &str,
    subject: &str,
    judgement: &Judgement,
    settled: Settled,
    node: &str,
    now_ms: u64,
) -> Unsigned {
    let mut reply = Reply {
        nonce: judgement.nonce.clone(),
        subject: shown(subject),
        node: node.to_owned(),
        timestamp: now_ms / 1000,
        outcome: settled.outcome,
        reason: settled.reason.map(str::to_owned),
        text: settled.text,
        ticket: settled.ticket,
        data: settled.data,
    };
    let mut body = wrapped("reply", &reply);
    if body.len() > MAX_BODY_LEN {
        (reply.data, reply.outcome) = (None, Outcome::Failed);
        "the answer is too long for a message".clone_into(&mut reply.text);
        body = wrapped("reply", &reply);
    }
    Unsigned {
        subject: inbox.to_owned(),
        // A header must say something.
        message_id: if judgement.nonce.is_empty() {
            "-".to_owned()
        } else {
            judgement.nonce.clone()
        },
        time_ms: now_ms,
        body,
    }
}

fn shown(subject: &str) -> String {
    subject.chars().take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unread() -> Judgement {
        Judgement {
            verb: None,
            signer: None,
            nonce: String::new(),
            verdict: Err(Refusal::Subject),
            heard: true,
        }
    }

    #[test]
    fn refusal_has_its_word_in_reply_and_audit_trail() {
        let settled = Settled::from(Refusal::Expired);
        let line = detail("a.b", &unread(), Some(&settled));
        assert_eq!(
            (&line["outcome"], &line["reason"]),
            (&json!("refused"), &json!("expired"))
        );
        let unsigned = reply("_INBOX.x", "a.b", &unread(), settled, "mgr-a", 7000);
        let body: Value = serde_json::from_slice(&unsigned.body).expect("JSON");
        assert_eq!(body["reply"]["reason"], "expired");
        assert_eq!(body["reply"]["timestamp"], 7);
    }

    #[test]
    fn answer_too_long_for_the_broker_becomes_a_failure() {
        let settled = Settled {
            outcome: Outcome::Done,
            reason: None,
            text: String::new(),
            ticket: None,
            data: Some(json!("x".repeat(MAX_BODY_LEN))),
        };
        let unsigned = reply("_INBOX.x", "a.b", &unread(), settled, "mgr-a", 0);
        assert!(unsigned.body.len() < 1000);
        let body: Value = serde_json::from_slice(&unsigned.body).expect("JSON");
        assert_eq!(body["reply"]["outcome"], "failed");
    }

    #[test]
    fn endless_subjects_are_cut() {
        let line = detail(&"x".repeat(5000), &unread(), None);
        assert_eq!(line["subject"].as_str().map(str::len), Some(MAX_SHOWN));
    }
}

//! Requests that a manager takes over NATS, and its replies.
//!
//! ```text
//! <prefix>.control.<node|any>.<noun>.<id>.<verb>
//! ```
//!
//! A request has the headers of an event and is signed as one, see [`Preamble`]; its body is a [`Request`]. The reply
//! is signed by the manager in the same way; its body is a [`Reply`] in the member `reply`.
//!
//! **Invariant:** what is in a subject is checked here, so that no byte of a stranger reaches an order to an agent.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::{
    agent::AgentId,
    event::{header, preamble::Preamble},
};

/// The token in place of a node's name: whichever manager it concerns.
pub const ANY: &str = "any";
/// The token behind the prefix.
const CONTROL: &str = "control";
/// The longest time from signing to expiry, in seconds.
pub const MAX_LIFE_S: u64 = 30;
/// The longest body of a request.
pub const MAX_BODY_LEN: usize = 16 * 1024;
/// A nonce has at least so many characters, so that nobody guesses one, and at most the second number.
pub const NONCE_LEN: (usize, usize) = (16, 64);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// All that is known of an agent.
    AgentStatus,
    /// How many agents have which status.
    AgentsSummary,
    /// How the daemons are.
    NodeStatus,
    /// An agent shall restart.
    AgentRestart,
    /// An agent shall connect anew.
    AgentReconnect,
    /// An agent shall read its configuration again.
    AgentReload,
    /// An agent shall run an active response.
    AgentRespond,
    /// An agent's key shall go.
    AgentRemove,
    /// An agent's key shall go, and the agent enroll for another.
    AgentRekey,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::AgentStatus,
        Self::AgentsSummary,
        Self::NodeStatus,
        Self::AgentRestart,
        Self::AgentReconnect,
        Self::AgentReload,
        Self::AgentRespond,
        Self::AgentRemove,
        Self::AgentRekey,
    ];

    /// Noun and verb as they stand in the subject, with the fixed id of those that are about no agent.
    fn tokens(self) -> (&'static str, Option<&'static str>, &'static str) {
        match self {
            Self::AgentStatus => ("agent", None, "status"),
            Self::AgentsSummary => ("agents", Some("all"), "summary"),
            Self::NodeStatus => ("node", Some("self"), "status"),
            Self::AgentRestart => ("agent", None, "restart"),
            Self::AgentReconnect => ("agent", None, "reconnect"),
            Self::AgentReload => ("agent", None, "reload"),
            Self::AgentRespond => ("agent", None, "ar"),
            Self::AgentRemove => ("agent", None, "remove"),
            Self::AgentRekey => ("agent", None, "rekey"),
        }
    }

    /// `agent.restart`, as it stands in replies, in the audit trail and on command lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AgentStatus => "agent.status",
            Self::AgentsSummary => "agents.summary",
            Self::NodeStatus => "node.status",
            Self::AgentRestart => "agent.restart",
            Self::AgentReconnect => "agent.reconnect",
            Self::AgentReload => "agent.reload",
            Self::AgentRespond => "agent.ar",
            Self::AgentRemove => "agent.remove",
            Self::AgentRekey => "agent.rekey",
        }
    }

    /// The verb of such a text.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == text)
    }

    /// Whether it is about one agent.
    pub fn is_of_an_agent(self) -> bool {
        self.tokens().1.is_none()
    }
}

/// What a subject says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The token of a manager's name, or [`ANY`].
    pub node: String,
    /// What is asked for.
    pub verb: Verb,
    /// Of which agent, if it is about one. 1 to 8 digits.
    pub agent: Option<AgentId>,
}

/// Why a subject is no request's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// It is not below `<prefix>.control`, or does not have all its tokens.
    #[error("the subject is not <prefix>.control.<node>.<noun>.<id>.<verb>")]
    Form,
    /// Nobody knows the noun or the verb.
    #[error("the verb is not known")]
    Verb,
    /// The id is no agent's.
    #[error("the agent's id is not 1 to 8 digits")]
    Agent,
}

impl Address {
    /// The subject.
    pub fn subject(&self, prefix: &str) -> String {
        let (noun, id, verb) = self.verb.tokens();
        let id = id.or(self.agent.as_ref().map(AgentId::as_str)).unwrap_or("-");
        format!("{prefix}.{CONTROL}.{}.{noun}.{id}.{verb}", self.node)
    }

    /// Reads a subject.
    ///
    /// # Errors
    /// When it is none of ours.
    pub fn parse(prefix: &str, subject: &str) -> Result<Self, AddressError> {
        let rest = subject.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'));
        let mut tokens = rest.ok_or(AddressError::Form)?.split('.');
        let mut next = || tokens.next().filter(|token| !token.is_empty());
        let (control, node, noun, id, word) = (next(), next(), next(), next(), next());
        let (Some(CONTROL), Some(node), Some(noun), Some(id), Some(word), None) =
            (control, node, noun, id, word, tokens.next())
        else {
            return Err(AddressError::Form);
        };
        let is_it = |verb: &Verb| {
            let (own_noun, own_id, own_word) = verb.tokens();
            own_noun == noun && own_word == word && own_id.is_none_or(|own_id| own_id == id)
        };
        let verb = Verb::ALL.into_iter().find(is_it).ok_or(AddressError::Verb)?;
        let agent = verb.is_of_an_agent().then(|| AgentId::new(id));
        if agent.as_ref().is_some_and(|agent| !agent.is_numeric()) {
            return Err(AddressError::Agent);
        }
        Ok(Self {
            node: node.to_owned(),
            verb,
            agent,
        })
    }
}

/// The subjects that a manager listens at for one node token: `<prefix>.control.<node>.>`.
pub fn listen(prefix: &str, node: &str) -> String {
    format!("{prefix}.{CONTROL}.{node}.>")
}

/// The body of a request. What is not known is refused: it might be what limits the request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Unix seconds from which it is worth nothing, at most [`MAX_LIFE_S`] behind `Muster-Time`.
    pub exp: u64,
    /// Never used before by this key; `Nats-Msg-Id` has it too. See [`is_nonce`].
    pub nonce: String,
    /// What the verb needs; most need nothing.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub arguments: Map<String, Value>,
}

/// Whether this can be a nonce: 16 to 64 letters, digits, `-` and `_`.
pub fn is_nonce(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (NONCE_LEN.0..=NONCE_LEN.1).contains(&text.len()) && text.bytes().all(fits)
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done, or answered.
    Done,
    /// The order is on its way to the agent; the ticket tells what comes of it.
    Accepted,
    /// It may not be, or makes no sense.
    Refused,
    /// It might be, and did not work.
    Failed,
    /// Of a ticket: whether the agent obeyed is not known.
    Unconfirmed,
}

/// The body of a reply, in the member `reply`. May get members at its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// That of the request; empty when it had none that can be one.
    pub nonce: String,
    /// The subject of the request.
    pub subject: String,
    /// Who answers.
    pub node: String,
    /// Unix seconds.
    pub timestamp: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// Of a refusal: why, as one word for programs.
    pub reason: Option<String>,
    /// The same for people.
    pub text: String,
    /// Of an order to an agent: what its `control_result` is known by.
    pub ticket: Option<String>,
    /// What was asked for.
    pub data: Option<Value>,
}

/// What the broker makes of an inbox of another account.
pub const FOREIGN_INBOX: &str = "_R_.";

/// Whether a reply that came to `inbox` may have been signed for `subject`. Between accounts the broker puts a name of its
/// own in the place of the inbox, and that is what the manager sees; then the nonce alone says whose reply it is.
pub fn is_signed_for(subject: &str, inbox: &str) -> bool {
    subject == inbox || subject.starts_with(FOREIGN_INBOX)
}

/// The body of an event that tells what came of an order to an agent, in the member `control_result`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TicketResult {
    /// Whose order.
    pub agent_id: String,
    /// Which.
    pub verb: String,
    /// From the reply.
    pub ticket: String,
    /// `done`, `failed` or `unconfirmed`.
    pub outcome: Outcome,
    /// Why, for people.
    pub text: String,
    /// The name of the key that asked.
    pub key: String,
    /// Unix seconds.
    pub timestamp: u64,
    /// The name of this manager.
    pub manager_node: String,
}

/// The headers of a request or a reply without its signature, ready to be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsigned {
    /// The subject that it is sent to.
    pub subject: String,
    /// The nonce.
    pub message_id: String,
    /// Unix milliseconds.
    pub time_ms: u64,
    /// The body.
    pub body: Vec<u8>,
}

impl Unsigned {
    /// The headers, complete. `sign` makes the signature of the bytes as text, with the key whose public half is
    /// `key_id`.
    pub fn sign(&self, key_id: &str, sign: impl FnOnce(&[u8]) -> String) -> Vec<(&'static str, String)> {
        let time = self.time_ms.to_string();
        let preamble = Preamble {
            subject: &self.subject,
            message_id: &self.message_id,
            key_id,
            time: &time,
            previous: "-",
            content_type: header::JSON,
            sealed: None,
        };
        let signature = sign(&preamble.signed_bytes(&self.body));
        vec![
            (header::MSG_ID, self.message_id.clone()),
            (header::CONTENT_TYPE, header::JSON.to_owned()),
            (header::VERSION, header::CONTRACT.to_owned()),
            (header::SUBJECT, self.subject.clone()),
            (header::PREVIOUS, "-".to_owned()),
            (header::TIME, time),
            (header::ALGORITHM, header::ED25519.to_owned()),
            (header::KEY_ID, key_id.to_owned()),
            (header::SIGNATURE, signature),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_verb_is_found_again_in_its_subject() {
        for verb in Verb::ALL {
            let address = Address {
                node: "mgr-a".to_owned(),
                verb,
                agent: verb.is_of_an_agent().then(|| AgentId::new("001")),
            };
            let subject = address.subject("wazuh.xdr");
            assert_eq!(Address::parse("wazuh.xdr", &subject), Ok(address), "{subject}");
            assert_eq!(Verb::from_text(verb.as_str()), Some(verb));
        }
    }

    #[test]
    fn other_subjects_are_refused_by_what_is_wrong_with_them() {
        for (subject, error) in [
            ("wazuh.xdr.control.mgr-a.agent.001", AddressError::Form),
            ("wazuh.xdr.control.mgr-a.agent.001.status.x", AddressError::Form),
            ("wazuh.xdr.control..agent.001.status", AddressError::Form),
            ("wazuh.xdrcontrol.mgr-a.agent.001.status", AddressError::Form),
            ("other.control.mgr-a.agent.001.status", AddressError::Form),
            ("wazuh.xdr.agent.mgr-a.agent.001.status", AddressError::Form),
            ("wazuh.xdr.control.mgr-a.agent.001.explode", AddressError::Verb),
            ("wazuh.xdr.control.mgr-a.agents.001.summary", AddressError::Verb),
            ("wazuh.xdr.control.mgr-a.agent.all.restart", AddressError::Agent),
            ("wazuh.xdr.control.mgr-a.agent.123456789.status", AddressError::Agent),
        ] {
            assert_eq!(Address::parse("wazuh.xdr", subject), Err(error), "{subject}");
        }
    }

    #[test]
    fn nonces_are_long_enough_and_plain() {
        assert!(is_nonce("abcdefghij-_0123"));
        for text in ["", "short", "abcdefghij 01234", "abcdefghij.01234", &"a".repeat(65)] {
            assert!(!is_nonce(text), "{text}");
        }
    }

    #[test]
    fn reply_is_for_the_inbox_it_came_to_or_for_one_of_another_account() {
        assert!(is_signed_for("_INBOX.soc.1", "_INBOX.soc.1"));
        assert!(!is_signed_for("_INBOX.soc.2", "_INBOX.soc.1"));
        assert!(is_signed_for("_R_.nkX1s4.Yv2w1A", "_INBOX.soc.1"));
    }

    #[test]
    fn unknown_members_of_a_request_are_refused() {
        let good = r#"{"exp":1,"nonce":"abcdefghijklmnop"}"#;
        assert!(serde_json::from_str::<Request>(good).is_ok());
        let bad = r#"{"exp":1,"nonce":"abcdefghijklmnop","only_if":"idle"}"#;
        assert!(serde_json::from_str::<Request>(bad).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_parsed_is_written_back_the_same(subject in "w\\.control\\.[a-z*>~]{1,4}\\.(agent|agents|node)\\.[0-9a-z]{1,9}\\.(status|restart|ar|summary)") {
            if let Ok(address) = Address::parse("w", &subject) {
                prop_assert_eq!(address.subject("w"), subject);
            }
        }
    }
}

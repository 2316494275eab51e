//! Names of the headers on a published message. NATS compares them byte for byte.

/// `<node>:<epoch>:<seq>`: what the broker knows a repeat by.
pub const MSG_ID: &str = "Nats-Msg-Id";
/// The stream that must take the message.
pub const EXPECTED_STREAM: &str = "Nats-Expected-Stream";
/// The form of the body.
pub const CONTENT_TYPE: &str = "Content-Type";
/// The version of these headers: [`CONTRACT`].
pub const VERSION: &str = "Muster-Ver";
/// [`Kind::type_name`](super::Kind::type_name).
pub const TYPE: &str = "Muster-Type";
/// The subject as published; accounts and mirrors may change the real one.
pub const SUBJECT: &str = "Muster-Subject";
/// The name of the manager.
pub const NODE: &str = "Muster-Node";
/// How often its natsd has started.
pub const EPOCH: &str = "Muster-Epoch";
/// The sequence number, one count over all subjects of the node.
pub const SEQUENCE: &str = "Muster-Seq";
/// The sequence number of the previous event of the same stream from this node, or `-`.
pub const PREVIOUS: &str = "Muster-Prev";
/// Unix milliseconds at which it happened.
pub const TIME: &str = "Muster-Time";
/// Seconds from then until it was published, when more than five. Advisory: not signed.
pub const DELAYED: &str = "Muster-Delayed";
/// A status change in words: `active>disconnected`.
pub const STATUS: &str = "Muster-Status";
/// How often the agent came and went lately, when that is too often.
pub const FLAPPING: &str = "Muster-Flapping";
/// The message id of the event that this one is a copy of.
pub const COPY_OF: &str = "Muster-Copy-Of";
/// How the message is signed: [`ED25519`].
pub const ALGORITHM: &str = "Muster-Alg";
/// The public nkey that it is signed with.
pub const KEY_ID: &str = "Muster-Kid";
/// The signature, base64url without padding.
pub const SIGNATURE: &str = "Muster-Sig";
/// How the body is sealed, by whom and for whom.
pub const SEALED: &str = "Muster-Enc";
/// Where several managers share a fleet: the revision by which this one has the agent, or `unconfirmed`. Advisory: not
/// signed.
pub const OWNER: &str = "Muster-Owner";
/// W3C trace context.
pub const TRACE: &str = "traceparent";

/// The version of the headers.
pub const CONTRACT: &str = "1";
/// The content type of a body as it is made here.
pub const JSON: &str = "application/json";
/// The content type of a body that is a CloudEvent.
pub const CLOUD_EVENT: &str = "application/cloudevents+json";
/// The content type of a body in a class of OCSF.
pub const OCSF: &str = "application/ocsf+json";

/// The content type of a sealed body.
pub const SEALED_TYPE: &str = "application/x-nats-xkv1";
/// The only algorithm of signatures.
pub const ED25519: &str = "ed25519";

const ALL: [&str; 21] = [
    MSG_ID,
    EXPECTED_STREAM,
    CONTENT_TYPE,
    VERSION,
    TYPE,
    SUBJECT,
    NODE,
    EPOCH,
    SEQUENCE,
    PREVIOUS,
    TIME,
    DELAYED,
    STATUS,
    FLAPPING,
    COPY_OF,
    ALGORITHM,
    KEY_ID,
    SIGNATURE,
    SEALED,
    OWNER,
    TRACE,
];

/// The same name as one that needs no memory of its own, if it is one of these.
pub fn known(name: &str) -> Option<&'static str> {
    ALL.into_iter().find(|known| *known == name)
}

/// Whether a producer may set this header. The others are natsd's or the broker's word.
pub fn is_for_producers(name: &str) -> bool {
    matches!(name, STATUS | FLAPPING | TRACE)
}

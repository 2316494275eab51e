//! For the fuzzer: a node that tells, a broker that lies, and a consumer that checks.
//!
//! The broker loses, repeats, delays and changes messages, and makes up its own. What must hold:
//!
//! * what is accepted was signed by the node, byte for byte, of that kind, and is accepted once;
//! * whatever reaches the consumer in order and unchanged is accepted;
//! * what is missing and was not declared is known to be missing.

use std::collections::{BTreeMap, BTreeSet};

use muster_config::{Encrypt, EventFormat, Family, Recipient};
use muster_proto::event::{Event, Kind, Stream, header};
use nkeys::{KeyPair, KeyPairType, XKey};
use serde_json::json;

use super::draw::Draw;
use crate::{
    keys::KeyRecord,
    message::{Composer, Numbers},
    seal::Sealer,
    signature::{self, Preamble},
    spool::record::{self, Mark},
    verify::{Fate, Hole, Message, Policy, Verifier},
};

const START_MS: u64 = 1_795_243_200_000;
/// Longer stories teach nothing new, and cost time.
const MAX_STEPS: usize = 40;
/// What an event is about: agents, rules, look-ups, and texts that look like parts of other subjects.
const ABOUT: [&str; 8] = [
    "001",
    "002",
    "web-01",
    "status_change",
    "archives",
    "agentless",
    "manager",
    "a.b",
];

/// Runs a story. How many messages were accepted.
///
/// # Panics
/// Something does not hold.
pub fn verify(input: &[u8]) -> usize {
    let mut draw = Draw::new(input);
    let mut stage = Stage::new(&mut draw);
    let mut steps = 0;
    while !draw.is_done() && steps < MAX_STEPS {
        steps += 1;
        stage.step(&mut draw);
    }
    stage.check_account();
    stage.accepted.len()
}

struct Stage {
    composer: Composer,
    keys: [KeyPair; 2],
    /// Which of them signs.
    key: usize,
    reader: XKey,
    last: BTreeMap<Stream, u64>,
    next: u64,
    now_ms: u64,
    /// Where the numbers began anew: epochs and first numbers.
    begun: BTreeMap<u64, u64>,
    /// Everything that the node has signed.
    said: Vec<Message>,
    /// Of those, which are still to be delivered for the first time.
    held: Vec<usize>,
    verifier: Verifier,
    looks_at_clock: bool,
    /// Whether everything so far came in order and in time: then nothing may be refused.
    in_order: bool,
    accepted: BTreeSet<String>,
    /// What the consumer has accepted of gaps: in which epoch, of which stream, from where to where.
    declared: Vec<(u64, Option<Stream>, u64, u64)>,
    /// Holes that the consumer was told of.
    told: Vec<(Stream, Hole)>,
}

impl Stage {
    fn new(draw: &mut Draw<'_>) -> Self {
        let choice = draw.byte();
        let keys = [
            *b"the first key of the fuzzer, 32.",
            *b"the second key of the fuzzer 32.",
        ]
        .map(|seed| KeyPair::new_from_raw(KeyPairType::User, seed).expect("a seed"));
        let reader = XKey::new_from_raw([5; 32]);
        let recipient = Recipient {
            id: "reader".to_owned(),
            key: reader.public_key(),
        };
        let encrypt = Encrypt {
            families: vec![Family::Keepalive, Family::Status],
        };
        let sealer = (choice & 1 != 0).then(|| Sealer::new(&[recipient], &encrypt).expect("a good key"));
        let looks_at_clock = choice & 2 != 0;
        let policy = Policy {
            trust_keys: BTreeSet::new(),
            pinned: [keys[0].public_key()].into(),
            nodes: BTreeMap::new(),
            signed: true,
            max_age_ms: looks_at_clock.then_some(3_600_000),
            recipient: (choice & 4 != 0).then(|| XKey::new_from_raw([5; 32])),
        };
        Self {
            composer: Composer {
                prefix: if choice & 8 == 0 { "wazuh.xdr" } else { "archives" }.to_owned(),
                node: "mgr".to_owned(),
                source: "wazuh-manager".to_owned(),
                version: "4.14.7".to_owned(),
                epoch: 1,
                history: false,
                format: [
                    EventFormat::Native,
                    EventFormat::Cloudevents,
                    EventFormat::CloudeventsStructured,
                    EventFormat::Ocsf,
                ][usize::from(choice >> 4 & 3)],
                sealer: sealer.flatten(),
                keyring: None,
            },
            keys,
            key: 0,
            reader,
            last: BTreeMap::new(),
            next: 1,
            now_ms: START_MS,
            begun: BTreeMap::new(),
            said: Vec::new(),
            held: Vec::new(),
            verifier: Verifier::new(policy),
            looks_at_clock,
            in_order: true,
            accepted: BTreeSet::new(),
            declared: Vec::new(),
            told: Vec::new(),
        }
    }

    fn step(&mut self, draw: &mut Draw<'_>) {
        match draw.below(12) {
            0..=3 => {
                let event = event(draw, self.now_ms);
                let place = self.say(&event);
                let expected = self.in_order;
                let accepted = self.deliver_said(place);
                assert!(accepted || !expected, "in order and unchanged: {:?}", self.said[place]);
            }
            4 => {
                // It is under way, or lost.
                let event = event(draw, self.now_ms);
                let place = self.say(&event);
                self.held.push(place);
                self.in_order = false;
            }
            5 => {
                if !self.held.is_empty() {
                    let place = self.held.swap_remove(draw.below(self.held.len().min(256)));
                    self.deliver_said(place);
                }
            }
            6 => {
                if let Some(message) = self.some_said(draw) {
                    self.deliver(&message);
                }
            }
            7 | 8 => self.change(draw),
            9 => self.make_up(draw),
            10 => self.node(draw),
            _ => {
                self.now_ms += u64::from(draw.u16()) * 100;
                self.in_order &= !self.looks_at_clock;
            }
        }
    }

    /// What happens at the node.
    fn node(&mut self, draw: &mut Draw<'_>) {
        match draw.below(5) {
            0 => {
                self.composer.epoch += 1;
                self.announce(self.key, draw);
            }
            1 => {
                // The second key is announced by the first, and signs from now on.
                self.announce(1, draw);
                self.key = 1;
            }
            2 => {
                let stream = [None, Some(Stream::ALL[draw.below(Stream::ALL.len())])][draw.below(2)];
                let name = stream.map_or("-", Stream::name);
                let (from, to) = (u64::from(draw.byte()), u64::from(draw.byte()));
                let mut gap = json!({"stream": name, "from_seq": from, "to_seq": to, "epoch": self.composer.epoch});
                if stream.is_some() {
                    gap["runs"] = json!([[from, to]]);
                }
                let body = json!({"spool": gap}).to_string().into_bytes();
                let place = self.say(&of(Kind::SpoolGap, "", self.now_ms, body));
                if self.deliver_said(place) {
                    self.declared.push((self.composer.epoch, stream, from, to));
                }
            }
            3 => {
                // It loses its spool, or only what it knew of its numbers.
                self.composer.epoch += 1 + u64::from(draw.byte());
                if draw.flag() {
                    self.next = 1;
                    self.last.clear();
                }
                self.begun.insert(self.composer.epoch, self.next);
                self.announce(self.key, draw);
            }
            // Numbers that are never used do no harm.
            _ => self.next += u64::from(draw.byte()),
        }
    }

    /// The node announces a key in its epoch; perhaps nobody hears it.
    fn announce(&mut self, key: usize, draw: &mut Draw<'_>) {
        let [first, second] = &self.keys;
        let mut record = KeyRecord::new(&self.keys[key].public_key(), &self.composer.node, START_MS, 1);
        if record.kid == second.public_key() {
            record.prev_kid = Some(first.public_key());
            let text = record.introduction().expect("a statement");
            record.prev_sig = Some(signature::text(&first.sign(text.as_bytes()).expect("signs")));
        }
        let mut body = json!({"key": record});
        body["key"]["begun"] = json!(self.begun.iter().collect::<Vec<_>>());
        let body = body.to_string().into_bytes();
        let place = self.say(&of(Kind::KeyAnnouncement, "", self.now_ms, body));
        let heard = draw.flag() && self.deliver_said(place);
        self.in_order &= heard;
    }

    /// The node signs a message.
    fn say(&mut self, event: &Event) -> usize {
        let (seq, stream) = (self.next, event.kind.stream());
        self.next += 1;
        let prev = self.last.insert(stream, seq).unwrap_or(0);
        let mark = Mark {
            producer: "fuzzer".to_owned(),
            incarnation: 1,
            number: seq,
        };
        let stored = self.composer.compose(event, mark, Numbers { seq, prev }, None);
        let message = Message {
            subject: stored.subject,
            headers: record::owned(stored.headers),
            body: stored.body,
            from_stream: true,
        };
        self.said.push(sign(message, &self.keys[self.key]));
        self.said.len() - 1
    }

    fn some_said(&self, draw: &mut Draw<'_>) -> Option<Message> {
        let place = usize::from(draw.byte()).checked_rem(self.said.len())?;
        self.said.get(place).cloned()
    }

    fn deliver_said(&mut self, place: usize) -> bool {
        let message = self.said[place].clone();
        self.deliver(&message)
    }

    /// Says whether it was accepted.
    fn deliver(&mut self, message: &Message) -> bool {
        let verdict = self.verifier.check(message, self.now_ms);
        if verdict.fate != Fate::Accept {
            return false;
        }
        let id = message.header(header::MSG_ID).unwrap_or_default().to_owned();
        let said = self.said.iter().find(|said| said.header(header::MSG_ID) == Some(&id));
        let said = said.expect("what is accepted has a number that the node has used");
        assert!(
            said.subject == message.subject && said.body == message.body,
            "what is accepted is what was said"
        );
        for name in [
            header::TYPE,
            header::NODE,
            header::EPOCH,
            header::SEQUENCE,
            header::PREVIOUS,
            header::TIME,
            header::SEALED,
            header::CONTENT_TYPE,
        ] {
            assert_eq!(said.header(name), message.header(name), "{name} of {}", message.subject);
        }
        assert!(self.accepted.insert(id), "nothing is accepted twice");
        true
    }

    /// What was lost between two messages that were accepted is known to be missing, or was declared.
    fn check_account(&mut self) {
        let mut of_stream: BTreeMap<Stream, BTreeMap<(u64, u64), bool>> = BTreeMap::new();
        for message in &self.said {
            let number = |name: &str| message.header(name).and_then(|value| value.parse().ok()).unwrap_or(0);
            let place = (
                self.run(number(header::EPOCH), number(header::SEQUENCE)),
                number(header::SEQUENCE),
            );
            let kind = Kind::ALL
                .into_iter()
                .find(|kind| message.header(header::TYPE) == Some(kind.type_name()));
            let accepted = message
                .header(header::MSG_ID)
                .is_some_and(|id| self.accepted.contains(id));
            let stream = kind.expect("as it was said").stream();
            of_stream.entry(stream).or_default().insert(place, accepted);
        }
        let holes = self.verifier.undeclared();
        for (stream, numbers) in of_stream {
            let accepted = || {
                numbers
                    .iter()
                    .filter(|(_, accepted)| **accepted)
                    .map(|(place, _)| *place)
            };
            let (Some(first), Some(last)) = (accepted().next(), accepted().next_back()) else {
                continue;
            };
            for ((run, seq), _) in numbers.range(first..last).filter(|(_, accepted)| !**accepted) {
                let is_told = holes.iter().any(|(_, of, hole)| {
                    *of == stream
                        && match hole.upto {
                            // It may have seen the first epoch before it heard how that began.
                            Some(upto) => hole.run <= *run && hole.after < *seq && *seq <= upto,
                            None => (hole.run, hole.after) < (*run, *seq),
                        }
                });
                let is_declared = self.declared.iter().any(|(epoch, of, from, to)| {
                    of.is_none_or(|of| of == stream) && (*from..=*to).contains(seq) && self.run(*epoch, *seq) == *run
                });
                assert!(
                    is_told || is_declared,
                    "{stream:?} {seq} of {run} is missing, and nobody knows: {holes:?}"
                );
            }
        }
        for later in [0, 59_999, 60_000, 60_000] {
            self.look_for_overdue(later);
        }
    }

    /// The epoch with which the numbers began of which this is one.
    fn run(&self, epoch: u64, seq: u64) -> u64 {
        let mut before = self.begun.range(..=epoch).rev();
        before.find(|(_, first)| **first <= seq).map_or(0, |(epoch, _)| *epoch)
    }

    fn look_for_overdue(&mut self, later_ms: u64) {
        for (_, stream, hole) in self.verifier.overdue(self.now_ms + later_ms, 60_000) {
            assert!(!self.told.contains(&(stream, hole)), "told twice: {hole:?}");
            self.told.push((stream, hole));
        }
    }

    /// A message with something changed on the way.
    fn change(&mut self, draw: &mut Draw<'_>) {
        let Some(mut message) = self.some_said(draw) else {
            return;
        };
        let count = message.headers.len();
        match draw.below(8) {
            0 => {
                if let Some((_, value)) = message.headers.get_mut(draw.below(count)) {
                    *value = draw.text();
                }
            }
            1 => {
                // The value of another message.
                let place = draw.below(count);
                let name = message
                    .headers
                    .get(place)
                    .map(|(name, _)| name.clone())
                    .unwrap_or_default();
                let other = self
                    .some_said(draw)
                    .and_then(|other| other.header(&name).map(str::to_owned));
                if let (Some((_, value)), Some(other)) = (message.headers.get_mut(place), other) {
                    *value = other;
                }
            }
            2 => drop(message.headers.remove(draw.below(count))),
            3 => {
                let kind = Kind::ALL[draw.below(Kind::ALL.len())];
                if let Some((_, value)) = message.headers.iter_mut().find(|(name, _)| name == header::TYPE) {
                    kind.type_name().clone_into(value);
                }
            }
            4 => {
                let place = usize::from(draw.byte());
                let length = message.body.len().max(1);
                if let Some(byte) = message.body.get_mut(place % length) {
                    *byte ^= draw.byte();
                }
            }
            5 => message.subject = draw.text(),
            6 => {
                // Which of the two would others read?
                let (name, value) = message.headers[draw.below(count)].clone();
                let name = if draw.flag() { name.to_lowercase() } else { name };
                let value = if draw.flag() { draw.text() } else { value };
                let counts = !name.to_lowercase().starts_with("ce-");
                message.headers.insert(draw.below(count), (name, value));
                assert!(!self.deliver(&message) || !counts, "a header twice: {message:?}");
            }
            _ => {
                // Signed again, with a key that nobody believes.
                let key = KeyPair::new_from_raw(KeyPairType::User, [draw.byte(); 32]).expect("a seed");
                let added = [header::ALGORITHM, header::KEY_ID, header::SIGNATURE];
                message.headers.retain(|(name, _)| !added.contains(&name.as_str()));
                message = sign(message, &key);
            }
        }
        self.deliver(&message);
        // If it was no change after all, the consumer has it before its time.
        self.in_order = false;
    }

    /// A message of the broker's own.
    fn make_up(&mut self, draw: &mut Draw<'_>) {
        let names = [
            header::MSG_ID,
            header::CONTENT_TYPE,
            header::VERSION,
            header::TYPE,
            header::SUBJECT,
            header::NODE,
            header::EPOCH,
            header::SEQUENCE,
            header::PREVIOUS,
            header::TIME,
            header::KEY_ID,
            header::ALGORITHM,
            header::SIGNATURE,
            header::SEALED,
        ];
        let mut headers: Vec<_> = names.map(|name| (name.to_owned(), draw.text())).into();
        if draw.flag() {
            headers.push((header::VERSION.to_owned(), header::CONTRACT.to_owned()));
            headers.rotate_right(1);
        }
        let message = Message {
            subject: draw.text(),
            headers,
            body: draw.bytes().to_vec(),
            from_stream: draw.flag(),
        };
        assert!(!self.deliver(&message), "made up and believed: {message:?}");
        self.look_for_overdue(0);
        let _ = (
            self.verifier.undeclared(),
            crate::seal::open(&self.reader, &draw.text(), draw.bytes()),
        );
    }
}

/// An event as a daemon would make it, as far as a consumer looks at it.
fn event(draw: &mut Draw<'_>, now_ms: u64) -> Event {
    let kind = Kind::ALL[draw.below(Kind::ALL.len())];
    let kind = match kind {
        // Copies and what the node says of itself have their own ways.
        Kind::KeyAnnouncement | Kind::SpoolGap | Kind::DisconnectAlert => Kind::StatusChange,
        kind => kind,
    };
    let about = ABOUT[draw.below(ABOUT.len())];
    let body = json!({"event": {"agent_id": about, "agent_name": "web", "ip_address": "192.0.2.1",
        "timestamp": now_ms / 1000, "n": draw.byte()}});
    of(kind, about, now_ms, body.to_string().into_bytes())
}

fn of(kind: Kind, about: &str, now_ms: u64, body: Vec<u8>) -> Event {
    Event {
        kind,
        alert_level: 3,
        created_ms: now_ms,
        subject_key: about.to_owned(),
        headers: Vec::new(),
        body,
    }
}

pub(super) fn sign(mut message: Message, key: &KeyPair) -> Message {
    let by = [
        (header::ALGORITHM, header::ED25519.to_owned()),
        (header::KEY_ID, key.public_key()),
    ];
    message.headers.extend(by.map(|(name, value)| (name.to_owned(), value)));
    let signature = Preamble::of(|name| message.header(name))
        .map(|preamble| signature::text(&key.sign(&preamble.signed_bytes(&message.body)).expect("signs")));
    message
        .headers
        .push((header::SIGNATURE.to_owned(), signature.unwrap_or_default()));
    message
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    proptest! {
        #[test]
        fn stories_of_any_bytes_hold(bytes in vec(any::<u8>(), 0..500)) {
            super::verify(&bytes);
        }
    }

    #[test]
    fn good_messages_pass_through_the_harness() {
        // Four status changes, one of them sealed and read; then the first again.
        let tell = [0_u8, 1, 0, 0];
        for choice in [0_u8, 1, 5, 16, 32, 48] {
            let mut input = vec![choice];
            input.extend(tell.repeat(4));
            input.extend([6, 0]);
            assert_eq!(super::verify(&input), 4, "{choice}");
        }
    }
}

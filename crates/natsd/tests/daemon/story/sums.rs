//! What the verifier makes of all that arrived.

use std::collections::{BTreeMap, BTreeSet};

use muster_natsd::verify::{Fate, Message, REPLAY, Verifier};
use muster_proto::event::header;

use super::troubles::Site;
use crate::{json, verifier};

/// What became of the messages of a stream.
#[derive(Default)]
struct Sums {
    known: BTreeSet<(u64, u64)>,
    accepted: BTreeMap<(u64, u64), Message>,
    /// Those that came behind later ones.
    late: usize,
    duplicates: usize,
}

impl Sums {
    /// Nothing may be refused but what was there already, so long ago that the verifier cannot know.
    fn add(&mut self, verifier: &mut Verifier, messages: Vec<Message>) {
        for message in messages {
            let place = place(&message);
            let new = self.known.insert(place);
            let fate = verifier.check(&message, 0).fate;
            match fate {
                Fate::Accept => {
                    assert!(new, "{place:?} was accepted twice");
                    if self.accepted.last_key_value().is_some_and(|(last, _)| *last > place) {
                        self.late += 1;
                    }
                    self.accepted.insert(place, message);
                }
                Fate::Duplicate => self.duplicates += 1,
                Fate::Refuse { step: REPLAY, .. } if !new => self.duplicates += 1,
                Fate::Refuse { .. } => assert_eq!(fate, Fate::Accept, "{place:?}"),
            }
        }
    }

    fn print(&self, stream: &str) {
        println!(
            "{stream}: {} events, all signed, each once; {} came again and were known, {} came late",
            self.accepted.len(),
            self.duplicates,
            self.late
        );
    }
}

/// Epoch and number.
fn place(message: &Message) -> (u64, u64) {
    let number = |name| message.header(name).and_then(|value| value.parse().ok());
    number(header::EPOCH).zip(number(header::SEQUENCE)).expect("numbers")
}

/// Checks all, and prints what it found.
pub(super) fn check(site: &Site, places: &BTreeMap<u32, u32>) {
    let mut verifier = verifier(&site.home);
    let (mut states, mut audit, mut keepalives) = (Sums::default(), Sums::default(), Sums::default());
    audit.add(&mut verifier, site.stored("MUSTER_AUDIT"));
    let mut read = site.read.iter().cloned();
    states.add(&mut verifier, read.next().unwrap_or_default());
    assert_eq!(states.late, 0, "a stream that nobody has deleted is in order");
    for stored in read.chain([site.stored("MUSTER_STATE")]) {
        // What went into the new stream before it was known to be new came before what the old one had.
        states.add(&mut verifier, stored);
    }
    assert_eq!(verifier.undeclared(), [], "holes that nobody has declared");
    // Of each subject only the newest are kept there: holes are its nature.
    keepalives.add(&mut verifier, site.stored("MUSTER_KEEPALIVE"));
    assert_eq!((audit.late, keepalives.late), (0, 0), "both are in order");
    states.print("MUSTER_STATE");
    audit.print("MUSTER_AUDIT");
    keepalives.print("MUSTER_KEEPALIVE");
    print_gaps(&audit);
    check_each_agent(&states, places);
    println!("MUSTER_STATE: {} agents, all their changes in order", places.len());
}

fn print_gaps(audit: &Sums) {
    let mut gaps: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for message in audit.accepted.values() {
        let gap = &json(message)["spool"];
        if let (Some(reason), Some(count)) = (gap["reason"].as_str(), gap["count"].as_u64()) {
            let stream = gap["stream"].as_str().unwrap_or_default();
            let sum = gaps.entry((stream.to_owned(), reason.to_owned())).or_default();
            *sum = (sum.0 + 1, sum.1 + count);
        }
    }
    for ((stream, reason), (times, numbers)) in &gaps {
        println!("gaps declared of stream {stream}: {times} times {reason}, {numbers} numbers");
    }
    println!("no hole that nobody has declared");
}

/// In the order of their numbers, an agent's changes are those that it had.
fn check_each_agent(states: &Sums, places: &BTreeMap<u32, u32>) {
    let mut next: BTreeMap<u32, u32> = BTreeMap::new();
    for message in states.accepted.values() {
        let change = &json(message)["status_change"];
        let agent: u32 = change["agent_id"].as_str().expect("an id").parse().expect("a number");
        let next = next.entry(agent).or_default();
        assert_eq!(
            change["missed_keepalives"], *next,
            "agent {agent}: each change once and in order"
        );
        *next += 1;
    }
    assert_eq!(&next, places, "all changes of all agents");
}

//! How far the broker's streams go, and when to ask: the broker may have lost what it had acknowledged, and then what the
//! spool still has is sent again.
//!
//! A stream may lose its end, since an acknowledgement is no promise that it survives a power cut; or somebody deletes it
//! and makes it again. The broker is asked at the beginning of a connection, and whenever what it says of an event fits
//! neither what it said before nor a stream that was there all the time.

use std::{collections::BTreeSet, time::Instant};

use serde_json::json;

use super::{
    super::{
        answer::{self, Answer, Extent},
        turns::TURNS,
    },
    ASK, Session,
};
use crate::{keeper::chain, spool::cursor::Kept};

/// What is known of one lane's stream.
#[derive(Debug, Default)]
pub(super) struct HowFar {
    /// The broker was asked, and nothing is sent until it answers, or this instant.
    pub(super) asked: Option<Instant>,
    /// What it had said before it was asked. Acknowledgements may overtake the answer.
    before: Option<Kept>,
    /// It is to be asked.
    due: bool,
    /// Which streams were asked for in this connection. A site may have several for one of ours.
    names: BTreeSet<String>,
    /// Somebody said that no stream takes the subject, and no stream has taken anything since.
    was_away: bool,
    /// An event was taken as new behind this sequence, which had been acknowledged before.
    went_back_to: Option<u64>,
}

impl HowFar {
    /// Of a new connection.
    pub(super) fn at_first() -> Self {
        Self {
            due: true,
            ..Self::default()
        }
    }
}

impl Session<'_> {
    /// Asks of the streams that it is time for, as far as it is known where events are kept.
    pub(super) async fn ask_how_far(&mut self) -> Result<(), String> {
        for (place, (stream, _)) in TURNS.iter().enumerate() {
            if !self.how_far[place].due || self.how_far[place].asked.is_some() {
                continue;
            }
            self.how_far[place].due = false;
            let kept = self.publisher.shared.spool().kept(*stream).cloned();
            if let Some(kept) = kept {
                let reply = format!("{}.i.{place}", self.inbox);
                let subject = format!("$JS.API.STREAM.INFO.{}", kept.name);
                self.hand_over(self.client.publish_with_reply(subject, reply, "".into()))
                    .await?;
                self.how_far[place].asked = Some(Instant::now() + ASK);
                self.how_far[place].names.insert(kept.name.clone());
                self.how_far[place].before = Some(kept);
            }
        }
        Ok(())
    }

    /// Looks at an answer to an event for signs that the stream is not what it was.
    pub(super) fn watch(&mut self, lane: usize, answer: &Answer, payload: &[u8]) {
        let how_far = &mut self.how_far[lane];
        match answer {
            Answer::Nobody => how_far.was_away = true,
            Answer::Kept { stream, sequence } => {
                let spool = self.publisher.shared.spool();
                let kept = spool.kept(self.lanes[lane].stream).filter(|kept| kept.name == *stream);
                let went_back = kept.is_some_and(|kept| *sequence <= kept.sequence) && !answer::is_duplicate(payload);
                if went_back {
                    let before = how_far.went_back_to.unwrap_or(u64::MAX);
                    how_far.went_back_to = Some(before.min(sequence - 1));
                }
                // Of a new stream it must be known when it was made, for the day when there is another of its name.
                let is_new = !how_far.names.contains(stream);
                how_far.due |= went_back || is_new || std::mem::take(&mut how_far.was_away);
            }
            Answer::Refused { .. } | Answer::Foreign => {}
        }
    }

    /// The broker's answer, or that there is none.
    pub(super) fn settle_how_far(&mut self, lane: usize, extent: Option<&Extent>) {
        let how_far = &mut self.how_far[lane];
        how_far.asked = None;
        let Some(kept) = how_far.before.take() else { return };
        let went_back_to = how_far.went_back_to.take();
        let stream = self.lanes[lane].stream;
        if let Some(extent) = extent {
            self.publisher
                .shared
                .spool()
                .note_created(stream, &kept.name, &extent.created);
        }
        let Some(last) = left_of(&kept.created, kept.sequence, went_back_to, extent) else {
            return;
        };
        let rewound = self.publisher.shared.spool().rewind(stream, last);
        let again = rewound.unwrap_or_else(|error| {
            tracing::error!(error = chain(&error), "cannot read the spool again");
            0
        });
        tracing::error!(
            stream = kept.name,
            acknowledged = kept.sequence,
            last,
            again,
            "the broker has lost events that it had acknowledged; what the spool still has is sent again"
        );
        self.publisher.counters.events_rewound_total.add(again);
        self.publisher.shared.note(
            "broker_lost_events",
            json!({"stream": kept.name, "acknowledged": kept.sequence, "last": last, "sent_again": again}),
        );
        self.ahead[lane].clear();
        self.lanes[lane].rewind();
    }
}

/// The last sequence of the stream under which what we know of is still there, if it has lost anything. Pure.
///
/// `created` and `acknowledged` are what the broker has said before, `went_back_to` is what its acknowledgements tell since,
/// and `extent` is what it says now.
fn left_of(created: &str, acknowledged: u64, went_back_to: Option<u64>, extent: Option<&Extent>) -> Option<u64> {
    let Some(extent) = extent else {
        // It does not say, and its acknowledgements are all there is.
        return went_back_to;
    };
    if !created.is_empty() && created != extent.created {
        return Some(0);
    }
    let last = extent.last.min(went_back_to.unwrap_or(u64::MAX));
    (last < acknowledged).then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(last: u64, created: &str) -> Option<Extent> {
        Some(Extent {
            last,
            created: created.to_owned(),
        })
    }

    #[test]
    fn stream_that_was_made_again_has_nothing_however_far_it_goes() {
        for last in [1, 99, 100, 5000] {
            assert_eq!(left_of("monday", 100, None, extent(last, "tuesday").as_ref()), Some(0));
        }
        assert_eq!(
            left_of("monday", 100, Some(0), extent(0, "").as_ref()),
            Some(0),
            "there is none"
        );
    }

    #[test]
    fn stream_that_went_back_has_what_was_there_before_it_went_on() {
        assert_eq!(left_of("monday", 100, None, extent(100, "monday").as_ref()), None);
        assert_eq!(left_of("monday", 100, None, extent(60, "monday").as_ref()), Some(60));
        assert_eq!(
            left_of("monday", 100, Some(50), extent(60, "monday").as_ref()),
            Some(50)
        );
        assert_eq!(left_of("", 100, Some(50), extent(200, "monday").as_ref()), Some(50));
    }

    #[test]
    fn without_an_answer_only_acknowledgements_count() {
        assert_eq!(left_of("monday", 100, None, None), None);
        assert_eq!(left_of("monday", 100, Some(50), None), Some(50));
    }
}

//! One file on its way to one agent: which messages come next, and when.
//!
//! ```text
//! #!-up file <sum> merged.mg LF      piece  piece  ..  piece      #!-close file
//! ```
//!
//! Acknowledgements may go between them. How fast it goes: over TCP as fast as the agent takes it; over UDP, where
//! nobody says what was lost, with a pause of a second after each 31 pieces, as the agents' own managers do.

use std::{sync::Arc, time::Duration};

use muster_proto::transport::control::{Pieces, ToAgent};

use super::library::MergedFile;
use crate::slot::{Millis, Protocol, Route};

/// Messages that are handed to a worker at once: some milliseconds of its time are not.
pub const BATCH: usize = 8;
/// Pieces that go over UDP in a row.
pub const PIECES_IN_A_ROW: usize = 31;
/// The pause behind them.
pub const PAUSE: Duration = Duration::from_secs(1);
/// Before an agent that took nothing is tried again.
pub const RETRY: Duration = Duration::from_millis(50);
/// An agent that takes nothing for so long is given up: it gets the file when it asks again.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A push under way.
#[derive(Debug)]
pub struct Push {
    file: Arc<MergedFile>,
    route: Route,
    next: Next,
    in_a_row: usize,
    not_before: Millis,
    progress: Millis,
}

/// The message that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    UpFile,
    /// The piece that begins at this byte.
    Piece(usize),
    CloseFile,
    Nothing,
}

/// What is to be done for a push now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// These go out, in this order; [`Push::taken`] hears how many did.
    Send(Vec<Vec<u8>>),
    /// Nothing before then.
    Wait(Millis),
    /// The whole file went out.
    Done,
}

/// What became of messages that were handed to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// So many went out.
    pub count: usize,
    /// Why the others did not, if there are others.
    pub stopped: Option<Stopped>,
}

/// Why a message to an agent did not go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Too much waits for the agent already. This passes.
    Full,
    /// Its connection is gone.
    Gone,
}

impl Push {
    /// A file for the agent at the end of this route.
    pub fn begin(file: Arc<MergedFile>, route: Route, now: Millis) -> Self {
        Self {
            file,
            route,
            next: Next::UpFile,
            in_a_row: 0,
            not_before: now,
            progress: now,
        }
    }

    /// Where it goes. An agent that is reached elsewhere has closed the file.
    pub fn route(&self) -> Route {
        self.route
    }

    /// The sum of what it brings.
    pub fn sum(&self) -> &str {
        &self.file.sum
    }

    /// What comes next.
    pub fn step(&self, now: Millis) -> Step {
        if self.next == Next::Nothing {
            return Step::Done;
        }
        if now < self.not_before {
            return Step::Wait(self.not_before);
        }
        let mut messages = Vec::with_capacity(BATCH);
        let (mut next, mut in_a_row) = (self.next, self.in_a_row);
        while messages.len() < BATCH && in_a_row < self.most_in_a_row() {
            let Some((message, after)) = self.message(next) else {
                break;
            };
            in_a_row += usize::from(matches!(next, Next::Piece(_)));
            next = after;
            messages.push(message);
        }
        Step::Send(messages)
    }

    /// So many of the messages of the last step went out.
    pub fn taken(&mut self, now: Millis, count: usize) {
        for _ in 0..count {
            let Some((_, after)) = self.message(self.next) else {
                break;
            };
            self.in_a_row += usize::from(matches!(self.next, Next::Piece(_)));
            self.next = after;
            self.progress = now;
        }
        self.not_before = now;
        if self.in_a_row >= self.most_in_a_row() && self.next != Next::Nothing {
            self.in_a_row = 0;
            self.not_before = now + PAUSE;
        }
    }

    /// The agent took less than it was given: wait, or give it up.
    pub fn is_stuck(&mut self, now: Millis) -> bool {
        self.not_before = self.not_before.max(now + RETRY);
        now.since(self.progress) >= PATIENCE
    }

    fn most_in_a_row(&self) -> usize {
        match self.route.protocol() {
            Protocol::Tcp => usize::MAX,
            Protocol::Udp => PIECES_IN_A_ROW,
        }
    }

    /// The payload of one message, and which one follows.
    fn message(&self, next: Next) -> Option<(Vec<u8>, Next)> {
        let piece_at = |at: usize| match self.file.content.get(at..) {
            None | Some([]) => Next::CloseFile,
            Some(_) => Next::Piece(at),
        };
        Some(match next {
            Next::UpFile => {
                let message = ToAgent::UpFile { md5: &self.file.sum };
                (message.to_bytes(), piece_at(0))
            }
            Next::Piece(at) => {
                // A border of pieces is one whether it is reached from the file's beginning or from an earlier border.
                let piece = Pieces::of(self.file.content.get(at..)?).next()?;
                (piece.to_vec(), piece_at(at + piece.len()))
            }
            Next::CloseFile => (ToAgent::CloseFile.to_bytes(), Next::Nothing),
            Next::Nothing => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::ConnectionId;

    fn file(len: usize) -> Arc<MergedFile> {
        Arc::new(MergedFile::of(vec![b'x'; len]))
    }

    fn tcp() -> Route {
        Route::Tcp {
            connection: ConnectionId::new(0, 1),
            peer: ([127, 0, 0, 1], 7).into(),
        }
    }

    fn udp() -> Route {
        Route::Udp {
            worker: 0,
            socket: 0,
            peer: ([127, 0, 0, 1], 7).into(),
        }
    }

    /// Sends everything that may go at once; the lengths of the messages.
    fn burst(push: &mut Push, now: Millis) -> Vec<usize> {
        let mut lengths = Vec::new();
        while let Step::Send(messages) = push.step(now) {
            lengths.extend(messages.iter().map(Vec::len));
            push.taken(now, messages.len());
        }
        lengths
    }

    #[test]
    fn a_file_goes_out_between_its_head_and_its_end() {
        let mut push = Push::begin(file(1941), tcp(), Millis(5));
        let Step::Send(messages) = push.step(Millis(5)) else {
            panic!("nothing to send");
        };
        let head = format!("#!-up file {} merged.mg\n", push.sum());
        assert_eq!(messages[0], head.as_bytes());
        assert_eq!(messages[1..4].iter().map(Vec::len).collect::<Vec<_>>(), [900, 900, 141]);
        assert_eq!(messages[4..], [b"#!-close file ".to_vec()]);
        push.taken(Millis(5), 5);
        assert_eq!(push.step(Millis(5)), Step::Done);
    }

    #[test]
    fn over_tcp_nothing_is_waited_for() {
        let mut push = Push::begin(file(62_787), tcp(), Millis(5));
        assert_eq!(burst(&mut push, Millis(5)).len(), 72);
        assert_eq!(push.step(Millis(5)), Step::Done);
    }

    #[test]
    fn over_udp_a_second_is_waited_after_31_pieces() {
        let mut push = Push::begin(file(62_787), udp(), Millis(1));
        let counts: Vec<usize> = [1, 1001, 2001]
            .into_iter()
            .map(|now| {
                let sent = burst(&mut push, Millis(now)).len();
                if push.step(Millis(now)) != Step::Done {
                    assert_eq!(push.step(Millis(now + 999)), Step::Wait(Millis(now + 1000)));
                }
                sent
            })
            .collect();
        // The head with the first pieces, the end with the last.
        assert_eq!(counts, [1 + 31, 31, 8 + 1]);
        assert_eq!(push.step(Millis(2001)), Step::Done);
    }

    #[test]
    fn what_was_not_taken_comes_again_in_its_place() {
        let mut push = Push::begin(file(20_000), tcp(), Millis(1));
        let Step::Send(first) = push.step(Millis(1)) else {
            panic!("nothing to send");
        };
        push.taken(Millis(1), 3);
        assert!(!push.is_stuck(Millis(1)));
        assert_eq!(push.step(Millis(2)), Step::Wait(Millis(1) + RETRY));
        let Step::Send(again) = push.step(Millis(1) + RETRY) else {
            panic!("nothing to send");
        };
        assert_eq!(again[..5], first[3..]);
    }

    #[test]
    fn an_agent_that_takes_nothing_for_a_minute_is_given_up() {
        let mut push = Push::begin(file(20_000), tcp(), Millis(1));
        push.taken(Millis(5000), 1);
        assert!(!push.is_stuck(Millis(64_999)));
        assert!(push.is_stuck(Millis(65_000)));
    }
}

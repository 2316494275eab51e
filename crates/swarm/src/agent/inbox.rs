//! What an agent does with a message from the manager.

use std::time::{Duration, Instant};

use jiff::{Timestamp, tz::TimeZone};
use md5::{Digest, Md5};
use muster_proto::transport::{
    counter::{Counter, Verdict, verify},
    envelope::CryptoForm,
};

use super::{Agent, Now, Outbox, Phase, Reconnect, What};
use crate::{account::Tally, mix::Carrier};

/// How often an unacknowledged answer is sent in all (UDP).
const ANSWER_ATTEMPTS: u8 = 4;
/// Between two of them.
const ANSWER_PAUSE: Duration = Duration::from_secs(1);
/// Answers that wait for their ack; more than these are not repeated.
const MAX_WAITING_ANSWERS: usize = 16;

/// The longest shared file whose content is kept.
const MAX_KEPT_FILE_LEN: usize = 64 * 1024 * 1024;

/// A shared file on its way in. Its content is kept only if the agent keeps files.
pub(super) struct Incoming {
    expected: String,
    sum: Md5,
    content: Vec<u8>,
}

/// A shared file that has come whole.
#[derive(Debug, PartialEq, Eq)]
pub struct SharedFile {
    /// What it holds.
    pub content: Vec<u8>,
}

/// An answer that the manager has not acknowledged.
pub(super) struct Answer {
    counter: String,
    text: Vec<u8>,
    attempts: u8,
    repeat_at: Option<Instant>,
}

impl Answer {
    pub(super) fn repeat_at(&self) -> Option<Instant> {
        self.repeat_at
    }
}

impl Agent {
    /// An opened message. Returns what to do with the connection when the agent wants another one.
    pub fn received(
        &mut self,
        now: Now,
        counter: Counter,
        payload: &[u8],
        out: &mut Outbox,
        tally: &mut Tally,
    ) -> Option<Reconnect> {
        if self.kind.family.is_ossec() {
            if self
                .manager_counter
                .is_some_and(|last| verify(last, counter) != Verdict::Fresh)
            {
                tally.stale_counters += 1;
                return None;
            }
            self.manager_counter = Some(counter);
        }
        self.heard = Some(now.at);
        let Some(control) = payload.strip_prefix(b"#!-") else {
            self.file_piece(payload, tally);
            return None;
        };
        match self.phase {
            Phase::Away => None,
            Phase::Greeting => self.answer_to_hello(now, control, out, tally),
            Phase::Connected => self.control(now, control, out, tally),
        }
    }

    /// A Wazuh agent takes the first message for the answer; an OSSEC agent waits on.
    fn answer_to_hello(&mut self, now: Now, control: &[u8], out: &mut Outbox, tally: &mut Tally) -> Option<Reconnect> {
        if control == b"agent ack " {
            self.settle(now, out, tally);
            return None;
        }
        if control.starts_with(b"err ") {
            tally.startups_refused += 1;
        } else {
            tally.unknown_messages += 1;
        }
        (!self.kind.family.is_ossec()).then_some(Reconnect::Later)
    }

    fn control(&mut self, now: Now, control: &[u8], out: &mut Outbox, tally: &mut Tally) -> Option<Reconnect> {
        let wazuh = !self.kind.family.is_ossec();
        if control == b"agent ack " {
            if self.unacked_keepalives > 0 {
                self.unacked_keepalives -= 1;
                tally.keepalives_acked += 1;
                if let Some(asked) = self.asked.take() {
                    tally.keepalive_wait.note(now.at.saturating_duration_since(asked));
                }
            } else {
                tally.unasked_acks += 1;
            }
        } else if let Some(head) = control.strip_prefix(b"up file ") {
            tally.push_messages += 1;
            self.file_begins(head, tally);
        } else if control == b"close file " {
            tally.push_messages += 1;
            self.file_ends(tally);
        } else if control.starts_with(b"execd ") || control == b"syscheck restart" {
            tally.orders_received += 1;
        } else if let Some(request) = control.strip_prefix(b"req ").filter(|_| wazuh) {
            self.request(now, request, out, tally);
        } else if control == b"force_reconnect" && wazuh {
            tally.reconnect_orders += 1;
            return Some(Reconnect::Now);
        } else {
            tally.unknown_messages += 1;
            self.break_file_off(tally);
        }
        None
    }

    fn request(&mut self, now: Now, request: &[u8], out: &mut Outbox, tally: &mut Tally) {
        let end = request.iter().position(|byte| *byte == b' ').unwrap_or(request.len());
        let (counter, rest) = request.split_at(end);
        let counter = String::from_utf8_lossy(counter).into_owned();
        let data = rest.strip_prefix(b" ").unwrap_or(rest);
        if data == b"ack" {
            self.answers.retain(|answer| answer.counter != counter);
            return;
        }
        let answer = match data {
            b"agent getstate" => self.state_text(now),
            b"agent getconfig client" => self.config_text(),
            _ if data.starts_with(b"agent getconfig ") => "err Could not get requested section".to_owned(),
            _ if data.starts_with(b"agent ") => "err Unrecognized command".to_owned(),
            _ => "err No such file or directory".to_owned(),
        };
        tally.requests_answered += 1;
        let udp = self.kind.carrier == Carrier::Udp;
        if udp {
            out.push(What::Answer, format!("#!-req {counter} ack").as_bytes());
        }
        let text = format!("#!-req {counter} {answer}").into_bytes();
        out.push(What::Answer, &text);
        if udp && self.answers.len() < MAX_WAITING_ANSWERS {
            self.answers.retain(|answer| answer.counter != counter);
            self.answers.push(Answer {
                counter,
                text,
                attempts: 1,
                repeat_at: now.at.checked_add(ANSWER_PAUSE),
            });
        }
    }

    fn state_text(&self, now: Now) -> String {
        let keepalive = self.last_keepalive_unix.map(clock_text).unwrap_or_default();
        format!(
            r#"{{"error":0,"data":{{"status":"connected","last_keepalive":"{keepalive}","last_ack":"{}","msg_count":0,"msg_sent":{},"msg_buffer":0,"buffer_enabled":true}}}}"#,
            clock_text(now.unix),
            self.events_made,
        )
    }

    fn config_text(&self) -> String {
        format!(
            r#"ok {{"client":{{"config-profile":"swarm","notify_time":{},"time-reconnect":{},"force_reconnect_interval":0,"auto_restart":"no","remote_conf":"yes","crypto_method":"{}"}}}}"#,
            self.habits.notify_time.as_secs(),
            self.habits.reconnect_after.as_secs(),
            if self.kind.form == CryptoForm::Blowfish {
                "blowfish"
            } else {
                "aes"
            },
        )
    }

    pub(super) fn repeat_answers(&mut self, now: Now, out: &mut Outbox, tally: &mut Tally) {
        self.answers.retain_mut(|answer| {
            if answer.repeat_at.is_some_and(|at| now.at < at) {
                return true;
            }
            if answer.attempts >= ANSWER_ATTEMPTS {
                return false;
            }
            answer.attempts += 1;
            answer.repeat_at = now.at.checked_add(ANSWER_PAUSE);
            tally.answers_repeated += 1;
            out.push(What::Answer, &answer.text);
            true
        });
    }

    fn file_begins(&mut self, head: &[u8], tally: &mut Tally) {
        self.break_file_off(tally);
        let head = String::from_utf8_lossy(head);
        let Some((expected, "merged.mg")) = head.trim_end_matches('\n').split_once(' ') else {
            tally.unknown_messages += 1;
            return;
        };
        self.incoming = Some(Incoming {
            expected: expected.to_owned(),
            sum: Md5::new(),
            content: Vec::new(),
        });
    }

    fn file_piece(&mut self, piece: &[u8], tally: &mut Tally) {
        tally.push_messages += 1;
        match &mut self.incoming {
            Some(incoming) => {
                incoming.sum.update(piece);
                if self.habits.keeps_files && incoming.content.len() + piece.len() <= MAX_KEPT_FILE_LEN {
                    incoming.content.extend_from_slice(piece);
                }
            }
            None => tally.unknown_messages += 1,
        }
    }

    fn file_ends(&mut self, tally: &mut Tally) {
        let Some(Incoming { expected, sum, content }) = self.incoming.take() else {
            return;
        };
        let sum: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if sum == expected {
            tally.pushes_taken += 1;
            self.merged_sum = Some(sum);
            if self.habits.keeps_files {
                self.taken = Some(SharedFile { content });
            }
        } else {
            tally.pushes_broken += 1;
            self.merged_sum = None;
        }
    }

    fn break_file_off(&mut self, tally: &mut Tally) {
        if self.incoming.take().is_some() {
            tally.pushes_broken += 1;
            self.merged_sum = None;
        }
    }
}

fn clock_text(unix: i64) -> String {
    Timestamp::from_second(unix)
        .map(|time| time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S").to_string())
        .unwrap_or_default()
}

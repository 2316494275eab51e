//! What follows from a message that was opened and admitted.

use std::sync::Arc;

use muster_proto::transport::control::{
    FromAgent, HIGHER_VERSION, NO_VERSION, StartupVerdict, ToAgent, is_control, startup_verdict,
};

use super::{Origin, Rules};
use crate::{
    edge::Tally,
    slot::{AgentSlot, Millis, News, StartupOutcome},
};

/// What is done about a valid message: all of it, in the order of the fields.
#[derive(Debug)]
pub struct Decision<'p> {
    /// Whether answers to the agent go where this message came from.
    pub binding: Binding,
    /// What is answered, before anything else happens.
    pub reply: Option<Reply>,
    /// What the roster hears.
    pub news: Option<News>,
    /// What goes to the analysis daemon.
    pub event: Option<&'p [u8]>,
    /// What it is counted as.
    pub tally: Tally,
}

/// What a message does to its agent's route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Nothing: events.
    Keep,
    /// Answers go there from now on: every control message but a goodbye.
    Bind,
    /// The agent is going: when the connection ends that is no loss.
    Goodbye,
}

/// An answer to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Heard.
    Ack,
    /// A hello of too high a version.
    HigherVersion,
    /// A hello whose JSON has no version.
    NoVersion,
}

impl Reply {
    /// The payload.
    pub fn write(self, payload: &mut Vec<u8>) {
        match self {
            Self::Ack => ToAgent::Ack,
            Self::HigherVersion => ToAgent::Refusal(HIGHER_VERSION.into()),
            Self::NoVersion => ToAgent::Refusal(NO_VERSION.into()),
        }
        .write(payload);
    }
}

/// Decides about a valid message. All that it changes is what the agent said of itself last, and that the news of its
/// return is told once.
pub fn decide<'p>(
    slot: &Arc<AgentSlot>,
    payload: &'p [u8],
    origin: &Origin,
    now: Millis,
    rules: &Rules,
) -> Decision<'p> {
    if !is_control(payload) {
        return Decision {
            binding: Binding::Keep,
            reply: None,
            news: heard_again(slot, origin, now),
            event: Some(payload),
            tally: Tally::Events,
        };
    }
    let bound = |reply, news, tally| Decision {
        binding: Binding::Bind,
        reply,
        news,
        event: None,
        tally,
    };
    match FromAgent::parse(payload) {
        Some(FromAgent::Startup(text)) => {
            let verdict = startup_verdict(&text, &rules.manager_version.to_string(), rules.allow_higher_versions);
            let (reply, outcome) = match verdict {
                StartupVerdict::Accepted { version } => (Reply::Ack, StartupOutcome::Accepted { version }),
                StartupVerdict::Higher { version } => {
                    (Reply::HigherVersion, StartupOutcome::RefusedVersion { version })
                }
                StartupVerdict::NoVersion => (Reply::NoVersion, StartupOutcome::NoVersion),
            };
            let tally = if reply == Reply::Ack {
                Tally::Startups
            } else {
                Tally::StartupsRefused
            };
            let news = News::Startup {
                slot: Arc::clone(slot),
                at: now,
                peer: origin.peer(),
                protocol: origin.protocol(),
                outcome,
            };
            bound(Some(reply), Some(news), tally)
        }
        Some(FromAgent::Keepalive(text)) => {
            let news = News::Keepalive {
                slot: Arc::clone(slot),
                at: now,
                peer: origin.peer(),
                protocol: origin.protocol(),
                said: slot.say(&text),
            };
            bound(Some(Reply::Ack), Some(news), Tally::Keepalives)
        }
        Some(FromAgent::Shutdown) => Decision {
            binding: Binding::Goodbye,
            reply: None,
            news: Some(News::Shutdown {
                slot: Arc::clone(slot),
                at: now,
            }),
            event: None,
            tally: Tally::Shutdowns,
        },
        Some(FromAgent::Answer { request, answer }) => {
            let news = News::Answer {
                slot: Arc::clone(slot),
                at: now,
                counter: request.to_string(),
                body: answer.to_vec(),
            };
            bound(None, Some(news), Tally::Answers)
        }
        Some(FromAgent::RequestAck(_)) => bound(None, heard_again(slot, origin, now), Tally::Answers),
        Some(FromAgent::StrayAnswer | FromAgent::MalformedAnswer | FromAgent::Invalid(_)) | None => {
            bound(None, heard_again(slot, origin, now), Tally::ControlUnknown)
        }
    }
}

fn heard_again(slot: &Arc<AgentSlot>, origin: &Origin, now: Millis) -> Option<News> {
    slot.revival_is_news().then(|| News::HeardAgain {
        slot: Arc::clone(slot),
        at: now,
        peer: origin.peer(),
        protocol: origin.protocol(),
    })
}

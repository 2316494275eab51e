//! How a request can end. The words are those of events, counters and reports, and never change.

use crate::{
    answer::{Answer, NO_SUCH_AGENT, Unusable},
    flow::Remember,
    registrar::{Change, RegistrarError},
    source::SourceError,
};

/// How a look-up ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The agent was registered.
    Registered,
    /// The agent was registered in place of what was known under its id.
    Replaced,
    /// The agent was known as it is.
    Unchanged,
    /// The source has no such agent.
    NotFound,
    /// The source answered with another error.
    SourceError,
    /// The source's answer cannot be used.
    Malformed,
    /// The source answered for somebody else.
    OtherAgent,
    /// The source did not answer in time.
    TimedOut,
    /// The source cannot be reached, or failed without an answer.
    SourceFailed,
    /// authd refused the agent.
    Refused,
    /// authd could not be asked.
    AuthdAway,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Registered,
        Self::Replaced,
        Self::Unchanged,
        Self::NotFound,
        Self::SourceError,
        Self::Malformed,
        Self::OtherAgent,
        Self::TimedOut,
        Self::SourceFailed,
        Self::Refused,
        Self::AuthdAway,
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
            Self::NotFound => "not_found",
            Self::SourceError => "source_error",
            Self::Malformed => "malformed",
            Self::OtherAgent => "other_agent",
            Self::TimedOut => "timed_out",
            Self::SourceFailed => "source_failed",
            Self::Refused => "refused",
            Self::AuthdAway => "authd_away",
        }
    }

    /// The last token of the event's subject: the agent can come in now, or it cannot.
    pub fn stage(self) -> &'static str {
        match self {
            Self::Registered | Self::Replaced | Self::Unchanged => "resolved",
            _ => "failed",
        }
    }

    /// How long it is remembered. What says nothing about the agent is not, or only for a moment: the source may be
    /// back when the agent knocks again.
    pub fn remember(self) -> Remember {
        match self {
            Self::Registered | Self::Replaced => Remember::UntilSettled,
            Self::Unchanged | Self::NotFound | Self::Refused => Remember::Fully,
            Self::SourceError | Self::Malformed | Self::OtherAgent => Remember::Briefly,
            Self::TimedOut | Self::SourceFailed | Self::AuthdAway => Remember::No,
        }
    }

    /// Of an answer without an agent. Any number but that of the documented "no such agent" may mean that the database
    /// is away, and passes sooner.
    pub fn of_code(code: i64) -> Self {
        match code {
            NO_SUCH_AGENT => Self::NotFound,
            _ => Self::SourceError,
        }
    }
}

impl From<Unusable> for Outcome {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::OtherId | Unusable::OtherAddress => Self::OtherAgent,
            _ => Self::Malformed,
        }
    }
}

impl From<&SourceError> for Outcome {
    fn from(error: &SourceError) -> Self {
        match error {
            SourceError::TimedOut(_) => Self::TimedOut,
            _ => Self::SourceFailed,
        }
    }
}

impl From<Change> for Outcome {
    fn from(change: Change) -> Self {
        match change {
            Change::New => Self::Registered,
            Change::Different => Self::Replaced,
            Change::None => Self::Unchanged,
        }
    }
}

impl From<&RegistrarError> for Outcome {
    fn from(error: &RegistrarError) -> Self {
        match error {
            RegistrarError::Refused(_) | RegistrarError::Answer(_) => Self::Refused,
            _ => Self::AuthdAway,
        }
    }
}

/// What the sources say about one look-up.
#[derive(Debug)]
pub enum Found {
    /// The agent, and who knew it.
    Agent(crate::answer::Agent),
    /// None, why, and the same in words for people.
    Nothing(Outcome, String),
}

impl Found {
    /// Of what was written, or of the last thing that went wrong.
    pub fn of(looked: &crate::source::Looked, lookup: &crate::lookup::Lookup) -> Self {
        if let Some((_, written)) = &looked.written {
            return match Answer::read(written, lookup) {
                Ok(Answer::Agent(agent)) => Self::Agent(agent),
                Ok(Answer::Error { code, message }) => {
                    let message = crate::process::words::masked(&message, None);
                    Self::Nothing(
                        Outcome::of_code(code),
                        format!("the source answers: {message} ({code})"),
                    )
                }
                Err(unusable) => Self::Nothing(unusable.into(), unusable.to_string()),
            };
        }
        match looked.errors.last() {
            Some((kind, error)) => Self::Nothing(error.into(), format!("{}: {}", kind.as_str(), chain(error))),
            None => Self::Nothing(Outcome::SourceFailed, "no source is configured".to_owned()),
        }
    }
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_outcome_has_a_word_of_its_own() {
        let words: HashSet<_> = Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
        assert_eq!(words.len(), Outcome::ALL.len());
    }

    #[test]
    fn only_what_is_known_of_the_agent_is_remembered_for_long() {
        let long: Vec<_> = Outcome::ALL
            .into_iter()
            .filter(|outcome| outcome.remember() == Remember::Fully)
            .collect();
        assert_eq!(long, [Outcome::Unchanged, Outcome::NotFound, Outcome::Refused]);
        assert_eq!(Outcome::of_code(4), Outcome::NotFound);
        assert_eq!(
            Outcome::of_code(2),
            Outcome::SourceError,
            "the example scripts' number for a database that is away"
        );
    }
}

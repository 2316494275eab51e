//! What agents say.

use std::{borrow::Cow, io::Write};

use serde_json::Value;

use super::{HEADER, REQUEST, REQUEST_ACK, RequestId, SHUTDOWN, STARTUP, until_nul};

/// A control message from an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromAgent<'a> {
    /// Hello. Give the text to [`startup_verdict`]; it is empty from old and OSSEC agents.
    Startup(Cow<'a, str>),
    /// Goodbye. It is not acknowledged.
    Shutdown,
    /// The agent has heard a request and is at work on it.
    RequestAck(RequestId),
    /// The answer to a request: any bytes, or none.
    Answer {
        /// Which request.
        request: RequestId,
        /// What the local program that asked gets, as it is.
        answer: &'a [u8],
    },
    /// An answer to no request that we can have made. Drop it in silence.
    StrayAnswer,
    /// An answer without a space behind its number. Whoever asked goes on waiting.
    MalformedAnswer,
    /// How the agent is, without the `#!-`; [`Keepalive::parse`](super::super::keepalive::Keepalive::parse) reads it.
    Keepalive(Cow<'a, str>),
    /// None of these: no line feed, so no keepalive. It gets no answer, but the connection is bound to the agent by it.
    Invalid(Cow<'a, str>),
}

impl<'a> FromAgent<'a> {
    /// Reads a payload; `None` if it is an event.
    ///
    /// Bytes that are not UTF-8 are replaced by U+FFFD, one for each, except in answers.
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let body = payload.strip_prefix(HEADER)?;
        if let Some(rest) = payload.strip_prefix(REQUEST) {
            return Some(parse_answer(rest));
        }
        let body = until_nul(body);
        let payload = until_nul(payload);
        Some(if let Some(text) = payload.strip_prefix(STARTUP) {
            Self::Startup(repaired(text))
        } else if payload == SHUTDOWN {
            Self::Shutdown
        } else if body.contains(&b'\n') {
            Self::Keepalive(repaired(body))
        } else {
            Self::Invalid(repaired(body))
        })
    }

    /// The payload, as an agent writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Startup(text) => [STARTUP, text.as_bytes()].concat(),
            Self::Shutdown => SHUTDOWN.to_vec(),
            Self::RequestAck(request) => answer(*request, REQUEST_ACK),
            Self::Answer { request, answer: data } => answer(*request, data),
            // No number at all is one that nobody waits for.
            Self::StrayAnswer => [REQUEST, b" "].concat(),
            Self::MalformedAnswer => REQUEST.to_vec(),
            Self::Keepalive(text) | Self::Invalid(text) => [HEADER, text.as_bytes()].concat(),
        }
    }
}

fn parse_answer(rest: &[u8]) -> FromAgent<'_> {
    let Some(space) = memchr::memchr(b' ', rest) else {
        return FromAgent::MalformedAnswer;
    };
    let (number, answer) = rest.split_at_checked(space).unwrap_or((rest, &[]));
    let answer = answer.strip_prefix(b" ").unwrap_or_default();
    match RequestId::from_text(number) {
        Some(request) if answer == REQUEST_ACK => FromAgent::RequestAck(request),
        Some(request) => FromAgent::Answer { request, answer },
        None => FromAgent::StrayAnswer,
    }
}

fn answer(request: RequestId, data: &[u8]) -> Vec<u8> {
    let mut payload = REQUEST.to_vec();
    // Writing to a Vec cannot fail.
    let _ = write!(payload, "{request} ");
    payload.extend_from_slice(data);
    payload
}

/// Text with U+FFFD for each byte that does not belong to UTF-8, so that its length in characters is that of stock.
fn repaired(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    Cow::Owned(text)
}

/// What becomes of a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartupVerdict {
    /// Acknowledge it.
    Accepted {
        /// The version it names, if it names one.
        version: Option<String>,
    },
    /// Refuse it with [`HIGHER_VERSION`](super::HIGHER_VERSION).
    Higher {
        /// The version it names.
        version: String,
    },
    /// Refuse it with [`NO_VERSION`](super::NO_VERSION): there is JSON, and no version in it.
    NoVersion,
}

/// Judges the text behind a hello. Only major and minor number count, and what is no number counts as 0, so that a
/// hello is refused for a version that certainly is higher and for no other.
pub fn startup_verdict(text: &str, manager_version: &str, allow_higher: bool) -> StartupVerdict {
    // Stock code reads the first JSON value and ignores what follows it; anything but an object is no JSON to it.
    let Some(Ok(Value::Object(hello))) = serde_json::Deserializer::from_str(text).into_iter::<Value>().next() else {
        return StartupVerdict::Accepted { version: None };
    };
    let Some(version) = hello.get("version").and_then(Value::as_str) else {
        return StartupVerdict::NoVersion;
    };
    let version = version.to_owned();
    if !allow_higher && release(&version) > release(manager_version) {
        StartupVerdict::Higher { version }
    } else {
        StartupVerdict::Accepted { version: Some(version) }
    }
}

/// Major and minor number of `v4.14.7`, `4.14.7` or `Wazuh v4.14.7`.
fn release(version: &str) -> (u32, u32) {
    let numbers = version.split_once('v').map_or(version, |(_, numbers)| numbers);
    let mut numbers = numbers.split('.').map(|number| {
        let digits = number
            .len()
            .saturating_sub(number.trim_start_matches(|digit: char| digit.is_ascii_digit()).len());
        match number.get(..digits) {
            None | Some("") => 0,
            // More digits than fit are higher than any version.
            Some(digits) => digits.parse().unwrap_or(u32::MAX),
        }
    });
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

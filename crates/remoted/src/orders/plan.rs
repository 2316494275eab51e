//! Who gets what, decided without a socket.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use muster_proto::{
    local::active_response::{Audience, Kind, Order, to_text},
    transport::{
        control::{EXECD, HEADER, ToAgent},
        keepalive::Family,
    },
};

use crate::{
    keys::KeyTable,
    reach::{Content, Obstacle, Reach},
    slot::{AgentSlot, Millis},
};

/// The first Wazuh release whose active responses are JSON.
const JSON_SINCE: (u16, u16) = (4, 2);
/// What follows the id in an SCA request.
const SCA: &[u8] = b"sca-dump";
/// Orders that may wait until their agents have received their files.
pub const MAX_HELD: usize = 4096;
/// How long an order waits for that: longer than the largest file takes.
const HELD_FOR: Duration = Duration::from_secs(300);

/// A message to an agent, as it goes out.
#[derive(Clone, Debug)]
pub struct Planned {
    /// To whom.
    pub slot: Arc<AgentSlot>,
    /// Control header included.
    pub message: Vec<u8>,
}

/// What is done with a planned message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Send it now.
    Send,
    /// Keep it until the agent has received its file.
    Hold,
    /// The agent is not there.
    Away,
    /// The agent would not understand.
    Foreign,
}

/// The agents that an audience is made of, or the id that is nobody's.
pub fn recipients<'o>(audience: &'o Audience<'_>, table: &KeyTable) -> Result<Vec<Arc<AgentSlot>>, &'o str> {
    match audience {
        Audience::Everyone => Ok(table.slots().cloned().collect()),
        Audience::Nobody => Ok(Vec::new()),
        Audience::EventAgent(id) | Audience::Agent(id) => {
            table.by_id(id).map(|slot| vec![Arc::clone(slot)]).ok_or(id.as_ref())
        }
    }
}

/// What an agent gets. Active responses in JSON become text for agents that only know text; all else goes as it came.
pub fn message(order: &Order<'_>, slot: &AgentSlot) -> Vec<u8> {
    let text = (order.kind == Kind::ActiveResponse && wants_text(slot))
        .then(|| to_text(order.body))
        .flatten();
    match text {
        Some(text) => ToAgent::Execd(&text).to_bytes(),
        None => order.message().to_bytes(),
    }
}

/// Whether the agent is so old, or of such a family, that it takes JSON for a malformed line.
fn wants_text(slot: &AgentSlot) -> bool {
    match slot.family() {
        Some(Family::Ossec) => true,
        Some(Family::Wazuh) | None => slot.release().is_some_and(|release| release < JSON_SINCE),
    }
}

/// Reads an SCA request: the agent's id, and the message. Anything else is passed over in silence, as stock does.
pub fn sca(datagram: &[u8]) -> Option<(&str, Vec<u8>)> {
    let text = memchr::memchr(0, datagram).map_or(Some(datagram), |end| datagram.get(..end))?;
    let (id, rest) = text.split_at_checked(memchr::memchr(b':', text)?)?;
    let body = rest.strip_prefix(b":").filter(|body| body.starts_with(SCA))?;
    Some((std::str::from_utf8(id).ok()?, ToAgent::Other(body).to_bytes()))
}

/// Whether a message is an SCA request.
pub fn is_sca(message: &[u8]) -> bool {
    message.strip_prefix(HEADER).is_some_and(|body| body.starts_with(SCA))
}

/// What is done with a message now.
pub fn judge(planned: &Planned, reach: &Reach, now: Millis) -> Outcome {
    let content = if planned.message.starts_with(EXECD) {
        Content::ActiveResponse
    } else {
        Content::Control(&planned.message)
    };
    match reach.judge(&planned.slot, content, now) {
        Ok(()) => Outcome::Send,
        Err(Obstacle::Away) => Outcome::Away,
        Err(Obstacle::Foreign) => Outcome::Foreign,
        Err(Obstacle::Busy) => Outcome::Hold,
    }
}

/// Messages for agents that receive a file, in the order in which they came.
#[derive(Debug, Default)]
pub struct Held(VecDeque<(Millis, Planned)>);

impl Held {
    /// Keeps a message. Not when there are [`MAX_HELD`] already.
    #[must_use]
    pub fn push(&mut self, planned: Planned, now: Millis) -> bool {
        let room = self.0.len() < MAX_HELD;
        if room {
            self.0.push_back((now + HELD_FOR, planned));
        }
        room
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that may be sent now. What has waited for too long, and what its agent is not there for any more, is
    /// dropped.
    pub fn ready(&mut self, reach: &Reach, now: Millis) -> Vec<Planned> {
        let mut ready = Vec::new();
        let held = std::mem::take(&mut self.0);
        for (until, planned) in held {
            match judge(&planned, reach, now) {
                Outcome::Send => ready.push(planned),
                Outcome::Hold if now < until => self.0.push_back((until, planned)),
                Outcome::Hold | Outcome::Away | Outcome::Foreign => {}
            }
        }
        ready
    }
}

#[cfg(test)]
mod tests;

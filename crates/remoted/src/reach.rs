//! Whether something may be sent to an agent now. All that goes to agents besides answers asks here.
//!
//! * Nothing goes to an agent that has been silent for longer than `agents_disconnection_time`, or that has no place
//!   where answers go.
//! * Nothing goes to an agent that would log it as unknown: OSSEC's know no requests and no order to reconnect.
//! * While a file is on its way, nothing goes that destroys it.
//!
//! That nothing goes between a hello and its acknowledgement needs no rule: the worker that binds the agent's place
//! answers the hello before it looks at anything else.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use muster_proto::transport::{control::SYSCHECK_RESTART, envelope::CryptoForm, keepalive::Family};

use crate::slot::{AgentSlot, Millis};

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// `#!-req ..`
    Request,
    /// `#!-execd ..`
    ActiveResponse,
    /// Any other control message, as it goes out.
    Control(&'a [u8]),
}

/// Why it may not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It was not heard for too long, or has never said a control message to this process.
    Away,
    /// It would not understand.
    Foreign,
    /// It receives a file. This passes.
    Busy,
}

/// The rules in force.
#[derive(Debug)]
pub struct Reach {
    silence_ms: AtomicU64,
}

impl Reach {
    /// Agents count as away after so much silence.
    pub fn new(disconnection_time: Duration) -> Self {
        Self {
            silence_ms: AtomicU64::new(millis(disconnection_time)),
        }
    }

    /// The configuration was read again.
    pub fn set_disconnection_time(&self, time: Duration) {
        self.silence_ms.store(millis(time), Ordering::Relaxed);
    }

    /// `agents_disconnection_time`, as it is in force.
    pub fn disconnection_time(&self) -> Duration {
        Duration::from_millis(self.silence_ms.load(Ordering::Relaxed))
    }

    /// Whether an agent is there to hear anything.
    pub fn is_there(&self, slot: &AgentSlot, now: Millis) -> bool {
        let heard = slot.heard();
        !heard.is_never() && now.since(heard) <= self.disconnection_time() && slot.route().is_some()
    }

    /// Whether this may be sent to this agent now.
    pub fn judge(&self, slot: &AgentSlot, content: Content<'_>, now: Millis) -> Result<(), Obstacle> {
        if !self.is_there(slot, now) {
            return Err(Obstacle::Away);
        }
        match (family(slot), content) {
            (_, Content::ActiveResponse) | (Family::Wazuh, Content::Request) => Ok(()),
            (Family::Ossec, Content::Request) => Err(Obstacle::Foreign),
            (Family::Ossec, Content::Control(message)) if message != SYSCHECK_RESTART => Err(Obstacle::Foreign),
            (_, Content::Control(_)) if slot.receives_file() => Err(Obstacle::Busy),
            (_, Content::Control(_)) => Ok(()),
        }
    }
}

/// Whose agent it is. Before its first keepalive its cipher tells, and who cannot be told is treated with the greater
/// care.
fn family(slot: &AgentSlot) -> Family {
    slot.family().unwrap_or(match slot.form() {
        CryptoForm::WazuhAes => Family::Wazuh,
        CryptoForm::OssecAes | CryptoForm::Blowfish => Family::Ossec,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use muster_proto::{keys::file, transport::control::FORCE_RECONNECT};

    use super::*;
    use crate::slot::Route;

    const NOW: Millis = Millis(100_000);
    const SILENCE: Duration = Duration::from_secs(40);

    fn agent(family: Option<Family>, form: CryptoForm) -> AgentSlot {
        let slot = AgentSlot::new(&file::parse(b"001 a any k\n").entries[0]);
        slot.hear(NOW);
        slot.set_form(form);
        slot.bind(Route::Udp {
            worker: 0,
            socket: 0,
            peer: "127.0.0.1:9".parse().unwrap(),
        });
        if let Some(family) = family {
            slot.set_family(family);
        }
        slot
    }

    #[test]
    fn who_is_silent_for_longer_than_the_disconnection_time_or_unbound_gets_nothing() {
        let reach = Reach::new(SILENCE);
        let slot = agent(Some(Family::Wazuh), CryptoForm::WazuhAes);
        assert_eq!(reach.judge(&slot, Content::ActiveResponse, NOW + SILENCE), Ok(()));
        let later = NOW + SILENCE + Duration::from_millis(1);
        assert_eq!(reach.judge(&slot, Content::ActiveResponse, later), Err(Obstacle::Away));
        let unbound = AgentSlot::new(&file::parse(b"001 a any k\n").entries[0]);
        unbound.hear(NOW);
        assert_eq!(reach.judge(&unbound, Content::ActiveResponse, NOW), Err(Obstacle::Away));
    }

    #[test]
    fn each_family_gets_what_it_understands_and_what_a_running_file_survives() {
        let reach = Reach::new(SILENCE);
        let wazuh = agent(Some(Family::Wazuh), CryptoForm::Blowfish);
        let ossec = agent(Some(Family::Ossec), CryptoForm::Blowfish);
        let new_wazuh = agent(None, CryptoForm::WazuhAes);
        let unknown = agent(None, CryptoForm::Blowfish);
        let reconnect = Content::Control(FORCE_RECONNECT);
        let scan = Content::Control(SYSCHECK_RESTART);
        let (foreign, busy) = (Err(Obstacle::Foreign), Err(Obstacle::Busy));
        for (slot, content, idle, receiving) in [
            (&wazuh, Content::Request, Ok(()), Ok(())),
            (&wazuh, Content::ActiveResponse, Ok(()), Ok(())),
            (&wazuh, reconnect, Ok(()), busy),
            (&new_wazuh, Content::Request, Ok(()), Ok(())),
            (&unknown, Content::Request, foreign, foreign),
            (&ossec, Content::Request, foreign, foreign),
            (&ossec, Content::ActiveResponse, Ok(()), Ok(())),
            (&ossec, reconnect, foreign, foreign),
            (&ossec, scan, Ok(()), busy),
        ] {
            slot.set_receives_file(false);
            assert_eq!(reach.judge(slot, content, NOW), idle, "{content:?}");
            slot.set_receives_file(true);
            assert_eq!(reach.judge(slot, content, NOW), receiving, "{content:?}, receiving");
        }
    }
}

//! Keys that went from the file although authd, its only writer, still has them: somebody else took them out.
//!
//! An agent's removal is ordinary when it went through authd, or when its line was marked as removed. A line that is
//! merely gone, while its agent is connected, is the work of an editor, a broken disk or an attacker. authd writes it
//! again with its next change; until then the agent is cut off, and nobody would know why.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use muster_proto::{
    agent::AgentStatus,
    local::auth::{self, Answer, Request},
};
use zeroize::Zeroizing;

use crate::slot::AgentSlot;

/// How long authd may take for all answers. Meanwhile a change of keys is not in force.
const PATIENCE: Duration = Duration::from_secs(1);
/// Agents that are asked for. When authd has all of them, it has the others too.
const MAX_ASKED: usize = 64;

/// Those of the vanished agents that are connected and that authd still has. Without an answer of authd, none.
pub(super) fn taken(socket: &Path, vanished: &[Arc<AgentSlot>]) -> Vec<Arc<AgentSlot>> {
    let is_there = |slot: &&Arc<AgentSlot>| matches!(slot.status(), AgentStatus::Active | AgentStatus::Pending);
    let there: Vec<_> = vanished.iter().filter(is_there).cloned().collect();
    let until = Instant::now() + PATIENCE;
    let has = |slot: &AgentSlot| match ask(socket, slot, until) {
        Ok(has) => has,
        Err(error) => {
            tracing::debug!(%error, agent_id = slot.id.as_str(), "authd does not say whether it has removed an agent");
            false
        }
    };
    judge(&there, MAX_ASKED, has)
}

fn judge(there: &[Arc<AgentSlot>], most: usize, has: impl Fn(&AgentSlot) -> bool) -> Vec<Arc<AgentSlot>> {
    let (asked, others) = there.split_at(there.len().min(most));
    let mut taken: Vec<_> = asked.iter().filter(|slot| has(slot)).cloned().collect();
    if taken.len() == asked.len() {
        taken.extend_from_slice(others);
    }
    taken
}

/// Whether authd has this agent.
fn ask(socket: &Path, slot: &AgentSlot, until: Instant) -> io::Result<bool> {
    let left = || {
        let left = until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left).ok_or(io::ErrorKind::TimedOut)
    };
    left()?;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(left()?))?;
    stream.set_read_timeout(Some(left()?))?;
    let request = Request::Get { id: slot.id.clone() };
    stream.write_all(&auth::frame(&request.to_payload()))?;
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let length = auth::payload_len(header).ok_or(io::ErrorKind::InvalidData)?;
    // It holds the key.
    let mut payload = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut payload)?;
    Ok(matches!(Answer::parse(&payload), Ok(Answer::Agent(agent)) if *agent.name == *slot.name))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use muster_proto::{
        keys::file,
        local::auth::{AgentData, ErrorCode},
    };

    use super::*;
    use crate::keys::KeyTable;

    /// Agents 001 to 003; the last one is away.
    fn slots() -> Vec<Arc<AgentSlot>> {
        let file = file::parse(b"001 web any k\n002 db any k\n003 old any k\n");
        let (_, changes) = KeyTable::default().next(&file);
        let mut slots = changes.added;
        slots.sort_by(|one, other| one.id.as_str().cmp(other.id.as_str()));
        slots[0].set_status(AgentStatus::Active);
        slots[1].set_status(AgentStatus::Pending);
        slots[2].set_status(AgentStatus::Disconnected);
        slots
    }

    fn ids(slots: &[Arc<AgentSlot>]) -> Vec<&str> {
        slots.iter().map(|slot| slot.id.as_str()).collect()
    }

    /// An authd that has these ids, each under the name `web`.
    fn authd(socket: &Path, has: &'static [&'static str], connections: usize) -> thread::JoinHandle<()> {
        let listener = UnixListener::bind(socket).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().take(connections) {
                let mut stream = stream.unwrap();
                let mut header = [0; 4];
                stream.read_exact(&mut header).unwrap();
                let mut payload = vec![0; auth::payload_len(header).unwrap()];
                stream.read_exact(&mut payload).unwrap();
                let Ok(Request::Get { id }) = Request::parse(&payload) else {
                    panic!("another question")
                };
                let answer = if has.contains(&id.as_str()) {
                    Answer::Agent(AgentData {
                        id: id.to_string(),
                        name: "web".to_owned(),
                        ip: "any".to_owned(),
                        key: "k".to_owned(),
                    })
                } else {
                    Answer::Error(ErrorCode::IdNotFound)
                };
                stream.write_all(&auth::frame(&answer.to_payload())).unwrap();
            }
        })
    }

    #[test]
    fn who_is_connected_and_whom_authd_still_has_was_taken() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("auth");
        // 002 is known to it under another name, 003 is away and not asked for.
        let authd = authd(&socket, &["001", "002", "003"], 2);
        assert_eq!(ids(&taken(&socket, &slots())), ["001"]);
        authd.join().unwrap();
    }

    #[test]
    fn what_authd_has_removed_or_does_not_say_was_removed() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("auth");
        assert_eq!(ids(&taken(&socket, &slots())), [""; 0], "it does not run");
        let authd = authd(&socket, &[], 2);
        assert_eq!(ids(&taken(&socket, &slots())), [""; 0]);
        authd.join().unwrap();
    }

    #[test]
    fn of_very_many_only_some_are_asked_for() {
        let is_first = |slot: &AgentSlot| slot.id.as_str() == "001";
        assert_eq!(ids(&judge(&slots(), 1, is_first)), ["001", "002", "003"]);
        assert_eq!(ids(&judge(&slots(), 2, is_first)), ["001"]);
    }
}

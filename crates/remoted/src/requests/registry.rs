//! Which answer belongs to whom. Workers bring every answer here first; what nobody here waits for goes to the roster,
//! whose own requests take their numbers from the same source.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use muster_proto::{
    agent::AgentId,
    transport::control::{FromAgent, RequestId},
};
use tokio::sync::mpsc;

use crate::slot::AgentSlot;

/// What may wait for one asker: more acknowledgements than it bears, and the answer.
const ARRIVALS: usize = 32;

/// Numbers of requests. Clones draw from the same source, so that no two requests of this process have the same one
/// before all have been used.
#[derive(Clone, Debug)]
pub struct RequestIds(Arc<AtomicU32>);

impl RequestIds {
    /// The next number.
    pub fn next(&self) -> RequestId {
        RequestId(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// The number to begin with; take it at random, so that answers to an earlier process are nobody's.
impl From<u32> for RequestIds {
    fn from(first: u32) -> Self {
        Self(Arc::new(AtomicU32::new(first)))
    }
}

/// What came from an agent under a request's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It has the request.
    Ack,
    /// The answer.
    Answer(Vec<u8>),
}

/// Who waits for answers.
#[derive(Debug)]
pub struct Registry {
    ids: RequestIds,
    waiting: Mutex<HashMap<RequestId, Waiting>>,
    /// How many wait: almost always none, and then workers need not lock anything.
    count: AtomicUsize,
}

#[derive(Debug)]
struct Waiting {
    agent: AgentId,
    arrivals: mpsc::Sender<Arrival>,
}

impl Registry {
    /// Nobody waits.
    pub fn new(ids: RequestIds) -> Self {
        Self {
            ids,
            waiting: Mutex::default(),
            count: AtomicUsize::new(0),
        }
    }

    /// Where its numbers come from.
    pub fn ids(&self) -> RequestIds {
        self.ids.clone()
    }

    /// A number for a request to this agent. Its answers come to the ticket until that is dropped. How many tickets
    /// there are is the caller's business.
    pub fn register(self: &Arc<Self>, agent: &AgentId) -> Ticket {
        let (sender, arrivals) = mpsc::channel(ARRIVALS);
        let mut waiting = self.lock();
        let id = loop {
            let id = self.ids.next();
            if !waiting.contains_key(&id) {
                break id;
            }
        };
        let entry = Waiting {
            agent: agent.clone(),
            arrivals: sender,
        };
        waiting.insert(id, entry);
        self.count.store(waiting.len(), Ordering::Relaxed);
        Ticket {
            id,
            arrivals,
            registry: Arc::clone(self),
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes an answer or acknowledgement if somebody waits for it. When more arrive than an asker bears, the rest is
    /// dropped: it has what it needs to give up.
    pub(crate) fn offer(&self, slot: &AgentSlot, payload: &[u8]) -> bool {
        if self.is_empty() {
            return false;
        }
        let (id, answer) = match FromAgent::parse(payload) {
            Some(FromAgent::RequestAck(id)) => (id, None),
            Some(FromAgent::Answer { request, answer }) => (request, Some(answer)),
            _ => return false,
        };
        let waiting = self.lock();
        let Some(entry) = waiting.get(&id).filter(|entry| entry.agent == slot.id) else {
            return false;
        };
        let _ = entry
            .arrivals
            .try_send(answer.map_or(Arrival::Ack, |answer| Arrival::Answer(answer.to_vec())));
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody waits for the answer to a request of this number.
#[derive(Debug)]
pub struct Ticket {
    /// The number.
    pub id: RequestId,
    /// What comes.
    pub arrivals: mpsc::Receiver<Arrival>,
    registry: Arc<Registry>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiting = self.registry.lock();
        waiting.remove(&self.id);
        self.registry.count.store(waiting.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::keys::file;

    use super::*;

    fn agents() -> Vec<AgentSlot> {
        let entries = file::parse(b"001 a any k\n002 b any k\n").entries;
        entries.iter().map(AgentSlot::new).collect()
    }

    #[test]
    fn answer_reaches_who_asked_that_agent_and_nobody_else() {
        let registry = Arc::new(Registry::new(RequestIds::from(0xaa)));
        let agents = agents();
        assert!(!registry.offer(&agents[0], b"#!-req aa ack"), "nobody waits");
        let mut first = registry.register(&agents[0].id);
        let mut second = registry.register(&agents[1].id);
        assert_eq!((first.id.0, second.id.0), (0xaa, 0xab));
        assert!(
            !registry.offer(&agents[1], b"#!-req aa stolen"),
            "another agent's number"
        );
        assert!(!registry.offer(&agents[0], b"#!-req ac {}"), "nobody's number");
        assert!(!registry.offer(&agents[0], b"#!-req aa"), "no space behind the number");
        assert!(registry.offer(&agents[0], b"#!-req aa ack"));
        assert!(registry.offer(&agents[0], b"#!-req aa a\0b \xff"));
        assert_eq!(first.arrivals.try_recv(), Ok(Arrival::Ack));
        assert_eq!(first.arrivals.try_recv(), Ok(Arrival::Answer(b"a\0b \xff".to_vec())));
        assert!(second.arrivals.try_recv().is_err());
    }

    #[test]
    fn number_is_nobodys_once_the_asker_has_gone() {
        let registry = Arc::new(Registry::new(RequestIds::from(1)));
        let agents = agents();
        drop(registry.register(&agents[0].id));
        assert!(registry.is_empty());
        assert!(!registry.offer(&agents[0], b"#!-req 1 late"));
    }

    #[test]
    fn numbers_in_use_are_passed_over_when_the_count_begins_anew() {
        let registry = Arc::new(Registry::new(RequestIds::from(u32::MAX)));
        let agents = agents();
        let (last, zero) = (registry.register(&agents[0].id), registry.register(&agents[0].id));
        assert_eq!((last.id.0, zero.id.0), (u32::MAX, 0));
        registry.ids.0.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(registry.register(&agents[0].id).id.0, 1);
    }

    #[test]
    fn flood_of_acknowledgements_is_bounded() {
        let registry = Arc::new(Registry::new(RequestIds::from(1)));
        let agents = agents();
        let mut ticket = registry.register(&agents[0].id);
        for _ in 0..10_000 {
            assert!(registry.offer(&agents[0], b"#!-req 1 ack"));
        }
        let mut came = 0;
        while ticket.arrivals.try_recv().is_ok() {
            came += 1;
        }
        assert_eq!(came, ARRIVALS);
    }
}

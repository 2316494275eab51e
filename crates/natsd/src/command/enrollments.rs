//! Who enrolls: told to those who wait for an agent of some name.
//!
//! Events of enrollment pass through this daemon, so nobody has to be asked. Events are looked at only while somebody
//! waits, and once for all who do.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use muster_proto::{
    event::{Event, Kind},
    ipc::control::PublishedEvent,
};
use serde_json::Value;
use tokio::{
    runtime::Handle,
    sync::{
        broadcast::{self, error::RecvError},
        oneshot,
    },
};

/// Somebody is waited for. It has the id under which it was enrolled; it fails when events were missed.
pub(crate) type Awaited = oneshot::Receiver<String>;

/// Who is waited for, by name. Bounded by the tickets, of which each waits for one.
#[derive(Debug, Default)]
struct Waiting {
    names: HashMap<String, oneshot::Sender<String>>,
    /// Whether somebody looks at events.
    watched: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Enrollments {
    events: broadcast::Sender<Arc<PublishedEvent>>,
    waiting: Arc<Mutex<Waiting>>,
    /// That of the daemon: those of connections come and go.
    runtime: Handle,
}

impl Enrollments {
    pub(crate) fn new(events: broadcast::Sender<Arc<PublishedEvent>>, runtime: Handle) -> Self {
        Self {
            events,
            waiting: Arc::default(),
            runtime,
        }
    }

    /// Waits from now on. Of two who wait for one name, the later one is told.
    pub(crate) fn expect(&self, name: &str) -> Awaited {
        let (sender, awaited) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.names.insert(name.to_owned(), sender);
        if !waiting.watched {
            waiting.watched = true;
            self.runtime
                .spawn(watch(self.events.subscribe(), Arc::clone(&self.waiting)));
        }
        awaited
    }
}

/// Looks at events until nobody waits.
async fn watch(mut events: broadcast::Receiver<Arc<PublishedEvent>>, waiting: Arc<Mutex<Waiting>>) {
    loop {
        let next = events.recv().await;
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let enrolled = match &next {
            Ok(event) => enrolled(&event.event),
            // Among those that were passed over may be the one that was waited for.
            Err(RecvError::Lagged(_) | RecvError::Closed) => {
                waiting.names.clear();
                None
            }
        };
        if let Some((name, id)) = enrolled
            && let Some(sender) = waiting.names.remove(&name)
        {
            // Whoever does not wait any more does not matter.
            let _ = sender.send(id);
        }
        waiting.names.retain(|_, sender| !sender.is_closed());
        if waiting.names.is_empty() {
            waiting.watched = false;
            return;
        }
    }
}

/// Name and id of who has enrolled.
fn enrolled(event: &Event) -> Option<(String, String)> {
    if event.kind != Kind::Enrolled {
        return None;
    }
    let body: Value = serde_json::from_slice(&event.body).ok()?;
    let text = |name: &str| Some(body["enrollment"][name].as_str()?.to_owned());
    Some((text("agent_name")?, text("agent_id")?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: Kind, name: &str, id: &str) -> Arc<PublishedEvent> {
        let body = json!({"enrollment": {"agent_id": id, "agent_name": name}});
        Arc::new(PublishedEvent {
            subject: String::new(),
            sequence: 1,
            producer: "authd".to_owned(),
            event: Event {
                kind,
                subject_key: id.to_owned(),
                created_ms: 0,
                alert_level: 3,
                body: body.to_string().into_bytes(),
                headers: Vec::new(),
            },
        })
    }

    #[tokio::test]
    async fn enrollment_of_the_name_is_told_and_others_are_not() {
        let events = broadcast::Sender::new(8);
        let enrollments = Enrollments::new(events.clone(), Handle::current());
        let awaited = enrollments.expect("web-01");
        for (kind, name, id) in [
            (Kind::Removed, "web-01", "001"),
            (Kind::Enrolled, "db-01", "002"),
            (Kind::Enrolled, "web-01", "003"),
        ] {
            events.send(event(kind, name, id)).expect("somebody looks");
        }
        assert_eq!(awaited.await.as_deref(), Ok("003"));
        while events.receiver_count() > 0 {
            tokio::task::yield_now().await;
        }
        let again = enrollments.expect("db-01");
        events
            .send(event(Kind::Enrolled, "db-01", "004"))
            .expect("somebody looks again");
        assert_eq!(again.await.as_deref(), Ok("004"));
    }

    #[tokio::test]
    async fn who_waits_is_told_when_events_were_missed() {
        let events = broadcast::Sender::new(2);
        let enrollments = Enrollments::new(events.clone(), Handle::current());
        let awaited = enrollments.expect("web-01");
        for number in 0..5 {
            events
                .send(event(Kind::Enrolled, "db", &number.to_string()))
                .expect("somebody looks");
        }
        assert!(awaited.await.is_err());
    }
}

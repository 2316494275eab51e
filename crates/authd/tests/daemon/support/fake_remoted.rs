//! A remoted that knows nothing but how agents are connected.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use muster_proto::{
    agent::AgentId,
    ipc::control::{DaemonStatus, Liveness, Request, Response},
};
use muster_service::{
    control::{self, Answer, Handler},
    ipc::Peer,
};
use tokio_util::sync::CancellationToken;

use super::Home;

/// Answers on `queue/muster/remoted.ctl` until dropped.
pub(crate) struct FakeRemoted {
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
    told: Arc<AtomicU64>,
}

struct Answers<F> {
    liveness: F,
    told: Arc<AtomicU64>,
}

impl<F: Fn(&AgentId) -> Option<Liveness> + Send + Sync + 'static> Handler for Answers<F> {
    async fn status(&self) -> DaemonStatus {
        DaemonStatus::default()
    }

    async fn reload(&self) -> Result<String, String> {
        Err("nothing to reload".to_owned())
    }

    async fn handle(&self, request: Request, _: Peer) -> Answer {
        match request {
            Request::Liveness(id) => Response::Liveness((self.liveness)(&id)).into(),
            Request::KeysChanged => {
                self.told.fetch_add(1, Ordering::Relaxed);
                Response::Done("looked".to_owned()).into()
            }
            _ => Response::Unknown.into(),
        }
    }
}

impl FakeRemoted {
    pub(crate) fn start(home: &Home, liveness: impl Fn(&AgentId) -> Option<Liveness> + Send + Sync + 'static) -> Self {
        let path = home.path("queue/muster/remoted.ctl");
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        let (stop, told) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let answers = Arc::new(Answers {
            liveness,
            told: Arc::clone(&told),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::bind(path).expect("bound")
        };
        let until = stop.clone();
        let thread = thread::spawn(move || runtime.block_on(control::serve("remoted", listener, answers, until)));
        Self {
            stop,
            thread: Some(thread),
            told,
        }
    }

    /// How often it was told that keys have changed.
    pub(crate) fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }
}

impl Drop for FakeRemoted {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

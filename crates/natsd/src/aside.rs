//! Work that waits for the disk, done by a thread of its own, so that no event waits for it.

use std::{
    io,
    sync::mpsc::{self, Receiver, SyncSender, TrySendError},
    thread,
};

/// Pieces of work that may wait. Beyond them, whoever has more does it itself.
const MAX_WAITING: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// Where work is handed over. Without a thread it is done at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Aside(Option<SyncSender<Job>>);

/// What becomes of a piece of work.
#[derive(Debug)]
pub(crate) struct Pending<T>(Receiver<T>);

impl Aside {
    /// A thread that ends when nobody can hand anything over any more.
    pub(crate) fn start(name: &str) -> io::Result<Self> {
        let (jobs, work) = mpsc::sync_channel::<Job>(MAX_WAITING);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work.into_iter().for_each(|job| job()))?;
        Ok(Self(Some(jobs)))
    }

    /// Has this done, one piece behind the other.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Pending<T> {
        let (told, outcome) = mpsc::sync_channel(1);
        // Whoever asked may have lost interest.
        let job: Job = Box::new(move || drop(told.try_send(work())));
        let left = match &self.0 {
            Some(jobs) => match jobs.try_send(job) {
                Ok(()) => None,
                Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => Some(job),
            },
            None => Some(job),
        };
        if let Some(job) = left {
            job();
        }
        Pending(outcome)
    }
}

impl<T> Pending<T> {
    /// What came of it, if it is done.
    pub(crate) fn finished(&self) -> Option<T> {
        self.0.try_recv().ok()
    }

    /// Waits for it. Nothing when the thread has broken off.
    pub(crate) fn wait(self) -> Option<T> {
        self.0.recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};

    use super::*;

    #[test]
    fn without_a_thread_it_is_done_at_once() {
        assert_eq!(Aside::default().run(|| 5).finished(), Some(5));
    }

    #[test]
    fn a_thread_does_one_piece_behind_the_other_while_others_go_on() {
        let aside = Aside::start("aside").expect("starts");
        let held = Arc::new(Barrier::new(2));
        let in_thread = Arc::clone(&held);
        let first = aside.run(move || {
            in_thread.wait();
        });
        let second = aside.run(|| 2);
        assert_eq!(second.finished(), None, "the first is not done");
        held.wait();
        assert_eq!((first.wait(), second.wait()), (Some(()), Some(2)));
    }

    #[test]
    fn more_than_may_wait_is_done_by_whoever_has_it() {
        let aside = Aside::start("aside").expect("starts");
        let held = Arc::new(Barrier::new(2));
        let in_thread = Arc::clone(&held);
        let first = aside.run(move || {
            in_thread.wait();
        });
        let more: Vec<_> = (0..2 * MAX_WAITING).map(|number| aside.run(move || number)).collect();
        assert_eq!(more[2 * MAX_WAITING - 1].finished(), Some(2 * MAX_WAITING - 1));
        held.wait();
        first.wait().expect("done");
        assert!(
            more.into_iter()
                .take(MAX_WAITING - 1)
                .all(|piece| piece.wait().is_some())
        );
    }
}

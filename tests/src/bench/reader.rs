//! In the analysis daemon's place: counts datagrams as fast as it is allowed to.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// How the reader spends its time.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Reads whatever comes.
    Steady,
    /// Reads for a while, then does something else for a while.
    Bursts {
        /// Time that it reads.
        read: Duration,
        /// Time that it does not.
        rest: Duration,
    },
}

/// A reader at `queue/sockets/queue`.
pub struct Reader {
    path: PathBuf,
    count: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Binds the socket of a home and reads.
    pub fn listen(home: &Path, pace: Pace) -> Result<Self> {
        let path = home.join("queue/sockets/queue");
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).with_context(|| format!("binding {}", path.display()))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (count, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stop) = (Arc::clone(&count), Arc::clone(&ended));
        let thread = thread::spawn(move || read(&socket, pace, &counted, &stop));
        Ok(Self {
            path,
            count,
            ended,
            thread: Some(thread),
        })
    }

    /// Datagrams so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until nothing has come for so long; the count then.
    pub fn settle(&self, quiet: Duration) -> u64 {
        let (mut last, mut since) = (self.count(), Instant::now());
        while since.elapsed() < quiet {
            thread::park_timeout(Duration::from_millis(20));
            if self.count() != last {
                (last, since) = (self.count(), Instant::now());
            }
        }
        last
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

fn read(socket: &UnixDatagram, pace: Pace, count: &AtomicU64, ended: &AtomicBool) {
    let mut buffer = vec![0; 70_000];
    let mut begun = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        if socket.recv(&mut buffer).is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Pace::Bursts { read, rest } = pace
            && begun.elapsed() >= read
        {
            thread::park_timeout(rest);
            begun = Instant::now();
        }
    }
}

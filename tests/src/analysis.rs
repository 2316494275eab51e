//! In the analysis daemon's place: whoever binds `queue/sockets/queue` sees every event as it would.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How often the reader looks whether it shall stop.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Default)]
struct State {
    datagrams: Vec<Vec<u8>>,
    paused: bool,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A reader that keeps every datagram in the order in which it came.
pub struct Analysis {
    path: PathBuf,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

impl Analysis {
    /// Binds the socket of a home and reads.
    pub fn listen(home: &Path) -> Result<Self> {
        let path = home.join("queue/sockets/queue");
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).with_context(|| format!("binding {}", path.display()))?;
        socket.set_read_timeout(Some(LOOK))?;
        let shared = Arc::new(Shared::default());
        let for_reader = Arc::clone(&shared);
        let reader = thread::spawn(move || read(&socket, &for_reader));
        Ok(Self {
            path,
            shared,
            reader: Some(reader),
        })
    }

    /// Stops reading; the kernel's buffer fills, and then the sender has to decide.
    pub fn pause(&self) {
        self.state().paused = true;
        self.shared.changed.notify_all();
    }

    /// Reads on.
    pub fn resume(&self) {
        self.state().paused = false;
        self.shared.changed.notify_all();
    }

    /// Everything that came so far.
    pub fn datagrams(&self) -> Vec<Vec<u8>> {
        self.state().datagrams.clone()
    }

    /// Everything that came so far and contains a text, as text without the final NUL.
    pub fn texts_with(&self, part: &str) -> Vec<String> {
        self.state()
            .datagrams
            .iter()
            .map(|datagram| String::from_utf8_lossy(datagram.strip_suffix(b"\0").unwrap_or(datagram)).into_owned())
            .filter(|text| text.contains(part))
            .collect()
    }

    /// How many datagrams begin with this text: cheap, however many there are.
    pub fn count_beginning(&self, begin: &str) -> usize {
        let begins = |datagram: &&Vec<u8>| datagram.starts_with(begin.as_bytes());
        self.state().datagrams.iter().filter(begins).count()
    }

    /// Waits for exactly this datagram.
    pub fn expect(&self, datagram: &[u8], patience: Duration) -> Result<()> {
        self.wait(patience, |state| state.datagrams.iter().any(|seen| seen == datagram))
            .with_context(|| {
                let seen: Vec<String> = self
                    .datagrams()
                    .iter()
                    .rev()
                    .take(5)
                    .map(|seen| seen.escape_ascii().to_string())
                    .collect();
                format!("no datagram {}; the last ones were {seen:#?}", datagram.escape_ascii())
            })
    }

    /// Waits until at least so many datagrams contain a text.
    pub fn expect_count(&self, part: &str, count: usize, patience: Duration) -> Result<()> {
        let part = part.as_bytes();
        let contains = |datagram: &&Vec<u8>| datagram.windows(part.len()).any(|window| window == part);
        // Each datagram is looked at once, however often something new comes.
        let (mut looked, mut counted) = (0, 0);
        let outcome = self.wait(patience, |state| {
            counted += state.datagrams[looked..].iter().filter(contains).count();
            looked = state.datagrams.len();
            counted >= count
        });
        outcome.with_context(|| format!("{counted} of {count} datagrams came"))
    }

    fn wait(&self, patience: Duration, mut done: impl FnMut(&State) -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        while !done(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("waited {} s in vain at the analysis socket", patience.as_secs_f32());
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Analysis {
    fn drop(&mut self) {
        self.state().ended = true;
        self.shared.changed.notify_all();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

fn read(socket: &UnixDatagram, shared: &Shared) {
    let lock = || shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    let mut buffer = vec![0; 70_000];
    loop {
        let mut state = lock();
        while state.paused && !state.ended {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.ended {
            return;
        }
        drop(state);
        match socket.recv(&mut buffer) {
            Ok(bytes) => {
                lock().datagrams.push(buffer[..bytes].to_vec());
                shared.changed.notify_all();
            }
            Err(error) if is_pause(&error) => {}
            Err(_) => return,
        }
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

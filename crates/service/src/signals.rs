//! What an operator or the service manager says with a signal. SIGPIPE needs no word here: Rust programs ignore it
//! from the start.

use std::io;

use nix::sys::signal::SigSet;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// TERM or INT: end in good order.
    Stop,
    /// HUP: read the configuration again, open the log file anew.
    Reload,
}

/// Lets every signal through. Whoever started us may have blocked some, and a blocked SIGTERM would never reach us.
/// Call it first of all, while there is one thread.
pub fn unblock() -> io::Result<()> {
    Ok(SigSet::all().thread_unblock()?)
}

/// The signals of this process, as they come.
#[derive(Debug)]
pub struct Signals {
    terminate: Stream,
    interrupt: Stream,
    hang_up: Stream,
}

impl Signals {
    /// Takes the signals over. Needs a runtime.
    pub fn take() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next one. May be dropped and called again without losing any.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.hang_up.recv() => Signal::Reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::{
        sys::signal::{Signal as Number, raise},
        unistd::Pid,
    };

    use super::*;

    #[tokio::test]
    async fn hang_up_reloads_and_terminate_stops() {
        let mut signals = Signals::take().expect("signals");
        raise(Number::SIGHUP).expect("raised");
        assert_eq!(signals.next().await, Signal::Reload);
        nix::sys::signal::kill(Pid::this(), Number::SIGTERM).expect("sent");
        assert_eq!(signals.next().await, Signal::Stop);
    }
}

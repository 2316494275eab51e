//! What we tell the service manager. Without one (`NOTIFY_SOCKET` unset) every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The daemon serves.
pub fn ready() {
    say(&[NotifyState::Ready]);
}

/// It reads its configuration again. Must be followed by [`ready`].
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        // Without the time systemd takes the reload for failed and kills the service.
        Ok(now) => say(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot read the monotonic clock for systemd"),
    }
}

/// It ends.
pub fn stopping() {
    say(&[NotifyState::Stopping]);
}

/// It is alive.
pub fn watchdog() {
    say(&[NotifyState::Watchdog]);
}

/// One line for `systemctl status`.
pub fn status(line: &str) {
    say(&[NotifyState::Status(line)]);
}

/// How often [`watchdog`] must be called, when the service manager asks for it: twice as often as it checks.
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot reach the service manager");
    }
}

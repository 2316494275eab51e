//! Waiting for a condition, with a deadline and without a guess.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Long enough for anything that should happen at once, on a busy machine too.
pub const SOON: Duration = Duration::from_secs(20);

/// Between two looks at a condition that nobody announces.
const LOOK: Duration = Duration::from_millis(10);

/// Looks again and again until `look` gives a value, or fails with `what` when `patience` is over.
pub fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain: {what}", patience.as_secs_f32());
        }
        thread::park_timeout(LOOK);
    }
}

/// The same for a condition that is only true or false.
pub fn until_true(what: &str, patience: Duration, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, patience, || Ok(look()?.then_some(())))
}

/// Looks for as long as `time`, and fails as soon as the condition does not hold.
pub fn holds(what: &str, time: Duration, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if !look()? {
            bail!("did not hold: {what}");
        }
        thread::park_timeout(LOOK);
    }
    Ok(())
}

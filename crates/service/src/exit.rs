//! Exit codes with names, and the one place where an error becomes one.

use std::{io, process::ExitCode};

use thiserror::Error;

/// It did what was asked.
pub const DONE: u8 = 0;
/// It did not; the message says why.
pub const FAILED: u8 = 1;
/// The command line makes no sense (clap exits with it).
pub const USAGE: u8 = 2;
/// A daemon could not be reached.
pub const UNREACHABLE: u8 = 3;
/// The user may not do this. systemd does not restart a unit that says so.
pub const NOT_PERMITTED: u8 = 77;
/// The configuration is bad. systemd does not restart a unit that says so.
pub const BAD_CONFIG: u8 = 78;

/// An end with a code of its own. Put it into an [`anyhow::Error`], on top or as context: [`report`] finds it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Exit {
    code: u8,
    message: String,
}

impl Exit {
    /// An end with a message.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// An end about which everything has been said already, such as a passed `--test-config`.
    pub fn quiet(code: u8) -> Self {
        Self {
            code,
            message: String::new(),
        }
    }

    /// The code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

/// The code that an error stands for: that of an [`Exit`] in its chain, 77 for a permission that is missing, else 1.
pub fn code_of(error: &anyhow::Error) -> u8 {
    if let Some(exit) = error.downcast_ref::<Exit>() {
        return exit.code;
    }
    for cause in error.chain() {
        if let Some(exit) = cause.downcast_ref::<Exit>() {
            return exit.code;
        }
        if cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        {
            return NOT_PERMITTED;
        }
    }
    FAILED
}

/// Ends a `main`: says the error once (in the log when there is one, else on standard error) and turns it into a code.
pub fn report(program: &str, result: anyhow::Result<ExitCode>) -> ExitCode {
    let error = match result {
        Ok(code) => return code,
        Err(error) => error,
    };
    let message = format!("{error:#}");
    if !message.is_empty() {
        if tracing::dispatcher::has_been_set() {
            tracing::error!("{message}");
        } else {
            eprintln!("{program}: {message}");
        }
    }
    ExitCode::from(code_of(&error))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn exit_is_found_below_and_above_other_context() {
        let below = Err::<(), _>(Exit::new(BAD_CONFIG, "bad"))
            .context("loading")
            .expect_err("is an error");
        assert_eq!(code_of(&below), BAD_CONFIG);
        let above = Err::<(), _>(io::Error::other("x"))
            .context(Exit::new(UNREACHABLE, "away"))
            .expect_err("is an error");
        assert_eq!(code_of(&above), UNREACHABLE);
    }

    #[test]
    fn missing_permission_is_77_and_the_rest_is_1() {
        let denied = anyhow::Error::new(io::Error::from(io::ErrorKind::PermissionDenied)).context("binding");
        assert_eq!(code_of(&denied), NOT_PERMITTED);
        assert_eq!(code_of(&anyhow::anyhow!("no")), FAILED);
    }
}

//! A program that is started for each look-up: `<exec_path> id 001`, JSON on its standard output.
//!
//! Stock reads standard error into the JSON and waits until the last process that holds the pipe has gone. We keep the
//! two apart, and the answer is complete when the program itself has ended with 0; what it leaves behind is killed.

use std::{io, sync::Arc, time::Duration};

use nix::sys::signal::Signal;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use super::{SourceError, Surroundings, Written};
use crate::{
    answer,
    lookup::Lookup,
    process::{
        command_line::CommandLine,
        group::GRACE,
        run::{Ended, Rope, RunError, run},
        words::Words,
    },
};

/// The program.
#[derive(Debug)]
pub struct Once {
    line: Arc<CommandLine>,
    surroundings: Surroundings,
}

/// Kills the program when nobody waits for it any more.
struct Wanted(Arc<Rope>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.cut();
    }
}

type Running = JoinHandle<Result<Ended, RunError>>;

impl Once {
    /// This one.
    pub fn new(line: CommandLine, surroundings: Surroundings) -> Self {
        Self {
            line: Arc::new(line),
            surroundings,
        }
    }

    /// Its name, as configured.
    pub fn program(&self) -> &str {
        &self.line.program
    }

    /// One look-up.
    pub async fn ask(&self, lookup: &Lookup, limit: Duration) -> Result<Written, SourceError> {
        let rope = Arc::new(Rope::default());
        let wanted = Wanted(Arc::clone(&rope));
        let mut running = self.start(lookup, rope);
        let (ended, is_in_time) = match timeout(limit, &mut running).await {
            Ok(ended) => (Some(ended), true),
            Err(_) => (end(&mut running, &wanted.0).await, false),
        };
        let mut ended = ended.map(|ended| ended.unwrap_or_else(|gone| Err(RunError::Broken(io::Error::other(gone)))));
        if let Some(Ok(Ended { written, words, .. })) = &mut ended {
            self.surroundings.log(&self.line, lookup, words, written);
        }
        if !is_in_time {
            return Err(SourceError::TimedOut(limit));
        }
        let Some(ended) = ended else {
            return Err(SourceError::Silent);
        };
        let max = self.surroundings.max_output;
        match ended.map_err(|error| self.explain(error))? {
            Ended { written, .. } if written.len() > max => Err(SourceError::TooLong(max)),
            Ended { status, written, .. } => match status.code() {
                Some(0) if written.is_empty() => Err(SourceError::Silent),
                Some(0) => Ok(written),
                Some(code) => Err(SourceError::ExitCode(code)),
                None => Err(SourceError::Killed),
            },
        }
    }

    fn start(&self, lookup: &Lookup, rope: Arc<Rope>) -> Running {
        let (line, lookup, home) = (Arc::clone(&self.line), lookup.clone(), self.surroundings.home.clone());
        let max = self.surroundings.max_output;
        spawn_blocking(move || run(&line, [lookup.by().as_str(), lookup.value()], &home, max, &rope))
    }

    fn explain(&self, error: RunError) -> SourceError {
        match error {
            RunError::Start(source) => SourceError::Start {
                program: self.line.program.clone(),
                source,
            },
            RunError::Broken(source) => SourceError::Broken(source),
        }
    }
}

/// Ends a program: SIGTERM, and SIGKILL a moment later. Nothing survives that except a process that the kernel holds; that
/// one must not hold us too.
async fn end(running: &mut Running, rope: &Rope) -> Option<Result<Result<Ended, RunError>, tokio::task::JoinError>> {
    rope.signal(Signal::SIGTERM);
    if let Ok(ended) = timeout(GRACE, &mut *running).await {
        return Some(ended);
    }
    rope.cut();
    timeout(GRACE, running).await.ok()
}

impl Surroundings {
    /// Logs what a program said beside its answer.
    pub(super) fn log(&self, line: &CommandLine, lookup: &Lookup, words: &mut Words, written: &[u8]) {
        let lines = words.lines(answer::key_in(written).as_ref());
        for said in lines {
            self.loud.say(format_args!("{} ({lookup}) says: {said}", line.program));
        }
    }
}

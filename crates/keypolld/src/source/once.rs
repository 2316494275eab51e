//! A program that is started for each look-up: `<exec_path> id 001`, JSON on its standard output.
//!
//! Stock reads standard error into the JSON and waits until the last process that holds the pipe has gone. We keep the
//! two apart, and the answer is complete when the program itself has ended with 0; what it leaves behind is killed.

use std::{process::ExitStatus, time::Duration};

use tokio::{
    io::AsyncReadExt,
    process::{ChildStderr, ChildStdout},
    time::timeout,
};
use zeroize::Zeroizing;

use super::{SourceError, Surroundings, Written};
use crate::{
    answer,
    lookup::Lookup,
    process::{
        command_line::CommandLine,
        group::{Group, Input},
        words::Words,
    },
};

/// How long what the program wrote before its end may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The program.
#[derive(Debug)]
pub struct Once {
    line: CommandLine,
    surroundings: Surroundings,
}

impl Once {
    /// This one.
    pub fn new(line: CommandLine, surroundings: Surroundings) -> Self {
        Self { line, surroundings }
    }

    /// Its name, as configured.
    pub fn program(&self) -> &str {
        &self.line.program
    }

    /// One look-up.
    pub async fn ask(&self, lookup: &Lookup, limit: Duration) -> Result<Written, SourceError> {
        let further = [lookup.by().as_str(), lookup.value()];
        let group = Group::start(&self.line, &further, Input::None, &self.surroundings.home);
        let mut group = group.map_err(|source| SourceError::Start {
            program: self.line.program.clone(),
            source,
        })?;
        let (Some(stdout), Some(stderr)) = (group.stdout.take(), group.stderr.take()) else {
            return Err(SourceError::Silent);
        };
        let mut output = Output {
            stdout: Some(stdout),
            stderr: Some(stderr),
            written: Zeroizing::new(Vec::new()),
            words: Words::default(),
            max: self.surroundings.max_output,
        };
        let outcome = timeout(limit, output.until_end(&mut group)).await;
        match outcome {
            Ok(Ok(_)) => {
                group.kill_rest();
                let _ = timeout(LAST_WORDS, output.read_rest()).await;
            }
            Ok(Err(_)) => group.kill().await,
            Err(_) => group.end().await,
        }
        self.surroundings
            .log(&self.line, lookup, &mut output.words, &output.written);
        let status = outcome.map_err(|_| SourceError::TimedOut(limit))??;
        match status.code() {
            Some(0) if output.written.len() > output.max => Err(SourceError::TooLong(output.max)),
            Some(0) if output.written.is_empty() => Err(SourceError::Silent),
            Some(0) => Ok(output.written),
            Some(code) => Err(SourceError::ExitCode(code)),
            None => Err(SourceError::Killed),
        }
    }
}

/// What comes out of it.
struct Output {
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    written: Zeroizing<Vec<u8>>,
    words: Words,
    max: usize,
}

impl Output {
    /// Reads both until the program has ended.
    async fn until_end(&mut self, group: &mut Group) -> Result<ExitStatus, SourceError> {
        loop {
            tokio::select! {
                status = group.wait() => return status.map_err(SourceError::Broken),
                () = self.read_some() => {}
            }
            if self.written.len() > self.max {
                return Err(SourceError::TooLong(self.max));
            }
        }
    }

    async fn read_rest(&mut self) {
        while (self.stdout.is_some() || self.stderr.is_some()) && self.written.len() <= self.max {
            self.read_some().await;
        }
    }

    /// Reads from whichever has something; never returns when both are closed.
    async fn read_some(&mut self) {
        let mut chunk = Zeroizing::new([0; 4096]);
        let mut beside = Zeroizing::new([0; 4096]);
        let Self { stdout, stderr, .. } = self;
        tokio::select! {
            read = read_from(stdout, &mut *chunk) => self.written.extend_from_slice(chunk.get(..read).unwrap_or_default()),
            read = read_from(stderr, &mut *beside) => self.words.add(beside.get(..read).unwrap_or_default()),
        }
    }
}

async fn read_from<R: AsyncReadExt + Unpin>(pipe: &mut Option<R>, chunk: &mut [u8]) -> usize {
    match pipe {
        None => std::future::pending().await,
        Some(open) => match open.read(chunk).await {
            Ok(read @ 1..) => read,
            Ok(0) | Err(_) => {
                *pipe = None;
                0
            }
        },
    }
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

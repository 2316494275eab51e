//! A program that is started for each look-up: `<exec_path> id 001`, JSON on its standard output.
//!
//! Stock reads standard error into the JSON and waits until the last process that holds the pipe has gone. We keep the
//! two apart, and the answer is complete when the program itself has ended with 0; what it leaves behind is killed.

use std::{io, process::ExitStatus, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{ChildStderr, ChildStdout},
    task::spawn_blocking,
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
/// What is read at a time.
const CHUNK: usize = 4096;

/// The program.
#[derive(Debug)]
pub struct Once {
    line: Arc<CommandLine>,
    surroundings: Surroundings,
}

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
        let mut group = self.start(lookup).await.map_err(|source| SourceError::Start {
            program: self.line.program.clone(),
            source,
        })?;
        let (Some(stdout), Some(stderr)) = (group.stdout.take(), group.stderr.take()) else {
            return Err(SourceError::Silent);
        };
        let mut output = Output {
            stdout: Some(stdout),
            stderr: Some(stderr),
            written: Zeroizing::new(Vec::with_capacity(CHUNK)),
            beside: Zeroizing::new(Vec::with_capacity(CHUNK)),
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

    /// In a thread of its own: a start must not hold up the ends of others. When nobody waits for it any more, the program
    /// is killed as soon as it has begun.
    async fn start(&self, lookup: &Lookup) -> io::Result<Group> {
        let (line, lookup, home) = (Arc::clone(&self.line), lookup.clone(), self.surroundings.home.clone());
        let start = move || Group::start(&line, &[lookup.by().as_str(), lookup.value()], Input::None, &home);
        spawn_blocking(start).await.map_err(io::Error::other)?
    }
}

/// What comes out of it.
struct Output {
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    written: Zeroizing<Vec<u8>>,
    /// What was read from standard error just now.
    beside: Zeroizing<Vec<u8>>,
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
        let Self {
            stdout,
            stderr,
            written,
            beside,
            words,
            ..
        } = self;
        tokio::select! {
            () = read_from(stdout, written) => {}
            () = read_from(stderr, beside) => {
                words.add(beside);
                beside.clear();
            }
        }
    }
}

async fn read_from(pipe: &mut Option<impl AsyncRead + Unpin>, buffer: &mut Vec<u8>) {
    match pipe {
        None => std::future::pending().await,
        Some(open) => {
            buffer.reserve(CHUNK);
            if !matches!(open.read_buf(buffer).await, Ok(1..)) {
                *pipe = None;
            }
        }
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

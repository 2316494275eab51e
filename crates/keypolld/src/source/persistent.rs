//! A program that keeps running: one JSON request a line on its standard input, one answer a line on its standard
//! output. So its interpreter starts, and its database connection is opened, once and not for each look-up.
//!
//! ```text
//! > {"lookup":"id","value":"001"}
//! < {"error":0,"data":{…}}
//! ```
//!
//! Each process has one request at a time. There are as many as are needed at once, at most as many as look-ups run.
//! A process that does not answer in time is killed with all that it started, and another one takes its place.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{ChildStderr, ChildStdin, ChildStdout},
    time::{Instant, timeout, timeout_at},
};
use zeroize::Zeroizing;

use super::{SourceError, Surroundings, Written};
use crate::{
    lookup::Lookup,
    process::{command_line::CommandLine, group::Group, words::Words},
};

/// How long what a process said at its end may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// What is read from standard error at a time.
const CHUNK: usize = 4096;

/// The program and its idle processes.
#[derive(Debug)]
pub struct Pool {
    line: CommandLine,
    surroundings: Surroundings,
    most_idle: usize,
    idle: Mutex<Vec<Worker>>,
    is_closed: AtomicBool,
}

/// How a process was left.
enum Left {
    /// It may be asked again.
    Idle,
    /// It is of no more use.
    Broken,
}

impl Pool {
    /// Starts nothing yet.
    pub fn new(line: CommandLine, surroundings: Surroundings, most_idle: usize) -> Self {
        Self {
            line,
            surroundings,
            most_idle,
            idle: Mutex::new(Vec::new()),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Its name, as configured.
    pub fn program(&self) -> &str {
        &self.line.program
    }

    /// One look-up.
    pub async fn ask(&self, lookup: &Lookup, limit: Duration) -> Result<Written, SourceError> {
        let until = Instant::now() + limit;
        let timed_out = |answer| match answer {
            Err(SourceError::TimedOut(_)) => Err(SourceError::TimedOut(limit)),
            other => other,
        };
        if let Some(worker) = self.take_idle() {
            match self.ask_worker(worker, lookup, until).await {
                // It had gone while nobody looked.
                Err(SourceError::Silent | SourceError::Broken(_)) => {}
                other => return timed_out(other),
            }
        }
        timed_out(self.ask_worker(self.start()?, lookup, until).await)
    }

    async fn ask_worker(&self, mut worker: Worker, lookup: &Lookup, until: Instant) -> Result<Written, SourceError> {
        let outcome = timeout_at(until, worker.converse(lookup, self.surroundings.max_output)).await;
        let answer = outcome.unwrap_or(Err(SourceError::TimedOut(Duration::ZERO)));
        if answer.is_err() {
            let _ = timeout(LAST_WORDS, worker.read_last_words()).await;
        }
        let written = answer.as_ref().map_or(&[][..], |written| written.as_slice());
        self.surroundings.log(&self.line, lookup, &mut worker.words, written);
        let left = if answer.is_ok() { Left::Idle } else { Left::Broken };
        self.give_back(worker, left).await;
        answer
    }

    fn start(&self) -> Result<Worker, SourceError> {
        let start = Group::start(&self.line, &self.surroundings.home);
        let mut group = start.map_err(|source| SourceError::Start {
            program: self.line.program.clone(),
            source,
        })?;
        let (stdin, stdout, stderr) = (group.stdin.take(), group.stdout.take(), group.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(SourceError::Silent);
        };
        Ok(Worker {
            stdin,
            stdout: BufReader::new(stdout),
            stderr: Beside::new(stderr),
            words: Words::default(),
            group,
        })
    }

    async fn give_back(&self, worker: Worker, left: Left) {
        let superfluous = match left {
            Left::Broken => Some(worker),
            Left::Idle => {
                let mut idle = self.idle();
                if self.is_closed.load(Ordering::Relaxed) || idle.len() >= self.most_idle {
                    Some(worker)
                } else {
                    idle.push(worker);
                    None
                }
            }
        };
        match (superfluous, left) {
            (Some(worker), Left::Idle) => worker.end().await,
            (Some(worker), Left::Broken) => worker.group.kill().await,
            (None, _) => {}
        }
    }

    /// The process that was used last: the others may be ended by whatever ends idle connections.
    fn take_idle(&self) -> Option<Worker> {
        self.idle().pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets idle processes end, and the others as soon as they have answered.
    pub async fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        let idle = std::mem::take(&mut *self.idle());
        let mut ends = tokio::task::JoinSet::new();
        for worker in idle {
            ends.spawn(worker.end());
        }
        while ends.join_next().await.is_some() {}
    }
}

/// One process.
#[derive(Debug)]
struct Worker {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: Beside,
    words: Words,
    group: Group,
}

#[derive(Serialize)]
struct Request<'a> {
    lookup: &'a str,
    value: &'a str,
}

impl Worker {
    async fn converse(&mut self, lookup: &Lookup, max: usize) -> Result<Written, SourceError> {
        self.discard_early(max).await?;
        let request = Request {
            lookup: lookup.by().as_str(),
            value: lookup.value(),
        };
        let mut line = serde_json::to_vec(&request).unwrap_or_default();
        line.push(b'\n');
        self.stdin.write_all(&line).await.map_err(SourceError::Broken)?;
        let Self {
            stdout, stderr, words, ..
        } = self;
        let answer = read_answer(stdout, max);
        tokio::pin!(answer);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                () = stderr.read(words) => {}
            }
        }
    }

    /// Throws away what was written before it was asked: it is not the answer.
    async fn discard_early(&mut self, max: usize) -> Result<(), SourceError> {
        let mut discarded = 0;
        loop {
            let early = tokio::select! {
                biased;
                bytes = self.stdout.fill_buf() => bytes.map_err(SourceError::Broken)?.len(),
                () = std::future::ready(()) => return Ok(()),
            };
            discarded += early;
            if early == 0 || discarded > max {
                return Err(SourceError::Silent);
            }
            self.stdout.consume(early);
        }
    }

    async fn read_last_words(&mut self) {
        while self.stderr.pipe.is_some() {
            self.stderr.read(&mut self.words).await;
        }
    }

    /// Closes its standard input, which asks it to end, and ends it if it does not.
    async fn end(self) {
        let Self { stdin, group, .. } = self;
        drop(stdin);
        group.end().await;
    }
}

/// The first line that is a JSON object; others are passed over.
async fn read_answer(stdout: &mut (impl AsyncBufRead + Unpin), max: usize) -> Result<Written, SourceError> {
    let mut line = Zeroizing::new(Vec::new());
    let mut read = 0;
    loop {
        let bytes = stdout.fill_buf().await.map_err(SourceError::Broken)?;
        if bytes.is_empty() {
            return Err(SourceError::Silent);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(bytes.len(), |end| end + 1);
        read += used;
        if read > max {
            return Err(SourceError::TooLong(max));
        }
        line.extend_from_slice(bytes.get(..used).unwrap_or_default());
        stdout.consume(used);
        if end.is_some() {
            if line.trim_ascii_start().first() == Some(&b'{') {
                return Ok(line);
            }
            line.clear();
        }
    }
}

/// Standard error, with the place where it is read to: once for the process, and not for each request.
struct Beside {
    pipe: Option<ChildStderr>,
    chunk: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Beside {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Beside").field(&self.pipe).finish()
    }
}

impl Beside {
    fn new(pipe: ChildStderr) -> Self {
        Self {
            pipe: Some(pipe),
            chunk: Zeroizing::new(Vec::with_capacity(CHUNK)),
        }
    }

    /// Reads what is there; never returns once it is closed.
    async fn read(&mut self, words: &mut Words) {
        let Some(open) = &mut self.pipe else {
            return std::future::pending().await;
        };
        self.chunk.clear();
        if !matches!(open.read_buf(&mut *self.chunk).await, Ok(1..)) {
            self.pipe = None;
        }
        words.add(&self.chunk);
    }
}

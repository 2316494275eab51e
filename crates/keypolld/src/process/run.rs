//! A program that is started for one answer, from its start to its end, by a thread that does nothing else meanwhile.
//!
//! That takes a third of the system calls that an event loop makes of it, and starting holds the thread anyway. The
//! thread has no clock: whoever waits for it ends the program through the [`Rope`], and the thread with it.

use std::{
    io::{self, Read},
    os::fd::AsFd,
    path::Path,
    process::{Child, ChildStderr, ChildStdout, ExitStatus},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use zeroize::Zeroizing;

use super::{command_line::CommandLine, leftovers, words::Words};

/// How long what the program wrote before its end may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How often we look whether a program has ended whose pipes are open: somebody that it has started may hold them.
const LOOK_MS: u16 = 10;
/// What is read at a time.
const CHUNK: usize = 4096;

/// By which a program can be ended while a thread attends to it.
#[derive(Debug, Default)]
pub struct Rope(Mutex<End>);

#[derive(Debug, Default)]
struct End {
    /// The leader of the group, until its end is taken: then its number may be somebody else's.
    leader: Option<Pid>,
    is_cut: bool,
}

impl Rope {
    /// Sends a signal to the program and all that it has started, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(leader) = self.lock().leader {
            // That nobody is left is what we want.
            let _ = killpg(leader, signal);
        }
    }

    /// Nobody wants the answer: the program is killed, or not started at all.
    pub fn cut(&self) {
        let mut end = self.lock();
        end.is_cut = true;
        if let Some(leader) = end.leader {
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }

    fn lock(&self) -> MutexGuard<'_, End> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of a program.
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote; at most a little more than it may.
    pub written: Zeroizing<Vec<u8>>,
    /// What it said beside.
    pub words: Words,
}

/// Why there is nothing of a program.
#[derive(Debug)]
pub enum RunError {
    /// It could not be started.
    Start(io::Error),
    /// The pipes broke.
    Broken(io::Error),
}

/// Runs a program with two arguments more. One that writes more than `most` bytes is killed.
pub fn run(line: &CommandLine, further: [&str; 2], home: &Path, most: usize, rope: &Rope) -> Result<Ended, RunError> {
    let (mut leader, mut output) = start(line, further, home, most, rope).map_err(RunError::Start)?;
    let mut looked = Instant::now();
    while output.is_open() && !output.is_too_long() {
        output.read_some(LOOK_MS).map_err(RunError::Broken)?;
        if looked.elapsed().as_millis() >= LOOK_MS.into() {
            if leader.has_ended(WaitPidFlag::WNOHANG) {
                break;
            }
            looked = Instant::now();
        }
    }
    if output.is_too_long() {
        rope.signal(Signal::SIGKILL);
    }
    leader.has_ended(WaitPidFlag::empty());
    let status = leader.take_end().map_err(RunError::Broken)?;
    output.read_last();
    Ok(Ended {
        status,
        written: output.written,
        words: output.words,
    })
}

fn start<'a>(
    line: &CommandLine,
    further: [&str; 2],
    home: &Path,
    most: usize,
    rope: &'a Rope,
) -> io::Result<(Leader<'a>, Output)> {
    let mut command = line.command(home)?;
    command.args(further);
    let starting = leftovers::starting();
    if rope.lock().is_cut {
        return Err(io::ErrorKind::Interrupted.into());
    }
    let mut child = command.spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    leftovers::expect(pid);
    drop(starting);
    let output = Output {
        stdout: child.stdout.take(),
        stderr: child.stderr.take(),
        written: Zeroizing::new(Vec::with_capacity(CHUNK)),
        beside: Zeroizing::new(Vec::new()),
        words: Words::default(),
        most,
    };
    let mut end = rope.lock();
    end.leader = Some(pid);
    if end.is_cut {
        let _ = killpg(pid, Signal::SIGKILL);
    }
    drop(end);
    Ok((
        Leader {
            child,
            pid,
            rope,
            is_over: false,
        },
        output,
    ))
}

/// The process that we have started. What is left of its group is killed when its end is taken, or when this is dropped.
struct Leader<'a> {
    child: Child,
    pid: Pid,
    rope: &'a Rope,
    is_over: bool,
}

impl Leader<'_> {
    /// Whether it has ended. Its end is not taken, so its number stays its own.
    fn has_ended(&self, how: WaitPidFlag) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | how;
        loop {
            match waitid(Id::Pid(self.pid), flags) {
                Err(Errno::EINTR) => {}
                outcome => return !matches!(outcome, Ok(WaitStatus::StillAlive)),
            }
        }
    }

    fn take_end(&mut self) -> io::Result<ExitStatus> {
        self.is_over = true;
        let mut end = self.rope.lock();
        let _ = killpg(self.pid, Signal::SIGKILL);
        end.leader = None;
        drop(end);
        let status = self.child.wait();
        leftovers::forget(self.pid);
        status
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = self.take_end();
        }
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
    most: usize,
}

impl Output {
    fn is_open(&self) -> bool {
        self.stdout.is_some() || self.stderr.is_some()
    }

    fn is_too_long(&self) -> bool {
        self.written.len() > self.most
    }

    /// Reads from whichever has something. Returns after so many milliseconds at the latest.
    fn read_some(&mut self, ms: u16) -> io::Result<()> {
        let pipes = [
            self.stdout.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
        ];
        let open = pipes.into_iter().flatten();
        let mut asked: Vec<_> = open.map(|pipe| PollFd::new(pipe, PollFlags::POLLIN)).collect();
        match poll(&mut asked, PollTimeout::from(ms)) {
            Ok(0) | Err(Errno::EINTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        // In the same order; one that is closed already was not asked.
        let mut answers = asked.iter().map(|pipe| pipe.any().unwrap_or(true));
        let mut is_ready = |is_open: bool| is_open && answers.next().unwrap_or(false);
        let ready = (is_ready(self.stdout.is_some()), is_ready(self.stderr.is_some()));
        if ready.0 {
            read_from(&mut self.stdout, &mut self.written);
        }
        if ready.1 {
            read_from(&mut self.stderr, &mut self.beside);
            self.words.add(&self.beside);
            self.beside.clear();
        }
        Ok(())
    }

    /// Reads what is still in the pipes. Somebody who got away from the group may hold them.
    fn read_last(&mut self) {
        let until = Instant::now() + LAST_WORDS;
        while self.is_open() && !self.is_too_long() && Instant::now() < until {
            if self.read_some(LOOK_MS).is_err() {
                return;
            }
        }
    }
}

/// Reads what is there; `None` when the other side has closed.
fn read_from(pipe: &mut Option<impl Read>, buffer: &mut Vec<u8>) {
    let Some(open) = pipe else { return };
    let mut chunk = Zeroizing::new([0; CHUNK]);
    match open.read(chunk.as_mut()) {
        Ok(length @ 1..) => buffer.extend_from_slice(chunk.get(..length).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Ok(0) | Err(_) => *pipe = None,
    }
}

//! `<auth><key_request>`, and the same feature's older home, `<wodle name="agent-key-polling">`.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

use crate::{
    kind::{bytes, maybe, number, path, rate, seconds, span, text, word, yes_no},
    limits,
    value::Rate,
    walk::{Block, Walk},
};

/// Where the keys of unknown agents come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeyRequest {
    /// Whether the feature is on; it is once the block is there.
    pub enabled: bool,
    /// The command line to run, with its arguments.
    pub exec_path: Option<String>,
    /// How the command is run.
    pub exec_mode: ExecMode,
    /// The stream socket to ask first.
    pub socket: Option<PathBuf>,
    /// The longest that one look-up may take.
    #[serde(serialize_with = "crate::json::seconds")]
    pub timeout: Duration,
    /// How many look-ups run at once.
    pub threads: u16,
    /// How many requests may wait.
    pub queue_size: u32,
    /// Whether an agent with the same id, name or address gives way, whatever `<force>` says. `None`: `<force>` decides.
    /// The older block always sets it; in `<key_request>` it is accepted and warned about.
    pub force_insert: Option<bool>,
    /// How long "there is no such agent" is remembered. Zero: not at all.
    #[serde(serialize_with = "crate::json::seconds")]
    pub negative_cache: Duration,
    /// Look-ups that one source address may cause.
    pub rate_per_address: Rate,
    /// Look-ups in all.
    pub rate_total: Rate,
    /// How long a request may wait and run before nobody wants its answer.
    #[serde(serialize_with = "crate::json::seconds")]
    pub deadline: Duration,
    /// Failures in a row after which the source counts as down.
    pub breaker_failures: u32,
    /// How long a source that is down is left alone.
    #[serde(serialize_with = "crate::json::seconds")]
    pub breaker_pause: Duration,
    /// Bytes that one look-up may be answered with.
    pub max_output: u64,
    /// Bytes of memory that one process of the command may write to.
    pub max_memory: u64,
}

impl Default for KeyRequest {
    fn default() -> Self {
        Self {
            enabled: true,
            exec_path: None,
            exec_mode: ExecMode::Once,
            socket: None,
            timeout: limits::KEY_REQUEST_TIMEOUT,
            threads: limits::KEY_REQUEST_THREADS,
            queue_size: limits::KEY_REQUEST_QUEUE_SIZE,
            force_insert: None,
            negative_cache: limits::KEY_REQUEST_NEGATIVE_CACHE,
            rate_per_address: limits::KEY_REQUEST_RATE_PER_ADDRESS,
            rate_total: limits::KEY_REQUEST_RATE_TOTAL,
            deadline: limits::KEY_REQUEST_DEADLINE,
            breaker_failures: limits::KEY_REQUEST_BREAKER_FAILURES,
            breaker_pause: limits::KEY_REQUEST_BREAKER_PAUSE,
            max_output: limits::KEY_REQUEST_MAX_OUTPUT,
            max_memory: limits::KEY_REQUEST_MAX_MEMORY,
        }
    }
}

/// How the command is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecMode {
    /// Once for each request (stock).
    Once,
    /// Kept running: one JSON request a line on its standard input, one answer a line on its standard output.
    Persistent,
}

const DAY: u64 = 86_400;

impl KeyRequest {
    /// These settings, with the sources of an older block where they name none.
    pub(super) fn with_sources_of(self, old: Self) -> Self {
        Self {
            exec_path: self.exec_path.or(old.exec_path),
            socket: self.socket.or(old.socket),
            ..self
        }
    }

    fn walk_shared<W: Walk>(&mut self, walk: &mut W) {
        walk.stock("enabled", yes_no(), &mut self.enabled);
        walk.stock("exec_path", maybe(text(4095)), &mut self.exec_path);
        let modes = word(&[("once", ExecMode::Once), ("persistent", ExecMode::Persistent)]);
        walk.own("exec_mode", modes, &mut self.exec_mode);
        walk.stock("socket", maybe(path()), &mut self.socket);
        walk.stock("timeout", seconds(1, 4_294_967_294), &mut self.timeout);
        walk.stock("threads", number(1, 32), &mut self.threads);
        walk.stock("queue_size", number(1, 220_000), &mut self.queue_size);
        walk.own("negative_cache", span(0, DAY), &mut self.negative_cache);
        walk.own("rate_per_address", rate(), &mut self.rate_per_address);
        walk.own("rate_total", rate(), &mut self.rate_total);
        walk.own("deadline", span(1, DAY), &mut self.deadline);
        walk.own("breaker_failures", number(1, 1_000_000), &mut self.breaker_failures);
        walk.own("breaker_pause", span(1, DAY), &mut self.breaker_pause);
        walk.own("max_output", bytes(1 << 10, 64 << 20), &mut self.max_output);
        walk.own("max_memory", bytes(64 << 20, 1 << 40), &mut self.max_memory);
        if self.enabled && self.exec_path.is_none() && self.socket.is_none() {
            walk.warning("", "there is neither <socket> nor <exec_path>: each look-up will fail");
        }
    }
}

impl Block for KeyRequest {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        self.walk_shared(walk);
        let _: Option<bool> = walk.old("force_insert", yes_no(), "<auth><force>, which decides here");
    }
}

/// `<wodle name="agent-key-polling">`: the same options, and `force_insert` still has its meaning and its default.
#[derive(Default)]
pub(super) struct Wodle(pub(super) KeyRequest);

impl Block for Wodle {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        self.0.walk_shared(walk);
        let mut force_insert = self.0.force_insert.unwrap_or(true);
        walk.stock("force_insert", yes_no(), &mut force_insert);
        self.0.force_insert = Some(force_insert);
    }
}

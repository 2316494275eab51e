//! `<auth><key_request>`, and the same feature's older home, `<wodle name="agent-key-polling">`.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

use super::Rate;
use crate::limits;

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
    /// Whether an agent with the same name or address gives way, whatever `<force>` says. `None`: `<force>` decides.
    /// Only the older block sets it; in `<key_request>` it is accepted and warned about.
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

//! The command line.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};

use crate::{
    agent::{EventLoad, Habits},
    mix::Mix,
};

/// a simulated fleet of agents that speaks the real protocol
///
/// Enrolls agents at the enrollment port, or takes their keys from a file, connects them all, and lets each of them
/// send keepalives and events as agents of its family do. Orders come one a line on standard input:
/// `kill N`, `kill-names A,B` (either with `silent` behind it: connections stay open), `revive`, `status`, `stop`. When
/// standard input is a pipe, its end means stop.
#[derive(Parser, Debug)]
#[command(name = "muster-swarm", version)]
pub struct Cli {
    /// enroll at this address and port first
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "keys")]
    pub enroll: Option<String>,

    /// connect to this address and port
    #[arg(long, value_name = "HOST:PORT")]
    pub connect: String,

    /// how many agents; default: as many as the mix adds up to, or 1
    #[arg(long, value_name = "N")]
    pub agents: Option<usize>,

    /// kinds of agents and their shares
    ///
    /// Kinds: wazuh-aes-tcp, wazuh-aes-udp, wazuh-blowfish-tcp, wazuh-blowfish-udp, ossec3, ossec4.
    #[arg(long, value_name = "KIND=N,…")]
    pub mix: Option<Mix>,

    /// take agents from this key file instead of enrolling them
    #[arg(long, value_name = "FILE", conflicts_with = "enroll")]
    pub keys: Option<PathBuf>,

    /// write the agents' keys to this file, for a later run with --keys
    #[arg(long, value_name = "FILE")]
    pub save_keys: Option<PathBuf>,

    /// the enrollment password is the first line of this file
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,

    /// seconds between two keepalives of an agent
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds)]
    pub notify_time: Duration,

    /// seconds without a word from the manager after which an agent reconnects; default: three keepalives
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub reconnect_after: Option<Duration>,

    /// seconds between two attempts to connect; default: half a keepalive period, 1 to 10
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub retry_interval: Option<Duration>,

    /// events a second, of the whole fleet
    #[arg(long, value_name = "RATE", default_value_t = 0.0)]
    pub events_per_second: f64,

    /// bytes of an event
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    pub event_size: usize,

    /// stop after so many seconds; default: when told to
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub duration: Option<Duration>,

    /// names are this and a number
    #[arg(long, value_name = "TEXT", default_value = "sim-")]
    pub name_prefix: String,

    /// repeat what an earlier run did with the same number
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,

    /// how to tell what happens
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The largest payload that one message carries.
const MAX_EVENT_LEN: usize = muster_proto::transport::MAX_PAYLOAD_LEN;

impl Cli {
    /// How many agents are asked for.
    pub fn wanted(&self) -> usize {
        self.agents
            .or_else(|| self.mix.as_ref().and_then(|mix| usize::try_from(mix.total()).ok()))
            .unwrap_or(1)
    }

    /// How each of `agents` agents behaves.
    pub fn habits(&self, agents: usize) -> Result<Habits> {
        if !(self.events_per_second >= 0.0 && self.events_per_second.is_finite()) {
            bail!("--events-per-second should be 0 or more");
        }
        if self.event_size > MAX_EVENT_LEN {
            bail!("--event-size should be {MAX_EVENT_LEN} or less");
        }
        let mut habits = Habits::stock(self.notify_time);
        if let Some(time) = self.reconnect_after {
            habits.reconnect_after = time;
        }
        if let Some(time) = self.retry_interval {
            habits.retry_interval = time;
        }
        if self.events_per_second > 0.0 && agents > 0 {
            let between = u32::try_from(agents).map_or(f64::MAX, f64::from) / self.events_per_second;
            let Ok(every) = Duration::try_from_secs_f64(between) else {
                bail!("--events-per-second is too small for a fleet of {agents}");
            };
            habits.events = Some(EventLoad {
                every: every.max(Duration::from_nanos(1)),
                size: self.event_size,
            });
        }
        Ok(habits)
    }

    /// The names of the agents, in order.
    pub fn names(&self, agents: usize) -> Vec<String> {
        let width = agents.to_string().len().max(3);
        (1..=agents)
            .map(|number| format!("{}{number:0width$}", self.name_prefix))
            .collect()
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number of seconds"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time >= Duration::from_millis(1) => Ok(time),
        _ => Err(format!("`{text}` should be a positive number of seconds")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli(arguments: &[&str]) -> Cli {
        let mut all = vec![
            "muster-swarm",
            "--enroll",
            "127.0.0.1:1515",
            "--connect",
            "127.0.0.1:1514",
        ];
        all.extend_from_slice(arguments);
        Cli::try_parse_from(all).unwrap()
    }

    #[test]
    fn the_mix_says_how_many_unless_agents_does() {
        assert_eq!(cli(&[]).wanted(), 1);
        assert_eq!(cli(&["--mix", "ossec3=3,ossec4=4"]).wanted(), 7);
        assert_eq!(cli(&["--mix", "ossec3=3,ossec4=4", "--agents", "70"]).wanted(), 70);
    }

    #[test]
    fn the_rate_is_that_of_the_whole_fleet() {
        let load = cli(&["--events-per-second", "100"]).habits(50).unwrap().events.unwrap();
        assert_eq!(load.every, Duration::from_millis(500));
        assert!(cli(&[]).habits(50).unwrap().events.is_none());
        assert!(cli(&["--events-per-second", "NaN"]).habits(50).is_err());
        assert!(cli(&["--event-size", "70000"]).habits(50).is_err());
    }

    #[test]
    fn names_sort_as_they_count() {
        assert_eq!(cli(&[]).names(2), ["sim-001", "sim-002"]);
        assert_eq!(cli(&["--name-prefix", "a"]).names(10_000)[9_999], "a10000");
    }

    #[test]
    fn keys_come_from_one_place() {
        assert!(Cli::try_parse_from(["muster-swarm", "--connect", "127.0.0.1:1514"]).is_err());
        let both = ["muster-swarm", "--connect", "h:1", "--enroll", "h:2", "--keys", "f"];
        assert!(Cli::try_parse_from(both).is_err());
    }
}

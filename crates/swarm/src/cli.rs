//! The command line.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

use crate::{
    agent::{EventLoad, Habits},
    mix::Mix,
    scenario::{Group, Naming, Scenario, file},
};

/// a simulated fleet of agents that speaks the real protocol
///
/// Enrolls agents at the enrollment port, or takes their keys from a file, connects them all, and lets each of them
/// send keepalives and events as agents of its family do. What they are and what happens to them is said by --mix and
/// the options beside it, or by a scenario file. Orders come one a line on standard input: `kill WHO
/// [reset|silent]`, `revive [WHO]`, `storm WHO`, `stall WHO`, `flood WHO [at RATE] [of BYTES] [for TIME]`, `clone WHO
/// [from ADDRESS]`, `unclone`, `status`, `stop`; WHO is `all`, a number, `20%`, `@name,name`, or a group of the scenario,
/// with a number or share behind it if not all are meant. When standard input is a pipe, its end means stop.
#[derive(Parser, Debug)]
#[command(name = "muster-swarm", version)]
pub struct Cli {
    /// enroll at this address and port first
    #[arg(long, value_name = "HOST:PORT", required_unless_present_any = ["keys", "check"])]
    pub enroll: Option<String>,

    /// connect to this address and port
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "check")]
    pub connect: Option<String>,

    /// take the fleet and its story from this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mix", "notify_time", "reconnect_after", "retry_interval",
        "events_per_second", "event_size"])]
    pub scenario: Option<PathBuf>,

    /// say what would be run, and end
    #[arg(long)]
    pub check: bool,

    /// how many agents; default: as many as the mix or the scenario adds up to, or 1
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

    /// UDP agents share at most so many sockets; default: one each, as far as the system allows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub udp_sockets: Option<u32>,

    /// agents keep the shared files that they are sent here, each as `<name>.merged.mg`
    #[arg(long, value_name = "FOLDER")]
    pub keep_files: Option<PathBuf>,

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

    /// names are this and a number; in a scenario the group's name stands between them. Default: `sim-`, in a scenario
    /// nothing
    #[arg(long, value_name = "TEXT")]
    pub name_prefix: Option<String>,

    /// repeat what an earlier run did with the same number; default: that of the scenario, or 1
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,

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
    /// The fleet and its story: from the file, or from the options.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or a value makes no sense; the message names it.
    pub fn scenario(&self) -> Result<Scenario> {
        let mut scenario = match &self.scenario {
            Some(path) => {
                let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                file::parse(&path.display().to_string(), &text)?
            }
            None => {
                let mix = self.mix.clone().unwrap_or_default();
                let agents = self.agents.or_else(|| usize::try_from(mix.total()).ok());
                let habits = self.habits(agents.unwrap_or(1))?;
                let groups = mix.shares().iter();
                Scenario {
                    groups: groups
                        .filter(|(_, share)| *share > 0)
                        .map(|(kind, share)| Group::of_kind(*kind, *share, habits.clone()))
                        .collect(),
                    ..Scenario::default()
                }
            }
        };
        scenario.duration = self.duration.or(scenario.duration);
        scenario.udp_sockets = self
            .udp_sockets
            .and_then(|sockets| usize::try_from(sockets).ok())
            .or(scenario.udp_sockets);
        if let Some(folder) = &self.keep_files {
            scenario.keep_files = Some(folder.clone());
            for group in &mut scenario.groups {
                group.habits.keeps_files = true;
            }
        }
        Ok(scenario)
    }

    /// How the agents are called.
    pub fn naming(&self) -> Naming<'_> {
        match (&self.name_prefix, &self.scenario) {
            (Some(prefix), None) => Naming::Through(prefix),
            (None, None) => Naming::Through("sim-"),
            (prefix, Some(_)) => Naming::ByGroup(prefix.as_deref().unwrap_or_default()),
        }
    }

    /// How each of `agents` agents behaves.
    fn habits(&self, agents: usize) -> Result<Habits> {
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
            habits.events = Some(EventLoad::even(every.max(Duration::from_nanos(1)), self.event_size));
        }
        Ok(habits)
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
    fn the_mix_says_what_there_is() {
        let agents = |arguments: &[&str]| cli(arguments).scenario().unwrap().agents();
        assert_eq!(agents(&[]), 1);
        assert_eq!(agents(&["--mix", "ossec3=3,ossec4=4,wazuh-aes-tcp=0"]), 7);
    }

    #[test]
    fn the_rate_is_that_of_the_whole_fleet() {
        let every = |arguments: &[&str]| {
            let scenario = cli(arguments).scenario().unwrap();
            scenario.groups[0].habits.events.clone().map(|load| load.every)
        };
        let rate = ["--events-per-second", "100", "--agents", "50"];
        assert_eq!(every(&rate), Some(Duration::from_millis(500)));
        assert_eq!(every(&[]), None);
        assert!(cli(&["--events-per-second", "NaN"]).scenario().is_err());
        assert!(cli(&["--event-size", "70000"]).scenario().is_err());
    }

    #[test]
    fn names_sort_as_they_count() {
        let names = |arguments: &[&str], agents: usize| -> Vec<String> {
            let cli = cli(arguments);
            let recruits = cli.scenario().unwrap().recruits(agents, cli.naming());
            recruits.into_iter().map(|recruit| recruit.name).collect()
        };
        assert_eq!(names(&[], 2), ["sim-001", "sim-002"]);
        assert_eq!(names(&["--name-prefix", "a"], 10_000)[9_999], "a10000");
    }

    #[test]
    fn a_scenario_and_a_mix_are_not_given_together() {
        let both = ["muster-swarm", "--check", "--scenario", "f", "--mix", "ossec3=1"];
        assert!(Cli::try_parse_from(both).is_err());
        let missing = cli(&["--scenario", "/nowhere/fleet"]).scenario().unwrap_err();
        assert!(format!("{missing:#}").contains("/nowhere/fleet"), "{missing:#}");
    }

    #[test]
    fn keys_come_from_one_place() {
        assert!(Cli::try_parse_from(["muster-swarm", "--connect", "127.0.0.1:1514"]).is_err());
        let both = ["muster-swarm", "--connect", "h:1", "--enroll", "h:2", "--keys", "f"];
        assert!(Cli::try_parse_from(both).is_err());
    }
}

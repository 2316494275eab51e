//! Every argument of `muster-control`. Doc comments are the help texts.

#![allow(rustdoc::invalid_html_tags, reason = "doc comments are help texts for a terminal")]

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValuesParser};

use crate::daemons;

/// start, stop, look into and configure a Muster manager
#[derive(Debug, Parser)]
#[command(name = "muster-control", version = muster_service::version::version(), after_long_help = EXIT_CODES)]
pub struct Cli {
    /// the manager's home [default: $MUSTER_HOME, else /var/lib/muster]
    #[arg(long, short = 'D', global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,

    /// how data is printed on standard output
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: OutputFormat,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes:
   0  done
   1  not done; the message says why
   2  the command line makes no sense
   3  a daemon cannot be reached
  77  not permitted
  78  the configuration is bad";

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: documented and stable.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// make a home: directories, configuration, certificate, password
    ///
    /// What is there already is left as it is, so it may be run again. A directory that has something in it and is no
    /// Muster home is refused.
    Init(Init),
    /// start daemons, wait until they serve, and leave them running
    ///
    /// A daemon whose part of the configuration is absent or disabled is left out. Log lines go to logs/<daemon>.log
    /// below the home.
    Start(Daemons),
    /// stop daemons in good order; those that take longer than 30 s are killed
    Stop(Daemons),
    /// stop and start daemons
    Restart(Daemons),
    /// say how daemons are: running, since when, ready or why not, queues and drops
    ///
    /// As JSON: {"daemons": [{"daemon", "state": "running" | "stopped" | "unresponsive" | "forbidden", "enabled",
    /// "version", "pid", "since", "ready", "degraded": [], "listening": [], "queues": [{"name", "used", "capacity",
    /// "unit", "dropped"}], "counters": {}, "facts": {}}]}; of a daemon that does not answer, the first three and
    /// "error".
    ///
    /// The exit code is 0 when every daemon that should run does, 77 when one may not be asked, else 3.
    Status(Daemons),
    /// let daemons read their configuration again; a bad one changes nothing
    Reload(Daemons),
    /// run daemons in the foreground, restart those that fail, and stop all at Ctrl-C
    Run(Daemons),
    /// list, show, add and remove agents
    #[command(subcommand)]
    Agent(AgentCommand),
    /// list, create and delete groups, show their files, and put agents into them
    #[command(subcommand)]
    Group(GroupCommand),
    /// look into key polling, and ask the key source by hand
    #[command(subcommand)]
    Keypoll(KeypollCommand),
    /// follow events as natsd takes them
    ///
    /// As JSON, one object a line: {"sequence", "subject", "producer", "kind", "created_ms", "alert_level", "headers": {},
    /// "body": {}}.
    Events(Events),
    /// open, list and end maintenance windows, in which agents are expected to go away
    #[command(subcommand)]
    Maintenance(crate::maintenance::MaintenanceCommand),
    /// say how events reach NATS, and look after the keys that they are signed with
    #[command(subcommand)]
    Nats(crate::nats::NatsCommand),
    /// check and show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// make a self-signed certificate for authd
    ///
    /// Without --out-cert and --out-key it lies where authd looks for it. Files that exist are not overwritten.
    Cert(Cert),
}

/// `init`
#[derive(Args, Debug)]
pub struct Init {
    /// the address that agents connect to [default: every address]
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<IpAddr>,

    /// the port that agents talk to
    #[arg(long, value_name = "PORT", default_value_t = 1514, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// the port that agents enroll at
    #[arg(long, value_name = "PORT", default_value_t = 1515, value_parser = clap::value_parser!(u16).range(1..))]
    pub enroll_port: u16,

    /// the NATS server that events are published to; without it they wait in the local spool
    #[arg(long, value_name = "URL")]
    pub nats: Option<String>,

    /// let agents enroll without a password
    #[arg(long)]
    pub no_password: bool,
}

/// Which daemons.
#[derive(Args, Debug, Default)]
pub struct Daemons {
    /// which daemons [default: all]
    #[arg(value_name = "DAEMON", value_parser = PossibleValuesParser::new(daemons::names()))]
    pub daemons: Vec<String>,
}

/// `agent …`
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// list the agents, in order of their ids
    ///
    /// As JSON: an array of the objects that `agent show` prints.
    List(AgentList),
    /// show all that is known of an agent
    ///
    /// As JSON: {"id", "name", "ip", "status": "active" | "pending" | "disconnected" | "never_connected", "reason", "since",
    /// "version", "last_heard", "last_keepalive", "last_sent", "missed", "timeout", "observed_interval", "peer", "protocol",
    /// "crypto", "reported_ip", "os": {}, "merged_sum", "config_sum", "labels": [], "groups": [], "group_config_status":
    /// "synced" | "not synced"}. Times are Unix seconds; null is never or unknown.
    Show(AgentShow),
    /// give a new agent an id and a key
    Add(AgentAdd),
    /// remove agents and their keys
    Remove(AgentRemove),
    /// order agents to restart
    Restart(AgentTargets),
    /// order agents to close their connection and make a new one
    Reconnect(AgentTargets),
    /// ask an agent something and print its answer
    ///
    /// As JSON: {"id", "answer": what it says, as JSON if it is such, else as text}.
    Request(AgentRequest),
    /// forget how far agents have counted their messages
    ///
    /// For agents that were restored from a snapshot: their messages count what was counted before, and are refused as
    /// replays where counters are checked. Whatever they count next is taken.
    ResetCounter(ResetCounter),
}

/// `agent list`
#[derive(Args, Debug)]
pub struct AgentList {
    /// only agents of this status
    #[arg(long, value_name = "STATUS", value_parser = PossibleValuesParser::new(
        ["active", "pending", "disconnected", "never_connected"]))]
    pub status: Option<String>,
}

/// `agent show`
#[derive(Args, Debug)]
pub struct AgentShow {
    /// the agent's id
    pub id: String,
}

/// `agent add`
#[derive(Args, Debug)]
pub struct AgentAdd {
    /// the agent's name
    pub name: String,

    /// the address that it connects from: an address, a network or `any`
    #[arg(long, default_value = "any", value_name = "ADDRESS")]
    pub ip: String,

    /// the id that it shall have [default: the next free one]
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,

    /// the groups that it belongs to
    #[arg(long, value_delimiter = ',', value_name = "GROUP")]
    pub groups: Vec<String>,

    /// print the key too, as `manage_agents -i` on the agent takes it
    #[arg(long)]
    pub show_key: bool,
}

/// `agent remove`
#[derive(Args, Debug)]
pub struct AgentRemove {
    /// the agents' ids
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,

    /// leave no line of them in client.keys
    #[arg(long)]
    pub purge: bool,
}

/// `keypoll …`
#[derive(Debug, Subcommand)]
pub enum KeypollCommand {
    /// say which sources are asked, what waits, and what came of it
    ///
    /// As JSON: {"ready", "degraded": [], "queues": [{"name", "used", "capacity", "unit", "dropped"}], "counters": {},
    /// "facts": {}}.
    Status,
    /// ask the key source for an agent and show what comes back, without registering anything
    ///
    /// The key itself is not shown. The exit code is 0 when an agent was found, else 1.
    ///
    /// As JSON: {"lookup", "value", "outcome": "found" | "not_found" | "source_error" | "malformed" | "other_agent" |
    /// "timed_out" | "source_failed", "reason", "source": "socket" | "exec_path" | null, "duration_ms", "errors": [],
    /// "agent": {"id", "name", "ip", "key_length", "registered": "nothing" | "the same" | "another" | "unknown"} | null}.
    Try(KeypollTry),
}

/// `keypoll try`
#[derive(Args, Debug)]
pub struct KeypollTry {
    /// by what the agent is looked up
    #[arg(value_name = "id|ip", value_parser = PossibleValuesParser::new(["id", "ip"]))]
    pub lookup: String,

    /// its id or address
    pub value: String,
}

/// `agent restart`, `agent reconnect`
#[derive(Args, Debug)]
pub struct AgentTargets {
    /// the agents' ids
    #[arg(required_unless_present = "all", value_name = "ID")]
    pub ids: Vec<String>,

    /// every agent that is connected
    #[arg(long, conflicts_with = "ids")]
    pub all: bool,
}

/// `agent reset-counter`
#[derive(Args, Debug)]
pub struct ResetCounter {
    /// the agents' ids
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
}

/// `agent request`
#[derive(Args, Debug)]
pub struct AgentRequest {
    /// the agent's id
    pub id: String,

    /// who in the agent is asked, and what: agent getstate, agent getconfig client, com restart
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "TARGET DATA"
    )]
    pub text: Vec<String>,
}

/// `group …`
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// list the groups, how many agents are in each, and the sum of what it shares
    ///
    /// As JSON: [{"name", "agents", "merged_sum"}]. The sum is null before remoted has merged the group's files.
    List,
    /// make a group; its files go to etc/shared/<GROUP>
    Create(GroupName),
    /// delete a group with its files, and take it from its agents
    ///
    /// Agents that are left without a group get "default" with their next keepalive.
    Delete(GroupName),
    /// show the files that a group's agents get
    ///
    /// As JSON: [{"path", "size", "sum"}], in the order in which they are merged.
    Files(GroupName),
    /// put agents into groups, in the place of those that they have
    ///
    /// Where several groups have a file of the same name, that of the last group counts. As JSON: [{"id", "groups": []}].
    Assign(GroupAssign),
}

/// A group.
#[derive(Args, Debug)]
pub struct GroupName {
    /// the group's name
    pub group: String,
}

/// `group assign`
#[derive(Args, Debug)]
pub struct GroupAssign {
    /// the groups, in their order, with commas between them
    #[arg(value_name = "GROUPS")]
    pub groups: String,

    /// the agents' ids
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,

    /// leave the agents in the groups that they have, and put these behind them
    #[arg(long)]
    pub append: bool,

    /// take the agents out of these groups
    #[arg(long, conflicts_with = "append")]
    pub remove: bool,
}

/// `events`
#[derive(Args, Debug)]
pub struct Events {
    /// begin with so many past events
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub backlog: u32,

    /// end after so many events
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

/// `config …`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// check the configuration: 0 if it is good, 78 if not
    Check(ConfigFile),
    /// print what is in force, defaults included, secrets masked
    Show(ConfigFile),
}

/// Which configuration.
#[derive(Args, Debug)]
pub struct ConfigFile {
    /// the file [default: etc/ossec.conf below the home]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// `cert`
#[derive(Args, Debug)]
pub struct Cert {
    /// where the certificate goes [default: etc/sslmanager.cert below the home]
    #[arg(long, value_name = "FILE")]
    pub out_cert: Option<PathBuf>,

    /// where the private key goes [default: etc/sslmanager.key below the home]
    #[arg(long, value_name = "FILE")]
    pub out_key: Option<PathBuf>,

    /// a name or address that agents know the manager by; may be repeated [default: this host's name]
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<String>,

    /// how long it is valid
    #[arg(long, default_value_t = 365, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..=3650))]
    pub days: u16,

    /// the length of an RSA key
    #[arg(long, default_value = "2048", value_name = "BITS", value_parser = PossibleValuesParser::new(
        ["2048", "3072", "4096"]))]
    pub bits: String,

    /// make an ECDSA P-256 key instead, which OSSEC's agents cannot use
    #[arg(long, conflicts_with = "bits")]
    pub ecdsa: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn home_and_output_may_stand_before_and_behind_the_verb() {
        for line in [
            ["x", "--home", "/h", "--output", "json", "agent", "list"],
            ["x", "agent", "list", "--home", "/h", "--output", "json"],
        ] {
            let cli = Cli::try_parse_from(line).expect("parses");
            assert_eq!(cli.home, Some(PathBuf::from("/h")));
            assert_eq!(cli.output, OutputFormat::Json);
        }
    }

    #[test]
    fn unknown_daemon_is_a_usage_error() {
        let error = Cli::try_parse_from(["x", "start", "remoted", "sshd"]).expect_err("is an error");
        assert_eq!(error.exit_code(), i32::from(muster_service::exit::USAGE));
    }
}

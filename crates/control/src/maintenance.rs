//! `maintenance`: times in which agents are expected to go away.

use clap::{Args, Subcommand};
use muster_proto::{
    agent::AgentId,
    ipc::control::{MaintenanceScope, MaintenanceWindow, Request, Response},
};
use muster_service::exit::DONE;

use crate::{
    cli::OutputFormat,
    context::{self, Context},
    output::{self, tame},
};

const DAEMON: &str = "remoted";
/// Units of a length, in seconds.
const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];

/// `maintenance …`
#[derive(Debug, Subcommand)]
pub enum MaintenanceCommand {
    /// expect agents to go away from now on, for a while
    ///
    /// An agent that times out or stops meanwhile gets the reason "maintenance" and the lowest alert level, is not said
    /// again, and is no line for the analysis daemon. Whoever is still away at the end is told of then, as ever. A window
    /// survives restarts. A second one for the same agents takes the place of the first.
    ///
    /// As JSON: what `maintenance list` prints, with the one window.
    Start(Start),
    /// list the windows that are open
    ///
    /// As JSON: [{"scope": "all" | {"group": NAME} | {"agent": ID}, "since", "until"}]; times are Unix seconds.
    List,
    /// end a window before its time; all windows without --group and --agent
    ///
    /// As JSON: what `maintenance list` prints, with the windows that were ended. The exit code is 0 even if none was.
    Stop(Chosen),
}

/// `maintenance start`
#[derive(Args, Debug)]
pub struct Start {
    /// how long, such as 90s, 30m, 2h, 1d; at most 30d
    #[arg(value_name = "LENGTH", value_parser = length)]
    pub seconds: u64,

    /// whose absence is expected
    #[command(flatten)]
    pub chosen: Chosen,
}

/// Which agents.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub struct Chosen {
    /// the agents of a group [default: all agents]
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,

    /// one agent
    #[arg(long, value_name = "ID")]
    pub agent: Option<String>,
}

impl Chosen {
    fn scope(&self) -> Option<MaintenanceScope> {
        let group = self.group.clone().map(MaintenanceScope::Group);
        group.or_else(|| {
            self.agent
                .as_deref()
                .map(|id| MaintenanceScope::Agent(AgentId::new(id)))
        })
    }
}

/// A number with its unit; seconds without one.
fn length(text: &str) -> Result<u64, String> {
    let unit = UNITS.iter().find(|(letter, _)| text.ends_with(*letter));
    let number = unit.map_or(text, |(letter, _)| text.strip_suffix(*letter).unwrap_or(text));
    let seconds = number.parse::<u64>().ok().filter(|_| !number.starts_with('+'));
    seconds
        .and_then(|number| number.checked_mul(unit.map_or(1, |(_, seconds)| *seconds)))
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| "a length is a number and s, m, h or d, such as 30m".to_owned())
}

pub(crate) async fn maintenance(context: &Context, command: &MaintenanceCommand) -> anyhow::Result<u8> {
    let (request, none) = match command {
        MaintenanceCommand::Start(start) => {
            let scope = start.chosen.scope().unwrap_or(MaintenanceScope::All);
            let seconds = start.seconds;
            (Request::MaintenanceStart { scope, seconds }, "")
        }
        MaintenanceCommand::List => (Request::Maintenance, "no window is open"),
        MaintenanceCommand::Stop(chosen) => {
            let scope = chosen.scope();
            (Request::MaintenanceStop { scope }, "there was no such window")
        }
    };
    let Response::Maintenance(windows) = context.ask(DAEMON, &request).await? else {
        return Err(context::mismatched(DAEMON));
    };
    match context.output {
        OutputFormat::Json => output::json(&windows)?,
        OutputFormat::Text if windows.is_empty() => output::line(none)?,
        OutputFormat::Text => {
            let rows: Vec<_> = windows.iter().map(row).collect();
            output::table(["AGENTS", "SINCE", "UNTIL"], &rows)?;
        }
    }
    Ok(DONE)
}

fn row(window: &MaintenanceWindow) -> [String; 3] {
    let scope = match &window.scope {
        MaintenanceScope::All => "all".to_owned(),
        MaintenanceScope::Group(group) => format!("group {}", tame(group)),
        MaintenanceScope::Agent(id) => format!("agent {}", tame(id.as_str())),
    };
    [scope, output::time(window.since), output::time(window.until)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_units_and_are_never_zero() {
        for (text, seconds) in [("45", 45), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86_400)] {
            assert_eq!(length(text), Ok(seconds), "{text}");
        }
        for text in [
            "",
            "0",
            "0m",
            "m",
            "-1m",
            "+1m",
            "1w",
            "1.5h",
            "30mm",
            "1h30m",
            "99999999999999999999",
        ] {
            assert!(length(text).is_err(), "{text}");
        }
    }
}

//! The command line.

use clap::Parser;
use muster_service::Common;

/// speaks to the agents and knows who is alive
///
/// Agents connect to the ports of the <remote> blocks of etc/ossec.conf. Their events go to the analysis daemon's
/// socket; whether they are there is kept in queue/db/agents.db and told to muster-natsd.
#[derive(Parser, Clone, Debug)]
#[command(name = "muster-remoted", version = muster_service::version::version())]
pub struct Cli {
    /// What every daemon takes.
    #[command(flatten)]
    pub common: Common,

    /// threads that talk to agents [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,

    /// never write merged files: somebody else puts them where ours would be
    #[arg(short = 'm')]
    pub no_merging: bool,
}

impl Cli {
    /// How many workers there are to be.
    pub fn workers(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        self.workers.map_or_else(processors, usize::from)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["muster-remoted", "--home", "/h", "--workers", "3"]).expect("parses");
        assert_eq!(cli.workers(), 3);
        assert!(!cli.no_merging);
        assert!(Cli::try_parse_from(["wazuh-remoted", "-m"]).expect("parses").no_merging);
        assert!(Cli::try_parse_from(["muster-remoted", "--workers", "0"]).is_err());
    }
}

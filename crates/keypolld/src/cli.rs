//! The command line.

use clap::Parser;
use muster_service::Common;

/// fetches the keys of unknown agents from a database of yours
///
/// remoted asks for them; <key_request> in the <auth> block of etc/ossec.conf says which service or program knows them;
/// muster-authd registers the agents.
#[derive(Clone, Debug, Parser)]
#[command(name = "muster-keypolld", version = muster_service::version::version())]
pub struct Cli {
    /// What every daemon takes.
    #[command(flatten)]
    pub common: Common,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}

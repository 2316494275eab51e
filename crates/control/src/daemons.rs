//! The daemons of a manager.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use muster_config::Settings;
use muster_proto::paths;
use muster_service::pid_file;

use crate::cli;

/// One daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Daemon {
    /// Its short name.
    pub(crate) name: &'static str,
    /// Its stock names, under which a swapped daemon runs.
    stock: &'static [&'static str],
}

/// In the order of starting: whoever takes something comes before whoever gives it.
pub(crate) const ALL: [Daemon; 4] = [
    Daemon {
        name: "natsd",
        stock: &[],
    },
    Daemon {
        name: "authd",
        stock: &["wazuh-authd", "ossec-authd"],
    },
    Daemon {
        name: "keypolld",
        stock: &[],
    },
    Daemon {
        name: "remoted",
        stock: &["wazuh-remoted", "ossec-remoted"],
    },
];

/// Their names.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|daemon| daemon.name)
}

/// Those named, or all, in the order of starting.
pub(crate) fn chosen(daemons: &cli::Daemons) -> Vec<Daemon> {
    let named = |daemon: &Daemon| daemons.daemons.is_empty() || daemons.daemons.iter().any(|name| name == daemon.name);
    ALL.into_iter().filter(named).collect()
}

impl Daemon {
    /// Why it has nothing to do under these settings, if so.
    pub(crate) fn idle_because(&self, settings: &Settings) -> Option<&'static str> {
        match self.name {
            "authd" if settings.auth.disabled => Some("<auth> is absent or disabled"),
            "keypolld" if !settings.key_request.as_ref().is_some_and(|request| request.enabled) => {
                Some("<key_request> is absent or disabled")
            }
            "remoted" if settings.remotes.is_empty() => Some("there is no <remote>"),
            // natsd keeps the spool and shows the events, even without a server.
            _ => None,
        }
    }

    /// Its program, beside ours.
    pub(crate) fn program(&self) -> anyhow::Result<PathBuf> {
        let ours = env::current_exe().context("finding our own program")?;
        let program = ours.with_file_name(self.program_name());
        anyhow::ensure!(
            program.is_file(),
            "there is no {}: the daemons must lie beside muster-control",
            program.display()
        );
        Ok(program)
    }

    /// Its log below the home, when it was started by us.
    pub(crate) fn log(&self) -> PathBuf {
        Path::new(paths::LOGS).join(format!("{}.log", self.name))
    }

    /// The process that serves in the current home, by its pid file, under our name or a stock one.
    pub(crate) fn pid(&self) -> Option<u32> {
        let run = Path::new(paths::RUN);
        let stock = self.stock.iter().map(|name| (*name).to_owned());
        std::iter::once(self.program_name())
            .chain(stock)
            .find_map(|name| pid_file::running(run, &name))
    }

    fn program_name(&self) -> String {
        format!("muster-{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_are_started_in_one_order_however_they_are_named() {
        let named = cli::Daemons {
            daemons: vec!["remoted".to_owned(), "natsd".to_owned()],
        };
        assert_eq!(
            chosen(&named).iter().map(|daemon| daemon.name).collect::<Vec<_>>(),
            ["natsd", "remoted"]
        );
        assert_eq!(chosen(&cli::Daemons::default()), ALL);
    }

    #[test]
    fn without_blocks_only_natsd_has_something_to_do() {
        let settings = Settings::default();
        let busy: Vec<_> = ALL
            .iter()
            .filter(|daemon| daemon.idle_because(&settings).is_none())
            .collect();
        assert_eq!(busy, [&ALL[0]]);
    }
}

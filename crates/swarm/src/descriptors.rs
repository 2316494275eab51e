//! How many sockets this process may open.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors for everything that is no agent: the runtime, the terminal, enrollments under way.
const KEPT_BACK: u64 = 64;

/// Asks for a descriptor for each agent, and says how many agents there are descriptors for.
pub(crate) fn grant(agents: usize) -> io::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = u64::try_from(agents).unwrap_or(u64::MAX).saturating_add(KEPT_BACK);
    let granted = if soft >= wanted {
        soft
    } else {
        let possible = wanted.min(hard).max(soft);
        setrlimit(Resource::RLIMIT_NOFILE, possible, hard)?;
        possible
    };
    let for_agents = usize::try_from(granted.saturating_sub(KEPT_BACK)).unwrap_or(usize::MAX);
    Ok(agents.min(for_agents))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_fleet_is_granted_whole_and_an_endless_one_is_not() {
        assert_eq!(grant(10).unwrap(), 10);
        assert!(grant(usize::MAX).unwrap() < usize::MAX);
    }
}

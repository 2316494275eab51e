//! How many sockets this process may open, and who gets them.
//!
//! Each TCP agent needs one of its own. UDP agents can share: with one socket for all of them the fleet has as many as
//! memory holds.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors for everything that is no agent: the runtime, the terminal, enrollments under way.
const KEPT_BACK: u64 = 64;

/// Asks for so many sockets, and says how many there may be.
pub(crate) fn grant(sockets: usize) -> io::Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = u64::try_from(sockets).unwrap_or(u64::MAX).saturating_add(KEPT_BACK);
    let granted = if soft >= wanted {
        soft
    } else {
        let possible = wanted.min(hard).max(soft);
        setrlimit(Resource::RLIMIT_NOFILE, possible, hard)?;
        possible
    };
    let for_agents = usize::try_from(granted.saturating_sub(KEPT_BACK)).unwrap_or(usize::MAX);
    Ok(sockets.min(for_agents))
}

/// What a fleet needs sockets for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Agents that need one each.
    pub(crate) tcp: usize,
    /// Agents that can share.
    pub(crate) udp: usize,
    /// The fewest that those can share: one for each group and source address.
    pub(crate) udp_least: usize,
    /// The most that those may have.
    pub(crate) udp_most: usize,
    /// Further ones that appear later.
    pub(crate) clones: usize,
}

/// Who gets how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// TCP agents that there are sockets for.
    pub(crate) tcp: usize,
    /// Sockets of all UDP agents together.
    pub(crate) udp_sockets: usize,
}

impl Needs {
    /// How many sockets are asked for.
    pub(crate) fn all(self) -> usize {
        self.tcp + self.udp.min(self.udp_most).max(self.udp_least) + self.clones
    }

    /// Shares out what was granted: TCP agents first, since they cannot do without.
    pub(crate) fn share(self, granted: usize) -> Shares {
        let least = self.udp_least.min(self.udp);
        let tcp = self.tcp.min(granted.saturating_sub(least + self.clones));
        let left = granted.saturating_sub(tcp + self.clones);
        Shares {
            tcp,
            udp_sockets: self.udp.min(self.udp_most).min(left).max(least),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_fleet_is_granted_whole_and_an_endless_one_is_not() {
        assert_eq!(grant(10).unwrap(), 10);
        assert!(grant(usize::MAX).unwrap() < usize::MAX);
    }

    #[test]
    fn udp_agents_share_before_a_tcp_agent_goes_without() {
        let needs = Needs {
            tcp: 18_000,
            udp: 100_000,
            udp_least: 2,
            udp_most: usize::MAX,
            clones: 1,
        };
        assert_eq!(
            needs.share(19_936),
            Shares {
                tcp: 18_000,
                udp_sockets: 1_935
            }
        );
        assert_eq!(
            needs.share(10_000),
            Shares {
                tcp: 9_997,
                udp_sockets: 2
            }
        );
        assert_eq!(needs.share(needs.all()).udp_sockets, 100_000);
        let few = Needs { udp_most: 7, ..needs };
        assert_eq!((few.all(), few.share(few.all()).udp_sockets), (18_008, 7));
    }
}

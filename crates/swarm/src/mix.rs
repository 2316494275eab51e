//! Which kinds of agents a fleet is made of.

use std::{fmt, str::FromStr};

use muster_proto::transport::envelope::CryptoForm;
use thiserror::Error;

/// What carries an agent's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// One connection, each message behind its length.
    Tcp,
    /// One socket, each message a datagram.
    Udp,
}

/// How an agent behaves, beside its cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Wazuh 4.x: JSON behind the startup, goodbye, answers to requests.
    Wazuh,
    /// OSSEC 3.x: no JSON, no goodbye, no answers; checks the manager's counters.
    Ossec3,
    /// OSSEC 4.x: the same, with AES.
    Ossec4,
}

impl Family {
    /// Whether the agent is one of OSSEC's.
    pub fn is_ossec(self) -> bool {
        !matches!(self, Self::Wazuh)
    }

    /// The version that it has unless told otherwise.
    pub fn version(self) -> &'static str {
        match self {
            Self::Wazuh => "4.14.7",
            Self::Ossec3 => "3.7.0",
            Self::Ossec4 => "4.2.0",
        }
    }

    /// What it calls itself in a keepalive, in front of `v` and its version.
    pub fn product(self) -> &'static str {
        match self {
            Self::Wazuh => "Wazuh",
            Self::Ossec3 | Self::Ossec4 => "OSSEC HIDS",
        }
    }
}

/// A kind of agent: family, cipher and carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// How it behaves.
    pub family: Family,
    /// How it seals its messages.
    pub form: CryptoForm,
    /// What carries them.
    pub carrier: Carrier,
}

/// Every kind there is, by the name it has in `--mix`.
const KINDS: [(&str, Kind); 6] = [
    (
        "wazuh-aes-tcp",
        Kind {
            family: Family::Wazuh,
            form: CryptoForm::WazuhAes,
            carrier: Carrier::Tcp,
        },
    ),
    (
        "wazuh-aes-udp",
        Kind {
            family: Family::Wazuh,
            form: CryptoForm::WazuhAes,
            carrier: Carrier::Udp,
        },
    ),
    (
        "wazuh-blowfish-tcp",
        Kind {
            family: Family::Wazuh,
            form: CryptoForm::Blowfish,
            carrier: Carrier::Tcp,
        },
    ),
    (
        "wazuh-blowfish-udp",
        Kind {
            family: Family::Wazuh,
            form: CryptoForm::Blowfish,
            carrier: Carrier::Udp,
        },
    ),
    (
        "ossec3",
        Kind {
            family: Family::Ossec3,
            form: CryptoForm::Blowfish,
            carrier: Carrier::Udp,
        },
    ),
    (
        "ossec4",
        Kind {
            family: Family::Ossec4,
            form: CryptoForm::OssecAes,
            carrier: Carrier::Udp,
        },
    ),
];

impl Kind {
    /// Its name in `--mix`.
    pub fn name(self) -> &'static str {
        KINDS
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("?", |(name, _)| name)
    }
}

impl FromStr for Kind {
    type Err = MixError;

    fn from_str(name: &str) -> Result<Self, MixError> {
        KINDS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, kind)| *kind)
            .ok_or_else(|| MixError::UnknownKind(name.to_owned()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Shares of kinds, such as `wazuh-aes-tcp=30,ossec3=10`: absolute when they add up to the fleet, else proportions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix(Vec<(Kind, u32)>);

/// What is wrong with a mix.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MixError {
    /// No such kind.
    #[error(
        "unknown kind of agent `{0}`; one of wazuh-aes-tcp, wazuh-aes-udp, wazuh-blowfish-tcp, wazuh-blowfish-udp, ossec3, ossec4"
    )]
    UnknownKind(String),
    /// No number behind the kind.
    #[error("`{0}` should be a kind, an equals sign and a number")]
    Malformed(String),
    /// All numbers are 0, or together too large.
    #[error("the numbers of a mix should add up to 1 or more, and fit 32 bits")]
    Sum,
}

impl Mix {
    /// The sum of all shares.
    pub fn total(&self) -> u32 {
        self.0.iter().map(|(_, share)| share).sum()
    }

    /// The kinds of a fleet of `agents`, interleaved so that every run of agents has all kinds in it.
    ///
    /// ```
    /// let mix: muster_swarm::mix::Mix = "wazuh-aes-tcp=3,ossec4=1".parse()?;
    /// let names: Vec<_> = mix.deal(4).into_iter().map(|kind| kind.name()).collect();
    /// assert_eq!(names, ["wazuh-aes-tcp", "wazuh-aes-tcp", "ossec4", "wazuh-aes-tcp"]);
    /// # Ok::<(), muster_swarm::mix::MixError>(())
    /// ```
    pub fn deal(&self, agents: usize) -> Vec<Kind> {
        let shares: Vec<u32> = self.0.iter().map(|(_, share)| *share).collect();
        deal(&shares, agents)
            .into_iter()
            .filter_map(|place| self.0.get(place).map(|(kind, _)| *kind))
            .collect()
    }

    /// The kinds and their shares, in the order in which they were named.
    pub fn shares(&self) -> &[(Kind, u32)] {
        &self.0
    }
}

/// Deals `agents` places to shares, interleaved so that every run of agents has all of them in it: which share each
/// agent belongs to.
pub(crate) fn deal(shares: &[u32], agents: usize) -> Vec<usize> {
    let total: i64 = shares.iter().map(|share| i64::from(*share)).sum();
    let mut credit: Vec<i64> = vec![0; shares.len()];
    if total == 0 {
        return Vec::new();
    }
    (0..agents)
        .filter_map(|_| {
            for (credit, share) in credit.iter_mut().zip(shares) {
                *credit += i64::from(*share);
            }
            // What is furthest behind its share is next; of equals, the one named first.
            let (place, most) = credit
                .iter_mut()
                .enumerate()
                .max_by_key(|(place, credit)| (**credit, -signed(*place)))?;
            *most -= total;
            Some(place)
        })
        .collect()
}

fn signed(place: usize) -> i64 {
    i64::try_from(place).unwrap_or(i64::MAX)
}

impl Default for Mix {
    fn default() -> Self {
        Self(KINDS.first().map(|(_, kind)| (*kind, 1)).into_iter().collect())
    }
}

impl FromStr for Mix {
    type Err = MixError;

    fn from_str(text: &str) -> Result<Self, MixError> {
        let mut shares: Vec<(Kind, u32)> = Vec::new();
        let mut total = 0_u32;
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, share) = part
                .split_once('=')
                .ok_or_else(|| MixError::Malformed(part.to_owned()))?;
            let share: u32 = share.trim().parse().map_err(|_| MixError::Malformed(part.to_owned()))?;
            let kind: Kind = name.trim().parse()?;
            total = total.checked_add(share).ok_or(MixError::Sum)?;
            match shares.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, sum)) => *sum += share,
                None => shares.push((kind, share)),
            }
        }
        if total == 0 {
            Err(MixError::Sum)
        } else {
            Ok(Self(shares))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(kinds: &[Kind], name: &str) -> usize {
        kinds.iter().filter(|kind| kind.name() == name).count()
    }

    #[test]
    fn shares_that_add_up_to_the_fleet_are_met_exactly() {
        let mix: Mix = "wazuh-aes-tcp=20,wazuh-blowfish-udp=10,ossec3=10,ossec4=10"
            .parse()
            .unwrap();
        let kinds = mix.deal(50);
        assert_eq!(kinds.len(), 50);
        assert_eq!(count(&kinds, "wazuh-aes-tcp"), 20);
        assert_eq!(count(&kinds, "wazuh-blowfish-udp"), 10);
        assert_eq!(count(&kinds, "ossec3"), 10);
        assert_eq!(count(&kinds, "ossec4"), 10);
    }

    #[test]
    fn every_tenth_of_the_fleet_has_every_kind() {
        let mix: Mix = "wazuh-aes-tcp=2,wazuh-blowfish-udp=1,ossec3=1,ossec4=1"
            .parse()
            .unwrap();
        for run in mix.deal(50).chunks(5) {
            assert_eq!(
                (count(run, "wazuh-aes-tcp"), count(run, "ossec3"), count(run, "ossec4")),
                (2, 1, 1)
            );
        }
    }

    #[test]
    fn a_kind_named_twice_has_the_sum() {
        let mix: Mix = "ossec3=1,ossec4=1,ossec3=2".parse().unwrap();
        assert_eq!((mix.shares().len(), mix.total()), (2, 4));
        assert_eq!(count(&mix.deal(4), "ossec3"), 3);
    }

    #[test]
    fn a_share_of_zero_deals_none() {
        let mix: Mix = "ossec3=0,ossec4=2".parse().unwrap();
        assert_eq!(count(&mix.deal(9), "ossec3"), 0);
    }

    #[test]
    fn bad_mixes_are_refused_by_name() {
        assert_eq!("ossec5=1".parse::<Mix>(), Err(MixError::UnknownKind("ossec5".into())));
        assert_eq!("ossec3".parse::<Mix>(), Err(MixError::Malformed("ossec3".into())));
        assert_eq!("ossec3=x".parse::<Mix>(), Err(MixError::Malformed("ossec3=x".into())));
        assert_eq!("ossec3=0".parse::<Mix>(), Err(MixError::Sum));
        assert_eq!("ossec3=4294967295,ossec4=1".parse::<Mix>(), Err(MixError::Sum));
        assert_eq!("".parse::<Mix>(), Err(MixError::Sum));
    }
}

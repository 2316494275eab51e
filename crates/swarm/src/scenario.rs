//! What a fleet is made of and what happens to it: from the command line, or from a file.
//!
//! [`mod@file`] has the language of the files, [`words`] that of single values.

pub mod file;
pub mod words;

use std::{fmt::Write as _, net::IpAddr, path::PathBuf, rc::Rc, time::Duration};

use crate::{
    agent::{EventLoad, Habits},
    command::Command,
    mix::{self, Kind},
};

/// A fleet and its story.
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    /// What it is made of.
    pub groups: Vec<Group>,
    /// What happens, in the order of time.
    pub story: Vec<Scene>,
    /// The end, since the first connection; `None` is when told to, or when the story says so.
    pub duration: Option<Duration>,
    /// What all chance hangs on.
    pub seed: Option<u64>,
    /// At most so many sockets for the UDP agents; `None` is as many as there are descriptors for.
    pub udp_sockets: Option<usize>,
    /// Where agents keep the shared files that they are sent.
    pub keep_files: Option<PathBuf>,
}

/// Agents that have much in common.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name, and how the names of its agents begin unless `prefix` says otherwise.
    pub name: String,
    /// Family, cipher and carrier.
    pub kind: Kind,
    /// How many.
    pub agents: u32,
    /// Versions and their shares.
    pub versions: Vec<(Rc<str>, u32)>,
    /// How they behave.
    pub habits: Habits,
    /// Where their connections come from, in turn; none is what the system takes.
    pub sources: Vec<IpAddr>,
}

/// An order and its time.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// Since every agent was acknowledged for the first time.
    pub at: Duration,
    /// The order.
    pub command: Command,
    /// As it was written.
    pub text: String,
}

/// One agent before it has a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recruit {
    /// Its name.
    pub name: String,
    /// Its place in [`Scenario::groups`].
    pub group: usize,
    /// Its kind.
    pub kind: Kind,
    /// Its version.
    pub version: Rc<str>,
    /// Where its connections come from.
    pub source: Option<IpAddr>,
}

/// How agents are called.
#[derive(Clone, Copy, Debug)]
pub enum Naming<'a> {
    /// This and a number that counts through the whole fleet.
    Through(&'a str),
    /// This, the name of the group, and a number that counts within it.
    ByGroup(&'a str),
}

impl Group {
    /// A group of agents of one kind, called like it.
    pub fn of_kind(kind: Kind, agents: u32, habits: Habits) -> Self {
        Self {
            name: kind.name().to_owned(),
            kind,
            agents,
            versions: vec![(kind.family.version().into(), 1)],
            habits,
            sources: Vec::new(),
        }
    }
}

impl Scenario {
    /// The sum of all groups.
    pub fn agents(&self) -> usize {
        let sum = self.groups.iter().map(|group| u64::from(group.agents)).sum::<u64>();
        usize::try_from(sum).unwrap_or(usize::MAX)
    }

    /// Every agent of a fleet of `agents`, in the proportions of the groups, interleaved so that every run of agents
    /// has all groups in it.
    pub fn recruits(&self, agents: usize, naming: Naming<'_>) -> Vec<Recruit> {
        let shares: Vec<u32> = self.groups.iter().map(|group| group.agents).collect();
        let places = mix::deal(&shares, agents);
        let width = agents.to_string().len().max(3);
        let mut versions: Vec<_> = self
            .groups
            .iter()
            .enumerate()
            .map(|(place, group)| {
                let members = places.iter().filter(|other| **other == place).count();
                let shares: Vec<u32> = group.versions.iter().map(|(_, share)| *share).collect();
                mix::deal(&shares, members).into_iter()
            })
            .collect();
        let mut counts = vec![0_usize; self.groups.len()];
        let mut recruits = Vec::with_capacity(places.len());
        for (number, place) in (1..).zip(places) {
            let (Some(group), Some(count), Some(versions)) =
                (self.groups.get(place), counts.get_mut(place), versions.get_mut(place))
            else {
                continue;
            };
            let name = match naming {
                Naming::Through(prefix) => format!("{prefix}{number:0width$}"),
                Naming::ByGroup(prefix) => format!("{prefix}{}-{:0width$}", group.name, *count + 1),
            };
            let version = versions.next().and_then(|version| group.versions.get(version));
            recruits.push(Recruit {
                name,
                group: place,
                kind: group.kind,
                version: version.map_or_else(|| group.kind.family.version().into(), |(text, _)| Rc::clone(text)),
                source: group
                    .sources
                    .get(count.checked_rem(group.sources.len()).unwrap_or(0))
                    .copied(),
            });
            *count += 1;
        }
        recruits
    }

    /// What would be run, for people.
    pub fn plan(&self) -> String {
        let mut text = String::new();
        let (mut keepalives, mut events, mut bytes) = (0.0, 0.0, 0.0);
        for group in &self.groups {
            let agents = f64::from(group.agents);
            let beat = agents / group.habits.notify_time.as_secs_f64();
            let _ = write!(text, "{}: {} × {}", group.name, group.agents, group.kind);
            let versions: Vec<&str> = group.versions.iter().map(|(version, _)| &**version).collect();
            let _ = write!(text, " {}, {beat:.1} keepalives/s", versions.join(" "));
            if let Some(EventLoad { every, sizes, .. }) = &group.habits.events {
                let rate = agents / every.as_secs_f64();
                events += rate;
                bytes += rate * sizes.mean();
                let _ = write!(text, ", {rate:.1} events/s of {:.0} bytes", sizes.mean());
            }
            match group.sources.len() {
                0 => {}
                1 => text.push_str(", from one address"),
                more => {
                    let _ = write!(text, ", from {more} addresses");
                }
            }
            keepalives += beat;
            text.push('\n');
        }
        let _ = writeln!(
            text,
            "all: {} agents, {keepalives:.1} keepalives/s, {events:.1} events/s, {bytes:.0} bytes/s of events",
            self.agents()
        );
        for Scene { at, text: order, .. } in &self.story {
            let _ = writeln!(text, "at {:.1} s: {order}", at.as_secs_f64());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario() -> Scenario {
        let group = |name: &str, kind: &str, agents, versions: &[(&str, u32)], sources: &[[u8; 4]]| Group {
            name: name.to_owned(),
            versions: versions.iter().map(|(text, share)| ((*text).into(), *share)).collect(),
            sources: sources.iter().map(|source| (*source).into()).collect(),
            ..Group::of_kind(kind.parse().unwrap(), agents, Habits::stock(Duration::from_secs(10)))
        };
        Scenario {
            groups: vec![
                group(
                    "laptops",
                    "wazuh-aes-tcp",
                    4,
                    &[("4.9.2", 1), ("4.14.7", 3)],
                    &[[127, 0, 0, 2], [127, 0, 0, 3]],
                ),
                group("old", "ossec3", 2, &[("3.7.0", 1)], &[]),
            ],
            ..Scenario::default()
        }
    }

    #[test]
    fn versions_and_sources_are_shared_out_within_each_group() {
        let recruits = scenario().recruits(6, Naming::ByGroup("x-"));
        let of = |version: &str| recruits.iter().filter(|one| &*one.version == version).count();
        assert_eq!((of("4.9.2"), of("4.14.7"), of("3.7.0")), (1, 3, 2));
        let from = |last: u8| {
            let source = Some(IpAddr::from([127, 0, 0, last]));
            recruits.iter().filter(|one| one.source == source).count()
        };
        assert_eq!((from(2), from(3)), (2, 2));
        assert_eq!(recruits[0].name, "x-laptops-001");
        assert_eq!(recruits.iter().filter(|one| one.name.starts_with("x-old-")).count(), 2);
    }

    #[test]
    fn a_fleet_of_another_size_keeps_the_proportions() {
        let recruits = scenario().recruits(600, Naming::Through("sim-"));
        assert_eq!(recruits.iter().filter(|one| one.group == 1).count(), 200);
        assert_eq!(recruits[599].name, "sim-600");
    }

    #[test]
    fn the_plan_names_rates() {
        let plan = scenario().plan();
        assert!(
            plan.contains("laptops: 4 × wazuh-aes-tcp 4.9.2 4.14.7, 0.4 keepalives/s, from 2 addresses"),
            "{plan}"
        );
        assert!(plan.contains("all: 6 agents, 0.6 keepalives/s"), "{plan}");
    }
}

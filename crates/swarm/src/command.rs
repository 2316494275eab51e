//! Orders to a running fleet: one a line on standard input, or in a scenario at their time.
//!
//! | line | what happens |
//! | --- | --- |
//! | `kill WHO` | they vanish without goodbye; their connections close |
//! | `kill WHO reset` | the same, but their connections are reset |
//! | `kill WHO silent` | the same, but their connections stay open and dead, as after a power cut |
//! | `kill-names a,b [reset\|silent]` | these agents vanish |
//! | `stall WHO` | they go on sending and read nothing more |
//! | `revive [WHO]` | who was killed or stalled is back in order |
//! | `storm WHO` | they drop their connections and connect again, all at once |
//! | `flood WHO [at RATE] [of BYTES] [for TIME]` | they send that many events, or as many as are taken |
//! | `clone WHO [from ADDRESS]` | others appear that have their keys |
//! | `unclone` | those go away |
//! | `status` | one `status` line |
//! | `stop` | every agent says goodbye as its family does, the account is told, the program ends |
//!
//! WHO is `all`, a number, a share such as `20%`, or names as `@a,b`; a group of the scenario may stand in front:
//! `laptops`, `laptops 3`, `laptops 20%`.

use std::{net::IpAddr, str::FromStr, time::Duration};

use crate::scenario::words::{duration, rate};

/// What a vanished agent leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vanish {
    /// A closed connection: its process was killed.
    Closed,
    /// A connection that was reset.
    Reset,
    /// An open connection with nobody behind it: its machine lost power.
    Silent,
}

/// How many of those that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Every one.
    All,
    /// So many, chosen by the dice.
    Number(usize),
    /// So many of a hundred, chosen by the dice.
    Percent(u32),
}

impl Count {
    /// How many of `there` that is.
    pub fn of(self, there: usize) -> usize {
        match self {
            Self::All => there,
            Self::Number(number) => number.min(there),
            Self::Percent(percent) => {
                let percent = usize::try_from(percent).unwrap_or(usize::MAX);
                there.saturating_mul(percent).div_ceil(100).min(there)
            }
        }
    }
}

/// Whom an order is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// So many, of a group or of the whole fleet.
    Some {
        /// The group.
        group: Option<String>,
        /// How many of it.
        count: Count,
    },
    /// These agents.
    Names(Vec<String>),
}

impl Who {
    /// No more than so many of a fleet.
    pub fn at_most(&self, agents: usize) -> usize {
        match self {
            Self::Names(names) => names.len().min(agents),
            Self::Some { count, .. } => count.of(agents),
        }
    }
}

/// What a flood is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flooding {
    /// Events a second of each agent; `None` is as many as are taken.
    pub rate: Option<f64>,
    /// Bytes of an event.
    pub size: usize,
    /// How long.
    pub time: Duration,
}

/// One order.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// They vanish.
    Kill(Who, Vanish),
    /// They read no more.
    Stall(Who),
    /// They come back.
    Revive(Who),
    /// They reconnect all at once.
    Storm(Who),
    /// They flood.
    Flood(Who, Flooding),
    /// Others have their keys too.
    Clone(Who, Option<IpAddr>),
    /// The others go away.
    Unclone,
    /// Tell how the fleet stands.
    Status,
    /// Say goodbye and end.
    Stop,
}

/// What an order may be, for whoever wrote something else.
const ORDERS: &str = "kill, kill-names, stall, revive, storm, flood, clone, unclone, status, stop";
/// A flood that nobody gave a length lasts so long.
const FLOOD_TIME: Duration = Duration::from_secs(10);
/// The events of a flood that nobody gave a size.
const FLOOD_SIZE: usize = 1000;

impl Command {
    /// Whom it is for.
    pub fn who(&self) -> Option<&Who> {
        match self {
            Self::Kill(who, _)
            | Self::Stall(who)
            | Self::Revive(who)
            | Self::Storm(who)
            | Self::Flood(who, _)
            | Self::Clone(who, _) => Some(who),
            Self::Unclone | Self::Status | Self::Stop => None,
        }
    }
}

impl FromStr for Command {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = Words(line.split_whitespace().collect());
        let order = words.next().unwrap_or_default();
        let command = match order {
            "kill" => Self::Kill(words.who(order)?, words.vanish()?),
            "kill-names" => {
                let names = words.next().ok_or("kill-names takes names, such as a,b")?;
                Self::Kill(Who::Names(split_names(names)), words.vanish()?)
            }
            "stall" => Self::Stall(words.who(order)?),
            "revive" if words.0.is_empty() => Self::Revive(EVERYBODY),
            "revive" => Self::Revive(words.who(order)?),
            "storm" => Self::Storm(words.who(order)?),
            "flood" => {
                let who = words.who(order)?;
                Self::Flood(who, words.flooding()?)
            }
            "clone" => Self::Clone(words.who(order)?, words.source()?),
            "unclone" => Self::Unclone,
            "status" => Self::Status,
            "stop" => Self::Stop,
            _ => return Err(format!("`{}` is not one of {ORDERS}", line.trim().escape_debug())),
        };
        match words.next() {
            None => Ok(command),
            Some(word) => Err(format!("`{}` is too much behind `{order}`", word.escape_debug())),
        }
    }
}

const EVERYBODY: Who = Who::Some {
    group: None,
    count: Count::All,
};

/// What follows whom an order is for.
const KEYWORDS: [&str; 6] = ["silent", "reset", "at", "of", "for", "from"];

/// The words of an order that have not been read.
struct Words<'a>(std::collections::VecDeque<&'a str>);

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        self.0.pop_front()
    }

    fn who(&mut self, order: &str) -> Result<Who, String> {
        let Some(first) = self.next().filter(|word| !KEYWORDS.contains(word)) else {
            return Err(format!(
                "{order} takes whom: `all`, a number, `20%`, a group, or `@name`"
            ));
        };
        if let Some(names) = first.strip_prefix('@') {
            return Ok(Who::Names(split_names(names)));
        }
        if let Some(count) = count(first)? {
            return Ok(Who::Some { group: None, count });
        }
        let group = Some(first.to_owned());
        let behind = self.0.front().filter(|word| !KEYWORDS.contains(word)).copied();
        let count = match behind {
            None => Count::All,
            Some(word) => {
                self.next();
                count(word)?.ok_or_else(|| format!("`{}` should be a number or a share", word.escape_debug()))?
            }
        };
        Ok(Who::Some { group, count })
    }

    fn vanish(&mut self) -> Result<Vanish, String> {
        match self.next() {
            None => Ok(Vanish::Closed),
            Some("silent") => Ok(Vanish::Silent),
            Some("reset") => Ok(Vanish::Reset),
            Some(word) => Err(format!(
                "`{}` should be `silent`, `reset` or nothing",
                word.escape_debug()
            )),
        }
    }

    fn flooding(&mut self) -> Result<Flooding, String> {
        let mut flooding = Flooding {
            rate: None,
            size: FLOOD_SIZE,
            time: FLOOD_TIME,
        };
        while let Some(word) = self.next() {
            let value = self.next().unwrap_or_default();
            match word {
                "at" => flooding.rate = Some(rate(value)?),
                "for" => flooding.time = duration(value)?,
                "of" => {
                    flooding.size = value
                        .parse()
                        .ok()
                        .filter(|size| *size <= muster_proto::transport::MAX_PAYLOAD_LEN)
                        .ok_or_else(|| format!("`{}` is not a number of bytes", value.escape_debug()))?;
                }
                _ => return Err(format!("`{}` should be `at`, `of` or `for`", word.escape_debug())),
            }
        }
        Ok(flooding)
    }

    fn source(&mut self) -> Result<Option<IpAddr>, String> {
        match (self.next(), self.next()) {
            (None, _) => Ok(None),
            (Some("from"), Some(address)) => address
                .parse()
                .map(Some)
                .map_err(|_| format!("`{}` is not an address", address.escape_debug())),
            (Some(word), _) => Err(format!("`{}` should be `from` and an address", word.escape_debug())),
        }
    }
}

fn split_names(names: &str) -> Vec<String> {
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A count, if it looks like one.
fn count(word: &str) -> Result<Option<Count>, String> {
    let wrong = || format!("`{}` is not a number of agents", word.escape_debug());
    if word == "all" {
        return Ok(Some(Count::All));
    }
    if !word.starts_with(|first: char| first.is_ascii_digit()) {
        return Ok(None);
    }
    let count = match word.strip_suffix('%') {
        Some(percent) => Count::Percent(
            percent
                .parse()
                .ok()
                .filter(|percent| *percent <= 100)
                .ok_or_else(wrong)?,
        ),
        None => Count::Number(word.parse().map_err(|_| wrong())?),
    };
    Ok(Some(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(group: Option<&str>, count: Count) -> Who {
        Who::Some {
            group: group.map(str::to_owned),
            count,
        }
    }

    #[test]
    fn every_line_of_the_table_is_understood() {
        let names = |names: &[&str]| Who::Names(names.iter().map(|name| (*name).to_owned()).collect());
        for (line, command) in [
            ("kill 10", Command::Kill(some(None, Count::Number(10)), Vanish::Closed)),
            (
                " kill 3 silent \r",
                Command::Kill(some(None, Count::Number(3)), Vanish::Silent),
            ),
            (
                "kill laptops 20% reset",
                Command::Kill(some(Some("laptops"), Count::Percent(20)), Vanish::Reset),
            ),
            ("kill-names a,b", Command::Kill(names(&["a", "b"]), Vanish::Closed)),
            ("stall @a", Command::Stall(names(&["a"]))),
            ("revive", Command::Revive(EVERYBODY)),
            ("revive laptops", Command::Revive(some(Some("laptops"), Count::All))),
            ("storm all", Command::Storm(EVERYBODY)),
            (
                "flood 2 at 50/s of 300 for 1m",
                Command::Flood(
                    some(None, Count::Number(2)),
                    Flooding {
                        rate: Some(50.0),
                        size: 300,
                        time: Duration::from_secs(60),
                    },
                ),
            ),
            (
                "flood laptops for 3s",
                Command::Flood(
                    some(Some("laptops"), Count::All),
                    Flooding {
                        rate: None,
                        size: FLOOD_SIZE,
                        time: Duration::from_secs(3),
                    },
                ),
            ),
            (
                "clone @a from 127.0.0.9",
                Command::Clone(names(&["a"]), Some([127, 0, 0, 9].into())),
            ),
            ("unclone", Command::Unclone),
            ("status", Command::Status),
            ("stop", Command::Stop),
        ] {
            assert_eq!(line.parse(), Ok(command), "{line}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_its_words() {
        for line in [
            "",
            "kill",
            "kill silent",
            "kill 1x",
            "kill 101%",
            "kill 1 loud",
            "kill 1 silent 2",
            "revive laptops x",
            "storm",
            "flood 1 at fast",
            "flood 1 of 70000",
            "flood 1 for",
            "clone 1 from nowhere",
            "clone 1 127.0.0.1",
            "status now",
            "halt",
        ] {
            assert!(line.parse::<Command>().is_err(), "{line}");
        }
    }

    #[test]
    fn a_share_is_never_nobody() {
        assert_eq!(Count::Percent(1).of(10), 1);
        assert_eq!(Count::Percent(50).of(10), 5);
        assert_eq!(Count::Number(20).of(10), 10);
    }
}

//! The control message that tells how an agent is.
//!
//! ```text
//! <uname> [ / <md5 of agent.conf>] LF
//! [<labels> LF ...]
//! <md5 of merged.mg, or x> merged.mg LF
//! [#"_agent_ip":<address> LF]
//! anything, which does not count
//! ```
//!
//! Nothing in it can be wrong: what is not recognised is left out, as stock managers do, and an agent is alive even
//! if its keepalive says nothing at all.

use memchr::memmem;

mod system;
#[cfg(test)]
mod tests;

/// What follows the sum of the merged file.
const MERGED: &[u8] = b" merged.m";
/// What the agent's own address is labelled with.
const AGENT_IP: &str = "#\"_agent_ip\":";

/// A keepalive, as it is handed on: one piece of text, since most of them say what the one before said and nobody reads
/// on. [`Keepalive::fields`] takes it apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    text: Box<str>,
}

/// What a keepalive says. A field that is `None` or empty was not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields<'k> {
    /// The agent's version: `Wazuh v4.14.7`, `OSSEC HIDS v4.2.0`.
    pub version: Option<&'k str>,
    /// Sum of the agent's unpacked `agent.conf`.
    pub config_sum: Option<&'k str>,
    /// Sum of the agent's merged file; `x` if it has none. Without it the agent gets the file too.
    pub merged_sum: Option<&'k str>,
    /// The address that the agent sees on itself.
    pub agent_ip: Option<&'k str>,
    /// Labels as they came, `[#][!]"key":value`: `#` for the system's own, `!` for hidden ones.
    pub labels: Vec<&'k str>,
    /// `Debian GNU/Linux`, `Microsoft Windows 10 Pro`.
    pub os_name: Option<&'k str>,
    /// `12`, `15-SP7`, `10.0.19045.3570`.
    pub os_version: Option<&'k str>,
    /// First number of the version.
    pub os_major: Option<&'k str>,
    /// Second number of the version, also that of a service pack.
    pub os_minor: Option<&'k str>,
    /// `bookworm`.
    pub os_codename: Option<&'k str>,
    /// Everything behind the minor number of a Windows version.
    pub os_build: Option<&'k str>,
    /// `debian`, `windows`.
    pub os_platform: Option<&'k str>,
    /// `Linux |web-01 |6.1.0-28-amd64 |#1 SMP .. |x86_64`; OSSEC agents have spaces only.
    pub os_uname: Option<&'k str>,
    /// `x86_64`.
    pub os_arch: Option<&'k str>,
}

/// Whose agent it is, which decides what may be sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Knows requests, reconnection and refusals; does not check counters.
    Wazuh,
    /// Knows none of these, reads 1024 bytes a datagram, and checks counters.
    Ossec,
}

impl Keepalive {
    /// Takes the text behind `#!-`. Only what stands before the last line feed counts: old agents put random
    /// characters behind it.
    pub fn parse(text: &str) -> Self {
        Self {
            text: counting(text).into(),
        }
    }

    /// Everything up to the last line feed. Two keepalives with the same text say the same.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether another text, as [`Keepalive::parse`] takes it, says the same.
    pub fn says_the_same(&self, text: &str) -> bool {
        counting(text) == &*self.text
    }

    /// What it says.
    pub fn fields(&self) -> Fields<'_> {
        Fields::of_lines(&self.text)
    }

    /// [`Fields::merged_sum`] alone, for much less than all.
    pub fn merged_sum(&self) -> Option<&str> {
        let mut sums = memmem::rfind_iter(self.text.as_bytes(), MERGED).filter_map(|place| {
            let (before, behind) = self.text.split_at_checked(place)?;
            let begin = before.rfind('\n').map_or(0, |end| end.saturating_add(1));
            let end = behind
                .find('\n')
                .map_or(self.text.len(), |end| place.saturating_add(end));
            match line_kind(self.text.get(begin..end)?) {
                Line::Merged(sum) => Some(sum),
                _ => None,
            }
        });
        sums.next().and_then(said)
    }
}

/// What a line is about.
enum Line<'k> {
    Address(&'k str),
    Label,
    System { uname: &'k str, version: &'k str },
    Merged(&'k str),
    Other,
}

fn line_kind(line: &str) -> Line<'_> {
    if let Some(address) = line.strip_prefix(AGENT_IP) {
        Line::Address(address)
    } else if line.starts_with(['#', '!', '"']) {
        Line::Label
    } else if let Some((uname, version)) = split_uname(line) {
        Line::System { uname, version }
    } else if let Some((sum, name)) = line.split_once(' ')
        && name.starts_with("merged.m")
    {
        Line::Merged(sum)
    } else {
        Line::Other
    }
}

/// What of a text counts.
fn counting(text: &str) -> &str {
    text.rsplit_once('\n').map_or("", |(text, _)| text)
}

impl<'k> Fields<'k> {
    /// Reads the text behind `#!-`.
    pub fn parse(text: &'k str) -> Self {
        Self::of_lines(counting(text))
    }

    fn of_lines(text: &'k str) -> Self {
        let mut fields = Self::default();
        for line in text.split('\n') {
            fields.read_line(line);
        }
        fields
    }

    /// Whose agent it is, if its version says so.
    pub fn family(&self) -> Option<Family> {
        let version = self.version?;
        FAMILIES
            .into_iter()
            .find(|(name, _)| version.starts_with(name))
            .map(|(_, family)| family)
    }

    fn read_line(&mut self, line: &'k str) {
        match line_kind(line) {
            Line::Address(address) => self.agent_ip = said(address),
            Line::Label => self.labels.push(line),
            Line::System { uname, version } => {
                self.read_version(version);
                self.read_system(uname);
            }
            Line::Merged(sum) => self.merged_sum = said(sum),
            Line::Other => {}
        }
    }

    fn read_version(&mut self, text: &'k str) {
        if let Some((version, sum)) = text.split_once(" / ") {
            self.version = said(version);
            self.config_sum = said(sum);
        } else {
            let start = FAMILIES.into_iter().filter_map(|(name, _)| text.find(name)).min();
            self.version = start.and_then(|start| text.get(start..)).and_then(said);
        }
    }
}

/// How versions begin.
const FAMILIES: [(&str, Family); 2] = [("Wazuh", Family::Wazuh), ("OSSEC", Family::Ossec)];

/// Cuts the first line where the version begins. A kernel may have ` - ` in its name, so that of several the one
/// before a known version is taken.
fn split_uname(line: &str) -> Option<(&str, &str)> {
    let before_version = line.match_indices(" - ").find_map(|(place, mark)| {
        let (uname, rest) = line.split_at_checked(place)?;
        let version = rest.strip_prefix(mark)?;
        FAMILIES
            .into_iter()
            .any(|(name, _)| version.starts_with(name))
            .then_some((uname, version))
    });
    before_version.or_else(|| line.split_once(" - "))
}

/// The text, if there is any.
fn said(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

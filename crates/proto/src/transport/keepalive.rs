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

mod system;
#[cfg(test)]
mod tests;

/// What the agent's own address is labelled with.
const AGENT_IP: &str = "#\"_agent_ip\":";

/// What a keepalive says. A field that is `None` or empty was not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// The agent's version: `Wazuh v4.14.7`, `OSSEC HIDS v4.2.0`.
    pub version: Option<String>,
    /// Sum of the agent's unpacked `agent.conf`.
    pub config_sum: Option<String>,
    /// Sum of the agent's merged file; `x` if it has none. Without it the agent gets the file too.
    pub merged_sum: Option<String>,
    /// The address that the agent sees on itself.
    pub agent_ip: Option<String>,
    /// Labels as they came, `[#][!]"key":value`: `#` for the system's own, `!` for hidden ones.
    pub labels: Vec<String>,
    /// `Debian GNU/Linux`, `Microsoft Windows 10 Pro`.
    pub os_name: Option<String>,
    /// `12`, `15-SP7`, `10.0.19045.3570`.
    pub os_version: Option<String>,
    /// First number of the version.
    pub os_major: Option<String>,
    /// Second number of the version, also that of a service pack.
    pub os_minor: Option<String>,
    /// `bookworm`.
    pub os_codename: Option<String>,
    /// Everything behind the minor number of a Windows version.
    pub os_build: Option<String>,
    /// `debian`, `windows`.
    pub os_platform: Option<String>,
    /// `Linux |web-01 |6.1.0-28-amd64 |#1 SMP .. |x86_64`; OSSEC agents have spaces only.
    pub os_uname: Option<String>,
    /// `x86_64`.
    pub os_arch: Option<String>,
    /// Everything up to the last line feed. Two keepalives with the same text say the same.
    pub text: String,
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
    /// Reads the text behind `#!-`. Only what stands before the last line feed counts: old agents put random
    /// characters behind it.
    pub fn parse(text: &str) -> Self {
        let text = text.rsplit_once('\n').map_or("", |(text, _)| text);
        let mut keepalive = Self {
            text: text.to_owned(),
            ..Self::default()
        };
        for line in text.split('\n') {
            keepalive.read_line(line);
        }
        keepalive
    }

    /// Whose agent it is, if its version says so.
    pub fn family(&self) -> Option<Family> {
        let version = self.version.as_deref()?;
        FAMILIES
            .into_iter()
            .find(|(name, _)| version.starts_with(name))
            .map(|(_, family)| family)
    }

    fn read_line(&mut self, line: &str) {
        if let Some(address) = line.strip_prefix(AGENT_IP) {
            self.agent_ip = said(address);
        } else if line.starts_with(['#', '!', '"']) {
            self.labels.push(line.to_owned());
        } else if let Some((uname, version)) = split_uname(line) {
            self.read_version(version);
            self.read_system(uname);
        } else if let Some((sum, name)) = line.split_once(' ')
            && name.starts_with("merged.m")
        {
            self.merged_sum = said(sum);
        }
    }

    fn read_version(&mut self, text: &str) {
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
fn said(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

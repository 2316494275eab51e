//! What a group shares with its agents: one file, `merged.mg`, in which all of the group's files lie behind each other.
//!
//! ```text
//! #<group> LF                      of several groups together: their directory's name, see [`multigroup_name`]
//! !<size in bytes> <path> LF
//! <as many bytes>
//! !<size> <next path> LF
//! ...
//! ```
//!
//! `ar.conf`, which belongs to the manager and goes to every group, comes first; the others follow by name, directory
//! by directory. Agents compare sums, so two managers that merge the same files must get the same bytes.
//!
//! **Invariant:** whatever is merged can be pushed: agents take pieces as C strings, so a NUL would cut one short and
//! the agent's sum would never fit.

mod merge;
mod unpack;

use std::fmt::Write;

use md5::Digest;
use sha2::Sha256;
use thiserror::Error;

pub use self::{
    merge::{GroupFiles, RelativePath, merge_group, merge_groups},
    unpack::{UnpackError, Unpacked, unpack},
};

/// The one file that agents get.
pub const MERGED: &str = "merged.mg";
/// The part of it that is the agents' configuration. In several groups together it is put together of all of them.
pub const AGENT_CONF: &str = "agent.conf";
/// The orders that agents may be given; the manager's, not a group's.
pub const AR_CONF: &str = "ar.conf";
/// The group of agents that have no other.
pub const DEFAULT_GROUP: &str = "default";
/// The group of OSSEC agents that have no other: an element that only Wazuh knows, in the `agent.conf` of a group, stops
/// their log reader at its next start.
pub const OSSEC_GROUP: &str = "ossec";
/// The configuration of a group that has none: without any, agents complain and do not take over the other files.
pub const EMPTY_AGENT_CONF: &[u8] = b"<agent_config></agent_config>\n";
/// The longest path, relative to the group's directory.
pub const MAX_PATH_LEN: usize = 200;

/// Why a file is not merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LeftOut {
    /// Its name, or that of a directory above it, begins with a dot. Nobody need be told.
    #[error("hidden")]
    Hidden,
    /// It is a merged file itself.
    #[error("merged file")]
    Merged,
    /// Agents cannot take so long a path.
    #[error("path is longer than {MAX_PATH_LEN} bytes")]
    LongPath,
    /// A line feed in its name would end the line that names it.
    #[error("line feed in its name")]
    LineFeed,
    /// Agents take what they get as C strings.
    #[error("has a NUL byte")]
    Nul,
}

impl LeftOut {
    /// Whether the operator should hear of it.
    pub fn is_surprising(self) -> bool {
        !matches!(self, Self::Hidden | Self::Merged)
    }
}

/// Whether one name, of a file or a directory, may be part of a path.
///
/// # Errors
/// Why not.
pub fn admit_name(name: &str) -> Result<(), LeftOut> {
    if name.starts_with('.') {
        return Err(LeftOut::Hidden);
    }
    if name.starts_with(MERGED) {
        return Err(LeftOut::Merged);
    }
    if name.contains(['\n', '\0']) {
        return Err(LeftOut::LineFeed);
    }
    Ok(())
}

/// Whether this content can be pushed.
///
/// # Errors
/// Why not.
pub fn admit_content(content: &[u8]) -> Result<(), LeftOut> {
    match memchr::memchr(0, content) {
        Some(_) => Err(LeftOut::Nul),
        None => Ok(()),
    }
}

/// The directory of several groups together, below `var/multigroups`: the first 8 hex digits of the SHA-256 of
/// `a,b,c`.
pub fn multigroup_name(groups: &[impl AsRef<str>]) -> String {
    let list: Vec<&str> = groups.iter().map(AsRef::as_ref).collect();
    let mut name = hex(&Sha256::digest(list.join(",")));
    name.truncate(8);
    name
}

/// Whether this is the name of a multigroup's directory.
pub fn is_multigroup_name(name: &str) -> bool {
    name.len() == 8
        && name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The sum by which agents and managers know a merged file: MD5, 32 lower-case hex digits.
pub fn sum(merged: &[u8]) -> String {
    hex(&md5::Md5::digest(merged))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;

//! The request line.
//!
//! Fields have a fixed order, and each counts only if it starts exactly where the one before it ended. Text in the
//! wrong place ends the reading, silently: agents have relied on that for years.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Rejection, group, name, version::Version};
use crate::keys::{
    Secret,
    address::{MAX_ADDRESS_LEN, RegisteredAddress, source_text},
};

const PASSWORD_HEAD: &[u8] = b"OSSEC PASS: ";
const NAME_HEAD: &[u8] = b"OSSEC A:'";
const VERSION_HEAD: &[u8] = b" V:'";
const GROUPS_HEAD: &[u8] = b" G:'";
const ADDRESS_HEAD: &[u8] = b" IP:'";
const KEY_HASH_HEAD: &[u8] = b" K:'";

const MAX_VERSION_LEN: usize = 2048;
const MAX_GROUPS_LEN: usize = 65_536;
const MAX_KEY_HASH_LEN: usize = 40;

/// What an agent asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its name; [`name::is_valid`] holds.
    pub name: String,
    /// The version it tells, such as `v4.14.7`.
    pub version: Option<String>,
    /// Its groups without repetitions, not yet looked up. Empty = none asked for.
    pub groups: Vec<String>,
    /// The address it wants to be registered for.
    pub address: AddressWish,
    /// The [hash](super::key_hash) of the key line that it holds.
    pub key_hash: Option<String>,
}

/// Which address an agent wants to be registered for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressWish {
    /// It says nothing: the configuration decides.
    Unsaid,
    /// The one that it connects from.
    Source,
    /// This one.
    Given(GivenAddress),
}

/// An address and the form in which it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenAddress {
    /// The address.
    pub address: RegisteredAddress,
    /// The text for the answer: without `!`, IPv6 expanded, prefix or netmask as given. It reads as the same address.
    pub answer: String,
}

impl GivenAddress {
    /// Reads an address; `None` when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let address = RegisteredAddress::parse(text).ok()?;
        let answer = match text.split_once('/') {
            Some((_, mask)) => {
                let answer = format!("{}/{mask}", address.host_text());
                // The mask of an IPv4-mapped address counts bits of IPv6, the host is written as IPv4.
                if RegisteredAddress::parse(&answer).as_ref() == Ok(&address) {
                    answer
                } else {
                    address.text().to_owned()
                }
            }
            None => address.host_text().to_owned(),
        };
        Some(Self { address, answer })
    }

    /// The address of a peer.
    pub fn of_peer(peer: std::net::IpAddr) -> Self {
        Self {
            address: RegisteredAddress::host(peer),
            answer: source_text(peer),
        }
    }

    /// Any address.
    pub fn any() -> Self {
        Self {
            address: RegisteredAddress::any(),
            answer: "any".to_owned(),
        }
    }
}

/// What the manager's side of the parse depends on.
pub struct Policy<'a> {
    /// The password, if one is asked for.
    pub password: Option<&'a Secret>,
    /// The newest version that may enroll; `None` = any.
    pub newest_version: Option<Version>,
}

impl Request {
    /// Reads a line as [`LineReader`](super::line::LineReader) gives it.
    ///
    /// # Errors
    /// The first rule that is broken, in the order of the fields.
    pub fn parse(line: &[u8], policy: &Policy<'_>) -> Result<Self, Rejection> {
        let line = match policy.password {
            Some(password) => behind_password(line, password)?,
            None => line,
        };
        let (name, rest) = line
            .strip_prefix(NAME_HEAD)
            .and_then(split_at_quote)
            .ok_or(Rejection::InvalidRequest)?;
        if !name::is_valid(name) {
            return Err(Rejection::InvalidName(name.to_vec()));
        }

        let mut fields = Fields { rest };
        let version = fields
            .take(VERSION_HEAD, MAX_VERSION_LEN, Rejection::UnterminatedVersion)?
            .map(text);
        if let (Some(version), Some(newest)) = (&version, policy.newest_version)
            && Version::parse(version) > newest
        {
            return Err(Rejection::VersionTooHigh);
        }
        let groups = match fields.take(GROUPS_HEAD, MAX_GROUPS_LEN, Rejection::UnterminatedGroups)? {
            Some(field) => group::parse_list(field).map_err(Rejection::InvalidGroupName)?,
            None => Vec::new(),
        };
        let address = match fields.take(ADDRESS_HEAD, MAX_ADDRESS_LEN, Rejection::UnterminatedAddress)? {
            Some(field) => AddressWish::parse(field)?,
            None => AddressWish::Unsaid,
        };
        let key_hash = fields
            .take(KEY_HASH_HEAD, MAX_KEY_HASH_LEN, Rejection::UnterminatedKeyHash)?
            .map(text);
        Ok(Self {
            name: text(name),
            version,
            groups,
            address,
            key_hash,
        })
    }

    /// The line that asks for this, line feed included.
    pub fn to_wire(&self, password: Option<&Secret>) -> Zeroizing<Vec<u8>> {
        let mut line = Zeroizing::new(Vec::with_capacity(256));
        if let Some(password) = password {
            line.extend_from_slice(PASSWORD_HEAD);
            line.extend_from_slice(password.expose().as_bytes());
            line.push(b' ');
        }
        let groups = (!self.groups.is_empty()).then(|| self.groups.join(","));
        let address = match &self.address {
            AddressWish::Unsaid => None,
            AddressWish::Source => Some("src"),
            AddressWish::Given(given) => Some(given.answer.as_str()),
        };
        for (head, value) in [
            (NAME_HEAD, Some(self.name.as_str())),
            (VERSION_HEAD, self.version.as_deref()),
            (GROUPS_HEAD, groups.as_deref()),
            (ADDRESS_HEAD, address),
            (KEY_HASH_HEAD, self.key_hash.as_deref()),
        ] {
            if let Some(value) = value {
                line.extend_from_slice(head);
                line.extend_from_slice(value.as_bytes());
                line.push(b'\'');
            }
        }
        line.push(b'\n');
        line
    }
}

impl AddressWish {
    fn parse(field: &[u8]) -> Result<Self, Rejection> {
        if field.contains(&b' ') {
            return Err(Rejection::UnterminatedAddress);
        }
        if field.starts_with(b"src") {
            return Ok(Self::Source);
        }
        str::from_utf8(field)
            .ok()
            .and_then(GivenAddress::parse)
            .map(Self::Given)
            .ok_or_else(|| Rejection::InvalidAddress(field.to_vec()))
    }
}

struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The value of the field that starts here, if it is the one with this head.
    fn take(&mut self, head: &[u8], most: usize, unterminated: Rejection) -> Result<Option<&'a [u8]>, Rejection> {
        let Some(value) = self.rest.strip_prefix(head) else {
            return Ok(None);
        };
        match split_at_quote(value) {
            Some((value, rest)) if value.len() <= most => {
                self.rest = rest;
                Ok(Some(value))
            }
            _ => Err(unterminated),
        }
    }
}

/// What stands behind `OSSEC PASS: <password> `. The time it takes does not depend on where a wrong one differs.
fn behind_password<'a>(line: &'a [u8], password: &Secret) -> Result<&'a [u8], Rejection> {
    let password = password.expose().as_bytes();
    let (given, rest) = line
        .strip_prefix(PASSWORD_HEAD)
        .and_then(|line| line.split_at_checked(password.len()))
        .ok_or(Rejection::InvalidPassword)?;
    let rest = rest.strip_prefix(b" ").ok_or(Rejection::InvalidPassword)?;
    if bool::from(given.ct_eq(password)) {
        Ok(rest)
    } else {
        Err(Rejection::InvalidPassword)
    }
}

fn split_at_quote(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (value, rest) = bytes.split_at_checked(memchr::memchr(b'\'', bytes)?)?;
    Some((value, rest.get(1..).unwrap_or_default()))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;

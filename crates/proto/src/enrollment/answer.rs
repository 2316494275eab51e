//! What goes back over port 1515.

use std::fmt::{self, Write as _};

use zeroize::Zeroizing;

use crate::keys::{Secret, address::RegisteredAddress};

/// As much of an error text as is sent; the rest is cut.
pub const MAX_ERROR_LEN: usize = 2047;
/// The longest answer that an agent reads.
pub const MAX_ANSWER_LEN: usize = 4096;

const KEY_HEAD: &str = "OSSEC K:'";
const ERROR_HEAD: &str = "ERROR: ";
const ERROR_TAIL: &str = ". Unable to add agent";

/// A key and whom it is for.
#[derive(Clone, PartialEq, Eq)]
pub struct Granted {
    /// The new id.
    pub id: String,
    /// The name as it was asked for.
    pub name: String,
    /// The address as it was asked for: with the prefix or netmask that was given, IPv6 expanded.
    pub address: String,
    /// The key.
    pub key: Secret,
}

impl Granted {
    /// The bytes of the answer. There is no line feed at the end.
    pub fn to_wire(&self) -> Zeroizing<Vec<u8>> {
        let Self { id, name, address, key } = self;
        Zeroizing::new(format!("{KEY_HEAD}{id} {name} {address} {}'", key.expose()).into_bytes())
    }
}

/// Why no key was given. The text of each is part of the protocol.
///
/// Names and other fields come from strangers and may be any bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// A password is asked for, and it is missing, wrong, or not followed by a space.
    InvalidPassword,
    /// Not `OSSEC A:'<name>'`.
    InvalidRequest,
    /// The name breaks a rule, or is the manager's own.
    InvalidName(Vec<u8>),
    /// No quote behind the version, or too many bytes before it.
    UnterminatedVersion,
    /// The agent is newer than the manager.
    VersionTooHigh,
    /// No quote behind the groups, or too many bytes before it.
    UnterminatedGroups,
    /// A group, or the list of them, breaks a rule; the text says which.
    InvalidGroupName(Vec<u8>),
    /// No quote behind the address, too many bytes before it, or a space in it.
    UnterminatedAddress,
    /// Not an address.
    InvalidAddress(Vec<u8>),
    /// No quote behind the key hash, or too many bytes before it.
    UnterminatedKeyHash,
    /// More than [`group::MAX_GROUPS`](super::group::MAX_GROUPS).
    TooManyGroups,
    /// There is no such group.
    UnknownGroup(String),
    /// The address belongs to an agent that may not be replaced.
    DuplicateAddress(String),
    /// The name belongs to an agent that may not be replaced.
    DuplicateName(String),
    /// The manager could not do it: disk full, no id left.
    Internal(String),
}

impl Rejection {
    /// The bytes of the answer.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut text = self.text();
        text.truncate(MAX_ERROR_LEN);
        text.extend_from_slice(ERROR_TAIL.as_bytes());
        text
    }

    fn text(&self) -> Vec<u8> {
        let (fixed, field): (&str, &[u8]) = match self {
            Self::InvalidPassword => ("Invalid password", &[]),
            Self::InvalidRequest => ("Invalid request for new agent", &[]),
            Self::InvalidName(name) => ("Invalid agent name: ", name),
            Self::UnterminatedVersion => ("Unterminated version field", &[]),
            Self::VersionTooHigh => ("Agent version must be lower or equal to manager version", &[]),
            Self::UnterminatedGroups => ("Unterminated group field", &[]),
            Self::InvalidGroupName(tail) => ("Invalid group name: ", tail),
            Self::UnterminatedAddress => ("Unterminated IP field", &[]),
            Self::InvalidAddress(address) => ("Invalid IP: ", address),
            Self::UnterminatedKeyHash => ("Unterminated key field", &[]),
            Self::TooManyGroups => ("Maximum multigroup reached: Limit is 128", &[]),
            Self::UnknownGroup(group) => ("Invalid group: ", group.as_bytes()),
            Self::DuplicateAddress(address) => ("Duplicate IP: ", address.as_bytes()),
            Self::DuplicateName(name) => ("Duplicate agent name: ", name.as_bytes()),
            Self::Internal(name) => ("Internal manager error adding agent: ", name.as_bytes()),
        };
        [ERROR_HEAD.as_bytes(), fixed.as_bytes(), field].concat()
    }
}

/// For logs: a stranger's control characters are shown escaped, or they would reach the terminal of whoever reads them.
impl fmt::Display for Rejection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        String::from_utf8_lossy(&text).chars().try_for_each(|letter| {
            if letter.is_control() {
                write!(formatter, "{}", letter.escape_default())
            } else {
                formatter.write_char(letter)
            }
        })
    }
}

/// An answer as an agent reads it.
#[derive(Clone, PartialEq, Eq)]
pub enum Answer {
    /// `OSSEC K:'…'`.
    Granted(Granted),
    /// `ERROR: …`, without that head.
    Refused(String),
    /// Anything else.
    Unreadable,
}

impl Answer {
    /// Reads all that came before the server closed. A key counts only if id, name, address and key would do for a
    /// stock agent.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        if let Some(line) = text.strip_prefix(KEY_HEAD) {
            return read_granted(line).map_or(Self::Unreadable, Self::Granted);
        }
        match text.strip_prefix(ERROR_HEAD) {
            Some(reason) if !reason.is_empty() => Self::Refused(reason.to_owned()),
            _ => Self::Unreadable,
        }
    }
}

fn read_granted(line: &str) -> Option<Granted> {
    let (line, _) = line.split_once('\'')?;
    let mut fields = line.split(' ');
    let (id, name, address, key) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let good = fields.next().is_none()
        && (1..=8).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_digit())
        && super::name::is_valid(name.as_bytes())
        && RegisteredAddress::parse(address).is_ok()
        && super::name::is_valid(key.as_bytes());
    good.then(|| Granted {
        id: id.to_owned(),
        name: name.to_owned(),
        address: address.to_owned(),
        key: Secret::new(key.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn granted() -> Granted {
        Granted {
            id: "001".to_owned(),
            name: "web-01".to_owned(),
            address: "10.3.0.0/255.255.0.0".to_owned(),
            key: Secret::new("ab".repeat(32)),
        }
    }

    #[test]
    fn a_key_goes_out_without_line_feed_and_reads_back() {
        let wire = granted().to_wire();
        assert_eq!(
            &**wire,
            format!("OSSEC K:'001 web-01 10.3.0.0/255.255.0.0 {}'", "ab".repeat(32)).as_bytes()
        );
        assert!(Answer::parse(&wire) == Answer::Granted(granted()));
        assert!(Answer::parse(&[&wire[..], b"\n\n"].concat()) == Answer::Granted(granted()));
    }

    #[test]
    fn every_rejection_has_its_text() {
        let cases: [(Rejection, &str); 15] = [
            (Rejection::InvalidPassword, "Invalid password"),
            (Rejection::InvalidRequest, "Invalid request for new agent"),
            (Rejection::InvalidName(b"x".to_vec()), "Invalid agent name: x"),
            (Rejection::UnterminatedVersion, "Unterminated version field"),
            (
                Rejection::VersionTooHigh,
                "Agent version must be lower or equal to manager version",
            ),
            (Rejection::UnterminatedGroups, "Unterminated group field"),
            (
                Rejection::InvalidGroupName(b"Empty Group".to_vec()),
                "Invalid group name: Empty Group",
            ),
            (Rejection::UnterminatedAddress, "Unterminated IP field"),
            (Rejection::InvalidAddress(b"1.2".to_vec()), "Invalid IP: 1.2"),
            (Rejection::UnterminatedKeyHash, "Unterminated key field"),
            (Rejection::TooManyGroups, "Maximum multigroup reached: Limit is 128"),
            (Rejection::UnknownGroup("g".to_owned()), "Invalid group: g"),
            (
                Rejection::DuplicateAddress("10.0.0.1".to_owned()),
                "Duplicate IP: 10.0.0.1",
            ),
            (
                Rejection::DuplicateName("web-01".to_owned()),
                "Duplicate agent name: web-01",
            ),
            (
                Rejection::Internal("web-01".to_owned()),
                "Internal manager error adding agent: web-01",
            ),
        ];
        for (rejection, text) in cases {
            assert_eq!(
                String::from_utf8_lossy(&rejection.to_wire()),
                format!("ERROR: {text}. Unable to add agent"),
                "{rejection:?}"
            );
        }
    }

    #[test]
    fn a_name_of_3000_bytes_is_echoed_up_to_the_cut() {
        let wire = Rejection::InvalidName(vec![b'n'; 3000]).to_wire();
        assert_eq!(wire.len(), 2068);
        assert!(wire.ends_with(b"nnn. Unable to add agent"));
    }

    #[test]
    fn control_characters_of_a_name_do_not_reach_the_log() {
        let rejection = Rejection::InvalidName(b"a\x1b[31mb\r\x07".to_vec());
        assert_eq!(
            rejection.to_string(),
            "ERROR: Invalid agent name: a\\u{1b}[31mb\\r\\u{7}"
        );
        assert!(rejection.to_wire().contains(&0x1b), "the answer is the stock one");
    }

    #[test]
    fn an_agent_refuses_a_key_that_would_not_do() {
        for answer in [
            "OSSEC K:'123456789 web-01 any kk'",
            "OSSEC K:'001 web-01 any'",
            "OSSEC K:'001 web-01 1.2.3 kk'",
            "OSSEC K:'001 web-01 any k k'",
            "OSSEC K:'001 web-01 any kk",
            "ERROR: ",
            "",
        ] {
            assert!(Answer::parse(answer.as_bytes()) == Answer::Unreadable, "{answer}");
        }
        assert!(Answer::parse(b"ERROR: no") == Answer::Refused("no".to_owned()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Answer::parse(&bytes);
        }
    }
}

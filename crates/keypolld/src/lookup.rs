//! What is looked up: an id or an address, as the text that goes on to the operator's database.
//!
//! **Invariant:** a [`Lookup`] holds nothing but digits, or an address. It came over the network from somebody who has
//! no key; it ends on a command line, in a JSON string and in an SQL parameter.

use std::{fmt, net::IpAddr, sync::Arc};

use muster_proto::agent::AgentId;
use thiserror::Error;

/// The longest datagram that can be a request: `ip:` and 39 characters of IPv6, with room for a zone to be refused.
pub const MAX_REQUEST_LEN: usize = 64;

/// By what an agent is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// The id in front of its messages.
    Id,
    /// The address that it talks from.
    Address,
}

impl By {
    /// The word on the command line, in requests and in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Address => "ip",
        }
    }
}

/// One look-up. Two are equal when their texts are: `id:1` is not `id:001`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Lookup {
    by: By,
    value: Arc<str>,
}

/// Why a text is no look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LookupError {
    /// Neither `id:` nor `ip:`.
    #[error("expected `id:` or `ip:`")]
    Prefix,
    /// Not 1 to 8 digits, or the manager's own id 0.
    #[error("an id has 1 to 8 digits and is not 0")]
    Id,
    /// Neither an IPv4 nor an IPv6 address.
    #[error("expected an IPv4 or IPv6 address, without a prefix")]
    Address,
}

impl Lookup {
    /// Reads the text of a datagram: `id:001`, `ip:192.168.1.100`.
    pub fn parse(datagram: &[u8]) -> Result<Self, LookupError> {
        let text = std::str::from_utf8(datagram).map_err(|_| LookupError::Prefix)?;
        let (by, value) = text.split_once(':').ok_or(LookupError::Prefix)?;
        Self::new(by, value)
    }

    /// Reads the word `id` or `ip` and a value.
    pub fn new(by: &str, value: &str) -> Result<Self, LookupError> {
        let by = match by {
            "id" if AgentId::new(value).number().is_some_and(|number| number > 0) => By::Id,
            "id" => return Err(LookupError::Id),
            "ip" if value.parse::<IpAddr>().is_ok() => By::Address,
            "ip" => return Err(LookupError::Address),
            _ => return Err(LookupError::Prefix),
        };
        Ok(Self {
            by,
            value: value.into(),
        })
    }

    /// By what.
    pub fn by(&self) -> By {
        self.by
    }

    /// The id or address, as it was asked for.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// The number of the id that is looked up.
    pub fn number(&self) -> Option<u32> {
        match self.by {
            By::Id => AgentId::new(&self.value).number(),
            By::Address => None,
        }
    }

    /// The address that is looked up; an IPv4-mapped one as IPv4.
    pub fn address(&self) -> Option<IpAddr> {
        match self.by {
            By::Id => None,
            By::Address => self.value.parse().ok().map(|address: IpAddr| address.to_canonical()),
        }
    }
}

/// The text of the datagram and of the socket's request: `id:001`.
impl fmt::Display for Lookup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.by.as_str(), self.value)
    }
}

impl fmt::Debug for Lookup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Lookup({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_and_addresses_are_taken_as_they_are_written() {
        for text in [
            "id:1",
            "id:001",
            "id:12345678",
            "ip:192.168.1.100",
            "ip:::1",
            "ip:2001:0DB8:0000:0000:0000:0000:0000:0001",
        ] {
            assert_eq!(Lookup::parse(text.as_bytes()).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_stock_hands_to_the_program_unchecked_is_refused() {
        for (text, error) in [
            ("id:", LookupError::Id),
            ("id:0", LookupError::Id),
            ("id:000", LookupError::Id),
            ("id:1 2", LookupError::Id),
            ("id:101\n", LookupError::Id),
            ("id:123456789", LookupError::Id),
            ("id:1';drop table agent;--", LookupError::Id),
            ("id:\u{663}", LookupError::Id),
            ("ip:", LookupError::Address),
            ("ip:any", LookupError::Address),
            ("ip:10.0.0.0/8", LookupError::Address),
            ("ip:10.0.0.1\0", LookupError::Address),
            ("ip:2001:0DB8:0000:0000", LookupError::Address),
            ("ip:$(reboot)", LookupError::Address),
            ("ID:1", LookupError::Prefix),
            ("xx:1", LookupError::Prefix),
            ("001", LookupError::Prefix),
            ("", LookupError::Prefix),
        ] {
            assert_eq!(Lookup::parse(text.as_bytes()), Err(error), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_but_digits_and_addresses_gets_through(bytes in prop::collection::vec(any::<u8>(), 0..48)) {
            if let Ok(lookup) = Lookup::parse(&bytes) {
                prop_assert!(lookup.value().bytes().all(|byte| byte.is_ascii_hexdigit() || b".:".contains(&byte)));
                prop_assert!(lookup.number().is_some() != lookup.address().is_some());
            }
        }

        #[test]
        fn short_texts_that_look_like_requests_never_hold_a_letter_that_a_shell_knows(value in "[0-9a-fA-F.:%/ ;$`'\"-]{0,40}") {
            for by in ["id", "ip"] {
                if let Ok(lookup) = Lookup::new(by, &value) {
                    prop_assert!(!lookup.value().contains([' ', ';', '$', '`', '\'', '"', '-', '%', '/']));
                }
            }
        }
    }
}

//! The address that an agent is registered for: `any`, one host, or a network.
//!
//! An address has two lives. As a *rule* it says from where the agent may talk; there host bits below the mask do not
//! count. As *text* it is what was given, host bits included: duplicates are found by comparing that text without its
//! prefix, and events name agents by it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

/// The longest text that can be an address: 39 characters of IPv6 and a mask, with room for a leading `!`.
pub const MAX_ADDRESS_LEN: usize = 46;

/// An address as a key line has it.
///
/// ```
/// use muster_proto::keys::address::RegisteredAddress;
///
/// let address = RegisteredAddress::parse("10.3.7.1/255.255.0.0")?;
/// assert_eq!(address.text(), "10.3.7.1/16");
/// assert_eq!(address.host_text(), "10.3.7.1");
/// assert!(address.matches("10.3.200.200".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RegisteredAddress {
    rule: Rule,
    /// What is written to `client.keys`: the host as given, IPv6 expanded, and `/<prefix>` unless it is a full mask.
    text: Box<str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Rule {
    Any,
    /// Host bits are kept; [`IpNet::contains`] ignores them.
    Net(IpNet),
}

/// The text is neither `any` nor an address, with or without a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not an address: expected `any`, an IPv4 or IPv6 address, or one with a prefix or netmask")]
pub struct AddressError;

impl RegisteredAddress {
    /// Any address will do.
    pub fn any() -> Self {
        Self {
            rule: Rule::Any,
            text: "any".into(),
        }
    }

    /// Exactly this host. An IPv4-mapped IPv6 address is the IPv4 address.
    pub fn host(address: IpAddr) -> Self {
        Self::from_net(IpNet::from(address.to_canonical()))
    }

    /// Reads `any`, `a.b.c.d`, `a.b.c.d/n`, `a.b.c.d/m.m.m.m`, and IPv6 with or without prefix.
    ///
    /// A leading `!` is skipped. An IPv4-mapped IPv6 address becomes plain IPv4; written with dots, its prefix counts
    /// IPv4 bits.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let text = text.strip_prefix('!').unwrap_or(text);
        if text == "any" {
            return Ok(Self::any());
        }
        let (host, mask) = match text.split_once('/') {
            Some((host, mask)) => (host, Some(mask)),
            None => (text, None),
        };
        let net = if let Some(host) = ipv4_of(host) {
            IpNet::V4(Ipv4Net::new(host, ipv4_prefix(mask)?).map_err(|_| AddressError)?)
        } else {
            let host: Ipv6Addr = host.parse().map_err(|_| AddressError)?;
            unmapped(Ipv6Net::new(host, ipv6_prefix(mask)?).map_err(|_| AddressError)?)
        };
        Ok(Self::from_net(net))
    }

    fn from_net(net: IpNet) -> Self {
        let host = expanded(net.addr());
        let text = if net.prefix_len() == net.max_prefix_len() {
            host
        } else {
            format!("{host}/{}", net.prefix_len())
        };
        Self {
            rule: Rule::Net(net),
            text: text.into(),
        }
    }

    /// Whether a peer with this address is meant. Families do not mix, but an IPv4-mapped peer is an IPv4 peer.
    pub fn matches(&self, peer: IpAddr) -> bool {
        match self.rule {
            Rule::Any => true,
            Rule::Net(net) => net.contains(&peer.to_canonical()),
        }
    }

    /// Whether any address will do.
    pub fn is_any(&self) -> bool {
        self.rule == Rule::Any
    }

    /// Whether exactly one host is meant: no `any`, no network. Agents registered so send no id in front of their
    /// messages, and are found by their address.
    pub fn is_single_host(&self) -> bool {
        self.single_host().is_some()
    }

    /// The one host that is meant, if it is one.
    pub fn single_host(&self) -> Option<IpAddr> {
        match self.rule {
            Rule::Net(net) if net.prefix_len() == net.max_prefix_len() => Some(net.addr()),
            _ => None,
        }
    }

    /// The network that is meant, host bits cleared; a single host is its own network, `any` is none.
    pub fn network(&self) -> Option<IpNet> {
        match self.rule {
            Rule::Any => None,
            Rule::Net(net) => Some(net.trunc()),
        }
    }

    /// The text for `client.keys` and for events: with `/<prefix>` unless the mask is a full one.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text without prefix, by which duplicates are found.
    pub fn host_text(&self) -> &str {
        self.text.split_once('/').map_or(&self.text, |(host, _)| host)
    }
}

impl fmt::Display for RegisteredAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl fmt::Debug for RegisteredAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RegisteredAddress({})", self.text)
    }
}

/// A peer's address as registered addresses are written: IPv4-mapped as IPv4, IPv6 as eight groups of four upper-case
/// digits.
pub fn source_text(address: IpAddr) -> String {
    expanded(address.to_canonical())
}

fn expanded(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, g, h] = address.segments();
            format!("{a:04X}:{b:04X}:{c:04X}:{d:04X}:{e:04X}:{f:04X}:{g:04X}:{h:04X}")
        }
    }
}

/// Dotted text, also behind `::ffff:`.
fn ipv4_of(host: &str) -> Option<Ipv4Addr> {
    const MAPPED: &str = "::ffff:";
    let dotted = match host.split_at_checked(MAPPED.len()) {
        Some((front, rest)) if front.eq_ignore_ascii_case(MAPPED) => rest,
        _ => host,
    };
    dotted.parse().ok()
}

fn ipv4_prefix(mask: Option<&str>) -> Result<u8, AddressError> {
    let Some(mask) = mask else { return Ok(32) };
    match mask.parse::<Ipv4Addr>() {
        Ok(mask) => ipnet::ipv4_mask_to_prefix(mask).map_err(|_| AddressError),
        Err(_) => prefix(mask, 32),
    }
}

fn ipv6_prefix(mask: Option<&str>) -> Result<u8, AddressError> {
    mask.map_or(Ok(128), |mask| prefix(mask, 128))
}

fn prefix(digits: &str, most: u8) -> Result<u8, AddressError> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    let prefix = if plain {
        digits.parse().map_err(|_| AddressError)?
    } else {
        return Err(AddressError);
    };
    if prefix <= most { Ok(prefix) } else { Err(AddressError) }
}

/// An IPv4-mapped network that lies wholly inside the mapped range is an IPv4 network.
fn unmapped(net: Ipv6Net) -> IpNet {
    let inner = net.prefix_len().checked_sub(96).zip(net.addr().to_ipv4_mapped());
    match inner.and_then(|(prefix, host)| Ipv4Net::new(host, prefix).ok()) {
        Some(net) => IpNet::V4(net),
        None => IpNet::V6(net),
    }
}

#[cfg(test)]
mod tests;

//! The PROXY protocol, version 2: what a load balancer writes in front of a TCP connection to say whose it is.
//!
//! Twelve fixed bytes, version and command, family, `u16` big-endian length, then that many bytes: source and
//! destination address, source and destination port, and perhaps extensions, which are passed over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

/// How every header begins.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The largest header that is taken: the longest addresses, and room for extensions such as a TLS name.
pub const MAX_HEADER_LEN: usize = 1024;

const FIXED_LEN: usize = 16;
const VERSION_2: u8 = 0x20;
const LOCAL: u8 = 0;
const PROXY: u8 = 1;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;

/// What the front of a connection holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preface {
    /// A whole header of so many bytes, and whose connection it is: nobody's when the load balancer only looks whether
    /// we are there.
    Whole {
        /// Bytes of the header.
        length: usize,
        /// The other end, as the load balancer saw it.
        source: Option<SocketAddr>,
    },
    /// More is needed.
    Partial,
}

/// Why a connection that must begin with a header does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// Other bytes.
    #[error("no PROXY protocol header of version 2; does the load balancer send one?")]
    Missing,
    /// Another version or command.
    #[error("PROXY protocol header with version and command {0:#04x}, which nobody knows")]
    Command(u8),
    /// Not TCP over IPv4 or IPv6.
    #[error("PROXY protocol header for family and carrier {0:#04x}, which agents do not use")]
    Family(u8),
    /// Longer than [`MAX_HEADER_LEN`], or shorter than its addresses.
    #[error("PROXY protocol header announces {0} bytes")]
    Length(u16),
}

/// Reads the front of a connection.
///
/// # Errors
/// When the bytes cannot become a header: close the connection.
pub fn parse(bytes: &[u8]) -> Result<Preface, ProxyError> {
    let begun = bytes.len().min(SIGNATURE.len());
    if bytes.get(..begun) != SIGNATURE.get(..begun) {
        return Err(ProxyError::Missing);
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED_LEN>() else {
        return Ok(Preface::Partial);
    };
    let [.., command, family, high, low] = *fixed;
    let announced = u16::from_be_bytes([high, low]);
    let length = FIXED_LEN.saturating_add(announced.into());
    if length > MAX_HEADER_LEN {
        return Err(ProxyError::Length(announced));
    }
    let is_local = match command.checked_sub(VERSION_2) {
        Some(LOCAL) => true,
        Some(PROXY) => false,
        _ => return Err(ProxyError::Command(command)),
    };
    let Some(body) = rest.get(..announced.into()) else {
        return Ok(Preface::Partial);
    };
    if is_local {
        return Ok(Preface::Whole { length, source: None });
    }
    let source = match family {
        TCP_V4 => source_in::<4, 4>(body).map(|(ip, port)| (IpAddr::from(Ipv4Addr::from(ip)), port)),
        TCP_V6 => source_in::<16, 16>(body).map(|(ip, port)| (IpAddr::from(Ipv6Addr::from(ip)), port)),
        other => return Err(ProxyError::Family(other)),
    };
    let (ip, port) = source.ok_or(ProxyError::Length(announced))?;
    Ok(Preface::Whole {
        length,
        source: Some(SocketAddr::new(ip, port)),
    })
}

/// Source address, destination address, source port, destination port.
fn source_in<const SOURCE: usize, const DESTINATION: usize>(body: &[u8]) -> Option<([u8; SOURCE], u16)> {
    let (source, rest) = body.split_first_chunk::<SOURCE>()?;
    let (_, rest) = rest.split_first_chunk::<DESTINATION>()?;
    let (ports, _) = rest.split_first_chunk::<4>()?;
    let [high, low, ..] = *ports;
    Some((*source, u16::from_be_bytes([high, low])))
}

/// The header that a load balancer would write for a connection, for those that try us out.
pub fn header(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    out.push(VERSION_2 | PROXY);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            out.extend_from_slice(&[TCP_V4, 0, 12]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
        }
        (source, destination) => {
            let v6 = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            out.extend_from_slice(&[TCP_V6, 0, 36]);
            out.extend_from_slice(&v6(source).octets());
            out.extend_from_slice(&v6(destination).octets());
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
    out
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V4: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\xdb\x9a\x05\xea";

    #[test]
    fn header_of_the_specification_is_read() {
        let source = Some("192.0.2.7:56218".parse().unwrap());
        assert_eq!(parse(V4), Ok(Preface::Whole { length: 28, source }));
        assert_eq!(
            header("192.0.2.7:56218".parse().unwrap(), "198.51.100.1:1514".parse().unwrap()),
            V4
        );
    }

    #[test]
    fn health_check_of_the_load_balancer_names_nobody() {
        let local = [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat();
        let whole = Preface::Whole {
            length: 16,
            source: None,
        };
        assert_eq!(parse(&local), Ok(whole));
    }

    #[test]
    fn what_cannot_become_a_header_is_refused_at_the_first_byte_that_shows_it() {
        assert_eq!(parse(b"\r\n\r\nX"), Err(ProxyError::Missing));
        assert_eq!(parse(b"!001!"), Err(ProxyError::Missing));
        assert_eq!(parse(b"PROXY TCP4 "), Err(ProxyError::Missing));
        let with = |tail: &[u8]| [&SIGNATURE[..], tail].concat();
        assert_eq!(parse(&with(&[0x11, 0x11, 0, 12])), Err(ProxyError::Command(0x11)));
        assert_eq!(parse(&with(&[0x21, 0x11, 0xff, 0xff])), Err(ProxyError::Length(0xffff)));
        assert_eq!(parse(&with(&[0x21, 0x12, 0, 0])), Err(ProxyError::Family(0x12)));
        assert_eq!(parse(&with(&[0x21, 0x11, 0, 2, 1, 1])), Err(ProxyError::Length(2)));
    }

    proptest! {
        #[test]
        fn header_is_read_as_written_and_not_before_it_is_whole(
            v6 in any::<bool>(), ip in any::<[u8; 16]>(), port in any::<u16>(), behind in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let ip = if v6 { IpAddr::from(ip) } else { IpAddr::from([ip[0], ip[1], ip[2], ip[3]]) };
            let to = if v6 { "[::1]:1514" } else { "127.0.0.1:1514" };
            let source = SocketAddr::new(ip, port);
            let mut bytes = header(source, to.parse().unwrap());
            let length = bytes.len();
            for cut in 0..length {
                prop_assert_eq!(parse(&bytes[..cut]), Ok(Preface::Partial));
            }
            bytes.extend(behind);
            prop_assert_eq!(parse(&bytes), Ok(Preface::Whole { length, source: Some(source) }));
        }

        #[test]
        fn no_bytes_make_it_panic_or_reach_beyond_the_limit(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            for bytes in [bytes.clone(), [&SIGNATURE[..], &bytes].concat()] {
                if let Ok(Preface::Whole { length, .. }) = parse(&bytes) {
                    prop_assert!(length <= bytes.len() && length <= MAX_HEADER_LEN);
                }
            }
        }
    }
}

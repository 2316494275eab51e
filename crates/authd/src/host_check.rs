//! Whether a certificate names an address: subject alternative names first, then every common name.
//!
//! A name is compared label by label, without letter case; a certificate whose first label is `*` matches any first
//! label. An address written as text is a name too, so `10.0.0.5` in a common name counts.

use std::net::IpAddr;

use muster_proto::keys::address::source_text;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Whether a DER certificate names the peer's address. One that cannot be read names nobody.
pub fn names_address(certificate: &[u8], peer: IpAddr) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    let peer = peer.to_canonical();
    let text = source_text(peer);
    is_in_alternative_names(&certificate, peer, &text)
        || certificate
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok())
            .any(|name| matches_name(name, &text))
}

fn is_in_alternative_names(certificate: &X509Certificate<'_>, peer: IpAddr, text: &str) -> bool {
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return false;
    };
    names.value.general_names.iter().any(|name| match name {
        GeneralName::DNSName(name) => matches_name(name, text),
        GeneralName::IPAddress(bytes) => match peer {
            IpAddr::V4(peer) => *bytes == peer.octets(),
            IpAddr::V6(peer) => *bytes == peer.octets(),
        },
        _ => false,
    })
}

/// Whether a name in a certificate matches the name that is looked for.
fn matches_name(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (labels(pattern), labels(name));
    pattern.len() == name.len()
        && pattern.iter().zip(&name).enumerate().all(|(place, (pattern, label))| {
            is_label(label)
                && ((place == 0 && *pattern == "*") || (is_label(pattern) && pattern.eq_ignore_ascii_case(label)))
        })
}

/// The labels between dots; an empty last one, from a dot at the end, does not count.
fn labels(name: &str) -> Vec<&str> {
    name.strip_suffix('.').unwrap_or(name).split('.').collect()
}

fn is_label(label: &str) -> bool {
    label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && label.as_bytes().last().is_some_and(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(common_name: &str, names: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = names;
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn names_are_compared_label_by_label() {
        for (pattern, name) in [
            ("10.0.0.5", "10.0.0.5"),
            ("10.0.0.5.", "10.0.0.5"),
            ("*.0.0.5", "10.0.0.5"),
            ("web.Example.ORG", "WEB.example.org"),
            ("*.example.org", "web.example.org"),
        ] {
            assert!(matches_name(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("10.0.0.5", "10.0.0.6"),
            ("*", "10.0.0.5"),
            ("*.org", "web.example.org"),
            ("web.*.org", "web.example.org"),
            ("w*.example.org", "web.example.org"),
            ("web-.example.org", "web-.example.org"),
            ("web_1.example.org", "web_1.example.org"),
            ("", ""),
            ("*.example.org", ".example.org"),
        ] {
            assert!(!matches_name(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn addresses_count_in_alternative_names_and_in_the_common_name() {
        let by_ip = certificate("agent", vec![SanType::IpAddress(ip("10.0.0.5"))]);
        assert!(names_address(&by_ip, ip("10.0.0.5")));
        assert!(names_address(&by_ip, ip("::ffff:10.0.0.5")));
        assert!(!names_address(&by_ip, ip("10.0.0.6")));
        let by_ip6 = certificate("agent", vec![SanType::IpAddress(ip("2001:db8::5"))]);
        assert!(names_address(&by_ip6, ip("2001:db8::5")));
        let by_dns = certificate("agent", vec![SanType::DnsName("10.0.0.5".try_into().expect("a name"))]);
        assert!(names_address(&by_dns, ip("10.0.0.5")));
        let by_common_name = certificate("10.0.0.5", vec![SanType::IpAddress(ip("10.0.0.6"))]);
        assert!(names_address(&by_common_name, ip("10.0.0.5")));
    }

    #[test]
    fn what_is_no_certificate_names_nobody() {
        assert!(!names_address(b"nonsense", ip("10.0.0.5")));
    }
}

//! `<connection>syslog</connection>`: lines of hosts and devices without an agent, to the analysis daemon.
//!
//! A thread of its own serves all such ports, with a line of its own to the analysis daemon, so that a flood of lines
//! costs no agent an acknowledgement.
//!
//! | part | job |
//! | --- | --- |
//! | [`framing`] | where a message ends in a stream: pure |
//! | [`watch`] | senders that fall silent: pure |
//! | [`sockets`] | ports, bound before privileges are dropped |
//! | [`serve`] | the thread |
//!
//! What happens when the analysis daemon is slow: connections over TCP are not read until there is room, for 20 s at
//! most unless `<when_full>` says `block`; lines over UDP are dropped and counted.
//!
//! **Invariant:** who may not send is not listened to: its connection is closed unread, its datagrams are counted and
//! forgotten.

pub mod framing;
pub mod serve;
pub mod sockets;
pub mod watch;

use std::net::IpAddr;

use muster_config::Remote;

/// A line as it is passed on: without its priority (`<13>`), its line end, and whatever follows a NUL. `None` when
/// nothing is left.
pub fn clean(message: &[u8]) -> Option<&[u8]> {
    let message = memchr::memchr(0, message).map_or(Some(message), |end| message.get(..end))?;
    let line = without_priority(without_line_end(message));
    (!line.is_empty()).then_some(line)
}

fn without_line_end(message: &[u8]) -> &[u8] {
    let end = message
        .iter()
        .rposition(|byte| !matches!(byte, b'\r' | b'\n'))
        .map_or(0, |last| last + 1);
    message.get(..end).unwrap_or(message)
}

fn without_priority(message: &[u8]) -> &[u8] {
    let Some(rest) = message.strip_prefix(b"<") else {
        return message;
    };
    let digits = rest.iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
    match rest.get(digits..).and_then(|rest| rest.strip_prefix(b">")) {
        Some(line) if (1..=3).contains(&digits) => line,
        _ => message,
    }
}

/// Whether an address may send to a port: it is allowed and not denied.
pub fn permits(remote: &Remote, sender: IpAddr) -> bool {
    let listed = |networks: &[_]| networks.iter().any(|network: &ipnet::IpNet| network.contains(&sender));
    !listed(&remote.denied_ips) && listed(&remote.allowed_ips)
}

/// The single addresses that may send to a port: they are expected to.
pub fn expected(remote: &Remote) -> impl Iterator<Item = IpAddr> {
    let single = remote
        .allowed_ips
        .iter()
        .filter(|network| network.prefix_len() == network.max_prefix_len());
    single.map(ipnet::IpNet::addr).filter(|ip| permits(remote, *ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_and_line_end_are_no_part_of_a_line() {
        for (message, expected) in [
            (&b"<13>Nov 21 host sshd: x\r\n"[..], Some(&b"Nov 21 host sshd: x"[..])),
            (b"<1>a\0b", Some(b"a")),
            (b"no priority", Some(b"no priority")),
            (b"<1234>x", Some(b"<1234>x")),
            (b"<script>x", Some(b"<script>x")),
            (b"<>x", Some(b"<>x")),
            (b"<13", Some(b"<13")),
            (b"<13>", None),
            (b"\n", None),
            (b"", None),
        ] {
            assert_eq!(clean(message), expected, "{}", String::from_utf8_lossy(message));
        }
    }

    #[test]
    fn denied_is_denied_and_the_rest_must_be_allowed() {
        let remote = Remote {
            allowed_ips: ["10.0.0.0/8", "192.0.2.1/32", "192.0.2.2/32"]
                .map(|net| net.parse().unwrap())
                .into(),
            denied_ips: ["10.9.0.0/16", "192.0.2.2/32"].map(|net| net.parse().unwrap()).into(),
            ..Remote::default()
        };
        for (sender, expected) in [
            ("10.1.2.3", true),
            ("10.9.2.3", false),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("192.0.2.3", false),
            ("::1", false),
        ] {
            assert_eq!(permits(&remote, sender.parse().unwrap()), expected, "{sender}");
        }
        let expected: Vec<_> = expected(&remote).map(|ip| ip.to_string()).collect();
        assert_eq!(expected, ["192.0.2.1"]);
        assert!(
            !permits(&Remote::default(), "10.0.0.1".parse().unwrap()),
            "nobody is listed"
        );
    }
}

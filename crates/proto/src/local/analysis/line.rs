//! Lines that come from no agent: syslog, and what daemons of the manager say themselves.

use super::{MAX_DATAGRAM_LEN, escape, until_nul};
use crate::local::Layout;

/// The queue character of syslog lines.
const SYSLOG: u8 = b'2';
/// The queue character of log files, and of what daemons say.
const LOG_FILE: u8 = b'1';

/// Puts the datagram of a line behind what is in the buffer: `2:<sender>:<line>` and a NUL. The line is cut at its first
/// NUL, and where the datagram would be too long.
pub fn write_line(out: &mut Vec<u8>, layout: Layout, sender: &str, line: &[u8]) {
    let start = out.len();
    out.extend_from_slice(&[SYSLOG, b':']);
    match layout {
        Layout::Wazuh => out.extend_from_slice(escape(sender).as_bytes()),
        Layout::Ossec => out.extend_from_slice(sender.as_bytes()),
    }
    put_line(out, start, line);
}

/// Puts the datagram of a line that one of the manager's own daemons says behind what is in the buffer:
/// `1:<program>:<line>` and a NUL. The program's name has neither `:` nor `|`. The line is cut as in [`write_line`].
pub fn write_own_line(out: &mut Vec<u8>, program: &str, line: &[u8]) {
    let start = out.len();
    out.extend_from_slice(&[LOG_FILE, b':']);
    out.extend_from_slice(program.as_bytes());
    put_line(out, start, line);
}

/// What follows the location.
fn put_line(out: &mut Vec<u8>, start: usize, line: &[u8]) {
    out.push(b':');
    let used = out.len().saturating_sub(start);
    let room = MAX_DATAGRAM_LEN.saturating_sub(1).saturating_sub(used);
    let line = until_nul(line);
    out.extend_from_slice(line.get(..room).unwrap_or(line));
    out.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(layout: Layout, sender: &str, line: &[u8]) -> Vec<u8> {
        let mut out = b"before".to_vec();
        write_line(&mut out, layout, sender, line);
        out.split_off(6)
    }

    #[test]
    fn senders_address_is_the_location() {
        assert_eq!(
            datagram(Layout::Wazuh, "192.0.2.1", b"sshd[1]: x:y"),
            b"2:192.0.2.1:sshd[1]: x:y\0"
        );
        assert_eq!(datagram(Layout::Wazuh, "::1", b"x\0y"), b"2:|:|:1:x\0");
        assert_eq!(datagram(Layout::Ossec, "::1", b""), b"2:::1:\0");
    }

    #[test]
    fn own_line_is_like_one_of_a_log_file() {
        let mut out = Vec::new();
        write_own_line(&mut out, "muster-natsd", b"{\"a\":1}");
        assert_eq!(out, b"1:muster-natsd:{\"a\":1}\0");
    }

    #[test]
    fn line_is_cut_where_the_datagram_ends() {
        let long = datagram(Layout::Wazuh, "192.0.2.1", &[b'x'; MAX_DATAGRAM_LEN]);
        assert_eq!((long.len(), long.last()), (MAX_DATAGRAM_LEN, Some(&0)));
    }
}

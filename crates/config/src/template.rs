//! The configuration that a new home starts with: the shipped example, with what the operator said filled in.

use std::net::IpAddr;

use crate::limits;

/// What `muster-control init` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitOptions {
    /// The address that agents reach us at; every address when absent.
    pub bind: Option<IpAddr>,
    /// The agents' port.
    pub port: u16,
    /// The enrollment port.
    pub enroll_port: u16,
    /// Whether agents need `etc/authd.pass` to enroll.
    pub use_password: bool,
    /// The NATS server, or several with commas. Without one, publishing is off.
    pub nats_url: Option<String>,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            bind: None,
            port: limits::REMOTE_PORT,
            enroll_port: limits::AUTH_PORT,
            use_password: true,
            nats_url: None,
        }
    }
}

/// The shipped example.
const EXAMPLE: &str = include_str!("../../../etc/ossec.conf");

const AUTH: &str = "<auth>";
const PORT: &str = "<port>1514</port>";
const ENROLL_PORT: &str = "<port>1515</port>";
const ANY_ADDRESS: &str = "<!-- <local_ip>192.0.2.10</local_ip>: listen at one address only. -->";
const PASSWORD: &str = "<use_password>yes</use_password>";
const PASSWORD_NOTE: &str = "    <!-- The password is the first line of etc/authd.pass. -->\n";
const NATS: &str = "<enabled>no</enabled>\n    <server_url>nats://127.0.0.1:4222</server_url>";

/// The text of `etc/ossec.conf` for a new home. A NATS URL that is none makes a file that [`crate::parse_text`] refuses
/// with the reason.
pub fn render(options: &InitOptions) -> String {
    // In two parts, so that a port which takes the other's number is not taken for it.
    let (before, after) = EXAMPLE.split_once(AUTH).unwrap_or((EXAMPLE, ""));
    let before = before.replace(PORT, &format!("<port>{}</port>", options.port));
    let after = after.replace(ENROLL_PORT, &format!("<port>{}</port>", options.enroll_port));
    let mut text = format!("{before}{AUTH}{after}");
    if let Some(address) = options.bind {
        text = text.replace(ANY_ADDRESS, &format!("<local_ip>{address}</local_ip>"));
    }
    if !options.use_password {
        text = text
            .replace(PASSWORD_NOTE, "")
            .replace(PASSWORD, "<use_password>no</use_password>");
    }
    if let Some(url) = &options.nats_url {
        let url = crate::show::escape(url.trim());
        text = text.replace(
            NATS,
            &format!("<enabled>yes</enabled>\n    <server_url>{url}</server_url>"),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Settings, parse_text};

    fn settings(options: &InitOptions) -> Settings {
        let loaded = parse_text(&render(options)).unwrap();
        assert_eq!(loaded.warnings, []);
        loaded.settings
    }

    #[test]
    fn every_marker_is_in_the_example() {
        for (marker, times) in [
            (PORT, 1),
            (ENROLL_PORT, 1),
            (ANY_ADDRESS, 2),
            (PASSWORD, 1),
            (PASSWORD_NOTE, 1),
            (NATS, 1),
        ] {
            assert_eq!(EXAMPLE.matches(marker).count(), times, "{marker}");
        }
    }

    #[test]
    fn a_new_home_has_a_password_both_carriers_and_the_keepalive_and_no_nats() {
        let settings = settings(&InitOptions::default());
        let remote = &settings.remotes[0];
        assert!(settings.auth.use_password && !settings.auth.disabled);
        assert!(remote.protocols.tcp && remote.protocols.udp);
        assert_eq!(remote.keepalive(), Some(&crate::ManagerKeepalive::default()));
        assert!(!settings.nats.enabled);
    }

    #[test]
    fn what_was_asked_for_is_in_the_file() {
        for address in ["127.0.0.1", "::1"] {
            let settings = settings(&InitOptions {
                bind: Some(address.parse().unwrap()),
                port: 11514,
                enroll_port: 11515,
                use_password: false,
                nats_url: Some("nats://127.0.0.1:14222,tls://nats.example.org".into()),
            });
            let remote = &settings.remotes[0];
            assert_eq!((remote.port, settings.auth.port), (11514, 11515));
            assert_eq!(
                (remote.local_ip, settings.auth.local_ip),
                (address.parse().ok(), address.parse().ok())
            );
            assert!(!settings.auth.use_password);
            assert!(settings.nats.enabled);
            assert_eq!(
                settings.nats.servers,
                ["nats://127.0.0.1:14222", "tls://nats.example.org"]
            );
        }
    }

    #[test]
    fn one_port_may_take_the_number_of_the_other() {
        let settings = settings(&InitOptions {
            port: 1515,
            enroll_port: 1514,
            ..InitOptions::default()
        });
        assert_eq!((settings.remotes[0].port, settings.auth.port), (1515, 1514));
    }

    #[test]
    fn a_url_that_is_none_makes_a_file_that_is_refused() {
        let options = InitOptions {
            nats_url: Some("</nats><b>".into()),
            ..InitOptions::default()
        };
        assert!(parse_text(&render(&options)).is_err());
    }
}

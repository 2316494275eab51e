//! The command line: the flags of the stock daemons, as far as they mean something here.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::Parser;
use muster_config::Auth;
use muster_service::Common;

/// enrolls agents on port 1515 and keeps their keys
#[derive(Clone, Debug, Parser)]
#[command(name = "muster-authd", version = muster_service::version::version())]
pub struct Cli {
    /// what every daemon takes
    #[command(flatten)]
    pub common: Common,

    /// listen on this port instead of the configured one
    #[arg(short, long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,

    /// ask for the password in etc/authd.pass
    #[arg(short = 'P', long, conflicts_with = "no_password")]
    pub password: bool,

    /// ask for no password
    #[arg(short = 'n', long)]
    pub no_password: bool,

    /// register agents with the address they come from instead of `any`
    #[arg(short = 'i', long)]
    pub source_address: bool,

    /// let in only agents whose certificate this CA has signed
    #[arg(short = 'v', long, value_name = "FILE")]
    pub agent_ca: Option<PathBuf>,

    /// ... and names the address they come from
    #[arg(short = 's', long)]
    pub verify_host: bool,

    /// the certificate chain, PEM
    #[arg(short = 'x', long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,

    /// its private key, PEM
    #[arg(short = 'k', long, value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// accepted for compatibility: TLS 1.2 and 1.3 are always on, and nothing older
    #[arg(short = 'a', hide = true)]
    pub auto_negotiate: bool,

    /// accepted for compatibility: there is no limit on agents unless one is configured
    #[arg(short = 'L', hide = true)]
    pub no_limit: bool,

    /// accepted for compatibility: what stock authd's `-c` says, kept for whoever asks for the configuration
    #[arg(long, hide = true, value_name = "LIST")]
    pub ciphers: Option<String>,

    /// make a self-signed certificate instead, valid for so many days, and end
    ///
    /// With the options below, as installers ask stock authd for one. `muster-control cert` makes better ones.
    #[arg(short = 'C', value_name = "DAYS", requires_all = ["new_key", "new_certificate", "subject"])]
    pub make_certificate: Option<u16>,

    /// ... with an RSA key of so many bits
    #[arg(short = 'B', value_name = "BITS", default_value = "2048", value_parser = ["2048", "3072", "4096"])]
    pub bits: String,

    /// ... the key goes into this file, which must not exist
    #[arg(short = 'K', value_name = "FILE")]
    pub new_key: Option<PathBuf>,

    /// ... the certificate into this one
    #[arg(short = 'X', value_name = "FILE")]
    pub new_certificate: Option<PathBuf>,

    /// ... and whose it is: `/C=US/ST=California/CN=Wazuh/`
    #[arg(short = 'S', value_name = "SUBJECT")]
    pub subject: Option<String>,
}

/// The arguments in our meaning: Wazuh's authd takes ciphers after `-c`, where all other daemons take a file.
pub fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut given = given.into_iter().peekable();
    let is_wazuh = given
        .peek()
        .and_then(|program| Path::new(program).file_name())
        .is_some_and(|name| name == "wazuh-authd");
    given
        .map(|argument| {
            if is_wazuh && argument == "-c" {
                "--ciphers".into()
            } else {
                argument
            }
        })
        .collect()
}

impl Cli {
    /// The configured block with what the command line says over it.
    pub fn over(&self, configured: &Auth) -> Auth {
        let mut auth = configured.clone();
        auth.port = self.port.unwrap_or(auth.port);
        auth.use_password = (auth.use_password || self.password) && !self.no_password;
        auth.use_source_ip |= self.source_address;
        auth.ssl_verify_host |= self.verify_host;
        auth.ssl_auto_negotiate |= self.auto_negotiate;
        if let Some(ciphers) = &self.ciphers {
            auth.ciphers.clone_from(ciphers);
        }
        if let Some(path) = &self.agent_ca {
            auth.ssl_agent_ca = Some(path.clone());
        }
        if let Some(path) = &self.certificate {
            auth.ssl_manager_cert.clone_from(path);
        }
        if let Some(path) = &self.key {
            auth.ssl_manager_key.clone_from(path);
        }
        auth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(arguments: &[&str], configured: &Auth) -> Auth {
        let arguments = ["muster-authd"].iter().chain(arguments);
        Cli::try_parse_from(arguments).expect("parses").over(configured)
    }

    #[test]
    fn without_flags_the_configuration_stands() {
        assert_eq!(over(&[], &Auth::default()), Auth::default());
    }

    #[test]
    fn flags_of_stock_daemons_win_over_the_configuration() {
        let auth = over(
            &[
                "-p", "2515", "-P", "-i", "-v", "ca.pem", "-s", "-x", "c.pem", "-k", "k.pem", "-a", "-L",
            ],
            &Auth::default(),
        );
        assert_eq!(
            (auth.port, auth.use_password, auth.use_source_ip, auth.ssl_verify_host),
            (2515, true, true, true)
        );
        assert_eq!(auth.ssl_agent_ca, Some("ca.pem".into()));
        assert_eq!(
            (auth.ssl_manager_cert, auth.ssl_manager_key),
            ("c.pem".into(), "k.pem".into())
        );
        let asks = Auth {
            use_password: true,
            ..Auth::default()
        };
        assert!(!over(&["-n"], &asks).use_password);
    }

    #[test]
    fn ciphers_follow_the_letter_that_is_a_file_elsewhere_only_where_wazuh_is_meant() {
        let parse = |program: &str| {
            let given = [program, "-c", "HIGH:!ADH", "-f"].map(OsString::from);
            Cli::try_parse_from(arguments(given)).expect("parses")
        };
        let wazuh = parse("/var/ossec/bin/wazuh-authd");
        assert_eq!(
            (wazuh.common.config.as_deref(), wazuh.over(&Auth::default()).ciphers),
            (None, "HIGH:!ADH".to_owned())
        );
        for program in ["muster-authd", "/var/ossec/bin/ossec-authd"] {
            let other = parse(program);
            assert_eq!(other.common.config, Some("HIGH:!ADH".into()));
            assert_eq!(other.over(&Auth::default()), Auth::default());
        }
    }

    #[test]
    fn port_zero_is_a_usage_error() {
        assert!(Cli::try_parse_from(["muster-authd", "-p", "0"]).is_err());
    }
}

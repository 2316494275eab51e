//! The command line: the flags of the stock daemons, as far as they mean something here.

use std::path::PathBuf;

use clap::Parser;
use muster_config::Auth;
use muster_service::Common;

/// enrolls agents on port 1515 and keeps their keys
#[derive(Clone, Debug, Parser)]
#[command(name = "muster-authd", version)]
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
    fn port_zero_is_a_usage_error() {
        assert!(Cli::try_parse_from(["muster-authd", "-p", "0"]).is_err());
    }
}

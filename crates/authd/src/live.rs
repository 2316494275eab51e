//! The settings that may change while the daemon runs, checked and ready for use.

use std::{fs, io, sync::Arc, time::Duration};

use anyhow::Context;
use muster_config::{Auth, KeyRequest, Settings};
use muster_proto::{
    bucket::Rate,
    enrollment::{force::Rules, request::Policy, version::Version},
    keys::Secret,
    paths,
};
use tokio_rustls::TlsAcceptor;

use crate::{admission::Limits, keystore::Trace, password, store::StorePolicy, tls};

/// What requests are judged by.
pub struct Live {
    /// The `<auth>` block, with the command line over it.
    pub auth: Auth,
    /// The block's rules for agents that stand in the way.
    pub rules: Rules,
    /// The password, if one is asked for.
    pub password: Option<Password>,
    /// Speaks TLS; `None` when the port is not opened.
    pub acceptor: Option<TlsAcceptor>,
    /// How long a client of the local socket may take to send its request; zero = for ever, as stock has it.
    pub receive_timeout: Duration,
    /// `<key_request>`, which local programs may ask to see.
    pub key_request: Option<KeyRequest>,
    /// How long agents may be disconnected before they are removed; zero = for ever.
    pub delete_old_agents: Duration,
    newest_version: Option<Version>,
}

/// A password and where it is from.
#[derive(Clone)]
pub struct Password {
    /// It.
    pub secret: Secret,
    /// Whether it was made for this run, because there is no file.
    pub is_random: bool,
}

impl Live {
    /// Makes settings ready, reading certificate, key, CA and password. A random password of before is kept while
    /// there is no file.
    ///
    /// # Errors
    /// The first thing that does not work, with its file.
    pub fn new(settings: &Settings, auth: Auth, before: Option<&Self>) -> anyhow::Result<Self> {
        let password = if auth.use_password && auth.remote_enrollment {
            Some(read_password(before.and_then(|before| before.password.as_ref()))?)
        } else {
            None
        };
        let acceptor = if auth.remote_enrollment {
            Some(acceptor(&auth, before)?)
        } else {
            None
        };
        let newest_version =
            (!auth.allow_higher_versions).then(|| Version::parse(&settings.muster.manager_version.to_string()));
        Ok(Self {
            rules: rules(&auth),
            auth,
            password,
            acceptor,
            receive_timeout: settings.internal.auth.timeout(),
            key_request: settings.key_request.clone(),
            delete_old_agents: settings.internal.monitord.delete_old_agents,
            newest_version,
        })
    }

    /// What a request line is parsed by.
    pub fn request_policy(&self) -> Policy<'_> {
        Policy {
            password: self.password.as_ref().map(|password| &password.secret),
            newest_version: self.newest_version,
        }
    }

    /// What connections are admitted by.
    pub fn limits(&self) -> Limits {
        let limits = &self.auth.limits;
        Limits {
            max_connections: limits.max_connections,
            per_address: rate(limits.rate_per_address),
            total: rate(limits.rate_total),
        }
    }

    /// What the store judges by.
    pub fn store_policy(&self, manager_name: &str) -> StorePolicy {
        StorePolicy {
            manager_name: manager_name.to_owned(),
            max_agents: self.auth.limits.max_agents,
            trace: if self.auth.purge { Trace::Nothing } else { Trace::Line },
        }
    }

    /// Whether agents' certificates must name where they come from.
    pub fn verifies_host(&self) -> bool {
        self.auth.ssl_verify_host && self.auth.ssl_agent_ca.is_some()
    }
}

/// The settings of the moment. Each connection takes them once.
pub type LiveSettings = tokio::sync::watch::Receiver<Arc<Live>>;

/// Certificate and key may be root's alone, and root's rights are gone when a reload comes: then the old ones go on.
fn acceptor(auth: &Auth, before: Option<&Live>) -> anyhow::Result<TlsAcceptor> {
    match (
        tls::server_config(auth),
        before.and_then(|before| before.acceptor.as_ref()),
    ) {
        (Ok(config), _) => Ok(TlsAcceptor::from(config)),
        (Err(error), Some(before)) if error.is_permission_denied() => {
            tracing::warn!(%error, "certificate and key stay as they were until a restart");
            Ok(before.clone())
        }
        (Err(error), _) => Err(error).context("setting up TLS"),
    }
}

fn rules(auth: &Auth) -> Rules {
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Rules {
        enabled: auth.force.enabled,
        key_mismatch: auth.force.key_mismatch,
        disconnected_time: auth.force.disconnected_time.map(seconds),
        after_registration_time: seconds(auth.force.after_registration_time),
    }
}

fn rate(rate: muster_config::Rate) -> Rate {
    Rate {
        per_second: rate.per_second,
        burst: rate.burst,
    }
}

fn read_password(before: Option<&Password>) -> anyhow::Result<Password> {
    match fs::read(paths::AUTHD_PASS).map(zeroize::Zeroizing::new) {
        Ok(content) => {
            let secret = password::parse(&content).with_context(|| paths::AUTHD_PASS.to_owned())?;
            Ok(Password {
                secret,
                is_random: false,
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => match before {
            Some(before) if before.is_random => Ok(before.clone()),
            _ => {
                let mut random = [0; 16];
                getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("drawing a password: {error}"))?;
                Ok(Password {
                    secret: password::of_random(&random),
                    is_random: true,
                })
            }
        },
        Err(error) => match before {
            Some(before) if error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::warn!(%error, "the password stays as it was until a restart");
                Ok(before.clone())
            }
            _ => Err(error).with_context(|| format!("reading {}", paths::AUTHD_PASS)),
        },
    }
}

//! What only the files beside the configuration can tell: legal, and unwise or bound to fail at start.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use muster_proto::paths;

use crate::{
    Settings,
    diagnostic::{Diagnostic, Severity},
};

/// Permission bits for everybody else.
const OTHERS: u32 = 0o007;

/// What a look at a file gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Permission bits.
    pub mode: u32,
    /// Size in bytes.
    pub size: u64,
}

/// Looks at files below a home, for [`check`].
pub fn look_on_disk(home: &Path) -> impl Fn(&Path) -> Option<FileFacts> {
    move |path| {
        let metadata = fs::metadata(home.join(path)).ok()?;
        Some(FileFacts {
            mode: metadata.mode() & 0o7777,
            size: metadata.size(),
        })
    }
}

/// Warns about files that the settings name and that are missing, empty, or readable by everybody. `look` gives the
/// facts of a file, relative to the home unless absolute, or nothing when it is not there.
pub fn check(settings: &Settings, look: impl Fn(&Path) -> Option<FileFacts>) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut warn = |path: &Path, message: String| {
        let path = path.display().to_string();
        found.push(Diagnostic {
            severity: Severity::Warning,
            path,
            place: None,
            message,
        });
    };
    for file in files(settings) {
        match look(&file.path) {
            None if file.must_exist => warn(&file.path, format!("is not there; {} it", file.cure)),
            None => {}
            Some(facts) if facts.size == 0 => warn(&file.path, format!("is empty; {} it", file.cure)),
            Some(facts) if file.is_secret && facts.mode & OTHERS != 0 => {
                warn(
                    &file.path,
                    format!("may be read by everybody (mode {:04o}); run chmod 0640", facts.mode),
                );
            }
            Some(_) => {}
        }
    }
    let has_secrets = settings.nats.password.is_some() || settings.nats.token.is_some();
    let config = Path::new(paths::CONFIG);
    if has_secrets && look(config).is_some_and(|facts| facts.mode & OTHERS != 0) {
        warn(
            config,
            "holds a secret and may be read by everybody; run chmod 0640".to_owned(),
        );
    }
    found
}

/// A file that the settings name.
struct Named {
    path: PathBuf,
    is_secret: bool,
    must_exist: bool,
    cure: &'static str,
}

fn files(settings: &Settings) -> Vec<Named> {
    let mut files = Vec::new();
    let mut add = |path: &Path, is_secret: bool, must_exist: bool, cure: &'static str| {
        files.push(Named {
            path: path.to_owned(),
            is_secret,
            must_exist,
            cure,
        });
    };
    let auth = &settings.auth;
    if !auth.disabled {
        if auth.remote_enrollment {
            add(&auth.ssl_manager_cert, false, true, "`muster-control cert` makes");
            add(&auth.ssl_manager_key, true, true, "`muster-control cert` makes");
        }
        if let Some(ca) = &auth.ssl_agent_ca {
            add(ca, false, true, "put the CA of the agents' certificates into");
        }
        if auth.use_password {
            // Without the file a password is made for the run and logged.
            add(Path::new(paths::AUTHD_PASS), true, false, "write the password into");
        }
    }
    let nats = &settings.nats;
    if nats.enabled {
        for secret in [&nats.credentials_file, &nats.nkey_file, &nats.tls_key]
            .into_iter()
            .flatten()
        {
            add(secret, true, true, "copy");
        }
        for public in [&nats.tls_cert, &nats.tls_ca].into_iter().flatten() {
            add(public, false, true, "copy");
        }
        if nats.message_signing {
            add(&nats.signing_key, true, false, "remove");
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let mut settings = Settings::default();
        settings.auth.disabled = false;
        settings.auth.use_password = true;
        settings.nats.enabled = true;
        settings.nats.credentials_file = Some("etc/nats.creds".into());
        settings
    }

    fn messages(settings: &Settings, look: impl Fn(&Path) -> Option<FileFacts>) -> Vec<String> {
        check(settings, look).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn files_of_mode_0640_give_no_warning() {
        assert!(messages(&settings(), |_| Some(FileFacts { mode: 0o640, size: 9 })).is_empty());
    }

    #[test]
    fn secrets_that_everybody_may_read_are_warned_about_and_certificates_are_not() {
        let found = messages(&settings(), |_| Some(FileFacts { mode: 0o644, size: 9 }));
        let about = |name: &str| found.iter().any(|line| line.contains(name));
        assert!(
            about("etc/nats.creds") && about("etc/sslmanager.key") && about("etc/authd.pass"),
            "{found:?}"
        );
        assert!(!about("etc/sslmanager.cert"), "{found:?}");
    }

    #[test]
    fn missing_files_are_named_with_the_cure() {
        let found = messages(&settings(), |_| None);
        assert!(
            found.contains(&"etc/sslmanager.cert: warning: is not there; `muster-control cert` makes it".to_owned())
        );
        assert!(
            !found.iter().any(|line| line.contains("authd.pass")),
            "a missing password file is no mistake"
        );
    }

    #[test]
    fn a_disabled_daemon_has_no_files_to_miss() {
        assert!(messages(&Settings::default(), |_| None).is_empty());
    }
}

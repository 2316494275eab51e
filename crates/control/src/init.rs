//! `init`: a home with everything that the daemons need.
//!
//! **Invariant:** nothing that exists is overwritten or changed, so that it may be run again at any time.

use std::{
    env, fs,
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use muster_config::template::{self, InitOptions};
use muster_proto::paths;
use muster_service::{
    command_line::{DEFAULT_HOME, HOME_VARIABLE},
    exit::{BAD_CONFIG, DONE, Exit, FAILED},
    new_file::write_new,
};
use nix::unistd::{Gid, Group, Uid, User, geteuid};
use rcgen::RsaKeySize;
use zeroize::Zeroizing;

use crate::{
    cert::{self, KeyKind},
    cli,
    output::say,
};

/// How long the certificate of a new home is valid. Agents do not look, unless they are told to.
const CERTIFICATE_DAYS: u16 = 3650;
/// Letters of the password: 62 to the power of 32 is more than 2 to the power of 190.
const PASSWORD_LEN: usize = 32;
const PASSWORD_LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// What tells a Muster home from any other directory.
const MARK: &str = paths::MUSTER_SOCKETS;

/// Who writes into a directory or file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Nobody but root.
    Root,
    /// Several daemons: sticky where it is a directory, so that none can rename another's file.
    Shared,
    /// This one.
    Daemon(&'static str),
}

/// Every directory, parents first.
const DIRECTORIES: [(&str, Owner); 15] = [
    ("etc", Owner::Shared),
    (paths::SHARED, Owner::Shared),
    ("etc/shared/default", Owner::Shared),
    ("etc/shared/ossec", Owner::Shared),
    ("queue", Owner::Shared),
    ("queue/sockets", Owner::Shared),
    (MARK, Owner::Shared),
    ("queue/alerts", Owner::Shared),
    ("queue/db", Owner::Shared),
    (paths::RIDS, Owner::Daemon("remoted")),
    (paths::SPOOL, Owner::Daemon("natsd")),
    ("var", Owner::Root),
    (paths::MULTIGROUPS, Owner::Daemon("remoted")),
    (paths::RUN, Owner::Shared),
    (paths::LOGS, Owner::Shared),
];

pub(crate) fn init(home: Option<&Path>, arguments: &cli::Init) -> anyhow::Result<u8> {
    let home = absolute(home)?;
    make_home(&home)?;
    let accounts = Accounts::look_up();
    for (path, owner) in DIRECTORIES {
        make_directory(&home.join(path), owner, &accounts)?;
    }
    let files = Files {
        home: &home,
        accounts: &accounts,
    };
    let options = InitOptions {
        bind: arguments.bind,
        port: arguments.port,
        enroll_port: arguments.enroll_port,
        use_password: !arguments.no_password,
        nats_url: arguments.nats.clone(),
    };
    let text = template::render(&options);
    muster_config::parse_text(&text).map_err(|faults| Exit::new(BAD_CONFIG, faults.to_string()))?;
    let configured = files.make(paths::CONFIG, Owner::Root, 0o640, || Ok(text.into_bytes().into()))?;
    files.make(paths::CLIENT_KEYS, Owner::Daemon("authd"), 0o640, || {
        Ok(Vec::new().into())
    })?;
    if !arguments.no_password {
        files.make(paths::AUTHD_PASS, Owner::Daemon("authd"), 0o640, password)?;
    }
    make_certificate(&files, arguments)?;
    say(next_steps(&home, arguments, configured));
    Ok(DONE)
}

fn absolute(home: Option<&Path>) -> anyhow::Result<PathBuf> {
    let variable = env::var_os(HOME_VARIABLE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    let home = home
        .map(Path::to_owned)
        .or(variable)
        .unwrap_or_else(|| PathBuf::from(DEFAULT_HOME));
    std::path::absolute(&home).with_context(|| format!("finding {}", home.display()))
}

/// Makes the home, or makes sure that it is one.
fn make_home(home: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(home) {
        Ok(entries) => entries.count(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(home);
            return made.with_context(|| format!("making {}", home.display()));
        }
        Err(error) => return Err(error).with_context(|| format!("reading {}", home.display())),
    };
    if entries > 0 && !home.join(MARK).is_dir() {
        let message = format!(
            "{} has something in it and is no Muster home; choose another",
            home.display()
        );
        return Err(Exit::new(FAILED, message).into());
    }
    Ok(())
}

fn make_directory(path: &Path, owner: Owner, accounts: &Accounts) -> anyhow::Result<()> {
    let make = || -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            // It keeps the owner and the mode that somebody gave it.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
            made => made?,
        }
        accounts.give(path, owner)?;
        let mode = if owner == Owner::Shared { 0o1770 } else { 0o750 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    make().with_context(|| format!("making {}", path.display()))
}

/// The users and the group that things are given to, when we are root and a package has made them. Otherwise all
/// belongs to whoever runs `init`.
#[derive(Debug)]
struct Accounts {
    group: Option<Gid>,
    authd: Option<Uid>,
    remoted: Option<Uid>,
    natsd: Option<Uid>,
}

impl Accounts {
    fn look_up() -> Self {
        let root = geteuid().is_root();
        let user = |name: &str| {
            User::from_name(name)
                .ok()
                .flatten()
                .filter(|_| root)
                .map(|user| user.uid)
        };
        Self {
            group: Group::from_name("muster")
                .ok()
                .flatten()
                .filter(|_| root)
                .map(|group| group.gid),
            authd: user("muster-authd"),
            remoted: user("muster-remoted"),
            natsd: user("muster-natsd"),
        }
    }

    fn give(&self, path: &Path, owner: Owner) -> io::Result<()> {
        let user = match owner {
            Owner::Daemon("authd") => self.authd,
            Owner::Daemon("remoted") => self.remoted,
            Owner::Daemon("natsd") => self.natsd,
            Owner::Daemon(_) | Owner::Root | Owner::Shared => None,
        };
        chown(path, user.map(Uid::as_raw), self.group.map(Gid::as_raw))
    }
}

/// Where files are made.
struct Files<'a> {
    home: &'a Path,
    accounts: &'a Accounts,
}

impl Files<'_> {
    /// Makes a file unless it exists. Whether it was made.
    fn make(
        &self,
        path: &str,
        owner: Owner,
        mode: u32,
        contents: impl FnOnce() -> anyhow::Result<Zeroizing<Vec<u8>>>,
    ) -> anyhow::Result<bool> {
        let path = self.home.join(path);
        if path.exists() {
            return Ok(false);
        }
        write_new(&path, &contents()?, mode)?;
        self.accounts
            .give(&path, owner)
            .with_context(|| format!("giving {} to its owner", path.display()))?;
        Ok(true)
    }
}

fn make_certificate(files: &Files<'_>, arguments: &cli::Init) -> anyhow::Result<()> {
    let (certificate, key) = (files.home.join(paths::AUTHD_CERT), files.home.join(paths::AUTHD_KEY));
    if certificate.exists() || key.exists() {
        return Ok(());
    }
    let mut names = cert::own_names();
    let bind = arguments
        .bind
        .filter(|address| !address.is_unspecified())
        .map(|address| address.to_string());
    names.extend(
        bind.filter(|address| !names.contains(address))
            .into_iter()
            .collect::<Vec<_>>(),
    );
    let pair = cert::make(&names, KeyKind::Rsa(RsaKeySize::_2048), CERTIFICATE_DAYS)?;
    let owner = Owner::Daemon("authd");
    files.make(paths::AUTHD_KEY, owner, 0o600, || {
        Ok(Zeroizing::new(pair.key.as_bytes().to_vec()))
    })?;
    files.make(paths::AUTHD_CERT, owner, 0o644, || {
        Ok(pair.certificate.into_bytes().into())
    })?;
    Ok(())
}

/// A line with a random password.
fn password() -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut password = Zeroizing::new(Vec::with_capacity(PASSWORD_LEN + 1));
    while password.len() < PASSWORD_LEN {
        let mut byte = [0];
        getrandom::fill(&mut byte).map_err(|error| anyhow::anyhow!("the system gives no random number: {error}"))?;
        // Numbers that would make some letters likelier than others are passed over.
        if let Some(letter) = PASSWORD_LETTERS.get(usize::from(byte[0] & 63)) {
            password.push(*letter);
        }
    }
    password.push(b'\n');
    Ok(password)
}

fn next_steps(home: &Path, arguments: &cli::Init, configured: bool) -> String {
    let shown = home.display();
    let mut lines = vec![format!("{shown} is ready.")];
    if !configured {
        lines.push(format!("{shown}/{} was there already and is as it was.", paths::CONFIG));
    }
    lines.push("Next:".to_owned());
    lines.push(format!("  muster-control --home {shown} start"));
    let address = arguments.bind.filter(|address| !address.is_unspecified());
    let address = address.map_or_else(|| "this machine".to_owned(), |address| address.to_string());
    let password = if arguments.no_password {
        ", without a password".to_owned()
    } else {
        format!(", with the password in {shown}/{}", paths::AUTHD_PASS)
    };
    lines.push(format!(
        "  enroll agents at {address} port {}{password}",
        arguments.enroll_port
    ));
    lines.push(format!("  muster-control --home {shown} agent list"));
    if arguments.nats.is_none() {
        lines.push(format!(
            "Events stay in the spool until {shown}/{} names a NATS server; `muster-control events` shows them.",
            paths::CONFIG
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests;

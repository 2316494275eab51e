//! From arguments to a daemon that is ready to drop its privileges: the first half of every `main`.

use std::{
    env, fs, io,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
        net::{UnixDatagram, UnixListener},
    },
    path::{Path, PathBuf},
};

use anyhow::Context;
use muster_config::{Loaded, Settings};
use muster_proto::paths;
use nix::{
    sys::stat::{Mode, umask},
    unistd::{Pid, geteuid, getppid, setsid},
};

use crate::{
    background,
    command_line::{self, Common, HOME_VARIABLE, Program},
    exit::{BAD_CONFIG, DONE, Exit, NOT_PERMITTED},
    logging::{self, Logging},
    pid_file::InstanceLock,
    privileges::{self, Identity, Preferred},
    sandbox::{self, FileAccess},
    signals,
    socket::{self, Bound, Inherited, Permissions},
};

/// What every daemon leaves open to its group and closed to others.
const UMASK: u32 = 0o027;
/// Directories that several users share: sticky, so that one daemon cannot rename another's file.
const SHARED_DIRECTORY_MODE: u32 = 0o1770;
/// What one daemon writes and its group reads.
const OWN_DIRECTORY_MODE: u32 = 0o750;
/// Who may talk to our sockets: the owner and the one group.
pub const SOCKET_MODE: u32 = 0o660;

/// A daemon that has read its configuration, holds the lock of its home, and still has the rights it was started with.
#[derive(Debug)]
pub struct Startup {
    /// The short name: `remoted`.
    pub daemon: &'static str,
    /// The name in pid files: `muster-remoted`, or the stock name it was started under.
    pub program: Program,
    /// The home, absolute and without links. It is also the current directory.
    pub home: PathBuf,
    /// What the configuration says.
    pub settings: Settings,
    /// Sockets that the service manager passed on.
    pub inherited: Inherited,
    pub(crate) reloader: Reloader,
    pub(crate) detached: bool,
    pub(crate) supervisor: Option<Pid>,
    pub(crate) bound: Bound,
    pub(crate) lock: InstanceLock,
    identity: Option<Identity>,
    sandboxed: bool,
    log_directory: Option<PathBuf>,
}

impl Startup {
    /// Finds the home and changes into it, reads the configuration, installs the log, takes the lock.
    ///
    /// # Errors
    /// An [`Exit`] with its code: 78 for a bad configuration, all of whose faults are on standard error by then; 0 and
    /// no message for a passed `--test-config`. Give it to [`exit::report`](crate::exit::report).
    pub fn begin(daemon: &'static str, common: &Common) -> anyhow::Result<Self> {
        Self::begin_checked(daemon, common, |_| Ok(()))
    }

    /// The same for a daemon that has something to say about settings which are legal one by one; `--test-config` says
    /// it, too.
    ///
    /// # Errors
    /// As [`Startup::begin`]; what `check` says is an end with 78.
    pub fn begin_checked(
        daemon: &'static str,
        common: &Common,
        check: fn(&Settings) -> Result<(), String>,
    ) -> anyhow::Result<Self> {
        let supervisor = common.supervised.then(getppid);
        signals::unblock().context("unblocking signals")?;
        umask(Mode::from_bits_truncate(UMASK));
        let program = Program::of(&env::args_os().next().unwrap_or_default(), daemon);
        if background::is_wanted(&program, common) {
            return Err(background::rerun(&program, common)?.into());
        }
        let stock_home = program.stock_home.as_deref();
        let home = command_line::home(common.home.as_deref(), stock_home, env::var_os(HOME_VARIABLE))?;
        // The configuration and the log file may be named relative to where the operator is.
        let config = common.config.as_deref().map(|file| from_here_or_home(file, &home));
        env::set_current_dir(&home).with_context(|| format!("changing into {}", home.display()))?;

        let reloader = Reloader {
            home: home.clone(),
            config,
        };
        let loaded = reloader.load_all().map_err(|faults| {
            eprintln!("{faults}");
            Exit::quiet(BAD_CONFIG)
        })?;
        check(&loaded.settings).map_err(|why| Exit::new(BAD_CONFIG, why))?;
        if common.test_config {
            // What only the files can tell is for whoever tests, not for each daemon's log at each start.
            let on_disk = muster_config::check(&loaded.settings, muster_config::look_on_disk(&home));
            loaded
                .warnings
                .iter()
                .chain(&on_disk)
                .for_each(|warning| eprintln!("{warning}"));
            return Err(Exit::quiet(DONE).into());
        }

        if common.detached {
            setsid().context("starting a session")?;
        }
        let preferred = Preferred::of(&program.name, daemon);
        let identity = privileges::choose(&preferred, common.user.as_deref(), common.group.as_deref(), &home)
            .map_err(|error| anyhow::Error::new(error).context(Exit::new(NOT_PERMITTED, "choosing a user")))?;
        make_shared_directories(&home).context("making the directories that daemons share")?;
        let log_file = common.log_file.as_ref().map(|file| log_file(file.as_deref(), daemon));
        logging::install(&Logging {
            debug: common.debug.max(configured_debug(daemon, &loaded.settings)),
            format: common.log_format,
            file: log_file.as_deref(),
            owner: identity.as_ref(),
            stock_name: program.is_stock().then_some(program.name.as_str()),
        })
        .context("opening the log file")?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let lock = InstanceLock::take(daemon, identity.as_ref())?;
        Ok(Self {
            daemon,
            program,
            home,
            settings: loaded.settings,
            inherited: Inherited::from_environment(),
            reloader,
            detached: common.detached,
            supervisor,
            bound: Bound::default(),
            lock,
            identity,
            sandboxed: !common.no_sandbox,
            // Opening the log anew after a rotation makes a file in it.
            log_directory: log_file.and_then(|file| file.parent().map(Path::to_owned)),
        })
    }

    /// The listener behind `queue/muster/<daemon>.ctl`: inherited under the name `<daemon>.ctl`, or bound.
    pub fn control_socket(&mut self) -> anyhow::Result<UnixListener> {
        let path = paths::control_socket(self.daemon);
        self.stream_socket(&format!("{}.ctl", self.daemon), &path)
    }

    /// A stream socket of ours at a path below the home, mode 0660: inherited under `name`, or bound.
    pub fn stream_socket(&mut self, name: &str, path: &str) -> anyhow::Result<UnixListener> {
        if let Some(listener) = self.inherited.take_stream(name)? {
            return Ok(listener);
        }
        let listener = socket::bind_stream(Path::new(path), self.socket_permissions())?;
        self.bound.add(Path::new(path));
        Ok(listener)
    }

    /// A datagram socket of ours at a path below the home, mode 0660: inherited under `name`, or bound.
    pub fn datagram_socket(&mut self, name: &str, path: &str) -> anyhow::Result<UnixDatagram> {
        if let Some(socket) = self.inherited.take_datagram(name)? {
            return Ok(socket);
        }
        let socket = socket::bind_datagram(Path::new(path), self.socket_permissions())?;
        self.bound.add(Path::new(path));
        Ok(socket)
    }

    /// Makes a directory below the home that only this daemon writes (mode 0750), if it is missing, and gives it to
    /// the user that the daemon becomes.
    pub fn own_directory(&self, path: &str) -> anyhow::Result<()> {
        let path = Path::new(path);
        let make = || {
            make_parents(&self.home, path)?;
            match fs::DirBuilder::new().mode(OWN_DIRECTORY_MODE).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            match &self.identity {
                Some(identity) => chown(path, Some(identity.uid.as_raw()), Some(identity.gid.as_raw())),
                None => Ok(()),
            }
        };
        make().with_context(|| format!("making {}", path.display()))
    }

    /// Gives a file below the home to the user that the daemon becomes, if it exists and we are root.
    pub fn own_file(&self, path: &str) -> anyhow::Result<()> {
        let Some(identity) = &self.identity else { return Ok(()) };
        match chown(path, Some(identity.uid.as_raw()), Some(identity.gid.as_raw())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("changing the owner of {path}"))
            }
            _ => Ok(()),
        }
    }

    /// Becomes the daemon's own user, if it was started as root, and keeps access to the listed files only. Files that
    /// needed more rights must be open by now, sockets bound, and no other thread be running.
    ///
    /// What every daemon needs (configuration, logs, pid file, sockets) is added to the list.
    pub fn drop_privileges(&self, access: FileAccess) -> anyhow::Result<()> {
        match &self.identity {
            Some(identity) => {
                privileges::drop_to(identity)
                    .map_err(|error| anyhow::Error::new(error).context(Exit::new(NOT_PERMITTED, "becoming a user")))?;
                tracing::info!(user = identity.name, "privileges are dropped");
            }
            None => {
                if geteuid().is_root() {
                    tracing::warn!(
                        "running as root: there is no user muster-{}, and the home belongs to root",
                        self.daemon
                    );
                }
                privileges::forbid_new().context("dropping privileges")?;
            }
        }
        if !self.sandboxed {
            tracing::warn!("file access is not restricted: --no-sandbox");
            return Ok(());
        }
        let mut access = access
            .read(["etc"])
            .write([paths::RUN, paths::MUSTER_SOCKETS, "queue/sockets"]);
        if let Some(file) = &self.reloader.config {
            access = access.read([file]);
        }
        if let Some(directory) = &self.log_directory {
            access = access.write([directory]);
        }
        sandbox::restrict(&access).context("restricting file access")
    }

    fn socket_permissions(&self) -> Permissions {
        Permissions {
            mode: SOCKET_MODE,
            user: self.identity.as_ref().map(|identity| identity.uid),
            group: self.identity.as_ref().map(|identity| identity.gid),
        }
    }
}

/// Reads the configuration again, from the same file as at the start.
#[derive(Clone, Debug)]
pub struct Reloader {
    home: PathBuf,
    config: Option<PathBuf>,
}

impl Reloader {
    /// The whole configuration anew, its warnings logged; or all its faults as text, and nothing has changed.
    pub fn load(&self) -> Result<Settings, String> {
        let loaded = self.load_all()?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        Ok(loaded.settings)
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self {
            home: PathBuf::from("/"),
            config: None,
        }
    }

    fn load_all(&self) -> Result<Loaded, String> {
        muster_config::load(&self.home, self.config.as_deref()).map_err(|faults| faults.to_string())
    }
}

/// A file named on the command line: relative to where the operator is if it is there, else to the home.
fn from_here_or_home(file: &Path, home: &Path) -> PathBuf {
    file.canonicalize().unwrap_or_else(|_| home.join(file))
}

/// `<daemon>.debug` of the internal options.
fn configured_debug(daemon: &str, settings: &Settings) -> u8 {
    let levels = &settings.internal.debug;
    match daemon {
        "authd" => levels.authd,
        "remoted" => levels.remoted,
        "natsd" => levels.natsd,
        "keypolld" => levels.keypolld,
        "agentlessd" => levels.agentlessd,
        _ => 0,
    }
}

fn log_file(argument: Option<&Path>, daemon: &str) -> PathBuf {
    argument.map_or_else(|| Path::new(paths::LOGS).join(format!("{daemon}.log")), Path::to_owned)
}

/// `var/run`, `logs` and `queue/muster`, which a stock home may lack. What is there already keeps its owner and mode.
fn make_shared_directories(home: &Path) -> anyhow::Result<()> {
    for path in [paths::RUN, paths::LOGS, paths::MUSTER_SOCKETS].map(Path::new) {
        let make = || {
            make_parents(home, path)?;
            if make_for_home(home, path)? {
                fs::set_permissions(path, fs::Permissions::from_mode(SHARED_DIRECTORY_MODE))?;
            }
            Ok::<_, io::Error>(())
        };
        make().with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn make_parents(home: &Path, path: &Path) -> io::Result<()> {
    let parents = path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
    for parent in parents.collect::<Vec<_>>().into_iter().rev() {
        make_for_home(home, parent)?;
    }
    Ok(())
}

/// Makes a directory that belongs to whom the home belongs to. Whether it was missing.
fn make_for_home(home: &Path, path: &Path) -> io::Result<bool> {
    match fs::DirBuilder::new().mode(OWN_DIRECTORY_MODE).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        made => made?,
    }
    if geteuid().is_root() {
        let home = home.metadata()?;
        chown(path, Some(home.uid()), Some(home.gid()))?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_file_without_a_name_lies_in_the_logs() {
        assert_eq!(log_file(None, "authd"), Path::new("logs/authd.log"));
        assert_eq!(log_file(Some(Path::new("/tmp/x")), "authd"), Path::new("/tmp/x"));
    }

    #[test]
    fn configuration_that_is_not_here_is_looked_for_in_the_home() {
        let home = Path::new("/some/home");
        assert_eq!(
            from_here_or_home(Path::new("etc/other.conf"), home),
            Path::new("/some/home/etc/other.conf")
        );
        let here = tempfile::NamedTempFile::new().expect("file");
        assert_eq!(
            from_here_or_home(here.path(), home),
            here.path().canonicalize().expect("canonical")
        );
    }
}

//! A real database that holds agents' keys: MariaDB, PostgreSQL or SQLite, as private processes in a folder of their own,
//! reached over Unix sockets only. And the shipped scripts, set up to read it.

use std::{
    env,
    ffi::OsString,
    fs,
    io::Write,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use tempfile::TempDir;

use crate::{agent::Key, home::Home, wait};

/// How long a server may take to come up: a first start writes a lot.
const PATIENCE: Duration = Duration::from_secs(60);
/// PostgreSQL does not run as root; this is nobody.
const NOBODY: u32 = 65_534;
/// The names that the documentation uses.
const NAME: &str = "your_database";

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// MariaDB, which stands for MySQL too.
    MariaDb,
    /// PostgreSQL.
    Postgres,
    /// A file.
    Sqlite,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::MariaDb, Self::Postgres, Self::Sqlite];

    fn word(self) -> &'static str {
        match self {
            Self::MariaDb => "mariadb",
            Self::Postgres => "postgresql",
            Self::Sqlite => "sqlite",
        }
    }
}

/// A database with the documented table, empty at first. Its server ends when it is dropped.
pub struct KeysDatabase {
    kind: Kind,
    folder: TempDir,
    server: Option<Child>,
}

impl KeysDatabase {
    /// Makes it and starts it.
    pub fn start(kind: Kind) -> Result<Self> {
        let mut database = Self {
            kind,
            folder: tempfile::Builder::new().prefix("muster-db-").tempdir()?,
            server: None,
        };
        database.initialize()?;
        database.restart()?;
        database.create()?;
        Ok(database)
    }

    /// Where the server listens: MariaDB's socket, PostgreSQL's folder, or the file.
    pub fn place(&self) -> PathBuf {
        match self.kind {
            Kind::MariaDb => self.folder.path().join("server.sock"),
            Kind::Postgres => self.folder.path().to_owned(),
            Kind::Sqlite => self.folder.path().join("agents.db"),
        }
    }

    /// Puts agents in.
    pub fn insert(&self, agents: &[Key]) -> Result<()> {
        let key = self.key_column();
        let rows: Vec<_> = agents
            .iter()
            .map(|agent| {
                let Key { id, name, address, key } = agent;
                format!("('{id}', '{name}', '{address}', '{key}')")
            })
            .collect();
        for some in rows.chunks(1000) {
            self.execute(&format!(
                "INSERT INTO agent (id, name, ip, {key}) VALUES {};",
                some.join(", ")
            ))?;
        }
        Ok(())
    }

    /// Gives an agent another key.
    pub fn change_key(&self, id: &str, new: &str) -> Result<()> {
        let key = self.key_column();
        self.execute(&format!("UPDATE agent SET {key} = '{new}' WHERE id = '{id}';"))
    }

    /// Runs statements as the administrator.
    pub fn execute(&self, statements: &str) -> Result<()> {
        let place = self.place();
        let mut command = match self.kind {
            Kind::MariaDb => {
                let mut command = Command::new(program("mariadb")?);
                command
                    .args(["--no-defaults", "--user=root", "--batch"])
                    .arg(format!("--socket={}", place.display()))
                    .arg("mysql");
                command
            }
            Kind::Postgres => {
                let mut command = Command::new(program("psql")?);
                command
                    .args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--username=keys"])
                    .arg("--host")
                    .arg(&place)
                    .args(["--dbname", "postgres"]);
                command
            }
            Kind::Sqlite => {
                let mut command = Command::new(program("sqlite3")?);
                command.arg("-bail").arg(&place);
                command
            }
        };
        let text = match self.kind {
            Kind::MariaDb => format!("CREATE DATABASE IF NOT EXISTS {NAME}; USE {NAME};\n{statements}"),
            Kind::Postgres | Kind::Sqlite => statements.to_owned(),
        };
        run(command.env("LD_LIBRARY_PATH", library_path()), text.as_bytes())
    }

    /// Stops the server in the middle of whatever it does; a file is moved away.
    pub fn stop(&mut self) -> Result<()> {
        match self.server.take() {
            // SIGKILL would leave a connection's own process to answer for a moment more.
            Some(mut server) if self.kind == Kind::Postgres => {
                kill(Pid::from_raw(server.id().cast_signed()), Signal::SIGQUIT)?;
                server.wait()?;
                Ok(())
            }
            Some(mut server) => {
                server.kill()?;
                server.wait()?;
                Ok(())
            }
            None => Ok(fs::rename(self.place(), self.folder.path().join("away"))?),
        }
    }

    /// Starts it again.
    pub fn restart(&mut self) -> Result<()> {
        let folder = self.folder.path();
        let mut command = match self.kind {
            Kind::MariaDb => {
                let mut command = Command::new(program("mariadbd")?);
                command
                    .args([
                        "--no-defaults",
                        "--skip-networking",
                        "--innodb-flush-log-at-trx-commit=2",
                    ])
                    .arg(format!("--basedir={}", base("share/mysql")?.display()))
                    .arg(format!("--datadir={}", folder.join("data").display()))
                    .arg(format!("--socket={}", self.place().display()))
                    .arg(format!("--pid-file={}", folder.join("server.pid").display()))
                    .args(geteuid().is_root().then_some("--user=root"));
                command
            }
            Kind::Postgres => {
                let mut command = as_nobody(program("postgres")?);
                command.arg("-D").arg(folder.join("data")).arg("-k").arg(folder).args([
                    "-c",
                    "listen_addresses=",
                    "-c",
                    "fsync=off",
                ]);
                command
            }
            Kind::Sqlite => {
                let away = folder.join("away");
                return if away.exists() {
                    Ok(fs::rename(away, self.place())?)
                } else {
                    Ok(())
                };
            }
        };
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(folder.join("server.log"))?;
        let child = command
            .env("LD_LIBRARY_PATH", library_path())
            .env("TMPDIR", folder)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {:?}", self.kind))?;
        self.server = Some(child);
        wait::until_true("the database answers", PATIENCE, || {
            if let Some(server) = &mut self.server
                && let Some(status) = server.try_wait()?
            {
                bail!("the server ended at once ({status}):\n{}", self.log());
            }
            Ok(self.execute("SELECT 1;").is_ok())
        })
        .with_context(|| self.log())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    fn initialize(&self) -> Result<()> {
        let folder = self.folder.path();
        let data = folder.join("data");
        match self.kind {
            Kind::MariaDb => {
                let mut command = Command::new(program("mariadb-install-db")?);
                command
                    .args([
                        "--no-defaults",
                        "--auth-root-authentication-method=normal",
                        "--skip-test-db",
                    ])
                    .arg(format!("--basedir={}", base("share/mysql")?.display()))
                    .arg(format!("--datadir={}", data.display()))
                    .args(geteuid().is_root().then_some("--user=root"));
                // Another one that starts would clear away what this one keeps in the common folder.
                command.env("TMPDIR", folder);
                run(command.env("LD_LIBRARY_PATH", library_path()), b"")
            }
            Kind::Postgres => {
                if geteuid().is_root() {
                    chown(folder, Some(NOBODY), Some(NOBODY))?;
                }
                // The scripts run as another user, and reach the socket in it.
                fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
                let mut command = as_nobody(program("initdb")?);
                command.arg("--pgdata").arg(&data).args([
                    "--username=keys",
                    "--auth=trust",
                    "--encoding=UTF8",
                    "--no-locale",
                    "--no-sync",
                ]);
                let share = base("share/postgresql")?.join("share/postgresql");
                if let Some(version) = fs::read_dir(share)?
                    .flatten()
                    .find(|entry| entry.path().join("postgres.bki").exists())
                {
                    command.arg("-L").arg(version.path());
                }
                run(command.env("LD_LIBRARY_PATH", library_path()).current_dir(folder), b"")
            }
            Kind::Sqlite => Ok(()),
        }
    }

    /// The documented table, and the user of the documented examples, who may read it.
    fn create(&self) -> Result<()> {
        let key = self.key_column();
        let table = format!(
            "CREATE TABLE agent (id VARCHAR(8) PRIMARY KEY, name VARCHAR(128), ip VARCHAR(19), {key} VARCHAR(128));"
        );
        let user = match self.kind {
            Kind::MariaDb => {
                format!(
                    "CREATE USER 'user'@'localhost' IDENTIFIED BY 'secret'; GRANT SELECT ON {NAME}.agent TO 'user'@'localhost';"
                )
            }
            Kind::Postgres => {
                "CREATE ROLE \"user\" LOGIN PASSWORD 'secret'; GRANT SELECT ON agent TO \"user\";".to_owned()
            }
            Kind::Sqlite => String::new(),
        };
        self.execute(&format!("{table}\n{user}"))
    }

    fn key_column(&self) -> &'static str {
        if self.kind == Kind::MariaDb { "`key`" } else { "\"key\"" }
    }
}

impl Drop for KeysDatabase {
    fn drop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        // A quick good end first: PostgreSQL leaves shared memory behind otherwise.
        if let Ok(pid) = i32::try_from(server.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
        }
        let _ = wait::until_true("the server ends", Duration::from_secs(2), || {
            Ok(server.try_wait()?.is_some())
        });
        let _ = server.kill();
        let _ = server.wait();
    }
}

/// The shipped scripts in a home, reading a database.
pub struct Scripts {
    folder: PathBuf,
    wrapper: PathBuf,
}

impl Scripts {
    /// Copies them into `etc/keypoll` and writes their configurations.
    pub fn install(home: &Home, database: &KeysDatabase) -> Result<Self> {
        let folder = home.path().join("etc/keypoll");
        fs::create_dir_all(&folder)?;
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../etc/keypoll");
        for script in ["agent_key_pull.py", "agent_key_pull.sh"] {
            fs::copy(shipped.join(script), folder.join(script))?;
        }
        let (kind, place) = (database.kind, database.place());
        let place = place.display();
        let (ini, conf) = match kind {
            Kind::MariaDb => {
                let client = folder.join("client.cnf");
                fs::write(
                    &client,
                    format!("[client]\nuser=user\npassword=secret\nsocket={place}\n"),
                )?;
                (
                    format!("unix_socket = {place}\ndatabase = {NAME}\nuser = user\npassword = secret"),
                    format!("database={NAME}\nclient=mariadb\nclient_config={}", client.display()),
                )
            }
            Kind::Postgres => (
                format!("host = {place}\ndatabase = postgres\nuser = user\npassword = secret"),
                format!("database=postgres\nexport PGHOST={place} PGUSER=user PGPASSWORD=secret"),
            ),
            Kind::Sqlite => (format!("database = {place}"), format!("database={place}")),
        };
        let word = kind.word();
        fs::write(
            folder.join("agent_key_pull.ini"),
            format!("[database]\ntype = {word}\n{ini}\n"),
        )?;
        fs::write(folder.join("agent_key_pull.conf"), format!("type={word}\n{conf}\n"))?;
        Ok(Self {
            wrapper: wrapper(&folder)?,
            folder,
        })
    }

    /// The command line of the Python script, with these arguments in front.
    pub fn python(&self, arguments: &str) -> String {
        let script = self.folder.join("agent_key_pull.py");
        format!(
            "{} /usr/bin/python3 {} {arguments}",
            self.wrapper.display(),
            script.display()
        )
    }

    /// The command line of the shell script.
    pub fn shell(&self) -> String {
        format!(
            "{} {}",
            self.wrapper.display(),
            self.folder.join("agent_key_pull.sh").display()
        )
    }

    /// Starts the Python script as a service on this socket.
    pub fn listen(&self, socket: &Path) -> Result<Service> {
        let mut command = crate::daemon::tied(&self.wrapper);
        let child = command
            .arg("/usr/bin/python3")
            .arg(self.folder.join("agent_key_pull.py"))
            .arg("--listen")
            .arg(socket)
            .stdin(Stdio::null())
            .spawn()
            .context("starting the service")?;
        let service = Service(child);
        wait::until_true("the service listens", PATIENCE, || Ok(socket.exists()))?;
        Ok(service)
    }
}

/// A running service; it ends when dropped.
pub struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that runs another one with the unpacked packages around it: keypolld gives its programs no environment.
pub fn wrapper(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("with-tools");
    let tools = tools();
    let perl: Vec<_> = fs::read_dir(tools.join("usr/lib/x86_64-linux-gnu/perl5"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().display().to_string())
        .collect();
    let text = format!(
        "#!/bin/sh\nexport PATH=\"{0}/usr/bin:$PATH\" PYTHONPATH={0}/usr/lib/python3/dist-packages PERL5LIB={1}\n\
         export LD_LIBRARY_PATH={2}\nexec \"$@\"\n",
        tools.display(),
        perl.join(":"),
        library_path().display(),
    );
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// A file below one of the unpacked packages or the system, by a folder and the end of its name.
pub fn installed(folder: &str, name: &str) -> Result<PathBuf> {
    [tools(), PathBuf::from("/")]
        .iter()
        .flat_map(|root| fs::read_dir(root.join(folder)).into_iter().flatten().flatten())
        .map(|entry| entry.path().join(name))
        .find(|path| path.exists())
        .with_context(|| missing(name))
}

/// A program of a package, in the `PATH` or unpacked.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = [PathBuf::from("/"), tools()].into_iter().flat_map(|root| {
        let versions = fs::read_dir(root.join("usr/lib/postgresql"))
            .into_iter()
            .flatten()
            .flatten();
        let versions: Vec<_> = versions.map(|entry| entry.path().join("bin")).collect();
        [root.join("usr/sbin"), root.join("usr/bin")]
            .into_iter()
            .chain(versions)
    });
    env::split_paths(&path)
        .chain(places)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .with_context(|| missing(name))
}

fn missing(name: &str) -> String {
    format!("{name} is missing: run `cargo xtask tools` first")
}

/// `/usr`, or where the packages were unpacked, whichever has this.
fn base(share: &str) -> Result<PathBuf> {
    [tools().join("usr"), PathBuf::from("/usr")]
        .into_iter()
        .find(|base| base.join(share).exists())
        .with_context(|| missing(share))
}

fn library_path() -> PathBuf {
    tools().join("usr/lib/x86_64-linux-gnu")
}

/// Where `cargo xtask tools` unpacks packages.
fn tools() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
    target.canonicalize().unwrap_or(target).join("tools")
}

/// A command that runs as nobody when we are root.
fn as_nobody(program: PathBuf) -> Command {
    let program: OsString = program.canonicalize().unwrap_or(program).into();
    let mut command = Command::new(program);
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn run(command: &mut Command, input: &[u8]) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {:?}", command.get_program()))?;
    // A client that ends early says why on standard error.
    let _ = child.stdin.take().context("no standard input")?.write_all(input);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{:?} ended with {}:\n{}{}",
        command.get_program(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

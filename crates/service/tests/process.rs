//! One real process: this test program runs itself again as a small daemon, and is looked at from outside.

#![expect(clippy::panic, reason = "helpers of tests fail as tests do")]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use muster_proto::ipc::control::{DaemonStatus, Request, Response};
use muster_service::{
    Common, FileAccess, Reloader, Startup,
    client::Client,
    control::{Handler, StatusSource},
    exit, pid_file, sandbox,
};
use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::{Pid, User, geteuid},
};

/// The arguments of the daemon, one a line. Tests see it unset.
const ARGUMENTS: &str = "EXAMPLED_ARGUMENTS";
/// A path that the daemon tries to read after it has dropped its rights; the outcome is in its status.
const FORBIDDEN: &str = "EXAMPLED_FORBIDDEN";

/// Makes the test program run the daemon and print nothing in front of what the daemon says.
const HARNESS: [&str; 6] = [
    "--exact",
    "exampled",
    "--nocapture",
    "--test-threads=1",
    "--quiet",
    "--",
];

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    common: Common,
}

struct Exampled {
    status: StatusSource,
    reloader: Reloader,
}

impl Handler for Exampled {
    async fn status(&self) -> DaemonStatus {
        let groups = nix::unistd::getgroups().map_or(usize::MAX, |groups| groups.len());
        let read = env::var_os(FORBIDDEN).map(fs::read);
        let facts = vec![
            ("uid".to_owned(), geteuid().to_string()),
            ("groups".to_owned(), groups.to_string()),
            (
                "read".to_owned(),
                read.map_or("untried", |read| if read.is_ok() { "done" } else { "denied" })
                    .to_owned(),
            ),
        ];
        DaemonStatus {
            facts,
            ..self.status.status()
        }
    }

    async fn reload(&self) -> Result<String, String> {
        self.reloader.load().map(|_| "all of it".to_owned())
    }
}

/// The daemon. As a test it does nothing.
#[test]
fn exampled() {
    let Some(arguments) = env::var(ARGUMENTS).ok() else {
        return;
    };
    // What a daemon adds to its own arguments when it goes into the background stands behind the test program's.
    let added = env::args().skip_while(|argument| argument != "--").skip(1);
    let arguments = arguments.lines().map(str::to_owned).chain(added);
    let cli = Cli::parse_from(std::iter::once("muster-exampled".to_owned()).chain(arguments));
    let code = exit::report("muster-exampled", daemon(&cli));
    let number = (0..=u8::MAX).find(|number| ExitCode::from(*number) == code);
    std::process::exit(number.map_or(1, i32::from));
}

fn daemon(cli: &Cli) -> anyhow::Result<ExitCode> {
    let mut startup = Startup::begin("exampled", &cli.common)?;
    let control = startup.control_socket()?;
    startup.own_directory("queue/example")?;
    startup.drop_privileges(FileAccess::new().write(["queue/example"]))?;
    fs::write("queue/example/mine", "x")?;
    startup.run(async move |running| {
        let handler = Exampled {
            status: running.status_source(),
            reloader: running.reloader(),
        };
        running.serve_control(control, Arc::new(handler))
    })
}

/// A home with an empty configuration.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("directory");
        fs::create_dir(home.path().join("etc")).expect("created");
        fs::write(home.path().join("etc/ossec.conf"), "<ossec_config>\n</ossec_config>\n").expect("written");
        Self(home)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let home = self.0.path().to_str().expect("text");
        let mut command = Command::new(env::current_exe().expect("own program"));
        command.args(HARNESS);
        command.env(ARGUMENTS, [&["--home", home], arguments].concat().join("\n"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// A daemon that says it is ready.
    fn start(&self, arguments: &[&str]) -> Running {
        self.start_with(self.command(&[&["--detached"], arguments].concat()))
    }

    fn start_with(&self, mut command: Command) -> Running {
        let mut child = command.spawn().expect("started");
        let mut said = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            if said.read_line(&mut line).expect("read") == 0 {
                let mut error = String::new();
                child
                    .stderr
                    .take()
                    .expect("piped")
                    .read_to_string(&mut error)
                    .expect("read");
                panic!("it ended: {error}");
            }
        }
        Running { child, _said: said }
    }

    fn status(&self) -> DaemonStatus {
        let path = self.path("queue/muster/exampled.ctl");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        let answer = runtime.block_on(async {
            let mut client = Client::connect(&path, "test", Duration::from_secs(10)).await?;
            client.ask(&Request::Status).await
        });
        let Response::Status(status) = answer.expect("answered") else {
            panic!("no status")
        };
        *status
    }

    fn names_in(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).expect("directory");
        entries
            .map(|entry| entry.expect("entry").file_name().into_string().expect("text"))
            .collect()
    }
}

struct Running {
    child: Child,
    _said: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("sent");
    }

    fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.child.wait().expect("ended")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn fact<'a>(status: &'a DaemonStatus, name: &str) -> &'a str {
    status
        .facts
        .iter()
        .find(|(known, _)| known == name)
        .map_or("absent", |(_, value)| value)
}

#[test]
fn daemon_serves_when_it_says_so_and_leaves_nothing_behind_when_it_is_stopped() {
    let home = Home::new();
    let running = home.start(&[]);
    let status = home.status();
    assert_eq!((status.daemon.as_str(), status.pid), ("exampled", running.child.id()));
    assert!(status.ready);
    let pid_file = format!("muster-exampled-{}.pid", status.pid);
    let metadata = fs::metadata(home.path("var/run").join(&pid_file)).expect("pid file");
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    assert!(pid_file::is_alive(status.pid));
    assert!(running.stop().success());
    assert_eq!(home.names_in("var/run"), ["exampled.lock"]);
    assert!(home.names_in("queue/muster").is_empty());
}

#[test]
fn daemon_ends_at_sigterm_even_if_whoever_started_it_had_blocked_that() {
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTERM);
    blocked.thread_block().expect("blocked");
    let home = Home::new();
    let running = home.start(&[]);
    blocked.thread_unblock().expect("unblocked");
    assert!(running.stop().success());
}

#[test]
fn second_instance_is_told_who_is_first() {
    let home = Home::new();
    let running = home.start(&[]);
    let second = home.command(&[]).output().expect("ran");
    assert_eq!(second.status.code(), Some(i32::from(exit::FAILED)));
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(
        error.contains(&format!("already running in this home (pid {})", running.child.id())),
        "{error}"
    );
    assert!(home.status().ready, "the first one goes on");
}

#[test]
fn killed_daemon_is_replaced_without_a_word_about_what_it_left() {
    let home = Home::new();
    let running = home.start(&[]);
    running.signal(Signal::SIGKILL);
    drop(running);
    assert_eq!(home.names_in("queue/muster"), ["exampled.ctl"]);
    let running = home.start(&[]);
    assert_eq!(home.status().pid, running.child.id());
    let pid_files = home
        .names_in("var/run")
        .into_iter()
        .filter(|name| name.ends_with(".pid"));
    assert_eq!(pid_files.count(), 1, "the file of the dead process is gone");
}

#[test]
fn test_of_a_good_configuration_ends_with_0_and_touches_nothing() {
    let home = Home::new();
    let output = home.command(&["-t"]).output().expect("ran");
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(home.names_in("."), ["etc"]);
}

#[test]
fn bad_configuration_ends_with_78_and_its_place() {
    let home = Home::new();
    fs::write(
        home.path("etc/ossec.conf"),
        "<ossec_config>\n  <remote><port>x</port></remote>\n</ossec_config>\n",
    )
    .expect("written");
    for arguments in [&["-t"][..], &[]] {
        let output = home.command(arguments).output().expect("ran");
        assert_eq!(output.status.code(), Some(i32::from(exit::BAD_CONFIG)));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("etc/ossec.conf:2:"), "{error}");
    }
}

#[test]
fn missing_home_is_an_error_with_its_cure() {
    let home = Home::new();
    let mut command = home.command(&[]);
    command.env(ARGUMENTS, "--home\n/nonexistent/muster");
    let output = command.output().expect("ran");
    assert_eq!(output.status.code(), Some(i32::from(exit::FAILED)));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot use the home /nonexistent/muster"));
}

#[test]
fn hang_up_reopens_the_log_and_survives_a_bad_configuration() {
    let home = Home::new();
    let running = home.start(&["--log-file"]);
    fs::rename(home.path("logs/exampled.log"), home.path("logs/old")).expect("rotated");
    fs::write(home.path("etc/ossec.conf"), "<ossec_config>").expect("written");
    running.signal(Signal::SIGHUP);
    // The signal was handled before the answer: both come to the same loop, the signal first.
    let log = wait_for(|| {
        fs::read_to_string(home.path("logs/exampled.log"))
            .ok()
            .filter(|log| log.ends_with('\n'))
    });
    assert!(log.contains("the old one stays in force"), "{log}");
    assert!(home.status().ready);
    assert!(running.stop().success());
}

#[test]
fn only_listed_files_are_within_reach() {
    if !sandbox::is_supported() {
        muster_test_skip::skipped("this kernel has no Landlock");
        return;
    }
    let (home, other) = (Home::new(), tempfile::NamedTempFile::new().expect("file"));
    let mut command = home.command(&["--detached"]);
    command.env(FORBIDDEN, other.path());
    let running = home.start_with(command);
    assert_eq!(fact(&home.status(), "read"), "denied");
    drop(running);
    let mut command = home.command(&["--detached", "--no-sandbox"]);
    command.env(FORBIDDEN, other.path());
    let _running = home.start_with(command);
    assert_eq!(fact(&home.status(), "read"), "done");
}

#[test]
fn started_as_root_it_becomes_the_owner_of_the_home_for_good() {
    if !geteuid().is_root() {
        muster_test_skip::skipped("only root can become somebody else");
        return;
    }
    let home = Home::new();
    let give = |path: &Path| chown(path, Some(12_345), Some(12_346)).expect("given");
    for path in [".", "etc", "etc/ossec.conf"] {
        give(&home.path(path));
    }
    fs::create_dir_all(home.path("var/run")).expect("created");
    give(&home.path("var/run"));
    let running = home.start(&[]);
    let status = home.status();
    assert_eq!((fact(&status, "uid"), fact(&status, "groups")), ("12345", "0"));
    let socket = fs::metadata(home.path("queue/muster/exampled.ctl")).expect("socket");
    assert_eq!(
        (socket.uid(), socket.gid(), socket.mode() & 0o777),
        (12_345, 12_346, 0o660)
    );
    let own = fs::metadata(home.path("queue/example/mine")).expect("file");
    assert_eq!((own.uid(), own.mode() & 0o777), (12_345, 0o640));
    assert!(running.stop().success());
}

#[test]
fn supervised_daemon_ends_when_its_supervisor_is_killed() {
    let home = Home::new();
    let daemon = home.command(&["--supervised"]);
    // The supervisor: a shell that starts the daemon and waits.
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", "\"$@\" & wait", "sh"])
        .arg(daemon.get_program())
        .args(daemon.get_args());
    shell.envs(daemon.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut shell = shell
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let pid = wait_for(|| {
        let names = if home.path("var/run").is_dir() {
            home.names_in("var/run")
        } else {
            Vec::new()
        };
        names.iter().find_map(|name| {
            name.strip_prefix("muster-exampled-")?
                .strip_suffix(".pid")?
                .parse()
                .ok()
        })
    });
    let daemon = Background(pid);
    shell.kill().expect("killed");
    shell.wait().expect("ended");
    wait_for(|| (!pid_file::is_alive(pid)).then_some(()));
    std::mem::forget(daemon);
}

#[test]
fn under_a_stock_name_it_goes_into_the_background_with_stock_manners() {
    let home = Home::new();
    fs::create_dir(home.path("bin")).expect("created");
    let program = home.path("bin/ossec-exampled");
    std::os::unix::fs::symlink(env::current_exe().expect("own program"), &program).expect("linked");
    // As root, and on a host that has the stock users, it would become one of them.
    let user = User::from_uid(geteuid()).expect("read").expect("known").name;
    let output = Command::new(&program)
        .args(HARNESS)
        .env(ARGUMENTS, format!("--user\n{user}"))
        .stdin(Stdio::null())
        .output()
        .expect("it closes what it was started with");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status = home.status();
    let running = Background(status.pid);
    let pid_file = home.path("var/run").join(format!("ossec-exampled-{}.pid", status.pid));
    assert_eq!(
        fs::read_to_string(pid_file).expect("pid file"),
        format!("{}\n", status.pid)
    );
    let name = fs::read_to_string(format!("/proc/{}/comm", status.pid)).expect("process");
    assert!(name.contains("ossec"), "stock scripts look for it: {name}");
    let log = fs::read_to_string(home.path("logs/ossec.log")).expect("log");
    assert!(
        log.lines()
            .any(|line| line.contains(" ossec-exampled: INFO: ossec-exampled is ready")),
        "{log}"
    );
    drop(running);
}

#[test]
fn under_a_stock_name_a_failed_start_is_told_to_the_script() {
    let home = Home::new();
    fs::create_dir(home.path("bin")).expect("created");
    let program = home.path("bin/wazuh-exampled");
    std::os::unix::fs::symlink(env::current_exe().expect("own program"), &program).expect("linked");
    fs::write(home.path("etc/ossec.conf"), "<ossec_config>").expect("written");
    // As root, and on a host that has the stock users, it would become one of them.
    let user = User::from_uid(geteuid()).expect("read").expect("known").name;
    let output = Command::new(&program)
        .args(HARNESS)
        .env(ARGUMENTS, format!("--user\n{user}"))
        .output()
        .expect("ran");
    assert_eq!(output.status.code(), Some(i32::from(exit::BAD_CONFIG)));
    assert!(String::from_utf8_lossy(&output.stderr).contains("etc/ossec.conf"));
}

/// A process that is not our child.
struct Background(u32);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.cast_signed()), Signal::SIGTERM);
        wait_for(|| (!pid_file::is_alive(self.0)).then_some(()));
    }
}

/// For what only the file system tells.
fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "waited in vain");
        std::thread::yield_now();
    }
}

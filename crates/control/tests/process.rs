//! The real program, against daemons that are shell scripts (for starting and stopping) or tasks of the test (for
//! asking).

#![expect(clippy::panic, reason = "helpers of tests fail as tests do")]

#[path = "process/fake.rs"]
mod fake;
#[path = "process/home.rs"]
mod home;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::Stdio,
};

use fake::{FakeAuthd, FakeDaemon};
use home::{Home, exit_code, stderr, stdout};
use muster_proto::agent::AgentStatus;
use muster_service::{exit, pid_file};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// A daemon that serves, as far as whoever starts it can see, until it is told to stop.
const GOOD: &str = r#"#!/bin/sh
trap 'rm -f "$2/var/run/${0##*/}-$$.pid"; echo "stopped" >> "$2/log-of-${0##*/}"; exit 0' TERM
home=
previous=
for argument in "$@"; do
    if [ "$previous" = --home ]; then home=$argument; fi
    previous=$argument
done
set -- x "$home"
echo $$ > "$home/var/run/${0##*/}-$$.pid"
echo ready
echo "words of ${0##*/}" >&2
while :; do sleep 0.05; done
"#;

/// A daemon that does not like its configuration.
const BAD: &str = "#!/bin/sh\necho 'the cat sat on the configuration' >&2\nexit 78\n";

fn json(home: &Home, arguments: &[&str]) -> Value {
    let output = home.run(&[arguments, &["--output", "json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)))
}

#[test]
fn daemons_that_do_not_run_are_unreachable() {
    let home = Home::new();
    for arguments in [
        &["agent", "list"][..],
        &["events"],
        &["reload"],
        &["agent", "show", "001"],
        &["agent", "add", "x"],
    ] {
        let output = home.run(arguments);
        assert_eq!(
            exit_code(&output),
            exit::UNREACHABLE,
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains("does not run in this home"),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn status_tells_stopped_daemons_with_code_3() {
    let home = Home::new();
    let output = home.run(&["status"]);
    assert_eq!(exit_code(&output), exit::UNREACHABLE);
    assert_eq!(stdout(&output).lines().count(), 4, "{}", stdout(&output));
    let status = json(&home, &["status"]);
    let daemons = status["daemons"].as_array().expect("array");
    let states: Vec<_> = daemons
        .iter()
        .map(|daemon| (daemon["daemon"].as_str(), daemon["state"].as_str()))
        .collect();
    let stopped = |name| (Some(name), Some("stopped"));
    assert_eq!(
        states,
        [
            stopped("natsd"),
            stopped("authd"),
            stopped("keypolld"),
            stopped("remoted")
        ]
    );
}

#[test]
fn start_waits_until_ready_and_stop_until_gone() {
    let home = Home::new();
    home.install("muster-natsd", GOOD);
    home.install("muster-authd", GOOD);
    let output = home.run(&["start", "authd", "natsd"]);
    assert_eq!(exit_code(&output), exit::DONE, "{}", stderr(&output));
    assert_eq!(stderr(&output), "natsd: started\nauthd: started\n");
    let run = home.path("var/run");
    let pid = pid_file::running(&run, "muster-natsd").expect("it runs");
    let output = home.run(&["stop", "natsd", "authd"]);
    assert_eq!(stderr(&output), "authd: stopped\nnatsd: stopped\n");
    assert!(!pid_file::is_alive(pid));
    assert_eq!(pid_file::running(&run, "muster-authd"), None);
    assert_eq!(stderr(&home.run(&["stop", "natsd"])), "natsd: is not running\n");
}

#[test]
fn failed_start_shows_the_end_of_the_log_and_ends_with_the_daemons_code() {
    let home = Home::new();
    fs::write(home.path("logs/authd.log"), "yesterday's words\n").expect("written");
    home.install("muster-authd", BAD);
    let output = home.run(&["start", "authd"]);
    assert_eq!(exit_code(&output), exit::BAD_CONFIG);
    let said = stderr(&output);
    assert!(
        said.contains("the cat sat on the configuration") && !said.contains("yesterday"),
        "{said}"
    );
}

#[test]
fn missing_daemon_is_named_with_its_place() {
    let home = Home::new();
    let output = home.run(&["start", "remoted"]);
    assert_eq!(exit_code(&output), exit::FAILED);
    assert!(
        stderr(&output).contains("muster-remoted: the daemons must lie beside muster-control"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn daemon_without_its_block_is_left_out_with_a_word() {
    let home = Home::new();
    fs::write(home.path("etc/ossec.conf"), "<ossec_config></ossec_config>").expect("written");
    let output = home.run(&["start", "authd", "remoted"]);
    assert_eq!(exit_code(&output), exit::DONE, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("remoted: left out, there is no <remote>"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn run_prefixes_lines_restarts_what_fails_and_leaves_nothing_behind() {
    let home = Home::new();
    home.install("muster-natsd", GOOD);
    // It fails once and serves the second time.
    let flaky = GOOD.replacen(
        "home=\n",
        "home=\n[ -e \"$0.failed\" ] || { touch \"$0.failed\"; exit 9; }\n",
        1,
    );
    home.install("muster-authd", &flaky);
    let mut command = home.command(&["run", "natsd", "authd"]);
    let mut supervisor = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let lines = BufReader::new(supervisor.stdout.take().expect("piped")).lines();
    let mut seen = Vec::new();
    for line in lines.map_while(Result::ok) {
        seen.push(line);
        if seen.iter().any(|line| line == "natsd    | words of muster-natsd")
            && seen.iter().any(|line| line == "authd    | words of muster-authd")
        {
            break;
        }
    }
    let run = home.path("var/run");
    let pids = ["muster-natsd", "muster-authd"].map(|name| pid_file::running(&run, name).expect("it runs"));
    kill(Pid::from_raw(supervisor.id().cast_signed()), Signal::SIGTERM).expect("sent");
    assert!(supervisor.wait().expect("ended").success(), "{seen:?}");
    assert!(!pids.into_iter().any(pid_file::is_alive));
    for name in ["natsd", "authd"] {
        let said = fs::read_to_string(home.path(&format!("log-of-muster-{name}"))).expect("it ended in good order");
        assert_eq!(said, "stopped\n");
    }
}

#[test]
fn run_gives_up_on_a_bad_configuration_and_takes_the_others_along() {
    let home = Home::new();
    home.install("muster-natsd", GOOD);
    home.install("muster-authd", BAD);
    let output = home.run(&["run", "natsd", "authd"]);
    assert_eq!(exit_code(&output), exit::BAD_CONFIG, "{}", stderr(&output));
    assert_eq!(pid_file::running(&home.path("var/run"), "muster-natsd"), None);
}

#[test]
fn agent_list_turns_all_pages_and_prints_an_array() {
    let home = Home::new();
    let _remoted = FakeDaemon::remoted(&home, 1234);
    let agents = json(&home, &["agent", "list"]);
    let agents = agents.as_array().expect("array");
    assert_eq!(agents.len(), 1234);
    for field in ["id", "name", "ip", "status", "version", "last_heard"] {
        assert!(!agents[0][field].is_null(), "{field}");
    }
    assert_eq!((&agents[0]["id"], &agents[1233]["id"]), (&"001".into(), &"1234".into()));
    let output = home.run(&["agent", "list", "--status", "disconnected"]);
    let text = stdout(&output);
    assert!(text.starts_with("ID"), "{text}");
    let word = AgentStatus::Disconnected.as_str();
    assert!(
        text.lines().skip(1).all(|line| line.contains(word)) && text.lines().count() > 1,
        "{text}"
    );
}

#[test]
fn agent_show_of_a_stranger_fails() {
    let home = Home::new();
    let _remoted = FakeDaemon::remoted(&home, 3);
    assert_eq!(json(&home, &["agent", "show", "002"])["name"], "agent-2");
    let output = home.run(&["agent", "show", "7"]);
    assert_eq!(
        (exit_code(&output), stderr(&output).as_str()),
        (exit::FAILED, "muster-control: there is no agent 7\n")
    );
}

#[test]
fn reader_who_goes_early_is_no_error() {
    let home = Home::new();
    let _remoted = FakeDaemon::remoted(&home, 5000);
    let mut command = home.command(&["agent", "list"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ended");
    assert_eq!((exit_code(&output), stderr(&output).as_str()), (exit::DONE, ""));
}

#[test]
fn events_end_after_their_count_and_keep_their_bodies() {
    let home = Home::new();
    let _natsd = FakeDaemon::natsd(&home);
    let output = home.run(&["events", "--backlog", "5", "--count", "3", "--output", "json"]);
    assert_eq!(exit_code(&output), exit::DONE, "{}", stderr(&output));
    let text = stdout(&output);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].ends_with(r#""body":{"z":1,"a":1}}"#), "{}", lines[0]);
    let output = home.run(&["events", "--backlog", "2"]);
    assert_eq!(exit_code(&output), exit::UNREACHABLE, "the stream ended by itself");
}

#[test]
fn reload_passes_on_what_the_daemon_says() {
    let home = Home::new();
    let _remoted = FakeDaemon::remoted(&home, 0);
    let output = home.run(&["reload", "remoted"]);
    assert_eq!(
        (exit_code(&output), stderr(&output).as_str()),
        (exit::DONE, "remoted: reloaded, all of it\n")
    );
}

#[test]
fn agent_add_prints_the_id_and_the_key_only_when_asked() {
    let home = Home::new();
    let authd = FakeAuthd::start(&home);
    let output = home.run(&["agent", "add", "web-01", "--groups", "a,b"]);
    assert_eq!(
        (exit_code(&output), stdout(&output).as_str()),
        (exit::DONE, "001\n"),
        "{}",
        stderr(&output)
    );
    let output = home.run(&["agent", "add", "web-01", "--show-key"]);
    // echo -n '001 web-01 any 0123' | base64
    assert_eq!(stdout(&output), "001\nMDAxIHdlYi0wMSBhbnkgMDEyMw==\n");
    let output = home.run(&["agent", "remove", "001", "404"]);
    assert_eq!(exit_code(&output), exit::FAILED);
    assert_eq!(
        stderr(&output),
        "agent 001 is removed\ncannot remove agent 404: Agent ID not found (9011)\n"
    );
    let requests = authd.requests();
    assert_eq!(
        requests[0],
        r#"{"function":"add","arguments":{"name":"web-01","ip":"any","groups":"a,b"}}"#
    );
    assert_eq!(
        requests[2],
        r#"{"function":"remove","arguments":{"id":"001","purge":false}}"#
    );
}

#[test]
fn agent_add_refuses_a_name_that_no_agent_could_enroll_with() {
    let home = Home::new();
    let authd = FakeAuthd::start(&home);
    for name in ["bad/name", ".web", "a b", ""] {
        let output = home.run(&["agent", "add", name]);
        assert_eq!(exit_code(&output), exit::FAILED, "{name:?}");
        assert!(
            stderr(&output).contains("is no name for an agent: up to 128 of"),
            "{}",
            stderr(&output)
        );
    }
    assert_eq!(authd.requests().len(), 0);
}

#[test]
fn config_check_names_the_place_and_show_masks_secrets() {
    let home = Home::new();
    assert_eq!(exit_code(&home.run(&["config", "check"])), exit::DONE);
    let shown = home.run(&["config", "show"]);
    assert_eq!(exit_code(&shown), exit::DONE);
    fs::write(home.path("shown.conf"), &shown.stdout).expect("written");
    let again = home
        .command(&["config", "show", "shown.conf"])
        .current_dir(home.path("."))
        .output()
        .expect("ran");
    assert_eq!(stdout(&again), stdout(&shown), "what is shown reads back to the same");
    assert!(json(&home, &["config", "show"])["remotes"].is_array());
    fs::write(
        home.path("etc/ossec.conf"),
        "<ossec_config>\n<remote><port>x</port></remote></ossec_config>",
    )
    .expect("written");
    let output = home.run(&["config", "check"]);
    assert_eq!(exit_code(&output), exit::BAD_CONFIG);
    assert!(stderr(&output).contains("etc/ossec.conf:2:"), "{}", stderr(&output));
}

#[test]
fn cert_needs_no_home_and_overwrites_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let (cert, key) = (directory.path().join("c"), directory.path().join("k"));
    let make = || {
        let mut command = home::program();
        command
            .args(["cert", "--ecdsa", "--name", "m.example.org"])
            .arg("--out-cert")
            .arg(&cert)
            .arg("--out-key")
            .arg(&key);
        command.output().expect("ran")
    };
    assert_eq!(exit_code(&make()), exit::DONE);
    let before = fs::read(&key).expect("made");
    assert_eq!(exit_code(&make()), exit::FAILED);
    assert_eq!(fs::read(&key).expect("still there"), before);
}

#[test]
fn user_who_may_not_open_the_socket_gets_code_77() {
    if !nix::unistd::geteuid().is_root() {
        muster_test_skip::skipped("only root can become somebody else");
        return;
    }
    let home = Home::new();
    let _remoted = FakeDaemon::remoted(&home, 0);
    home.open_to_strangers();
    for arguments in [
        &["status", "remoted"][..],
        &["agent", "list"],
        &["reload", "remoted"],
        &["config", "check"],
    ] {
        let mut command = home.command(arguments);
        let output = command.uid(65_533).gid(65_533).output().expect("ran");
        assert_eq!(
            exit_code(&output),
            exit::NOT_PERMITTED,
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn hung_daemon_is_told_apart_from_a_stopped_one() {
    let home = Home::new();
    // It has bound its socket and never accepts.
    let _listener = std::os::unix::net::UnixListener::bind(home.path("queue/muster/remoted.ctl")).expect("bound");
    let output = home.run(&["status", "remoted"]);
    assert_eq!(exit_code(&output), exit::UNREACHABLE);
    assert!(stdout(&output).contains("does not answer"), "{}", stdout(&output));
}

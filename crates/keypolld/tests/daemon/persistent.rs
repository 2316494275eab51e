//! A program that keeps running.

use std::time::{Duration, Instant};

use crate::support::{FakeAuthd, Home, KEY, agent, is_alive, until};

/// Answers every request with an agent whose name has the process's id in it.
const ECHO: &str = "echo $$ >> started\nwhile read -r line; do\n  id=${line##*value\\\":\\\"}; id=${id%%\\\"*}\n  \
    echo \"$line\" >> asked\n  \
    printf '{\"error\":0,\"data\":{\"id\":\"%s\",\"name\":\"pid-%s\",\"ip\":\"any\",\"key\":\"k%s\"}}\\n' \"$id\" $$ \"$id\"\ndone";

fn configure(home: &Home, body: &str, options: &str) {
    let script = home.script("keys.sh", body);
    home.configure(&format!(
        "<exec_path>{script}</exec_path><exec_mode>persistent</exec_mode>{options}"
    ));
}

#[test]
fn one_process_answers_one_request_a_line() {
    let home = Home::empty();
    configure(&home, ECHO, "");
    let authd = FakeAuthd::listen(&home);
    let daemon = home.start();
    for (number, id) in (1..).zip(101..106) {
        home.ask(format!("id:{id}"));
        home.wait_for("keypoll_registered_total", number);
    }
    assert_eq!(home.read("started").lines().count(), 1);
    assert_eq!(
        home.read("asked").lines().next(),
        Some(r#"{"lookup":"id","value":"101"}"#)
    );
    assert_eq!(authd.agents().len(), 5);
    let pid = home.read("started");
    daemon.stop();
    assert!(!is_alive(&pid), "it was let end with the daemon");
}

#[test]
fn there_are_as_many_processes_as_are_needed_at_once() {
    let home = Home::empty();
    configure(
        &home,
        &ECHO.replace("echo \"$line\" >> asked", "sleep 0.3"),
        "<threads>3</threads>",
    );
    let _authd = FakeAuthd::listen(&home);
    let _daemon = home.start();
    for id in 101..113 {
        home.ask(format!("id:{id}"));
    }
    home.wait_for("keypoll_registered_total", 12);
    assert_eq!(home.read("started").lines().count(), 3);
}

#[test]
fn a_process_that_went_while_idle_is_replaced_without_losing_a_request() {
    let home = Home::empty();
    configure(&home, ECHO, "");
    let _authd = FakeAuthd::listen(&home);
    let _daemon = home.start();
    home.ask("id:101");
    home.wait_for("keypoll_registered_total", 1);
    let pid = home.read("started").trim().parse().expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("killed");
    home.ask("id:102");
    home.wait_for("keypoll_registered_total", 2);
    assert_eq!(home.read("started").lines().count(), 2);
}

#[test]
fn a_process_that_hangs_is_killed_and_the_next_request_has_another() {
    let home = Home::empty();
    let body = ECHO.replace("echo \"$line\" >> asked", "[ $id = 666 ] && sleep 1000");
    configure(&home, &body, "<timeout>1</timeout>");
    let _authd = FakeAuthd::listen(&home);
    let _daemon = home.start();
    home.ask("id:666");
    home.wait_for("keypoll_timed_out_total", 1);
    let hanging = home.read("started");
    until("it is killed", || !is_alive(&hanging));
    home.ask("id:101");
    home.wait_for("keypoll_registered_total", 1);
}

#[test]
fn a_process_that_dies_at_every_request_fails_that_request_only() {
    let home = Home::empty();
    configure(
        &home,
        "echo 'cannot connect to the database' >&2; read -r line; exit 1",
        "",
    );
    let _daemon = home.start();
    for (number, id) in (1..).zip(101..104) {
        home.ask(format!("id:{id}"));
        home.wait_for("keypoll_source_failures_total", number);
    }
    assert!(
        home.log().contains("says: cannot connect to the database"),
        "{}",
        home.log()
    );
}

#[test]
fn a_line_that_was_written_unasked_is_no_answer() {
    let home = Home::empty();
    let early = agent("102", "early", "any", KEY);
    let body = format!(
        "echo 'Connected to the database'\nwhile read -r line; do\n  echo 'debug: looking'\n  \
         echo '{}'\n  echo '{early}'\ndone",
        agent("101", "right", "any", KEY)
    );
    configure(&home, &body, "");
    let authd = FakeAuthd::listen(&home);
    let _daemon = home.start();
    home.ask("id:101");
    home.wait_for("keypoll_registered_total", 1);
    // The early line for 102 has been written behind the first answer; it must not be taken for the answer to this.
    home.ask("id:102");
    home.wait_for("keypoll_other_agent_total", 1);
    assert_eq!(authd.agents(), [format!("101 right any {KEY}")]);
}

#[test]
fn an_endless_line_is_cut_off_with_its_process() {
    let home = Home::empty();
    configure(
        &home,
        "read -r line; head -c 10000000 /dev/zero | tr '\\0' '{'; sleep 1000",
        "<timeout>20</timeout>",
    );
    let daemon = home.start();
    let began = Instant::now();
    home.ask("id:101");
    home.wait_for("keypoll_source_failures_total", 1);
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(daemon.peak_memory_kib() < 60_000);
}

#[test]
fn a_reload_starts_the_program_anew() {
    let home = Home::empty();
    configure(&home, ECHO, "");
    let _authd = FakeAuthd::listen(&home);
    let _daemon = home.start();
    home.ask("id:101");
    home.wait_for("keypoll_registered_total", 1);
    let first = home.read("started");
    home.reload().expect("reloaded");
    until("the old process has ended", || !is_alive(&first));
    home.ask("id:102");
    home.wait_for("keypoll_registered_total", 2);
    assert_eq!(home.read("started").lines().count(), 2);
}

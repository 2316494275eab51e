//! A program that is started for each look-up.

use std::time::{Duration, Instant};

use crate::support::{FakeAuthd, Home, KEY, Service, agent, is_alive, until};

fn prints(answer: &str) -> String {
    format!("cat <<'END'\n{answer}\nEND")
}

#[test]
fn the_program_gets_its_own_arguments_and_ours_and_no_shell() {
    let home = Home::empty();
    let script = home.script(
        "pull.sh",
        "for word in \"$@\"; do echo \"$word\" >> words; done\nexit 1",
    );
    home.configure(&format!(
        "<exec_path>{script} first \"second arg\" $(id) ; x</exec_path>"
    ));
    let _daemon = home.start();
    home.ask("id:001");
    home.wait_for("keypoll_source_failures_total", 1);
    assert_eq!(home.read("words"), "first\nsecond arg\n$(id)\n;\nx\nid\n001\n");
}

#[test]
fn the_program_runs_in_the_home_with_three_descriptors_and_three_variables() {
    let home = Home::empty();
    let answer = prints(&agent("001", "web-01", "192.168.1.100", KEY));
    let look = "pwd > where; env | sort > variables; ls /proc/self/fd > descriptors\n\
                readlink /proc/self/fd/0 > input; grep -E 'SigBlk|SigIgn' /proc/self/status > signals\n\
                cut -d' ' -f5 /proc/self/stat > group; echo $$ > self; ulimit -c > core; ulimit -d > memory";
    let script = home.script("pull.sh", &format!("{look}\n{answer}"));
    home.configure(&format!(
        "<exec_path>{script}</exec_path><max_memory>256MB</max_memory>"
    ));
    let authd = FakeAuthd::listen(&home);
    let daemon = home.start();
    home.ask("ip:192.168.1.100");
    home.wait_for("keypoll_registered_total", 1);
    assert_eq!(authd.agents(), [format!("001 web-01 192.168.1.100 {KEY}")]);
    let place = home.path("").canonicalize().expect("canonical").display().to_string();
    assert_eq!(home.read("where").trim(), place.trim_end_matches('/'));
    let variables = home.read("variables");
    let names: Vec<_> = variables
        .lines()
        .filter_map(|line| line.split('=').next())
        // Made by the shell itself.
        .filter(|name| !["PWD", "OLDPWD", "_", "SHLVL"].contains(name))
        .collect();
    assert_eq!(names, ["HOME", "LANG", "PATH"]);
    // The fourth is the one that ls reads the folder with.
    assert_eq!(home.read("descriptors"), "0\n1\n2\n3\n");
    assert_eq!(home.read("input").trim(), "/dev/null");
    assert!(
        home.read("signals")
            .lines()
            .next()
            .is_some_and(|line| line.ends_with("0000000000000000"))
    );
    assert_eq!(home.read("core").trim(), "0");
    assert_eq!(home.read("memory").trim(), (256 * 1024).to_string());
    assert_ne!(home.read("group").trim(), daemon.pid().to_string());
}

#[test]
fn words_on_standard_error_go_to_the_log_without_keys_and_not_into_the_answer() {
    let home = Home::empty();
    let answer = agent("001", "web-01", "any", "short-key");
    let body = format!(
        "echo 'DeprecationWarning: old driver' >&2\necho \"row {KEY} and short-key\" >&2\n{}\necho late >&2",
        prints(&answer)
    );
    let script = home.script("pull.sh", &body);
    home.configure(&format!("<exec_path>{script}</exec_path>"));
    let _authd = FakeAuthd::listen(&home);
    let _daemon = home.start();
    home.ask("id:001");
    home.wait_for("keypoll_registered_total", 1);
    let log = home.log();
    assert!(log.contains("(id:001) says: DeprecationWarning: old driver"), "{log}");
    assert!(log.contains("says: row [masked] and [masked]"), "{log}");
    assert!(log.contains("says: late"), "{log}");
    assert!(!log.contains(KEY) && !log.contains("short-key"));
}

#[test]
fn the_program_is_the_fallback_of_the_socket() {
    let home = Home::empty();
    let script = home.script("pull.sh", &prints(&agent("001", "web-01", "any", KEY)));
    home.configure(&format!("<socket>service.sock</socket><exec_path>{script}</exec_path>"));
    let _authd = FakeAuthd::listen(&home);
    let _daemon = home.start();
    let began = Instant::now();
    home.ask("id:001");
    home.wait_for("keypoll_registered_total", 1);
    assert!(began.elapsed() < Duration::from_millis(5500), "stock takes six seconds");
    assert_eq!(home.counter("keypoll_lookups_fallback_total"), 1);
    let service = Service::answering(&home, |_| agent("002", "web-02", "any", KEY));
    home.ask("id:002");
    home.wait_for("keypoll_registered_total", 2);
    assert_eq!(service.asked(), ["id:002"]);
}

#[test]
fn an_exit_code_other_than_0_counts_more_than_the_answer() {
    let home = Home::empty();
    let script = home.script(
        "pull.sh",
        &format!("{}\nexit 3", prints(&agent("001", "web-01", "any", KEY))),
    );
    home.configure(&format!("<exec_path>{script}</exec_path>"));
    let authd = FakeAuthd::listen(&home);
    let _daemon = home.start();
    home.ask("id:001");
    home.wait_for("keypoll_source_failures_total", 1);
    assert!(authd.agents().is_empty());
    assert!(
        home.log().contains("the program ended with exit code 3"),
        "{}",
        home.log()
    );
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let home = Home::new("<exec_path>/no/such/program x</exec_path>");
    let _daemon = home.start();
    home.ask("id:001");
    home.wait_for("keypoll_source_failures_total", 1);
    let log = home.log();
    let expected = "cannot run /no/such/program: path is invalid or file has insufficient permissions";
    assert!(log.contains(expected), "{log}");
}

#[test]
fn a_program_that_hangs_is_killed_with_all_that_it_started() {
    let home = Home::empty();
    // A shell that ignores SIGTERM, a child in its group, and one in a session of its own.
    let script = home.script(
        "pull.sh",
        "trap '' TERM HUP INT\necho $$ > leader\nsleep 1000 & echo $! > child\n\
         setsid sleep 1001 & echo $! > stray\nwhile :; do sleep 1; done",
    );
    home.configure(&format!(
        "<exec_path>{script}</exec_path><timeout>1</timeout><negative_cache>0s</negative_cache>"
    ));
    let _daemon = home.start();
    home.ask("id:001");
    home.wait_for("keypoll_timed_out_total", 1);
    for file in ["leader", "child"] {
        assert!(!is_alive(&home.read(file)), "{file} is still there");
    }
    let stray = home.read("stray");
    until("the stray process is ended", || !is_alive(&stray));
    until("it is counted", || home.counter("keypoll_leftovers_killed_total") >= 1);
    home.ask("id:001");
    home.wait_for("keypoll_timed_out_total", 2);
}

#[test]
fn what_a_program_leaves_behind_neither_holds_up_its_answer_nor_stays() {
    let home = Home::empty();
    let body = format!(
        "sleep 1000 & echo $! > child\n{}",
        prints(&agent("001", "web-01", "any", KEY))
    );
    let script = home.script("pull.sh", &body);
    home.configure(&format!("<exec_path>{script}</exec_path><timeout>30</timeout>"));
    let _authd = FakeAuthd::listen(&home);
    let _daemon = home.start();
    let began = Instant::now();
    home.ask("id:001");
    home.wait_for("keypoll_registered_total", 1);
    assert!(began.elapsed() < Duration::from_secs(10));
    let child = home.read("child");
    until("the child is ended", || !is_alive(&child));
}

#[test]
fn a_stop_ends_programs_that_run() {
    let home = Home::empty();
    let script = home.script("pull.sh", "echo $$ > leader\nsleep 1000");
    home.configure(&format!("<exec_path>{script}</exec_path>"));
    let daemon = home.start();
    home.ask("id:001");
    until("the program runs", || home.read("leader").ends_with('\n'));
    daemon.stop();
    let leader = home.read("leader");
    until("the program is ended", || !is_alive(&leader));
}

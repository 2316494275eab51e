//! The operator's view.

use crate::support::{FakeAuthd, Home, KEY, Service, agent};

const SOCKET: &str = "<socket>service.sock</socket>";

#[test]
fn a_try_shows_the_agent_without_its_key_and_registers_nothing() {
    let home = Home::new(SOCKET);
    let authd = FakeAuthd::listen(&home);
    authd.knows("002", "web-02", "any", "another key");
    authd.knows("003", "web-03", "any", KEY);
    let _service = Service::answering(&home, |request| {
        let id = &request[3..];
        agent(id, &format!("web-{}", &id[1..]), "any", KEY)
    });
    let _daemon = home.start();
    for (id, registered) in [("001", "nothing"), ("002", "another"), ("003", "the same")] {
        let report = home.try_look_up("id", id).expect("tried");
        assert_eq!(
            (report.outcome.as_str(), report.source.as_deref()),
            ("found", Some("socket"))
        );
        let found = report.agent.expect("an agent");
        assert_eq!(
            (found.id.as_str(), found.ip.as_str(), found.key_length),
            (id, "any", 64)
        );
        assert_eq!(found.registered, registered);
    }
    assert!(authd.adds().is_empty());
    assert_eq!(home.counter("keypoll_tries_total"), 3);
    assert_eq!(home.counter("keypoll_lookups_total"), 0);
}

#[test]
fn a_try_says_why_there_is_none() {
    let home = Home::new("<socket>service.sock</socket><exec_path>/no/such/program</exec_path>");
    let _daemon = home.start();
    let report = home.try_look_up("ip", "10.0.0.1").expect("tried");
    assert_eq!((report.outcome.as_str(), report.agent), ("source_failed", None));
    assert_eq!(report.errors.len(), 2);
    assert!(
        report.errors[0].starts_with("socket: cannot connect"),
        "{:?}",
        report.errors
    );
    assert!(
        report.errors[1].starts_with("exec_path: cannot run /no/such/program"),
        "{:?}",
        report.errors
    );
    let error = home.try_look_up("id", "1;2").expect_err("refused");
    assert!(error.contains("1 to 8 digits"), "{error}");
}

#[test]
fn status_tells_sources_queues_and_counters() {
    let home = Home::new("<socket>service.sock</socket><exec_path>pull.py x</exec_path><threads>7</threads>");
    let _daemon = home.start();
    let status = home.status();
    assert!(status.ready && status.degraded.is_empty());
    assert_eq!(status.listening, ["queue/sockets/krequest"]);
    let capacity = |name: &str| {
        status
            .queues
            .iter()
            .find(|queue| queue.name == name)
            .map(|queue| queue.capacity)
    };
    assert_eq!((capacity("requests"), capacity("look-ups")), (Some(1024), Some(7)));
    assert!(status.facts.contains(&(
        "sources".to_owned(),
        "socket service.sock, then exec_path pull.py".to_owned()
    )));
    assert!(
        status
            .counters
            .iter()
            .all(|(name, value)| name.starts_with("keypoll_") && *value == 0)
    );
}

#[test]
fn a_reload_takes_new_sources_and_forgets_what_was_said() {
    let home = Home::new(SOCKET);
    let authd = FakeAuthd::listen(&home);
    let _service = Service::answering(&home, |_| r#"{"error":4}"#.to_owned());
    let _daemon = home.start();
    home.ask("id:001");
    home.wait_for("keypoll_not_found_total", 1);
    home.configure("<socket>service.sock</socket><timeout>0</timeout>");
    assert!(home.reload().expect_err("a bad value").contains("timeout"));
    home.configure("<socket>service.sock</socket><exec_path>/bin/true</exec_path>");
    assert!(home.reload().expect_err("not without a restart").contains("restart"));
    home.configure(SOCKET);
    home.reload().expect("reloaded");
    home.ask("id:001");
    home.wait_for("keypoll_not_found_total", 2);
    home.configure("<enabled>no</enabled><socket>service.sock</socket>");
    assert!(home.reload().expect_err("switched off").contains("stop keypolld"));
    assert!(authd.adds().is_empty());
}

#[test]
fn a_bad_command_line_is_a_bad_configuration() {
    let home = Home::new("<exec_path>pull \"half</exec_path>");
    let output = home.start_in_vain();
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("quote that is not closed"), "{said}");
}

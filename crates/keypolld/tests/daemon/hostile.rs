//! Sources that go wrong in every way.

use crate::support::{FakeAuthd, Home, KEY, Service, agent, folder, until};
use std::io::Write;

#[test]
fn sixty_four_mebibytes_of_answer_hurt_nobody() {
    let home = Home::empty();
    let script = home.script(
        "pull.sh",
        "echo '{\"error\":'; head -c 67108864 /dev/zero | tr '\\0' ' '",
    );
    home.configure(&format!(
        "<exec_path>{script}</exec_path><negative_cache>0s</negative_cache>"
    ));
    let daemon = home.start();
    home.ask("id:001");
    home.wait_for("keypoll_source_failures_total", 1);
    assert!(
        home.log().contains("the answer is longer than 65536 bytes"),
        "{}",
        home.log()
    );
    assert!(daemon.peak_memory_kib() < 60_000, "{} KiB", daemon.peak_memory_kib());
}

#[test]
fn megabytes_on_standard_error_hurt_nobody() {
    let home = Home::empty();
    let body = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo \"warning $i: $(head -c 2000 /dev/zero | tr '\\0' x)\" >&2; done";
    let answer = agent("001", "web-01", "any", KEY);
    let script = home.script("pull.sh", &format!("{body}\necho '{answer}'"));
    home.configure(&format!("<exec_path>{script}</exec_path>"));
    let _authd = FakeAuthd::listen(&home);
    let _daemon = home.start();
    home.ask("id:001");
    home.wait_for("keypoll_registered_total", 1);
    assert!(home.log().len() < 100_000, "{} bytes of log", home.log().len());
}

#[test]
fn a_program_that_takes_too_much_memory_is_stopped_by_its_limit() {
    let home = Home::empty();
    // tail keeps the whole endless line in memory.
    let script = home.script("pull.sh", "head -c 1G /dev/zero | tail -n 1 > /dev/null || exit 7");
    home.configure(&format!("<exec_path>{script}</exec_path><max_memory>64MB</max_memory>"));
    let _daemon = home.start();
    home.ask("id:001");
    home.wait_for("keypoll_source_failures_total", 1);
    assert!(home.log().contains("exit code 7"), "{}", home.log());
}

#[test]
fn a_program_that_multiplies_is_held_to_its_limit_and_ended() {
    let home = Home::empty();
    // Each one starts two more, for ever; those that cannot, wait.
    let script = home.script("pull.sh", "echo x >> count\n\"$0\" &\n\"$0\" &\nwait\nsleep 1000");
    home.configure(&format!("<exec_path>{script}</exec_path><timeout>2</timeout>"));
    let _daemon = home.start_as_nobody();
    home.ask("id:001");
    home.wait_for("keypoll_timed_out_total", 1);
    let started = home.read("count").lines().count();
    assert!((10..=1000).contains(&started), "{started} processes were started");
    until("all of them are ended", || {
        let mut processes = std::fs::read_dir("/proc").expect("read").flatten();
        processes.all(|process| {
            let line = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            !line.contains(&script)
        })
    });
    // There is room for the next one.
    home.script("pull.sh", &format!("echo '{}'", agent("002", "web-02", "any", KEY)));
    let _authd = FakeAuthd::listen(&home);
    home.ask("id:002");
    home.wait_for("keypoll_registered_total", 1);
}

#[test]
fn a_service_that_writes_for_ever_is_left() {
    let home = Home::new("<socket>service.sock</socket>");
    let _service = Service::serving(&home, |_, stream| {
        let spaces = vec![b' '; 4096];
        while stream.write_all(&spaces).is_ok() {}
    });
    let daemon = home.start();
    home.ask("id:001");
    home.wait_for("keypoll_source_failures_total", 1);
    assert!(daemon.peak_memory_kib() < 60_000);
}

#[test]
fn nothing_of_a_request_is_ever_run() {
    let home = Home::empty();
    let script = home.script("pull.sh", "echo \"$@\" >> asked\nexit 1");
    home.configure(&format!("<exec_path>{script}</exec_path>"));
    let _daemon = home.start();
    let hostile = [
        "id:$(touch hacked)",
        "id:`touch hacked`",
        "id:1;touch hacked",
        "id:1|touch",
        "id:' OR 1=1",
        "id:\"1",
        "ip:1.2.3.4;touch hacked",
        "ip:1.2.3.4\ntouch hacked",
        "ip:-1",
        "id:-1",
        "id:--help",
        "id:../..",
        "id:1\0",
    ];
    for request in hostile {
        home.ask(request);
    }
    home.wait_for("keypoll_requests_invalid_total", hostile.len() as u64);
    home.ask("id:12345678");
    home.wait_for("keypoll_source_failures_total", 1);
    assert_eq!(home.read("asked"), "id 12345678\n");
    assert!(!home.path("hacked").exists() && !folder(&home.path("")).join("hacked").exists());
}

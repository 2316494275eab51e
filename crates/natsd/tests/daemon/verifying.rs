//! `muster-natsd verify`, as a program.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use muster_natsd::{keys::KeyFile, verify::Message};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use nkeys::XKey;
use serde_json::{Value, json};

use crate::{PATIENCE, block_on, natsd::Home, producer, provisioned, server::Server, state_and_audit};

const SIGNED: &str = "<message_signing>yes</message_signing>";

fn put(home: &Home, places: std::ops::Range<u32>) {
    let mut producer = producer::Producer::new(home.path("queue/muster/events"), &format!("daemon-{}", places.start));
    places.for_each(|place| producer.put(producer::change(1, place)));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
}

fn key(home: &Home) -> String {
    let file = KeyFile::read(&home.path("etc/nats/signing.nk")).expect("reads");
    format!("mgr-a={}", file.public().remove(0))
}

fn verify(home: &Home) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-natsd"));
    command.arg("--home").arg(home.path("")).arg("verify");
    command
}

/// What was printed: the lines, and the exit code.
fn told(output: &Output) -> (Vec<Value>, Option<i32>) {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line is JSON"));
    (lines.collect(), output.status.code())
}

fn with_input(mut command: Command, lines: &[String]) -> (Vec<Value>, Option<i32>) {
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = child.spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let text = lines.join("\n");
    let writer = thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("ends");
    writer.join().expect("ends").expect("writes");
    told(&output)
}

fn line(message: &Message) -> String {
    let headers: serde_json::Map<_, _> = message
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), json!([value])))
        .collect();
    json!({"subject": message.subject, "headers": headers, "data": STANDARD.encode(&message.body)}).to_string()
}

/// As `nats stream get --json` prints it.
fn stored_line(message: &Message) -> String {
    let mut headers = "NATS/1.0\r\n".to_owned();
    for (name, value) in &message.headers {
        headers.push_str(&format!("{name}: {value}\r\n"));
    }
    headers.push_str("\r\n");
    let (headers, body) = (STANDARD.encode(headers), STANDARD.encode(&message.body));
    json!({"subject": message.subject, "seq": 1, "hdrs": headers, "data": body}).to_string()
}

/// The signed changes of a manager, and itself.
fn published(server: &Server, count: u32) -> (Home, Vec<Message>) {
    let home = provisioned(server, SIGNED);
    let natsd = home.start();
    put(&home, 0..count);
    natsd.stop();
    let (state, _) = state_and_audit(server);
    assert_eq!(state.len(), usize::try_from(count).expect("few"));
    (home, state)
}

#[test]
fn lines_that_are_no_messages_are_told_and_the_rest_is_checked() {
    let server = Server::start();
    let (home, state) = published(&server, 6);
    let checks = |lines: &[String]| {
        let mut command = verify(&home);
        command.args(["--all", "--history", "--key", &key(&home)]);
        with_input(command, lines)
    };
    let good: Vec<String> = state.iter().map(line).collect();
    let (lines, code) = checks(&good);
    assert!(code == Some(0) && lines.len() == 6, "{lines:?}");
    assert!(lines.iter().all(|line| line["fate"] == "accepted"));
    let stored: Vec<String> = state.iter().map(stored_line).collect();
    assert_eq!(checks(&stored), (lines, Some(0)), "the other form");

    let mut forged = state[3].clone();
    forged.body[5] ^= 1;
    let bad = [
        good[0].clone(),
        "{".to_owned(),
        r#"{"subject": "a", "data": "?"}"#.to_owned(),
        String::new(),
        r#"{"data": ""}"#.to_owned(),
        format!("{{\"subject\": \"{}\"}}", "x".repeat(17 * 1024 * 1024)),
        good[1].clone(),
        line(&forged),
        good[2].clone(),
        r#"{"subject": "a", "headers": {"Muster-Ver": 1}}"#.to_owned(),
        good[3].clone(),
        good[3].clone(),
    ];
    let (lines, code) = checks(&bad);
    assert_eq!(code, Some(1));
    let fates: Vec<_> = lines
        .iter()
        .map(|line| line["fate"].as_str().unwrap_or_default())
        .collect();
    let expected =
        "accepted unreadable unreadable unreadable unreadable accepted refused accepted unreadable accepted duplicate";
    assert_eq!(fates.join(" "), expected);
    let numbers: Vec<_> = lines.iter().filter_map(|line| line["line"].as_u64()).collect();
    assert_eq!(numbers, [2, 3, 5, 6, 10]);
    let refused = lines.iter().find(|line| line["fate"] == "refused").expect("is there");
    assert_eq!(refused["failed"], "signature");

    let missing = [good[0].clone(), good[4].clone()];
    let (lines, code) = checks(&missing);
    assert_eq!(code, Some(1), "a hole is to complain about");
    assert_eq!(lines.last().expect("a line")["hole"]["node"], "mgr-a");
    let file_end_in_a_line = [good[0].clone(), "{".to_owned()];
    assert_eq!(checks(&file_end_in_a_line).1, Some(1));
}

/// A verifier that follows, and what it has printed so far.
struct Following {
    child: Child,
    lines: mpsc::Receiver<Value>,
}

impl Following {
    fn start(home: &Home, arguments: &[&str]) -> Self {
        let mut command = verify(home);
        command.args([
            "--follow",
            "--all",
            "--stream",
            "MUSTER_AUDIT",
            "--stream",
            "MUSTER_STATE",
        ]);
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = mpsc::sync_channel(10_000);
        // It ends with the pipe.
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                drop(sender.send(serde_json::from_str(&line).expect("a line is JSON")));
            }
        });
        Self { child, lines }
    }

    /// The next line that is like this. What comes before it is gone.
    fn next(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self
                .lines
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| unreachable!("in vain: {what}"));
            if is_it(&line) {
                return line;
            }
        }
    }

    /// Told to stop: the rest of the lines, and the exit code.
    fn stop(mut self, signal: Signal) -> (Vec<Value>, Option<i32>) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal).expect("signals");
        let status = self.child.wait().expect("ends");
        (self.lines.iter().collect(), status.code())
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_change(line: &Value) -> bool {
    line["subject"]
        .as_str()
        .is_some_and(|subject| subject.ends_with(".status_change"))
}

#[test]
fn follower_checks_what_comes_and_ends_well_when_it_is_told_to() {
    let server = Server::start();
    let home = provisioned(&server, SIGNED);
    let natsd = home.start();
    put(&home, 0..1);
    let following = Following::start(&home, &["--key", &key(&home)]);
    let first = following.next("what was there", is_change);
    assert_eq!(first["fate"], "accepted");
    let passed = |line: &Value| line["passed"].as_array().expect("an array").contains(&json!("time"));
    assert!(!passed(&first), "what was there before may be of any age");
    put(&home, 1..2);
    let second = following.next("what came then", is_change);
    assert!(second["fate"] == "accepted" && passed(&second), "{second}");
    natsd.stop();
    // Another epoch, announced in another stream.
    let natsd = home.start();
    put(&home, 2..3);
    assert_eq!(following.next("the next epoch", is_change)["fate"], "accepted");
    natsd.stop();
    let (rest, code) = following.stop(Signal::SIGTERM);
    assert_eq!(code, Some(0), "{rest:?}");
}

#[test]
fn follower_tells_an_undeclared_hole_once_and_in_its_exit_code() {
    let server = Server::start();
    let home = provisioned(&server, SIGNED);
    let natsd = home.start();
    put(&home, 0..5);
    block_on(async {
        let jetstream = async_nats::jetstream::new(server.client().await);
        let stream = jetstream.get_stream("MUSTER_STATE").await.expect("the stream");
        assert!(stream.delete_message(3).await.expect("deletes"));
    });
    let following = Following::start(&home, &["--patience", "1", "--key", &key(&home)]);
    let hole = following.next("the hole", |line| line.get("hole").is_some());
    assert_eq!(
        (&hole["hole"]["node"], &hole["hole"]["stream"]),
        (&json!("mgr-a"), &json!("MUSTER_STATE"))
    );
    put(&home, 5..6);
    following.next("it goes on", is_change);
    natsd.stop();
    let (rest, code) = following.stop(Signal::SIGINT);
    assert_eq!(code, Some(1));
    assert!(rest.iter().all(|line| line.get("hole").is_none()), "once: {rest:?}");
}

fn of_stream(home: &Home, arguments: &[&str]) -> (Vec<Value>, Option<i32>) {
    let mut command = verify(home);
    let output = command
        .args(["--all", "--stream", "MUSTER_STATE"])
        .args(arguments)
        .output();
    told(&output.expect("runs"))
}

#[test]
fn sealed_bodies_are_opened_and_checked_with_the_recipients_seed() {
    let server = Server::start();
    let recipient = XKey::new();
    let home = provisioned(
        &server,
        &format!("{SIGNED}<recipient id=\"xdr-1\">{}</recipient>", recipient.public_key()),
    );
    let natsd = home.start();
    put(&home, 0..3);
    natsd.stop();
    let seed = |name: &str, key: &XKey| {
        let path = home.path(name);
        fs::write(&path, key.seed().expect("a seed")).expect("writes");
        path.to_string_lossy().into_owned()
    };
    let (ours, other) = (seed("ours.nk", &recipient), seed("other.nk", &XKey::new()));
    let key = key(&home);
    let of = |arguments: &[&str]| of_stream(&home, &[&["--key", &key], arguments].concat());
    let passed = |line: &Value, step: &str| line["passed"].as_array().expect("an array").contains(&json!(step));

    let (lines, code) = of(&["--recipient-seed", &ours]);
    assert!(code == Some(0) && lines.len() == 3, "{lines:?}");
    assert!(lines.iter().all(|line| passed(line, "seal") && passed(line, "body")));
    let (lines, code) = of(&[]);
    assert_eq!(code, Some(0), "all but the body is checked");
    assert!(
        lines
            .iter()
            .all(|line| line["fate"] == "accepted" && !passed(line, "body") && !passed(line, "seal"))
    );
    let (lines, code) = of(&["--recipient-seed", &other]);
    assert_eq!(code, Some(1));
    assert!(
        lines
            .iter()
            .filter(|line| line.get("fate").is_some())
            .all(|line| line["failed"] == "seal"),
        "{lines:?}"
    );
    assert_ne!(of(&["--recipient-seed", "/nowhere"]).1, Some(0));
}

#[test]
fn unsigned_events_are_accepted_only_from_who_asks_for_them() {
    let server = Server::start();
    let home = provisioned(&server, "");
    let natsd = home.start();
    put(&home, 0..3);
    natsd.stop();
    let (lines, code) = of_stream(&home, &[]);
    assert!(code == Some(1) && lines.len() == 3, "{lines:?}");
    assert!(lines.iter().all(|line| line["failed"] == "signature"));
    let (lines, code) = of_stream(&home, &["--unsigned"]);
    assert_eq!(code, Some(0));
    assert!(lines.len() == 3 && lines.iter().all(|line| line["fate"] == "accepted"));
}

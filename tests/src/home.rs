//! A manager in a home of its own: made by `muster-control init`, thrown away at the end.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, mpsc::sync_channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use muster_test_ports::Port;
use serde_json::Value;
use tempfile::TempDir;

use crate::{daemon::Daemon, enroll, wait};

/// Lines of a follower that nobody has looked at yet; beyond them it waits.
const MAX_LINES: usize = 1024;

/// Time-outs short enough for a test: an agent that has shown a rhythm of half a second is missed after three.
pub const QUICK_KEEPALIVE: &str = "<manager_keepalive>\
    <enabled>yes</enabled><interval>1</interval><timeout>3</timeout><max_missed>3</max_missed>\
    <retry_interval>1</retry_interval></manager_keepalive>";

/// A home and what belongs to it.
pub struct Home {
    folder: Arc<TempDir>,
    programs: PathBuf,
    port: Port,
    enroll_port: Port,
}

impl Home {
    /// A home with quick time-outs and no password.
    pub fn new() -> Result<Self> {
        Self::with(&["--no-password"])
    }

    /// A home whose natsd publishes to this server.
    pub fn publishing_to(url: &str) -> Result<Self> {
        Self::with(&["--no-password", "--nats", url])
    }

    /// A home made with these further options of `muster-control init`.
    pub fn with(options: &[&str]) -> Result<Self> {
        let home = Self {
            folder: Arc::new(tempfile::Builder::new().prefix("muster-").tempdir()?),
            programs: programs()?,
            port: Port::free()?,
            enroll_port: Port::free()?,
        };
        let (port, enroll_port) = (home.port().to_string(), home.enroll_port().to_string());
        let mut arguments = vec![
            "init",
            "--bind",
            "127.0.0.1",
            "--port",
            &port,
            "--enroll-port",
            &enroll_port,
        ];
        arguments.extend_from_slice(options);
        home.control(&arguments)?;
        home.set_in("remote", QUICK_KEEPALIVE)?;
        home.set_in("remote", "<protocol>tcp,udp</protocol>")?;
        Ok(home)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The agents' port.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// The enrollment port.
    pub fn enroll_port(&self) -> u16 {
        self.enroll_port.number
    }

    /// A program of ours.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Puts an element into the first block of that name in `ossec.conf`, in place of one that has the same name.
    pub fn set_in(&self, block: &str, element: &str) -> Result<()> {
        let path = self.path().join("etc/ossec.conf");
        let text = fs::read_to_string(&path)?;
        fs::write(&path, with_element(&text, block, element)?)?;
        Ok(())
    }

    /// Adds a root element with these blocks to `ossec.conf`, as stock files often have several.
    pub fn add_config(&self, blocks: &str) -> Result<()> {
        let path = self.path().join("etc/ossec.conf");
        let text = fs::read_to_string(&path)?;
        fs::write(&path, format!("{text}\n<ossec_config>\n{blocks}\n</ossec_config>\n"))?;
        Ok(())
    }

    /// Writes a line into `etc/local_internal_options.conf`.
    pub fn set_internal(&self, line: &str) -> Result<()> {
        let path = self.path().join("etc/local_internal_options.conf");
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, format!("{before}{line}\n"))?;
        Ok(())
    }

    /// Starts one daemon and waits until it serves.
    pub fn start(&self, daemon: &str) -> Result<Daemon> {
        self.start_with(daemon, &[OsStr::new("-d")])
    }

    /// The same without debugging messages: what they cost would be measured with it.
    pub fn start_quiet(&self, daemon: &str) -> Result<Daemon> {
        self.start_with(daemon, &[])
    }

    fn start_with(&self, daemon: &str, arguments: &[&OsStr]) -> Result<Daemon> {
        let program = self.program(&format!("muster-{daemon}"));
        // Whichever is dropped first, the folder goes when nobody lives in it any more.
        Ok(Daemon::start(daemon, &program, self.path(), arguments)?.living_in(Arc::clone(&self.folder)))
    }

    /// Runs `muster-control` in this home; what it prints.
    pub fn control(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run_control(arguments)?;
        ensure!(
            output.status.success(),
            "muster-control {} ended with {}:\n{}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `muster-control`, whatever comes of it.
    pub fn run_control(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(self.program("muster-control"));
        command
            .arg("--home")
            .arg(self.path())
            .args(arguments)
            .stdin(Stdio::null());
        command.output().context("starting muster-control")
    }

    /// The same with JSON output.
    pub fn control_json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.extend_from_slice(&["--output", "json"]);
        let text = self.control(&all)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// The first event that `muster-control events` shows and `wanted` takes; past ones count.
    pub fn follow_events(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut command = Command::new(self.program("muster-control"));
        command
            .arg("--home")
            .arg(self.path())
            .args(["events", "--backlog", "100", "--output", "json"]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting muster-control")?;
        let output = child.stdout.take().context("no output")?;
        let (sender, lines) = sync_channel(MAX_LINES);
        thread::spawn(move || {
            // Ends when the process does.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let deadline = Instant::now() + wait::SOON;
        let found = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = lines.recv_timeout(left) else { break None };
            match serde_json::from_str(&line) {
                Ok(event) if wanted(&event) => break Some(event),
                _ => {}
            }
        };
        child.kill()?;
        child.wait()?;
        found.context("the event was not shown")
    }

    /// What `agent list` says of an agent.
    pub fn agent(&self, id: &str) -> Result<Option<Value>> {
        let list = self.control_json(&["agent", "list"])?;
        let agents = list.as_array().context("agent list is no array")?;
        Ok(agents.iter().find(|agent| agent["id"] == id).cloned())
    }

    /// Waits until `agent list` shows an agent in this status; the agent then.
    pub fn wait_for_status(&self, id: &str, status: &str, patience: Duration) -> Result<Value> {
        let mut last = None;
        wait::until(&format!("agent {id} is {status}"), patience, || {
            last = self.agent(id)?;
            Ok(last.clone().filter(|agent| agent["status"] == status))
        })
        .with_context(|| format!("agent {id} was last seen as {last:?}"))
    }

    /// What `status` says of a daemon.
    pub fn status(&self, daemon: &str) -> Result<Value> {
        let status = self.control_json(&["status", daemon])?;
        let all = status
            .as_array()
            .cloned()
            .or_else(|| status["daemons"].as_array().cloned());
        all.and_then(|all| all.into_iter().find(|one| one["daemon"] == daemon))
            .with_context(|| format!("no status of {daemon} in {status}"))
    }

    /// A counter of a daemon; 0 when it has not counted yet.
    pub fn counter(&self, daemon: &str, name: &str) -> Result<u64> {
        let status = self.status(daemon)?;
        let counters = &status["counters"];
        let in_list = || counters.as_array()?.iter().find(|pair| pair[0] == name)?[1].as_u64();
        Ok(counters[name].as_u64().or_else(in_list).unwrap_or(0))
    }

    /// Enrolls a Wazuh agent.
    pub fn enroll(&self, name: &str) -> Result<crate::agent::Key> {
        enroll::enroll(self.enroll_port(), name)
    }

    /// The text of `client.keys`.
    pub fn client_keys(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path().join("etc/client.keys")).unwrap_or_default())
    }
}

fn with_element(text: &str, block: &str, element: &str) -> Result<String> {
    let name = element
        .trim_start_matches('<')
        .split(['>', ' '])
        .next()
        .unwrap_or_default();
    let (before, rest) = text
        .split_once(&format!("<{block}>"))
        .with_context(|| format!("no <{block}> in ossec.conf"))?;
    let (inside, after) = rest
        .split_once(&format!("</{block}>"))
        .with_context(|| format!("<{block}> is not closed"))?;
    let inside = match (inside.find(&format!("<{name}>")), inside.find(&format!("</{name}>"))) {
        (Some(begin), Some(end)) => format!("{}{}", &inside[..begin], &inside[end + name.len() + 3..]),
        _ => inside.to_owned(),
    };
    Ok(format!("{before}<{block}>{inside}  {element}\n  </{block}>{after}"))
}

/// Where the daemons are: `MUSTER_BIN_DIR`, or beside the test program, which lies in `target/<profile>/deps`.
fn programs() -> Result<PathBuf> {
    let folder = match env::var_os("MUSTER_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let test = env::current_exe()?;
            let profile = test
                .ancestors()
                .nth(2)
                .context("the test program lies in target/<profile>/deps")?;
            profile.to_owned()
        }
    };
    for program in ["muster-control", "muster-authd", "muster-remoted", "muster-natsd"] {
        ensure!(
            folder.join(program).is_file(),
            "{} is missing: run `cargo build --workspace --bins` first",
            folder.join(program).display()
        );
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_put_in_or_replaced() {
        let text = "<ossec_config>\n<remote>\n<port>1</port>\n</remote>\n</ossec_config>\n";
        let once = with_element(text, "remote", "<protocol>udp</protocol>").unwrap();
        assert!(once.contains("<port>1</port>") && once.contains("<protocol>udp</protocol>"));
        let twice = with_element(&once, "remote", "<protocol>tcp</protocol>").unwrap();
        assert!(twice.contains("<protocol>tcp</protocol>") && !twice.contains("udp"));
        assert!(with_element(text, "auth", "<port>1</port>").is_err());
    }
}

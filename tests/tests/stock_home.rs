//! remoted alone among stock daemons: no authd of ours, and the stock database, which stock programs look into.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    agent::{Agent, Carrier, Family},
    home::Home,
    wait::{self, SOON},
};

/// What stands in the database's place: it notes what it is told, and knows groups.
struct Database {
    path: PathBuf,
    told: Arc<Mutex<Vec<String>>>,
}

impl Database {
    fn listen(home: &Path, groups: &'static [(u32, &'static str)]) -> Result<Self> {
        let path = home.join("queue/db/wdb");
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let told = Arc::<Mutex<Vec<String>>>::default();
        let notes = Arc::clone(&told);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let notes = Arc::clone(&notes);
                thread::spawn(move || serve(stream, groups, &notes));
            }
        });
        Ok(Self { path, told })
    }

    fn told(&self) -> MutexGuard<'_, Vec<String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a command that begins and goes on so.
    fn expect(&self, begin: &str, part: &str) -> Result<()> {
        let is_told = || {
            self.told()
                .iter()
                .any(|told| told.starts_with(begin) && told.contains(part))
        };
        wait::until_true(begin, SOON, || Ok(is_told()))
            .with_context(|| format!("{begin}..{part}, told was {:#?}", self.told()))
    }

    /// Nobody finds it any more. Connections that are there stay.
    fn hide(&self) -> Result<()> {
        Ok(fs::remove_file(&self.path)?)
    }
}

fn serve(mut stream: UnixStream, groups: &[(u32, &str)], notes: &Mutex<Vec<String>>) -> Option<()> {
    loop {
        let mut header = [0; 4];
        stream.read_exact(&mut header).ok()?;
        let mut command = vec![0; u32::from_le_bytes(header) as usize];
        stream.read_exact(&mut command).ok()?;
        let command = String::from_utf8(command).ok()?;
        let command = command.strip_suffix('\0')?;
        let answer = match command.strip_prefix("global select-agent-group ") {
            None => "ok".to_owned(),
            Some(id) => {
                let known = groups.iter().find(|(known, _)| id == known.to_string());
                known.map_or("ok [{}]".to_owned(), |(_, group)| {
                    format!(r#"ok [{{"group":"{group}"}}]"#)
                })
            }
        };
        notes.lock().ok()?.push(command.to_owned());
        stream
            .write_all(&u32::try_from(answer.len()).ok()?.to_le_bytes())
            .ok()?;
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

/// A home with two agents whose authd is not ours.
fn home_of_others() -> Result<(Home, [Agent; 2])> {
    let home = Home::new()?;
    let authd = home.start("authd")?;
    let keys = [home.enroll("first")?, home.enroll("second")?];
    drop(authd);
    let web = home.path().join("etc/shared/web");
    fs::create_dir_all(&web)?;
    fs::write(web.join("agent.conf"), "<agent_config></agent_config>\n")?;
    let agents = keys.map(|key| {
        let mut agent = Agent::new(key, Family::WazuhAes, Carrier::Tcp, home.port());
        agent.takes_files = false;
        agent
    });
    Ok((home, agents))
}

/// The first line of the file that the agent is pushed.
fn pushed(agent: &mut Agent) -> Result<String> {
    let mut begun = false;
    loop {
        let heard = agent.receive(SOON)?.context("no file")?.payload;
        if begun {
            return Ok(String::from_utf8_lossy(&heard)
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned());
        }
        begun = heard.starts_with(b"#!-up file ");
    }
}

#[test]
fn rows_and_groups_of_the_stock_database_are_kept_and_used() -> Result<()> {
    let (home, [mut first, mut second]) = home_of_others()?;
    let database = Database::listen(home.path(), &[(2, "web")])?;
    let _remoted = home.start("remoted")?;
    database.expect("global reset-agents-connection synced", "")?;
    first.hello_until_heard(SOON)?;
    database.expect("global update-keepalive", r#"{"id":1,"connection_status":"pending""#)?;
    first.keepalive()?;
    let file = pushed(&mut first).with_context(|| format!("{:#?}", database.told()))?;
    ensure!(file == "#default", "who has no group gets the default one");
    database.expect("global set-agent-groups", r#""data":[{"id":1,"groups":["default"]}]"#)?;
    database.expect("global update-agent-data", r#"{"id":1,"version":"Wazuh v"#)?;
    second.hello_until_heard(SOON)?;
    second.keepalive()?;
    let file = pushed(&mut second).with_context(|| format!("{:#?}", database.told()))?;
    ensure!(file == "#web", "who has a group keeps it");
    first.goodbye()?;
    database.expect(
        "global update-connection-status",
        r#"{"id":1,"connection_status":"disconnected","sync_status":"synced","status_code":3}"#,
    )
}

#[test]
fn home_without_the_database_serves_agents_and_says_nothing_of_it() -> Result<()> {
    let (home, [mut first, _]) = home_of_others()?;
    let _remoted = home.start("remoted")?;
    first.hello_until_heard(SOON)?;
    first.keepalive()?;
    let queues = home.status("remoted")?["queues"].to_string();
    ensure!(!queues.contains("wazuh-db"), "{queues}");
    // Late, and all the same.
    let database = Database::listen(home.path(), &[])?;
    let mut heard = Ok(());
    for _ in 0..60 {
        first.keepalive()?;
        heard = first.listen_for(Duration::from_secs(1));
        if database
            .told()
            .iter()
            .any(|told| told.starts_with("global update-agent-data"))
        {
            database.hide()?;
            return heard;
        }
    }
    heard?;
    database.expect("global update-agent-data", r#"{"id":1,"#)
}

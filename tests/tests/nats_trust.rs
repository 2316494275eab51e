//! The trust key: made on another machine, it vouches for the keys that a manager signs with, and revokes them. Who pins
//! it needs to know nothing else of the manager.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    daemon::Daemon,
    home::Home,
    nats::{Nats, STATE, Stored},
    wait::{self, SOON},
};
use serde_json::Value;
use tempfile::TempDir;

const AUDIT: &str = "MUSTER_AUDIT";

/// A manager, its broker, and the machine where the trust key lies.
struct Site {
    home: Home,
    nats: Nats,
    elsewhere: TempDir,
    trust: String,
}

impl Site {
    fn new() -> Result<Self> {
        let nats = Nats::without_streams()?;
        let home = Home::publishing_to(&nats.url())?;
        let elsewhere = tempfile::tempdir()?;
        let seed = elsewhere.path().join("trust.nk").display().to_string();
        let trust = home.control(&["nats", "key", "trust", &seed])?.trim().to_owned();
        for element in [
            "<node_name>mgr-a</node_name>",
            "<message_signing>yes</message_signing>",
            "<audit_logging>yes</audit_logging>",
            "<kv bucket=\"agents\"/>",
            "<key_overlap>2s</key_overlap>",
            &format!("<trust_key>{trust}</trust_key>"),
        ] {
            home.set_in("nats", element)?;
        }
        let site = Self {
            home,
            nats,
            elsewhere,
            trust,
        };
        let (worked, _, told) = site.natsd(&["provision", "--share", "1"])?;
        ensure!(worked, "{told}");
        Ok(site)
    }

    fn start(&self) -> Result<[Daemon; 2]> {
        Ok([self.home.start("natsd")?, self.home.start("authd")?])
    }

    /// Whether it said yes, what it printed, and what it complained of.
    fn natsd(&self, arguments: &[&str]) -> Result<(bool, String, String)> {
        let output = Command::new(self.home.program("muster-natsd"))
            .args(["--home".as_ref(), self.home.path().as_os_str()])
            .args(arguments)
            .output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
    }

    /// What the trust key has to sign goes to where it lies, and comes back.
    fn have_signed(&self) -> Result<String> {
        let file = |name: &str| self.elsewhere.path().join(name).display().to_string();
        fs::write(file("statements"), self.home.control(&["nats", "key", "statement"])?)?;
        let sign = [
            "nats",
            "key",
            "sign",
            "--trust-seed",
            &file("trust.nk"),
            &file("statements"),
        ];
        fs::write(file("signed"), self.home.control(&sign)?)?;
        self.home.control(&["nats", "key", "import", &file("signed")])
    }

    /// Why all is not well.
    fn degraded(&self) -> Result<String> {
        Ok(self.home.control_json(&["nats", "status"])?["degraded"].to_string())
    }

    fn wait_until_all_is_well(&self) -> Result<()> {
        wait::until_true("nothing is degraded", SOON, || Ok(self.degraded()? == "[]"))
    }

    /// The key that signs.
    fn in_force(&self) -> Result<String> {
        let keys = self.home.control_json(&["nats", "key", "list"])?;
        let key = keys
            .as_array()
            .into_iter()
            .flatten()
            .find(|key| key["in_force"] == true);
        let kid = key.and_then(|key| key["kid"].as_str());
        Ok(kid.context("no key is in force")?.to_owned())
    }

    /// Enrolls agents until the broker has an event of one that this key has signed.
    fn event_signed_by(&self, kid: &str, name: &str) -> Result<Stored> {
        let mut count = 0;
        wait::until("an event is signed with the key", SOON, || {
            count += 1;
            let agent = format!("{name}-{count}");
            self.home.enroll(&agent)?;
            let said = self.nats.wait_for(STATE, "the enrollment is published", |stored| {
                stored
                    .json()
                    .is_ok_and(|body| body["enrollment"]["agent_name"] == agent)
            })?;
            Ok((said.headers["Muster-Kid"] == kid).then_some(said))
        })
    }

    /// Waits until a key is announced in this way.
    fn announced(&self, kid: &str, reason: &str) -> Result<Stored> {
        self.nats.wait_for(AUDIT, "the key is announced", |stored| {
            stored
                .json()
                .is_ok_and(|body| body["key"]["kid"] == kid && body["key"]["reason"] == reason)
        })
    }

    /// What a consumer who knows nothing but the trust key refuses, by the step that failed, and whether all was well.
    fn verify(&self, streams: &[&str]) -> Result<(bool, Vec<(String, String)>)> {
        let mut arguments = vec!["verify", "--trust-key", &self.trust];
        streams
            .iter()
            .for_each(|stream| arguments.extend(["--stream", *stream]));
        wait::until_true("everything is published", SOON, || {
            Ok(self.home.control_json(&["nats", "status"])?["facts"]["waiting_events"] == "0")
        })?;
        let (worked, lines, _) = self.natsd(&arguments)?;
        let mut refused = Vec::new();
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line)?;
            if let (Some(id), Some(failed)) = (line["id"].as_str(), line["failed"].as_str()) {
                refused.push((id.to_owned(), failed.to_owned()));
            }
        }
        Ok((worked, refused))
    }
}

#[test]
fn who_pins_the_trust_key_believes_each_key_from_its_signature_to_its_revocation() -> Result<()> {
    let site = Site::new()?;
    let daemons = site.start()?;
    let first = site.in_force()?;
    site.event_signed_by(&first, "first")?;

    // Nobody vouches for the first key, and nobody hides it.
    assert!(site.degraded()?.contains(&first), "{}", site.degraded()?);
    let (well, refused) = site.verify(&[AUDIT, STATE])?;
    assert!(!well && !refused.is_empty());
    assert!(refused.iter().all(|(_, failed)| failed == "key"), "{refused:?}");
    let told = site.have_signed()?;
    assert!(told.contains("1 announcements made"), "{told}");
    site.announced(&first, "co_signed")?;
    site.wait_until_all_is_well()?;
    assert_eq!(site.verify(&[AUDIT, STATE])?, (true, vec![]));

    // A new key waits for the trust key, and says so.
    let told = site.home.control(&["nats", "key", "rotate"])?;
    let second = told.lines().next().context("a key")?.to_owned();
    assert!(told.contains("waits") && site.degraded()?.contains(&second), "{told}");
    assert_eq!(site.event_signed_by(&first, "waiting")?.headers["Muster-Kid"], first);
    site.have_signed()?;
    let announced = site.announced(&second, "rotation")?;
    assert_eq!(
        announced.headers["Muster-Kid"], first,
        "the old one announces the new one"
    );
    let said = site.event_signed_by(&second, "rotated")?;
    let time = |stored: &Stored| stored.headers["Muster-Time"].parse::<u64>();
    assert!(
        time(&said)? + 1000 >= time(&announced)? + 2000,
        "it signs behind the overlap"
    );
    site.announced(&first, "retired")?;
    assert_eq!(site.verify(&[AUDIT, STATE])?, (true, vec![]));

    // Another epoch is announced with its key; a consumer of one stream hears that too.
    drop(daemons);
    let _daemons = site.start()?;
    site.event_signed_by(&second, "restarted")?;
    assert_eq!(site.verify(&[STATE])?, (true, vec![]));

    // The first key was stolen with its last enrollment: natsd alone cannot say so, the trust key can.
    let of_first: Vec<_> = [AUDIT, STATE]
        .map(|stream| site.nats.stored(stream))
        .into_iter()
        .collect::<Result<_>>()?;
    let of_first: Vec<_> = of_first
        .iter()
        .flatten()
        .filter(|stored| stored.headers["Muster-Kid"] == first)
        .collect();
    let in_state = of_first.iter().filter(|stored| stored.subject.contains(".agent."));
    let since = in_state
        .map(|stored| time(stored))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .max();
    let since = since.context("the first key has signed nothing")? / 1000;
    let revoke = ["nats", "key", "revoke", &first, "--since", &since.to_string()];
    site.home.control(&revoke)?;
    assert!(site.degraded()?.contains("revoked"), "{}", site.degraded()?);
    assert_eq!(site.verify(&[STATE])?, (true, vec![]), "nobody else has heard of it");
    site.have_signed()?;
    site.announced(&first, "revoked")?;
    site.wait_until_all_is_well()?;
    let stolen = of_first
        .iter()
        .filter(|stored| time(stored).is_ok_and(|time| time >= since * 1000));
    let stolen: BTreeSet<_> = stolen.map(|stored| stored.headers["Nats-Msg-Id"].clone()).collect();
    let (well, refused) = site.verify(&[AUDIT, STATE])?;
    assert!(
        !well && refused.iter().all(|(_, failed)| failed == "key"),
        "{refused:?}"
    );
    let refused: BTreeSet<_> = refused.into_iter().map(|(id, _)| id).collect();
    assert_eq!(refused, stolen, "from then on, and nothing before");
    assert!(stolen.len() < of_first.len());
    Ok(())
}

#[test]
fn what_another_key_has_signed_is_not_taken_in() -> Result<()> {
    let site = Site::new()?;
    let _daemons = site.start()?;
    let file = |name: &str| site.elsewhere.path().join(name).display().to_string();
    fs::write(file("statements"), site.home.control(&["nats", "key", "statement"])?)?;
    site.home.control(&["nats", "key", "trust", &file("other.nk")])?;
    let sign = [
        "nats",
        "key",
        "sign",
        "--trust-seed",
        &file("other.nk"),
        &file("statements"),
    ];
    fs::write(file("signed"), site.home.control(&sign)?)?;
    for name in ["signed", "statements"] {
        let output = site.home.run_control(&["nats", "key", "import", &file(name)])?;
        assert!(!output.status.success(), "{output:?}");
    }
    assert!(site.degraded()?.contains("the trust key has not signed"));
    Ok(())
}

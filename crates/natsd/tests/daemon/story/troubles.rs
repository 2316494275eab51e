//! What can go wrong, and how each of it ends.

use std::{fs, thread, time::Duration};

use muster_natsd::verify::Message;
use nix::sys::signal::Signal;

use crate::{
    block_on,
    disk::Disk,
    natsd::{Home, Natsd},
    proxy::Proxy,
    server::Server,
    wait_for, wait_for_within,
};

type Trouble = (&'static str, fn(&mut Site));

/// The troubles, in the order in which they come.
pub(super) const TROUBLES: [Trouble; 9] = [
    ("server killed", server_killed),
    ("natsd killed", natsd_killed),
    ("connection cut within a frame", connection_cut),
    ("server stalled", server_stalled),
    ("right taken away", right_taken),
    ("natsd stalled", natsd_stalled),
    ("disk full", disk_full),
    ("both killed", both_killed),
    ("stream deleted", stream_deleted),
];

const SERVER_STALL: Duration = Duration::from_millis(2500);
const NATSD_STALL: Duration = Duration::from_millis(500);
/// How long the first stalls of a long story are.
const MINUTE: Duration = Duration::from_secs(60);

/// Where the story takes place.
pub(super) struct Site {
    // It ends before its home does.
    natsd: Option<Natsd>,
    pub(super) server: Server,
    proxy: Proxy,
    pub(super) home: Home,
    disk: Option<Disk>,
    /// How long it is stalled next: the server, natsd.
    stalls: [Duration; 2],
    /// What was in the stream of states each time before it was deleted.
    pub(super) read: Vec<Vec<Message>>,
}

impl Site {
    pub(super) fn start(long: bool) -> Self {
        let server = Server::with_config(|store, port| {
            format!(
                "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\nno_auth_user: a\n{}",
                store.display(),
                rights("nothing.at.all")
            )
        });
        let proxy = Proxy::before(server.port);
        // So small that no file is made ready in advance: a full disk is felt at once.
        let home = Home::new(&format!(
            "<server_url>{}</server_url><node_name>mgr-a</node_name><reconnect_delay>1</reconnect_delay>\
             <message_signing>yes</message_signing><audit_logging>yes</audit_logging>\
             <publish mode=\"jetstream\" ack_timeout=\"1s\"/><spool max_bytes=\"100MB\"/>",
            proxy.url()
        ));
        provision(&home);
        let disk = Disk::mount(home.path("queue/nats"), "64m");
        let natsd = Some(home.start());
        Self {
            natsd,
            server,
            proxy,
            home,
            disk,
            stalls: if long { [MINUTE; 2] } else { [SERVER_STALL, NATSD_STALL] },
            read: vec![],
        }
    }

    pub(super) fn restart_natsd(&mut self) {
        self.natsd.take().expect("runs").stop();
        self.natsd = Some(self.home.start());
    }

    /// What is in a stream.
    pub(super) fn stored(&self, stream: &str) -> Vec<Message> {
        block_on(async { Server::messages(&self.server.client().await, stream).await })
    }

    /// From now on natsd may publish everything but this.
    fn give_rights(&self, denied: &str) {
        let path = self.server.directory.path().join("server.conf");
        let text = fs::read_to_string(&path).expect("reads");
        let kept = text.lines().filter(|line| !line.starts_with("authorization"));
        let kept: String = kept.map(|line| format!("{line}\n")).collect();
        fs::write(path, kept + &rights(denied)).expect("writes");
        self.server.signal(Signal::SIGHUP);
    }

    fn wait_until_degraded(&self, why: &str) {
        wait_for(&format!("natsd says {why}"), || self.degraded().contains(why));
    }

    /// What natsd says is wrong.
    fn degraded(&self) -> String {
        let status = self.home.status();
        status.map(|status| status.degraded.join("\n")).unwrap_or_default()
    }
}

fn rights(denied: &str) -> String {
    format!(
        "authorization {{ users: [ {{ user: a, password: b, permissions: {{ publish: {{ allow: \">\", deny: \"{denied}\" }}, subscribe: \">\" }} }} ] }}\n"
    )
}

fn provision(home: &Home) {
    let made = home.run(&["provision", "--share", "1"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn server_killed(site: &mut Site) {
    site.server.kill();
    thread::sleep(Duration::from_millis(300));
    site.server.restart();
}

fn natsd_killed(site: &mut Site) {
    site.natsd.take().expect("runs").kill();
    site.natsd = Some(site.home.start());
}

fn both_killed(site: &mut Site) {
    site.server.kill();
    natsd_killed(site);
    site.server.restart();
}

fn server_stalled(site: &mut Site) {
    let stall = site.stalls[0];
    site.server.signal(Signal::SIGSTOP);
    thread::sleep(stall);
    site.server.signal(Signal::SIGCONT);
    // Further ones are as short as in an ordinary run.
    site.stalls[0] = stall.min(SERVER_STALL);
}

fn natsd_stalled(site: &mut Site) {
    let stall = site.stalls[1];
    let natsd = site.natsd.as_ref().expect("runs");
    natsd.signal(Signal::SIGSTOP);
    thread::sleep(stall);
    natsd.signal(Signal::SIGCONT);
    site.stalls[1] = stall.min(NATSD_STALL);
}

fn connection_cut(site: &mut Site) {
    let before = site.proxy.accepted();
    // An event with its headers is longer.
    site.proxy.cut_after(1000);
    wait_for("natsd connects again", || site.proxy.accepted() > before);
}

fn right_taken(site: &mut Site) {
    // Behind a stall a claim to the name that nobody has answered is waited out, for half a minute.
    let patience = Duration::from_secs(120);
    wait_for_within(patience, "what was before is over", || {
        !site.degraded().contains("MUSTER_STATE")
    });
    site.give_rights("wazuh.xdr.agent.>");
    site.wait_until_degraded("MUSTER_STATE");
    site.give_rights("nothing.at.all");
}

fn disk_full(site: &mut Site) {
    // Where nothing can be mounted, the test has said so.
    let Some(disk) = &site.disk else { return };
    disk.fill();
    site.wait_until_degraded("the spool takes no events");
    disk.free();
    // Whoever is killed before would make events anew of what the broker has from memory: they have no number on a disk.
    wait_for("the disk takes everything again", || {
        let held = site.home.facts().remove("held_events");
        held.is_some_and(|held| held == "0") && !site.degraded().contains("the spool takes no events")
    });
}

fn stream_deleted(site: &mut Site) {
    // Consumers have read it by then, but for what comes between this and the next line.
    let read = site.stored("MUSTER_STATE");
    block_on(async {
        let jetstream = async_nats::jetstream::new(site.server.client().await);
        jetstream.delete_stream("MUSTER_STATE").await.expect("deletes");
    });
    site.read.push(read);
    provision(&site.home);
}

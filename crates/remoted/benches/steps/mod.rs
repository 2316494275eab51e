//! The steps of remoted around a message, each as a closure that does it once: timed by `hot_path`, and counted by
//! `instructions`.

use std::{hint::black_box, net::SocketAddr, sync::Arc};

use muster_config::{ManagerVersion, Remote, Settings};
use muster_proto::keys::file::{self, KeyFile};
use muster_remoted::{
    keys::KeyTable,
    options,
    roster::{Actions, Roster, Times},
    session::{Origin, Rules, Verify, decide, identify},
    slot::{AgentSlot, ConnectionId, Millis, News, Protocol, Route, Said},
    wheel::Wheel,
};

/// A name, and what is done once for each call.
pub type Step = (String, Box<dyn FnMut()>);

/// Agents that are registered.
const AGENTS: u32 = 10_000;
const NOW: Times = Times {
    mono: Millis(1_000_000),
    wall_ms: 1_800_000_000_000,
};

fn key_file(agents: u32) -> KeyFile {
    let lines: String = (1..=agents)
        .map(|id| format!("{id} agent-{id} any {id:064}\n"))
        .collect();
    file::parse(lines.as_bytes())
}

fn peer() -> SocketAddr {
    ([10, 0, 0, 1], 40_000).into()
}

/// All of them. `keepalive` is what an agent says of itself, control header included.
pub fn all(keepalive: &'static str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (table, _) = KeyTable::default().next(&key_file(AGENTS));
    let table = Arc::new(table);

    let known = Arc::clone(&table);
    let find = move || {
        let sender = identify(&known, peer().ip(), black_box(b"!7777!#AES:0123456789abcdef"));
        assert!(sender.is_ok());
    };
    steps.push(("find an agent".to_owned(), Box::new(find)));

    let rules = Rules::new(&Remote::default(), ManagerVersion::default(), Verify::Ossec);
    let slot = Arc::clone(table.by_id("7777").unwrap());
    let origin = Origin {
        route: Route::Tcp {
            connection: ConnectionId::new(0, 1),
            peer: peer(),
        },
    };
    let judge = move || {
        let decision = decide(&slot, black_box(keepalive.as_bytes()), &origin, NOW.mono, &rules);
        assert!(decision.news.is_some());
    };
    steps.push(("decide about a keepalive".to_owned(), Box::new(judge)));

    let said = Arc::new(Said::new(keepalive));
    let (mut roster, slots) = roster(&table, &said);
    let (mut out, mut next, mut at) = (Actions::default(), 0, NOW);
    let tell = move || {
        let slot: &Arc<AgentSlot> = &slots[next];
        next = (next + 1) % slots.len();
        at.mono.0 += 1;
        let news = News::Keepalive {
            slot: Arc::clone(slot),
            at: at.mono,
            peer: peer(),
            protocol: Protocol::Tcp,
            said: Arc::clone(&said),
        };
        roster.on_news(at, news, &mut out);
        out.events.clear();
    };
    steps.push(("tell the roster of a keepalive".to_owned(), Box::new(tell)));

    let longer = key_file(AGENTS + 1);
    let reload = move || {
        let (next, changes) = table.next(black_box(&longer));
        assert_eq!((next.len(), changes.added.len()), (AGENTS as usize + 1, 1));
    };
    steps.push(("reload 10,000 keys".to_owned(), Box::new(reload)));

    let (mut wheel, mut tick, mut due) = (Wheel::new(0), 0, Vec::new());
    for entry in 0..AGENTS {
        wheel.arm(entry, 1 + u64::from(entry % 600));
    }
    let turn = move || {
        tick += 1;
        wheel.advance(tick, &mut due);
        for entry in due.drain(..) {
            wheel.arm(entry, tick + 600);
        }
    };
    steps.push(("turn the wheel by a tick, 17 due".to_owned(), Box::new(turn)));
    steps
}

/// A roster of agents that have all sent this keepalive.
fn roster(table: &KeyTable, said: &Arc<Said>) -> (Roster, Vec<Arc<AgentSlot>>) {
    let settings = options::roster_settings(&Settings::default(), "bench");
    let mut roster = Roster::new(settings, NOW, Vec::new(), 1);
    let mut slots: Vec<_> = table.slots().cloned().collect();
    slots.sort_by(|one, other| one.id.cmp(&other.id));
    let reloaded = News::KeysReloaded {
        added: slots.clone(),
        changed: Vec::new(),
        removed: Vec::new(),
    };
    let mut out = Actions::default();
    roster.on_news(NOW, reloaded, &mut out);
    for slot in &slots {
        slot.hear(NOW.mono);
        let news = News::Keepalive {
            slot: Arc::clone(slot),
            at: NOW.mono,
            peer: peer(),
            protocol: Protocol::Tcp,
            said: Arc::clone(said),
        };
        roster.on_news(NOW, news, &mut out);
        out.events.clear();
    }
    (roster, slots)
}

//! Orders to agents: datagrams of local programs, and what becomes of them.
//!
//! The input is a fleet and a row of datagrams. What must hold:
//!
//! * who gets an order is registered, was heard of late, and understands it;
//! * agents that know no JSON are sent none, and no agent is sent half of an order;
//! * what waits is sent in its order, or not at all after its time.

use std::{sync::Arc, time::Duration};

use muster_proto::{
    keys::file,
    local::{
        Layout,
        active_response::{Audience, Kind, Order, to_text},
    },
    transport::{
        control::{EXECD, HEADER},
        envelope::CryptoForm,
        keepalive::Family,
    },
};
use muster_remoted::{
    fuzzing,
    keys::KeyTable,
    orders::plan::{self, Held, MAX_HELD, Outcome, Planned},
    reach::Reach,
    slot::{AgentSlot, ConnectionId, Millis, Route},
};

use super::draw::Draw;

const AGENTS: usize = 4;
const SILENCE: Duration = Duration::from_secs(900);
const VERSIONS: [&str; 5] = ["v4.14.7", "Wazuh v4.1.5", "OSSEC HIDS v4.2.0", "v3.13", "nonsense"];
/// Longer than any order waits.
const LATER: Duration = Duration::from_secs(301);
/// What is drawn often enough that something comes of it.
const FLAGS: [&str; 7] = ["ANN", "NRN", "NNS", "NNN", "A!N", "N!S", "NRS"];
const BODIES: [&str; 6] = [
    r#"{"version":1,"command":"restart-wazuh0","parameters":{"extra_args":[],"alert":{}}}"#,
    r#"{"command":"firewall-drop180","parameters":{"extra_args":["a b"],"alert":{"id":"1.2","agent":{"id":"001","name":"x"}}}}"#,
    "force_reconnect",
    "syscheck restart",
    "restart-ossec0 - null (from_the_server) (no_rule_id)",
    "",
];

pub(super) fn orders(input: &[u8]) {
    let mut draw = Draw::new(input);
    let layout = if draw.flag() { Layout::Ossec } else { Layout::Wazuh };
    let mut now = Millis(10_000_000);
    let (table, reach) = (fleet(&mut draw, now), Reach::new(SILENCE));
    let mut held = Held::default();
    let mut waiting = 0;
    for _ in 0..60 {
        if draw.is_done() {
            break;
        }
        let planned = match draw.below(8) {
            0..=3 => ordered(&datagram(&mut draw), layout, &table),
            4 => scan(&mut draw, &table),
            5 => {
                now = now + Duration::from_secs(u64::from(draw.byte()));
                Vec::new()
            }
            6 => {
                change(&mut draw, &table, now);
                Vec::new()
            }
            _ => {
                let ready = held.ready(&reach, now);
                assert!(ready.len() <= waiting);
                waiting -= ready.len();
                ready.iter().for_each(|planned| check_sent(planned, &reach, now));
                Vec::new()
            }
        };
        for one in planned {
            match plan::judge(&one, &reach, now) {
                Outcome::Send => check_sent(&one, &reach, now),
                Outcome::Hold => {
                    assert!(one.slot.receives_file(), "only a file on its way is waited for");
                    waiting += usize::from(held.push(one, now));
                    assert!(waiting <= MAX_HELD);
                }
                Outcome::Away => assert!(!reach.is_there(&one.slot, now)),
                Outcome::Foreign => assert!(reach.is_there(&one.slot, now)),
            }
        }
    }
    held.ready(&reach, now + LATER);
    assert!(held.is_empty(), "nothing waits for ever");
}

fn fleet(draw: &mut Draw<'_>, now: Millis) -> KeyTable {
    let lines: String = (1..=AGENTS)
        .map(|number| format!("{number:03} agent-{number} any key-{number}\n"))
        .collect();
    let (table, _) = KeyTable::default().next(&file::parse(lines.as_bytes()));
    for _ in 0..AGENTS {
        change(draw, &table, now);
    }
    table
}

/// Something becomes known of an agent.
fn change(draw: &mut Draw<'_>, table: &KeyTable, now: Millis) {
    let choice = draw.byte();
    let id = format!("{:03}", 1 + choice % 4);
    let slot = table.by_id(&id).expect("registered");
    if choice & 4 == 0 {
        let form = if choice & 8 == 0 {
            CryptoForm::WazuhAes
        } else {
            CryptoForm::Blowfish
        };
        fuzzing::proved(slot, now, form);
        let connection = ConnectionId::new(0, u64::from(choice >> 4));
        fuzzing::bind(
            slot,
            Route::Tcp {
                connection,
                peer: ([10, 0, 0, 1], 7).into(),
            },
        );
    }
    if choice & 16 != 0 {
        fuzzing::set_family(slot, if choice & 32 == 0 { Family::Wazuh } else { Family::Ossec });
        fuzzing::set_version(slot, VERSIONS[draw.below(VERSIONS.len())]);
    }
    slot.set_receives_file(choice & 64 != 0);
}

fn datagram(draw: &mut Draw<'_>) -> Vec<u8> {
    match draw.below(3) {
        0 => draw.bytes().to_vec(),
        choice => {
            let flags = FLAGS[draw.below(FLAGS.len())];
            let mut bytes = format!("(x) [] {flags} {:03} ", draw.below(6)).into_bytes();
            if choice == 1 {
                bytes.extend_from_slice(BODIES[draw.below(BODIES.len())].as_bytes());
            }
            bytes.extend_from_slice(draw.bytes());
            bytes
        }
    }
}

fn ordered(datagram: &[u8], layout: Layout, table: &KeyTable) -> Vec<Planned> {
    let Ok(Some(order)) = Order::parse(layout, datagram) else {
        return Vec::new();
    };
    assert!(!order.body.contains(&0));
    let slots = match plan::recipients(&order.audience, table) {
        Ok(slots) => slots,
        Err(id) => {
            assert!(table.by_id(id).is_none() && order.audience.agent_id() == Some(id));
            return Vec::new();
        }
    };
    match &order.audience {
        Audience::Everyone => assert_eq!(slots.len(), table.len()),
        Audience::Nobody => assert!(slots.is_empty()),
        Audience::EventAgent(id) | Audience::Agent(id) => {
            assert!(slots.len() == 1 && slots.iter().all(|slot| slot.id.as_str() == id));
        }
    }
    slots.into_iter().map(|slot| planned(&order, slot)).collect()
}

fn planned(order: &Order<'_>, slot: Arc<AgentSlot>) -> Planned {
    let message = plan::message(order, &slot);
    assert!(message.starts_with(HEADER) && !message.contains(&0));
    if order.kind == Kind::ActiveResponse {
        let body = message.strip_prefix(EXECD).expect("an active response");
        let is_old = slot.family() == Some(Family::Ossec) || slot.release().is_some_and(|release| release < (4, 2));
        match to_text(order.body) {
            Some(text) if is_old => assert_eq!(body, text, "no JSON for those that know none"),
            _ => assert_eq!(body, order.body, "as it came"),
        }
        if let Some(text) = to_text(order.body) {
            assert!(text.len() < 1024 && !text.iter().any(u8::is_ascii_control));
        }
    }
    Planned { slot, message }
}

fn scan(draw: &mut Draw<'_>, table: &KeyTable) -> Vec<Planned> {
    let mut bytes = draw.bytes().to_vec();
    if draw.flag() {
        bytes = [format!("{:03}:sca-dump", draw.below(6)).as_bytes(), &bytes].concat();
    }
    let Some((id, message)) = plan::sca(&bytes) else {
        return Vec::new();
    };
    assert!(plan::is_sca(&message) && !message.contains(&0));
    let slot = table.by_id(id).cloned();
    slot.into_iter()
        .map(|slot| Planned {
            slot,
            message: message.clone(),
        })
        .collect()
}

fn check_sent(planned: &Planned, reach: &Reach, now: Millis) {
    let slot = &planned.slot;
    assert!(slot.route().is_some() && !slot.heard().is_never() && now.since(slot.heard()) <= SILENCE);
    assert!(reach.is_there(slot, now));
    let is_active_response = planned.message.starts_with(EXECD);
    assert!(is_active_response || !slot.receives_file(), "nothing goes into a file");
}

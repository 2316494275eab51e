//! Whatever happens in whatever order, some things hold.

use proptest::prelude::*;

use super::*;

const IDS: [&str; 4] = ["001", "002", "003", "004"];

#[derive(Clone, Debug)]
enum Step {
    Startup(usize),
    Refused(usize),
    Keepalive(usize),
    OssecKeepalive(usize),
    Event(usize),
    Shutdown(usize),
    LoseConnection(usize),
    Answer(usize, u32),
    Remove(usize),
    Enroll(usize),
    ChangeKey(usize),
    Wait(u64),
    Stall(u64),
    MoveWall(i64),
    Reconfigure(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let agent = || 0..IDS.len();
    prop_oneof![
        4 => agent().prop_map(Step::Startup),
        1 => agent().prop_map(Step::Refused),
        6 => agent().prop_map(Step::Keepalive),
        2 => agent().prop_map(Step::OssecKeepalive),
        4 => agent().prop_map(Step::Event),
        2 => agent().prop_map(Step::Shutdown),
        2 => agent().prop_map(Step::LoseConnection),
        2 => (agent(), 5u32..12).prop_map(|(agent, counter)| Step::Answer(agent, counter)),
        1 => agent().prop_map(Step::Remove),
        1 => agent().prop_map(Step::Enroll),
        1 => agent().prop_map(Step::ChangeKey),
        6 => (1u64..400).prop_map(Step::Wait),
        1 => (1u64..100_000).prop_map(Step::Stall),
        1 => any::<i32>().prop_map(|step| Step::MoveWall(i64::from(step))),
        1 => (1u64..200).prop_map(Step::Reconfigure),
        1 => Just(Step::Restart),
    ]
}

/// What a consumer of the events and a reader of the store know.
#[derive(Default)]
struct Witness {
    status: BTreeMap<String, u64>,
    /// When each agent was last heard.
    heard: BTreeMap<String, Millis>,
    /// The store.
    rows: BTreeMap<String, Row>,
}

impl Witness {
    fn hear(&mut self, stage: &mut Stage) {
        for event in std::mem::take(&mut stage.out.events) {
            if event.kind != Kind::StatusChange {
                continue;
            }
            let fields = body(&event)["status_change"].clone();
            let (from, to) = (
                fields["previous_status"].as_u64().unwrap(),
                fields["current_status"].as_u64().unwrap(),
            );
            let known = self.status.insert(event.subject_key.clone(), to).unwrap_or(3);
            assert_eq!(
                known, from,
                "{} begins where the one before ended: {fields}",
                event.subject_key
            );
            assert!((3..=15).contains(&fields["alert_level"].as_u64().unwrap()), "{fields}");
            if fields["reason"] == "keepalive_timeout" && from != to {
                let heard = self.heard[&event.subject_key];
                assert!(
                    stage.now.mono.since(heard) >= stage.roster.settings().policy.limits(None).timeout,
                    "{fields}"
                );
            }
        }
        let (rows, gone) = stage.roster.take_rows(stage.now, usize::MAX);
        gone.iter().for_each(|id| drop(self.rows.remove(id.as_str())));
        for mut row in rows {
            let known = self.rows.get(row.id.as_str()).and_then(|known| known.inventory.clone());
            row.inventory = row.inventory.or(known);
            self.rows.insert(row.id.to_string(), row);
        }
        for (id, slot) in &stage.slots {
            assert_eq!(
                self.rows[id].liveness.status,
                slot.status(),
                "{id}: what was told is stored"
            );
            let told = self.status.get(id).copied().unwrap_or(3);
            assert_eq!(
                u64::from(slot.status().code()),
                told,
                "{id}: what was told is what holds"
            );
            let shown = stage.roster.agent(stage.now, id).unwrap();
            assert_eq!(u64::from(shown.status.code()), told);
        }
        let active = self.status.values().filter(|status| **status == 0).count();
        assert_eq!(stage.roster.census()[0], active);
        assert_eq!(stage.roster.active, active);
        assert_eq!(stage.roster.len(), stage.slots.len());
    }
}

fn perform(stage: &mut Stage, witness: &mut Witness, step: &Step) {
    let there = |stage: &Stage, place: &usize| stage.slots.contains_key(IDS[*place]).then_some(IDS[*place]);
    let spoken = match step {
        Step::Startup(place)
        | Step::Refused(place)
        | Step::Keepalive(place)
        | Step::OssecKeepalive(place)
        | Step::Event(place)
        | Step::Shutdown(place)
        | Step::Answer(place, _) => there(stage, place),
        _ => None,
    };
    if let Some(id) = spoken {
        witness.heard.insert(id.to_owned(), stage.now.mono);
    }
    match (step, spoken) {
        (Step::Startup(_), Some(id)) => stage.startup(id),
        (Step::Refused(_), Some(id)) => stage.startup_with(id, StartupOutcome::NoVersion),
        (Step::Keepalive(_), Some(id)) => {
            stage.unreachable.remove(id);
            stage.keepalive(id, WAZUH);
        }
        (Step::OssecKeepalive(_), Some(id)) => stage.keepalive(id, OSSEC),
        (Step::Event(_), Some(id)) => stage.event(id),
        (Step::Shutdown(_), Some(id)) => stage.shutdown(id),
        (Step::Answer(_, counter), Some(id)) => stage.answer(id, &format!("{counter:x}"), b"{}"),
        (Step::LoseConnection(place), _) => {
            if let Some(id) = there(stage, place) {
                stage.lose_connection(id);
            }
        }
        (Step::Remove(place), _) => {
            if let Some(slot) = stage.slots.get(IDS[*place]).cloned() {
                stage.news(News::KeysReloaded {
                    added: Vec::new(),
                    changed: Vec::new(),
                    removed: vec![slot],
                });
                witness.hear_removal(stage, IDS[*place]);
            }
        }
        (Step::Enroll(place), _) if there(stage, place).is_none() => stage.enroll(&[IDS[*place]]),
        (Step::ChangeKey(place), _) => {
            if let Some(old) = stage.slots.get(IDS[*place]).cloned() {
                let line = format!("{} agent-{} any changed", IDS[*place], IDS[*place]);
                let new = Arc::new(AgentSlot::succeed(&file::parse(line.as_bytes()).entries[0], &old));
                stage.slots.insert(IDS[*place].to_owned(), Arc::clone(&new));
                stage.news(News::KeysReloaded {
                    added: Vec::new(),
                    changed: vec![new],
                    removed: Vec::new(),
                });
            }
        }
        (Step::Wait(seconds), _) => stage.wait(s(*seconds)),
        (Step::Stall(seconds), _) => stage.jump(s(*seconds)),
        (Step::MoveWall(step), _) => stage.now.wall_ms = stage.now.wall_ms.saturating_add_signed(*step),
        (Step::Reconfigure(seconds), _) => {
            let policy = Policy {
                interval: s(*seconds),
                timeout: s(3 * seconds),
                ..settings().policy
            };
            stage
                .roster
                .reconfigure(stage.now, RosterSettings { policy, ..settings() });
        }
        (Step::Restart, _) => restart(stage, witness),
        _ => {}
    }
}

impl Witness {
    fn hear_removal(&mut self, stage: &mut Stage, id: &str) {
        stage.slots.remove(id);
        // What is told of its end is told before it is forgotten.
        self.hear(stage);
        self.status.remove(id);
        self.heard.remove(id);
    }
}

fn restart(stage: &mut Stage, witness: &mut Witness) {
    let rows = witness.rows.values().cloned().collect();
    let ids: Vec<String> = stage.slots.keys().cloned().collect();
    *stage = Stage::restored(stage.roster.settings().clone(), stage.now, rows);
    stage.enroll(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    witness.heard.values_mut().for_each(|heard| *heard = stage.now.mono);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_change_is_told_in_a_chain_and_nobody_is_given_up_early(steps in prop::collection::vec(step(), 1..80)) {
        let mut stage = Stage::new(settings());
        let mut witness = Witness::default();
        stage.enroll(&IDS);
        for step in &steps {
            perform(&mut stage, &mut witness, step);
            witness.hear(&mut stage);
        }
    }
}

//! Keepalives, authd and disk with a made-up clock.

use muster_proto::{keys::file, shared::OSSEC_GROUP, transport::keepalive::Family};

use super::*;
use crate::{
    shared::library::MergedFile,
    slot::{ConnectionId, Route},
};

const OPTIONS: Options = Options {
    look_every: Duration::from_secs(10),
    guess: Guess::Never,
    limits: Limits { active: 8, begun: 8 },
    registrar: Registrar::Authd,
};

fn agent(number: u32, family: Family) -> Arc<AgentSlot> {
    let line = format!("{number:03} agent-{number} any {}\n", "k".repeat(64));
    let slot = AgentSlot::new(&file::parse(line.as_bytes()).entries[0]);
    slot.set_family(family);
    slot.bind(Route::Tcp {
        connection: ConnectionId::new(0, u64::from(number)),
        peer: ([127, 0, 0, 1], 7).into(),
    });
    Arc::new(slot)
}

fn library(groups: &[&str]) -> Library {
    let file = |group: &&str| Arc::new(MergedFile::of(group.as_bytes().to_vec()));
    Library {
        groups: groups.iter().map(|group| ((*group).to_owned(), file(group))).collect(),
        ..Library::default()
    }
}

fn groups_of(id: &str, groups: &[&str]) -> AgentGroups {
    AgentGroups {
        id: AgentId::new(id),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
    }
}

struct Scene {
    core: Core,
    told: Vec<Told>,
}

impl Scene {
    /// Disk and authd have been looked at.
    fn ready(known: Vec<AgentGroups>) -> Self {
        let mut scene = Self {
            core: Core::new(OPTIONS, Millis(1)),
            told: Vec::new(),
        };
        assert!(scene.core.next_look(Millis(1)).is_some());
        scene.core.on_library(Millis(1), library(&["default"]));
        assert_eq!(scene.ask(1), Some(Question::All));
        let answer = Answer::All {
            agents: known,
            version: 7,
        };
        scene.answer(1, &Question::All, answer);
        scene
    }

    fn ask(&mut self, now: u64) -> Option<Question> {
        self.core.next_question(Millis(now), &mut self.told)
    }

    fn answer(&mut self, now: u64, question: &Question, answer: Answer) {
        self.core.on_answer(Millis(now), question, answer, &mut self.told);
    }

    fn report(&mut self, now: u64, slot: &Arc<AgentSlot>, sum: Option<&str>) {
        let reported = Reported {
            slot: Arc::clone(slot),
            sum: sum.map(Arc::from),
        };
        self.core.on_sign(Millis(now), Sign::Reported(reported), &mut self.told);
    }

    fn words(&self) -> Vec<(String, &'static str)> {
        let word = |(_, shared): &Told| (shared.groups.join(","), shared.word().unwrap_or("none"));
        self.told.iter().map(word).collect()
    }
}

fn assign(group: &str, ids: &[&str]) -> Question {
    let ids = ids.iter().map(|id| AgentId::new(id)).collect();
    Question::Assign(BTreeMap::from([(group.to_owned(), ids)]))
}

#[test]
fn an_agent_without_a_group_gets_one_and_its_file() {
    let (mut scene, slot) = (Scene::ready(Vec::new()), agent(1, Family::Wazuh));
    scene.report(2, &slot, Some("x"));
    assert_eq!(scene.core.pushes.sizes(), (0, 0));
    let question = scene.ask(2).expect("a question");
    assert_eq!(question, assign("default", &["001"]));
    scene.report(3, &slot, Some("x"));
    assert_eq!(scene.ask(3), None);
    scene.answer(4, &question, Answer::Assigned(vec![groups_of("001", &["default"])]));
    assert_eq!(scene.core.pushes.sizes(), (1, 0));
    assert_eq!(scene.words(), [("default".to_owned(), "not synced")]);
    scene.report(5, &slot, Some(&library(&["default"]).groups["default"].sum));
    assert_eq!(scene.core.pushes.sizes(), (0, 0));
    assert_eq!(scene.words()[1], ("default".to_owned(), "synced"));
}

#[test]
fn a_keepalive_without_a_sum_gets_no_group_but_a_file_when_it_has_one() {
    let mut scene = Scene::ready(vec![groups_of("002", &["default"])]);
    scene.report(2, &agent(1, Family::Wazuh), None);
    assert_eq!(scene.ask(2), None);
    scene.report(2, &agent(2, Family::Wazuh), None);
    assert_eq!(scene.core.pushes.sizes(), (1, 0));
}

fn look(group: &str, ids: &[&str]) -> Question {
    match assign(group, ids) {
        Question::Assign(wanted) => Question::Look(wanted),
        other => other,
    }
}

#[test]
fn stock_database_is_asked_at_each_keepalive_where_no_authd_is() {
    let (mut scene, slot) = (Scene::ready(Vec::new()), agent(1, Family::Wazuh));
    scene.report(2, &slot, Some("x"));
    let question = scene.ask(2).expect("a question");
    scene.answer(3, &question, Answer::Database);
    let question = scene.ask(4).expect("the same again, of the database");
    assert_eq!(question, look("default", &["001"]));
    scene.answer(5, &question, Answer::Assigned(vec![groups_of("001", &["default"])]));
    assert_eq!(scene.core.pushes.sizes(), (1, 0));

    let sum = library(&["default"]).groups["default"].sum.clone();
    scene.report(6, &slot, Some(&sum));
    assert_eq!(scene.ask(6), Some(look("default", &["001"])));
    scene.answer(
        7,
        &look("default", &["001"]),
        Answer::Assigned(vec![groups_of("001", &["default"])]),
    );
    assert_eq!(scene.core.pushes.sizes(), (0, 0));
    // Without a sum it is only asked, not given a group.
    scene.report(8, &slot, None);
    assert_eq!(scene.ask(8), Some(look(ONLY_ASK, &["001"])));
    scene.answer(9, &look(ONLY_ASK, &["001"]), Answer::Assigned(Vec::new()));
    assert_eq!(scene.core.pushes.sizes(), (0, 0));
    // When it goes, authd may be the next one.
    scene.report(10, &slot, Some("x"));
    let question = scene.ask(10).expect("a question");
    scene.answer(11, &question, Answer::Away("gone".to_owned()));
    assert_eq!(scene.ask(10_000), Some(Question::All));
}

#[test]
fn the_group_of_ossec_agents_is_made_before_it_is_given() {
    let (mut scene, slot) = (Scene::ready(Vec::new()), agent(1, Family::Ossec));
    scene.report(2, &slot, Some("x"));
    assert_eq!(scene.ask(2), None);
    assert!(scene.core.next_wake() > Millis(2));
    let look = scene.core.next_look(Millis(600)).expect("a look");
    assert!(look.needed.contains(OSSEC_GROUP));
    scene.core.on_library(Millis(601), library(&["default", OSSEC_GROUP]));
    assert_eq!(scene.ask(602), Some(assign(OSSEC_GROUP, &["001"])));
}

#[test]
fn an_agent_whose_group_cannot_be_made_asks_again_with_its_next_keepalive() {
    let (mut scene, slot) = (Scene::ready(Vec::new()), agent(1, Family::Ossec));
    scene.report(2, &slot, Some("x"));
    assert_eq!(scene.ask(2), None);
    assert!(scene.core.next_look(Millis(600)).is_some());
    scene.core.on_library(Millis(601), library(&["default"]));
    assert_eq!(scene.ask(602), None);
    assert_eq!(scene.core.next_wake(), Millis(600) + OPTIONS.look_every);
    scene.report(700, &slot, Some("x"));
    assert_eq!(scene.ask(700), None);
}

#[test]
fn while_authd_is_away_known_agents_are_served_and_others_wait() {
    let mut scene = Scene::ready(vec![groups_of("002", &["default"])]);
    let slot = agent(1, Family::Wazuh);
    scene.report(2, &slot, Some("x"));
    let question = scene.ask(2).expect("a question");
    scene.answer(3, &question, Answer::Away("gone".to_owned()));
    assert_eq!(scene.core.away(), Some("gone"));
    scene.report(4, &agent(2, Family::Wazuh), Some("x"));
    assert_eq!(scene.core.pushes.sizes(), (1, 0));
    assert_eq!(scene.ask(4), None);
    assert_eq!(scene.core.next_wake(), Millis(3) + REST);
    let question = scene.ask(503).expect("the same question");
    assert_eq!(question, assign("default", &["001"]));
    scene.answer(504, &question, Answer::Away("gone".to_owned()));
    assert_eq!(scene.ask(504 + 999), None);
    assert!(scene.ask(504 + 1000).is_some());
    scene.answer(2000, &question, Answer::Assigned(vec![groups_of("001", &["default"])]));
    assert_eq!((scene.core.away(), scene.core.pushes.sizes()), (None, (2, 0)));
}

#[test]
fn changed_groups_are_asked_for_when_somebody_says_so() {
    let mut scene = Scene::ready(vec![groups_of("001", &["default"])]);
    scene.core.on_prompt(Millis(1000));
    assert_eq!(scene.ask(1000), Some(Question::Version));
    scene.answer(1001, &Question::Version, Answer::Version(7));
    assert_eq!(scene.ask(1001), None);
    scene.core.on_prompt(Millis(2000));
    assert_eq!(scene.ask(2000), Some(Question::Version));
    scene.answer(2001, &Question::Version, Answer::Version(8));
    assert_eq!(scene.ask(2001), Some(Question::All));
    let answer = Answer::All {
        agents: vec![groups_of("001", &["default", "web"])],
        version: 8,
    };
    scene.answer(2002, &Question::All, answer);
    let look = scene.core.next_look(Millis(2002)).expect("a look for the new list");
    assert_eq!(look.lists.len(), 1);
    assert!(look.are_all);
}

#[test]
fn an_id_that_becomes_somebody_elses_has_no_group_any_more() {
    let mut scene = Scene::ready(vec![groups_of("001", &["default"])]);
    let new = agent(1, Family::Wazuh);
    new.set_receives_file(true);
    let sign = Sign::Keys {
        changed: vec![Arc::clone(&new)],
        removed: Vec::new(),
    };
    scene.core.on_sign(Millis(2), sign, &mut scene.told);
    assert!(!new.receives_file());
    scene.report(3, &new, Some("x"));
    assert_eq!(scene.ask(3), Some(assign("default", &["001"])));
}

#[test]
fn without_authd_groups_are_given_here() {
    let options = Options {
        registrar: Registrar::Nobody,
        ..OPTIONS
    };
    let mut scene = Scene {
        core: Core::new(options, Millis(1)),
        told: Vec::new(),
    };
    assert!(scene.core.next_look(Millis(1)).is_some());
    scene.core.on_library(Millis(1), library(&["default"]));
    scene.report(2, &agent(1, Family::Wazuh), Some("x"));
    assert_eq!(scene.ask(2), None);
    assert_eq!(scene.core.pushes.sizes(), (1, 0));
    scene.core.on_prompt(Millis(3));
    assert_eq!(scene.ask(3), None);
}

#[test]
fn the_disk_is_looked_at_at_intervals_and_not_more_often_than_makes_sense() {
    let mut scene = Scene::ready(Vec::new());
    assert_eq!(scene.core.next_look(Millis(9_999)), None);
    assert!(scene.core.next_look(Millis(10_001)).is_some());
    scene.core.on_prompt(Millis(10_002));
    assert_eq!(scene.core.next_look(Millis(10_600)), None);
    scene.core.on_library(Millis(10_600), library(&["default"]));
    assert!(scene.core.next_look(Millis(10_600)).is_some());
}

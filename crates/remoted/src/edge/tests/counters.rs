//! Agents whose counters went back.

use super::*;

fn checking() -> Stage {
    let mut setting = Setting::default();
    setting.settings.internal.remoted.verify_msg_id = Some(true);
    setting.start()
}

/// An agent that has said something and gone.
fn visit(stage: &Stage) {
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, STARTUP);
    assert_eq!(agent.hear(&mut link), ACK);
    agent.say(&mut link, KEEPALIVE);
    assert_eq!(agent.hear(&mut link), ACK);
    agent.say(&mut link, "#!-agent shutdown ");
    drop(link);
    // Until then the agent is that connection's.
    let slot = Arc::clone(stage.edge.tables.borrow().by_id("001").unwrap());
    let until = Instant::now() + PATIENCE;
    while slot.owner().is_some() {
        assert!(Instant::now() < until, "the connection ends");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// The same agent as it was before all that.
fn set_back_is_heard(stage: &Stage) -> bool {
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    // Before it is said: a worker may be quicker than we are.
    let refused = stage.edge.count(Tally::RefusedReplay);
    agent.say(&mut link, STARTUP);
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if stage.edge.count(Tally::RefusedReplay) > refused {
            return false;
        }
        if stage.edge.count(Tally::Startups) > 1 {
            assert_eq!(agent.hear(&mut link), ACK);
            return true;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    panic!("neither refused nor heard");
}

#[test]
fn agent_that_was_set_back_is_refused_until_its_counters_are_forgotten() {
    let stage = checking();
    visit(&stage);
    assert!(!set_back_is_heard(&stage));
    assert!(!stage.edge.reset_counter("999"));
    assert!(stage.edge.reset_counter("001"));
    assert!(set_back_is_heard(&stage));
}

#[test]
fn file_of_counters_that_is_removed_while_running_counts() {
    let stage = checking();
    visit(&stage);
    let file = stage.home.path().join("queue/rids/001");
    let until = Instant::now() + PATIENCE;
    while !file.exists() {
        assert!(Instant::now() < until, "goodbye stores the counters");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    // Until the slot knows that the file holds them.
    while stage
        .edge
        .tables
        .borrow()
        .by_id("001")
        .unwrap()
        .received_unwritten()
        .is_some()
    {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    fs::remove_file(&file).unwrap();
    assert!(!set_back_is_heard(&stage), "the message that finds it out is refused");
    assert!(set_back_is_heard(&stage));
}

//! Holes, what declares them, and numbers that begin anew.

use super::*;

#[test]
fn loss_of_cheap_events_that_is_declared_hides_no_loss_of_dear_ones() {
    let mut node = Node::new();
    let mut verifier = node.verifier();
    let messages: Vec<_> = (0..9).map(|_| node.change()).collect();
    for place in [0, 5, 8] {
        verifier.check(&messages[place], NOW);
    }
    // Of 2 to 5, only 4 and 5 were dropped knowingly; 7 and 8 not at all, but something of another stream was.
    for gap in [
        node.gap_of("MUSTER_STATE", &[(4, 5)]),
        node.gap_of("MUSTER_ALERTS", &[(2, 9)]),
    ] {
        assert_eq!(verifier.check(&gap, NOW).fate, Fate::Accept);
    }
    let ends = |verifier: &Verifier| {
        verifier
            .undeclared()
            .iter()
            .map(|(_, _, hole)| hole.upto)
            .collect::<Vec<_>>()
    };
    assert_eq!(ends(&verifier), [Some(5), Some(8)]);
    let gap = node.gap_of("MUSTER_STATE", &[(2, 3), (7, 8)]);
    verifier.check(&gap, NOW);
    assert_eq!(ends(&verifier), []);
}

#[test]
fn hole_is_overdue_after_a_minute_and_told_once() {
    let mut node = Node::new();
    let mut verifier = node.verifier();
    let messages: Vec<_> = (0..5).map(|_| node.change()).collect();
    verifier.check(&messages[0], NOW);
    verifier.check(&messages[2], NOW);
    assert_eq!(verifier.overdue(NOW + OVERDUE_MS - 1, OVERDUE_MS), []);
    verifier.check(&messages[4], NOW + OVERDUE_MS - 1);
    let told = verifier.overdue(NOW + OVERDUE_MS, OVERDUE_MS);
    assert_eq!(told.iter().map(|(_, _, hole)| hole.after).collect::<Vec<_>>(), [1]);
    assert!(verifier.was_told(&told[0]));
    assert_eq!(verifier.overdue(NOW + OVERDUE_MS, OVERDUE_MS), [], "once");
    verifier.check(&node.gap(4), NOW + OVERDUE_MS);
    assert_eq!(
        verifier.overdue(NOW + 3 * OVERDUE_MS, OVERDUE_MS),
        [],
        "the other one was declared in time"
    );
}

impl Node {
    /// Loses its spool: the numbers begin anew, in an epoch that is announced.
    fn lose_state(&mut self, epoch: u64) -> Message {
        self.composer.epoch = epoch;
        self.last.clear();
        self.next = 1;
        self.announce_lost(1)
    }

    fn announce_lost(&mut self, first_seq: u64) -> Message {
        let mut body = serde_json::to_value(self.record()).expect("a record");
        body["reason"] = "state_lost".into();
        body["begun"] = serde_json::json!([[self.composer.epoch, first_seq]]);
        self.say(&manager_event(Kind::KeyAnnouncement, "", NOW, 3, wrapped("key", &body)))
    }
}

fn state_holes(verifier: &Verifier) -> Vec<(u64, u64, Option<u64>)> {
    let holes = verifier.undeclared();
    let of_state = holes.iter().filter(|(_, stream, _)| *stream == Stream::State);
    of_state.map(|(_, _, hole)| (hole.run, hole.after, hole.upto)).collect()
}

#[test]
fn numbers_begin_anew_behind_an_announced_loss_and_what_was_missing_stays_missing() {
    let mut node = Node::new();
    let mut verifier = node.verifier();
    let before: Vec<_> = (0..9).map(|_| node.change()).collect();
    for place in [0, 1, 5] {
        assert_eq!(verifier.check(&before[place], NOW).fate, Fate::Accept);
    }
    let announced = node.lose_state(900);
    let after: Vec<_> = (0..5).map(|_| node.change()).collect();
    assert!(waits(&verifier.check(&after[0], NOW), "epoch"), "it was not announced");
    assert_eq!(verifier.check(&announced, NOW).fate, Fate::Accept);
    assert_eq!(
        state_holes(&verifier),
        [(0, 2, Some(5)), (0, 6, None)],
        "though nothing has come since"
    );
    for place in [0, 1, 3] {
        assert_eq!(verifier.check(&after[place], NOW).fate, Fate::Accept);
    }
    // The announcement was number 1 of the new ones.
    assert_eq!(
        state_holes(&verifier),
        [(0, 2, Some(5)), (0, 6, None), (900, 3, Some(4))]
    );
    assert_eq!(verifier.check(&before[0], NOW).fate, Fate::Duplicate);
    assert_eq!(verifier.check(&after[1], NOW).fate, Fate::Duplicate);
    // What is late of the old ones still fits, and nothing else does.
    for late in [&before[3], &before[8], &before[7]] {
        assert_eq!(verifier.check(late, NOW).fate, Fate::Accept);
    }
    assert_eq!(
        state_holes(&verifier).len(),
        5,
        "3, 5 and 7 of the old ones, what came behind 9, and one of the new ones"
    );
    assert_eq!(
        verifier.check(&node.gap_of("MUSTER_STATE", &[(1, 9)]), NOW).fate,
        Fate::Accept
    );
    assert!(
        state_holes(&verifier).iter().all(|(run, _, _)| *run == 0),
        "declared were the new numbers, and not the old ones of the same value"
    );
}

#[test]
fn lost_file_of_numbers_loses_nothing_where_the_numbers_go_on() {
    let mut node = Node::new();
    let mut verifier = node.verifier();
    let before: Vec<_> = (0..3).map(|_| node.change()).collect();
    for message in &before[..2] {
        verifier.check(message, NOW);
    }
    node.composer.epoch = 900;
    let announced = node.announce_lost(node.next);
    let after = [node.change(), node.change()];
    assert_eq!(verifier.check(&announced, NOW).fate, Fate::Accept);
    assert_eq!(state_holes(&verifier), []);
    assert_eq!(verifier.check(&after[0], NOW).fate, Fate::Accept);
    assert_eq!(state_holes(&verifier), [(0, 2, Some(3))]);
    assert_eq!(verifier.check(&before[2], NOW).fate, Fate::Accept);
    assert_eq!(verifier.check(&after[1], NOW).fate, Fate::Accept);
    assert_eq!(state_holes(&verifier), []);
}

#[test]
fn who_hears_only_of_a_later_start_knows_where_the_numbers_began() {
    let mut node = Node::new();
    let mut verifier = node.verifier();
    let before = node.change();
    verifier.check(&before, NOW);
    node.lose_state(900);
    let lost = node.change();
    node.composer.epoch = 901;
    let mut body = serde_json::to_value(node.record()).expect("a record");
    (body["reason"], body["begun"]) = ("start".into(), serde_json::json!([[900, 1]]));
    let event = manager_event(Kind::KeyAnnouncement, "", NOW, 3, wrapped("key", &body));
    let announced = node.say(&event);
    assert_eq!(verifier.hear(&announced).fate, Fate::Accept);
    let change = node.change();
    assert_eq!(verifier.check(&change, NOW).fate, Fate::Accept);
    assert_eq!(verifier.check(&lost, NOW).fate, Fate::Accept, "it was only late");
    assert_eq!(state_holes(&verifier), [(0, 1, None)]);
}

#[test]
fn who_sees_an_epoch_before_hearing_how_it_began_misses_nothing_for_that() {
    let mut node = Node::new();
    let mut verifier = node.verifier();
    let announced = node.lose_state(900);
    let changes: Vec<_> = (0..6).map(|_| node.change()).collect();
    for place in [0, 2] {
        assert_eq!(
            verifier.check(&changes[place], NOW).fate,
            Fate::Accept,
            "the first epoch that is seen"
        );
    }
    assert_eq!(verifier.check(&announced, NOW).fate, Fate::Accept);
    for place in [3, 5, 1] {
        assert_eq!(verifier.check(&changes[place], NOW).fate, Fate::Accept);
    }
    assert_eq!(state_holes(&verifier), [(900, 5, Some(6))]);
}

#[test]
fn epoch_that_is_announced_as_any_other_cannot_begin_the_numbers_anew() {
    let mut node = Node::new();
    let mut verifier = node.verifier();
    for _ in 0..5 {
        verifier.check(&node.change(), NOW);
    }
    node.lose_state(900);
    let (record, change) = (node.record(), node.change());
    let announced = node.announce(&record);
    assert_eq!(verifier.hear(&announced).fate, Fate::Accept);
    assert_eq!(step(&verifier.check(&change, NOW)), REPLAY);
}

#[test]
fn quiet_stream_of_a_node_that_has_lost_its_state_is_overdue_like_any_hole() {
    let mut node = Node::new();
    let mut verifier = node.verifier();
    verifier.check(&node.change(), NOW);
    let announced = node.lose_state(900);
    assert_eq!(verifier.hear(&announced).fate, Fate::Accept);
    assert_eq!(verifier.overdue(NOW + OVERDUE_MS - 1, OVERDUE_MS), []);
    assert_eq!(verifier.overdue(NOW + OVERDUE_MS, OVERDUE_MS).len(), 1);
    assert_eq!(verifier.overdue(NOW + 2 * OVERDUE_MS, OVERDUE_MS), []);
    assert_eq!(state_holes(&verifier), [(0, 1, None)]);
    assert_eq!(verifier.check(&node.change(), NOW).fate, Fate::Accept);
    assert_eq!(state_holes(&verifier), [(0, 1, None)]);
}

#[test]
fn unsigned_node_that_begins_anew_is_followed_and_its_loss_told() {
    let mut node = Node::new();
    node.composer.keyring = None;
    let mut lax = Verifier::new(Policy {
        signed: false,
        ..Policy::default()
    });
    for _ in 0..3 {
        lax.check(&node.change(), NOW);
    }
    node.lose_state(900);
    for _ in 0..3 {
        assert_eq!(lax.check(&node.change(), NOW).fate, Fate::Accept);
    }
    assert_eq!(state_holes(&lax), [(0, 3, None)]);
}

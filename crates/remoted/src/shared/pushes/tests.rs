//! Pushes with a made-up clock and made-up workers.

use muster_proto::{
    keys::file,
    transport::control::{ACK, CLOSE_FILE, UP_FILE},
};

use super::*;
use crate::{shared::push::RETRY, slot::ConnectionId};

const LIMITS: Limits = Limits { active: 2, begun: 4 };

fn slot(number: u32) -> Arc<AgentSlot> {
    let line = format!("{number:03} agent-{number} any {}\n", "k".repeat(64));
    let entry = file::parse(line.as_bytes()).entries.remove(0);
    let slot = AgentSlot::new(&entry);
    slot.bind(tcp(u64::from(number)));
    Arc::new(slot)
}

fn tcp(sequence: u64) -> Route {
    Route::Tcp {
        connection: ConnectionId::new(0, sequence),
        peer: ([127, 0, 0, 1], 7).into(),
    }
}

fn udp() -> Route {
    Route::Udp {
        worker: 0,
        socket: 0,
        peer: ([127, 0, 0, 1], 7).into(),
    }
}

fn content(len: usize) -> Arc<MergedFile> {
    Arc::new(MergedFile::of(vec![b'x'; len]))
}

fn result(job: &Job, count: usize, stopped: Option<Stopped>) -> JobResult {
    JobResult {
        id: job.slot.id.clone(),
        ticket: job.ticket,
        taken: Taken { count, stopped },
    }
}

/// Hands out and takes everything that may go now; all messages in order.
fn drain(pushes: &mut Pushes, now: Millis) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    while let Some(job) = pushes.next_job(now) {
        sent.extend(job.messages.iter().cloned());
        pushes.on_result(now, &result(&job, job.messages.len(), None));
    }
    sent
}

fn heads(messages: &[Vec<u8>]) -> usize {
    messages.iter().filter(|message| message.starts_with(UP_FILE)).count()
}

#[test]
fn a_push_runs_to_its_end_and_its_agent_is_marked_meanwhile() {
    let (mut pushes, agent) = (Pushes::new(LIMITS), slot(1));
    pushes.on_differs(Millis(1), &agent, &content(9000));
    let job = pushes.next_job(Millis(1)).expect("a job");
    assert!(agent.receives_file());
    pushes.on_result(Millis(1), &result(&job, job.messages.len(), None));
    let rest = drain(&mut pushes, Millis(1));
    assert_eq!(rest.last().map(Vec::as_slice), Some(CLOSE_FILE));
    assert!(!agent.receives_file());
    assert_eq!(
        (pushes.sizes(), pushes.counters().pushes_done_total.value()),
        ((0, 0), 1)
    );
}

#[test]
fn the_next_keepalives_do_not_begin_it_anew() {
    let (mut pushes, agent) = (Pushes::new(LIMITS), slot(1));
    agent.bind(udp());
    let (file, other) = (content(62_787), content(10));
    pushes.on_differs(Millis(1), &agent, &file);
    let mut sent = drain(&mut pushes, Millis(1));
    for now in [500, 800, 1001, 1500, 2001] {
        pushes.on_differs(Millis(now), &agent, &other);
        sent.extend(drain(&mut pushes, Millis(now)));
    }
    assert_eq!((heads(&sent), sent.len()), (1, 72));
    assert!(!sent.iter().any(|message| message == ACK));
    // The keepalive that was under way when the file ended says the old sum still.
    pushes.on_differs(Millis(2002), &agent, &file);
    assert_eq!(drain(&mut pushes, Millis(2002)).len(), 0);
    pushes.on_differs(Millis(9000), &agent, &file);
    assert_eq!(heads(&drain(&mut pushes, Millis(9000))), 1);
}

#[test]
fn a_change_of_the_file_is_pushed_at_once_behind_the_old_one() {
    let (mut pushes, agent) = (Pushes::new(LIMITS), slot(1));
    pushes.on_differs(Millis(1), &agent, &content(10));
    drain(&mut pushes, Millis(1));
    pushes.on_differs(Millis(2), &agent, &content(11));
    assert_eq!(heads(&drain(&mut pushes, Millis(2))), 1);
}

#[test]
fn an_agent_that_comes_back_gets_the_file_anew_from_its_beginning() {
    let (mut pushes, agent) = (Pushes::new(LIMITS), slot(1));
    let file = content(20_000);
    pushes.on_differs(Millis(1), &agent, &file);
    let old = pushes.next_job(Millis(1)).expect("a job");
    agent.bind(tcp(99));
    pushes.on_broken_off(&agent.id);
    assert!(!agent.receives_file());
    // What the worker says of the old push does not count any more.
    pushes.on_result(Millis(1), &result(&old, old.messages.len(), None));
    assert!(pushes.next_job(Millis(1)).is_none());
    pushes.on_differs(Millis(2), &agent, &file);
    let job = pushes.next_job(Millis(2)).expect("a job");
    assert!(job.messages[0].starts_with(UP_FILE));
    assert_eq!(job.route, tcp(99));
}

#[test]
fn a_push_whose_route_has_changed_sends_nothing_more() {
    let (mut pushes, agent) = (Pushes::new(LIMITS), slot(1));
    pushes.on_differs(Millis(1), &agent, &content(20_000));
    let job = pushes.next_job(Millis(1)).expect("a job");
    agent.bind(tcp(99));
    pushes.on_result(Millis(1), &result(&job, job.messages.len(), None));
    assert!(pushes.next_job(Millis(1)).is_none());
    assert_eq!(pushes.counters().pushes_broken_off_total.value(), 1);
}

#[test]
fn an_agent_without_a_route_is_forgotten() {
    let (mut pushes, agent) = (Pushes::new(LIMITS), slot(1));
    agent.unbind(ConnectionId::new(0, 1));
    pushes.on_differs(Millis(1), &agent, &content(10));
    assert!(pushes.next_job(Millis(1)).is_none());
    assert_eq!(pushes.sizes(), (0, 0));
}

#[test]
fn no_more_are_active_or_begun_than_may_be() {
    let mut pushes = Pushes::new(LIMITS);
    let agents: Vec<_> = (1..=6).map(slot).collect();
    for agent in &agents {
        agent.bind(udp());
        pushes.on_differs(Millis(1), agent, &content(62_787));
    }
    let jobs: Vec<_> = std::iter::from_fn(|| pushes.next_job(Millis(1))).collect();
    assert_eq!(jobs.len(), 2);
    for job in &jobs {
        pushes.on_result(Millis(1), &result(job, job.messages.len(), None));
    }
    // Four come to their first pause; the other two wait until one of them has ended.
    assert_eq!(heads(&drain(&mut pushes, Millis(1))), 2);
    assert_eq!(pushes.sizes(), (2, 4));
    assert_eq!(pushes.next_wake(), Some(Millis(1001)));
    let mut messages = drain(&mut pushes, Millis(1001));
    for second in 2..10 {
        messages.extend(drain(&mut pushes, Millis(second * 1000 + 1)));
    }
    assert_eq!(heads(&messages), 2);
    assert_eq!(pushes.counters().pushes_done_total.value(), 6);
}

#[test]
fn who_agrees_meanwhile_waits_no_more_and_asking_again_keeps_one_place() {
    let mut pushes = Pushes::new(Limits { active: 1, begun: 1 });
    let (first, second) = (slot(1), slot(2));
    pushes.on_differs(Millis(1), &first, &content(9000));
    let job = pushes.next_job(Millis(1)).expect("a job");
    for _ in 0..5 {
        pushes.on_differs(Millis(1), &second, &content(10));
        pushes.on_agrees(&second.id);
        pushes.on_differs(Millis(1), &second, &content(10));
    }
    assert_eq!(pushes.sizes(), (1, 1));
    pushes.on_agrees(&second.id);
    pushes.on_result(Millis(1), &result(&job, job.messages.len(), None));
    assert_eq!(heads(&drain(&mut pushes, Millis(1))), 0);
}

#[test]
fn a_slow_agent_is_tried_again_and_given_up_after_a_minute() {
    let (mut pushes, agent) = (Pushes::new(LIMITS), slot(1));
    pushes.on_differs(Millis(1), &agent, &content(20_000));
    let job = pushes.next_job(Millis(1)).expect("a job");
    pushes.on_result(Millis(1), &result(&job, 2, Some(Stopped::Full)));
    assert!(pushes.next_job(Millis(1)).is_none());
    let again = pushes.next_wake().expect("a time");
    assert_eq!(again, Millis(1) + RETRY);
    let job = pushes.next_job(again).expect("a job");
    assert!(!job.messages[0].starts_with(UP_FILE));
    pushes.on_result(Millis(60_001), &result(&job, 0, Some(Stopped::Full)));
    assert_eq!(pushes.counters().pushes_given_up_total.value(), 1);
    assert!(!agent.receives_file());
}

#[test]
fn an_agent_that_never_agrees_gets_the_same_file_less_and_less_often() {
    let (mut pushes, agent) = (Pushes::new(LIMITS), slot(1));
    let file = content(10);
    let mut pushed_at = Vec::new();
    for second in 1..2000_u64 {
        let now = Millis(second * 1000);
        pushes.on_differs(now, &agent, &file);
        if heads(&drain(&mut pushes, now)) > 0 {
            pushed_at.push(second);
        }
    }
    assert_eq!(pushed_at, [1, 2, 3, 63, 183, 423, 903, 1863]);
    // Another file, or one that it had meanwhile, is not its fault.
    pushes.on_differs(Millis(2_000_000), &agent, &content(11));
    assert_eq!(heads(&drain(&mut pushes, Millis(2_000_000))), 1);
    pushes.on_agrees(&agent.id);
    pushes.on_differs(Millis(2_000_001), &agent, &content(11));
    assert_eq!(heads(&drain(&mut pushes, Millis(2_000_001))), 1);
}

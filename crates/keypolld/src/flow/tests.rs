use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const BOTH: Route = Route {
    socket: true,
    command: true,
};
const WORKS: Report = Report {
    socket: Some(Health::Works),
    command: None,
};
const DOWN: Report = Report {
    socket: Some(Health::Down),
    command: Some(Health::Down),
};

fn limits() -> Limits {
    Limits {
        threads: 1,
        queue: 4,
        per_text: Rate::UNLIMITED,
        total: Rate::UNLIMITED,
        negative_cache: Duration::from_secs(60),
        deadline: Duration::from_secs(120),
        breaker: BreakerRule {
            failures: 3,
            pause: Duration::from_secs(30),
        },
        sources: BOTH,
    }
}

fn id(number: u32) -> Lookup {
    Lookup::new("id", &number.to_string()).unwrap()
}

fn run(flow: &mut Flow, now: Instant) -> Job {
    match flow.next(now) {
        Some(Step::Run(job)) => job,
        other => panic!("{other:?}"),
    }
}

fn finish(flow: &mut Flow, lookup: &Lookup, report: Report, remember: Remember, now: Instant) -> Turns {
    let turns = flow.looked(lookup, report, now);
    flow.settled(lookup, remember, now);
    turns
}

#[test]
fn identical_requests_are_one_look_up_until_it_has_settled() {
    let now = Instant::now();
    let mut flow = Flow::new(limits(), now);
    assert_eq!(flow.ask(id(1), now), Admission::Queued);
    assert_eq!(flow.ask(id(1), now), Admission::Merged);
    let job = run(&mut flow, now);
    assert_eq!(flow.ask(id(1), now), Admission::Merged);
    flow.looked(&job.lookup, WORKS, now);
    assert_eq!(flow.ask(id(1), now), Admission::Merged);
    flow.settled(&job.lookup, Remember::No, now);
    assert_eq!(flow.ask(id(1), now), Admission::Queued);
}

#[test]
fn an_id_and_an_address_are_two_requests() {
    let now = Instant::now();
    let mut flow = Flow::new(limits(), now);
    assert_eq!(flow.ask(id(1), now), Admission::Queued);
    assert_eq!(flow.ask(Lookup::new("ip", "10.0.0.1").unwrap(), now), Admission::Queued);
    assert_eq!(flow.ask(Lookup::new("id", "001").unwrap(), now), Admission::Queued);
}

#[test]
fn no_more_look_ups_run_than_there_are_threads() {
    let now = Instant::now();
    let mut flow = Flow::new(Limits { threads: 2, ..limits() }, now);
    for number in 1..=4 {
        flow.ask(id(number), now);
    }
    let first = run(&mut flow, now);
    run(&mut flow, now);
    assert_eq!(flow.next(now), None);
    flow.looked(&first.lookup, WORKS, now);
    assert_eq!(
        run(&mut flow, now).lookup,
        id(3),
        "the worker is free while the key is registered"
    );
}

#[test]
fn look_ups_wait_while_authd_has_its_hands_full() {
    let now = Instant::now();
    let mut flow = Flow::new(
        Limits {
            queue: 1000,
            ..limits()
        },
        now,
    );
    for number in 1..=1000 {
        flow.ask(id(number), now);
    }
    for _ in 0..MAX_REGISTERING {
        let job = run(&mut flow, now);
        flow.looked(&job.lookup, WORKS, now);
    }
    assert_eq!(flow.next(now), None);
    flow.settled(&id(1), Remember::UntilSettled, now);
    run(&mut flow, now);
}

#[test]
fn a_full_line_turns_away_and_takes_who_comes_again_into_another() {
    let now = Instant::now();
    let mut flow = Flow::new(limits(), now);
    for number in 1..=4 {
        assert_eq!(flow.ask(id(number), now), Admission::Queued);
    }
    assert_eq!(flow.ask(id(5), now), Admission::Full);
    assert_eq!(flow.ask(id(5), now + Duration::from_secs(10)), Admission::Queued);
    assert_eq!(flow.gauges().returning, 1);
}

#[test]
fn a_flood_of_made_up_ids_leaves_every_second_look_up_to_agents_that_come_again() {
    let mut now = Instant::now();
    let mut flow = Flow::new(Limits { queue: 100, ..limits() }, now);
    let mut made_up = 1000..;
    let agents: Vec<Lookup> = (1..=50).map(id).collect();
    let mut served = HashSet::new();
    // One look-up a second can be made; a hundred strangers and one agent come.
    for second in 0..200_usize {
        now += Duration::from_secs(1);
        for _ in 0..100 {
            flow.ask(id(made_up.next().unwrap()), now);
        }
        let agent = &agents[second % agents.len()];
        if !served.contains(agent) {
            flow.ask(agent.clone(), now);
        }
        let Some(job) = std::iter::from_fn(|| flow.next(now)).find_map(|step| match step {
            Step::Run(job) => Some(job),
            _ => None,
        }) else {
            continue;
        };
        if agents.contains(&job.lookup) {
            served.insert(job.lookup.clone());
            finish(&mut flow, &job.lookup, WORKS, Remember::UntilSettled, now);
        } else {
            finish(&mut flow, &job.lookup, WORKS, Remember::Fully, now);
        }
    }
    assert_eq!(served.len(), 50);
}

#[test]
fn what_was_not_found_is_not_looked_up_again_for_a_while() {
    let now = Instant::now();
    let mut flow = Flow::new(limits(), now);
    flow.ask(id(1), now);
    run(&mut flow, now);
    finish(&mut flow, &id(1), WORKS, Remember::Fully, now);
    assert_eq!(flow.ask(id(1), now + Duration::from_secs(59)), Admission::Remembered);
    assert_eq!(flow.ask(id(1), now + Duration::from_secs(60)), Admission::Queued);
}

#[test]
fn without_a_negative_cache_failures_are_asked_again_at_once() {
    let now = Instant::now();
    let mut flow = Flow::new(
        Limits {
            negative_cache: Duration::ZERO,
            ..limits()
        },
        now,
    );
    for remember in [Remember::Fully, Remember::Briefly, Remember::No] {
        assert_eq!(flow.ask(id(1), now), Admission::Queued);
        run(&mut flow, now);
        finish(&mut flow, &id(1), WORKS, remember, now);
    }
    assert_eq!(flow.ask(id(1), now), Admission::Queued);
}

#[test]
fn a_registered_agent_is_left_alone_until_remoted_knows_it() {
    let now = Instant::now();
    let mut flow = Flow::new(limits(), now);
    flow.ask(id(1), now);
    run(&mut flow, now);
    finish(&mut flow, &id(1), WORKS, Remember::UntilSettled, now);
    assert_eq!(flow.ask(id(1), now + Duration::from_secs(1)), Admission::Remembered);
    assert_eq!(flow.ask(id(1), now + SETTLE), Admission::Queued);
}

#[test]
fn rates_hold_for_one_text_and_for_all() {
    let now = Instant::now();
    let rate = Rate {
        per_second: 1,
        burst: 2,
    };
    let mut flow = Flow::new(
        Limits {
            per_text: rate,
            ..limits()
        },
        now,
    );
    for expected in [Admission::Queued, Admission::Queued, Admission::TooMany] {
        assert_eq!(flow.ask(id(1), now), expected);
        if expected == Admission::Queued {
            run(&mut flow, now);
            finish(&mut flow, &id(1), WORKS, Remember::No, now);
        }
    }
    assert_eq!(flow.ask(id(2), now), Admission::Queued);
    let mut flow = Flow::new(
        Limits {
            total: rate,
            ..limits()
        },
        now,
    );
    assert_eq!(flow.ask(id(1), now), Admission::Queued);
    assert_eq!(flow.ask(id(2), now), Admission::Queued);
    assert_eq!(flow.ask(id(3), now), Admission::TooMany);
    assert_eq!(flow.ask(id(3), now + Duration::from_secs(1)), Admission::Queued);
}

#[test]
fn who_has_waited_too_long_is_not_looked_up() {
    let now = Instant::now();
    let mut flow = Flow::new(limits(), now);
    flow.ask(id(1), now);
    flow.ask(id(2), now + Duration::from_secs(1));
    assert_eq!(flow.next(now + Duration::from_secs(120)), Some(Step::Expired(id(1))));
    let job = run(&mut flow, now + Duration::from_secs(120));
    assert_eq!((job.lookup, job.deadline), (id(2), now + Duration::from_secs(121)));
    assert_eq!(flow.ask(id(1), now + Duration::from_secs(120)), Admission::Queued);
}

#[test]
fn a_source_that_is_down_is_passed_over_and_both_down_is_said_at_once() {
    let now = Instant::now();
    let mut flow = Flow::new(limits(), now);
    let only_socket_down = Report {
        socket: Some(Health::Down),
        command: Some(Health::Works),
    };
    for number in 1..=3 {
        flow.ask(id(number), now);
        let job = run(&mut flow, now);
        assert_eq!(job.route, BOTH);
        let turns = finish(&mut flow, &job.lookup, only_socket_down, Remember::No, now);
        assert_eq!(turns.socket == Turn::WentDown, number == 3);
    }
    assert_eq!(
        flow.gauges().down,
        Route {
            socket: true,
            command: false
        }
    );
    for number in 1..=3 {
        flow.ask(id(number), now);
        let job = run(&mut flow, now);
        assert_eq!(
            job.route,
            Route {
                socket: false,
                command: true
            }
        );
        finish(
            &mut flow,
            &job.lookup,
            Report {
                command: Some(Health::Down),
                ..Report::default()
            },
            Remember::No,
            now,
        );
    }
    flow.ask(id(4), now);
    assert_eq!(flow.next(now), Some(Step::NoSource(id(4))));
    let later = now + Duration::from_secs(30);
    flow.ask(id(4), later);
    assert_eq!(run(&mut flow, later).route, BOTH);
    let turns = finish(&mut flow, &id(4), WORKS, Remember::No, later);
    assert_eq!(
        turns,
        Turns {
            socket: Turn::CameBack,
            command: Turn::None
        }
    );
    flow.ask(id(5), later);
    assert_eq!(
        run(&mut flow, later).route,
        BOTH,
        "the unused probe of the command is free for the next"
    );
}

#[test]
fn errors_and_nonsense_from_a_source_never_close_it() {
    let now = Instant::now();
    let mut flow = Flow::new(limits(), now);
    for number in 1..=100 {
        flow.ask(id(number), now);
        let job = run(&mut flow, now);
        assert_eq!(job.route, BOTH);
        finish(&mut flow, &job.lookup, WORKS, Remember::Briefly, now);
    }
}

#[test]
fn a_reload_forgets_what_was_said_and_keeps_what_is_under_way() {
    let now = Instant::now();
    let mut flow = Flow::new(limits(), now);
    flow.ask(id(1), now);
    run(&mut flow, now);
    finish(&mut flow, &id(1), WORKS, Remember::Fully, now);
    flow.ask(id(2), now);
    let running = run(&mut flow, now);
    flow.set_limits(Limits { threads: 2, ..limits() }, now);
    assert_eq!(flow.ask(id(1), now), Admission::Queued);
    assert_eq!(flow.ask(id(2), now), Admission::Merged);
    assert_eq!(run(&mut flow, now).lookup, id(1));
    finish(&mut flow, &running.lookup, DOWN, Remember::No, now);
}

#[derive(Clone, Debug)]
enum Input {
    Ask(u32),
    Next,
    Looked(usize, bool),
    Settled(usize, u8),
    Wait(u16),
    Reload(u8),
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        4 => (1u32..40).prop_map(Input::Ask),
        4 => Just(Input::Next),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, works)| Input::Looked(which, works)),
        3 => (any::<usize>(), 0u8..4).prop_map(|(which, how)| Input::Settled(which, how)),
        1 => (0u16..40_000).prop_map(Input::Wait),
        1 => (1u8..4).prop_map(Input::Reload),
    ]
}

proptest! {
    #[test]
    fn bounds_hold_and_nothing_runs_twice_whatever_happens(inputs in prop::collection::vec(input(), 1..300)) {
        let mut now = Instant::now();
        let mut flow = Flow::new(limits(), now);
        let (mut looking, mut registering): (Vec<Lookup>, Vec<Lookup>) = (Vec::new(), Vec::new());
        let mut most_threads = 1;
        for input in inputs {
            match input {
                Input::Ask(number) => {
                    let under_way = looking.contains(&id(number)) || registering.contains(&id(number));
                    let admission = flow.ask(id(number), now);
                    prop_assert!(!under_way || admission == Admission::Merged);
                }
                Input::Next => {
                    if let Some(Step::Run(job)) = flow.next(now) {
                        prop_assert!(!looking.contains(&job.lookup) && !registering.contains(&job.lookup));
                        prop_assert!(job.deadline > now);
                        looking.push(job.lookup);
                    }
                }
                Input::Looked(which, works) if !looking.is_empty() => {
                    let lookup = looking.remove(which % looking.len());
                    flow.looked(&lookup, if works { WORKS } else { DOWN }, now);
                    registering.push(lookup);
                }
                Input::Settled(which, how) if !registering.is_empty() => {
                    let lookup = registering.remove(which % registering.len());
                    let how = [Remember::No, Remember::UntilSettled, Remember::Briefly, Remember::Fully][how as usize];
                    flow.settled(&lookup, how, now);
                }
                Input::Wait(ms) => now += Duration::from_millis(ms.into()),
                Input::Reload(threads) => {
                    most_threads = most_threads.max(threads.into());
                    flow.set_limits(Limits { threads: threads.into(), ..limits() }, now);
                }
                Input::Looked(..) | Input::Settled(..) => {}
            }
            let gauges = flow.gauges();
            prop_assert_eq!((gauges.looking, gauges.registering), (looking.len(), registering.len()));
            prop_assert!(gauges.looking <= most_threads);
            prop_assert!(gauges.waiting <= 4 && gauges.returning <= 4);
        }
        // Whatever happened, everything comes to an end.
        for lookup in looking.drain(..) {
            flow.looked(&lookup, WORKS, now);
            registering.push(lookup);
        }
        for lookup in registering.drain(..) {
            flow.settled(&lookup, Remember::No, now);
        }
        now += Duration::from_secs(40);
        while let Some(step) = flow.next(now) {
            if let Step::Run(job) = step {
                finish(&mut flow, &job.lookup, WORKS, Remember::No, now);
            }
        }
        prop_assert!(flow.under_way.is_empty());
    }
}

use proptest::prelude::*;

use super::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn page() -> Policy {
    Policy {
        interval: s(60),
        timeout: s(180),
        max_missed: 3,
        sending: Some(Sending {
            probe: ProbeChoice::Auto,
            retry: s(30),
        }),
    }
}

#[test]
fn whichever_comes_first_ends_it() {
    let limits = page().limits(Some(s(20)));
    assert_eq!(
        limits,
        Limits {
            interval: s(60),
            timeout: s(180)
        }
    );
    assert_eq!(
        Policy {
            timeout: s(100),
            ..page()
        }
        .limits(None)
        .timeout,
        s(100)
    );
    assert_eq!(
        Policy {
            max_missed: 2,
            ..page()
        }
        .limits(None)
        .timeout,
        s(120)
    );
}

#[test]
fn ossec_agent_may_miss_two_of_its_own_keepalives() {
    let limits = page().limits(Some(OSSEC_PERIOD));
    assert_eq!(
        limits,
        Limits {
            interval: s(900),
            timeout: s(1830)
        }
    );
}

#[test]
fn agent_slower_than_a_hasty_policy_is_judged_by_its_own_pace() {
    let hasty = Policy {
        interval: s(5),
        timeout: s(15),
        ..page()
    };
    assert_eq!(
        hasty.limits(Some(s(10))),
        Limits {
            interval: s(15),
            timeout: s(45)
        }
    );
}

#[test]
fn stock_policy_sends_nothing_and_waits_for_the_disconnection_time() {
    let stock = Policy::stock(s(900));
    assert_eq!(stock.sending, None);
    assert_eq!(stock.limits(Some(s(20))).timeout, s(900));
    assert_eq!(stock.limits(Some(OSSEC_PERIOD)).timeout, s(900));
    assert_eq!(Policy::stock(s(60)).limits(Some(OSSEC_PERIOD)).timeout, s(900));
    assert_eq!(Policy::stock(s(7200)).limits(Some(OSSEC_PERIOD)).timeout, s(7200));
}

#[test]
fn missed_counts_whole_intervals() {
    let limits = page().limits(None);
    assert_eq!(limits.missed(Duration::from_millis(59_999)), 0);
    assert_eq!(limits.missed(s(60)), 1);
    assert_eq!(limits.missed(s(181)), 3);
}

#[test]
fn one_lost_keepalive_does_not_shift_the_period() {
    let mut rhythm = Rhythm::default();
    for at in [10, 20, 30, 50, 60, 70, 75, 80, 90] {
        rhythm.keepalive(Millis(at * 1000));
    }
    assert_eq!(rhythm.period(), Some(s(10)));
}

#[test]
fn period_follows_an_agent_that_was_reconfigured() {
    let mut rhythm = Rhythm::remembered(s(10));
    for at in 1..5 {
        rhythm.keepalive(Millis(at * 600_000));
    }
    assert_eq!(rhythm.period(), Some(s(600)));
}

#[test]
fn gap_across_an_absence_is_not_a_period() {
    let mut rhythm = Rhythm::default();
    rhythm.keepalive(Millis(1000));
    rhythm.interrupt();
    rhythm.keepalive(Millis(9_000_000));
    assert_eq!(rhythm.period(), None);
    rhythm.keepalive(Millis(9_010_000));
    assert_eq!(rhythm.period(), Some(s(10)));
}

#[test]
fn ossec_agent_is_never_sent_a_request() {
    for choice in [ProbeChoice::Auto, ProbeChoice::Request] {
        assert_eq!(
            Schedule::default().probe(choice, Some(Family::Ossec), Millis(1)),
            Probe::Ack
        );
    }
}

#[test]
fn agent_that_speaks_but_does_not_answer_is_sent_acks() {
    let mut schedule = Schedule::default();
    for round in 1..=2u32 {
        let now = Millis(u64::from(round) * 60_000);
        assert_eq!(
            schedule.probe(ProbeChoice::Auto, Some(Family::Wazuh), now),
            Probe::Request
        );
        schedule.sent_now(now, Some(round));
    }
    assert_eq!(
        schedule.probe(ProbeChoice::Auto, Some(Family::Wazuh), Millis(170_000)),
        Probe::Ack
    );
    assert_eq!(schedule.answers, Answers::No);
    assert_eq!(schedule.period(Some(Family::Wazuh), page().sending), Some(s(20)));
}

#[test]
fn where_nothing_is_sent_the_configured_time_holds_for_wazuh_agents_whatever_their_rhythm() {
    let mut schedule = Schedule::default();
    assert_eq!(
        schedule.period(Some(Family::Wazuh), page().sending),
        Some(s(20)),
        "assumed"
    );
    schedule.rhythm = Rhythm::remembered(s(30));
    assert_eq!(schedule.period(Some(Family::Wazuh), page().sending), Some(s(30)));
    assert_eq!(
        schedule.period(Some(Family::Wazuh), None),
        None,
        "stock knows one time only"
    );
    assert_eq!(
        Schedule::default().period(Some(Family::Ossec), None),
        Some(OSSEC_PERIOD)
    );
}

#[test]
fn silent_agent_is_asked_again_and_stays_under_the_short_timeout() {
    let mut schedule = Schedule::default();
    schedule.probe(ProbeChoice::Auto, Some(Family::Wazuh), Millis(1));
    schedule.sent_now(Millis(60_000), Some(7));
    assert!(schedule.answer(7));
    for round in 2..10u32 {
        let now = Millis(u64::from(round) * 60_000);
        assert_eq!(
            schedule.probe(ProbeChoice::Auto, Some(Family::Wazuh), Millis(61_000)),
            Probe::Request
        );
        schedule.sent_now(now, Some(round));
    }
    assert_eq!(schedule.answers, Answers::Yes);
    assert_eq!(schedule.period(Some(Family::Wazuh), page().sending), None);
}

#[test]
fn answer_to_another_request_proves_nothing_about_ours() {
    let mut schedule = Schedule::default();
    schedule.sent_now(Millis(1), Some(7));
    assert!(!schedule.answer(8));
    assert_eq!(schedule.answers, Answers::Unknown);
}

proptest! {
    #[test]
    fn agent_that_keeps_its_period_never_runs_into_its_timeout(
        interval in 1u64..3600, timeout in 1u64..20_000, max_missed in 1u32..20, period in 1u64..1220,
    ) {
        let policy = Policy { interval: s(interval), timeout: s(timeout), max_missed, sending: None };
        let limits = policy.limits(Some(s(period)));
        // A time-out shorter than the operator's own interval is taken as it is written.
        prop_assume!(timeout >= interval);
        prop_assert!(limits.timeout > s(period), "{limits:?}");
        prop_assert!(limits.timeout >= policy.limits(None).timeout);
    }

    #[test]
    fn period_is_one_of_the_gaps_seen(gaps in prop::collection::vec(1u32..1_000_000, 1..40)) {
        let mut rhythm = Rhythm::default();
        let mut at = 1;
        rhythm.keepalive(Millis(at));
        for gap in &gaps {
            at += u64::from(*gap);
            rhythm.keepalive(Millis(at));
        }
        let period = rhythm.period().map_or(0, |period| period.as_millis());
        prop_assert!(gaps[gaps.len().saturating_sub(5)..].iter().any(|gap| u128::from(*gap) == period));
    }
}

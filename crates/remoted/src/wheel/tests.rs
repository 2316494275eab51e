use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn due_at(wheel: &mut Wheel, now: u64) -> Vec<u32> {
    let mut due = Vec::new();
    wheel.advance(now, &mut due);
    due
}

#[test]
fn entry_comes_up_at_its_tick_and_not_before() {
    for distance in [1, 2, 63, 64, 65, 4095, 4096, 4097, 1 << 30, u64::MAX - 7] {
        let mut wheel = Wheel::new(7);
        wheel.arm(3, 7 + distance);
        assert_eq!(due_at(&mut wheel, 7 + distance - 1), [0u32; 0], "distance {distance}");
        assert_eq!(due_at(&mut wheel, 7 + distance), [3], "distance {distance}");
        assert!(wheel.is_empty());
    }
}

#[test]
fn tick_that_has_passed_means_the_next_one() {
    let mut wheel = Wheel::new(100);
    wheel.arm(0, 50);
    assert_eq!(due_at(&mut wheel, 100), [0u32; 0]);
    assert_eq!(due_at(&mut wheel, 101), [0]);
}

#[test]
fn entry_armed_again_is_due_only_at_the_new_tick() {
    let mut wheel = Wheel::new(0);
    wheel.arm(1, 10);
    wheel.arm(1, 5000);
    assert_eq!(wheel.len(), 1);
    assert_eq!(due_at(&mut wheel, 4999), [0u32; 0]);
    assert_eq!(due_at(&mut wheel, 5000), [1]);
}

#[test]
fn cancelled_entry_never_comes_up() {
    let mut wheel = Wheel::new(0);
    for entry in 0..3 {
        wheel.arm(entry, 10);
    }
    wheel.cancel(1);
    wheel.cancel(77);
    let mut due = due_at(&mut wheel, u64::MAX);
    due.sort_unstable();
    assert_eq!(due, [0, 2]);
}

#[test]
fn jump_over_years_costs_no_more_than_a_step() {
    let mut wheel = Wheel::new(0);
    wheel.arm(0, 1);
    // Were each tick visited, this would not end.
    assert_eq!(due_at(&mut wheel, u64::MAX), [0]);
    assert_eq!(wheel.now(), u64::MAX);
}

#[derive(Clone, Debug)]
enum Step {
    Arm {
        entry: u32,
        ahead: u64,
    },
    Cancel {
        entry: u32,
    },
    Advance {
        by: u64,
    },
    /// To the very tick that the wheel names, the corner where early and late would show.
    AdvanceToNext,
}

fn step() -> impl Strategy<Value = Step> {
    let ahead = prop_oneof![
        0u64..3,
        0u64..200,
        0u64..100_000,
        any::<u64>().prop_map(|tick| tick >> 4)
    ];
    let by = prop_oneof![0u64..3, 0u64..200, 0u64..100_000, 0u64..1 << 40];
    prop_oneof![
        4 => (0u32..40, ahead).prop_map(|(entry, ahead)| Step::Arm { entry, ahead }),
        1 => (0u32..40).prop_map(|entry| Step::Cancel { entry }),
        2 => by.prop_map(|by| Step::Advance { by }),
        2 => Just(Step::AdvanceToNext),
    ]
}

proptest! {
    #[test]
    fn wheel_agrees_with_a_sorted_map(start in any::<u64>().prop_map(|tick| tick >> 3), steps in prop::collection::vec(step(), 1..200)) {
        let mut wheel = Wheel::new(start);
        let mut map: BTreeMap<u32, u64> = BTreeMap::new();
        let mut now = start;
        for step in steps {
            let target = match step {
                Step::Arm { entry, ahead } => {
                    wheel.arm(entry, now.saturating_add(ahead));
                    map.insert(entry, now.saturating_add(ahead.max(1)));
                    continue;
                }
                Step::Cancel { entry } => {
                    wheel.cancel(entry);
                    map.remove(&entry);
                    continue;
                }
                Step::Advance { by } => now.saturating_add(by),
                Step::AdvanceToNext => wheel.next_tick().unwrap_or(now),
            };
            now = target;
            let due = due_at(&mut wheel, now);
            let ticks: Vec<u64> = due.iter().map(|entry| map[entry]).collect();
            prop_assert!(ticks.is_sorted(), "due out of order: {ticks:?}");
            let mut found = due;
            found.sort_unstable();
            let expected: Vec<u32> = map.iter().filter(|(_, at)| **at <= now).map(|(entry, _)| *entry).collect();
            prop_assert_eq!(found, expected);
            map.retain(|_, at| *at > now);
            prop_assert_eq!(wheel.len(), map.len());
            for (entry, at) in &map {
                prop_assert_eq!(wheel.armed_for(*entry), Some(*at));
            }
            if let Some(first) = map.values().min() {
                let next = wheel.next_tick();
                prop_assert!(next.is_some_and(|next| next > now && next <= *first), "{next:?} of {first}");
            }
        }
    }
}

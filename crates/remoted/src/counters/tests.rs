use std::fs;

use muster_proto::transport::counter::SenderCounter;
use proptest::prelude::*;

use super::*;

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn file(home: &tempfile::TempDir) -> String {
    fs::read_to_string(home.path().join(SENDER_FILE)).unwrap()
}

#[test]
fn pairs_follow_the_stock_rule_over_a_step() {
    let home = home();
    fs::write(home.path().join(SENDER_FILE), "7000:9995:").unwrap();
    let pair = SenderPair::open(home.path(), 1);
    let texts: Vec<_> = (0..3).map(|_| pair.next().to_rids()).collect();
    assert_eq!(texts, ["7000:9996:", "7000:9997:", "7001:1:"]);
}

#[test]
fn after_a_crash_the_counter_goes_on_above_everything_sent() {
    let home = home();
    let pair = SenderPair::open(home.path(), 100);
    let mut last = Counter::default();
    for _ in 0..RESERVED_MESSAGES + 7 {
        last = pair.next();
    }
    // No close: this is what SIGKILL leaves.
    drop(pair);
    assert!(SenderPair::open(home.path(), 1).next() > last);
}

#[test]
fn after_a_stop_nothing_is_skipped() {
    let home = home();
    let pair = SenderPair::open(home.path(), 100);
    let last = pair.next();
    pair.close();
    assert_eq!(file(&home), last.to_rids());
    assert_eq!(
        SenderPair::open(home.path(), 1).next(),
        SenderCounter::resume(last).next()
    );
}

#[test]
fn lost_or_broken_file_begins_at_the_time() {
    for text in [None, Some(""), Some("x"), Some("12")] {
        let home = home();
        if let Some(text) = text {
            fs::write(home.path().join(SENDER_FILE), text).unwrap();
        }
        assert_eq!(
            SenderPair::open(home.path(), 1_800_000_000).next(),
            Counter {
                global: 1_800_000_000,
                local: 1
            }
        );
    }
}

#[test]
fn leftovers_behind_the_numbers_are_harmless_and_cut() {
    let home = home();
    fs::write(home.path().join(SENDER_FILE), "7001:1:97:         ").unwrap();
    let pair = SenderPair::open(home.path(), 1);
    assert_eq!(pair.next(), Counter { global: 7001, local: 2 });
    pair.close();
    assert_eq!(file(&home), "7001:2:");
}

#[test]
fn file_renamed_in_is_taken_when_it_is_higher_only() {
    let home = home();
    let pair = SenderPair::open(home.path(), 5000);
    pair.next();
    let replace = |text: &str| {
        fs::write(home.path().join("new"), text).unwrap();
        fs::rename(home.path().join("new"), home.path().join(SENDER_FILE)).unwrap();
        pair.look_for_another_file();
    };
    replace("7000:9995:");
    assert_eq!(
        pair.next(),
        Counter {
            global: 7000,
            local: 9996
        }
    );
    replace("3:3:");
    assert_eq!(
        pair.next(),
        Counter {
            global: 7000,
            local: 9997
        }
    );
}

#[test]
fn workers_never_get_the_same_pair() {
    let home = home();
    let pair = SenderPair::open(home.path(), 100);
    let mut all: Vec<Counter> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..60_000).map(|_| pair.next()).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 240_000);
}

#[test]
fn unwritable_directory_does_not_stop_sending_and_is_told() {
    let pair = SenderPair::open(Path::new("/nonexistent/rids"), 100);
    assert_eq!(pair.next(), Counter { global: 100, local: 1 });
    assert!(pair.is_unreserved());
}

proptest! {
    #[test]
    fn place_and_pair_are_each_others_inverse(global: u32, local in 1..=LAST_LOCAL) {
        let counter = Counter { global, local };
        prop_assert_eq!(pair_at(place_behind(counter) - 1), counter);
        prop_assert_eq!(pair_at(place_behind(counter)), SenderCounter::resume(counter).next());
    }
}

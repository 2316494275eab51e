use muster_proto::event::Kind;
use proptest::{collection::vec, prelude::*};

use super::*;

pub(super) const NO_LIMIT: Limits = Limits {
    max_bytes: u64::MAX,
    max_age_ms: u64::MAX / 4,
    sync: SpoolFsync::Never,
};

pub(super) fn event(seq: u64, kind: Kind) -> Stored {
    event_of("001", seq, kind)
}

fn event_of(agent: &str, seq: u64, kind: Kind) -> Stored {
    let event = muster_proto::event::body::manager_event(kind, agent, 1000 + seq, 0, vec![b'x'; 1000]);
    Stored {
        history: false,
        kind,
        class: event.class(),
        alert_level: 0,
        seq,
        epoch: 1,
        prev: seq - 1,
        created_ms: event.created_ms,
        source: Mark {
            producer: "remoted".to_owned(),
            incarnation: 7,
            number: seq,
        },
        key: event.subject_key,
        subject: "s".to_owned(),
        headers: vec![],
        body: event.body,
    }
}

/// Gives events the sequences before theirs, as the keeper does.
fn chained(last: &mut BTreeMap<Stream, u64>, mut events: Vec<Stored>) -> Vec<Stored> {
    for event in &mut events {
        event.prev = last.insert(event.kind.stream(), event.seq).unwrap_or(0);
    }
    events
}

pub(super) fn open(directory: &Path, limits: Limits) -> Spool {
    Spool::open(directory, limits).expect("opens").0
}

pub(super) fn waiting(spool: &Spool, stream: Stream) -> Vec<u64> {
    spool
        .waiting(stream, 0, usize::MAX)
        .iter()
        .map(|place| place.read().expect("reads").seq)
        .collect()
}

#[test]
fn events_wait_in_order_until_they_are_acknowledged_across_restarts() {
    let directory = tempfile::tempdir().expect("directory");
    let mut spool = open(directory.path(), NO_LIMIT);
    let events: Vec<_> = (1..=5).map(|seq| event(seq, Kind::StatusChange)).collect();
    spool.commit(&events, 0).expect("commits");
    spool.acknowledge(Stream::State, 1);
    spool.acknowledge(Stream::State, 3);
    assert_eq!(waiting(&spool, Stream::State), [2, 4, 5]);
    spool.tidy(0).expect("tidies");
    drop(spool);
    let spool = open(directory.path(), NO_LIMIT);
    // 3 was acknowledged out of turn: it is sent again, and the broker knows it by its id.
    assert_eq!(waiting(&spool, Stream::State), [2, 3, 4, 5]);
    assert_eq!(spool.taken("remoted", 7), 5);
    assert_eq!(spool.taken("remoted", 8), 0);
}

#[test]
fn marks_outlive_the_segments_they_were_set_in() {
    let directory = tempfile::tempdir().expect("directory");
    let mut spool = open(directory.path(), NO_LIMIT);
    spool.commit(&[event(41, Kind::StatusChange)], 0).expect("commits");
    spool.acknowledge(Stream::State, 41);
    drop(spool);
    let mut spool = open(directory.path(), NO_LIMIT);
    spool.acknowledge(Stream::State, 41);
    spool.tidy(u64::MAX).expect("tidies");
    assert_eq!(
        std::fs::read_dir(directory.path())
            .expect("lists")
            .filter_map(Result::ok)
            .count(),
        2,
        "one segment"
    );
    drop(spool);
    let (spool, recovered) = Spool::open(directory.path(), NO_LIMIT).expect("opens");
    assert_eq!(spool.taken("remoted", 7), 41);
    assert_eq!(recovered.last_seq, 41, "the cursor knows");
}

#[test]
fn acknowledged_segments_are_kept_for_a_while() {
    let directory = tempfile::tempdir().expect("directory");
    let mut spool = open(directory.path(), NO_LIMIT);
    spool.commit(&[event(1, Kind::StatusChange)], 0).expect("commits");
    drop(spool);
    let mut spool = open(directory.path(), NO_LIMIT);
    spool.acknowledge(Stream::State, 1);
    spool.tidy(1001 + KEEP_ACKNOWLEDGED_MS).expect("tidies");
    assert_eq!(spool.newest(10).len(), 1);
    spool.tidy(1002 + KEEP_ACKNOWLEDGED_MS).expect("tidies");
    assert_eq!(spool.newest(10).len(), 0);
}

#[test]
fn full_spool_drops_keepalives_first_tells_which_and_keeps_status_changes() {
    let directory = tempfile::tempdir().expect("directory");
    let limits = Limits {
        max_bytes: 2 * SEGMENT_LEN,
        ..NO_LIMIT
    };
    let mut spool = open(directory.path(), limits);
    let (mut seq, mut gaps, mut status, mut last) = (0, vec![], vec![], BTreeMap::new());
    while gaps.is_empty() {
        let batch: Vec<_> = (0..1000)
            .map(|place| {
                seq += 1;
                let kind = if place % 10 == 0 {
                    Kind::StatusChange
                } else {
                    Kind::Keepalive
                };
                if kind == Kind::StatusChange {
                    status.push(seq);
                }
                event(seq, kind)
            })
            .collect();
        gaps = spool.commit(&chained(&mut last, batch), 0).expect("commits");
        assert!(seq < 1_000_000, "the limit is reached");
    }
    assert_eq!(gaps.len(), 1);
    assert_eq!(
        (gaps[0].stream, gaps[0].from_seq, gaps[0].reason),
        (Some(Stream::Keepalive), 2, "thinned")
    );
    assert_eq!(gaps[0].count, spool.depth().dropped);
    let kept = waiting(&spool, Stream::Keepalive);
    assert_eq!(kept.len(), 1 + 900, "the newest of those before, and this commit");
    assert_eq!(waiting(&spool, Stream::State), status);
    assert!(spool.depth().bytes < limits.max_bytes);
    drop(spool);
    let spool = open(directory.path(), limits);
    assert_eq!(waiting(&spool, Stream::State), status, "compacted segments read back");
}

#[test]
fn spool_full_of_status_changes_refuses_and_loses_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let limits = Limits {
        max_bytes: SEGMENT_LEN + SEGMENT_LEN / 4,
        ..NO_LIMIT
    };
    let mut spool = open(directory.path(), limits);
    let mut taken = 0;
    let refused = loop {
        let batch: Vec<_> = (1..=1000)
            .map(|place| event_of(&(taken + place).to_string(), taken + place, Kind::StatusChange))
            .collect();
        match spool.commit(&batch, 0) {
            Ok(gaps) => assert_eq!(gaps, []),
            Err(error) => break error,
        }
        taken += 1000;
    };
    assert!(matches!(refused, SpoolError::Full { .. }), "{refused}");
    assert_eq!(spool.depth().waiting, taken);
    for seq in 1..=taken {
        spool.acknowledge(Stream::State, seq);
    }
    spool
        .commit(&[event(taken + 1, Kind::StatusChange)], 0)
        .expect("there is room again");
}

#[test]
fn events_that_are_too_old_are_dropped_if_they_may_be() {
    let directory = tempfile::tempdir().expect("directory");
    let mut spool = open(
        directory.path(),
        Limits {
            max_age_ms: 1000,
            ..NO_LIMIT
        },
    );
    spool
        .commit(&[event(1, Kind::Keepalive), event(2, Kind::StatusChange)], 1001)
        .expect("commits");
    let gaps = spool.commit(&[event(3, Kind::Keepalive)], 10_000).expect("commits");
    assert_eq!(
        (gaps.len(), gaps[0].reason, gaps[0].from_seq, gaps[0].to_seq),
        (1, "too_old", 1, 1)
    );
    assert_eq!(waiting(&spool, Stream::Keepalive), [3]);
    assert_eq!(waiting(&spool, Stream::State), [2]);
}

#[test]
fn history_is_kept_for_looking_back_and_never_waits() {
    let directory = tempfile::tempdir().expect("directory");
    let mut spool = open(directory.path(), NO_LIMIT);
    let events: Vec<_> = (1..=4)
        .map(|seq| Stored {
            history: true,
            ..event(seq, Kind::StatusChange)
        })
        .collect();
    spool.commit(&events, 0).expect("commits");
    drop(spool);
    let spool = open(directory.path(), NO_LIMIT);
    assert_eq!(spool.depth().waiting, 0);
    let newest: Vec<_> = spool.newest(2).iter().map(|event| event.seq).collect();
    assert_eq!(newest, [3, 4]);
    assert_eq!(spool.taken("remoted", 7), 4);
}

#[test]
fn foreign_files_are_left_alone() {
    let directory = tempfile::tempdir().expect("directory");
    for name in ["notes.txt", "abc.seg", "seq.state"] {
        std::fs::write(directory.path().join(name), b"mine").expect("writes");
    }
    let mut spool = open(directory.path(), NO_LIMIT);
    spool.commit(&[event(1, Kind::StatusChange)], 0).expect("commits");
    drop(spool);
    assert_eq!(waiting(&open(directory.path(), NO_LIMIT), Stream::State), [1]);
    assert_eq!(
        std::fs::read(directory.path().join("notes.txt")).expect("reads"),
        b"mine"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is committed and acknowledged, and wherever a crash cuts the last segment, what was committed before
    /// and not acknowledged is there after it, in order.
    #[test]
    fn crash_at_any_byte_loses_nothing_that_was_safe(
        commits in vec((1..5_u64, 0..3_usize), 1..12),
        cut in 0..400_u64,
    ) {
        let directory = tempfile::tempdir().expect("directory");
        let mut spool = open(directory.path(), NO_LIMIT);
        let (mut seq, mut expected, mut before_last) = (0, vec![], vec![]);
        let mut safe_length = 0;
        for (count, acknowledged) in commits {
            before_last.clone_from(&expected);
            safe_length = spool.segments.last().expect("segment").length;
            let batch: Vec<_> = (0..count).map(|_| { seq += 1; event(seq, Kind::StatusChange) }).collect();
            spool.commit(&batch, 0).expect("commits");
            expected.extend(batch.iter().map(|event| event.seq));
            for _ in 0..acknowledged.min(before_last.len()) {
                let seq = before_last.remove(0);
                expected.retain(|other| *other != seq);
                spool.acknowledge(Stream::State, seq);
            }
        }
        spool.tidy(0).expect("tidies");
        let segment = spool.segments.last().expect("segment");
        let length = segment.length.saturating_sub(cut).max(safe_length);
        segment.file.set_len(length).expect("cuts");
        drop(spool);
        let spool = open(directory.path(), NO_LIMIT);
        let found = waiting(&spool, Stream::State);
        prop_assert!(found.starts_with(&before_last), "{:?} of {:?}", found, before_last);
        prop_assert!(expected.starts_with(&found));
    }
}

#[test]
fn of_each_agent_the_first_and_the_last_status_change_survive_a_full_spool() {
    let directory = tempfile::tempdir().expect("directory");
    let limits = Limits {
        max_bytes: SEGMENT_LEN + SEGMENT_LEN / 2,
        ..NO_LIMIT
    };
    let mut spool = open(directory.path(), limits);
    let (mut seq, mut gaps) = (0, vec![]);
    while gaps.is_empty() {
        let batch: Vec<_> = (0..1000)
            .map(|place| {
                seq += 1;
                event_of(&(place % 7).to_string(), seq, Kind::StatusChange)
            })
            .collect();
        gaps = spool.commit(&batch, 0).expect("commits");
        assert!(seq < 1_000_000, "the limit is reached");
    }
    assert_eq!((gaps[0].reason, gaps[0].stream), ("thinned", Some(Stream::State)));
    let kept = waiting(&spool, Stream::State);
    assert_eq!(kept[..7], [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(kept.len(), 2 * 7 + 1000);
    assert_eq!(gaps[0].count, seq - 1000 - 14);
}

#[test]
fn cheap_events_do_not_push_dear_ones_out_of_their_share() {
    let directory = tempfile::tempdir().expect("directory");
    let limits = Limits {
        max_bytes: 2 * SEGMENT_LEN,
        ..NO_LIMIT
    };
    let mut spool = open(directory.path(), limits);
    let high: Vec<_> = (1..=1000)
        .map(|seq| Stored {
            class: Class::HighAlert,
            ..event(seq, Kind::RuleAlert)
        })
        .collect();
    spool.commit(&high, 0).expect("commits");
    let (mut seq, mut dropped) = (1000, 0);
    while dropped < 5_000 {
        let batch: Vec<_> = (0..1000)
            .map(|_| {
                seq += 1;
                event(seq, Kind::Osquery)
            })
            .collect();
        for gap in spool.commit(&batch, 0).expect("commits") {
            assert_eq!((gap.class, gap.reason), (Some(Class::Alert), "spool_full"));
            dropped += gap.count;
        }
        assert!(seq < 1_000_000, "the limit is reached");
    }
    assert_eq!(waiting(&spool, Stream::Alerts).len(), 1000);
}

#[test]
fn gaps_tell_exactly_what_is_missing_of_each_stream() {
    const KINDS: [Kind; 6] = [
        Kind::Keepalive,
        Kind::Osquery,
        Kind::StatusChange,
        Kind::RuleAlert,
        Kind::Enrolled,
        Kind::Keepalive,
    ];
    let directory = tempfile::tempdir().expect("directory");
    let limits = Limits {
        max_bytes: 2 * SEGMENT_LEN,
        ..NO_LIMIT
    };
    let mut spool = open(directory.path(), limits);
    let (mut seq, mut last, mut all, mut runs) = (0, BTreeMap::new(), vec![], vec![]);
    for round in 0..40_u64 {
        let batch = (0..1000_u64).map(|place| {
            seq += 1;
            // Neither kinds nor agents follow each other evenly.
            let kind = KINDS[usize::try_from((place * place + round) % 7 % 6).expect("small")];
            let kind = if kind == Kind::Enrolled && place % 40 != 0 {
                Kind::Osquery
            } else {
                kind
            };
            event_of(&(place % 11).to_string(), seq, kind)
        });
        let batch = chained(&mut last, batch.collect());
        all.extend(batch.iter().map(|event| (event.kind.stream(), event.seq)));
        for gap in spool.commit(&batch, 0).expect("commits") {
            assert!(gap.class != Some(Class::Audit) && gap.epoch == Some(1));
            runs.extend(
                gap.runs
                    .iter()
                    .map(|(from, to)| (gap.stream.expect("known"), *from, *to)),
            );
        }
    }
    for (stream, seq) in all {
        let told = runs
            .iter()
            .filter(|(of, from, to)| *of == stream && (*from..=*to).contains(&seq))
            .count();
        assert_eq!(
            told,
            usize::from(!spool.waits(stream, seq)),
            "{seq} of {}",
            stream.name()
        );
    }
    assert!(spool.depth().dropped > 10_000);
}

#[test]
fn audit_has_room_of_its_own_that_nobody_else_can_fill() {
    let directory = tempfile::tempdir().expect("directory");
    let limits = Limits {
        max_bytes: 2 * SEGMENT_LEN,
        ..NO_LIMIT
    };
    let mut spool = open(directory.path(), limits);
    let mut seq = 0;
    let mut batch = |kind| -> Vec<_> {
        let batch = (0..100).map(|_| {
            seq += 1;
            event_of(&seq.to_string(), seq, kind)
        });
        batch.collect()
    };
    // Changes of ever new agents are not dropped.
    while spool.commit(&batch(Kind::StatusChange), 0).is_ok() {}
    let mut audit = 0_usize;
    while spool.commit(&batch(Kind::Audit), 0).is_ok() {
        audit += 100;
    }
    let share = usize::try_from(limits.max_bytes / 100 * 15).expect("small");
    assert!(audit * 1000 > share / 2, "{audit} of the audit trail found room");
    assert_eq!(waiting(&spool, Stream::Audit).len(), audit);
}

#[test]
fn event_that_is_given_up_is_told_with_the_next_commit() {
    let directory = tempfile::tempdir().expect("directory");
    let mut spool = open(directory.path(), NO_LIMIT);
    let events: Vec<_> = (1..=5).map(|seq| event(seq, Kind::StatusChange)).collect();
    spool.commit(&events, 0).expect("commits");
    spool.hold(vec![event(6, Kind::StatusChange)]);
    for seq in [3, 2, 6, 9] {
        spool.give_up(Stream::State, seq, "too_large");
    }
    assert_eq!(waiting(&spool, Stream::State), [1, 4, 5]);
    let gaps = spool.commit(&[event(7, Kind::StatusChange)], 0).expect("commits");
    assert_eq!(gaps.len(), 1);
    assert_eq!((gaps[0].runs.as_slice(), gaps[0].count), (&[(2, 3), (6, 6)][..], 3));
    assert_eq!((gaps[0].class, gaps[0].first_ms), (Some(Class::Status), 1002));
}

#[test]
fn damage_on_the_disk_is_told_by_its_numbers() {
    let directory = tempfile::tempdir().expect("directory");
    let mut spool = open(directory.path(), NO_LIMIT);
    for seq in 1..=5 {
        spool.commit(&[event(seq, Kind::StatusChange)], 0).expect("commits");
    }
    let place = spool.waiting(Stream::State, 2, 1).remove(0);
    drop(spool);
    let path = directory.path().join("000000000001.seg");
    let mut bytes = std::fs::read(&path).expect("reads");
    let At::Disk { offset, .. } = place.at else {
        panic!("it is on the disk")
    };
    bytes[usize::try_from(offset).expect("small") + 20] ^= 1;
    std::fs::write(&path, &bytes).expect("writes");
    let (spool, recovered) = Spool::open(directory.path(), NO_LIMIT).expect("opens");
    assert_eq!(waiting(&spool, Stream::State), [1, 2, 4, 5]);
    let gaps: Vec<_> = recovered
        .gaps
        .iter()
        .map(|gap| (gap.from_seq, gap.to_seq, gap.count, gap.reason))
        .collect();
    assert_eq!(gaps, [(3, 3, 1, "damaged"), (3, 3, 0, "damaged")]);
    // Whose it was, the next event of its stream tells.
    assert_eq!(recovered.gaps[1].stream, Some(Stream::State));
    assert_eq!(recovered.gaps[1].runs, [(3, 3)]);
}

#[test]
fn numbers_of_deleted_segments_are_not_used_again() {
    let directory = tempfile::tempdir().expect("directory");
    let mut spool = open(directory.path(), NO_LIMIT);
    spool.commit(&[event(77, Kind::StatusChange)], 0).expect("commits");
    spool.acknowledge(Stream::State, 77);
    spool.tidy(0).expect("tidies");
    drop(spool);
    std::fs::remove_file(directory.path().join("000000000001.seg")).expect("removes");
    let (_, recovered) = Spool::open(directory.path(), NO_LIMIT).expect("opens");
    assert_eq!(recovered.last_seq, 77);
    assert_eq!(recovered.last_of_stream.get(&Stream::State), Some(&77));
}

#[test]
fn what_the_broker_has_lost_waits_again() {
    let directory = tempfile::tempdir().expect("directory");
    let mut spool = open(directory.path(), NO_LIMIT);
    let events: Vec<_> = (1..=10).map(|seq| event(seq, Kind::StatusChange)).collect();
    spool.commit(&events, 0).expect("commits");
    for seq in 1..=8 {
        spool.note_kept(Stream::State, "MUSTER_STATE", 100 + seq, seq);
        spool.acknowledge(Stream::State, seq);
    }
    assert_eq!(spool.rewind(Stream::State, 105).expect("reads"), 3);
    assert_eq!(waiting(&spool, Stream::State), [6, 7, 8, 9, 10]);
    assert_eq!(spool.kept(Stream::State).map(|kept| kept.sequence), Some(105));
    for seq in 6..=10 {
        spool.acknowledge(Stream::State, seq);
    }
    // Nothing is remembered of the rest: all that is on the disk.
    assert_eq!(spool.rewind(Stream::State, 0).expect("reads"), 10);
    spool.tidy(0).expect("tidies");
    drop(spool);
    assert_eq!(
        waiting(&open(directory.path(), NO_LIMIT), Stream::State).len(),
        10,
        "the cursor went back too"
    );
}

fn with_ready_segments(directory: &Path) -> Spool {
    let mut spool = open(directory, NO_LIMIT);
    spool.work_aside(Aside::default());
    spool
}

fn numbers(spool: &Spool) -> Vec<u64> {
    spool.segments.iter().map(|segment| segment.number).collect()
}

#[test]
fn segments_made_ready_are_filled_in_turn_and_one_that_was_not_used_serves_the_next_run() {
    let directory = tempfile::tempdir().expect("directory");
    let mut spool = with_ready_segments(directory.path());
    let commit = |spool: &mut Spool, seq| drop(spool.commit(&[event(seq, Kind::StatusChange)], 0).expect("commits"));
    (1..=3).for_each(|seq| commit(&mut spool, seq));
    assert_eq!(numbers(&spool), [1, 2], "2 was ready");
    let long = spool.segments[1].file.metadata().expect("there").len();
    commit(&mut spool, 4);
    assert_eq!(
        spool.segments[1].file.metadata().expect("there").len(),
        long,
        "zeros are overwritten"
    );
    let batch: Vec<_> = (5..=2100).map(|seq| event(seq, Kind::StatusChange)).collect();
    for few in batch.chunks(50) {
        spool.commit(few, 0).expect("commits");
    }
    // It is full up to a quarter: 3 is made, and the run ends.
    assert!(directory.path().join("000000000003.seg").exists());
    drop(spool);
    let (spool, recovered) = Spool::open(directory.path(), NO_LIMIT).expect("opens");
    assert_eq!((numbers(&spool), spool.depth().damaged), (vec![1, 2, 3], 0));
    assert!(spool.segments[2].made_ready);
    assert_eq!(recovered.last_seq, 2100);
    assert_eq!(waiting(&spool, Stream::State), (1..=2100).collect::<Vec<_>>());
}

#[test]
fn commit_that_a_crash_cut_short_is_no_damage_although_a_segment_is_ready_behind_it() {
    let directory = tempfile::tempdir().expect("directory");
    let mut spool = with_ready_segments(directory.path());
    for seq in 1..=3 {
        spool.commit(&[event(seq, Kind::StatusChange)], 0).expect("commits");
    }
    let segment = spool.segments.last().expect("a segment");
    let torn = segment.read().expect("reads")[..500].to_vec();
    segment.file.write_all_at(&torn, segment.length).expect("writes");
    drop(spool);
    // Too short to be of use, as a run leaves it that ends while it is made.
    std::fs::write(directory.path().join("000000000003.seg"), [0; 5000]).expect("writes");
    std::fs::write(directory.path().join("000000000004.seg"), b"").expect("writes");
    let spool = open(directory.path(), NO_LIMIT);
    assert_eq!(spool.depth().damaged, 0);
    assert_eq!(waiting(&spool, Stream::State), [1, 2, 3]);
    assert_eq!(numbers(&spool), [1, 2, 3]);
}

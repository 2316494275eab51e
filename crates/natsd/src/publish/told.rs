//! Which of the errors that a broker repeats are news: pure.
//!
//! A right that is missing is told for each subject, once a minute. Agents have subjects of their own, so that of one kind of
//! error, which is all up to the first quotation mark, only [`MAX_OF_KIND`] are told within a minute.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long nothing more is said of an error.
const QUIET: Duration = Duration::from_secs(60);
/// Errors of one kind that are told within that time.
const MAX_OF_KIND: usize = 20;
/// Kinds that are remembered; with more, all are forgotten.
const MAX_KINDS: usize = 32;

/// What was told, when, and how often it came since.
#[derive(Debug, Default)]
pub(crate) struct Told(BTreeMap<String, Kind>);

#[derive(Debug, Default)]
struct Kind {
    /// By what follows the first quotation mark.
    errors: BTreeMap<String, (Instant, u64)>,
    /// Of errors that are not remembered, and of those that are no longer.
    passed_over: u64,
}

impl Told {
    /// Takes it for told.
    pub(crate) fn note(&mut self, error: &str, now: Instant) {
        self.news(error, now);
    }

    /// How many like it were passed over since the last one that was told; nothing when this one is passed over, too.
    pub(crate) fn news(&mut self, error: &str, now: Instant) -> Option<u64> {
        let (kind, rest) = parts(error);
        let kind = self.kind(kind);
        if let Some((at, passed_over)) = kind.errors.get_mut(rest) {
            if now.duration_since(*at) < QUIET {
                *passed_over += 1;
                return None;
            }
            let passed_over = std::mem::take(passed_over);
            *at = now;
            return Some(passed_over);
        }
        kind.forget_old(now);
        if kind.errors.len() >= MAX_OF_KIND {
            kind.passed_over += 1;
            return None;
        }
        kind.errors.insert(rest.to_owned(), (now, 0));
        Some(std::mem::take(&mut kind.passed_over))
    }

    fn kind(&mut self, kind: &str) -> &mut Kind {
        if self.0.len() >= MAX_KINDS && !self.0.contains_key(kind) {
            self.0.clear();
        }
        self.0.entry(kind.to_owned()).or_default()
    }
}

impl Kind {
    fn forget_old(&mut self, now: Instant) {
        let passed_over = &mut self.passed_over;
        self.errors.retain(|_, (at, count)| {
            let keep = now.duration_since(*at) < QUIET;
            if !keep {
                *passed_over += *count;
            }
            keep
        });
    }
}

/// Whether it is about the bucket of agents, or one of ours that go with it.
pub(crate) fn is_about_buckets(error: &str, agents: &str) -> bool {
    ["$KV.", "INFO.KV_", "DIRECT.GET.KV_"].iter().any(|begin| {
        error.split(begin).skip(1).any(|bucket| {
            let ours = |name: &str| {
                bucket
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['.', '"']))
            };
            ours(agents) || bucket.starts_with("muster_")
        })
    })
}

fn parts(error: &str) -> (&str, &str) {
    error.split_once('"').unwrap_or((error, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_told_once_a_minute_for_each_subject_with_the_number_passed_over() {
        let now = Instant::now();
        let mut told = Told::default();
        assert_eq!(told.news("no right to publish to \"a.1\"", now), Some(0));
        assert_eq!(
            told.news("no right to publish to \"a.2\"", now),
            Some(0),
            "another subject"
        );
        assert_eq!(told.news("expired", now), Some(0), "another kind");
        for _ in 0..3 {
            assert_eq!(told.news("no right to publish to \"a.1\"", now + QUIET / 2), None);
        }
        assert_eq!(told.news("no right to publish to \"a.1\"", now + QUIET), Some(3));
        assert_eq!(told.news("no right to publish to \"a.1\"", now + QUIET), None);
        told.note("lost", now + QUIET);
        assert_eq!(told.news("lost", now + QUIET), None);
    }

    #[test]
    fn errors_about_each_of_many_agents_are_counted() {
        let now = Instant::now();
        let mut told = Told::default();
        let error = |agent: usize| format!("no right to publish to \"a.{agent}\"");
        let news = (0..10_000).filter(|agent| told.news(&error(*agent), now).is_some());
        assert_eq!(news.count(), MAX_OF_KIND);
        assert_eq!(told.news("another", now), Some(0));
        assert_eq!(told.news(&error(20_000), now + QUIET), Some(10_000 - 20));
        assert_eq!(told.news(&error(20_001), now + QUIET), Some(0));
    }

    #[test]
    fn errors_about_buckets_are_told_from_those_about_events() {
        let violation = |subject: &str| format!("Permissions Violation for Publish to \"{subject}\"");
        for subject in [
            "$KV.agents.001",
            "$JS.API.STREAM.INFO.KV_agents",
            "$KV.muster_keys.a.U",
            "$JS.API.DIRECT.GET.KV_muster_nodes.$KV.x",
        ] {
            assert!(is_about_buckets(&violation(subject), "agents"), "{subject}");
        }
        for subject in [
            "$KV.agents_b.001",
            "$JS.API.STREAM.INFO.MUSTER_STATE",
            "wazuh.xdr.agent.001.status_change",
        ] {
            assert!(!is_about_buckets(&violation(subject), "agents"), "{subject}");
        }
    }

    #[test]
    fn endless_kinds_take_no_endless_memory() {
        let mut told = Told::default();
        for number in 0..1000 {
            told.news(&format!("error {number}"), Instant::now());
        }
        assert!(told.0.len() <= MAX_KINDS);
        for number in 0..1000 {
            told.news(&format!("error \"{number}\""), Instant::now());
            told.note(&format!("error \"{number}\""), Instant::now());
        }
        assert!(told.0.values().all(|kind| kind.errors.len() <= MAX_OF_KIND));
    }
}

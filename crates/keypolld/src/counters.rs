//! What is counted.

use crate::{flow::Admission, outcome::Outcome};

muster_service::counters! {
    /// Every way that a request can go.
    pub struct Counters {
        /// Datagrams taken.
        keypoll_requests_total,
        /// ... that are no requests.
        keypoll_requests_invalid_total,
        /// ... for what was under way already.
        keypoll_requests_merged_total,
        /// ... for what was answered a moment ago.
        keypoll_requests_remembered_total,
        /// ... beyond the rates.
        keypoll_requests_rate_limited_total,
        /// ... for which there was no room.
        keypoll_requests_queue_full_total,
        /// ... that waited for longer than their deadline.
        keypoll_requests_expired_total,
        /// ... while every source was down.
        keypoll_requests_source_down_total,
        /// Look-ups begun.
        keypoll_lookups_total,
        /// Look-ups that the program answered because the socket did not.
        keypoll_lookups_fallback_total,
        /// Agents registered.
        keypoll_registered_total,
        /// Agents registered in place of others.
        keypoll_replaced_total,
        /// Agents found as they were known.
        keypoll_unchanged_total,
        /// Look-ups of agents that the source does not have.
        keypoll_not_found_total,
        /// Look-ups that the source answered with another error.
        keypoll_source_errors_total,
        /// Answers that cannot be used.
        keypoll_malformed_total,
        /// Answers for somebody else.
        keypoll_other_agent_total,
        /// Look-ups without an answer in time.
        keypoll_timed_out_total,
        /// Look-ups without an answer for another reason.
        keypoll_source_failures_total,
        /// Agents that authd refused.
        keypoll_refused_total,
        /// Agents that could not be registered because authd was away.
        keypoll_authd_away_total,
        /// Look-ups by an operator.
        keypoll_tries_total,
        /// Processes that programs left behind, ended.
        keypoll_leftovers_killed_total,
        /// Events that could not be kept.
        keypoll_events_dropped_total,
    }
}

impl Counters {
    /// One request was judged.
    pub fn admitted(&self, admission: Admission) {
        match admission {
            Admission::Queued => {}
            Admission::Merged => self.keypoll_requests_merged_total.increment(),
            Admission::Remembered => self.keypoll_requests_remembered_total.increment(),
            Admission::TooMany => self.keypoll_requests_rate_limited_total.increment(),
            Admission::Full => self.keypoll_requests_queue_full_total.increment(),
        }
    }

    /// One look-up has ended.
    pub fn ended(&self, outcome: Outcome) {
        match outcome {
            Outcome::Registered => &self.keypoll_registered_total,
            Outcome::Replaced => &self.keypoll_replaced_total,
            Outcome::Unchanged => &self.keypoll_unchanged_total,
            Outcome::NotFound => &self.keypoll_not_found_total,
            Outcome::SourceError => &self.keypoll_source_errors_total,
            Outcome::Malformed => &self.keypoll_malformed_total,
            Outcome::OtherAgent => &self.keypoll_other_agent_total,
            Outcome::TimedOut => &self.keypoll_timed_out_total,
            Outcome::SourceFailed => &self.keypoll_source_failures_total,
            Outcome::Refused => &self.keypoll_refused_total,
            Outcome::AuthdAway => &self.keypoll_authd_away_total,
        }
        .increment();
    }
}

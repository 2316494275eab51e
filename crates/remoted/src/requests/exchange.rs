//! One request to an agent and what may become of it, as a state machine: time and what the agent says go in, what is
//! to be done comes out.
//!
//! Over UDP a request is *unheard* until the agent acknowledges it, and is sent again meanwhile. Over TCP it counts as
//! heard at once. From then on each further acknowledgement gives the agent the whole time again, but not for ever.

use std::time::Duration;

use muster_config::RemotedInternal;
use muster_proto::local::remote::RequestError;

use crate::slot::{Millis, Protocol};

/// The least time between two sends, whatever the configuration says.
const SHORTEST_RTO: Duration = Duration::from_millis(10);

/// How patient we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Time before a request over UDP is sent again.
    pub rto: Duration,
    /// How often it is sent at most; also how many acknowledgements may come in place of the answer.
    pub max_attempts: u32,
    /// How long an answer may take.
    pub response_timeout: Duration,
}

impl Patience {
    /// As configured.
    pub fn new(options: &RemotedInternal) -> Self {
        Self {
            rto: options.request_rto().max(SHORTEST_RTO),
            max_attempts: options.max_attempts.max(1),
            response_timeout: options.response_timeout,
        }
    }
}

/// A request that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    patience: Patience,
    phase: Phase,
    deadline: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Unheard { sends: u32 },
    Heard { acks: u32 },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait until the answer comes or the deadline has passed.
    Wait,
    /// Send the request again, and wait.
    Resend,
    /// Give up.
    GiveUp(RequestError),
}

impl Exchange {
    /// The request has gone out now.
    pub fn begin(patience: Patience, protocol: Protocol, now: Millis) -> Self {
        let (phase, time) = match protocol {
            Protocol::Tcp => (Phase::Heard { acks: 0 }, patience.response_timeout),
            Protocol::Udp => (Phase::Unheard { sends: 1 }, patience.rto),
        };
        Self {
            patience,
            phase,
            deadline: now + time,
        }
    }

    /// When [`Exchange::on_time`] is due.
    pub fn deadline(&self) -> Millis {
        self.deadline
    }

    /// The agent says that it has the request.
    pub fn on_ack(&mut self, now: Millis) -> Next {
        let acks = match self.phase {
            // The first one over UDP only ends the sending.
            Phase::Unheard { .. } => 0,
            Phase::Heard { acks } => acks.saturating_add(1),
        };
        if acks >= self.patience.max_attempts {
            return Next::GiveUp(RequestError::MaximumAttempts);
        }
        self.phase = Phase::Heard { acks };
        self.deadline = now + self.patience.response_timeout;
        Next::Wait
    }

    /// Time has passed.
    pub fn on_time(&mut self, now: Millis) -> Next {
        if now < self.deadline {
            return Next::Wait;
        }
        match self.phase {
            Phase::Heard { .. } => Next::GiveUp(RequestError::Timeout),
            Phase::Unheard { sends } if sends >= self.patience.max_attempts => {
                Next::GiveUp(RequestError::MaximumAttempts)
            }
            Phase::Unheard { sends } => {
                self.phase = Phase::Unheard {
                    sends: sends.saturating_add(1),
                };
                self.deadline = now + self.patience.rto;
                Next::Resend
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Patience = Patience {
        rto: Duration::from_secs(1),
        max_attempts: 4,
        response_timeout: Duration::from_secs(3),
    };
    const START: Millis = Millis(1000);

    /// What happens when acknowledgements come at these times (ms): re-sends, then the end.
    fn play(protocol: Protocol, acks: &[u64]) -> (Vec<u64>, u64, RequestError) {
        let mut exchange = Exchange::begin(PATIENCE, protocol, START);
        let (mut acks, mut resends) = (acks.iter().peekable(), Vec::new());
        loop {
            let due = exchange.deadline().0 - START.0;
            let (at, next) = match acks.next_if(|at| **at < due) {
                Some(at) => (*at, exchange.on_ack(Millis(START.0 + at))),
                None => (due, exchange.on_time(exchange.deadline())),
            };
            match next {
                Next::Wait => {}
                Next::Resend => resends.push(at),
                Next::GiveUp(error) => return (resends, at, error),
            }
        }
    }

    #[test]
    fn tcp_ends_as_recorded() {
        use RequestError::{MaximumAttempts, Timeout};
        for (acks, end, error) in [
            (&[][..], 3000, Timeout),
            (&[2000], 5000, Timeout),
            (&[500, 2500, 4500, 6500], 6500, MaximumAttempts),
        ] {
            assert_eq!(play(Protocol::Tcp, acks), (vec![], end, error), "{acks:?}");
        }
    }

    #[test]
    fn udp_ends_as_recorded() {
        use RequestError::{MaximumAttempts, Timeout};
        for (acks, resends, end, error) in [
            (&[][..], vec![1000, 2000, 3000], 4000, MaximumAttempts),
            (&[0], vec![], 3000, Timeout),
            (&[1500], vec![1000], 4500, Timeout),
            (&[0, 1, 2, 3, 4], vec![], 4, MaximumAttempts),
        ] {
            assert_eq!(play(Protocol::Udp, acks), (resends, end, error), "{acks:?}");
        }
    }

    #[test]
    fn too_early_a_look_changes_nothing() {
        let mut exchange = Exchange::begin(PATIENCE, Protocol::Udp, START);
        let before = exchange;
        assert_eq!(exchange.on_time(Millis(START.0 + 999)), Next::Wait);
        assert_eq!(exchange, before);
    }

    proptest! {
        #[test]
        fn it_always_ends(acks in proptest::collection::vec(0_u64..100_000, 0..40), udp: bool) {
            let mut acks = acks;
            acks.sort_unstable();
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let (resends, end, _) = play(protocol, &acks);
            prop_assert!(resends.len() < 4);
            // Four sends, and four waits of three seconds each at most.
            prop_assert!(end <= 4000 + 5 * 3000);
        }
    }
}

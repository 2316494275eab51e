//! Everything that is counted.

use serde::Serialize;

use super::waits::Waits;
use crate::agent::What;

/// Declares the counters once: fields, order in a table, and sum.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Everything that is counted. Field names are what `--output json` prints and never change.
        ///
        /// `..._sent` means handed to the operating system whole.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Tally {
            $($(#[$doc])* pub $name: u64,)*
            /// From a startup to its ack.
            pub startup_wait: Waits,
            /// From a keepalive to its ack, where one keepalive was under way.
            pub keepalive_wait: Waits,
        }

        impl Tally {
            /// Each counter by its name.
            pub fn counters(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }

            /// Adds another tally to this one.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
                self.startup_wait.add(&other.startup_wait);
                self.keepalive_wait.add(&other.keepalive_wait);
            }
        }
    };
}

counters! {
    /// Connections opened (TCP), sockets opened or shared ones joined (UDP).
    connects,
    /// Connections that could not be opened.
    connect_failures,
    /// Connections that the manager closed.
    closed_by_manager,
    /// Startups sent.
    startups_sent,
    /// Startups acknowledged.
    startups_acked,
    /// Startups answered with an error.
    startups_refused,
    /// Startups that nobody answered in time.
    startups_unanswered,
    /// Keepalives sent.
    keepalives_sent,
    /// Keepalives acknowledged.
    keepalives_acked,
    /// Acks that nobody had asked for: the manager's own sign of life.
    unasked_acks,
    /// Times that an agent gave the manager up because it heard nothing.
    manager_lost,
    /// Goodbyes sent.
    shutdowns_sent,
    /// Events made.
    events_made,
    /// Events sent.
    events_sent,
    /// Events made and then lost with their connection before the operating system had taken them.
    events_unsent,
    /// Control messages lost in the same way.
    controls_unsent,
    /// Requests answered.
    requests_answered,
    /// Messages sent for requests: acknowledgements (UDP) and answers, repeated ones too.
    answers_sent,
    /// Answers repeated because the manager did not acknowledge them (UDP).
    answers_repeated,
    /// Active responses received.
    orders_received,
    /// Orders to reconnect.
    reconnect_orders,
    /// Messages of shared files: heads, pieces and ends.
    push_messages,
    /// Shared files received whole.
    pushes_taken,
    /// Shared files whose sum was wrong, or that were broken off.
    pushes_broken,
    /// Messages that an agent of this family does not know.
    unknown_messages,
    /// Messages dropped because the manager's counter went back (OSSEC agents).
    stale_counters,
    /// Messages that did not open.
    undecodable,
    /// Datagrams that nobody's key opened of those who share the socket: most are for agents that have just left.
    unclaimed,
    /// Datagrams longer than an OSSEC agent reads.
    oversized,
    /// Messages sent.
    messages_sent,
    /// Messages received.
    messages_received,
    /// Bytes sent, headers of TCP messages included.
    bytes_sent,
    /// Bytes received.
    bytes_received,
}

impl Tally {
    /// A message was handed to the operating system whole.
    pub(crate) fn sent(&mut self, what: What) {
        self.messages_sent += 1;
        *match what {
            What::Startup => &mut self.startups_sent,
            What::Keepalive => &mut self.keepalives_sent,
            What::Shutdown => &mut self.shutdowns_sent,
            What::Answer => &mut self.answers_sent,
            What::Event => &mut self.events_sent,
        } += 1;
    }

    /// A message was lost before the operating system had taken all of it.
    pub(crate) fn unsent(&mut self, what: What) {
        *match what {
            What::Event => &mut self.events_unsent,
            What::Startup | What::Keepalive | What::Shutdown | What::Answer => &mut self.controls_unsent,
        } += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_counts_once_as_what_it_is() {
        let mut tally = Tally::default();
        for what in [
            What::Startup,
            What::Keepalive,
            What::Shutdown,
            What::Answer,
            What::Event,
        ] {
            tally.sent(what);
            tally.unsent(what);
        }
        let parts =
            tally.startups_sent + tally.keepalives_sent + tally.shutdowns_sent + tally.answers_sent + tally.events_sent;
        assert_eq!((tally.messages_sent, parts), (5, 5));
        assert_eq!((tally.events_unsent, tally.controls_unsent), (1, 4));
    }

    #[test]
    fn sums_are_sums_of_every_counter() {
        let mut one = Tally::default();
        one.sent(What::Event);
        let mut two = one.clone();
        two.add(&one);
        assert_eq!((two.events_sent, two.messages_sent, two.startups_sent), (2, 2, 0));
    }
}

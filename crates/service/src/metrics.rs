//! Counters with names, for `status` and for metrics.
//!
//! ```
//! muster_service::counters! {
//!     /// What the receiver did.
//!     pub struct Received {
//!         /// Messages taken.
//!         messages_total,
//!         /// Messages dropped because the queue was full.
//!         messages_dropped_total,
//!     }
//! }
//!
//! let received = Received::default();
//! received.messages_total.add(2);
//! assert_eq!(received.values(), [("messages_total".to_owned(), 2), ("messages_dropped_total".to_owned(), 0)]);
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows. Shared by threads without a lock.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes a struct of [`Counter`]s whose field names are the metric names (without the `muster_` prefix, in the style
/// `<noun>_<unit>_total`), and a `values()` that lists them for [`DaemonStatus`](muster_proto::ipc::control::DaemonStatus).
#[macro_export]
macro_rules! counters {
    ($(#[$outer:meta])* $visibility:vis struct $name:ident { $($(#[$inner:meta])* $field:ident),* $(,)? }) => {
        $(#[$outer])*
        #[derive(Debug, Default)]
        $visibility struct $name {
            $($(#[$inner])* pub $field: $crate::metrics::Counter,)*
        }

        impl $name {
            /// Every counter by name, in the order of their declaration.
            pub fn values(&self) -> Vec<(String, u64)> {
                vec![$((stringify!($field).to_owned(), self.$field.value())),*]
            }
        }
    };
}

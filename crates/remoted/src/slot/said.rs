//! What an agent said last of itself. Most keepalives say what the one before said: of those nothing is copied, and
//! nothing is read twice.

use std::{
    hash::{DefaultHasher, Hasher},
    sync::Arc,
};

use muster_proto::transport::keepalive::Keepalive;

/// A keepalive, and what everybody wants to know of it.
#[derive(Debug)]
pub struct Said {
    keepalive: Keepalive,
    digest: u64,
    merged_sum: Option<Arc<str>>,
}

impl Said {
    /// Takes the text behind `#!-`.
    pub fn new(text: &str) -> Self {
        let keepalive = Keepalive::parse(text);
        Self {
            digest: digest(keepalive.text().as_bytes()),
            merged_sum: keepalive.merged_sum().map(Arc::from),
            keepalive,
        }
    }

    /// The keepalive itself.
    pub fn keepalive(&self) -> &Keepalive {
        &self.keepalive
    }

    /// A number for its text up to the last line feed: an identical one is known by it.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The sum of the agent's merged file, or `x`.
    pub fn merged_sum(&self) -> Option<&Arc<str>> {
        self.merged_sum.as_ref()
    }
}

/// Not secret and not stored: it only has to tell two texts of one agent apart.
fn digest(text: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(text);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use muster_proto::{keys::file, transport::keepalive::Family};

    use super::*;
    use crate::slot::AgentSlot;

    #[test]
    fn same_text_is_kept_once_and_another_one_is_read() {
        let slot = AgentSlot::new(&file::parse(b"001 a any k\n").entries[0]);
        let first = slot.say("Linux |a - Wazuh v4.13.1\nx merged.mg\nrandom");
        assert_eq!((slot.family(), slot.release()), (Some(Family::Wazuh), Some((4, 13))));
        assert_eq!(first.merged_sum().map(AsRef::as_ref), Some("x"));
        let second = slot.say("Linux |a - Wazuh v4.13.1\nx merged.mg\nother");
        assert!(Arc::ptr_eq(&first, &second));
        let third = slot.say("Linux |a - Wazuh v4.14.7\nx merged.mg\n");
        assert_ne!(third.digest(), first.digest());
        assert_eq!(slot.release(), Some((4, 14)));
        assert_eq!(slot.say("").merged_sum(), None);
    }
}

//! What goes over port 1515: one request line, one answer.
//!
//! ```text
//! [OSSEC PASS: secret ]OSSEC A:'web-01'[ V:'v4.14.7'][ G:'default,web'][ IP:'src'][ K:'<40 hex>'] LF
//! OSSEC K:'001 web-01 any <64 hex>'
//! ERROR: Duplicate agent name: web-01. Unable to add agent
//! ```
//!
//! * [`mod@line`]: bytes to a line, with a cap.
//! * [`request`]: a line to a [`Request`], and a request to a line.
//! * [`answer`]: the texts that go back, and an agent's reading of them.
//! * [`name`], [`group`], [`version`]: the rules for the fields.
//! * [`force`]: when an agent may take the place of another.
//!
//! Error texts are part of the protocol, odd spelling included: agents print them and operators look them up.

pub mod answer;
pub mod force;
pub mod group;
pub mod line;
pub mod name;
pub mod request;
pub mod version;

pub use answer::{Granted, Rejection};
pub use request::{AddressWish, Request};

use sha1::{Digest, Sha1};

use crate::keys::Secret;

/// The longest request, its line feed included.
pub const MAX_REQUEST_LEN: usize = 65_536 + 4_096;

/// What an agent that holds a key says of it: lower-case hex of SHA-1 over id, name and key with nothing between.
pub fn key_hash(id: &str, name: &str, key: &Secret) -> String {
    use std::fmt::Write;

    let mut hash = Sha1::new();
    for field in [id, name, key.expose()] {
        hash.update(field.as_bytes());
    }
    hash.finalize()
        .iter()
        .fold(String::with_capacity(40), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_hash_is_the_recorded_one() {
        let key = Secret::new("9f1c6b0e5a7d4832c1e0f9a8b7c6d5e4f30211aa42bb53cc64dd75ee86ff9700".to_owned());
        assert_eq!(
            key_hash("001", "web-01", &key),
            "dc846e4b0a231da471f872e78bceb5e82d30ceda"
        );
    }
}

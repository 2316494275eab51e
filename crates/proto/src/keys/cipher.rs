//! The keys that seal an agent's messages, derived from its key line.
//!
//! Every step hashes or uses the *text* of an MD5 sum, 32 lower-case hex digits:
//!
//! ```text
//! c = first 15 digits of md5( md5(name) md5(id) )
//! k = md5(key)
//! derived = k c                     47 characters
//! AES-256 key  = the first 32 characters, as bytes
//! Blowfish key = all 47 characters, as bytes
//! ```
//!
//! **Invariant:** the derived text never leaves this crate but by [`CipherKeys::expose`], has no `Debug`, and is
//! wiped when dropped.

use std::sync::OnceLock;

use blowfish::Blowfish;
use cbc::cipher::KeyInit;
use md5::{Digest, Md5};
use zeroize::Zeroizing;

/// Length of the derived text, which is the Blowfish key.
pub const DERIVED_LEN: usize = 47;
/// Length of an AES-256 key.
const AES_KEY_LEN: usize = 32;
/// How much of the sum of name and id goes into the derived text.
const IDENTITY_LEN: usize = DERIVED_LEN - AES_KEY_LEN;

/// The derived keys of one agent.
pub struct CipherKeys {
    derived: Zeroizing<[u8; DERIVED_LEN]>,
    /// Blowfish's tables cost 4 kB of memory and 30 µs to build. They are kept for agents that have proved to
    /// hold the key and for nobody else: a stranger who knows the ids cannot make us keep them for every agent.
    blowfish: OnceLock<Box<Blowfish>>,
}

impl CipherKeys {
    /// Derives the keys of the key line `<id> <name> <address> <key>`. The address has no part in it.
    pub fn derive(id: &str, name: &str, key: &str) -> Self {
        let identity = md5_hex(&[&md5_hex(&[name.as_bytes()]), &md5_hex(&[id.as_bytes()])]);
        let mut derived = Zeroizing::new([0; DERIVED_LEN]);
        let (aes, rest) = derived.split_at_mut(AES_KEY_LEN);
        aes.copy_from_slice(Zeroizing::new(md5_hex(&[key.as_bytes()])).as_slice());
        for (to, from) in rest.iter_mut().zip(identity.iter().take(IDENTITY_LEN)) {
            *to = *from;
        }
        Self {
            derived,
            blowfish: OnceLock::new(),
        }
    }

    /// The derived text, for tools that compare it with another implementation. It is as secret as the key itself.
    pub fn expose(&self) -> &[u8; DERIVED_LEN] {
        &self.derived
    }

    /// The AES-256 key. Expanding it costs less than fetching an expanded one from memory, so none is kept.
    pub(crate) fn aes(&self) -> &[u8; AES_KEY_LEN] {
        self.derived.first_chunk().expect("47 bytes have a first 32")
    }

    /// Blowfish's tables: the ones kept, or new ones that are the caller's alone.
    pub(crate) fn blowfish(&self) -> BlowfishTables<'_> {
        match self.blowfish.get() {
            Some(kept) => BlowfishTables::Kept(kept),
            None => BlowfishTables::New(Box::new(
                Blowfish::new_from_slice(self.derived.as_slice()).expect("Blowfish takes keys of 4 to 56 bytes"),
            )),
        }
    }

    /// Keeps new tables for the next message. Called when a message has verified, or for an agent we write to.
    pub(crate) fn keep_blowfish(&self, tables: BlowfishTables<'_>) {
        if let BlowfishTables::New(tables) = tables {
            // Two threads may get here with equal tables; either will do.
            let _ = self.blowfish.set(tables);
        }
    }
}

/// Blowfish's expanded key, from the agent's own store or freshly made.
pub(crate) enum BlowfishTables<'k> {
    Kept(&'k Blowfish),
    New(Box<Blowfish>),
}

impl BlowfishTables<'_> {
    pub(crate) fn cipher(&self) -> &Blowfish {
        match self {
            Self::Kept(cipher) => cipher,
            Self::New(cipher) => cipher,
        }
    }
}

/// The MD5 sum of all parts, one behind the other, as 32 lower-case hex digits.
pub(crate) fn md5_hex(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part);
    }
    lower_hex(hash.finalize().into())
}

fn lower_hex(sum: [u8; 16]) -> [u8; 32] {
    let mut text = [0; 32];
    let (pairs, _) = text.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(sum) {
        *pair = [hex_digit(byte >> 4), hex_digit(byte & 0x0f)];
    }
    text
}

const fn hex_digit(nibble: u8) -> u8 {
    match nibble {
        0..=9 => b'0' + nibble,
        _ => b'a' + (nibble & 0x0f) - 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_of_the_derivation_gives_the_recorded_value() {
        let name = md5_hex(&[b"web-01"]);
        let id = md5_hex(&[b"001"]);
        assert_eq!(&name, b"9e795e3c83f0a95aee9e9cd5928adc56");
        assert_eq!(&id, b"dc5c7986daef50c1e02ab09b442ee34f");
        assert_eq!(&md5_hex(&[&name, &id]), b"725a2967a61c60231a24571939c6dd0c");
        let keys = CipherKeys::derive(
            "001",
            "web-01",
            "9f1c6b0e5a7d4832c1e0f9a8b7c6d5e4f30211aa42bb53cc64dd75ee86ff9700",
        );
        assert_eq!(keys.expose(), b"790e3ad237e5fa0b25440d8f666b1981725a2967a61c602");
        assert_eq!(keys.aes(), b"790e3ad237e5fa0b25440d8f666b1981");
    }

    #[test]
    fn blowfish_tables_are_kept_only_when_told_to() {
        let keys = CipherKeys::derive("001", "a", "b");
        assert!(matches!(keys.blowfish(), BlowfishTables::New(_)));
        assert!(matches!(keys.blowfish(), BlowfishTables::New(_)));
        keys.keep_blowfish(keys.blowfish());
        assert!(matches!(keys.blowfish(), BlowfishTables::Kept(_)));
    }
}

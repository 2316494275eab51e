//! What a signature covers, and how one is checked.
//!
//! Signed is a preamble of eight lines and then the body as sent, byte for byte: no canonical form of JSON is needed, and
//! a body cannot be taken to another subject, time or number. Sealing comes first, so that whoever cannot open a body
//! can still check it.

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, VerifyingKey};
use muster_proto::event::key::CoSignature;
pub use muster_proto::event::preamble::Preamble;
use zeroize::Zeroizing;

/// A public key from its text: an nkey of type U.
pub fn public_key(key_id: &str) -> Option<VerifyingKey> {
    let (_, raw) = nkeys::from_public_key(key_id)
        .ok()
        .filter(|_| key_id.starts_with('U'))?;
    VerifyingKey::from_bytes(&raw).ok()
}

/// Whether a signature, as text, is that key's for these bytes.
pub fn verifies(key: &VerifyingKey, signed: &[u8], signature: &str) -> bool {
    let bytes = URL_SAFE_NO_PAD.decode(signature).ok();
    bytes
        .and_then(|bytes| Signature::from_slice(&bytes).ok())
        .is_some_and(|signature| key.verify_strict(signed, &signature).is_ok())
}

/// Whether this is that key's signature under the text, if there are both.
pub(crate) fn vouches(trusted: &str, by: Option<&CoSignature>, text: Option<String>) -> bool {
    let key = by.filter(|by| by.kid == trusted).and_then(|by| public_key(&by.kid));
    match (key, by, text) {
        (Some(key), Some(by), Some(text)) => verifies(&key, text.as_bytes(), &by.sig),
        _ => false,
    }
}

/// A signature as text.
pub(crate) fn text(signature: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(signature)
}

/// A key that signs, ready to use: twice as fast as the type of the nkeys crate, and the daemon does little else.
pub struct Signer(Ed25519KeyPair);

impl Signer {
    /// From an nkey; nothing when that is only a public half.
    pub fn new(key: &nkeys::KeyPair) -> Option<Self> {
        let seed = Zeroizing::new(key.seed().ok()?);
        let raw = Zeroizing::new(nkeys::decode_seed(&seed).ok()?.1);
        Ed25519KeyPair::from_seed_unchecked(raw.as_slice()).ok().map(Self)
    }

    /// Signs, as text.
    pub fn sign(&self, bytes: &[u8]) -> String {
        text(self.0.sign(bytes).as_ref())
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Signer").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_what_the_type_of_nkeys_signs() {
        let key = nkeys::KeyPair::new_user();
        let signer = Signer::new(&key).expect("signs");
        assert_eq!(
            signer.sign(b"x"),
            URL_SAFE_NO_PAD.encode(key.sign(b"x").expect("signs")),
            "Ed25519 is deterministic"
        );
        let public = public_key(&key.public_key()).expect("a key");
        assert!(verifies(&public, b"x", &signer.sign(b"x")));
        assert!(!verifies(&public, b"y", &signer.sign(b"x")));
    }

    #[test]
    fn public_half_does_not_sign() {
        let key = nkeys::KeyPair::from_public_key(&nkeys::KeyPair::new_user().public_key()).expect("a key");
        assert!(Signer::new(&key).is_none());
    }
}

//! What a signature covers, and how one is checked.
//!
//! Signed is a preamble of eight lines and then the body as sent, byte for byte: no canonical form of JSON is needed, and
//! a body cannot be taken to another subject, time or number. Sealing comes first, so that whoever cannot open a body
//! can still check it.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, VerifyingKey};
pub use muster_proto::event::preamble::Preamble;

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

/// A signature as text.
pub(crate) fn text(signature: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(signature)
}

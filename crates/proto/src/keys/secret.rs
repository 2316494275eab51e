//! Text that must not be shown: keys and passwords.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A key or a password. It has no `Debug` and no `Display`, is wiped when dropped, and is compared in a time that
/// depends on its length only.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for the one place that needs it: a cipher, a hash, the wire, the key file.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_text_is_equal_and_a_prefix_is_not() {
        let secret = Secret::new("abc".to_owned());
        assert!(secret == Secret::new("abc".to_owned()));
        assert!(secret != Secret::new("ab".to_owned()));
        assert!(secret != Secret::new("abd".to_owned()));
    }
}

//! Agent names.

/// The shortest name, in bytes.
pub const MIN_LEN: usize = 2;
/// The longest name, in bytes.
pub const MAX_LEN: usize = 128;

/// Whether a name may be enrolled: [`MIN_LEN`] to [`MAX_LEN`] of `A-Z a-z 0-9 - _ .`, not beginning with a dot.
/// Letter case counts.
pub fn is_valid(name: &[u8]) -> bool {
    name.len() >= MIN_LEN && is_valid_by_hand(name)
}

/// The same for a name that an operator gives, where one byte is enough.
pub fn is_valid_by_hand(name: &[u8]) -> bool {
    (1..=MAX_LEN).contains(&name.len()) && name.first() != Some(&b'.') && name.iter().all(|byte| is_allowed(*byte))
}

/// Whether a name given by a local program can stand in a key line. Those programs have rules of their own; what
/// must not happen is a line that reads back as something else.
pub fn fits_a_key_line(name: &str) -> bool {
    (1..=MAX_LEN).contains(&name.len())
        && !name.starts_with(['!', '#'])
        && !name.contains(|letter: char| letter == ' ' || letter.is_control())
}

fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_seen_accepted_are_valid() {
        for name in ["ab", &"n".repeat(128), "-x", "VM", "WEB-01", "web_01.example"] {
            assert!(is_valid(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn names_seen_refused_are_not() {
        for name in [
            "",
            "x",
            &"n".repeat(129),
            "bad name",
            ".dot",
            "!web",
            "we*",
            "a/b",
            "wéb",
        ] {
            assert!(!is_valid(name.as_bytes()), "{name}");
            assert_eq!(is_valid_by_hand(name.as_bytes()), name == "x", "{name}");
        }
    }

    #[test]
    fn a_local_name_that_would_break_its_line_does_not_fit() {
        for name in ["", "a b", "a\nb", "!a", "#a", "a\tb", &"n".repeat(129)] {
            assert!(!fits_a_key_line(name), "{name:?}");
        }
        assert!(fits_a_key_line("x"));
        assert!(fits_a_key_line("wéb"));
    }
}

//! `etc/authd.pass`: its first line is the enrollment password.

use muster_proto::keys::Secret;
use thiserror::Error;

/// Why a password file cannot be used. The stock daemon starts with some of these files and then asks for no password
/// at all; this one does not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PasswordError {
    /// Nothing in the file.
    #[error("Empty password provided.")]
    Empty,
    /// Agents and stock daemons take no password that is shorter than this.
    #[error("the first line must have at least two characters and a line feed, or three characters")]
    TooShort,
    /// Cannot be compared with what agents send.
    #[error("the first line is not UTF-8")]
    NotUtf8,
    /// Agents cannot send it.
    #[error("the first line is longer than {MAX_LEN} bytes")]
    TooLong,
}

/// The longest password, well within what fits a request.
const MAX_LEN: usize = 2048;
/// A first line, its line feed included, must be longer than this.
const TOO_SHORT: usize = 2;

/// The password of a file's content. A carriage return before the line feed belongs to it.
pub fn parse(content: &[u8]) -> Result<Secret, PasswordError> {
    if content.len() <= 1 {
        return Err(PasswordError::Empty);
    }
    let line = content
        .split_inclusive(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    if line.len() <= TOO_SHORT {
        return Err(PasswordError::TooShort);
    }
    let password = line.strip_suffix(b"\n").unwrap_or(line);
    if password.len() > MAX_LEN {
        return Err(PasswordError::TooLong);
    }
    let password = str::from_utf8(password).map_err(|_| PasswordError::NotUtf8)?;
    Ok(Secret::new(password.to_owned()))
}

/// A password for this run: 32 hex digits of these random bytes.
pub fn of_random(random: &[u8; 16]) -> Secret {
    use std::fmt::Write;

    let mut text = String::with_capacity(32);
    for byte in random {
        let _ = write!(text, "{byte:02x}");
    }
    Secret::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_password() {
        for (content, password) in [
            ("ab\n", "ab"),
            ("abc", "abc"),
            ("secret\nsecond line\n", "secret"),
            ("two words\n", "two words"),
            ("secret\r\n", "secret\r"),
        ] {
            assert!(
                parse(content.as_bytes()) == Ok(Secret::new(password.to_owned())),
                "{content:?}"
            );
        }
    }

    #[test]
    fn files_that_would_switch_the_check_off_are_refused() {
        for (content, error) in [
            ("", PasswordError::Empty),
            ("\n", PasswordError::Empty),
            ("a", PasswordError::Empty),
            ("a\n", PasswordError::TooShort),
            ("ab", PasswordError::TooShort),
            ("\nsecond line", PasswordError::TooShort),
            ("a\nsecond line", PasswordError::TooShort),
        ] {
            assert!(parse(content.as_bytes()) == Err(error), "{content:?}");
        }
        assert!(parse(b"\xff\xff\xff\n") == Err(PasswordError::NotUtf8));
        assert!(parse(&[b'x'; MAX_LEN + 1]) == Err(PasswordError::TooLong));
    }

    #[test]
    fn a_random_password_has_32_hex_digits() {
        assert_eq!(of_random(&[0xab; 16]).expose(), "ab".repeat(16));
    }
}

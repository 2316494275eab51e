//! What a program says on standard error: for the log, and never with a key in it.
//!
//! **Invariant:** what [`Words::lines`] gives has no control characters, a bounded length, and neither the key of the
//! agent that was looked up nor anything that looks like a key.

use muster_proto::keys::Secret;

/// How much is kept of one look-up.
const MAX_KEPT: usize = 8 * 1024;
/// How many lines are logged of one look-up.
const MAX_LINES: usize = 20;
/// Where a line is cut.
const MAX_LINE_LEN: usize = 512;
/// A run of hex digits of this length may be a key.
const KEY_HEX_LEN: usize = 16;
/// A run of letters and digits of this length may be a key, if some of them are digits.
const KEY_RUN_LEN: usize = 24;
/// That many digits among them.
const KEY_RUN_DIGITS: usize = 3;
/// What stands in its place.
const MASK: &str = "[masked]";

/// Gathers what is said during one look-up.
#[derive(Default)]
pub struct Words {
    kept: zeroize::Zeroizing<Vec<u8>>,
    is_cut: bool,
}

impl std::fmt::Debug for Words {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Words({} bytes)", self.kept.len())
    }
}

impl Words {
    /// Adds what was read. What goes beyond [`MAX_KEPT`] is thrown away.
    pub fn add(&mut self, bytes: &[u8]) {
        let room = MAX_KEPT - self.kept.len();
        self.kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        self.is_cut |= bytes.len() > room;
    }

    /// The lines so far, fit for the log, and begins anew. `key` is the one that was in the answer.
    pub fn lines(&mut self, key: Option<&Secret>) -> Vec<String> {
        let kept = std::mem::take(&mut self.kept);
        let text = String::from_utf8_lossy(&kept);
        let said = text.lines().filter(|line| !line.trim().is_empty());
        let mut lines: Vec<String> = said.take(MAX_LINES).map(|line| masked(line, key)).collect();
        if std::mem::take(&mut self.is_cut) || text.lines().count() > MAX_LINES {
            lines.push("…".to_owned());
        }
        lines
    }
}

/// One line without control characters and without keys.
pub fn masked(line: &str, key: Option<&Secret>) -> String {
    let line = match key {
        Some(key) if !key.expose().is_empty() => line.replace(key.expose(), MASK),
        _ => line.to_owned(),
    };
    let mut out = String::new();
    let mut run = String::new();
    // One more step at the end, for the last run.
    for letter in line.chars().map(Some).chain([None]) {
        match letter {
            Some(letter) if letter.is_ascii_alphanumeric() => run.push(letter),
            other => {
                out.push_str(if looks_like_a_key(&run) { MASK } else { &run });
                run.clear();
                out.extend(other.map(|letter| if letter.is_control() { ' ' } else { letter }));
            }
        }
    }
    match out.char_indices().nth(MAX_LINE_LEN) {
        Some((end, _)) => format!("{}…", out.get(..end).unwrap_or_default()),
        None => out,
    }
}

fn looks_like_a_key(run: &str) -> bool {
    let digits = run.bytes().filter(u8::is_ascii_digit).count();
    let is_hex = run.bytes().all(|byte| byte.is_ascii_hexdigit());
    (run.len() >= KEY_HEX_LEN && is_hex) || (run.len() >= KEY_RUN_LEN && digits >= KEY_RUN_DIGITS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "ac575526e8bbcddf6654e5aa0a39fa60a0020e5d34ed1370916368bdaf5f0c71";

    #[test]
    fn keys_are_masked_and_the_rest_can_be_read() {
        let line = |text: &str| masked(text, None);
        assert_eq!(
            line(&format!("row: ('001', 'web-01', 'any', '{KEY}')")),
            "row: ('001', 'web-01', 'any', '[masked]')"
        );
        assert_eq!(line(&KEY.to_uppercase()), MASK);
        assert_eq!(
            line("key=YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY3ODkw"),
            "key=[masked]"
        );
        let traceback = "  File \"/usr/lib/python3/dist-packages/pymysql/connections.py\", line 644, in connect";
        assert_eq!(line(traceback), traceback);
        let error =
            "pymysql.err.OperationalError: (2003, \"Can't connect to MySQL server on 'localhost' ([Errno 111])\")";
        assert_eq!(line(error), error);
    }

    #[test]
    fn the_key_of_the_answer_is_masked_however_short_it_is() {
        let key = Secret::new("a-b!c".to_owned());
        assert_eq!(
            masked("using a-b!c, again a-b!cd", Some(&key)),
            "using [masked], again [masked]d"
        );
    }

    #[test]
    fn terminal_codes_and_endless_lines_are_tamed() {
        assert_eq!(masked("a\x1b[31mb\tc", None), "a [31mb c");
        assert_eq!(masked(&"é ".repeat(5000), None).chars().count(), MAX_LINE_LEN + 1);
    }

    #[test]
    fn megabytes_are_cut() {
        let mut words = Words::default();
        for _ in 0..10_000 {
            words.add(b"some words and a line end\n");
        }
        assert!(words.kept.len() <= MAX_KEPT);
        let lines = words.lines(None);
        assert_eq!(
            (lines.len(), lines.last().map(String::as_str)),
            (MAX_LINES + 1, Some("…"))
        );
        assert!(words.lines(None).is_empty());
    }

    proptest! {
        #[test]
        fn no_hex_key_gets_through(front in "\\PC{0,10}", key in "[0-9a-f]{32,64}", back in "\\PC{0,10}") {
            let line = masked(&format!("{front}{key}{back}"), None);
            prop_assert!(!line.contains(&key[..32]));
        }
    }
}

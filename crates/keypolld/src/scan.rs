//! Where the first JSON object ends, in bytes that come in pieces.
//!
//! A service on a socket need not close after its answer, and may write text behind it. So the end is found by counting
//! braces outside of strings, each byte looked at once; whether it is good JSON is the parser's business.

/// How far the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The object is not over yet.
    More,
    /// So many bytes are the object and the white space in front of it.
    Complete(usize),
    /// What comes first is not an object.
    NotAnObject,
}

/// Remembers what it has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scanner {
    seen: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scanner {
    /// Looks at what has been added to `bytes`; always the same buffer, grown at its end.
    pub fn advance(&mut self, bytes: &[u8]) -> Progress {
        for byte in bytes.get(self.seen..).unwrap_or_default() {
            self.seen += 1;
            match (self.in_string, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (true, b'"') => self.in_string = false,
                (true, _) => {}
                (false, b'{') => self.depth += 1,
                (false, byte) if self.depth == 0 => {
                    if !byte.is_ascii_whitespace() {
                        return Progress::NotAnObject;
                    }
                }
                (false, b'"') => self.in_string = true,
                (false, b'}') => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Progress::Complete(self.seen);
                    }
                }
                (false, _) => {}
            }
        }
        Progress::More
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(text: &str) -> Progress {
        Scanner::default().advance(text.as_bytes())
    }

    #[test]
    fn the_end_is_found_whatever_follows() {
        assert_eq!(scan(r#"{"error":0}"#), Progress::Complete(11));
        assert_eq!(scan(" \r\n{}trailing }{"), Progress::Complete(5));
        assert_eq!(scan(r#"{"a":{"b":"}\"}"},"c":[{}]} x"#), Progress::Complete(27));
    }

    #[test]
    fn what_is_no_object_is_said_at_once() {
        for text in ["x", "[1]", "\"{}\"", " \n}", "Traceback (most recent call last):"] {
            assert_eq!(scan(text), Progress::NotAnObject, "{text}");
        }
    }

    #[test]
    fn an_open_object_waits_for_more() {
        for text in ["", "  ", "{", r#"{"a":"}"#, r#"{"a":"\"}"#, r#"{"a":{}"#] {
            assert_eq!(scan(text), Progress::More, "{text}");
        }
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(text in r#"[ {}"\\a:,\[\]]{0,40}"#, cut in 0usize..40) {
            let bytes = text.as_bytes();
            let mut scanner = Scanner::default();
            let first = scanner.advance(&bytes[..cut.min(bytes.len())]);
            let pieces = if first == Progress::More { scanner.advance(bytes) } else { first };
            prop_assert_eq!(pieces, scan(&text));
        }

        #[test]
        fn any_json_object_is_found_whole(name in "\\PC{0,8}", text in "\\PC{0,20}", number in any::<i32>()) {
            let mut object = serde_json::Map::new();
            object.insert(name, serde_json::json!({"t": text, "n": [number, {"x": null}]}));
            let json = serde_json::Value::Object(object).to_string();
            prop_assert_eq!(scan(&format!("{json} and more")), Progress::Complete(json.len()));
        }
    }
}

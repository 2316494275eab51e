//! JSON as authd's callers are used to it being read: objects keep the order of their members, the first of two equal
//! names counts, and names are compared without letter case.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

/// A value. The depth is bounded by the parser, the size by the payload.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(f64),
    String(String),
    Array(Vec<Self>),
    Object(Vec<(String, Self)>),
}

/// The members of an object; a value that is none has no members.
#[derive(Clone, Copy)]
pub(super) struct Object<'a>(&'a [(String, Json)]);

/// A whole request.
pub(super) struct Document(Vec<(String, Json)>);

/// The object at the beginning of a payload. What follows it is not looked at.
pub(super) fn first_object(payload: &[u8]) -> Option<Document> {
    match serde_json::Deserializer::from_slice(payload).into_iter::<Json>().next() {
        Some(Ok(Json::Object(members))) => Some(Document(members)),
        _ => None,
    }
}

impl Document {
    pub(super) fn member(&self, name: &str) -> Option<&Json> {
        Object(&self.0).member(name)
    }
}

impl<'a> Object<'a> {
    pub(super) fn member(self, name: &str) -> Option<&'a Json> {
        self.0
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// A member that is a string; any other counts as absent.
    pub(super) fn text(self, name: &str) -> Option<&'a str> {
        self.member(name).and_then(Json::text)
    }
}

impl Json {
    pub(super) fn text(&self) -> Option<&str> {
        if let Self::String(text) = self {
            Some(text)
        } else {
            None
        }
    }

    pub(super) fn as_object(&self) -> Object<'_> {
        if let Self::Object(members) = self {
            Object(members)
        } else {
            Object(&[])
        }
    }

    /// `true`, or a number other than 0.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Bool(truth) => *truth,
            Self::Number(number) => *number != 0.0,
            _ => false,
        }
    }

    /// A number of seconds, or text such as `90`, `15m`, `1h`, `2d`.
    pub(super) fn seconds(&self) -> Option<i64> {
        match self {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a float cast saturates, and no such time is meant"
            )]
            Self::Number(number) => Some(*number as i64),
            Self::String(text) => seconds(text),
            _ => None,
        }
    }
}

fn seconds(text: &str) -> Option<i64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor = match text.get(digits.len()..)? {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain {
        digits.parse::<i64>().ok()?.checked_mul(factor)
    } else {
        None
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut object = Vec::new();
        while let Some(member) = members.next_entry()? {
            object.push(member);
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_one_unit_or_none() {
        for (text, expected) in [
            ("0", Some(0)),
            ("90", Some(90)),
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("1h", Some(3600)),
            ("2d", Some(172_800)),
            ("", None),
            ("h", None),
            ("1x", None),
            ("1hh", None),
            ("-5", None),
            ("1 h", None),
            ("9223372036854775807d", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn the_first_of_two_equal_names_counts() {
        let document = first_object(br#"{"Id":"1","id":"2"} trailing"#).expect("an object");
        assert_eq!(document.member("ID").and_then(Json::text), Some("1"));
    }

    #[test]
    fn endless_nesting_is_no_value() {
        assert!(first_object(&[b"{\"a\":".repeat(100_000), b"1".to_vec()].concat()).is_none());
    }
}

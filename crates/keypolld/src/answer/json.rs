//! The members of an answer, as lenient as they must be read and no more.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// The members of the answer that mean something; `None` = missing, or of another type than it should be.
#[derive(Default)]
pub(super) struct Raw<'a> {
    pub(super) error: Option<i64>,
    pub(super) message: Option<Cow<'a, str>>,
    pub(super) data: Option<Data<'a>>,
}

/// The members of `data`.
#[derive(Default)]
pub(super) struct Data<'a> {
    pub(super) id: Option<Cow<'a, str>>,
    pub(super) name: Option<Cow<'a, str>>,
    pub(super) ip: Option<Cow<'a, str>>,
    pub(super) key: Option<Cow<'a, str>>,
}

impl<'a> Raw<'a> {
    /// Reads the object at the beginning.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Self> {
        serde_json::Deserializer::from_slice(bytes).into_iter().next()?.ok()
    }
}

/// A value, with what is not wanted thrown away while it is read.
enum Value<'a> {
    Number(i64),
    Text(Cow<'a, str>),
    Data(Data<'a>),
    Other,
}

impl<'a> Value<'a> {
    fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Reads any value; objects are read as `data` where that is wanted.
#[derive(Clone, Copy)]
enum Wanted {
    Scalar,
    Data,
}

impl<'de> DeserializeSeed<'de> for Wanted {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Wanted {
    type Value = Value<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value<'de>, E> {
        Ok(Value::Number(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value<'de>, E> {
        Ok(Value::Number(i64::try_from(number).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value<'de>, E> {
        Ok(Value::Other)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value<'de>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value<'de>, A::Error> {
        let mut data = Data::default();
        let mut seen = [false; 4];
        while let Some(name) = members.next_key::<Cow<'de, str>>()? {
            let value = members.next_value_seed(Self::Scalar)?;
            let place = match name.to_ascii_lowercase().as_str() {
                "id" => (&mut data.id, 0),
                "name" => (&mut data.name, 1),
                "ip" => (&mut data.ip, 2),
                "key" => (&mut data.key, 3),
                _ => continue,
            };
            if let Some(seen) = seen.get_mut(place.1)
                && !std::mem::replace(seen, true)
            {
                *place.0 = value.text();
            }
        }
        Ok(match self {
            Self::Data => Value::Data(data),
            Self::Scalar => Value::Other,
        })
    }
}

impl<'de> Deserialize<'de> for Raw<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Raw<'de>, A::Error> {
        let (mut error, mut message, mut data) = (None, None, None);
        while let Some(name) = members.next_key::<Cow<'de, str>>()? {
            let value = members.next_value_seed(Wanted::Data)?;
            match name.to_ascii_lowercase().as_str() {
                "error" => error = error.or(Some(value)),
                "message" => message = message.or(Some(value)),
                "data" => data = data.or(Some(value)),
                _ => {}
            }
        }
        Ok(Raw {
            error: match error {
                Some(Value::Number(number)) => Some(number),
                _ => None,
            },
            message: message.and_then(Value::text),
            data: match data {
                Some(Value::Data(data)) => Some(data),
                _ => None,
            },
        })
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw<'de>, E> {
        Err(E::invalid_type(de::Unexpected::Unit, &self))
    }
}

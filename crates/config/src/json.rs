//! How settings look in JSON where serde's own form would be unhandy.

use std::{fmt::Display, time::Duration};

use serde::Serializer;

/// A duration as whole seconds.
pub(crate) fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

/// The same, or null.
pub(crate) fn maybe_seconds<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => serializer.serialize_some(&duration.as_secs()),
        None => serializer.serialize_none(),
    }
}

/// A list of times as seconds.
pub(crate) fn all_seconds<S: Serializer>(list: &[Duration], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(list.iter().map(Duration::as_secs))
}

/// A list of things by their text.
pub(crate) fn texts<T: Display, S: Serializer>(list: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(list.iter().map(ToString::to_string))
}

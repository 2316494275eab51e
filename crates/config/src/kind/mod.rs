//! The kinds of values: how a text is read, how a value is written, and what is said when a text will not do.
//!
//! One kind serves the reader, the printer of `config show` and the list of options that the documentation is checked
//! against, so that the three cannot tell different stories.

mod amount;
mod rate;
mod word;

pub(crate) use amount::{bytes, minutes, number, seconds, span};
pub(crate) use rate::rate;
pub(crate) use word::{address, flag, maybe, networks, path, secret, text, word, words, yes_no, yes_no_any_case};

/// What became of a text.
#[derive(Debug, PartialEq)]
pub(crate) enum Reading<T> {
    /// It is this value.
    Value(T),
    /// It is taken for this value, and somebody should look at it.
    Doubtful(T, String),
    /// It is not of this kind.
    Refused,
    /// It is not of this kind, and here is more to say than that.
    Because(String),
}

impl<T> Reading<T> {
    pub(crate) fn map<U>(self, turn: impl FnOnce(T) -> U) -> Reading<U> {
        match self {
            Self::Value(value) => Reading::Value(turn(value)),
            Self::Doubtful(value, remark) => Reading::Doubtful(turn(value), remark),
            Self::Refused => Reading::Refused,
            Self::Because(reason) => Reading::Because(reason),
        }
    }
}

impl<T> From<Option<T>> for Reading<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Refused, Self::Value)
    }
}

/// A kind of values.
pub(crate) trait Kind<T> {
    /// What is accepted, to stand behind "must be".
    fn accepts(&self) -> String;

    /// Reads a trimmed text.
    fn read(&self, text: &str) -> Reading<T>;

    /// Writes a value so that [`Kind::read`] gives it back. `None`: the option is left out.
    fn write(&self, value: &T) -> Option<String>;

    /// Whether nobody may see the value.
    fn is_secret(&self) -> bool {
        false
    }
}

/// A kind made of two functions, for what only one option has.
pub(crate) struct Special<T> {
    pub(crate) accepts: &'static str,
    pub(crate) read: fn(&str) -> Reading<T>,
    pub(crate) write: fn(&T) -> Option<String>,
}

impl<T> Kind<T> for Special<T> {
    fn accepts(&self) -> String {
        self.accepts.to_owned()
    }

    fn read(&self, text: &str) -> Reading<T> {
        (self.read)(text)
    }

    fn write(&self, value: &T) -> Option<String> {
        (self.write)(value)
    }
}

/// A kind whose bad values stock replaces by the default with a warning. So do we, since a file that worked must go on
/// working.
pub(crate) struct Lenient<K, T> {
    kind: K,
    default: T,
}

/// See [`Lenient`].
pub(crate) fn lenient<K, T>(kind: K, default: T) -> Lenient<K, T> {
    Lenient { kind, default }
}

impl<T: Clone, K: Kind<T>> Kind<T> for Lenient<K, T> {
    fn accepts(&self) -> String {
        self.kind.accepts()
    }

    fn read(&self, text: &str) -> Reading<T> {
        match self.kind.read(text) {
            Reading::Refused => {
                let written = self.kind.write(&self.default).unwrap_or_default();
                let remark = format!("must be {}; {written} is taken instead", self.kind.accepts());
                Reading::Doubtful(self.default.clone(), remark)
            }
            reading => reading,
        }
    }

    fn write(&self, value: &T) -> Option<String> {
        self.kind.write(value)
    }
}

//! Words, texts, paths, addresses.

use std::{net::IpAddr, path::PathBuf};

use ipnet::IpNet;

use super::{Kind, Reading, Special};
use crate::secret::{MASK, Secret};

/// The longest path that stock takes.
const MAX_PATH: usize = 4095;

/// One of a closed list of words.
pub(crate) struct Word<T: 'static> {
    words: &'static [(&'static str, T)],
    any_case: bool,
}

/// One of a closed list of words, in lower case.
pub(crate) fn word<T>(words: &'static [(&'static str, T)]) -> Word<T> {
    Word { words, any_case: false }
}

/// `yes` or `no`, in lower case, and nothing else: so stock takes it.
pub(crate) fn yes_no() -> Word<bool> {
    word(&[("yes", true), ("no", false)])
}

/// `yes` or `no` in any case, for the few options where stock does not mind.
pub(crate) fn yes_no_any_case() -> Word<bool> {
    Word {
        any_case: true,
        ..yes_no()
    }
}

/// `1` or `0`, as internal options say it.
pub(crate) fn flag() -> Word<bool> {
    word(&[("0", false), ("1", true)])
}

impl<T: Copy + PartialEq> Kind<T> for Word<T> {
    fn accepts(&self) -> String {
        let names: Vec<_> = self.words.iter().map(|(name, _)| format!("'{name}'")).collect();
        match names.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => names.concat(),
        }
    }

    fn read(&self, text: &str) -> Reading<T> {
        let fits = |name: &str| name == text || (self.any_case && name.eq_ignore_ascii_case(text));
        self.words
            .iter()
            .find(|(name, _)| fits(name))
            .map(|(_, value)| *value)
            .into()
    }

    fn write(&self, value: &T) -> Option<String> {
        self.words
            .iter()
            .find(|(_, known)| known == value)
            .map(|(name, _)| (*name).to_owned())
    }
}

/// A comma list of words from a closed list, at least one.
pub(crate) struct Words<T: 'static>(Word<T>);

/// A comma list of words from a closed list, at least one, none twice.
pub(crate) fn words<T>(list: &'static [(&'static str, T)]) -> Words<T> {
    Words(word(list))
}

impl<T: Copy + PartialEq> Kind<Vec<T>> for Words<T> {
    fn accepts(&self) -> String {
        format!("a comma list of {}", self.0.accepts().replace(" or ", ", "))
    }

    fn read(&self, text: &str) -> Reading<Vec<T>> {
        let mut list = Vec::new();
        for part in text.split(',') {
            match self.0.read(part.trim()) {
                Reading::Value(value) if !list.contains(&value) => list.push(value),
                Reading::Value(_) => {}
                _ => return Reading::Refused,
            }
        }
        Reading::Value(list)
    }

    fn write(&self, value: &Vec<T>) -> Option<String> {
        let names: Vec<_> = value.iter().filter_map(|word| self.0.write(word)).collect();
        Some(names.join(","))
    }
}

/// A text that is not empty.
pub(crate) struct Text {
    max: usize,
}

/// A text of 1 to `max` bytes without control characters, which would break log lines and headers.
pub(crate) fn text(max: usize) -> Text {
    Text { max }
}

impl Kind<String> for Text {
    fn accepts(&self) -> String {
        format!("a text of 1 to {} bytes without control characters", self.max)
    }

    fn read(&self, text: &str) -> Reading<String> {
        let fits = !text.is_empty() && text.len() <= self.max && !text.chars().any(char::is_control);
        fits.then(|| text.to_owned()).into()
    }

    fn write(&self, value: &String) -> Option<String> {
        Some(value.clone())
    }
}

/// A path, relative to the home or absolute.
pub(crate) struct PathKind(Text);

/// A path, relative to the home or absolute.
pub(crate) fn path() -> PathKind {
    PathKind(text(MAX_PATH))
}

impl Kind<PathBuf> for PathKind {
    fn accepts(&self) -> String {
        "a path, relative to the home or absolute".to_owned()
    }

    fn read(&self, text: &str) -> Reading<PathBuf> {
        self.0.read(text).map(PathBuf::from)
    }

    fn write(&self, value: &PathBuf) -> Option<String> {
        Some(value.to_string_lossy().into_owned())
    }
}

/// A secret text.
pub(crate) struct SecretKind(Text);

/// A secret text of 1 to `max` bytes.
pub(crate) fn secret(max: usize) -> SecretKind {
    SecretKind(text(max))
}

impl Kind<Secret> for SecretKind {
    fn accepts(&self) -> String {
        self.0.accepts()
    }

    fn read(&self, text: &str) -> Reading<Secret> {
        let secret = Secret::new(text);
        match self.0.read(text) {
            Reading::Value(_) if text == MASK => Reading::Doubtful(
                secret,
                "is what `config show` prints in place of a secret; write the secret".to_owned(),
            ),
            reading => reading.map(|_| secret),
        }
    }

    fn write(&self, value: &Secret) -> Option<String> {
        Some(value.expose().to_owned())
    }

    fn is_secret(&self) -> bool {
        true
    }
}

/// What may be left out.
pub(crate) struct Maybe<K>(K);

/// What may be left out: `None` is not written.
pub(crate) fn maybe<K>(kind: K) -> Maybe<K> {
    Maybe(kind)
}

impl<T, K: Kind<T>> Kind<Option<T>> for Maybe<K> {
    fn accepts(&self) -> String {
        self.0.accepts()
    }

    fn read(&self, text: &str) -> Reading<Option<T>> {
        self.0.read(text).map(Some)
    }

    fn write(&self, value: &Option<T>) -> Option<String> {
        value.as_ref().and_then(|value| self.0.write(value))
    }

    fn is_secret(&self) -> bool {
        self.0.is_secret()
    }
}

/// One IP address.
pub(crate) fn address() -> Special<IpAddr> {
    Special {
        accepts: "an IPv4 or IPv6 address",
        read: |text| text.parse().ok().into(),
        write: |address| Some(address.to_string()),
    }
}

/// A network, a mask in either form, a single address, or `any`.
pub(crate) fn networks() -> Special<IpNet> {
    Special {
        accepts: "an address or a network, such as 10.1.2.3, 10.0.0.0/8, 10.0.0.0/255.0.0.0 or 2001:db8::/32",
        read: |text| network(text).into(),
        write: |network| Some(network.to_string()),
    }
}

fn network(text: &str) -> Option<IpNet> {
    if text == "any" {
        return "0.0.0.0/0".parse().ok();
    }
    let Some((address, mask)) = text.split_once('/') else {
        return text.parse().ok().map(|address: IpAddr| IpNet::from(address));
    };
    let address: IpAddr = address.parse().ok()?;
    let length = if mask.bytes().all(|byte| byte.is_ascii_digit()) {
        mask.parse().ok()?
    } else {
        let mask: IpAddr = mask.parse().ok()?;
        ipnet::ip_mask_to_prefix(mask)
            .ok()
            .filter(|_| mask.is_ipv4() == address.is_ipv4())?
    };
    IpNet::new(address, length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yes_and_no_are_taken_in_lower_case_only() {
        assert_eq!(yes_no().read("yes"), Reading::Value(true));
        assert_eq!(yes_no().read("no"), Reading::Value(false));
        for text in ["Yes", "NO", "true", "1", "on", "", "yes "] {
            assert_eq!(yes_no().read(text), Reading::Refused, "{text}");
        }
        assert_eq!(yes_no_any_case().read("YES"), Reading::Value(true));
    }

    #[test]
    fn networks_take_both_forms_of_mask() {
        let read = |text| match networks().read(text) {
            Reading::Value(network) => network.to_string(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(read("10.0.0.0/8"), "10.0.0.0/8");
        assert_eq!(read("10.0.0.0/255.0.0.0"), "10.0.0.0/8");
        assert_eq!(read("10.1.2.3"), "10.1.2.3/32");
        assert_eq!(read("2001:db8::/32"), "2001:db8::/32");
        assert_eq!(read("any"), "0.0.0.0/0");
        for text in [
            "10.0.0.0/33",
            "10.0.0/8",
            "10.0.0.0/255.0.255.0",
            "web-01",
            "",
            "/8",
            "10.0.0.0/::",
        ] {
            assert_eq!(networks().read(text), Reading::Refused, "{text}");
        }
    }

    #[test]
    fn texts_refuse_control_characters_and_emptiness() {
        for text_ in ["", "a\nb", "a\0b", "\u{85}", "abcd"] {
            assert_eq!(text(3).read(text_), Reading::Refused, "{text_:?}");
        }
    }

    #[test]
    fn a_mask_given_as_a_secret_is_doubtful() {
        assert!(matches!(secret(99).read(MASK), Reading::Doubtful(..)));
    }
}

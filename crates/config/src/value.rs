//! Values that options have and that are more than a number or a text.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// A manager version of three numbers. Agents compare it with their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManagerVersion {
    /// First number.
    pub major: u16,
    /// Second number.
    pub minor: u16,
    /// Third number.
    pub patch: u16,
}

impl ManagerVersion {
    /// The version without the leading `v`, as event bodies have it: `4.14.7`.
    pub fn bare(&self) -> String {
        format!("{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// With the leading `v`, as agents and logs have it: `v4.14.7`.
impl fmt::Display for ManagerVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "v{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Serialize for ManagerVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for ManagerVersion {
    type Err = ();

    /// Takes `v4.14.7` and `4.14.7`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut numbers = text.strip_prefix('v').unwrap_or(text).split('.');
        let mut number = || -> Result<u16, ()> {
            let digits = numbers.next().ok_or(())?;
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(());
            }
            digits.parse().map_err(|_| ())
        };
        let version = Self {
            major: number()?,
            minor: number()?,
            patch: number()?,
        };
        if numbers.next().is_some() { Err(()) } else { Ok(version) }
    }
}

/// A token bucket. As text: `50/s burst 500`, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rate {
    /// Tokens that come back each second. Zero: there is no limit.
    pub per_second: u32,
    /// Tokens that may be saved up.
    pub burst: u32,
}

impl Rate {
    /// No limit.
    pub const OFF: Self = Self {
        per_second: 0,
        burst: 0,
    };

    /// Whether there is no limit.
    pub fn is_off(&self) -> bool {
        self.per_second == 0
    }
}

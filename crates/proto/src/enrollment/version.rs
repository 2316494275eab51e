//! The version check: an agent that is newer than its manager may be refused.

/// Major and minor, all that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The number before the first dot.
    pub major: u32,
    /// The number behind it.
    pub minor: u32,
}

/// As many characters as the stock compare looks at.
const COMPARED_LEN: usize = 9;

impl Version {
    /// Reads `v4.14.7`, `4.14.7` or `Wazuh v4.14.7`: what stands behind the first `v`, if there is one.
    /// What is no number counts as 0, so that text without a version is never newer.
    pub fn parse(text: &str) -> Self {
        let numbers = text.split_once('v').map_or(text, |(_, behind)| behind);
        let numbers = numbers
            .get(..numbers.floor_char_boundary(COMPARED_LEN))
            .unwrap_or(numbers);
        let mut parts = numbers.split('.').map(leading_number);
        Self {
            major: parts.next().unwrap_or(0),
            minor: parts.next().unwrap_or(0),
        }
    }
}

fn leading_number(text: &str) -> u32 {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    text.get(..end).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_major_and_minor_count() {
        let manager = Version::parse("v4.14.7");
        for passes in [
            "",
            "v4.14.99",
            "v4.9.2",
            "Wazuh v4.14.0",
            "abc",
            "4",
            "v3.13.6",
            "OSSEC HIDS 3.7",
        ] {
            assert!(Version::parse(passes) <= manager, "{passes}");
        }
        for newer in ["v4.15.0", "v5.0.0", "Wazuh v5.0", "9.9.9", "v9.9.9"] {
            assert!(Version::parse(newer) > manager, "{newer}");
        }
    }

    #[test]
    fn a_number_that_overflows_does_not_count() {
        assert_eq!(
            Version::parse("v999999999999.1"),
            Version {
                major: 999_999_999,
                minor: 0
            }
        );
    }
}

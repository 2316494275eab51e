//! Group names: the rules in the request line, and the stricter ones before a group is looked up.

/// The most groups an agent may be in.
pub const MAX_GROUPS: usize = 128;
/// The longest name of one group.
pub const MAX_NAME_LEN: usize = 255;
/// The longest list that is looked at.
const MAX_LIST_LEN: usize = 65_535;

/// Splits the `G:` field into groups, duplicates removed, first positions kept.
///
/// # Errors
/// The text behind `ERROR: Invalid group name: `.
pub fn parse_list(field: &[u8]) -> Result<Vec<String>, Vec<u8>> {
    check_list(field)?;
    // Only ASCII is left.
    Ok(distinct(&String::from_utf8_lossy(field)))
}

/// The pieces between commas without empty ones and without repetitions.
pub fn distinct(list: &str) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    list.split(',')
        .filter(|piece| !piece.is_empty() && seen.insert(*piece))
        .map(str::to_owned)
        .collect()
}

fn check_list(field: &[u8]) -> Result<(), Vec<u8>> {
    let is_list = field.contains(&b',');
    if field.is_empty() {
        return Err(b"Empty Group".to_vec());
    }
    if !is_list && field.len() > MAX_NAME_LEN {
        return complain(field, "group is too large");
    }
    if is_list && field.len() > MAX_LIST_LEN {
        return complain(field, "multigroup is too large");
    }
    if is_list {
        for member in field.split(|byte| *byte == b',') {
            if member.contains(&b' ') {
                return complain(field, "white spaces are not allowed");
            }
            if member.len() > MAX_NAME_LEN {
                return complain(member, "group is too large");
            }
        }
    }
    if field.windows(2).any(|pair| pair == b",,") {
        return complain(field, "consecutive ',' are not allowed");
    }
    if field == b"," || !field.iter().all(|byte| is_allowed_in_list(*byte)) {
        return complain(field, "characters '\\/:*?\"<>|,' are prohibited");
    }
    if field.first() == Some(&b',') || field.last() == Some(&b',') {
        return complain(field, "cannot start or end with ','");
    }
    Ok(())
}

fn complain(text: &[u8], what: &str) -> Result<(), Vec<u8>> {
    let shown = text.get(..MAX_NAME_LEN).unwrap_or(text);
    Err([shown, b"... ", what.as_bytes()].concat())
}

fn is_allowed_in_list(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".:;_-=+!@(),".contains(&byte)
}

/// Whether a name may be a directory below `etc/shared`: letters, digits, `_`, `.` and `-`, and neither `.` nor `..`.
/// The request line's rule is wider; this one is asked before the file system is.
pub fn is_valid_name(group: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&group.len())
        && group != "."
        && group != ".."
        && group
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(field: &str) -> String {
        String::from_utf8(parse_list(field.as_bytes()).expect_err("a refusal")).expect("ASCII")
    }

    #[test]
    fn each_rule_has_its_text() {
        let long = "g".repeat(256);
        let first = &long[..255];
        let prohibited = "characters '\\/:*?\"<>|,' are prohibited";
        assert_eq!(refusal(""), "Empty Group");
        assert_eq!(refusal(&long), format!("{first}... group is too large"));
        assert_eq!(refusal(&format!("a,{long}")), format!("{first}... group is too large"));
        assert_eq!(refusal("a b"), format!("a b... {prohibited}"));
        assert_eq!(refusal("a b,c"), "a b,c... white spaces are not allowed");
        assert_eq!(refusal("a,,b"), "a,,b... consecutive ',' are not allowed");
        assert_eq!(refusal(",,"), ",,... consecutive ',' are not allowed");
        assert_eq!(refusal(","), format!(",... {prohibited}"));
        assert_eq!(refusal("a/b"), format!("a/b... {prohibited}"));
        assert_eq!(refusal(",a"), ",a... cannot start or end with ','");
        assert_eq!(refusal("a,"), "a,... cannot start or end with ','");
    }

    #[test]
    fn a_list_of_65536_bytes_is_too_large() {
        let list = format!("{}a", "a,".repeat(32_768));
        assert!(parse_list(&list.as_bytes()[..65_535]).is_ok());
        assert!(refusal(&format!("{}b", &list[..65_535])).ends_with("... multigroup is too large"));
    }

    #[test]
    fn repetitions_go_and_first_positions_stay() {
        assert_eq!(
            parse_list(b"g1,g2,g1,g3,g2"),
            Ok(vec!["g1".to_owned(), "g2".to_owned(), "g3".to_owned()])
        );
        let repeated = vec!["g1"; 130].join(",");
        assert_eq!(parse_list(repeated.as_bytes()), Ok(vec!["g1".to_owned()]));
    }

    #[test]
    fn the_second_rule_is_stricter_than_the_first() {
        for group in ["a:b", "..", ".", "a=b", "", &"g".repeat(256)] {
            assert!(!is_valid_name(group), "{group}");
        }
        assert!(parse_list(b"a:b").is_ok());
        assert!(is_valid_name("web.servers_1-a"));
    }
}

//! Whether the groups that an agent asks for exist.

use std::path::Path;

use muster_proto::{
    enrollment::{
        Rejection,
        group::{MAX_GROUPS, is_valid_name},
    },
    paths,
};

/// Checks one group after the other.
///
/// # Errors
/// What is wrong with the first that is wrong: its name, its absence, or its being one too many.
pub fn check(groups: &[String], exists: impl Fn(&str) -> bool) -> Result<(), Rejection> {
    for (place, group) in groups.iter().enumerate() {
        if place >= MAX_GROUPS {
            return Err(Rejection::TooManyGroups);
        }
        if !is_valid_name(group) {
            return Err(Rejection::InvalidGroupName(group.as_bytes().to_vec()));
        }
        if !exists(group) {
            return Err(Rejection::UnknownGroup(group.clone()));
        }
    }
    Ok(())
}

/// Whether a group has a directory in this home. The name has been checked: it cannot lead out.
pub fn has_directory(group: &str) -> bool {
    Path::new(paths::SHARED).join(group).is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_all(groups: &[&str]) -> Result<(), Rejection> {
        let groups: Vec<_> = groups.iter().map(|group| (*group).to_owned()).collect();
        check(&groups, |group| group.starts_with('g'))
    }

    #[test]
    fn groups_that_exist_pass() {
        assert_eq!(check_all(&["g1", "g.2", "g-3"]), Ok(()));
        assert_eq!(check_all(&[]), Ok(()));
    }

    #[test]
    fn the_first_fault_counts() {
        assert_eq!(
            check_all(&["g1", "nosuch", "a:b"]),
            Err(Rejection::UnknownGroup("nosuch".to_owned()))
        );
        assert_eq!(
            check_all(&["g:1", "nosuch"]),
            Err(Rejection::InvalidGroupName(b"g:1".to_vec()))
        );
        assert_eq!(check_all(&[".."]), Err(Rejection::InvalidGroupName(b"..".to_vec())));
    }

    #[test]
    fn one_too_many_is_refused_only_when_the_others_are_good() {
        let many: Vec<_> = (0..=MAX_GROUPS).map(|number| format!("g{number}")).collect();
        assert_eq!(check(&many[..MAX_GROUPS], |_| true), Ok(()));
        assert_eq!(check(&many, |_| true), Err(Rejection::TooManyGroups));
        assert!(matches!(
            check(&many, |group| group != "g127"),
            Err(Rejection::UnknownGroup(_))
        ));
    }
}

//! The groups of agents: whether those that somebody asks for exist, and what becomes of those that an agent has.

use std::path::Path;

use muster_proto::{
    enrollment::{
        Rejection,
        group::{MAX_GROUPS, is_valid_name},
    },
    ipc::control::GroupMode,
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

/// What an agent's groups are afterwards. The order is that of the first mention.
///
/// # Errors
/// They would be too many.
pub fn change(current: &[String], named: &[String], mode: GroupMode) -> Result<Vec<String>, Rejection> {
    let mut groups: Vec<String> = match mode {
        GroupMode::EmptyOnly if !current.is_empty() => return Ok(current.to_vec()),
        GroupMode::EmptyOnly | GroupMode::Override => Vec::new(),
        GroupMode::Append => current.to_vec(),
        GroupMode::Remove => {
            return Ok(current.iter().filter(|group| !named.contains(group)).cloned().collect());
        }
    };
    for group in named {
        if !groups.contains(group) {
            groups.push(group.clone());
        }
    }
    if groups.len() > MAX_GROUPS {
        return Err(Rejection::TooManyGroups);
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(current: &str, named: &str, mode: GroupMode) -> String {
        let split = |list: &str| muster_proto::enrollment::group::distinct(list);
        change(&split(current), &split(named), mode)
            .expect("not too many")
            .join(",")
    }

    #[test]
    fn each_mode_does_what_it_says() {
        assert_eq!(changed("", "default", GroupMode::EmptyOnly), "default");
        assert_eq!(changed("web", "default", GroupMode::EmptyOnly), "web");
        assert_eq!(changed("web", "b,a", GroupMode::Override), "b,a");
        assert_eq!(changed("web,a", "b,a", GroupMode::Append), "web,a,b");
        assert_eq!(changed("web,a", "b,web", GroupMode::Remove), "a");
        assert_eq!(changed("web", "", GroupMode::Override), "");
    }

    #[test]
    fn an_agent_has_no_more_groups_than_fit() {
        let many: Vec<_> = (0..MAX_GROUPS).map(|number| format!("g{number}")).collect();
        let one = ["one".to_owned()];
        assert_eq!(change(&many, &one, GroupMode::Append), Err(Rejection::TooManyGroups));
        assert_eq!(change(&many, &many, GroupMode::Append), Ok(many));
    }

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

//! Giving up root for good, and proving it.
//!
//! **Invariant:** after [`drop_to`] has returned `Ok`, the process cannot become root again, has no supplementary
//! groups and no capabilities. It is called before any other thread exists, since the kernel keeps credentials per
//! thread.

use std::{io, os::unix::fs::MetadataExt, path::Path};

use caps::CapSet;
use nix::{
    errno::Errno,
    sys::prctl,
    unistd::{
        Gid, Group, Uid, User, geteuid, getgroups, getresgid, getresuid, setgroups, setresgid, setresuid, setuid,
    },
};
use thiserror::Error;

/// Why privileges could not be dropped. Each of these ends the process.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PrivilegeError {
    /// No such user.
    #[error("there is no user {0}; create it or name another with --user")]
    NoSuchUser(String),
    /// No such group.
    #[error("there is no group {0}; create it or name another with --group")]
    NoSuchGroup(String),
    /// Only root can become somebody else.
    #[error("cannot become {0}: not started as root")]
    NotRoot(String),
    /// The home's owner cannot be read.
    #[error("cannot read the owner of the home")]
    Home(#[source] io::Error),
    /// A system call failed.
    #[error("cannot drop privileges: {step}")]
    Step {
        /// Which one.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Everything succeeded, and yet something was kept.
    #[error("privileges were dropped, but {0}")]
    NotDropped(&'static str),
}

/// Whom to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: Uid,
    /// Group.
    pub gid: Gid,
    /// The user's name, for messages.
    pub name: String,
}

impl Identity {
    fn of(user: User) -> Self {
        Self {
            uid: user.uid,
            gid: user.gid,
            name: user.name,
        }
    }
}

/// Whom a daemon becomes unless it is told, by the name that it was started under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preferred {
    /// The first of these users that exists.
    users: Vec<String>,
    /// Together with this group, if it exists.
    group: &'static str,
}

impl Preferred {
    /// `muster-<daemon>` of the group `muster`; under a stock name, the stock user and group.
    pub fn of(program: &str, daemon: &str) -> Self {
        let (users, group) = match program.split_once('-') {
            Some(("wazuh", _)) => (vec!["wazuh".to_owned()], "wazuh"),
            Some(("ossec", "remoted")) => (vec!["ossecr".to_owned(), "ossec".to_owned()], "ossec"),
            Some(("ossec", _)) => (vec!["ossec".to_owned()], "ossec"),
            _ => (vec![format!("muster-{daemon}")], "muster"),
        };
        Self { users, group }
    }
}

/// Whom a daemon becomes, or `None` when it stays who it is.
///
/// Not as root: nobody else can be asked for. As root: the user asked for, else the preferred one, else the owner of the
/// home; if that is root too, it stays root and says so. The group is the one asked for, else the preferred one for a
/// preferred user, else the user's own.
pub fn choose(
    preferred: &Preferred,
    user: Option<&str>,
    group: Option<&str>,
    home: &Path,
) -> Result<Option<Identity>, PrivilegeError> {
    let asked_for = match user {
        Some(name) => Some(user_named(name)?.ok_or_else(|| PrivilegeError::NoSuchUser(name.to_owned()))?),
        None => None,
    };
    if !geteuid().is_root() {
        return match asked_for {
            Some(user) if user.uid != geteuid() => Err(PrivilegeError::NotRoot(user.name)),
            _ => Ok(None),
        };
    }
    let mut identity = match asked_for {
        Some(user) => Identity::of(user),
        None => match first_of(preferred)? {
            Some(identity) => identity,
            None => owner(home)?,
        },
    };
    if let Some(name) = group {
        identity.gid = group_named(name)?
            .ok_or_else(|| PrivilegeError::NoSuchGroup(name.to_owned()))?
            .gid;
    }
    if identity.uid.is_root() {
        return Ok(None);
    }
    Ok(Some(identity))
}

fn first_of(preferred: &Preferred) -> Result<Option<Identity>, PrivilegeError> {
    for name in &preferred.users {
        if let Some(user) = user_named(name)? {
            let mut identity = Identity::of(user);
            if let Some(group) = group_named(preferred.group)? {
                identity.gid = group.gid;
            }
            return Ok(Some(identity));
        }
    }
    Ok(None)
}

/// Becomes that identity, irrevocably: groups, group, capabilities that could come back, user, no new privileges. Then
/// tries to undo it.
pub fn drop_to(identity: &Identity) -> Result<(), PrivilegeError> {
    // The bounding set can be emptied only while we may still do so. Where a container has taken that right from us,
    // no_new_privs below has the same effect.
    for set in [CapSet::Bounding, CapSet::Ambient] {
        if let Err(error) = caps::clear(None, set) {
            tracing::debug!(%error, ?set, "cannot empty a capability set");
        }
    }
    step("setgroups", setgroups(&[]))?;
    step("setresgid", setresgid(identity.gid, identity.gid, identity.gid))?;
    step("setresuid", setresuid(identity.uid, identity.uid, identity.uid))?;
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set).map_err(|error| PrivilegeError::Step {
            step: "clearing capabilities",
            source: io::Error::other(error),
        })?;
    }
    forbid_new()?;
    prove(identity)
}

/// Whatever this process executes gets no more rights than it has.
pub fn forbid_new() -> Result<(), PrivilegeError> {
    step("no_new_privs", prctl::set_no_new_privs())
}

fn prove(identity: &Identity) -> Result<(), PrivilegeError> {
    use PrivilegeError::NotDropped;

    let users = step("getresuid", getresuid())?;
    let groups = step("getresgid", getresgid())?;
    if [users.real, users.effective, users.saved] != [identity.uid; 3] {
        return Err(NotDropped("a user id was kept"));
    }
    if [groups.real, groups.effective, groups.saved] != [identity.gid; 3] {
        return Err(NotDropped("a group id was kept"));
    }
    if !step("getgroups", getgroups())?
        .iter()
        .all(|group| *group == identity.gid)
    {
        return Err(NotDropped("supplementary groups were kept"));
    }
    if setuid(Uid::from_raw(0)).is_ok() {
        return Err(NotDropped("root could be regained"));
    }
    match caps::read(None, CapSet::Permitted) {
        Ok(kept) if kept.is_empty() => Ok(()),
        _ => Err(NotDropped("capabilities were kept")),
    }
}

fn owner(home: &Path) -> Result<Identity, PrivilegeError> {
    let metadata = home.metadata().map_err(PrivilegeError::Home)?;
    let uid = Uid::from_raw(metadata.uid());
    let name = User::from_uid(uid)
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name);
    Ok(Identity {
        uid,
        gid: Gid::from_raw(metadata.gid()),
        name,
    })
}

fn user_named(name: &str) -> Result<Option<User>, PrivilegeError> {
    step("looking up a user", User::from_name(name))
}

fn group_named(name: &str) -> Result<Option<Group>, PrivilegeError> {
    step("looking up a group", Group::from_name(name))
}

fn step<T>(step: &'static str, result: Result<T, Errno>) -> Result<T, PrivilegeError> {
    result.map_err(|errno| PrivilegeError::Step {
        step,
        source: errno.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> Preferred {
        Preferred::of("muster-no-such-daemon", "no-such-daemon")
    }

    #[test]
    fn stock_names_prefer_stock_users() {
        let users = |program| Preferred::of(program, "remoted").users;
        assert_eq!(users("muster-remoted"), ["muster-remoted"]);
        assert_eq!(users("wazuh-remoted"), ["wazuh"]);
        assert_eq!(users("ossec-remoted"), ["ossecr", "ossec"]);
        assert_eq!(users("ossec-authd"), ["ossec"]);
    }

    #[test]
    fn unknown_user_is_an_error_that_names_the_cure() {
        let error = choose(
            &Preferred::of("muster-x", "x"),
            Some("no-such-user-here"),
            None,
            Path::new("/"),
        )
        .expect_err("is an error");
        assert_eq!(
            error.to_string(),
            "there is no user no-such-user-here; create it or name another with --user"
        );
    }

    #[test]
    fn home_owned_by_root_leaves_root_and_everybody_else_alone() {
        assert_eq!(choose(&nobody(), None, None, Path::new("/")).expect("chosen"), None);
    }

    #[test]
    fn root_takes_the_owner_of_the_home_when_there_is_no_user_for_the_daemon() {
        if !geteuid().is_root() {
            muster_test_skip::skipped("only root can become somebody else");
            return;
        }
        let home = tempfile::tempdir().expect("directory");
        std::os::unix::fs::chown(home.path(), Some(12_345), Some(12_346)).expect("chown");
        let identity = choose(&nobody(), None, None, home.path())
            .expect("chosen")
            .expect("somebody");
        assert_eq!((identity.uid.as_raw(), identity.gid.as_raw()), (12_345, 12_346));
    }
}

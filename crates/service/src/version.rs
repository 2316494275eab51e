//! What `--version` says: release, commit and target, so that a report names the program that it is about.

use std::{env::consts, sync::OnceLock};

/// The commit that whoever builds a release names in this variable.
const COMMIT: Option<&str> = option_env!("MUSTER_COMMIT");
/// The C library that the program was built for.
const LIBRARY: &str = if cfg!(target_env = "musl") {
    "musl"
} else if cfg!(target_env = "gnu") {
    "gnu"
} else {
    "unknown"
};

/// `0.1.0 (commit 0a1b2c3, x86_64-linux-gnu)`.
pub fn version() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let commit = COMMIT.filter(|commit| !commit.is_empty()).unwrap_or("unknown");
        format!(
            "{} (commit {commit}, {}-{}-{LIBRARY})",
            env!("CARGO_PKG_VERSION"),
            consts::ARCH,
            consts::OS
        )
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn version_names_release_commit_and_target() {
        let text = super::version();
        assert!(text.starts_with(env!("CARGO_PKG_VERSION")), "{text}");
        assert!(text.contains("(commit ") && text.contains("-linux-"), "{text}");
    }
}

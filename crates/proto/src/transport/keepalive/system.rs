//! The operating system, out of the first line of a keepalive.

use super::{Fields, said};

/// The words that name a processor, in the order in which they are looked for.
const ARCHITECTURES: [&str; 12] = [
    "x86_64", "i386", "i686", "sparc", "amd64", "i86pc", "ia64", "AIX", "armv6", "armv7", "aarch64", "arm64",
];

impl<'k> Fields<'k> {
    /// Reads `<uname> [<name>|<platform>: <version> (<codename>)]` or `<name> [Ver: <version>] |<node> |<machine>`.
    pub(super) fn read_system(&mut self, uname: &'k str) {
        if let Some((name, rest)) = uname.split_once(" [Ver: ") {
            self.os_uname = said(name);
            self.read_windows(name, rest);
        } else if let Some((kernel, rest)) = uname.split_once(" [") {
            self.os_uname = said(kernel);
            self.os_arch = architecture(kernel);
            self.read_distribution(rest.split_once(']').map_or(rest, |(inside, _)| inside));
        } else {
            self.os_uname = said(uname);
            self.os_arch = architecture(uname);
        }
    }

    fn read_windows(&mut self, name: &'k str, rest: &'k str) {
        let (version, behind) = rest.split_once(']').unwrap_or((rest, ""));
        self.os_platform = Some("windows");
        self.os_name = said(name);
        self.os_version = said(version);
        self.os_arch = behind.rsplit_once('|').and_then(|(_, machine)| said(machine.trim()));

        let (major, rest) = leading_digits(version);
        let (minor, rest) = rest.strip_prefix('.').map_or(("", ""), leading_digits);
        let build = rest.strip_prefix('.').map_or("", |rest| {
            let end = rest.find(|character: char| !character.is_ascii_digit() && character != '.');
            end.and_then(|end| rest.get(..end))
                .unwrap_or(rest)
                .trim_end_matches('.')
        });
        self.os_major = said(major);
        self.os_minor = said(minor);
        self.os_build = said(build);
    }

    fn read_distribution(&mut self, inside: &'k str) {
        let (name, version) = match inside.split_once(": ") {
            Some((name, version)) => (name, Some(version)),
            None => (inside, None),
        };
        let (name, platform) = match name.split_once('|') {
            Some((name, platform)) => (name, Some(platform)),
            None => (name, None),
        };
        self.os_name = said(name);
        self.os_platform = platform.and_then(said);
        let Some(version) = version else { return };
        let (version, codename) = match version.split_once(" (") {
            Some((version, rest)) => (
                version,
                Some(rest.split_once(')').map_or(rest, |(codename, _)| codename)),
            ),
            None => (version, None),
        };
        self.os_version = said(version);
        self.os_codename = codename.and_then(said);

        let (major, rest) = leading_digits(version);
        let minor = rest.strip_prefix('.').or_else(|| rest.strip_prefix("-SP"));
        self.os_major = said(major);
        self.os_minor = minor.and_then(|minor| said(leading_digits(minor).0));
    }
}

fn architecture(kernel: &str) -> Option<&'static str> {
    ARCHITECTURES.into_iter().find(|word| kernel.contains(word))
}

/// The digits at the front, and the rest.
fn leading_digits(text: &str) -> (&str, &str) {
    let rest = text.trim_start_matches(|character: char| character.is_ascii_digit());
    text.split_at_checked(text.len().saturating_sub(rest.len()))
        .unwrap_or((text, ""))
}

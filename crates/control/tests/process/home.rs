//! A home made by `init`, and the program in a directory of its own, beside which a test puts daemons.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Thrown away at the end, with every daemon that was started in it.
pub(crate) struct Home {
    directory: tempfile::TempDir,
}

/// The program as it was built.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-control"));
    command.env_remove("MUSTER_HOME").stdin(Stdio::null());
    command
}

impl Home {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let bin = directory.path().join("bin");
        fs::create_dir(&bin).expect("created");
        fs::hard_link(env!("CARGO_BIN_EXE_muster-control"), bin.join("muster-control"))
            .or_else(|_| fs::copy(env!("CARGO_BIN_EXE_muster-control"), bin.join("muster-control")).map(drop))
            .expect("the program is beside its daemons");
        let home = Self { directory };
        let output = home.run(&["init", "--bind", "127.0.0.1"]);
        assert!(output.status.success(), "{}", stderr(&output));
        home
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("home").join(path)
    }

    /// Puts a daemon beside the program.
    pub(crate) fn install(&self, name: &str, script: &str) {
        let path = self.bin().join(name);
        fs::write(&path, script).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.bin().join("muster-control"));
        command.env_remove("MUSTER_HOME").stdin(Stdio::null());
        command
            .arg("--home")
            .arg(self.directory.path().join("home"))
            .args(arguments);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("ran")
    }

    /// Lets everybody come as far as the files and sockets, and no farther.
    pub(crate) fn open_to_strangers(&self) {
        for path in [
            self.directory.path().to_owned(),
            self.bin(),
            self.path("."),
            self.path("etc"),
            self.path("queue"),
        ] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("opened");
        }
        fs::set_permissions(self.path("queue/muster"), fs::Permissions::from_mode(0o1771)).expect("opened");
        fs::set_permissions(self.path("queue/muster/remoted.ctl"), fs::Permissions::from_mode(0o660)).expect("closed");
    }

    fn bin(&self) -> PathBuf {
        Path::new(self.directory.path()).join("bin")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = self.run(&["stop"]);
    }
}

pub(crate) fn exit_code(output: &Output) -> u8 {
    output
        .status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .expect("it was not killed")
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

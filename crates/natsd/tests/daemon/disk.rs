//! A small disk of a test's own, that can be filled up.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

pub(crate) struct Disk(PathBuf);

impl Disk {
    /// In the place of this folder. Nothing where this process may not mount, and the test counts as skipped.
    pub(crate) fn mount(folder: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&folder).expect("makes the folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&folder)
            .stderr(Stdio::null())
            .status();
        let mounted = mounted.is_ok_and(|status| status.success());
        if !mounted {
            muster_test_skip::skipped("only root can mount a small disk to fill it up");
        }
        mounted.then_some(Self(folder))
    }

    pub(crate) fn fill(&self) {
        let mut filler = fs::File::create(self.0.join("filler")).expect("creates");
        let page = [b'x'; 4096];
        while filler.write_all(&page).is_ok() {}
    }

    pub(crate) fn free(&self) {
        fs::remove_file(self.0.join("filler")).expect("removes");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}

//! Tests that cannot run where they are: without the right to mount, say. Rust's own test runner knows only passed,
//! failed and ignored, and who decides at run time can only return. So that such a test does not count as passed, it
//! says so first; `cargo xtask test` gathers what was said and shows it at its end.

use std::{
    io::{self, Write},
    thread,
};

/// How a line begins that tells of a test that did not run.
pub const PREFIX: &str = "SKIPPED ";

/// Tells that the test that runs on this thread, or the named part of it, does not run, and why. The test returns then.
///
/// It goes to standard error as it is: the test runner shows what a passed test has printed to nobody.
pub fn skipped(why: &str) {
    let thread = thread::current();
    let line = format!("{PREFIX}{}: {why}\n", thread.name().unwrap_or("a test"));
    // One write: lines of tests that run side by side do not mix. Who has closed standard error reads no line.
    let _ = io::stderr().write_all(line.as_bytes());
}

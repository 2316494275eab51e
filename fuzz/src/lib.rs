//! One function for each target: bytes in, a panic if something that must hold does not.
//!
//! The files here are used twice. The fuzz targets call them through this library, and the ordinary tests of each
//! crate include the file of that crate and run it over the committed corpus (`tests/corpora.rs`), so that whatever the
//! fuzzer has found once stays found without it.

pub mod authd;
pub mod config;
pub mod keypolld;
pub mod natsd;
pub mod proto;
pub mod remoted;

/// Runs one target.
///
/// # Panics
/// There is no such target, or something does not hold.
pub fn run(name: &str, input: &[u8]) {
    let all = [
        authd::TARGETS,
        config::TARGETS,
        keypolld::TARGETS,
        natsd::TARGETS,
        proto::TARGETS,
        remoted::TARGETS,
    ];
    let (_, target) = all
        .concat()
        .into_iter()
        .find(|(target, _)| *target == name)
        .expect("a target of this name");
    target(input);
}

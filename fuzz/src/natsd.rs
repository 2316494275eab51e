//! natsd. What a record or a message is, only natsd knows, so that the harnesses lie there.

use muster_natsd::fuzzing;

/// Name of the target and of its corpus, and what is done with each input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this file.
pub const TARGETS: &[Target] = &[
    ("natsd_command", |input| _ = fuzzing::command(input)),
    ("natsd_keys", |input| _ = fuzzing::keys(input)),
    ("natsd_sealed", |input| _ = fuzzing::sealed(input)),
    ("natsd_spool", fuzzing::spool),
    ("natsd_verify", |input| _ = fuzzing::verify(input)),
];

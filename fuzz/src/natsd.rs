//! natsd's spool. What a record is, only natsd knows, so that the harness lies there.

/// Name of the target and of its corpus, and what is done with each input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this file.
pub const TARGETS: &[Target] = &[("natsd_spool", muster_natsd::fuzzing::spool)];

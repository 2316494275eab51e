//! Programs of the operator's: how they are found, what they are given, and how they are ended.
//!
//! * [`command_line`]: from `<exec_path>` to a program and its arguments.
//! * [`descriptors`]: what they do not inherit.
//! * [`group`]: one that keeps running, with all that it starts.
//! * [`leftovers`]: what got away from its group.
//! * [`limits`]: how much of the machine they may use.
//! * [`run`]: one that is started for one answer.
//! * [`words`]: what they say on standard error.

pub mod command_line;
pub mod descriptors;
pub mod group;
pub mod leftovers;
pub mod limits;
pub mod run;
pub mod words;

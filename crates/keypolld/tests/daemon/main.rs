//! The real daemon in a home of its own.

#![allow(clippy::panic, reason = "helpers of tests fail by panicking")]

mod control;
mod exec;
mod flow;
mod hostile;
mod persistent;
mod socket;
mod support;

//! The enrollment daemon.
pub mod change;
pub mod database;
pub mod file;
pub mod keystore;
pub mod ledger;
pub mod merge;
pub mod reconcile;
pub mod registry;
pub mod timestamps;

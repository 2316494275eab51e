//! The keys of unknown agents come from the operator's own database.
pub mod answer;
pub mod flow;
pub mod lookup;
pub mod scan;

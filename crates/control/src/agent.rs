//! `agent …`: [`list`] asks remoted, [`change`] asks authd.

pub(crate) mod change;
pub(crate) mod list;

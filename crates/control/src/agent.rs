//! `agent …`: [`list`] asks remoted, [`change`] asks authd, [`order`] goes through remoted to the agents.

pub(crate) mod change;
pub(crate) mod counter;
pub(crate) mod list;
pub(crate) mod order;

//! The real daemon, over its real sockets.

mod durability;
mod enrollment;
mod floods;
mod force;
mod local_socket;
mod support;

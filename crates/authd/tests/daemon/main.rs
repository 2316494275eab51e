//! The real daemon, over its real sockets.

mod enrollment;
mod force;
mod local_socket;
mod support;

//! Every decoder of `muster-proto`. What is read is written again and read again, wherever there is a writer.

#[path = "draw.rs"]
mod draw;
#[path = "proto_enrollment.rs"]
mod enrollment;
#[path = "proto_local.rs"]
mod local;
#[path = "proto_ours.rs"]
mod ours;
#[path = "proto_transport.rs"]
mod transport;

/// Name of the target and of its corpus, and what is done with each input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this file.
pub const TARGETS: &[Target] = &[
    ("active_response", local::active_response),
    ("analysis", local::analysis),
    ("auth_json", local::auth_json),
    ("command", ours::command),
    ("control", transport::control),
    ("counter", transport::counter),
    ("enrollment_answer", enrollment::answer),
    ("enrollment_line", enrollment::line),
    ("enrollment_request", enrollment::request),
    ("envelope", transport::envelope),
    ("event", ours::event),
    ("frame", transport::frame),
    ("ipc", ours::ipc),
    ("keepalive", transport::keepalive),
    ("keys_address", enrollment::address),
    ("keys_file", enrollment::keys_file),
    ("proxy", transport::proxy),
    ("remote_socket", local::remote_socket),
    ("shared", ours::shared),
    ("wazuh_db", local::wazuh_db),
];

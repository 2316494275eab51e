//! remoted's cores: sessions and who is alive, shared files, orders to agents, syslog.

#[path = "draw.rs"]
mod draw;
#[path = "remoted_orders.rs"]
mod orders;
#[path = "remoted_shared.rs"]
mod shared;
#[path = "remoted_story.rs"]
mod story;
#[path = "remoted_syslog.rs"]
mod syslog;

/// Name of the target and of its corpus, and what is done with each input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this file.
pub const TARGETS: &[Target] = &[
    ("remoted", story::story),
    ("remoted_orders", orders::orders),
    ("remoted_shared", shared::shared),
    ("syslog", syslog::syslog),
];

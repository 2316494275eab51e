//! `etc/ossec.conf` and the internal options, from text to typed [`Settings`], with file, line and column in every
//! complaint.
//!
//! A stock file is read as it is. Blocks of stock daemons that are not ours are passed over; an unknown element is a
//! warning with a "did you mean"; a bad value is an error that names the line, what is accepted, and what was found;
//! and all problems are found before the file is refused. Additions of ours have defaults that leave stock behaviour
//! as it was.
//!
//! Read first: [`Settings`], which is what a daemon works with, and [`Diagnostic`], which is what an operator reads.
//! How one description of each block serves the reader, the printer and the documentation is in the module `walk`.
//!
//! **It must never** touch a file other than in [`load`] and [`look_on_disk`], know what a daemon does with an option, or print a secret.
//!
//! ```
//! let text = "<ossec_config><remote><connection>secure</connection><port>1514</port></remote></ossec_config>";
//! let loaded = muster_config::parse_text(text)?;
//! assert_eq!(loaded.settings.remotes[0].port, 1514);
//!
//! let wrong = text.replace("1514", "151400");
//! let refusal = muster_config::parse_text(&wrong).unwrap_err().to_string();
//! assert!(refusal.starts_with("etc/ossec.conf:1:60: <port> must be a number from 1 to 65535, not '151400'"));
//! # Ok::<(), muster_config::Diagnostics>(())
//! ```

mod catalog;
mod check;
mod diagnostic;
mod internal;
mod json;
mod kind;
pub mod limits;
mod load;
mod reader;
mod secret;
pub mod settings;
mod show;
mod source;
mod suggest;
pub mod template;
mod value;
mod walk;
mod xml;

pub use catalog::Entry;
pub use check::{FileFacts, check, look_on_disk};
pub use diagnostic::{Diagnostic, Diagnostics, Place, Severity};
pub use internal::show_internal;
pub use ipnet::IpNet;
pub use load::{Input, Inputs, Loaded, OWN_CONFIG, home_kind, load, parse, parse_text};
pub use reader::HomeKind;
pub use secret::{MASK, Secret};
pub use settings::*;
pub use show::{Secrets, differences, show};
pub use walk::Origin;

/// Every option of `ossec.conf` with its default and what it accepts.
pub fn options() -> Vec<Entry> {
    catalog::Catalog::of_settings()
}

/// Every internal option with its default and what it accepts.
pub fn internal_options() -> Vec<Entry> {
    internal::catalog()
}

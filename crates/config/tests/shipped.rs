//! The files that are shipped check clean.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use std::{fs, path::Path};

use muster_config::{Input, Inputs, Settings, parse};

fn etc() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../etc"))
}

fn inputs() -> Inputs {
    let read = |name: &str| {
        let bytes = fs::read(etc().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        vec![Input {
            path: name.into(),
            bytes,
        }]
    };
    Inputs {
        config: read("ossec.conf"),
        internal: read("internal_options.conf"),
        ..Inputs::default()
    }
}

#[test]
fn the_example_gives_neither_error_nor_warning() {
    let loaded = parse(&inputs()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.warnings, []);
    assert!(!loaded.settings.auth.disabled && loaded.settings.auth.use_password);
}

#[test]
fn the_shipped_internal_options_are_the_defaults_and_all_of_them() {
    let inputs = inputs();
    let text = String::from_utf8(inputs.internal[0].bytes.clone()).unwrap();
    assert_eq!(parse(&inputs).unwrap().settings.internal, Settings::default().internal);
    for entry in muster_config::internal_options() {
        // One that is left out on purpose is explained.
        let line = match entry.default {
            Some(default) => format!("{}={default}", entry.path),
            None => format!("# {}: left out", entry.path),
        };
        assert!(
            text.lines().any(|shipped| shipped.starts_with(&line)),
            "{line} is not in the file"
        );
    }
}

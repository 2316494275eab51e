//! Configuration files: settings, or a refusal that can be printed; and what is shown reads back.

use muster_config::{Diagnostic, Input, Inputs, Secrets, parse, show, show_internal};

/// Name of the target and of its corpus, and what is done with each input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this file.
pub const TARGETS: &[Target] = &[("config_internal", internal), ("config_text", text)];

/// Longer inputs teach nothing new, and cost time.
const MAX_LEN: usize = 16 * 1024;

fn text(input: &[u8]) {
    if input.len() > MAX_LEN {
        return;
    }
    let wrapped = [b"<ossec_config>".as_slice(), input, b"</ossec_config>"].concat();
    for bytes in [input, &wrapped] {
        answer(bytes, b"");
    }
}

fn internal(input: &[u8]) {
    if input.len() <= MAX_LEN {
        answer(b"<ossec_config></ossec_config>", input);
    }
}

fn answer(config: &[u8], internal: &[u8]) {
    let loaded = match parse(&inputs(config, internal)) {
        Ok(loaded) => loaded,
        Err(refused) => {
            assert!(refused.errors().next().is_some(), "a refusal has a reason");
            refused.0.iter().for_each(printable);
            return;
        }
    };
    loaded.warnings.iter().for_each(printable);
    let shown = show(&loaded.settings, Secrets::Revealed);
    let options = show_internal(&loaded.settings.internal);
    let again = parse(&inputs(shown.as_bytes(), options.as_bytes()));
    let again = again.unwrap_or_else(|refused| panic!("what is shown reads back: {refused}\n{shown}\n{options}"));
    assert_eq!(
        show(&again.settings, Secrets::Revealed),
        shown,
        "what is shown reads back as the same"
    );
    assert_eq!(again.settings, loaded.settings, "what is shown reads back as the same");
}

fn inputs(config: &[u8], internal: &[u8]) -> Inputs {
    let file = |bytes: &[u8]| {
        vec![Input {
            path: "x".to_owned(),
            bytes: bytes.to_vec(),
        }]
    };
    Inputs {
        config: file(config),
        internal: file(internal),
        ..Inputs::default()
    }
}

fn printable(diagnostic: &Diagnostic) {
    let text = diagnostic.to_string();
    let bad = |letter: char| letter.is_control() && letter != '\n' && letter != '\t';
    assert!(!text.contains(bad), "{text:?}");
    if let Some(place) = &diagnostic.place {
        assert!(place.line >= 1 && place.column >= 1 && place.width >= 1);
    }
}

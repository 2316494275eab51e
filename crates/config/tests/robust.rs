//! Whatever the file is, there is an answer: settings, or a refusal that can be printed.

use muster_config::{Input, Inputs, parse};
use proptest::prelude::*;

fn answer(config: &[u8], internal: &[u8]) {
    let file = |bytes: &[u8]| {
        vec![Input {
            path: "x".into(),
            bytes: bytes.to_vec(),
        }]
    };
    match parse(&Inputs {
        config: file(config),
        internal: file(internal),
        ..Inputs::default()
    }) {
        Ok(loaded) => loaded.warnings.iter().for_each(check),
        Err(refused) => {
            assert!(refused.errors().next().is_some(), "a refusal has a reason");
            refused.0.iter().for_each(check);
        }
    }
}

fn check(diagnostic: &muster_config::Diagnostic) {
    let text = diagnostic.to_string();
    assert!(
        !text.contains(|c: char| c.is_control() && c != '\n' && c != '\t'),
        "{text:?}"
    );
    if let Some(place) = &diagnostic.place {
        assert!(place.line >= 1 && place.column >= 1 && place.width >= 1);
        assert_eq!(text.lines().count(), 3, "{text:?}");
    }
}

/// A file that is right but for some bytes.
fn real() -> Vec<u8> {
    include_bytes!("../../../etc/ossec.conf").to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_get_an_answer(config in proptest::collection::vec(any::<u8>(), 0..400), internal in proptest::collection::vec(any::<u8>(), 0..200)) {
        answer(&config, &internal);
    }

    #[test]
    fn arbitrary_markup_gets_an_answer(config in "([<>/&;=\"'\\\\ \n!a-c\\[\\]é-]|<remote>|</remote>|<nats|<auth>|</|<!--|-->|<!\\[CDATA\\[|\\]\\]>|<port>|\\\\<|&lt;|&#){0,60}") {
        answer(config.as_bytes(), config.as_bytes());
        answer(format!("<ossec_config>{config}</ossec_config>").as_bytes(), b"");
    }

    #[test]
    fn a_real_file_with_a_piece_lost_or_changed_gets_an_answer(start in 0usize..4000, length in 0usize..60, byte in any::<u8>()) {
        let mut file = real();
        let start = start.min(file.len());
        let end = (start + length).min(file.len());
        file.splice(start..end, [byte]);
        answer(&file, b"");
        file.truncate(start);
        answer(&file, b"");
    }
}

#[test]
fn files_made_to_be_slow_are_not() {
    let started = std::time::Instant::now();
    let megabyte = 1 << 20;
    for text in [
        "<a>".repeat(megabyte / 3),
        "</a>".repeat(megabyte / 4),
        "\\<".repeat(megabyte / 2),
        "<auth><port>x</port></auth>".repeat(megabyte / 27),
        format!(
            "<ossec_config><auth>{}</auth></ossec_config>",
            "<port>1</port>".repeat(megabyte / 14)
        ),
        format!(
            "<ossec_config><auth>{}</auth></ossec_config>",
            "<b/>".repeat(megabyte / 4)
        ),
        format!(
            "<ossec_config>{}</ossec_config>",
            "<auth><port>x</port></auth>".repeat(megabyte / 27)
        ),
        format!("<ossec_config><auth {}/></ossec_config>", "a='b' ".repeat(megabyte / 6)),
        format!("<ossec_config>{}</ossec_config>", "<password>".repeat(megabyte / 10)),
        "&".repeat(megabyte),
        "\u{e9}".repeat(megabyte / 2),
    ] {
        answer(text.as_bytes(), text.as_bytes());
    }
    answer(b"", "remoted.debug=1\n".repeat(megabyte / 16).as_bytes());
    // Debug builds on a busy machine: what is quadratic takes minutes.
    assert!(started.elapsed().as_secs() < 60, "took {:?}", started.elapsed());
}

//! What the network asks keypolld for, what the operator's sources answer and say besides, and the flow between them.

use muster_keypolld::{
    answer::{Answer, key_in},
    lookup::Lookup,
    process::words::{Words, masked},
    scan::{Progress, Scanner},
};
use muster_proto::keys::{Secret, file};

#[path = "draw.rs"]
mod draw;
#[path = "keypolld_flow.rs"]
mod flow;
use draw::Draw;

/// Name of the target and of its corpus, and what is done with each input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this file.
pub const TARGETS: &[Target] = &[
    ("keypolld_answer", answer),
    ("keypolld_flow", flow::flow),
    ("keypolld_lookup", lookup),
    ("keypolld_words", words),
];

/// Whatever a source says, an agent that is taken from it stands in one key line, and is the one that was asked for.
fn answer(input: &[u8]) {
    for asked in ["id:001", "id:12345678", "ip:10.0.0.1", "ip:2001:db8::1"] {
        let Ok(lookup) = Lookup::parse(asked.as_bytes()) else {
            continue;
        };
        match Answer::read(input, &lookup) {
            Ok(Answer::Agent(agent)) => {
                let line = [agent.id.as_str(), &agent.name, agent.address.text(), agent.key.expose()].join(" ");
                let file = file::parse(line.as_bytes());
                let [entry] = file.entries.as_slice() else {
                    panic!("not one agent: {line:?}")
                };
                assert!(entry.id == agent.id && entry.name == agent.name && entry.address == agent.address);
                assert!(entry.key == agent.key);
                assert!(lookup.number().is_none_or(|number| entry.id.number() == Some(number)));
                assert!(
                    lookup
                        .address()
                        .is_none_or(|address| entry.address.single_host() == Some(address))
                );
                assert!(key_in(input).is_some());
            }
            Ok(Answer::Error { code, message }) => {
                assert!(code != 0 && !message.contains(char::is_control));
            }
            Err(unusable) => drop(unusable.to_string()),
        }
    }
}

/// A look-up ends on a command line, in JSON and in SQL: digits or an address, and nothing else.
fn lookup(input: &[u8]) {
    let Ok(lookup) = Lookup::parse(input) else { return };
    assert_eq!(lookup.to_string().as_bytes(), input);
    assert!(
        lookup
            .value()
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || b".:".contains(&byte))
    );
    assert!(lookup.number().is_some() != lookup.address().is_some());
    assert!(Lookup::parse(lookup.to_string().as_bytes()).as_ref() == Ok(&lookup));
}

/// However a program's words are cut into reads, none of what is logged of them has a key in it or moves a terminal; and
/// the end of an answer on a socket is where it is.
fn words(input: &[u8]) {
    let mut draw = Draw::new(input);
    let step = usize::from(draw.byte()) + 1;
    let repeat = [1, 1, 1, 400][draw.below(4)];
    let key = Secret::new(draw.text());
    let said = draw.rest().repeat(repeat);
    let lines = |step: usize, key: Option<&Secret>| {
        let mut words = Words::default();
        said.chunks(step).for_each(|read| words.add(read));
        let lines = words.lines(key);
        assert!(words.lines(key).is_empty(), "everything is said once");
        lines
    };
    let whole = lines(said.len().max(1), Some(&key));
    assert_eq!(whole, lines(step, Some(&key)));
    assert!(whole.len() <= 21);
    for line in &whole {
        assert!(line.chars().count() <= 513 && !line.contains(char::is_control));
        let runs = line.split(|letter: char| !letter.is_ascii_alphanumeric());
        for run in runs {
            assert!(
                run.len() < 16 || !run.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{run}"
            );
        }
        // A shorter one may stand in the mask itself, cut or not.
        let is_key = key.expose().len() > 8 && key.expose().bytes().all(|byte| byte.is_ascii_graphic());
        assert!(!is_key || !line.contains(key.expose()), "{line:?}");
    }
    assert!(masked("nothing", Some(&key)).len() <= 64);
    let scan = |step: usize| {
        let mut scanner = Scanner::default();
        let mut progress = Progress::More;
        let mut end = 0;
        while progress == Progress::More && end < said.len() {
            end = (end + step).min(said.len());
            progress = scanner.advance(&said[..end]);
        }
        progress
    };
    assert_eq!(scan(said.len().max(1)), scan(step), "wherever it is cut");
    if let Progress::Complete(length) = scan(step) {
        let object = said.get(..length).expect("within what was read");
        assert!(object.ends_with(b"}") && object.trim_ascii_start().starts_with(b"{"));
    }
}

//! What the network asks keypolld for, and what the operator's sources answer.

use muster_keypolld::{
    answer::{Answer, key_in},
    lookup::Lookup,
};
use muster_proto::keys::file;

/// Name of the target and of its corpus, and what is done with each input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this file.
pub const TARGETS: &[Target] = &[("keypolld_answer", answer), ("keypolld_lookup", lookup)];

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

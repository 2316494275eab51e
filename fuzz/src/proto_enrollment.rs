//! What strangers send to port 1515, and what is kept of it in `client.keys`.

use std::net::IpAddr;

use muster_proto::{
    enrollment::{
        MAX_REQUEST_LEN,
        answer::{Answer, MAX_ERROR_LEN},
        line::{LineReader, Progress},
        name,
        request::{AddressWish, GivenAddress, Policy, Request},
        version::Version,
    },
    keys::{
        Secret,
        address::{MAX_ADDRESS_LEN, RegisteredAddress},
        file::{self, KeyFile, MAX_FIELD_LEN, RemovedLine},
    },
};

use super::draw::Draw;

/// The longest tail of an error text.
const MAX_TAIL_LEN: usize = 64;

/// However the bytes are cut into reads, the same line comes out.
pub(super) fn line(input: &[u8]) {
    let mut draw = Draw::new(input);
    let (step, repeat) = (draw.below(200) + 1, draw.below(20) == 19);
    let bytes = if repeat {
        draw.rest().repeat(1000)
    } else {
        draw.rest().to_vec()
    };

    let mut at_once = LineReader::default();
    let whole = match at_once.push(&bytes) {
        Progress::More => None,
        Progress::Line(line) => {
            assert!(line.len() < MAX_REQUEST_LEN && !line.contains(&b'\n') && !line.contains(&0));
            Some(Some(line.to_vec()))
        }
        Progress::TooLong => Some(None),
    };
    let mut reader = LineReader::default();
    let mut pieces = None;
    for read in bytes.chunks(step * if repeat { 100 } else { 1 }) {
        pieces = match reader.push(read) {
            Progress::More => continue,
            Progress::Line(line) => Some(Some(line.to_vec())),
            Progress::TooLong => Some(None),
        };
        break;
    }
    assert_eq!(whole, pieces);
}

/// Any line under every policy.
pub(super) fn request(input: &[u8]) {
    let password = Secret::new("secret".to_owned());
    for (password, newest_version) in [
        (None, None),
        (None, Some(Version::parse("v4.14.7"))),
        (Some(&password), None),
    ] {
        let line = if password.is_some() && !input.starts_with(b"OSSEC PASS") {
            [b"OSSEC PASS: secret ", input].concat()
        } else {
            input.to_vec()
        };
        let policy = Policy {
            password,
            newest_version,
        };
        match Request::parse(&line, &policy) {
            Ok(request) => check_request(&request, &line, &policy),
            Err(rejection) => {
                assert!(rejection.to_wire().len() <= MAX_ERROR_LEN + MAX_TAIL_LEN);
                let _ = rejection.to_string();
            }
        }
    }
}

fn check_request(request: &Request, line: &[u8], policy: &Policy<'_>) {
    assert!(name::is_valid(request.name.as_bytes()));
    if let AddressWish::Given(given) = &request.address {
        check_given(given);
    }
    // A byte that is no UTF-8 becomes three, and may then be too long.
    if std::str::from_utf8(line).is_err() {
        return;
    }
    let wire = request.to_wire(policy.password);
    let mut reader = LineReader::default();
    let Progress::Line(line) = reader.push(&wire) else {
        panic!("a request is one line: {:?}", wire.escape_ascii().to_string());
    };
    // A NUL or a line feed in a field ends the line; no reader gives us such lines.
    if line.len() + 1 == wire.len() {
        assert_eq!(Request::parse(line, policy).as_ref(), Ok(request));
    }
}

fn check_given(given: &GivenAddress) {
    let again = GivenAddress::parse(&given.answer).expect("an agent can read the address of its answer");
    assert_eq!(again.address, given.address);
    assert!(given.answer.len() <= MAX_ADDRESS_LEN + MAX_ADDRESS_LEN);
}

/// What an agent reads back.
pub(super) fn answer(input: &[u8]) {
    for bytes in [input.to_vec(), [b"OSSEC K:'".as_slice(), input].concat()] {
        if let Answer::Granted(granted) = Answer::parse(&bytes) {
            assert!(Answer::parse(&granted.to_wire()) == Answer::Granted(granted));
        }
    }
}

/// Addresses as they are registered.
pub(super) fn address(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Ok(address) = RegisteredAddress::parse(&text) else {
        return;
    };
    assert_eq!(
        RegisteredAddress::parse(address.text()).as_ref(),
        Ok(&address),
        "{address}"
    );
    assert!(address.text().len() <= MAX_ADDRESS_LEN);
    assert!(address.text().is_ascii() && !address.text().contains([' ', '\n', '!']));
    if let Some(given) = GivenAddress::parse(&text) {
        check_given(&given);
    }
    if let Ok(host) = address.host_text().parse::<IpAddr>() {
        // An IPv6 network around the IPv4-mapped addresses takes no IPv4 host, not even the one that it was written with.
        assert!(address.matches(host) || host != host.to_canonical());
    } else {
        assert!(address.is_any());
    }
    assert_eq!(address.network().is_none(), address.is_any());
    if let Some(host) = address.single_host() {
        assert_eq!(RegisteredAddress::host(host), address);
    }
}

/// `client.keys`: what is written back reads the same, and no key is lost.
pub(super) fn keys_file(input: &[u8]) {
    let first = file::parse(input);
    let second = file::parse(&written(&first));
    assert!(
        first.entries == second.entries,
        "agents are the same after writing and reading"
    );
    assert!(
        first.removed == second.removed,
        "removed lines are the same after writing and reading"
    );
    let kept = |file: &KeyFile| -> Vec<Vec<u8>> {
        let lines = file.problems.iter().filter_map(|problem| problem.keep.as_ref());
        lines.map(|line| line.to_vec()).collect()
    };
    assert_eq!(
        kept(&first),
        kept(&second),
        "kept lines are the same after writing and reading"
    );
    for entry in &first.entries {
        for field in [entry.id.as_str(), &entry.name, entry.key.expose()] {
            assert!(field.len() <= MAX_FIELD_LEN && !field.contains('\n'));
        }
        let removed = file::parse(&RemovedLine::of(entry).line);
        // An id of many digits is no number, and a removed line is one whatever its name was.
        assert!(removed.entries.is_empty(), "a removed agent is gone");
    }
}

fn written(file: &KeyFile) -> Vec<u8> {
    let mut out = Vec::new();
    file.entries.iter().for_each(|entry| file::write_entry(entry, &mut out));
    let problems = file.problems.iter().filter_map(|problem| problem.keep.as_ref());
    let removed = file.removed.iter().map(|removed| &removed.line);
    problems
        .chain(removed)
        .for_each(|line| file::write_kept(line, &mut out));
    out
}

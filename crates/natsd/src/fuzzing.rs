//! For the fuzzer: what a spool's segment holds, whatever the disk has made of it; what consumers check, and whom they
//! believe; requests over NATS.

mod command;
mod keys;
// The same decisions as in the targets that lie beside the fuzzer.
#[path = "../../../fuzz/src/draw.rs"]
mod draw;
mod sealed;
mod story;

pub use self::{command::command, keys::keys, sealed::sealed, story::verify};
use crate::spool::{
    boundary_bytes,
    record::Record,
    scan::{Found, scan},
};

/// Reads a segment as it is, and one of which only some bytes have changed. `input` begins with where and how.
///
/// # Panics
/// Something does not hold.
pub fn spool(input: &[u8]) {
    let (head, bytes) = input.split_at_checked(4).unwrap_or((input, &[]));
    let (how, place) = match head {
        [how, a, b, c] => (*how, usize::from(*a) | usize::from(*b) << 8 | usize::from(*c) << 16),
        _ => (0, 0),
    };
    let good = segment(bytes);
    check(&good, true, Some(0));
    check(&good, false, Some(0));
    let mut bad = good;
    match how & 3 {
        0 => bad = bytes.to_vec(),
        1 => {
            let place = place % (bad.len() + 1);
            bad.truncate(place);
        }
        2 => {
            let place = place % (bad.len() + 1);
            if let Some(byte) = bad.get_mut(place) {
                *byte ^= how | 1;
            }
        }
        _ => {
            let place = place % (bad.len() + 1);
            bad.splice(place..place, bytes.iter().copied());
        }
    }
    check(&bad, how & 4 == 0, None);
}

/// The records that can be read in the bytes one behind the other, as a writer would have written them.
fn segment(mut bytes: &[u8]) -> Vec<u8> {
    let mut segment = boundary_bytes().to_vec();
    while !bytes.is_empty() {
        // A record's checksum is no riddle for the fuzzer to solve.
        let (length, rest) = bytes.split_at_checked(1).unwrap_or((bytes, &[]));
        let length = usize::from(length.first().copied().unwrap_or(0)).min(rest.len());
        let (body, rest) = rest.split_at(length);
        bytes = rest;
        let mut framed = u32::try_from(body.len()).unwrap_or(0).to_le_bytes().to_vec();
        framed.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
        framed.extend_from_slice(body);
        if let Ok((record, used)) = Record::read(&framed) {
            assert_eq!(used, framed.len(), "a record is as long as it says");
            let mut again = Vec::new();
            record.write(&mut again);
            let (read, used) = Record::read(&again).expect("what was written can be read");
            assert!(read == record && used == again.len(), "and is the same");
            segment.extend_from_slice(&again);
        }
    }
    segment
}

fn check(bytes: &[u8], last: bool, damaged: Option<u64>) {
    let mut behind = 0;
    let mut damage = 0;
    let scan = scan(bytes, last, |found| match found {
        Found::Record { offset, length, .. } => {
            assert!(offset >= behind && length > 0, "records do not overlap");
            behind = offset + length;
            assert!(behind <= bytes.len());
        }
        Found::Damage => damage += 1,
    });
    assert!(
        scan.end <= bytes.len().max(behind),
        "the good part ends within the segment"
    );
    assert!(scan.end >= behind);
    assert_eq!(scan.damaged, damage);
    if let Some(expected) = damaged {
        assert_eq!(
            (scan.damaged, scan.end),
            (expected, bytes.len()),
            "what was written well is read well"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    type Target = (&'static str, fn(&[u8]));

    #[test]
    fn every_input_of_the_corpora_passes() {
        let targets: [Target; 5] = [
            ("natsd_spool", super::spool),
            ("natsd_command", |input| _ = super::command(input)),
            ("natsd_keys", |input| _ = super::keys(input)),
            ("natsd_sealed", |input| _ = super::sealed(input)),
            ("natsd_verify", |input| _ = super::verify(input)),
        ];
        for (name, run) in targets {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../fuzz/corpus")
                .join(name);
            let mut count = 0;
            for input in fs::read_dir(corpus).expect("a corpus") {
                run(&fs::read(input.expect("an entry").path()).expect("an input"));
                count += 1;
            }
            assert!(count > 0, "the corpus of {name} is empty");
        }
    }
}

//! For the fuzzer: sealed bodies, for one reader and for many, and whatever claims to be one.

use muster_config::{Encrypt, Recipient};
use nkeys::XKey;

use crate::seal::{MAX_RECIPIENTS, Sealer, open};

/// Seals the input and changes something, or opens it as it is. The first three bytes say how. Whether a reader could
/// open what was made.
///
/// # Panics
/// A reader cannot read, or somebody else can, or a change goes unnoticed.
pub fn sealed(input: &[u8]) -> bool {
    let (how, body) = input.split_at_checked(3).unwrap_or((input, &[]));
    let byte = |place: usize| how.get(place).copied().unwrap_or(0);
    let keys: Vec<XKey> = (1..=byte(0) & 15)
        .map(|number| XKey::new_from_raw([number; 32]))
        .collect();
    let stranger = XKey::new_from_raw([77; 32]);
    if keys.is_empty() {
        return as_it_is(body, &stranger);
    }
    let recipients: Vec<Recipient> = keys
        .iter()
        .enumerate()
        .map(|(number, key)| Recipient {
            id: format!("reader-{number}"),
            key: key.public_key(),
        })
        .collect();
    let Ok(Some(sealer)) = Sealer::new(&recipients, &Encrypt::default()) else {
        assert!(keys.len() > MAX_RECIPIENTS, "good recipients are taken");
        return false;
    };
    let (header, sealed) = sealer.seal(body).expect("there are random numbers");
    assert!(open(&stranger, &header, &sealed).is_none(), "only recipients open");
    let reader = keys.get(usize::from(byte(1)) % keys.len()).expect("one of them");
    assert!(
        open(reader, &header, &sealed).as_deref() == Some(body),
        "every recipient reads"
    );
    // One bit of the body, or one byte of the header: a box of another reader may be damaged, what is read may not.
    let place = usize::from(byte(2));
    let (mut damaged, mut said) = (sealed.clone(), header.clone().into_bytes());
    if byte(0) & 16 == 0 {
        let length = damaged.len();
        if let Some(byte) = damaged.get_mut(place % length) {
            *byte ^= 1;
        }
        assert!(
            open(reader, &header, &damaged).is_none(),
            "a change of the body is noticed"
        );
    } else {
        let length = said.len();
        if let Some(byte) = said.get_mut(place % length) {
            *byte = (*byte ^ 1) & 0x7f;
        }
        let said = String::from_utf8_lossy(&said);
        let read = open(reader, &said, &sealed);
        assert!(
            read.is_none_or(|read| read == body),
            "a change of the header shows nothing else"
        );
    }
    true
}

/// `Muster-Enc` up to the first line end, then the body.
fn as_it_is(input: &[u8], reader: &XKey) -> bool {
    let mut parts = input.splitn(2, |byte| *byte == b'\n');
    let header = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let body = parts.next().unwrap_or_default();
    // Whoever knows the reader's public key can seal for it: the signature says who it was. It is longer than what it
    // hides.
    open(reader, &header, body).is_some_and(|opened| {
        assert!(opened.len() < body.len(), "a sealed body has a nonce and a tag");
        true
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn readers_read_through_the_harness() {
        for (how, read) in [
            (1_u8, true),
            (17, true),
            (3, true),
            (24, true),
            (8, true),
            (9, false),
            (0, false),
        ] {
            assert_eq!(super::sealed(&[how, 1, 40, b'{', b'}']), read, "{how}");
        }
    }
}

//! What holds for every message, not only for those somebody thought of.

use proptest::prelude::*;

use super::*;

fn any_form() -> impl Strategy<Value = CryptoForm> {
    prop::sample::select(FORMS.to_vec())
}

fn any_effort() -> impl Strategy<Value = Effort> {
    prop::sample::select(vec![Effort::Balanced, Effort::Best])
}

/// Short ones mostly, all residues of the block sizes, text and noise, and now and then a long one.
fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 1..300),
        4 => "[ -~\\n]{1,600}".prop_map(String::into_bytes),
        1 => (1..=MAX_PAYLOAD_LEN, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
        1 => (1..=MAX_PAYLOAD_LEN).prop_map(noise),
    ]
}

proptest! {
    #[test]
    fn what_is_sealed_opens_again(
        form in any_form(),
        effort in any_effort(),
        payload in any_payload(),
        counter in (any::<u32>(), 0..=9999_u32).prop_map(|(global, local)| Counter { global, local }),
        random in any::<u16>(),
        iv in any::<[u8; 16]>(),
        id in prop::option::of("[0-9]{1,8}"),
    ) {
        let mut sealer = Sealer::with_effort(effort);
        let packet = sealer
            .seal(&keys(), form, counter, random, iv, &payload, id.as_deref())
            .expect("fits")
            .to_vec();
        let envelope = split(&packet).expect("well-formed");
        prop_assert_eq!(envelope.id, id.as_deref());
        prop_assert_eq!(open(envelope.sealed), Ok((form, counter, payload)));
    }

    #[test]
    fn sealer_and_opener_carry_nothing_over_from_one_message_to_the_next(
        messages in prop::collection::vec((any_form(), any_payload()), 1..8),
    ) {
        let (mut sealer, mut opener, keys) = (Sealer::new(), Opener::new(), keys());
        for (form, payload) in messages {
            let fresh = Sealer::new().seal(&keys, form, COUNTER, 5, IV, &payload, None).expect("fits").to_vec();
            prop_assert_eq!(sealer.seal(&keys, form, COUNTER, 5, IV, &payload, None).expect("fits"), &fresh[..]);
            let opened = opener.open(&keys, &fresh, None).expect("opens");
            prop_assert_eq!(opened.payload, &payload[..]);
        }
    }

    #[test]
    fn one_changed_bit_never_gives_another_payload(
        form in any_form(),
        payload in prop::collection::vec(any::<u8>(), 1..200),
        place in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let mut sealed = Sealer::new().seal(&keys(), form, COUNTER, 5, IV, &payload, None).expect("fits").to_vec();
        let place = place.index(sealed.len());
        sealed[place] ^= 1 << bit;
        // Some bits do not count: in the padding before the stream, for one.
        if let Ok(opened) = Opener::new().open(&keys(), &sealed, None) {
            prop_assert_eq!(opened.payload, &payload[..]);
        }
    }

    #[test]
    fn arbitrary_packets_never_panic(
        token in prop::sample::select(vec![&b"#AES:"[..], b":", b"!1!#AES:", b"!12!:", b"!", b""]),
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let packet = [token, &rest].concat();
        let _ = is_ping(&packet);
        if let Ok(envelope) = split(&packet) {
            let _ = open(envelope.sealed);
        }
    }

    #[test]
    fn arbitrary_clear_texts_never_panic(
        form in any_form(),
        marks in 0..10_usize,
        zlib in any::<bool>(),
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut clear = vec![b'!'; marks];
        if zlib {
            clear.extend([0x78, 0xda]);
        }
        clear.extend(&rest);
        clear.resize(clear.len().next_multiple_of(8), 0);
        let _ = open(&with_clear(form, &clear));
    }

    #[test]
    fn arbitrary_messages_under_the_right_checksum_never_panic(
        form in any_form(),
        inner in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let _ = open(&with_inner(form, &inner));
    }
}

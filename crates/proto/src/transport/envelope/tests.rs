#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use std::io::Write;

use cbc::{
    Encryptor,
    cipher::{
        BlockModeEncrypt, KeyIvInit,
        block_padding::{NoPadding, Pkcs7},
    },
};

use super::*;
use crate::{
    keys::cipher::{CipherKeys, md5_hex},
    transport::{MAX_MESSAGE_LEN, MAX_PAYLOAD_LEN, OSSEC_AGENT_DATAGRAM_LEN, counter::Counter},
};

mod properties;

const FORMS: [CryptoForm; 3] = [CryptoForm::WazuhAes, CryptoForm::OssecAes, CryptoForm::Blowfish];
const IV: [u8; 16] = *b"0123456789abcdef";
const COUNTER: Counter = Counter { global: 1, local: 2 };

fn keys() -> CipherKeys {
    CipherKeys::derive("001", "web-01", "9f1c6b0e5a7d4832c1e0f9a8b7c6d5e4")
}

/// Seals a message text as it is, right or wrong.
fn with_message(form: CryptoForm, message: &[u8]) -> Vec<u8> {
    Sealer::new()
        .seal_stream(&keys(), form, IV, &stream_of(message), None)
        .expect("fits")
        .to_vec()
}

/// Seals an inner text under its right checksum.
fn with_inner(form: CryptoForm, inner: &[u8]) -> Vec<u8> {
    with_message(form, &[&md5_hex(&[inner])[..], inner].concat())
}

/// Encrypts a clear text as it is.
fn with_clear(form: CryptoForm, clear: &[u8]) -> Vec<u8> {
    let keys = keys();
    let mut room = vec![0; clear.len() + 16];
    match form {
        CryptoForm::Blowfish => {
            let cipher =
                Encryptor::<blowfish::Blowfish>::new_from_slices(keys.expose(), &BLOWFISH_IV).expect("lengths");
            [
                b":",
                cipher
                    .encrypt_padded_b2b::<NoPadding>(clear, &mut room)
                    .expect("whole blocks"),
            ]
            .concat()
        }
        CryptoForm::WazuhAes | CryptoForm::OssecAes => {
            let (iv, shown): (&[u8; 16], &[u8]) = if form == CryptoForm::OssecAes {
                (&IV, &IV)
            } else {
                (AES_IV, &[])
            };
            let cipher = Encryptor::<aes::Aes256Enc>::new(keys.aes().into(), iv.into());
            [
                AES_TOKEN,
                shown,
                cipher.encrypt_padded_b2b::<Pkcs7>(clear, &mut room).expect("room"),
            ]
            .concat()
        }
    }
}

fn stream_of(message: &[u8]) -> Vec<u8> {
    let mut stream = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    stream.write_all(message).expect("memory");
    stream.finish().expect("memory")
}

fn message_of(payload: &[u8]) -> Vec<u8> {
    let inner = [b"123450000000001:0002:", payload].concat();
    [&md5_hex(&[&inner])[..], &inner].concat()
}

/// What opening gives without a hint. With any hint it is the same, but for the form of a message with so many `!`
/// that both readings are right.
fn open(sealed: &[u8]) -> Result<(CryptoForm, Counter, Vec<u8>), OpenError> {
    let mut opener = Opener::new();
    let mut with_hint = |hint| {
        opener
            .open(&keys(), sealed, hint)
            .map(|Opened { form, counter, payload }| (form, counter, payload.to_vec()))
    };
    let result = with_hint(None);
    for form in FORMS {
        let hinted = with_hint(Some(form));
        assert!(
            hinted == result
                || form == CryptoForm::OssecAes
                    && hinted.clone().map(|(_, counter, payload)| (counter, payload))
                        == result.clone().map(|(_, counter, payload)| (counter, payload)),
            "{hinted:?}"
        );
    }
    result
}

fn failure(sealed: &[u8]) -> OpenError {
    open(sealed).expect_err("must not open")
}

const fn corrupt(kind: CorruptKind) -> OpenError {
    OpenError::Corrupt(kind)
}

#[test]
fn id_is_the_digits_between_the_marks() {
    assert_eq!(
        split(b"!001!#AES:x"),
        Ok(Envelope {
            id: Some("001"),
            sealed: b"#AES:x"
        })
    );
    assert_eq!(
        split(b"!1!!2!"),
        Ok(Envelope {
            id: Some("1"),
            sealed: b"!2!"
        })
    );
    assert_eq!(
        split(b"#AES:x"),
        Ok(Envelope {
            id: None,
            sealed: b"#AES:x"
        })
    );
}

#[test]
fn empty_id_and_empty_rest_are_for_the_caller_to_look_up_first() {
    assert_eq!(
        split(b"!!:x"),
        Ok(Envelope {
            id: Some(""),
            sealed: b":x"
        })
    );
    assert_eq!(
        split(b"!001!"),
        Ok(Envelope {
            id: Some("001"),
            sealed: b""
        })
    );
    assert_eq!(split(b""), Ok(Envelope { id: None, sealed: b"" }));
    assert_eq!(failure(b""), corrupt(CorruptKind::Empty));
}

#[test]
fn id_without_its_second_mark_is_malformed() {
    for packet in [
        &b"!"[..],
        b"!001",
        b"!0a1!:x",
        b"!001#AES:x",
        b"!-1!:x",
        b"! 1!:x",
        b"!00\xff!:x",
    ] {
        assert_eq!(split(packet), Err(EnvelopeError::Malformed), "{packet:?}");
    }
}

#[test]
fn id_longer_than_the_limit_is_refused() {
    let packet = |digits| format!("!{}!:x", "7".repeat(digits)).into_bytes();
    assert!(split(&packet(MAX_ID_LEN)).is_ok());
    assert_eq!(split(&packet(MAX_ID_LEN + 1)), Err(EnvelopeError::IdTooLong));
    assert_eq!(split(&packet(5000)), Err(EnvelopeError::IdTooLong));
}

#[test]
fn ping_is_five_lower_case_bytes_at_the_very_front() {
    assert!(is_ping(b"#ping"));
    assert!(is_ping(b"#ping and anything \0 else"));
    for other in [&b"#PING"[..], b"#pin", b"!001!#ping", b" #ping", b""] {
        assert!(!is_ping(other), "{other:?}");
    }
}

#[test]
fn ping_behind_an_id_has_no_token() {
    assert_eq!(
        failure(split(b"!001!#ping").expect("well-formed").sealed),
        corrupt(CorruptKind::Token)
    );
}

#[test]
fn message_without_a_token_is_corrupt() {
    for sealed in [&b"abcdef"[..], b"#AESx", b"#AES", b"#aes:abc", b"AES:", b" :x"] {
        assert_eq!(failure(sealed), corrupt(CorruptKind::Token), "{sealed:?}");
    }
}

#[test]
fn nothing_or_half_a_block_behind_the_token_is_a_wrong_key() {
    for sealed in [&b"#AES:"[..], b"#AES:abc", b":", b":abc", b"#AES:0123456789abcdef0"] {
        assert_eq!(failure(sealed), OpenError::WrongKey, "{sealed:?}");
    }
}

#[test]
fn first_clear_byte_decides_between_wrong_key_and_corrupt() {
    assert_eq!(
        failure(&with_clear(CryptoForm::WazuhAes, b"no mark")),
        OpenError::WrongKey
    );
    assert_eq!(
        failure(&with_clear(CryptoForm::Blowfish, b"no mark!")),
        OpenError::WrongKey
    );
    assert_eq!(failure(&with_clear(CryptoForm::WazuhAes, b"")), OpenError::WrongKey);
    for form in [CryptoForm::WazuhAes, CryptoForm::Blowfish] {
        assert_eq!(
            failure(&with_clear(form, b":0123456")),
            corrupt(CorruptKind::Uncompressed)
        );
        assert_eq!(failure(&with_clear(form, b"!0123456")), corrupt(CorruptKind::Inflate));
        assert_eq!(failure(&with_clear(form, b"!!!!!!!!")), corrupt(CorruptKind::Inflate));
    }
}

#[test]
fn message_without_any_mark_is_a_wrong_key() {
    let stream = stream_of(&message_of(b"1:a:b"));
    assert_eq!(failure(&with_clear(CryptoForm::WazuhAes, &stream)), OpenError::WrongKey);
}

#[test]
fn any_number_of_marks_and_bytes_behind_the_stream_are_accepted() {
    let stream = stream_of(&message_of(b"1:a:b"));
    for form in [CryptoForm::WazuhAes, CryptoForm::OssecAes] {
        for clear in [
            [b"!", &stream[..]].concat(),
            [&[b'!'; 1000][..], &stream].concat(),
            [b"!!!", &stream[..], b"behind the end"].concat(),
        ] {
            assert_eq!(open(&with_clear(form, &clear)), Ok((form, COUNTER, b"1:a:b".to_vec())));
        }
    }
}

#[test]
fn half_a_stream_does_not_inflate() {
    let stream = stream_of(&message_of(b"1:a:b"));
    for len in 0..stream.len() {
        let clear = [b"!", &stream[..len]].concat();
        assert_eq!(
            failure(&with_clear(CryptoForm::WazuhAes, &clear)),
            corrupt(CorruptKind::Inflate),
            "{len}"
        );
    }
}

#[test]
fn inflated_size_may_reach_the_limit_and_not_pass_it() {
    let header = MIN_MESSAGE_LEN;
    for fill in [&b"x"[..], b"0123456789"] {
        let payload = |len: usize| fill.iter().copied().cycle().take(len).collect::<Vec<u8>>();
        for form in FORMS {
            let longest = message_of(&payload(MAX_MESSAGE_LEN - header));
            assert_eq!(
                open(&with_message(form, &longest)).map(|(_, _, payload)| payload.len()),
                Ok(65_483)
            );
        }
        let longer = message_of(&payload(MAX_MESSAGE_LEN - header + 1));
        for form in [CryptoForm::WazuhAes, CryptoForm::Blowfish] {
            assert_eq!(failure(&with_message(form, &longer)), corrupt(CorruptKind::Inflate));
        }
        // The constant-IV attempt is the one that is reported.
        assert_eq!(
            failure(&with_message(CryptoForm::OssecAes, &longer)),
            OpenError::WrongKey
        );
    }
}

#[test]
fn message_shorter_than_its_headers_is_corrupt() {
    for form in [CryptoForm::WazuhAes, CryptoForm::Blowfish] {
        assert_eq!(
            failure(&with_message(form, &[b'0'; 52])),
            corrupt(CorruptKind::TooShort)
        );
        assert_eq!(failure(&with_message(form, b"")), corrupt(CorruptKind::TooShort));
        // Length comes before checksum, checksum before counters.
        assert_eq!(
            failure(&with_message(form, &[b'0'; 53])),
            corrupt(CorruptKind::Checksum)
        );
        assert_eq!(failure(&with_inner(form, &[b'0'; 20])), corrupt(CorruptKind::TooShort));
    }
}

#[test]
fn empty_payload_is_valid() {
    assert_eq!(
        open(&with_message(CryptoForm::WazuhAes, &message_of(b""))),
        Ok((CryptoForm::WazuhAes, COUNTER, vec![]))
    );
}

#[test]
fn checksum_in_upper_case_is_wrong() {
    let message = message_of(b"1:a:b");
    let upper = [message[..32].to_ascii_uppercase(), message[32..].to_vec()].concat();
    assert_eq!(
        failure(&with_message(CryptoForm::WazuhAes, &upper)),
        corrupt(CorruptKind::Checksum)
    );
}

#[test]
fn counters_are_digits_with_colons_at_their_places() {
    for inner in [
        &b"123450000000001.0002:payload"[..],
        b"123450000000001:0002.payload",
        b"12345000000000x:0002:payload",
        b"123450000000001: 002:payload",
        b"12345+000000001:0002:payload",
        b"12345000000001:0002:payload",
    ] {
        assert_eq!(
            failure(&with_inner(CryptoForm::WazuhAes, inner)),
            corrupt(CorruptKind::Counters),
            "{inner:?}"
        );
    }
}

#[test]
fn random_digits_may_be_anything() {
    for random in [b"xxxxx", b"\0\0\0\0\0", b"99999"] {
        let inner = [&random[..], b"0000000001:0002:payload"].concat();
        assert!(open(&with_inner(CryptoForm::WazuhAes, &inner)).is_ok());
    }
}

#[test]
fn global_counter_has_32_bits_of_its_ten_digits() {
    let counter = |global: &str, local: &str| {
        let inner = format!("12345{global}:{local}:payload");
        open(&with_inner(CryptoForm::WazuhAes, inner.as_bytes()))
            .expect("valid")
            .1
    };
    assert_eq!(
        counter("4294967295", "9999"),
        Counter {
            global: u32::MAX,
            local: 9999
        }
    );
    assert_eq!(counter("4294967296", "0001"), Counter { global: 0, local: 1 });
    assert_eq!(
        counter("9999999999", "0000"),
        Counter {
            global: 1_410_065_407,
            local: 0
        }
    );
}

#[test]
fn noise_of_an_ossec_iv_that_looks_like_a_wazuh_message_is_still_found_out() {
    // The first clear byte under the constant IV is `!` for one IV in 256; find such IVs and open with them.
    let keys = keys();
    let mut sealer = Sealer::new();
    let mut opener = Opener::new();
    let mut met = 0;
    for seed in 0..4096_u16 {
        let mut iv = IV;
        iv[..2].copy_from_slice(&seed.to_le_bytes());
        let sealed = sealer
            .seal(&keys, CryptoForm::OssecAes, COUNTER, 1, iv, b"1:a:b", None)
            .expect("fits")
            .to_vec();
        let mut first = iv.into();
        cbc::cipher::BlockCipherDecrypt::decrypt_block(
            &<aes::Aes256Dec as cbc::cipher::KeyInit>::new(keys.aes().into()),
            &mut first,
        );
        met += usize::from(first[0] ^ AES_IV[0] == b'!');
        let opened = opener.open(&keys, &sealed, None).expect("opens");
        assert_eq!((opened.form, opened.payload), (CryptoForm::OssecAes, &b"1:a:b"[..]));
    }
    assert!(met > 0);
}

#[test]
fn empty_payload_and_too_long_payload_are_not_sent() {
    let mut sealer = Sealer::new();
    let mut seal = |payload: &[u8]| {
        sealer
            .seal(&keys(), CryptoForm::WazuhAes, COUNTER, 0, IV, payload, None)
            .map(<[u8]>::len)
    };
    assert_eq!(seal(b""), Err(SealError::Empty));
    assert!(seal(&vec![b'x'; MAX_PAYLOAD_LEN]).is_ok());
    let len = MAX_PAYLOAD_LEN + 1;
    assert_eq!(seal(&vec![b'x'; len]), Err(SealError::TooLong { len }));
}

#[test]
fn counter_that_does_not_fit_is_not_sent() {
    let counter = Counter {
        global: 0,
        local: 10_000,
    };
    let mut sealer = Sealer::new();
    assert_eq!(
        sealer.seal(&keys(), CryptoForm::WazuhAes, counter, 0, IV, b"x", None),
        Err(SealError::Counter { local: 10_000 })
    );
    assert_eq!(sealer.framed(), b"");
}

#[test]
fn longest_incompressible_payload_fits_a_message_in_every_form() {
    let payload = noise(MAX_PAYLOAD_LEN);
    for effort in [Effort::Balanced, Effort::Best] {
        let mut sealer = Sealer::with_effort(effort);
        for form in FORMS {
            let sealed = sealer
                .seal(&keys(), form, COUNTER, 0, IV, &payload, Some("00000001"))
                .expect("fits")
                .to_vec();
            assert!(sealed.len() <= MAX_MESSAGE_LEN, "{form}: {}", sealed.len());
            let sealed = split(&sealed).expect("well-formed").sealed;
            assert_eq!(open(sealed), Ok((form, COUNTER, payload.clone())));
        }
    }
}

#[test]
fn piece_of_900_bytes_fits_what_an_ossec_agent_reads() {
    for seed in 0..200 {
        let piece = noise(900 + seed)[seed..].to_vec();
        for effort in [Effort::Balanced, Effort::Best] {
            for form in FORMS {
                let mut sealer = Sealer::with_effort(effort);
                let sealed = sealer.seal(&keys(), form, COUNTER, 0, IV, &piece, None).expect("fits");
                assert!(sealed.len() <= OSSEC_AGENT_DATAGRAM_LEN, "{form}: {}", sealed.len());
            }
        }
    }
}

#[test]
fn id_goes_in_front_and_the_header_before_that() {
    let mut sealer = Sealer::new();
    let sealed = sealer
        .seal(&keys(), CryptoForm::WazuhAes, COUNTER, 0, IV, b"x", Some("007"))
        .expect("fits")
        .to_vec();
    assert!(sealed.starts_with(b"!007!#AES:"));
    let len = u32::try_from(sealed.len()).expect("small");
    assert_eq!(sealer.framed(), [&len.to_le_bytes()[..], &sealed].concat());
}

#[test]
fn form_words_read_back() {
    for form in FORMS {
        assert_eq!(CryptoForm::from_word(form.as_str()), Some(form));
        assert_eq!(serde_json::to_string(&form).expect("serialises"), format!("\"{form}\""));
    }
    assert_eq!(CryptoForm::from_word("des"), None);
}

/// Bytes that no compressor makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(len)
    .collect()
}

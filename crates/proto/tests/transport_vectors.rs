//! Recorded messages, in both directions.

#![allow(clippy::panic, reason = "a test may panic; clippy sees only test functions as such")]

use std::collections::BTreeMap;

use muster_proto::{
    keys::cipher::CipherKeys,
    transport::{
        counter::Counter,
        envelope::{CorruptKind, CryptoForm, EnvelopeError, OpenError, Opener, Sealer, split},
        frame,
    },
};
use serde_json::Value;

const WAZUH: &str = include_str!("fixtures/wazuh-transport.json");
const OSSEC: &str = include_str!("fixtures/ossec-transport.json");

/// What both files say about a message, under one set of names.
struct Vector {
    label: String,
    form: CryptoForm,
    keys: CipherKeys,
    id: String,
    has_prefix: bool,
    random: String,
    counter: Counter,
    payload: Vec<u8>,
    padding: usize,
    packet: Vec<u8>,
}

#[test]
fn derivation_gives_the_recorded_key() {
    let file = parse(WAZUH);
    let keys = keys_of_line(text(&file, "client_keys_line"));
    assert_eq!(
        keys.expose().as_slice(),
        text(&file["key_derivation"], "encryption_key").as_bytes()
    );
    for vector in parse(OSSEC)["vectors"].as_array().expect("vectors") {
        let keys = keys_of_line(text(vector, "client_keys_line"));
        assert_eq!(keys.expose().as_slice(), text(vector, "derived_key").as_bytes());
    }
}

#[test]
fn every_recorded_packet_opens_to_its_payload_and_counter() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 19 + 47);
    let mut opener = Opener::new();
    for vector in vectors {
        // The hint may be missing, right or stale, and must not matter.
        for hint in [
            None,
            Some(CryptoForm::WazuhAes),
            Some(CryptoForm::OssecAes),
            Some(CryptoForm::Blowfish),
        ] {
            let envelope = split(&vector.packet).expect("well-formed");
            assert_eq!(
                envelope.id,
                vector.has_prefix.then_some(vector.id.as_str()),
                "{}",
                vector.label
            );
            let opened = opener.open(&vector.keys, envelope.sealed, hint).expect(&vector.label);
            assert_eq!(opened.form, vector.form, "{}", vector.label);
            assert_eq!(opened.counter, vector.counter, "{}", vector.label);
            assert_eq!(opened.payload, vector.payload, "{}", vector.label);
        }
    }
}

#[test]
fn every_recorded_packet_is_sealed_again_byte_for_byte() {
    let mut sealer = Sealer::new();
    for vector in vectors() {
        let sealed = split(&vector.packet).expect("well-formed").sealed;
        let (iv, clear) = decrypt(&vector, sealed);
        let padding = clear.iter().take_while(|byte| **byte == b'!').count();
        assert_eq!(padding, vector.padding, "{}", vector.label);
        let prefix = vector.has_prefix.then_some(vector.id.as_str());
        let again = sealer
            .seal_stream(&vector.keys, vector.form, iv, &clear[padding..], prefix)
            .expect("fits");
        assert_eq!(again, vector.packet, "{}", vector.label);
        assert_eq!(
            sealer.framed(),
            [&frame::header(vector.packet.len())[..], &vector.packet].concat()
        );
    }
}

#[test]
fn given_zlib_streams_are_sealed_to_the_recorded_packets() {
    let file = parse(WAZUH);
    let mut sealer = Sealer::new();
    for vector in file["vectors"].as_array().expect("vectors") {
        let keys = CipherKeys::derive(text(vector, "id"), text(vector, "name"), text(vector, "key"));
        let prefix = text(vector, "prefix").starts_with('!').then(|| text(vector, "id"));
        let form = wazuh_form(vector);
        let stream = hex(text(vector, "compressed"));
        let sealed = sealer.seal_stream(&keys, form, [0; 16], &stream, prefix).expect("fits");
        assert_eq!(sealed, hex(text(vector, "packet_hex")), "{}", text(vector, "label"));
        assert_eq!(
            frame::header(sealed.len()).to_vec(),
            hex(text(vector, "tcp_frame_header_hex"))
        );
    }
}

#[test]
fn our_own_message_has_the_recorded_inner_text() {
    let mut sealer = Sealer::new();
    for vector in vectors() {
        let random = vector.random.parse().expect("five digits");
        let sealed = sealer
            .seal(
                &vector.keys,
                vector.form,
                vector.counter,
                random,
                [7; 16],
                &vector.payload,
                None,
            )
            .expect("fits")
            .to_vec();
        // Both decrypted and inflated by hand, so that neither the opener's nor the sealer's view of it counts.
        assert_eq!(
            inflated(&decrypt(&vector, &sealed).1),
            inflated(&decrypt(&vector, split(&vector.packet).expect("well-formed").sealed).1),
            "{}",
            vector.label
        );
    }
}

#[test]
fn recorded_failures_have_the_recorded_results() {
    use CorruptKind::{Checksum, Counters, Token, TooShort};

    let file = parse(WAZUH);
    let keys = keys_of_line(text(&file, "client_keys_line"));
    let expected: BTreeMap<&str, Result<OpenError, EnvelopeError>> = [
        ("aes-bad-md5", Ok(OpenError::Corrupt(Checksum))),
        ("aes-no-colon-after-global", Ok(OpenError::Corrupt(Counters))),
        ("aes-too-short", Ok(OpenError::Corrupt(TooShort))),
        ("aes-not-compressed-marker", Ok(OpenError::WrongKey)),
        ("blowfish-missing-colon", Ok(OpenError::Corrupt(Token))),
        ("aes-wrong-key", Ok(OpenError::WrongKey)),
        ("unterminated-id", Err(EnvelopeError::Malformed)),
    ]
    .into();
    let mut opener = Opener::new();
    let mut seen = 0;
    for negative in file["negative"].as_array().expect("negatives") {
        let packet = hex(text(negative, "packet_hex"));
        let label = text(negative, "label");
        if label == "unknown-id" {
            assert_eq!(split(&packet).expect("well-formed").id, Some("999"));
            continue;
        }
        for hint in [None, Some(CryptoForm::WazuhAes), Some(CryptoForm::OssecAes)] {
            let result = match split(&packet) {
                Ok(envelope) => Ok(opener.open(&keys, envelope.sealed, hint).expect_err(label)),
                Err(error) => Err(error),
            };
            assert_eq!(result, expected[label], "{label}");
        }
        seen += 1;
    }
    assert_eq!(seen, expected.len());
}

#[test]
fn packets_of_another_agent_are_a_wrong_key_or_corrupt_but_never_open() {
    let stranger = CipherKeys::derive("001", "web-01", "0000");
    let mut opener = Opener::new();
    for vector in vectors() {
        let sealed = split(&vector.packet).expect("well-formed").sealed;
        // One AES packet in 65,000 decrypts to something that begins with `!`; none of these does.
        assert_eq!(
            opener.open(&stranger, sealed, None),
            Err(OpenError::WrongKey),
            "{}",
            vector.label
        );
    }
}

fn vectors() -> Vec<Vector> {
    let (wazuh, ossec) = (parse(WAZUH), parse(OSSEC));
    let wazuh = wazuh["vectors"].as_array().expect("vectors").iter().map(wazuh_vector);
    let ossec = ossec["vectors"]
        .as_array()
        .expect("vectors")
        .iter()
        .enumerate()
        .map(ossec_vector);
    wazuh.chain(ossec).collect()
}

fn wazuh_vector(vector: &Value) -> Vector {
    let number = |name: &str| {
        vector["counters"][name]
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .expect("counter")
    };
    Vector {
        label: text(vector, "label").to_owned(),
        form: wazuh_form(vector),
        keys: CipherKeys::derive(text(vector, "id"), text(vector, "name"), text(vector, "key")),
        id: text(vector, "id").to_owned(),
        has_prefix: text(vector, "prefix").starts_with('!'),
        random: text(vector, "random").to_owned(),
        counter: Counter {
            global: number("global"),
            local: number("local"),
        },
        payload: text(vector, "plaintext").as_bytes().to_vec(),
        padding: vector["padding_len"]
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .expect("padding"),
        packet: hex(text(vector, "packet_hex")),
    }
}

fn wazuh_form(vector: &Value) -> CryptoForm {
    match text(vector, "algorithm") {
        "aes" => CryptoForm::WazuhAes,
        "blowfish" => CryptoForm::Blowfish,
        other => panic!("unknown algorithm {other}"),
    }
}

fn ossec_vector((index, vector): (usize, &Value)) -> Vector {
    let line = text(vector, "client_keys_line");
    let packet = hex(text(vector, "packet_hex"));
    Vector {
        label: format!("ossec {index}"),
        form: if text(vector, "algorithm").starts_with("aes") {
            CryptoForm::OssecAes
        } else {
            CryptoForm::Blowfish
        },
        keys: keys_of_line(line),
        id: line.split(' ').next().expect("id").to_owned(),
        has_prefix: packet.starts_with(b"!"),
        random: text(vector, "random").to_owned(),
        counter: Counter {
            global: text(vector, "global_counter").parse().expect("global"),
            local: text(vector, "local_counter").parse().expect("local"),
        },
        payload: text(vector, "payload").as_bytes().to_vec(),
        padding: vector["leading_bangs"]
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .expect("padding"),
        packet,
    }
}

/// The IV and clear text of a packet, with the ciphers alone.
fn decrypt(vector: &Vector, sealed: &[u8]) -> ([u8; 16], Vec<u8>) {
    use blowfish::Blowfish;
    use cbc::{
        Decryptor,
        cipher::{
            BlockModeDecrypt, KeyIvInit,
            block_padding::{NoPadding, Pkcs7},
        },
    };

    let derived = vector.keys.expose();
    let fixed = *b"FEDCBA0987654321";
    let aes = |iv: [u8; 16], ciphertext: &[u8]| {
        let cipher = Decryptor::<aes::Aes256>::new_from_slices(&derived[..32], &iv).expect("lengths");
        (iv, cipher.decrypt_padded_vec::<Pkcs7>(ciphertext).expect("padding"))
    };
    match vector.form {
        CryptoForm::WazuhAes => aes(fixed, sealed.strip_prefix(b"#AES:").expect("token")),
        CryptoForm::OssecAes => {
            let (iv, ciphertext) = sealed
                .strip_prefix(b"#AES:")
                .and_then(<[u8]>::split_first_chunk)
                .expect("token and IV");
            aes(*iv, ciphertext)
        }
        CryptoForm::Blowfish => {
            let cipher =
                Decryptor::<Blowfish>::new_from_slices(derived, &[0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10])
                    .expect("lengths");
            let ciphertext = sealed.strip_prefix(b":").expect("token");
            (
                fixed,
                cipher
                    .decrypt_padded_vec::<NoPadding>(ciphertext)
                    .expect("whole blocks"),
            )
        }
    }
}

fn inflated(clear: &[u8]) -> Vec<u8> {
    use std::io::Read;

    let padding = clear.iter().take_while(|byte| **byte == b'!').count();
    let mut out = Vec::new();
    flate2::read::ZlibDecoder::new(&clear[padding..])
        .read_to_end(&mut out)
        .expect("a zlib stream");
    out
}

fn keys_of_line(line: &str) -> CipherKeys {
    let fields: Vec<&str> = line.split(' ').collect();
    let [id, name, _, key] = fields[..] else {
        panic!("not a key line: {line}")
    };
    CipherKeys::derive(id, name, key)
}

fn parse(file: &str) -> Value {
    serde_json::from_str(file).expect("fixture is JSON")
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().expect(name)
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).expect("ascii"), 16).expect("hex"))
        .collect()
}

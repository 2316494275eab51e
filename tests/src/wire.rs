//! What a message looks like on port 1514, written from the protocol's description alone.
//!
//! Nothing of the daemons' own encoder is used, so that a mistake there cannot hide behind the same mistake here.

use std::io::{Read, Write};

use aes::Aes256;
use blowfish::Blowfish;
use cbc::{
    Decryptor, Encryptor,
    cipher::{
        BlockModeDecrypt, BlockModeEncrypt, KeyIvInit,
        block_padding::{NoPadding, Pkcs7},
    },
};
use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use md5::{Digest, Md5};

/// The fixed vector of Wazuh's AES.
const AES_IV: [u8; 16] = *b"FEDCBA0987654321";
/// The fixed vector of Blowfish.
const BLOWFISH_IV: [u8; 8] = [0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10];

/// How a message is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `#AES:`, fixed vector.
    WazuhAes,
    /// `#AES:`, 16 random bytes in front of the ciphertext.
    OssecAes,
    /// `:`, Blowfish.
    Blowfish,
}

/// The pair that every message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// The high part.
    pub global: u64,
    /// The low part.
    pub local: u32,
}

impl Pair {
    /// The pair of the next message: local runs from 1 to 9997.
    #[must_use]
    pub fn next(self) -> Self {
        if self.local >= 9997 {
            Self {
                global: self.global + 1,
                local: 1,
            }
        } else {
            Self {
                global: self.global,
                local: self.local + 1,
            }
        }
    }
}

/// An opened message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// How it was sealed.
    pub form: Form,
    /// Its counters.
    pub pair: Pair,
    /// The text.
    pub payload: Vec<u8>,
}

/// The 47 characters that ciphers are keyed with.
pub fn derive(id: &str, name: &str, key: &str) -> String {
    let name_and_id = hex_md5(format!("{}{}", hex_md5(name.as_bytes()), hex_md5(id.as_bytes())).as_bytes());
    format!("{}{}", hex_md5(key.as_bytes()), &name_and_id[..15])
}

/// The lower-case hex MD5 of some bytes.
pub fn hex_md5(bytes: &[u8]) -> String {
    hex(&Md5::digest(bytes))
}

/// Lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of hex digits.
///
/// # Panics
/// If they are none.
pub fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex digits"))
        .collect()
}

/// The clear text under the compression: checksum, random digits, counters, payload.
pub fn inner(pair: Pair, random: u16, payload: &[u8]) -> Vec<u8> {
    let mut text = format!("{random:05}{:010}:{:04}:", pair.global, pair.local).into_bytes();
    text.extend_from_slice(payload);
    let mut whole = hex_md5(&text).into_bytes();
    whole.extend_from_slice(&text);
    whole
}

/// A zlib stream at the level that agents use.
pub fn deflate(clear: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(clear).expect("a vector takes everything");
    encoder.finish().expect("a vector takes everything")
}

/// Pads, encrypts and puts the token in front. `vector` is used by [`Form::OssecAes`] only.
///
/// # Panics
/// If `derived` has not 47 characters.
pub fn encrypt(form: Form, derived: &str, vector: [u8; 16], stream: &[u8]) -> Vec<u8> {
    let marks = 1 + ((8 - ((stream.len() + 1) % 8)) % 8);
    let mut padded = vec![b'!'; marks];
    padded.extend_from_slice(stream);
    let key = derived.as_bytes();
    match form {
        Form::WazuhAes | Form::OssecAes => {
            let vector = if form == Form::WazuhAes { AES_IV } else { vector };
            let sealed = Encryptor::<Aes256>::new_from_slices(&key[..32], &vector)
                .expect("32 characters and 16 bytes")
                .encrypt_padded_vec::<Pkcs7>(&padded);
            let mut out = b"#AES:".to_vec();
            if form == Form::OssecAes {
                out.extend_from_slice(&vector);
            }
            out.extend_from_slice(&sealed);
            out
        }
        Form::Blowfish => {
            let sealed = Encryptor::<Blowfish>::new_from_slices(key, &BLOWFISH_IV)
                .expect("47 characters and 8 bytes")
                .encrypt_padded_vec::<NoPadding>(&padded);
            let mut out = b":".to_vec();
            out.extend_from_slice(&sealed);
            out
        }
    }
}

/// Seals a payload; the id prefix is the caller's.
pub fn seal(form: Form, derived: &str, pair: Pair, random: u16, vector: [u8; 16], payload: &[u8]) -> Vec<u8> {
    encrypt(form, derived, vector, &deflate(&inner(pair, random, payload)))
}

/// Opens a message without its id prefix, or says what is wrong with it.
pub fn open(derived: &str, message: &[u8]) -> Result<Opened, String> {
    let key = derived.as_bytes();
    if let Some(sealed) = message.strip_prefix(b"#AES:") {
        let fixed = open_aes(key, &AES_IV, sealed).and_then(|clear| read(Form::WazuhAes, &clear));
        if fixed.is_ok() || sealed.len() < 32 {
            return fixed;
        }
        let (vector, sealed) = sealed.split_at(16);
        return open_aes(key, vector, sealed)
            .and_then(|clear| read(Form::OssecAes, &clear))
            .or(fixed);
    }
    let sealed = message.strip_prefix(b":").ok_or("no token")?;
    let clear = Decryptor::<Blowfish>::new_from_slices(key, &BLOWFISH_IV)
        .map_err(|error| error.to_string())?
        .decrypt_padded_vec::<NoPadding>(sealed)
        .map_err(|error| format!("blowfish: {error:?}"))?;
    read(Form::Blowfish, &clear)
}

fn open_aes(key: &[u8], vector: &[u8], sealed: &[u8]) -> Result<Vec<u8>, String> {
    Decryptor::<Aes256>::new_from_slices(&key[..32], vector)
        .map_err(|error| error.to_string())?
        .decrypt_padded_vec::<Pkcs7>(sealed)
        .map_err(|error| format!("aes: {error:?}"))
}

fn read(form: Form, clear: &[u8]) -> Result<Opened, String> {
    if clear.first() != Some(&b'!') {
        return Err("does not begin with `!`".to_owned());
    }
    let marks = clear.iter().take_while(|byte| **byte == b'!').count();
    let mut text = Vec::new();
    ZlibDecoder::new(&clear[marks..])
        .read_to_end(&mut text)
        .map_err(|error| format!("zlib: {error}"))?;
    if text.len() < 53 {
        return Err("too short".to_owned());
    }
    let (sum, text) = text.split_at(32);
    if hex_md5(text).as_bytes() != sum {
        return Err("wrong checksum".to_owned());
    }
    if text[15] != b':' || text[20] != b':' {
        return Err("malformed counters".to_owned());
    }
    let number = |digits: &[u8]| -> Result<u64, String> {
        String::from_utf8_lossy(digits)
            .parse()
            .map_err(|_| "malformed counters".to_owned())
    };
    let local = u32::try_from(number(&text[16..20])?).map_err(|error| error.to_string())?;
    Ok(Opened {
        form,
        pair: Pair {
            global: number(&text[5..15])?,
            local,
        },
        payload: text[21..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn vectors(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn without_id(packet: &[u8]) -> &[u8] {
        match packet.strip_prefix(b"!") {
            Some(rest) => &rest[rest.iter().position(|byte| *byte == b'!').unwrap() + 1..],
            None => packet,
        }
    }

    #[test]
    fn wazuh_vectors_open_and_seal_exactly() {
        let file = vectors(include_str!("../fixtures/agent-transport-vectors.json"));
        let all = file["vectors"].as_array().unwrap();
        assert_eq!(all.len(), 19);
        for vector in all {
            let text = |field: &str| vector[field].as_str().unwrap();
            let form = if text("algorithm") == "aes" {
                Form::WazuhAes
            } else {
                Form::Blowfish
            };
            let derived = derive(text("id"), text("name"), text("key"));
            let packet = unhex(text("packet_hex"));
            let opened = open(&derived, without_id(&packet)).unwrap();
            let pair = Pair {
                global: vector["counters"]["global"].as_u64().unwrap(),
                local: u32::try_from(vector["counters"]["local"].as_u64().unwrap()).unwrap(),
            };
            let expected = Opened {
                form,
                pair,
                payload: text("plaintext").as_bytes().to_vec(),
            };
            assert_eq!(opened, expected, "{}", text("label"));
            let sealed = encrypt(form, &derived, [0; 16], &unhex(text("compressed")));
            assert_eq!(
                [
                    text("prefix")
                        .trim_end_matches("#AES:")
                        .trim_end_matches(':')
                        .as_bytes(),
                    &sealed
                ]
                .concat(),
                packet
            );
        }
    }

    #[test]
    fn ossec_vectors_open_exactly() {
        let file = vectors(include_str!("../fixtures/ossec-agent-vectors.json"));
        let all = file["vectors"].as_array().unwrap();
        assert_eq!(all.len(), 47);
        for vector in all {
            let line: Vec<&str> = vector["client_keys_line"].as_str().unwrap().split(' ').collect();
            let derived = derive(line[0], line[1], line[3]);
            assert_eq!(derived, vector["derived_key"].as_str().unwrap());
            let packet = unhex(vector["packet_hex"].as_str().unwrap());
            let opened = open(&derived, without_id(&packet)).unwrap();
            assert_eq!(
                opened.pair.global,
                vector["global_counter"].as_str().unwrap().parse::<u64>().unwrap()
            );
            if let Some(payload) = vector["payload"].as_str() {
                assert_eq!(String::from_utf8_lossy(&opened.payload), payload);
            }
        }
    }

    #[test]
    fn every_form_opens_what_it_sealed() {
        let derived = derive("001", "web-01", "k");
        let pair = Pair { global: 3, local: 9997 };
        for form in [Form::WazuhAes, Form::OssecAes, Form::Blowfish] {
            let sealed = seal(form, &derived, pair, 7, [9; 16], b"#!-agent startup ");
            let opened = open(&derived, &sealed).unwrap();
            assert_eq!(
                opened,
                Opened {
                    form,
                    pair,
                    payload: b"#!-agent startup ".to_vec()
                }
            );
        }
        assert_eq!(pair.next(), Pair { global: 4, local: 1 });
    }
}

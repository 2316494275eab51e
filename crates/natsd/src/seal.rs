//! Sealed bodies: only a recipient can read them.
//!
//! For one recipient, the body is one box from a key of this epoch to the recipient's (`xkv1`: four letters, a nonce of 24
//! bytes, X25519 and XSalsa20-Poly1305). For several, the body is sealed once with a random key, and that key is boxed
//! for each (`xkv1m`). The sender's key is made at each start and never written down: what was sealed cannot be opened
//! later with anything that is found on the manager.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use crypto_secretbox::{KeyInit, XSalsa20Poly1305, aead::Aead};
use muster_config::{Encrypt, Family, Recipient};
use muster_proto::event::Kind;
use nkeys::XKey;
use thiserror::Error;
use zeroize::Zeroizing;

const MAGIC: &[u8; 4] = b"xkv1";
const NONCE_LEN: usize = 24;
const KEY_LEN: usize = 32;
/// More recipients would make the header longer than the body.
pub(crate) const MAX_RECIPIENTS: usize = 8;

/// Why nothing can be sealed.
#[derive(Debug, Error)]
pub(crate) enum SealError {
    #[error("<recipient id=\"{id}\">: not the public half of an xkey (X and 55 more letters and digits)")]
    Key { id: String },
    #[error("<recipient>: at most {MAX_RECIPIENTS} are possible")]
    TooMany,
    #[error("the system gave no random numbers")]
    Random,
    #[error("the body could not be sealed")]
    Seal,
}

/// Seals for the configured recipients.
pub(crate) struct Sealer {
    sender: XKey,
    recipients: Vec<(String, XKey)>,
    families: Vec<Family>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let recipients: Vec<_> = self.recipients.iter().map(|(id, _)| id).collect();
        formatter
            .debug_struct("Sealer")
            .field("recipients", &recipients)
            .finish_non_exhaustive()
    }
}

impl Sealer {
    /// With a new sender's key; nothing without recipients.
    pub(crate) fn new(recipients: &[Recipient], encrypt: &Encrypt) -> Result<Option<Self>, SealError> {
        if recipients.is_empty() {
            return Ok(None);
        }
        if recipients.len() > MAX_RECIPIENTS {
            return Err(SealError::TooMany);
        }
        let recipients = recipients.iter().map(|recipient| {
            let key = XKey::from_public_key(&recipient.key).map_err(|_| SealError::Key {
                id: recipient.id.clone(),
            })?;
            Ok((recipient.id.clone(), key))
        });
        Ok(Some(Self {
            sender: XKey::new(),
            recipients: recipients.collect::<Result<_, SealError>>()?,
            families: encrypt.families.clone(),
        }))
    }

    /// Whether events of this kind are sealed. What tells of natsd itself never is.
    pub(crate) fn seals(&self, kind: Kind) -> bool {
        let family = match kind {
            Kind::Keepalive => Family::Keepalive,
            Kind::StatusChange | Kind::Connection | Kind::DisconnectAlert | Kind::ControlResult => Family::Status,
            Kind::Enrolled | Kind::Removed | Kind::KeyRotated | Kind::Renamed | Kind::EnrollmentRejected => {
                Family::Enrollment
            }
            Kind::KeyPolling => Family::Keypoll,
            Kind::RuleAlert => Family::Alerts,
            Kind::Archive => Family::Archives,
            Kind::Agentless => Family::Agentless,
            Kind::Osquery => Family::Osquery,
            Kind::Health | Kind::SpoolGap | Kind::Audit | Kind::KeyAnnouncement => return false,
        };
        self.families.contains(&family)
    }

    /// The value of `Muster-Enc`, and the body as sent.
    pub(crate) fn seal(&self, body: &[u8]) -> Result<(String, Vec<u8>), SealError> {
        let from = self.sender.public_key();
        if let [(id, key)] = self.recipients.as_slice() {
            let sealed = self.sender.seal(body, key).map_err(|_| SealError::Seal)?;
            return Ok((format!("xkv1;from={from};to={id}"), sealed));
        }
        let mut random = Zeroizing::new([0; KEY_LEN + NONCE_LEN]);
        getrandom::fill(&mut random[..]).map_err(|_| SealError::Random)?;
        let (key, nonce) = random.split_at(KEY_LEN);
        let cipher = XSalsa20Poly1305::new_from_slice(key).map_err(|_| SealError::Seal)?;
        let mut sealed = MAGIC.to_vec();
        sealed.extend_from_slice(nonce);
        sealed.extend(cipher.encrypt(nonce.into(), body).map_err(|_| SealError::Seal)?);
        let mut keys = Vec::new();
        for (id, recipient) in &self.recipients {
            let boxed = self.sender.seal(key, recipient).map_err(|_| SealError::Seal)?;
            keys.push(format!("{id}:{}", URL_SAFE_NO_PAD.encode(boxed)));
        }
        Ok((format!("xkv1m;from={from};keys={}", keys.join(",")), sealed))
    }
}

/// Opens a sealed body with a recipient's key. `header` is the value of `Muster-Enc`.
pub fn open(recipient: &XKey, header: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let mut parts = header.split(';');
    let form = parts.next()?;
    let (mut from, mut keys) = (None, None);
    for part in parts {
        match part.split_once('=')? {
            ("from", value) => from = XKey::from_public_key(value).ok(),
            ("keys", value) => keys = Some(value),
            _ => {}
        }
    }
    let from = from?;
    match form {
        "xkv1" => recipient.open(sealed, &from).ok(),
        "xkv1m" => {
            let boxes = keys?
                .split(',')
                .take(MAX_RECIPIENTS)
                .filter_map(|one| one.split_once(':'));
            let key = boxes
                .filter_map(|(_, boxed)| URL_SAFE_NO_PAD.decode(boxed).ok())
                .find_map(|boxed| recipient.open(&boxed, &from).ok().map(Zeroizing::new))?;
            let (nonce, sealed) = sealed.strip_prefix(MAGIC)?.split_at_checked(NONCE_LEN)?;
            XSalsa20Poly1305::new_from_slice(&key)
                .ok()?
                .decrypt(nonce.into(), sealed)
                .ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(keys: &[&XKey]) -> Sealer {
        let recipients: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(number, key)| Recipient {
                id: format!("r{number}"),
                key: key.public_key(),
            })
            .collect();
        Sealer::new(&recipients, &Encrypt::default())
            .expect("keys are good")
            .expect("there are recipients")
    }

    #[test]
    fn one_recipient_opens_what_was_sealed_and_nobody_else() {
        let (recipient, stranger) = (XKey::new(), XKey::new());
        let (header, sealed) = sealer(&[&recipient]).seal(b"body").expect("seals");
        assert!(
            header.starts_with("xkv1;from=X") && header.ends_with(";to=r0"),
            "{header}"
        );
        assert_eq!(&sealed[..4], MAGIC);
        assert_eq!(sealed.len(), b"body".len() + 4 + 24 + 16);
        assert_eq!(open(&recipient, &header, &sealed).as_deref(), Some(&b"body"[..]));
        assert_eq!(open(&stranger, &header, &sealed), None);
    }

    #[test]
    fn each_of_several_recipients_opens_the_same_body() {
        let (one, other, stranger) = (XKey::new(), XKey::new(), XKey::new());
        let (header, sealed) = sealer(&[&one, &other]).seal(b"body").expect("seals");
        assert!(header.starts_with("xkv1m;from=X"), "{header}");
        for recipient in [&one, &other] {
            assert_eq!(open(recipient, &header, &sealed).as_deref(), Some(&b"body"[..]));
        }
        assert_eq!(open(&stranger, &header, &sealed), None);
    }

    #[test]
    fn changed_box_is_not_opened() {
        let recipient = XKey::new();
        let (header, mut sealed) = sealer(&[&recipient]).seal(b"body").expect("seals");
        *sealed.last_mut().expect("bytes") ^= 1;
        assert_eq!(open(&recipient, &header, &sealed), None);
        for header in ["", "xkv1", "xkv1;from=", "xkv1m;from=X;keys=", "other;from=X"] {
            assert_eq!(open(&recipient, header, &sealed), None);
        }
    }

    #[test]
    fn what_is_no_key_is_named() {
        let recipient = Recipient {
            id: "soc".to_owned(),
            key: "XBAD".to_owned(),
        };
        let error = Sealer::new(&[recipient], &Encrypt::default()).expect_err("is no key");
        assert!(error.to_string().contains("soc"), "{error}");
    }
}

//! `<control>` and `<control_key>`: who may ask what of this manager over NATS.

use serde::Serialize;

use super::{
    Nats,
    walk::{name, public_key},
};
use crate::{
    kind::{Reading, Special, rate, words, yes_no},
    limits,
    value::Rate,
    walk::{Block, Need, Origin, Walk},
};

/// Keys that one file may name.
const MAX_KEYS: usize = 64;
/// Active responses that may be asked for.
const MAX_RESPONSES: usize = 64;

/// `<control enabled="..." destroy="..." active_responses="..."/>`: requests over NATS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Control {
    /// Whether requests are listened to at all.
    pub enabled: bool,
    /// Whether requests may remove agents.
    pub destroy: bool,
    /// The active responses that may be asked for, as agents know them: `firewall-drop600`.
    pub active_responses: Vec<String>,
}

/// `<control_key id="..." roles="..." rate="...">U...</control_key>`: somebody who may send requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControlKey {
    /// A name for the audit trail.
    pub id: String,
    /// What the key may do.
    pub roles: Vec<ControlRole>,
    /// How many requests it may send.
    pub rate: Rate,
    /// The public nkey.
    pub key: String,
}

impl Default for ControlKey {
    fn default() -> Self {
        Self {
            id: String::new(),
            roles: Vec::new(),
            rate: limits::CONTROL_RATE,
            key: String::new(),
        }
    }
}

/// What a control key may do. None includes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlRole {
    /// Ask.
    Read,
    /// Order restarts, reloads, active responses.
    Act,
    /// Remove agents.
    Destroy,
}

impl Nats {
    pub(super) fn check_control<W: Walk>(&self, walk: &mut W) {
        if self.control.destroy && !self.control.enabled {
            walk.warning("control", "destroy has no effect, since control is not enabled");
        }
        let keys = &self.control_keys;
        if keys.len() > MAX_KEYS {
            walk.error("control_key", &format!("there are more than {MAX_KEYS} control keys"));
        }
        for (place, key) in keys.iter().take(MAX_KEYS).enumerate() {
            let before = || keys.iter().take(place);
            if before().any(|other| other.id == key.id) {
                walk.error("control_key", &format!("two control keys have the id {}", key.id));
            }
            if before().any(|other| other.key == key.key) {
                walk.error("control_key", &format!("the key of {} is there twice", key.id));
            }
        }
        if !self.control.enabled {
            return;
        }
        if keys.is_empty() {
            walk.warning("control", "nobody may send requests, since there is no <control_key>");
        }
        // Replies are signed, and each request is in the audit trail: that is no option.
        for (option, there) in [
            ("message_signing", self.message_signing),
            ("audit_logging", self.audit_logging),
        ] {
            if !there {
                walk.error("control", &format!("<control> needs <{option}>yes</{option}>"));
            }
        }
    }
}

impl Block for Control {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.attribute(Origin::Own, Need::Optional, "enabled", yes_no(), &mut self.enabled);
        walk.attribute(Origin::Own, Need::Optional, "destroy", yes_no(), &mut self.destroy);
        walk.attribute(
            Origin::Own,
            Need::Optional,
            "active_responses",
            active_responses(),
            &mut self.active_responses,
        );
    }
}

/// The public half of a key that signs.
pub(super) fn user_key() -> Special<String> {
    Special {
        accepts: "a public nkey of a user: 56 characters that begin with U",
        read: |text| public_key(text, 'U').into(),
        write: |key: &String| Some(key.clone()),
    }
}

impl Block for ControlKey {
    fn walk<W: Walk>(&mut self, walk: &mut W) {
        walk.attribute(Origin::Own, Need::Required, "id", name(), &mut self.id);
        let roles = words(&[
            ("read", ControlRole::Read),
            ("act", ControlRole::Act),
            ("destroy", ControlRole::Destroy),
        ]);
        walk.attribute(Origin::Own, Need::Required, "roles", roles, &mut self.roles);
        walk.attribute(Origin::Own, Need::Optional, "rate", rate(), &mut self.rate);
        walk.text(user_key(), &mut self.key);
    }
}

/// Names of active responses with commas between them. A leading `!`, which runs any program of the agent's folder of
/// responses, is part of the name and must be written out too.
fn active_responses() -> Special<Vec<String>> {
    Special {
        accepts: "a comma list of names such as firewall-drop600: letters, digits, '.', '-', '_', and '!' in front",
        read: |text| {
            let names: Vec<_> = text.split(',').map(|name| name.trim().to_owned()).collect();
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            let is_name = |name: &String| {
                let rest = name.strip_prefix('!').unwrap_or(name);
                (1..=64).contains(&rest.len()) && rest.bytes().all(fits) && !rest.contains("..")
            };
            if names.len() <= MAX_RESPONSES && names.iter().all(is_name) {
                Reading::Value(names)
            } else {
                Reading::Refused
            }
        },
        write: |names| (!names.is_empty()).then(|| names.join(",")),
    }
}

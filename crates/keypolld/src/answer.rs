//! What a source of keys answers: an agent, or the reason why there is none.
//!
//! ```text
//! {"error": 0, "data": {"id": "001", "name": "my_agent", "ip": "192.168.1.100", "key": "ac575526…"}}
//! {"error": 4, "message": "No agent key found"}
//! ```
//!
//! The first JSON object counts; what follows it is not looked at. Member names are read in any letter case and the
//! first of two equal ones counts, as stock reads them. Everything else is stricter than stock, which takes any text
//! for a name or a key (one such answer keeps its authd from starting) and inserts agents that nobody asked for.
//!
//! **Invariant:** an [`Agent`] can stand in a key line as it is, and is the one that was asked for.

mod json;

use muster_proto::{
    agent::AgentId,
    enrollment::name,
    keys::{
        Secret,
        address::{MAX_ADDRESS_LEN, RegisteredAddress},
        file::MAX_FIELD_LEN,
    },
};
use thiserror::Error;

use crate::lookup::Lookup;
use json::Raw;

/// The longest key that is accepted; key lines keep [`MAX_FIELD_LEN`] bytes of it, on both sides.
pub const MAX_KEY_LEN: usize = 128;
/// The number with which the example scripts say that there is no such agent.
pub const NO_SUCH_AGENT: i64 = 4;
/// How much of a message is kept.
const MAX_MESSAGE_LEN: usize = 256;

/// An agent that the source knows, checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its id, with at least three digits.
    pub id: AgentId,
    /// Its name.
    pub name: String,
    /// From where it may talk.
    pub address: RegisteredAddress,
    /// Its key.
    pub key: Secret,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Agent({} {} {})", self.id, self.name, self.address)
    }
}

/// What a source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The agent.
    Agent(Agent),
    /// None, and why.
    Error {
        /// A number other than 0.
        code: i64,
        /// Its words, shortened and without control characters.
        message: String,
    },
}

/// Why an answer cannot be used. Nothing of it is repeated here: it may hold a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    /// It does not begin with a JSON object.
    #[error("the answer is not a JSON object")]
    Json,
    /// No `error`, or one that is not a whole number.
    #[error("`error` should be a whole number, 0 for success")]
    Error,
    /// Success without `data`.
    #[error("`data` should be an object with id, name, ip and key")]
    Data,
    /// A member of `data` is missing or not text.
    #[error("`data.{0}` should be a text")]
    Field(&'static str),
    /// Not 1 to 8 digits.
    #[error("`data.id` should have 1 to 8 digits and not be 0")]
    Id,
    /// Against the rule of names.
    #[error("`data.name` should have 2 to 128 letters, digits, `-`, `_` and `.`, and not begin with `.`")]
    Name,
    /// Not an address.
    #[error("`data.ip` should be `any`, an address, or a network")]
    Address,
    /// Empty, too long, or not printable.
    #[error("`data.key` should have 1 to {MAX_KEY_LEN} printable characters and no space")]
    Key,
    /// Somebody else's id.
    #[error("the answer is for another id than was asked for")]
    OtherId,
    /// Somebody else's address.
    #[error(
        "the answer's `data.ip` is not the address that was asked for; an agent without id in its messages is found by \
         exactly its registered address"
    )]
    OtherAddress,
}

impl Answer {
    /// Reads what a source has written, as the answer to `lookup`.
    pub fn read(bytes: &[u8], lookup: &Lookup) -> Result<Self, Unusable> {
        let raw = Raw::first(bytes).ok_or(Unusable::Json)?;
        let code = raw.error.ok_or(Unusable::Error)?;
        if code != 0 {
            let message = raw.message.as_deref().unwrap_or_default();
            return Ok(Self::Error {
                code,
                message: tamed(message),
            });
        }
        let data = raw.data.ok_or(Unusable::Data)?;
        let id = data.id.ok_or(Unusable::Field("id"))?;
        let name = data.name.ok_or(Unusable::Field("name"))?;
        let ip = data.ip.ok_or(Unusable::Field("ip"))?;
        let key = data.key.ok_or(Unusable::Field("key"))?;
        let number = AgentId::new(&id).number().filter(|number| *number > 0);
        let number = number.ok_or(Unusable::Id)?;
        if !name::is_valid(name.as_bytes()) {
            return Err(Unusable::Name);
        }
        let address = checked_address(&ip)?;
        if !(1..=MAX_KEY_LEN).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Unusable::Key);
        }
        if lookup.number().is_some_and(|asked| asked != number) {
            return Err(Unusable::OtherId);
        }
        if lookup.address().is_some() && lookup.address() != address.single_host() {
            return Err(Unusable::OtherAddress);
        }
        Ok(Self::Agent(Agent {
            id: AgentId::from_number(number),
            name: kept(&name).to_owned(),
            address,
            key: Secret::new(kept(&key).to_owned()),
        }))
    }
}

/// The key in what a source has written, good or bad: it must not get into a log.
pub fn key_in(bytes: &[u8]) -> Option<Secret> {
    let key = Raw::first(bytes)?.data?.key?;
    Some(Secret::new(key.into_owned()))
}

fn checked_address(text: &str) -> Result<RegisteredAddress, Unusable> {
    // Behind `!` a key line would count as removed.
    if text.len() > MAX_ADDRESS_LEN || text.starts_with('!') {
        return Err(Unusable::Address);
    }
    RegisteredAddress::parse(text).map_err(|_| Unusable::Address)
}

/// What readers of key lines keep of a field, agents among them: what is registered is what counts. ASCII only.
fn kept(field: &str) -> &str {
    field.get(..MAX_FIELD_LEN).unwrap_or(field)
}

fn tamed(message: &str) -> String {
    let letters = message.chars().take(MAX_MESSAGE_LEN);
    letters
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

#[cfg(test)]
mod tests;

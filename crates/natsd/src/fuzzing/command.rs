//! For the fuzzer: requests over NATS, as anybody may send them and as the holder of a key may.

use std::time::{Duration, Instant};

use muster_config::{Control, ControlKey, ControlRole, Nats};
use muster_proto::command::Unsigned;
use nkeys::KeyPair;

use crate::{
    command::gate::{Gate, Incoming, Now},
    signature::text,
};

const START_MS: u64 = 1_795_243_200_000;
/// One key for all runs, so that an input means the same in each.
const SEED: &[u8; 32] = b"the key of the fuzzer and nobody";

/// Judges a request made of the input. Lines: subject, inbox, nonce, time; then the body. The first byte says whether it
/// is signed, and whether something is changed behind the signature. Whether it was granted.
///
/// # Panics
/// Something was granted that must not be, or twice.
pub fn command(input: &[u8]) -> bool {
    let (how, rest) = input.split_first().unwrap_or((&0, &[]));
    let mut parts = rest.splitn(5, |byte| *byte == b'\n');
    let mut line = || String::from_utf8_lossy(parts.next().unwrap_or(&[])).into_owned();
    let (subject, inbox, nonce, time) = (line(), line(), line(), line());
    let body = parts.next().unwrap_or(&[]).to_vec();
    let key = KeyPair::new_from_raw(nkeys::KeyPairType::User, *SEED).expect("a seed");
    let unsigned = Unsigned {
        subject: subject.clone(),
        message_id: nonce,
        time_ms: time.parse().unwrap_or(START_MS + 20_000),
        body,
    };
    let mut headers = if how & 1 == 0 {
        Vec::new()
    } else {
        unsigned.sign(&key.public_key(), |bytes| text(&key.sign(bytes).expect("signs")))
    };
    let changed = how & 2 != 0;
    if let Some((_, value)) = headers.get_mut(usize::from(how >> 4)).filter(|_| changed) {
        value.push('0');
    }
    let nats = Nats {
        control: Control {
            enabled: true,
            destroy: how & 4 != 0,
            active_responses: vec!["firewall-drop600".to_owned()],
        },
        control_keys: vec![ControlKey {
            id: "fuzzer".to_owned(),
            roles: vec![ControlRole::Read, ControlRole::Act, ControlRole::Destroy],
            key: key.public_key(),
            ..ControlKey::default()
        }],
        ..Nats::default()
    };
    let now = |ms| Now {
        unix_ms: START_MS + ms,
        instant: Instant::now() + Duration::from_millis(ms),
    };
    let mut gate = Gate::new(&nats, "mgr-a", now(0)).expect("a good key");
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let incoming = Incoming {
        subject: &subject,
        inbox: Some(&inbox).filter(|inbox| !inbox.is_empty()).map(String::as_str),
        headers: &headers,
        body: &unsigned.body,
    };
    let first = gate.judge(&incoming, now(20_000));
    assert!(
        first.verdict.is_err() || (how & 1 == 1 && !(changed && usize::from(how >> 4) < headers.len())),
        "a request was granted without a signature over all of it"
    );
    if first.verdict.is_ok() {
        assert!(first.signer.is_some() && first.heard, "a grant has its signer");
        assert!(gate.judge(&incoming, now(20_001)).verdict.is_err(), "granted twice");
        assert!(
            gate.judge(&incoming, now(60_000)).verdict.is_err(),
            "granted after its expiry"
        );
    }
    first.verdict.is_ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn good_request_passes_through_the_harness() {
        let exp = super::START_MS / 1000 + 30;
        for (how, granted) in [(1_u8, true), (3, false), (0x13, false), (0x83, false), (0, false)] {
            let text = format!(
                "wazuh.xdr.control.mgr-a.agent.001.restart\n_INBOX.x\n0123456789abcdef\n\n{{\"exp\":{exp},\"nonce\":\"0123456789abcdef\"}}"
            );
            let mut input = vec![how];
            input.extend_from_slice(text.as_bytes());
            assert_eq!(super::command(&input), granted, "{how}");
        }
    }
}

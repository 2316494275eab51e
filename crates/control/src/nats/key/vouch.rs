//! What the trust key signs: statements out, signatures in.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use muster_proto::{
    event::{
        header,
        key::{CoSignature, KeyRecord, KeyStatus},
    },
    ipc::control::SigningKey,
};
use muster_service::exit::DONE;
use nkeys::KeyPair;

use super::Sign;
use crate::{
    nats::request::read_seed,
    output::{self, say, tame},
};

/// The most that is read of statements: natsd knows ten keys.
const MAX_INPUT_LEN: u64 = 64 * 1024;

/// What the trust key has not signed and should, a line each.
pub(super) fn statements(keys: &[SigningKey], trust_key: Option<&str>) -> anyhow::Result<Vec<String>> {
    ensure!(
        trust_key.is_some(),
        "etc/ossec.conf has no <trust_key>; `muster-control nats key trust FILE` makes one, on another machine"
    );
    let mut lines = Vec::new();
    for SigningKey { record, .. } in keys {
        let lacks = match record.status {
            KeyStatus::Active => record.trust.is_none(),
            KeyStatus::Revoked => record.revocation.is_none(),
            KeyStatus::Retired => false,
        };
        if lacks {
            lines.push(serde_json::to_string(record)?);
        }
    }
    if lines.is_empty() {
        say("the trust key has signed everything");
    }
    Ok(lines)
}

/// `nats key sign`
pub(crate) fn sign(arguments: &Sign) -> anyhow::Result<u8> {
    let trust = read_seed(&arguments.trust_seed)?;
    for record in read(arguments.file.as_deref())? {
        let (record, what) = signed(record, &trust)?;
        say(what);
        output::line(serde_json::to_string(&record)?)?;
    }
    Ok(DONE)
}

/// The record with the signature that it lacks, and what was signed.
fn signed(mut record: KeyRecord, trust: &KeyPair) -> anyhow::Result<(KeyRecord, String)> {
    let (kid, node) = (record.kid.clone(), tame(&record.node));
    let key = KeyPair::from_public_key(&kid).ok().filter(|_| kid.starts_with('U'));
    ensure!(
        key.is_some() && record.alg == header::ED25519,
        "{} is no key that could sign events",
        tame(&kid)
    );
    let sign = |text: Option<String>| -> anyhow::Result<CoSignature> {
        let text = text.context("the statement is not whole")?;
        let sig = trust.sign(text.as_bytes()).context("signing")?;
        Ok(CoSignature {
            kid: trust.public_key(),
            sig: URL_SAFE_NO_PAD.encode(sig),
        })
    };
    match record.status {
        KeyStatus::Revoked => {
            let since = output::time(record.compromised_since.unwrap_or(0));
            record.revocation = Some(sign(record.revocation())?);
            Ok((record, format!("{kid} of {node} is not to be believed since {since}")))
        }
        KeyStatus::Active => {
            let from = output::time(record.not_before / 1000);
            record.trust = Some(sign(record.introduction())?);
            Ok((record, format!("{kid} signs for {node}, valid from {from}")))
        }
        KeyStatus::Retired => bail!("{kid} is retired; there is nothing to sign"),
    }
}

/// Statements, a line each, from a file or standard input.
pub(super) fn read(path: Option<&Path>) -> anyhow::Result<Vec<KeyRecord>> {
    let source: Box<dyn Read> = match path {
        Some(path) => Box::new(fs::File::open(path).with_context(|| format!("opening {}", path.display()))?),
        None => Box::new(io::stdin()),
    };
    let mut text = String::new();
    let read = source.take(MAX_INPUT_LEN + 1).read_to_string(&mut text);
    let read = read.context("reading the statements")?;
    ensure!(
        u64::try_from(read).is_ok_and(|read| read <= MAX_INPUT_LEN),
        "the statements are longer than {MAX_INPUT_LEN} bytes"
    );
    let mut records = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let record = serde_json::from_str(line);
        records.push(record.with_context(|| format!("line {} is no statement about a key", number + 1))?);
    }
    ensure!(!records.is_empty(), "there is no statement");
    Ok(records)
}

/// That the trust key of the configuration has signed each of them.
pub(super) fn check(records: &[KeyRecord], trust_key: Option<&str>) -> anyhow::Result<()> {
    let trust_key = trust_key.context("etc/ossec.conf has no <trust_key>")?;
    let trust = KeyPair::from_public_key(trust_key).context("<trust_key> is damaged")?;
    for record in records {
        let by = match record.status {
            KeyStatus::Revoked => record.revocation.as_ref().zip(record.revocation()),
            KeyStatus::Active | KeyStatus::Retired => record.trust.as_ref().zip(record.introduction()),
        };
        let Some((by, text)) = by else {
            bail!(
                "{} is not signed; `muster-control nats key sign` signs it",
                tame(&record.kid)
            );
        };
        let sig = URL_SAFE_NO_PAD.decode(&by.sig).unwrap_or_default();
        ensure!(
            by.kid == trust_key && trust.verify(text.as_bytes(), &sig).is_ok(),
            "the trust key {trust_key} has not signed what is said of {}",
            tame(&record.kid)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(status: KeyStatus) -> KeyRecord {
        KeyRecord {
            kid: KeyPair::new_user().public_key(),
            node: "n".to_owned(),
            alg: "ed25519".to_owned(),
            not_before: 1,
            not_after: None,
            status,
            prev_kid: None,
            epoch_from: 1,
            revoked_at: (status == KeyStatus::Revoked).then_some(7),
            compromised_since: (status == KeyStatus::Revoked).then_some(5),
            prev_sig: None,
            trust: None,
            revocation: None,
        }
    }

    #[test]
    fn what_is_signed_passes_and_nothing_else() {
        let trust = KeyPair::new_user();
        let public = trust.public_key();
        for status in [KeyStatus::Active, KeyStatus::Revoked] {
            let bare = record(status);
            let (good, _) = signed(bare.clone(), &trust).expect("signs");
            check(std::slice::from_ref(&good), Some(&public)).expect("is signed");
            let (other, _) = signed(bare.clone(), &KeyPair::new_user()).expect("signs");
            let mut changed = good.clone();
            changed.node = "m".to_owned();
            for bad in [bare, other, changed] {
                assert!(check(&[good.clone(), bad], Some(&public)).is_err());
            }
            assert!(check(&[good], None).is_err());
        }
    }

    #[test]
    fn only_keys_that_sign_events_are_vouched_for() {
        let trust = KeyPair::new_user();
        let mut account = record(KeyStatus::Active);
        account.kid = KeyPair::new_account().public_key();
        let mut algorithm = record(KeyStatus::Active);
        algorithm.alg = "none".to_owned();
        let mut node = record(KeyStatus::Active);
        node.node = "a\nb".to_owned();
        for bad in [account, algorithm, node, record(KeyStatus::Retired)] {
            assert!(signed(bad, &trust).is_err());
        }
    }

    #[test]
    fn statements_are_what_lacks_a_signature() {
        let trust = KeyPair::new_user();
        let key = |record| SigningKey {
            record,
            in_force: false,
            signs_from: None,
        };
        let (done, _) = signed(record(KeyStatus::Active), &trust).expect("signs");
        let keys = [
            key(record(KeyStatus::Active)),
            key(record(KeyStatus::Retired)),
            key(record(KeyStatus::Revoked)),
            key(done),
        ];
        assert_eq!(statements(&keys, Some("U")).expect("has a trust key").len(), 2);
        assert!(statements(&keys, None).is_err());
    }
}

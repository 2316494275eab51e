//! What must not go into a store that many may read: by name, and whatever the name, by what is in it. Pure.

/// Files of the manager that are nothing but secrets.
const NAMES: [&str; 5] = [
    "client.keys",
    "authd.pass",
    "sslmanager.key",
    "signing.nk",
    "local_internal_options.conf",
];
/// How such files end.
const ENDINGS: [&str; 6] = [".key", ".nk", ".creds", ".pass", ".p12", ".pfx"];
/// What stands in a file of keys, in the order of how telling it is.
const WORDS: [(&str, &str); 4] = [
    ("PRIVATE KEY-----", "it has a private key"),
    ("BEGIN USER NKEY SEED", "it has the seed of an nkey"),
    ("BEGIN NATS USER JWT", "it has NATS credentials"),
    ("<password>", "it has a password"),
];
/// How long the seed of an nkey is as text.
const SEED_LEN: usize = 58;
/// Agents' keys have as many hexadecimal digits, or more.
const AGENT_KEY_LEN: usize = 32;

/// Why a file is not for others, if it is not.
pub(super) fn found(name: &str, bytes: &[u8]) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    if NAMES.contains(&lower.as_str()) || ENDINGS.iter().any(|ending| lower.ends_with(ending)) {
        return Some("files of that name hold keys or passwords");
    }
    for (word, why) in WORDS {
        if memchr::memmem::find(bytes, word.as_bytes()).is_some() {
            return Some(why);
        }
    }
    bytes.split(|byte| *byte == b'\n').find_map(line)
}

fn line(line: &[u8]) -> Option<&'static str> {
    let text = str::from_utf8(line).ok()?;
    if text.split_ascii_whitespace().any(is_seed) {
        return Some("it has the seed of an nkey");
    }
    // As in client.keys: id, name, address, key.
    let mut words = text.split_ascii_whitespace();
    let (id, _, _, key) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let is_id = id.len() >= 3 && id.bytes().all(|byte| byte.is_ascii_digit());
    let is_key = key.len() >= AGENT_KEY_LEN && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_id && is_key && words.next().is_none()).then_some("it has keys of agents")
}

/// `SU…`, `SX…` and so on.
fn is_seed(word: &str) -> bool {
    word.len() == SEED_LEN && nkeys::decode_seed(word).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_passwords_are_found_under_whatever_name() {
        let seed = nkeys::KeyPair::new_user().seed().expect("a seed");
        let agents_key = format!("x\n001 web any {}\n", "0123456789abcdef".repeat(4));
        for text in [
            "-----BEGIN PRIVATE KEY-----\nMC4CAQ\n",
            "-----BEGIN EC PRIVATE KEY-----\n",
            &format!("a line\n{seed}\n"),
            &agents_key,
            "<user>a</user><password>b</password>",
        ] {
            assert!(found("merged.mg", text.as_bytes()).is_some(), "{text}");
        }
        for name in ["client.keys", "authd.pass", "Manager.KEY", "nats.creds", "trust.nk"] {
            assert!(found(name, b"").is_some(), "{name}");
        }
    }

    #[test]
    fn what_groups_and_agents_get_is_no_secret() {
        let text = b"#default\n!100 agent.conf\n<agent_config>\n</agent_config>\n001 a b c\n\xff\xfe\n-----BEGIN CERTIFICATE-----\n";
        assert_eq!(found("merged.mg", text), None);
        assert_eq!(found("agent.wpk", &[0, 159, 146, 150]), None);
    }
}

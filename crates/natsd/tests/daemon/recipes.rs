//! The Python of docs/nats.md, as printed, against a stream.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use muster_natsd::verify::Message;
use nkeys::XKey;
use serde_json::json;

use crate::{
    block_on, json as body_of, producer, provisioned,
    server::Server,
    trusted::{Trusted, sign},
};

/// Runs the page's blocks and then this, with `messages` from `messages.json`.
fn python(folder: &Path, then: &str) -> Output {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/nats.md");
    let page = fs::read_to_string(page).expect("docs/nats.md");
    let blocks: Vec<&str> = page
        .split("```python\n")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .collect();
    assert!(blocks.len() >= 2, "docs/nats.md has fewer recipes");
    let begin = "import json, sys\n";
    let read = "messages = json.load(open('messages.json'))\n";
    fs::write(
        folder.join("recipe.py"),
        format!("{begin}{}{read}{then}", blocks.join("\n")),
    )
    .expect("writes");
    // Debian's own Python, whose modules `cargo xtask tools` unpacks.
    let tools = Path::new(env!("CARGO_BIN_EXE_muster-natsd")).ancestors().nth(2);
    let tools = tools.expect("target").join("tools/usr");
    let program = Path::new("/usr/bin/python3");
    let program = if program.exists() {
        program.to_owned()
    } else {
        tools.join("bin/python3")
    };
    Command::new(program)
        .arg("recipe.py")
        .current_dir(folder)
        .env("PYTHONPATH", tools.join("lib/python3/dist-packages"))
        .env(
            "LD_LIBRARY_PATH",
            tools.join(format!("lib/{}-linux-gnu", std::env::consts::ARCH)),
        )
        .output()
        .expect("runs python3")
}

/// What a consumer has in hand: headers as a dictionary, the body in hex.
fn write(folder: &Path, messages: &[Message]) {
    let hex = |body: &[u8]| body.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let messages: Vec<_> = messages
        .iter()
        .map(|message| {
            let headers: serde_json::Map<_, _> = message
                .headers
                .iter()
                .map(|(name, value)| (name.clone(), json!(value)))
                .collect();
            json!({"headers": headers, "body": hex(&message.body)})
        })
        .collect();
    fs::write(folder.join("messages.json"), json!(messages).to_string()).expect("writes");
}

const CHECK_ALL: &str = "
for message in messages:
    headers, body = message['headers'], bytes.fromhex(message['body'])
    check(headers, body)
    for name in ['Muster-Subject', 'Nats-Msg-Id', 'Muster-Time', 'Muster-Prev', 'Content-Type']:
        try:
            check(dict(headers, **{name: headers[name] + '0'}), body)
        except Exception:
            continue
        sys.exit(name + ' is not signed')
    try:
        check(headers, body + b' ')
        sys.exit('the body is not signed')
    except Exception:
        pass
    print(unseal(headers, body, SEED, ID).decode())
";

#[test]
fn python_recipes_check_signatures_and_open_seals_for_one_and_for_several() {
    let server = Server::start();
    let (one, other) = (XKey::new(), XKey::new());
    let recipient = |id: &str, key: &XKey| format!("<recipient id=\"{id}\">{}</recipient>", key.public_key());
    for recipients in [
        String::new(),
        recipient("xdr-1", &one),
        recipient("soc", &other) + &recipient("xdr-1", &one),
    ] {
        let home = provisioned(&server, &format!("<message_signing>yes</message_signing>{recipients}"));
        let natsd = home.start();
        let mut producer = producer(&home);
        let events = [producer::change(1, 0), producer::enrollment(2)];
        let mut expected: Vec<String> = events
            .iter()
            .map(|event| String::from_utf8(event.body.clone()).expect("UTF-8"))
            .collect();
        // Only one agent's events have an order.
        expected.sort();
        events.into_iter().for_each(|event| producer.put(event));
        block_on(producer.hand_over_all());
        home.wait_until_all_is_published();
        let messages = block_on(async { Server::messages(&server.client().await, "MUSTER_STATE").await });
        let folder = tempfile::tempdir().expect("directory");
        write(folder.path(), &messages[messages.len() - 2..]);
        let seed = one.seed().expect("a seed");
        let output = python(folder.path(), &format!("SEED, ID = '{seed}', 'xdr-1'\n{CHECK_ALL}"));
        assert!(
            output.status.success(),
            "{} (python3-nacl: cargo xtask tools)",
            String::from_utf8_lossy(&output.stderr)
        );
        let opened = String::from_utf8(output.stdout).expect("UTF-8");
        let mut opened: Vec<_> = opened.lines().collect();
        opened.sort_unstable();
        assert_eq!(opened, expected);
        natsd.stop();
    }
}

/// What a consumer has of a key in the bucket, and the trust key.
fn announced_key() -> (Trusted, serde_json::Value) {
    let site = Trusted::start();
    let entries = site.stream("KV_muster_keys");
    let entry = entries.last().expect("an announcement");
    let key = body_of(entry)["key"].take();
    (site, key)
}

const SHELL: &str = r#"
{ printf '\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00'
  printf '%s' "$TRUST" | base32 -d | head -c 33 | tail -c 32; } > trust.der
printf 'MUSTERKEY1\nintroduction\n%s\n%s\n%s\n%s\n%s\n%s\n' \
  "$KID" "$NODE" "$ALG" "$NOT_BEFORE" "${PREV_KID:--}" "$EPOCH_FROM" > introduction.txt
openssl pkeyutl -verify -pubin -keyform DER -inkey trust.der -rawin -in introduction.txt -sigfile trust.sig
"#;

#[test]
fn shell_recipe_checks_that_the_trust_key_vouches_for_a_key() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/nats.md");
    let page = fs::read_to_string(page).expect("docs/nats.md");
    assert!(page.contains(SHELL.trim()), "docs/nats.md has another recipe");
    let (site, key) = announced_key();
    let folder = tempfile::tempdir().expect("directory");
    let text = |name: &str| match &key[name] {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    };
    let signature = key["trust"]["sig"].as_str().expect("co-signed");
    let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
    fs::write(folder.path().join("trust.sig"), signature).expect("writes");
    let run = |node: &str, trust: &str| {
        Command::new("bash")
            .args(["-c", SHELL])
            .current_dir(folder.path())
            .env("TRUST", trust)
            .env("KID", text("kid"))
            .env("NODE", node)
            .env("ALG", text("alg"))
            .env("NOT_BEFORE", text("not_before"))
            .env("PREV_KID", text("prev_kid"))
            .env("EPOCH_FROM", text("epoch_from"))
            .output()
            .expect("runs bash")
    };
    let trust = site.trust.public_key();
    let output = run("mgr-a", &trust);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("Verified Successfully"),
        "{output:?}"
    );
    assert!(!run("mgr-b", &trust).status.success());
    assert!(!run("mgr-a", &text("kid")).status.success());
}

const VOUCHED: &str = "
keys = messages
assert vouched(keys['good'], TRUST) is None
assert vouched(keys['revoked'], TRUST) == 7
for name in ['changed', 'bare', 'forged', 'unrevoked']:
    try:
        vouched(keys[name], TRUST)
    except Exception:
        continue
    sys.exit(name + ' is believed')
print('checked')
";

#[test]
fn python_recipe_believes_only_keys_that_the_trust_key_vouches_for() {
    let (site, key) = announced_key();
    let folder = tempfile::tempdir().expect("directory");
    let with = |name: &str, value: serde_json::Value| {
        let mut key = key.clone();
        key[name] = value;
        key
    };
    let mut revoked: muster_natsd::keys::KeyRecord = serde_json::from_value(key.clone()).expect("a record");
    revoked.status = muster_natsd::keys::KeyStatus::Revoked;
    (revoked.revoked_at, revoked.compromised_since) = (Some(9), Some(7));
    let unrevoked = json!(revoked);
    revoked.revocation = Some(sign(&site.trust, revoked.revocation()));
    let mut forged = key.clone();
    forged["trust"]["sig"] = json!(sign(&nkeys::KeyPair::new_user(), revoked.introduction()).sig);
    let keys = json!({
        "good": key, "revoked": revoked, "changed": with("epoch_from", json!(99)), "bare": with("trust", json!(null)),
        "forged": forged, "unrevoked": unrevoked,
    });
    fs::write(folder.path().join("messages.json"), keys.to_string()).expect("writes");
    let output = python(
        folder.path(),
        &format!("TRUST = '{}'\n{VOUCHED}", site.trust.public_key()),
    );
    assert!(
        output.status.success(),
        "{} (python3-nacl: cargo xtask tools)",
        String::from_utf8_lossy(&output.stderr)
    );
}

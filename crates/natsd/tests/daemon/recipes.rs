//! The Python of docs/nats.md, as printed, against a stream.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use muster_natsd::verify::Message;
use nkeys::XKey;
use serde_json::json;

use crate::{block_on, producer, provisioned, server::Server};

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

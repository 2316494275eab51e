//! Signatures, seals, keys and the audit trail, as a consumer sees them.

use std::{fs, process::Command};

use muster_natsd::{seal, verify::Message};
use muster_proto::ipc::control::{Request, Response};
use nkeys::{KeyPair, XKey};

use crate::{accepted, block_on, json, producer, provisioned, server::Server, verifier, wait_for};

fn stream(server: &Server, name: &str) -> Vec<Message> {
    block_on(async { Server::messages(&server.client().await, name).await })
}

/// The recipe of the documentation, word for word.
const RECIPE: &str = r#"
{ printf '\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00'
  printf '%s' "$KEY" | base32 -d | head -c 33 | tail -c 32; } > pub.der
{ printf 'MUSTER1\n%s\n%s\n%s\n%s\n%s\n%s\n%s\n\n' "$SUBJECT" "$MSGID" "$KEY" "$TIME" "$PREV" "$CTYPE" "${ENC:--}"
  cat body.bin; } > base.bin
openssl pkeyutl -verify -pubin -keyform DER -inkey pub.der -rawin -in base.bin -sigfile sig.bin
"#;

#[test]
fn the_shell_recipe_verifies_a_published_event_and_no_changed_one() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let documents = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/nats.md");
    let page = fs::read_to_string(documents).expect("docs/nats.md");
    assert!(page.contains(RECIPE.trim()), "docs/nats.md has another recipe");
    let server = Server::start();
    let home = provisioned(&server, "<message_signing>yes</message_signing>");
    let _natsd = home.start();
    let mut producer = producer(&home);
    producer.put(producer::change(1, 0));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    let message = stream(&server, "MUSTER_STATE").remove(0);
    let folder = tempfile::tempdir().expect("directory");
    let header = |name: &str| message.header(name).unwrap_or_default().to_owned();
    let run = |body: &[u8]| {
        fs::write(folder.path().join("body.bin"), body).expect("writes");
        let signature = URL_SAFE_NO_PAD.decode(header("Muster-Sig")).expect("base64");
        fs::write(folder.path().join("sig.bin"), signature).expect("writes");
        Command::new("bash")
            .args(["-c", RECIPE])
            .current_dir(folder.path())
            .env("KEY", header("Muster-Kid"))
            .env("SUBJECT", header("Muster-Subject"))
            .env("MSGID", header("Nats-Msg-Id"))
            .env("TIME", header("Muster-Time"))
            .env("PREV", header("Muster-Prev"))
            .env("CTYPE", header("Content-Type"))
            .output()
            .expect("runs bash")
    };
    let output = run(&message.body);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("Verified Successfully"),
        "{output:?}"
    );
    assert!(!run(b"{}").status.success());
}

#[test]
fn sealed_bodies_open_for_each_recipient_and_verify_for_everybody() {
    let (one, other) = (XKey::new(), XKey::new());
    let server = Server::start();
    let home = provisioned(
        &server,
        &format!(
            "<message_signing>yes</message_signing><recipient id=\"xdr\">{}</recipient><recipient id=\"soc\">{}</recipient>",
            one.public_key(),
            other.public_key()
        ),
    );
    let _natsd = home.start();
    let mut producer = producer(&home);
    let event = producer::change(1, 0);
    let clear = event.body.clone();
    producer.put(event);
    producer.put(producer::keepalive(1));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    let state = stream(&server, "MUSTER_STATE");
    assert_eq!(
        accepted(&mut verifier(&home), &state).len(),
        1,
        "without any key to open it"
    );
    let sealed = &state[0];
    assert_eq!(sealed.header("Content-Type"), Some("application/x-nats-xkv1"));
    for recipient in [&one, &other] {
        let header = sealed.header("Muster-Enc").expect("sealed");
        assert_eq!(seal::open(recipient, header, &sealed.body).as_deref(), Some(&clear[..]));
    }
    let keepalives = stream(&server, "MUSTER_KEEPALIVE");
    assert!(
        keepalives
            .iter()
            .any(|message| message.subject.ends_with("keepalive.001") && json(message).is_object())
    );
}

#[test]
fn a_new_key_is_announced_by_the_old_one_and_a_revoked_one_signs_no_more() {
    let server = Server::start();
    let home = provisioned(
        &server,
        "<message_signing>yes</message_signing><audit_logging>yes</audit_logging>",
    );
    let _natsd = home.start();
    let file = home.path("etc/nats/signing.nk");
    let first = fs::read_to_string(&file).expect("reads");
    let mut verifier = verifier(&home);
    let next = KeyPair::new_user();
    let first_kid = KeyPair::from_seed(first.trim()).expect("a seed").public_key();
    let revoked = format!(
        "{first}{}\nrevoked {first_kid} {}\n",
        next.seed().expect("a seed"),
        4_000_000_000_u64
    );
    fs::write(&file, format!("{first}{}\n", next.seed().expect("a seed"))).expect("writes");
    let reload = || {
        block_on(async {
            let mut control = home.control().await.expect("connects");
            control.ask(&Request::Reload).await.expect("answers")
        })
    };
    assert!(matches!(reload(), Response::Done(text) if text.contains("1 announcements")));
    fs::write(&file, revoked).expect("writes");
    assert!(matches!(reload(), Response::Done(_)));
    let mut producer = producer(&home);
    producer.put(producer::enrollment(1));
    block_on(producer.hand_over_all());
    home.wait_until_all_is_published();
    let state = stream(&server, "MUSTER_STATE");
    assert_eq!(state[0].header("Muster-Kid"), Some(next.public_key().as_str()));
    accepted(&mut verifier, &stream(&server, "MUSTER_AUDIT"));
    accepted(&mut verifier, &state);
    let (lines, _) = muster_natsd::audit::check(&home.path("logs/natsd-audit.json")).expect("the chain holds");
    assert!(lines >= 4, "started, connected, two keys, an enrollment: {lines}");
}

#[test]
fn options_of_trust_that_cannot_be_kept_keep_the_daemon_from_starting() {
    let server = Server::start();
    let home = crate::natsd::Home::new(&format!(
        "<server_url>{}</server_url><control enabled=\"yes\"/>",
        server.url()
    ));
    let output = home.run(&["--foreground"]);
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("control"),
        "{output:?}"
    );
}

#[test]
fn encryption_without_recipients_never_falls_back_to_plaintext() {
    let server = Server::start();
    let home = crate::natsd::Home::new(&format!(
        "<server_url>{}</server_url><encrypt_messages>yes</encrypt_messages><reconnect_delay>1</reconnect_delay>",
        server.url()
    ));
    let _natsd = home.start();
    let mut producer = producer(&home);
    producer.put(producer::change(1, 0));
    block_on(producer.hand_over_all());
    wait_for("the attempt fails", || {
        home.facts().get("nats").is_some_and(|link| link == "disconnected")
            && !home.log().is_empty()
            && home.log().contains("cannot connect to NATS")
    });
    assert_ne!(home.facts()["waiting_events"], "0");
}

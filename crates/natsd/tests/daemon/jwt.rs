//! The operator mode of nats-server: accounts and users are tokens, signed by whoever is above them.

use std::{
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::{Value, json};

/// A token as nats-server's operator mode wants it.
pub(crate) fn token(issuer: &KeyPair, subject: &KeyPair, expires: Option<u64>, nats: &Value) -> String {
    let mut claims = json!({
        "jti": subject.public_key(), "iat": 1, "iss": issuer.public_key(), "sub": subject.public_key(), "name": "x", "nats": nats,
    });
    if let Some(expires) = expires {
        claims["exp"] = expires.into();
    }
    let head = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = issuer.sign(signed.as_bytes()).expect("signs");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// An operator with an account that may keep streams, and the system's.
pub(crate) struct Site {
    pub(crate) operator: KeyPair,
    pub(crate) account: KeyPair,
    pub(crate) system: KeyPair,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self {
            operator: KeyPair::new_operator(),
            account: KeyPair::new_account(),
            system: KeyPair::new_account(),
        }
    }

    /// What the server's configuration says of it.
    pub(crate) fn config(&self) -> String {
        let no_storage = json!({
            "subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1, "wildcards": true,
        });
        let mut limits = no_storage.clone();
        for storage in ["mem_storage", "disk_storage", "streams", "consumer"] {
            limits[storage] = Value::from(-1);
        }
        let of_account = |key: &KeyPair, limits: Value| {
            let claims = json!({"type": "account", "version": 2, "limits": limits});
            token(&self.operator, key, None, &claims)
        };
        format!(
            "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}\n",
            token(
                &self.operator,
                &self.operator,
                None,
                &json!({"type": "operator", "version": 2})
            ),
            self.system.public_key(),
            self.account.public_key(),
            of_account(&self.account, limits),
            self.system.public_key(),
            of_account(&self.system, no_storage),
        )
    }

    /// A user of the account, for so many seconds.
    pub(crate) fn write_credentials(&self, path: &Path, lifetime: u64) {
        fs::write(path, credentials(&self.account, lifetime)).expect("writes");
    }
}

/// A new user of an account, who may do everything there for so many seconds: what is in a credentials file.
pub(crate) fn credentials(account: &KeyPair, lifetime: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let user = KeyPair::new_user();
    let unlimited = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
    let jwt = token(account, &user, Some(now + lifetime), &unlimited);
    let seed = user.seed().expect("a seed");
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

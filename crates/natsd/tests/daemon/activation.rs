//! Operator mode: orders are a private export, and only an account with a token that the managers' has signed for it gets
//! through.

use async_nats::{Client, ConnectOptions, RequestErrorKind};
use muster_proto::command::Reply;
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::{
    block_on,
    jwt::{credentials, token},
    natsd::{Home, Natsd},
    requests::{pass_guard, request},
    server::Server,
    wait_for,
};

const PREFIX: &str = "wazuh.xdr.control";
const RESTART: &str = "wazuh.xdr.control.mgr-a.agent.001.restart";
const STATUS: &str = "wazuh.xdr.control.mgr-a.agent.001.status";

/// What the managers let others reach: reading is for everybody, orders only for who has a token.
fn exports() -> Value {
    json!([
        {"name": "read", "subject": format!("{PREFIX}.*.agent.*.status"), "type": "service", "response_type": "Singleton"},
        {
            "name": "restart", "subject": format!("{PREFIX}.*.agent.*.restart"), "type": "service",
            "response_type": "Singleton", "token_req": true,
        },
    ])
}

/// What an account asks for of the managers.
fn imports(managers: &KeyPair, activation: Option<String>) -> Value {
    let of = |name: &str, verb: &str| {
        let subject = format!("{PREFIX}.*.agent.*.{verb}");
        json!({"name": name, "subject": subject, "account": managers.public_key(), "type": "service"})
    };
    let mut restart = of("restart", "restart");
    if let Some(activation) = activation {
        restart["token"] = activation.into();
    }
    json!([of("read", "status"), restart])
}

/// The managers' word that an account may give orders to restart.
fn activation(managers: &KeyPair, account: &KeyPair) -> String {
    let subject = format!("{PREFIX}.*.agent.*.restart");
    let claims = json!({"type": "activation", "version": 2, "subject": subject, "kind": "service"});
    token(managers, account, None, &claims)
}

/// An operator with the managers, who may give orders (SOC), and somebody who only would like to.
struct Federation {
    // The first to go.
    _natsd: Natsd,
    _home: Home,
    server: Server,
    soc: KeyPair,
    stranger: KeyPair,
    thief: KeyPair,
    actor: KeyPair,
}

impl Federation {
    fn start() -> Self {
        let operator = KeyPair::new_operator();
        let [managers, soc, stranger, thief, system] = [(); 5].map(|()| KeyPair::new_account());
        let account = |key: &KeyPair, exports: Value, imports: Value, stores: bool| {
            let mut limits = json!({
                "subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1, "wildcards": true,
            });
            for storage in ["mem_storage", "disk_storage", "streams", "consumer"] {
                if stores {
                    limits[storage] = Value::from(-1);
                }
            }
            let claims =
                json!({"type": "account", "version": 2, "limits": limits, "exports": exports, "imports": imports});
            format!("{}: {}", key.public_key(), token(&operator, key, None, &claims))
        };
        let accounts = [
            account(&managers, exports(), json!([]), true),
            account(
                &soc,
                json!([]),
                imports(&managers, Some(activation(&managers, &soc))),
                false,
            ),
            account(&stranger, json!([]), imports(&managers, None), false),
            account(
                &thief,
                json!([]),
                imports(&managers, Some(activation(&managers, &soc))),
                false,
            ),
            account(&system, json!([]), json!([]), false),
        ];
        let server = Server::with_config(|store, port| {
            format!(
                "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\", max_file_store: 10GB }}\n\
                 operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {} }}\n",
                store.display(),
                token(&operator, &operator, None, &json!({"type": "operator", "version": 2})),
                system.public_key(),
                accounts.join(", "),
            )
        });
        let (actor, login) = (KeyPair::new_user(), server.directory.path().join("manager.creds"));
        std::fs::write(&login, credentials(&managers, 3600)).expect("writes");
        let home = Home::new(&format!(
            "<server_url>{}</server_url><node_name>mgr-a</node_name><credentials_file>{}</credentials_file>\
             <message_signing>yes</message_signing><audit_logging>yes</audit_logging><control enabled=\"yes\"/>\
             <control_key id=\"actor\" roles=\"read,act\">{}</control_key>",
            server.url(),
            login.display(),
            actor.public_key()
        ));
        let natsd = home.start();
        wait_for("requests are heard", || {
            home.facts()
                .get("control")
                .is_some_and(|control| control == "listening")
        });
        pass_guard();
        Self {
            _natsd: natsd,
            _home: home,
            server,
            soc,
            stranger,
            thief,
            actor,
        }
    }

    async fn client(&self, account: &KeyPair) -> Client {
        let options = ConnectOptions::with_credentials(&credentials(account, 600)).expect("credentials");
        self.server.client_with(options).await
    }

    async fn ask(&self, client: &Client, subject: &'static str, nonce: &str) -> Result<Reply, RequestErrorKind> {
        let (headers, body) = request(&self.actor, subject, nonce, 20);
        let answer = client.request_with_headers(subject, headers, body.into()).await;
        let answer = answer.map_err(|error| error.kind())?;
        let body: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        Ok(serde_json::from_value(body["reply"].clone()).expect("a reply"))
    }
}

#[test]
fn orders_need_a_token_that_the_managers_account_has_signed_for_the_one_that_gives_them() {
    let federation = Federation::start();
    block_on(async {
        let soc = federation.client(&federation.soc).await;
        let stranger = federation.client(&federation.stranger).await;
        for (client, nonce) in [(&soc, "nonce-read-of-the-soc"), (&stranger, "nonce-read-of-others")] {
            let reply = federation.ask(client, STATUS, nonce).await.expect("everybody may read");
            assert_eq!(
                (reply.nonce.as_str(), reply.text.as_str()),
                (nonce, "remoted does not run")
            );
        }
        let reply = federation.ask(&soc, RESTART, "nonce-with-activation").await;
        assert_eq!(reply.expect("it may give orders").text, "remoted does not run");
        // The same key, and no way through.
        let refused = federation.ask(&stranger, RESTART, "nonce-without-activation").await;
        assert_eq!(refused.map(|reply| reply.text), Err(RequestErrorKind::NoResponders));
        // A token that was made out to somebody else spoils the account that shows it.
        let login = ConnectOptions::with_credentials(&credentials(&federation.thief, 600)).expect("credentials");
        assert!(login.connect(federation.server.url()).await.is_err());
    });
}

//! `getconfig auth`: the configuration as stock programs ask for it. Order and form of the members are the stock ones.

use std::path::Path;

use muster_config::{Auth, KeyRequest};
use serde::Serialize;

#[derive(Serialize)]
struct Document<'a> {
    auth: Block<'a>,
}

#[derive(Serialize)]
struct Block<'a> {
    port: u16,
    disabled: &'static str,
    remote_enrollment: &'static str,
    ipv6: &'static str,
    use_source_ip: &'static str,
    purge: &'static str,
    use_password: &'static str,
    ssl_verify_host: &'static str,
    ssl_auto_negotiate: &'static str,
    ciphers: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ssl_agent_ca: Option<&'a Path>,
    ssl_manager_cert: &'a Path,
    ssl_manager_key: &'a Path,
    key_request: KeyRequestBlock<'a>,
    force: Force,
    agents: Agents,
}

#[derive(Default, Serialize)]
struct KeyRequestBlock<'a> {
    enabled: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exec_path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_size: Option<u32>,
}

#[derive(Serialize)]
struct Force {
    enabled: &'static str,
    key_mismatch: &'static str,
    disconnected_time: DisconnectedTime,
    after_registration_time: u64,
}

#[derive(Serialize)]
struct DisconnectedTime {
    enabled: &'static str,
    value: u64,
}

#[derive(Serialize)]
struct Agents {
    allow_higher_versions: &'static str,
}

/// The whole answer.
pub fn text(auth: &Auth, key_request: Option<&KeyRequest>) -> String {
    let document = Document {
        auth: Block {
            port: auth.port,
            disabled: yes(auth.disabled),
            remote_enrollment: yes(auth.remote_enrollment),
            ipv6: yes(auth.ipv6),
            use_source_ip: yes(auth.use_source_ip),
            purge: yes(auth.purge),
            use_password: yes(auth.use_password),
            ssl_verify_host: yes(auth.ssl_verify_host),
            ssl_auto_negotiate: yes(auth.ssl_auto_negotiate),
            ciphers: &auth.ciphers,
            ssl_agent_ca: auth.ssl_agent_ca.as_deref(),
            ssl_manager_cert: &auth.ssl_manager_cert,
            ssl_manager_key: &auth.ssl_manager_key,
            key_request: key_request_block(key_request),
            force: Force {
                enabled: yes(auth.force.enabled),
                key_mismatch: yes(auth.force.key_mismatch),
                disconnected_time: DisconnectedTime {
                    enabled: yes(auth.force.disconnected_time.is_some()),
                    value: auth.force.disconnected_time.unwrap_or_default().as_secs(),
                },
                after_registration_time: auth.force.after_registration_time.as_secs(),
            },
            agents: Agents {
                allow_higher_versions: yes(auth.allow_higher_versions),
            },
        },
    };
    format!("ok {}", serde_json::to_string(&document).unwrap_or_default())
}

fn key_request_block(key_request: Option<&KeyRequest>) -> KeyRequestBlock<'_> {
    let Some(block) = key_request else {
        return KeyRequestBlock {
            enabled: "no",
            ..KeyRequestBlock::default()
        };
    };
    KeyRequestBlock {
        enabled: yes(block.enabled),
        exec_path: block.exec_path.as_deref(),
        socket: block.socket.as_deref(),
        timeout: Some(block.timeout.as_secs()),
        threads: Some(block.threads),
        queue_size: Some(block.queue_size),
    }
}

fn yes(truth: bool) -> &'static str {
    if truth { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_answered_as_the_stock_daemon_was_seen_to() {
        let auth = Auth {
            port: 16_515,
            disabled: false,
            ..Auth::default()
        };
        assert_eq!(
            text(&auth, None),
            r#"ok {"auth":{"port":16515,"disabled":"no","remote_enrollment":"yes","ipv6":"no","use_source_ip":"no","purge":"no","use_password":"no","ssl_verify_host":"no","ssl_auto_negotiate":"no","ciphers":"HIGH:!ADH:!EXP:!MD5:!RC4:!3DES:!CAMELLIA:@STRENGTH","ssl_manager_cert":"etc/sslmanager.cert","ssl_manager_key":"etc/sslmanager.key","key_request":{"enabled":"no"},"force":{"enabled":"yes","key_mismatch":"yes","disconnected_time":{"enabled":"yes","value":3600},"after_registration_time":3600},"agents":{"allow_higher_versions":"no"}}}"#
        );
    }

    #[test]
    fn a_key_request_block_shows_what_it_has() {
        let block = KeyRequest {
            socket: Some("queue/sockets/keys".into()),
            timeout: std::time::Duration::from_secs(2),
            threads: 1,
            queue_size: 1024,
            ..KeyRequest::default()
        };
        assert!(text(&Auth::default(), Some(&block)).contains(
            r#""key_request":{"enabled":"yes","socket":"queue/sockets/keys","timeout":2,"threads":1,"queue_size":1024}"#
        ));
    }
}

//! `getconfig`: the configuration as stock programs ask for it. Names, order and form of the members are the stock
//! ones; numbers of `<remote>` are texts there and numbers here are numbers.

use std::time::Duration;

use muster_config::{Connection, RemotedInternal, Settings};
use serde::Serialize;

/// `"remote"`
#[derive(Serialize)]
pub struct Remotes {
    remote: Vec<Remote>,
}

#[derive(Serialize)]
struct Remote {
    connection: Connection,
    ipv6: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_ip: Option<String>,
    protocol: Vec<&'static str>,
    port: String,
    #[serde(flatten)]
    secure: Option<Secure>,
    #[serde(rename = "allowed-ips", skip_serializing_if = "Vec::is_empty")]
    allowed_ips: Vec<String>,
    #[serde(rename = "denied-ips", skip_serializing_if = "Vec::is_empty")]
    denied_ips: Vec<String>,
}

#[derive(Serialize)]
struct Secure {
    queue_size: String,
    agents: Agents,
    connection_overtake_time: u64,
}

#[derive(Serialize)]
struct Agents {
    allow_higher_versions: &'static str,
}

/// All `<remote>` blocks.
pub fn remotes(settings: &Settings) -> Remotes {
    let remotes = settings.remotes.iter().map(|remote| {
        let protocols = [(remote.protocols.tcp, "TCP"), (remote.protocols.udp, "UDP")];
        Remote {
            connection: remote.connection,
            ipv6: yes(remote.ipv6),
            local_ip: remote.local_ip.map(|ip| ip.to_string()),
            protocol: protocols
                .into_iter()
                .filter(|(on, _)| *on)
                .map(|(_, name)| name)
                .collect(),
            port: remote.port.to_string(),
            secure: (remote.connection == Connection::Secure).then(|| Secure {
                queue_size: remote.queue_size.to_string(),
                agents: Agents {
                    allow_higher_versions: yes(remote.allow_higher_versions),
                },
                connection_overtake_time: remote.connection_overtake_time.as_secs(),
            }),
            allowed_ips: remote.allowed_ips.iter().map(ToString::to_string).collect(),
            denied_ips: remote.denied_ips.iter().map(ToString::to_string).collect(),
        }
    });
    Remotes {
        remote: remotes.collect(),
    }
}

/// `"global"`
#[derive(Serialize)]
pub struct Global {
    global: OfRemoted<Times>,
}

#[derive(Serialize)]
struct OfRemoted<T> {
    remoted: T,
}

#[derive(Serialize)]
struct Times {
    agents_disconnection_alert_time: u64,
    agents_disconnection_time: u64,
}

/// What of `<global>` concerns agents.
pub fn global(alert_time: Duration, disconnection_time: Duration) -> Global {
    Global {
        global: OfRemoted {
            remoted: Times {
                agents_disconnection_alert_time: alert_time.as_secs(),
                agents_disconnection_time: disconnection_time.as_secs(),
            },
        },
    }
}

/// `"internal"`
#[derive(Serialize)]
pub struct Internal {
    internal: OfRemoted<Options>,
}

#[derive(Serialize)]
struct Options {
    recv_counter_flush: u32,
    comp_average_printout: u32,
    verify_msg_id: u8,
    recv_timeout: u64,
    pass_empty_keyfile: u8,
    sender_pool: u32,
    request_pool: u32,
    request_rto_sec: u32,
    request_rto_msec: u32,
    max_attempts: u32,
    request_timeout: u64,
    response_timeout: u64,
    shared_reload: u64,
    disk_storage: u8,
    rlimit_nofile: u64,
    merge_shared: u8,
    guess_agent_group: u8,
    receive_chunk: usize,
    send_chunk: usize,
    buffer_relax: u32,
    send_buffer_size: usize,
    send_timeout_to_retry: u64,
    tcp_keepidle: u64,
    tcp_keepintvl: u64,
    tcp_keepcnt: u32,
    debug: u8,
    worker_pool: u32,
    control_msg_queue_size: u32,
    keyupdate_interval: u64,
    router_forwarding_disabled: u8,
    state_interval: u64,
}

/// `remoted.*` of the internal options; `debug` is how talkative we are in fact.
pub fn internal(settings: &Settings, debug: u8) -> Internal {
    let options: &RemotedInternal = &settings.internal.remoted;
    Internal {
        internal: OfRemoted {
            remoted: Options {
                recv_counter_flush: options.recv_counter_flush,
                comp_average_printout: options.comp_average_printout,
                verify_msg_id: options.verify_msg_id.unwrap_or(false).into(),
                recv_timeout: options.recv_timeout.as_secs(),
                pass_empty_keyfile: options.pass_empty_keyfile.into(),
                sender_pool: options.sender_pool,
                request_pool: options.request_pool,
                request_rto_sec: options.request_rto_sec,
                request_rto_msec: options.request_rto_msec,
                max_attempts: options.max_attempts,
                request_timeout: options.request_timeout.as_secs(),
                response_timeout: options.response_timeout.as_secs(),
                shared_reload: options.shared_reload.as_secs(),
                disk_storage: options.disk_storage.into(),
                rlimit_nofile: options.rlimit_nofile,
                merge_shared: options.merge_shared.into(),
                guess_agent_group: options.guess_agent_group.into(),
                receive_chunk: options.receive_chunk,
                send_chunk: options.send_chunk,
                buffer_relax: options.buffer_relax,
                send_buffer_size: options.send_buffer_size,
                send_timeout_to_retry: options.send_timeout_to_retry.as_secs(),
                tcp_keepidle: options.tcp_keepidle.as_secs(),
                tcp_keepintvl: options.tcp_keepintvl.as_secs(),
                tcp_keepcnt: options.tcp_keepcnt,
                debug,
                worker_pool: options.worker_pool,
                control_msg_queue_size: options.control_msg_queue_size,
                keyupdate_interval: options.keyupdate_interval.as_secs(),
                router_forwarding_disabled: options.router_forwarding_disabled.into(),
                state_interval: options.state_interval.as_secs(),
            },
        },
    }
}

fn yes(truth: bool) -> &'static str {
    if truth { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use muster_config::{Protocols, Remote};

    use super::*;

    fn json(value: &impl Serialize) -> String {
        serde_json::to_string(value).unwrap()
    }

    #[test]
    fn remote_blocks_have_the_recorded_form() {
        let secure = Remote {
            port: 17_514,
            local_ip: Some("127.0.0.1".parse().unwrap()),
            protocols: Protocols { tcp: true, udp: true },
            connection_overtake_time: Duration::from_secs(5),
            ..Remote::default()
        };
        let syslog = Remote {
            connection: Connection::Syslog,
            port: 514,
            allowed_ips: vec!["10.0.0.0/8".parse().unwrap()],
            ..Remote::default()
        };
        let settings = Settings {
            remotes: vec![secure, syslog],
            ..Settings::default()
        };
        assert_eq!(
            json(&remotes(&settings)),
            r#"{"remote":[{"connection":"secure","ipv6":"no","local_ip":"127.0.0.1","protocol":["TCP","UDP"],"port":"17514","queue_size":"131072","agents":{"allow_higher_versions":"no"},"connection_overtake_time":5},{"connection":"syslog","ipv6":"no","protocol":["TCP"],"port":"514","allowed-ips":["10.0.0.0/8"]}]}"#
        );
    }

    #[test]
    fn times_and_internal_options_have_the_recorded_form() {
        assert_eq!(
            json(&global(Duration::ZERO, Duration::from_secs(40))),
            r#"{"global":{"remoted":{"agents_disconnection_alert_time":0,"agents_disconnection_time":40}}}"#
        );
        let mut settings = Settings::default();
        settings.internal.remoted.response_timeout = Duration::from_secs(3);
        settings.internal.remoted.rlimit_nofile = 16_384;
        settings.internal.remoted.keyupdate_interval = Duration::from_secs(2);
        assert_eq!(
            json(&internal(&settings, 2)),
            r#"{"internal":{"remoted":{"recv_counter_flush":128,"comp_average_printout":19999,"verify_msg_id":0,"recv_timeout":1,"pass_empty_keyfile":1,"sender_pool":8,"request_pool":1024,"request_rto_sec":1,"request_rto_msec":0,"max_attempts":4,"request_timeout":10,"response_timeout":3,"shared_reload":10,"disk_storage":0,"rlimit_nofile":16384,"merge_shared":1,"guess_agent_group":0,"receive_chunk":4096,"send_chunk":4096,"buffer_relax":1,"send_buffer_size":131072,"send_timeout_to_retry":1,"tcp_keepidle":30,"tcp_keepintvl":10,"tcp_keepcnt":3,"debug":2,"worker_pool":4,"control_msg_queue_size":16384,"keyupdate_interval":2,"router_forwarding_disabled":0,"state_interval":5}}}"#
        );
    }
}

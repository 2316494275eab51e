//! What `config show` prints is read back to the same settings, whatever they are.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use std::time::Duration;

use muster_config::{
    Agentless, AgentlessHost, Auth, Connection, ControlKey, ControlRole, CryptoAccept, Elevation, Encrypt, EventFormat,
    ExecMode, Family, Force, Input, Inputs, Internal, KeepaliveEvents, KeyConflict, KeyRequest, Kv, Layout, LogFormat,
    ManagerKeepalive, ManagerVersion, Nats, Ownership, Probe, Protocols, PublishMode, Rate, Recipient, Remote, Secret,
    Secrets, Settings, SpoolFsync, WhenFull, differences, parse, show, show_internal,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

/// Texts with everything that XML and stock parsers mind.
fn words() -> impl Strategy<Value = String> {
    "[a-z<>&\"'\\\\/é][a-z <>&;\"'\\\\=#!/-]{0,12}[a-z<>&\"'\\\\é]"
}

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9_-]{1,12}"
}

fn seconds(min: u64, max: u64) -> impl Strategy<Value = Duration> {
    (min..=max).prop_map(Duration::from_secs)
}

fn rate() -> impl Strategy<Value = Rate> {
    prop_oneof![
        Just(Rate::OFF),
        (1u32..1000, 1u32..1000).prop_map(|(per_second, burst)| Rate { per_second, burst })
    ]
}

fn keepalive() -> impl Strategy<Value = ManagerKeepalive> {
    let probe = select(vec![Probe::Auto, Probe::Keepalive, Probe::Ack, Probe::Request]);
    (
        any::<bool>(),
        seconds(1, 86_400),
        seconds(1, 604_800),
        1u32..1000,
        seconds(1, 86_400),
        probe,
    )
        .prop_map(
            |(enabled, interval, timeout, max_missed, retry_interval, probe)| ManagerKeepalive {
                enabled,
                interval,
                timeout,
                max_missed,
                retry_interval,
                probe,
            },
        )
}

fn remote(index: u16) -> impl Strategy<Value = Remote> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let choices = (
        select(vec![
            Protocols { tcp: true, udp: false },
            Protocols { tcp: false, udp: true },
            Protocols { tcp: true, udp: true },
        ]),
        select(vec![CryptoAccept::Both, CryptoAccept::Aes, CryptoAccept::Blowfish]),
        select(vec![WhenFull::Drop, WhenFull::Block]),
        select(vec![KeyConflict::First, KeyConflict::Newest]),
    );
    let times = (seconds(1, 86_400), seconds(0, 3600), seconds(1, 86_400));
    let counts = (1usize..300_000, 1usize..1000, 1usize..1000, 1usize..1000);
    let address = option::of(any::<std::net::IpAddr>());
    (flags, choices, times, counts, address, option::of(keepalive())).prop_map(
        move |(flags, choices, times, counts, local_ip, manager_keepalive)| {
            let mut remote = Remote {
                port: 1514 + index,
                manager_keepalive,
                local_ip,
                ..Remote::default()
            };
            (remote.ipv6, remote.allow_higher_versions, remote.archives, _) = flags;
            (
                remote.protocols,
                remote.crypto_accept,
                remote.when_full,
                remote.key_conflict,
            ) = choices;
            (
                remote.rids_closing_time,
                remote.connection_overtake_time,
                remote.limits.identify_timeout,
            ) = times;
            remote.queue_size = counts.0;
            remote.limits.max_connections = counts.1;
            remote.limits.max_unidentified = counts.2;
            remote.limits.max_unidentified_per_address = counts.3;
            if counts.1 % 2 == 0 {
                remote.proxy_protocol = vec!["10.0.0.7/32".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
            }
            if flags.3 {
                remote.connection = Connection::Syslog;
                remote.protocols = Protocols { tcp: false, udp: true };
                remote.allowed_ips = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
                remote.denied_ips = vec!["10.9.0.0/16".parse().unwrap()];
                remote.silent_after = remote.limits.identify_timeout;
                // A syslog block cannot say a queue size: it has no queue.
                remote.queue_size = Remote::default().queue_size;
            }
            remote
        },
    )
}

fn auth() -> impl Strategy<Value = Auth> {
    let flags = vec(any::<bool>(), 10);
    let texts = (words(), option::of(words()), words(), words());
    let force = (option::of(seconds(0, 86_400)), seconds(0, 86_400));
    let limits = (
        1usize..100_000,
        seconds(1, 600),
        seconds(1, 600),
        rate(),
        rate(),
        0u32..1000,
    );
    (
        flags,
        texts,
        force,
        limits,
        1u16..,
        option::of(any::<std::net::IpAddr>()),
    )
        .prop_map(|(flags, texts, force, limits, port, local_ip)| {
            let mut auth = Auth {
                port,
                local_ip,
                ..Auth::default()
            };
            auth.disabled = flags[0];
            auth.ipv6 = flags[1];
            auth.use_source_ip = flags[2];
            auth.purge = flags[3];
            auth.use_password = flags[4];
            auth.remote_enrollment = flags[5];
            auth.ssl_verify_host = flags[6];
            auth.ssl_auto_negotiate = flags[7];
            auth.allow_higher_versions = flags[8];
            auth.ciphers = texts.0;
            auth.ssl_agent_ca = texts.1.map(Into::into);
            auth.ssl_manager_cert = texts.2.into();
            auth.ssl_manager_key = texts.3.into();
            auth.force = Force {
                enabled: flags[9],
                key_mismatch: flags[0],
                disconnected_time: force.0,
                after_registration_time: force.1,
            };
            auth.limits.max_connections = limits.0;
            auth.limits.handshake_timeout = limits.1;
            auth.limits.read_timeout = limits.2;
            auth.limits.rate_per_address = limits.3;
            auth.limits.rate_total = limits.4;
            auth.limits.max_agents = limits.5;
            auth
        })
}

fn key_request() -> impl Strategy<Value = KeyRequest> {
    let texts = (
        option::of(words()),
        option::of(words()),
        select(vec![ExecMode::Once, ExecMode::Persistent]),
    );
    let times = (
        seconds(1, 4_294_967_294),
        seconds(0, 86_400),
        seconds(1, 86_400),
        seconds(1, 86_400),
    );
    let counts = (1u16..=32, 1u32..=220_000, 1u32..1000);
    let sizes = (1u64 << 10..=64 << 20, 64u64 << 20..=1 << 40);
    (
        any::<bool>(),
        texts,
        times,
        counts,
        sizes,
        rate(),
        rate(),
        any::<Option<bool>>(),
    )
        .prop_map(
            |(enabled, texts, times, counts, sizes, rate_per_address, rate_total, force_insert)| KeyRequest {
                enabled,
                exec_path: texts.0,
                socket: texts.1.map(Into::into),
                exec_mode: texts.2,
                timeout: times.0,
                negative_cache: times.1,
                deadline: times.2,
                breaker_pause: times.3,
                threads: counts.0,
                queue_size: counts.1,
                breaker_failures: counts.2,
                max_output: sizes.0,
                max_memory: sizes.1,
                rate_per_address,
                rate_total,
                force_insert,
            },
        )
}

#[derive(Debug, Clone)]
enum Login {
    None,
    File(String),
    Nkey(String),
    User(String, String),
    Token(String),
}

fn login() -> impl Strategy<Value = Login> {
    prop_oneof![
        Just(Login::None),
        words().prop_map(Login::File),
        words().prop_map(Login::Nkey),
        (words(), words()).prop_map(|(user, password)| Login::User(user, password)),
        words().prop_map(Login::Token),
    ]
}

fn key(letter: char) -> impl Strategy<Value = String> {
    "[A-Z2-7]{55}".prop_map(move |rest| format!("{letter}{rest}"))
}

fn nats() -> impl Strategy<Value = Nats> {
    let families = select(vec![
        Family::Status,
        Family::Keepalive,
        Family::Enrollment,
        Family::Keypoll,
        Family::Alerts,
    ]);
    let lists = (
        vec("(nats|tls)://[a-z]{1,8}(:[1-9][0-9]{0,3})?", 1..4),
        vec((name(), key('X')).prop_map(|(id, key)| Recipient { id, key }), 0..3),
        vec(
            (name(), key('U')).prop_map(|(id, key)| ControlKey {
                id,
                roles: vec![ControlRole::Read, ControlRole::Act],
                key,
                ..ControlKey::default()
            }),
            0..2,
        ),
        families.prop_map(|family| Encrypt {
            families: vec![family, Family::Osquery],
        }),
    );
    let texts = (
        login(),
        "[a-z]{1,5}(\\.[a-z]{1,5}){0,4}",
        option::of((words(), words())),
        option::of(name()),
        words(),
        words(),
    );
    let publish = (
        select(vec![PublishMode::Auto, PublishMode::Jetstream, PublishMode::Core]),
        1u32..65_536,
        seconds(1, 300),
        0u32..1000,
    );
    let spool = (
        words(),
        (16u64 << 20)..(1 << 44),
        seconds(60, 86_400),
        select(vec![SpoolFsync::Batch, SpoolFsync::Each, SpoolFsync::Never]),
    );
    let others = (
        select(vec![
            EventFormat::Native,
            EventFormat::Cloudevents,
            EventFormat::CloudeventsStructured,
            EventFormat::Ocsf,
            EventFormat::Ocsf19,
        ]),
        prop_oneof![
            Just(KeepaliveEvents::All),
            Just(KeepaliveEvents::Off),
            (1u32..1000).prop_map(KeepaliveEvents::Sample)
        ],
        option::of((any::<bool>(), name()).prop_map(|(enabled, bucket)| Kv { enabled, bucket })),
        0u32..1_000_000,
        seconds(1, 3600),
        vec(any::<bool>(), 8),
    );
    (lists, texts, publish, spool, others).prop_map(|(lists, texts, publish, spool, others)| {
        let flags = others.5;
        let mut nats = Nats {
            enabled: flags[0],
            ..Nats::default()
        };
        (nats.servers, nats.recipients, nats.control_keys, nats.encrypt) = lists;
        match texts.0 {
            Login::None => {}
            Login::File(path) => nats.credentials_file = Some(path.into()),
            Login::Nkey(path) => nats.nkey_file = Some(path.into()),
            Login::User(user, password) => (nats.user, nats.password) = (Some(user), Some(Secret::new(&password))),
            Login::Token(token) => nats.token = Some(Secret::new(&token)),
        }
        nats.subject_prefix = texts.1;
        if let Some((cert, key)) = texts.2 {
            (nats.tls_cert, nats.tls_key, nats.tls_ca) =
                (Some(cert.clone().into()), Some(key.into()), Some(cert.into()));
        }
        (nats.node_name, nats.source) = (texts.3, texts.4);
        nats.signing_key = texts.5.into();
        (
            nats.publish.mode,
            nats.publish.window,
            nats.publish.ack_timeout,
            nats.publish.drain_rate,
        ) = publish;
        nats.spool.dir = spool.0.into();
        (nats.spool.max_bytes, nats.spool.max_age, nats.spool.fsync) = (spool.1, spool.2, spool.3);
        (
            nats.format,
            nats.keepalive_events,
            nats.kv,
            nats.max_reconnects,
            nats.reconnect_delay,
        ) = (others.0, others.1, others.2, others.3, others.4);
        nats.ownership = nats.kv.as_ref().map(|kv| Ownership {
            bucket: kv.bucket.clone(),
            ids: kv.enabled,
        });
        (nats.encrypt_messages, nats.message_signing, nats.audit_logging) = (flags[1], flags[2], flags[3]);
        (nats.control.enabled, nats.control.destroy) = (flags[4], flags[5]);
        if flags[6] {
            nats.escalation = vec![Duration::from_secs(90), Duration::from_secs(5000)];
        }
        nats.keepalive_received = flags[7];
        nats.local_alerts = flags[6];
        // It needs both.
        nats.message_signing |= flags[4];
        nats.audit_logging |= flags[4];
        nats
    })
}

fn agentless() -> impl Strategy<Value = Agentless> {
    let host = (
        select(vec![Elevation::None, Elevation::Su, Elevation::Sudo]),
        "[a-z]{1,5}@[a-z.]{1,8}",
    )
        .prop_map(|(elevation, target)| AgentlessHost { elevation, target });
    let states = select(vec![
        (true, false, false),
        (true, true, false),
        (false, false, true),
        (true, true, true),
    ]);
    (
        name(),
        seconds(1, 86_400),
        vec(host, 1..3),
        states,
        prop_oneof![Just(String::new()), words()],
        option::of(1u16..),
    )
        .prop_map(
            |(kind, frequency, hosts, (periodic, diff, stay_connected), arguments, port)| Agentless {
                kind,
                frequency,
                hosts,
                periodic,
                diff,
                stay_connected,
                arguments,
                port,
                run_command: port.map(|port| format!("run {port}")),
            },
        )
}

fn internal() -> impl Strategy<Value = Internal> {
    let counts = (
        1u32..=16,
        0u32..=60,
        0u32..=999,
        any::<bool>(),
        seconds(1, 3600),
        512usize..=16_384,
    );
    (counts, (0u32..1000, 0u32..1_000_000), 0u64..9600, vec(0u8..=2, 5)).prop_map(|(counts, auth, minutes, debug)| {
        let mut internal = Internal::default();
        internal.remoted.worker_pool = counts.0;
        internal.remoted.request_rto_sec = counts.1;
        internal.remoted.request_rto_msec = counts.2;
        internal.remoted.verify_msg_id = (debug[0] > 0).then_some(counts.3);
        internal.remoted.keyupdate_interval = counts.4;
        internal.remoted.send_chunk = counts.5;
        (internal.auth.timeout_seconds, internal.auth.timeout_microseconds) = auth;
        internal.monitord.delete_old_agents = Duration::from_secs(minutes * 60);
        internal.monitord.monitor_agents = counts.3;
        internal.debug.remoted = debug[0];
        internal.debug.authd = debug[1];
        internal.debug.natsd = debug[2];
        internal.debug.keypolld = debug[3];
        internal.debug.agentlessd = debug[4];
        internal
    })
}

fn settings() -> impl Strategy<Value = Settings> {
    let general = (
        (0u16..100, 0u16..100, 0u16..100).prop_map(|(major, minor, patch)| ManagerVersion { major, minor, patch }),
        select(vec![Layout::Auto, Layout::Wazuh]),
        option::of(name()),
        option::of(name().prop_filter("stock's word for none", |name| name != "undefined")),
        select(vec![LogFormat::Plain, LogFormat::Json, LogFormat::Both]),
        (seconds(1, 86_400), seconds(0, 86_400)),
    );
    let remotes =
        (option::of(remote(0)), option::of(remote(1))).prop_map(|(one, other)| one.into_iter().chain(other).collect());
    let parts = (
        auth(),
        option::of(key_request()),
        nats(),
        vec(agentless(), 0..3),
        internal(),
    );
    (general, remotes, parts).prop_map(|(general, remotes, parts)| {
        let mut settings = Settings {
            remotes,
            ..Settings::default()
        };
        (
            settings.muster.manager_version,
            settings.muster.layout,
            settings.muster.node_name,
        ) = (general.0, general.1, general.2);
        settings.cluster.node_name = general.3;
        settings.logging.log_format = general.4;
        settings.global.agents_disconnection_time = general.5.0;
        settings.global.agents_disconnection_alert_time = general.5.1;
        (
            settings.auth,
            settings.key_request,
            settings.nats,
            settings.agentless,
            settings.internal,
        ) = parts;
        settings
    })
}

fn read_back(settings: &Settings) -> Settings {
    let file = |text: String| {
        vec![Input {
            path: "shown".into(),
            bytes: text.into_bytes(),
        }]
    };
    let inputs = Inputs {
        config: file(show(settings, Secrets::Revealed)),
        internal: file(show_internal(&settings.internal)),
        ..Inputs::default()
    };
    parse(&inputs)
        .unwrap_or_else(|error| panic!("{error}\n{}", show(settings, Secrets::Revealed)))
        .settings
}

#[test]
fn defaults_are_read_back() {
    assert_eq!(read_back(&Settings::default()), Settings::default());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_shown_is_read_back_to_the_same(settings in settings()) {
        let again = read_back(&settings);
        prop_assert_eq!(differences(&settings, &again), Vec::<String>::new());
        prop_assert_eq!(&again, &settings);
        prop_assert_eq!(show(&again, Secrets::Masked), show(&settings, Secrets::Masked));
    }

    #[test]
    fn settings_that_differ_have_differences(one in settings(), other in settings()) {
        prop_assert_eq!(differences(&one, &other).is_empty(), one == other);
        prop_assert!(differences(&one, &one).is_empty());
    }
}

#[test]
fn differences_name_the_options() {
    let old = Settings {
        remotes: vec![Remote::default()],
        ..Settings::default()
    };
    let mut new = old.clone();
    new.remotes[0].port = 1515;
    new.remotes[0].manager_keepalive = Some(ManagerKeepalive::default());
    new.auth.force.disconnected_time = None;
    new.nats.spool.max_bytes = 1 << 24;
    new.internal.remoted.worker_pool = 9;
    let found = differences(&old, &new);
    for path in [
        "remote[1]/port",
        "remote[1]/manager_keepalive",
        "remote[1]/manager_keepalive/interval",
        "auth/force/disconnected_time@enabled",
        "nats/spool@max_bytes",
        "internal/remoted/worker_pool",
    ] {
        assert!(found.iter().any(|found| found == path), "{path} is not in {found:?}");
    }
    assert!(!found.iter().any(|found| found == "auth/port"));
}

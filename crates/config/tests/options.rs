//! Every option: what it takes, what it refuses, and how it comes back out of `config show`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use std::collections::BTreeSet;

use muster_config::{
    Diagnostics, Entry, Input, Inputs, Loaded, Secrets, internal_options, options, parse, parse_text, show,
    show_internal,
};

/// An option, texts that it takes (with `=>` and the form in which they are shown, where that differs), and texts that
/// it refuses.
type Row = (&'static str, &'static [&'static str], &'static [&'static str]);

const BOOL: (&[&str], &[&str]) = (&["yes", "no"], &["Yes", "NO", "true", "1", "", "maybe"]);
const PORT: (&[&str], &[&str]) = (&["1", "1514", "65535"], &["0", "65536", "-1", "+5", "15x", "1 514", ""]);
const PATH: (&[&str], &[&str]) = (
    &["etc/x.pem", "/etc/a b/x.pem", "C:&amp;x => C:&amp;x"],
    &["", "a&#10;b", "a&#1;b"],
);
const ADDRESS: (&[&str], &[&str]) = (
    &["127.0.0.1", "::1", "192.0.2.10"],
    &["localhost", "127.0.0", "1.2.3.4/8", ""],
);
const NETWORK: (&[&str], &[&str]) = (
    &[
        "10.0.0.0/8",
        "10.1.2.3 => 10.1.2.3/32",
        "10.0.0.0/255.0.0.0 => 10.0.0.0/8",
        "any => 0.0.0.0/0",
    ],
    &["10.0.0.0/33", "lan", ""],
);
const RATE: (&[&str], &[&str]) = (
    &["off", "50/s burst 500", "5/s => 5/s burst 5", "1000000/s burst 1000000"],
    &[
        "50",
        "50/m",
        "0/s",
        "50/s burst",
        "50/s burst 0",
        "1000001/s",
        "50/s bursts 5",
        "-1/s",
        "",
    ],
);
const NODE: (&[&str], &[&str]) = (
    &["mgr-a", "wazuh-manager-01", "a.b", "ü"],
    &["a b", "a:b", "", "a&#10;b"],
);
const XKEY: &str = "XCMVMUL3LZMDJCOUPRZHLCYTNRHLTQRGUWP24TGCIQVBZVHAXMD2GLOC";
const NKEY: &str = "UCMVMUL3LZMDJCOUPRZHLCYTNRHLTQRGUWP24TGCIQVBZVHAXMD2GLOC";

fn span_kind(row: &'static str, good: &'static [&'static str], bad: &'static [&'static str]) -> Row {
    (row, good, bad)
}

fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = vec![
        (
            "muster/manager_version",
            &["v4.14.7", "4.9.2 => v4.9.2", "v5.0.0"],
            &["4.14", "v4.14.7.1", "v4.x.1", "", "latest", "v4.14.99999"],
        ),
        ("muster/layout", &["auto", "wazuh", "ossec"], &["Wazuh", ""]),
        ("muster/node_name", NODE.0, NODE.1),
        span_kind(
            "global/agents_disconnection_time",
            &["1 => 1s", "20m", "600 => 10m", "1w"],
            &["0", "15 m", "-5m", "1.5h", "", "soon"],
        ),
        (
            "global/agents_disconnection_alert_time",
            &["0 => 0s", "1h"],
            &["-1", "x", ""],
        ),
        ("cluster/node_name", &["node01", "a b"], &[""]),
        (
            "logging/log_format",
            &["plain", "json", "plain,json", "json,plain => plain,json"],
            &["xml", "", "plain;json"],
        ),
        ("remote/connection", &["secure"], &["Secure", "tls", ""]),
        ("remote/port", PORT.0, PORT.1),
        (
            "remote/protocol",
            &[
                "tcp",
                "udp",
                "tcp,udp",
                "udp, tcp => tcp,udp",
                "UDP => udp",
                "x => tcp",
                "sctp,udp => udp",
            ],
            &[],
        ),
        ("remote/ipv6", BOOL.0, BOOL.1),
        ("remote/local_ip", ADDRESS.0, ADDRESS.1),
        ("remote/allowed-ips", NETWORK.0, NETWORK.1),
        ("remote/denied-ips", NETWORK.0, NETWORK.1),
        (
            "remote/queue_size",
            &["1", "131072", "300000"],
            &["0", "-1", "many", "", "99999999999"],
        ),
        (
            "remote/rids_closing_time",
            &["5m", "30 => 30s", "soon => 5m", "0 => 5m"],
            &[],
        ),
        (
            "remote/connection_overtake_time",
            &["0", "60", "3600", "3601 => 60", "x => 60"],
            &[],
        ),
        (
            "remote/agents/allow_higher_versions",
            &["yes", "no", "maybe => no"],
            &[],
        ),
        (
            "remote/crypto_accept",
            &["both", "aes", "blowfish"],
            &["des", "AES", ""],
        ),
        ("remote/manager_keepalive/enabled", BOOL.0, BOOL.1),
        (
            "remote/manager_keepalive/interval",
            &["1 => 1s", "60 => 1m", "1d"],
            &["0", "2d", "", "x"],
        ),
        (
            "remote/manager_keepalive/timeout",
            &["180 => 3m", "1s", "7d => 1w"],
            &["0", "8d", "", "x"],
        ),
        (
            "remote/manager_keepalive/max_missed",
            &["1", "3", "1000"],
            &["0", "1001", "-1", "", "3x"],
        ),
        (
            "remote/manager_keepalive/retry_interval",
            &["30 => 30s", "1s", "1d"],
            &["0", "2d", ""],
        ),
        (
            "remote/manager_keepalive/probe",
            &["auto", "keepalive", "ack", "request"],
            &["ping", "Auto", ""],
        ),
        ("remote/silent_after", &["0 => 0s", "15m", "365d"], &["366d", "x", ""]),
        ("remote/when_full", &["drop", "block"], &["wait", ""]),
        ("remote/archives", BOOL.0, BOOL.1),
        ("remote/key_conflict", &["first", "newest"], &["last", ""]),
        ("remote/proxy_protocol", NETWORK.0, NETWORK.1),
        (
            "remote/limits/max_connections",
            &["1", "1000000"],
            &["0", "1000001", ""],
        ),
        (
            "remote/limits/max_unidentified",
            &["1", "1000000"],
            &["0", "1000001", ""],
        ),
        (
            "remote/limits/max_unidentified_per_address",
            &["1", "1000000"],
            &["0", "1000001", ""],
        ),
        ("remote/limits/identify_timeout", &["1s", "1d"], &["0", "2d", ""]),
        ("auth/disabled", BOOL.0, BOOL.1),
        ("auth/port", PORT.0, PORT.1),
        ("auth/ipv6", &["yes", "no", "YES => yes", "No => no"], &["maybe", ""]),
        ("auth/local_ip", ADDRESS.0, ADDRESS.1),
        ("auth/use_source_ip", BOOL.0, BOOL.1),
        ("auth/force/enabled", BOOL.0, BOOL.1),
        ("auth/force/key_mismatch", BOOL.0, BOOL.1),
        (
            "auth/force/disconnected_time",
            &["0 => 0s", "1h", "90 => 90s", "2d"],
            &["x", "", "-1h", "1.5h"],
        ),
        ("auth/force/disconnected_time@enabled", BOOL.0, BOOL.1),
        (
            "auth/force/after_registration_time",
            &["0 => 0s", "1h", "2d"],
            &["x", "", "-1h"],
        ),
        ("auth/force_insert", &["yes", "no"], &["maybe", ""]),
        ("auth/force_time", &["0", "3600"], &["1h", "-1", ""]),
        ("auth/purge", BOOL.0, BOOL.1),
        ("auth/use_password", BOOL.0, BOOL.1),
        ("auth/remote_enrollment", BOOL.0, BOOL.1),
        ("auth/ciphers", &["HIGH", "ECDHE+AESGCM"], &[""]),
        ("auth/ssl_agent_ca", PATH.0, PATH.1),
        ("auth/ssl_verify_host", BOOL.0, BOOL.1),
        ("auth/ssl_manager_cert", PATH.0, PATH.1),
        ("auth/ssl_manager_key", PATH.0, PATH.1),
        ("auth/ssl_auto_negotiate", BOOL.0, BOOL.1),
        ("auth/agents/allow_higher_versions", &["yes", "no", "maybe => no"], &[]),
        ("auth/limits/max_connections", &["1", "100000"], &["0", "100001", ""]),
        ("auth/limits/handshake_timeout", &["1s", "10m"], &["0", "11m", ""]),
        ("auth/limits/read_timeout", &["1s", "10m"], &["0", "11m", ""]),
        ("auth/limits/rate_per_address", RATE.0, RATE.1),
        ("auth/limits/rate_total", RATE.0, RATE.1),
        ("auth/limits/max_agents", &["0", "99999999"], &["-1", "100000000", ""]),
        ("auth/key_request/force_insert", &["yes", "no"], &["maybe", ""]),
        ("wodle/force_insert", BOOL.0, BOOL.1),
        ("nats/enabled", BOOL.0, BOOL.1),
        (
            "nats/server_url",
            &[
                "nats://xdr-nats:4222",
                "tls://[::1]:4222",
                "10.0.0.1:4222",
                "nats://a,tls://b:1 => nats://a",
            ],
            &[
                "http://x",
                "nats://",
                "nats://a:0",
                "nats://a:65536",
                "nats://a:+1",
                "nats://u:p@a",
                "nats://a b",
                "nats://[::1",
                "nats://[zz]:1",
                "nats://a,,nats://b",
                "nats://[::1]x",
                "nats://a/b",
                "",
            ],
        ),
        ("nats/credentials_file", PATH.0, PATH.1),
        ("nats/nkey_file", PATH.0, PATH.1),
        ("nats/user", &["muster"], &[""]),
        ("nats/password", &["s3cret &amp; more", "a&lt;b"], &[""]),
        ("nats/token", &["s3cret"], &[""]),
        (
            "nats/subject_prefix",
            &["wazuh.xdr", "a", "a.b.c.d.e.f", "A-b_9"],
            &[
                "a.b.c.d.e.f.g",
                "a..b",
                ".a",
                "a.",
                "a.*",
                "a.&gt;",
                "$SYS",
                "a b",
                "",
                "ü",
            ],
        ),
        ("nats/tls_cert", PATH.0, PATH.1),
        ("nats/tls_key", PATH.0, PATH.1),
        ("nats/tls_ca", PATH.0, PATH.1),
        ("nats/node_name", NODE.0, NODE.1),
        (
            "nats/max_reconnects",
            &["-1", "0 => -1", "10", "1000000"],
            &["-2", "1000001", "x", ""],
        ),
        ("nats/reconnect_delay", &["5 => 5s", "2s", "1h"], &["0", "2h", ""]),
        ("nats/encrypt_messages", BOOL.0, BOOL.1),
        ("nats/message_signing", BOOL.0, BOOL.1),
        ("nats/audit_logging", BOOL.0, BOOL.1),
        ("nats/signing_key", PATH.0, PATH.1),
        ("nats/trust_key", &[NKEY], &[XKEY, "U", ""]),
        ("nats/key_overlap", &["5s", "10m", "1w"], &["0", "8d", ""]),
        ("nats/recipient", &[XKEY], &[NKEY, "X", "xcmv", ""]),
        ("nats/recipient@id", &["xdr-1", "soc"], &["a b", "a,b", "a:b", ""]),
        (
            "nats/encrypt@families",
            &["status", "status,alerts", "status, status => status"],
            &["all", "status;alerts", ""],
        ),
        ("nats/publish@mode", &["auto", "jetstream", "core"], &["kafka", ""]),
        ("nats/publish@window", &["1", "256", "65536"], &["0", "65537", ""]),
        ("nats/publish@ack_timeout", &["5s", "5m"], &["0", "6m", "500ms", ""]),
        ("nats/publish@drain_rate", &["0", "10000000"], &["-1", "10000001", ""]),
        ("nats/spool@dir", PATH.0, PATH.1),
        (
            "nats/spool@max_bytes",
            &["16MB", "1gb => 1GB", "16777217 => 16777217B", "1T => 1TB"],
            &["15MB", "17TB", "1.5GB", "", "lots"],
        ),
        ("nats/spool@max_age", &["1m", "72h => 3d"], &["59s", "366d", ""]),
        ("nats/spool@fsync", &["batch", "each", "never"], &["always", ""]),
        (
            "nats/format",
            &["native", "cloudevents", "ocsf", "ocsf-1.9"],
            &["json", "ocsf-1.8", ""],
        ),
        (
            "nats/keepalive_events",
            &["all", "off", "sample:10"],
            &[
                "sample:0",
                "sample:",
                "sample:x",
                "sample:+1",
                "sample:1000001",
                "some",
                "",
            ],
        ),
        ("nats/keepalive_received", BOOL.0, BOOL.1),
        ("nats/kv@enabled", &["yes", "no"], &["perhaps", ""]),
        ("nats/kv@bucket", &["agents", "agents_wazuh_xdr"], &["a.b", "", "a b"]),
        (
            "nats/ownership@bucket",
            &["agent_owner", "fleet_b"],
            &["a.b", "", "a b"],
        ),
        ("nats/ownership@ids", BOOL.0, BOOL.1),
        ("nats/control@enabled", BOOL.0, BOOL.1),
        ("nats/control@destroy", BOOL.0, BOOL.1),
        (
            "nats/control@active_responses",
            &["firewall-drop600", "!custom.sh,restart-wazuh0", "a, b => a,b"],
            &["", "a,,b", "a b", "../x", "a/b", "!"],
        ),
        ("nats/control_key", &[NKEY], &[XKEY, "U", ""]),
        ("nats/control_key@id", &["soc-1"], &["a b", ""]),
        ("nats/control_key@roles", &["read", "read,act,destroy"], &["admin", ""]),
        ("nats/control_key@rate", RATE.0, RATE.1),
        ("nats/local_alerts", BOOL.0, BOOL.1),
        ("nats/source", &["wazuh-manager", "muster"], &["", "a&#10;b"]),
        (
            "nats/escalation",
            &["on", "off", "10m", "5m, 1h,1d => 5m,1h,1d", "1h,24h => on"],
            &["yes", "", "1h,", "1h,1h", "2h,1h", "0s", "31d", "1m,2m,3m,4m,5m"],
        ),
        (
            "agentless/type",
            &["ssh_integrity_check_linux", "sub/script"],
            &["../x", "/x", "a/../b", "", "a//b"],
        ),
        ("agentless/frequency", &["1", "86400"], &["-1", "1d", ""]),
        (
            "agentless/host",
            &["root@test.com", "use_su root@a", "use_sudo root@10.0.0.1"],
            &["root", "use_su  root@a", "use_doas root@a", "@a", "a@", ""],
        ),
        (
            "agentless/state",
            &["periodic", "periodic_diff", "stay_connected"],
            &["sometimes", ""],
        ),
        ("agentless/arguments", &["/bin /etc", ""], &["a&#10;b"]),
        ("agentless/port", PORT.0, PORT.1),
        ("agentless/run_command", &["ls"], &[""]),
    ];
    // Both homes of the key request have the same options.
    let request: [(&str, &'static [&'static str], &'static [&'static str]); 15] = [
        ("enabled", BOOL.0, BOOL.1),
        (
            "exec_path",
            &[
                "/usr/bin/python3 /path/script.py",
                "script \"two words\" => script &quot;two words&quot;",
            ],
            &[""],
        ),
        ("exec_mode", &["once", "persistent"], &["daemon", ""]),
        ("socket", &["/path/to/socket"], &[""]),
        ("timeout", &["1", "60", "4294967294"], &["0", "4294967295", "1m", ""]),
        ("threads", &["1", "32"], &["0", "33", ""]),
        ("queue_size", &["1", "220000"], &["0", "220001", ""]),
        ("negative_cache", &["0s", "1d"], &["2d", ""]),
        ("rate_per_address", RATE.0, RATE.1),
        ("rate_total", RATE.0, RATE.1),
        ("deadline", &["1s", "1d"], &["0", "2d", ""]),
        ("breaker_failures", &["1", "1000000"], &["0", ""]),
        ("breaker_pause", &["1s", "1d"], &["0", "2d", ""]),
        ("max_output", &["1KB", "64MB"], &["0", "1023", "65MB", ""]),
        ("max_memory", &["64MB", "1TB"], &["0", "63MB", "2TB", ""]),
    ];
    for (name, good, bad) in request {
        for parent in ["auth/key_request", "wodle"] {
            rows.push((format!("{parent}/{name}").leak(), good, bad));
        }
    }
    rows
}

/// A configuration in which this option has this text, and nothing is missing that it needs beside it.
fn with(path: &str, text: &str) -> String {
    let (element, attribute) = path
        .split_once('@')
        .map_or((path, None), |(element, name)| (element, Some(name)));
    let mut parts: Vec<_> = element.split('/').collect();
    let name = parts.pop().unwrap();
    let mut inner = match (path, attribute) {
        ("nats/recipient@id", _) => format!("<recipient id=\"{text}\">{XKEY}</recipient>"),
        ("nats/recipient", _) => format!("<recipient id=\"xdr-1\">{text}</recipient>"),
        ("nats/control_key@id", _) => format!("<control_key id=\"{text}\" roles=\"read\">{NKEY}</control_key>"),
        ("nats/control_key@roles", _) => format!("<control_key id=\"soc\" roles=\"{text}\">{NKEY}</control_key>"),
        ("nats/control_key@rate", _) => {
            format!("<control_key id=\"soc\" roles=\"read\" rate=\"{text}\">{NKEY}</control_key>")
        }
        ("nats/control_key", _) => format!("<control_key id=\"soc\" roles=\"read\">{text}</control_key>"),
        ("auth/force/disconnected_time", _) => format!("<disconnected_time enabled=\"yes\">{text}</disconnected_time>"),
        (_, Some(attribute)) => format!("<{name} {attribute}=\"{text}\">1h</{name}>"),
        _ => format!("<{name}>{text}</{name}>"),
    };
    if attribute.is_some() && name != "disconnected_time" {
        inner = inner.replace(">1h<", "><");
    }
    let syslog = matches!(name, "allowed-ips" | "denied-ips");
    for (index, part) in parts.iter().enumerate().rev() {
        let companions = match (*part, name) {
            ("remote", "connection") if index == 0 => "",
            ("remote", _) if syslog => "<connection>syslog</connection>",
            ("remote", _) => "<connection>secure</connection>",
            ("nats", "server_url") => "",
            ("nats", "tls_cert") => "<server_url>nats://a</server_url><tls_key>k</tls_key>",
            ("nats", "tls_key") => "<server_url>nats://a</server_url><tls_cert>c</tls_cert>",
            ("nats", "user") => "<server_url>nats://a</server_url><password>p</password>",
            ("nats", "password") => "<server_url>nats://a</server_url><user>u</user>",
            ("nats", "control") => {
                "<server_url>nats://a</server_url><message_signing>yes</message_signing>\
                 <audit_logging>yes</audit_logging>"
            }
            ("nats", _) => "<server_url>nats://a</server_url>",
            ("agentless", "type") => "<host>a@b</host><state>periodic</state>",
            ("agentless", "host") => "<type>t</type><state>periodic</state>",
            ("agentless", "state") => "<type>t</type><host>a@b</host>",
            ("agentless", _) => "<type>t</type><host>a@b</host><state>periodic_diff</state>",
            _ => "",
        };
        let marker = if *part == "wodle" {
            " name=\"agent-key-polling\""
        } else {
            ""
        };
        inner = format!("<{part}{marker}>{companions}{inner}</{part}>");
    }
    format!("<ossec_config>\n{inner}\n</ossec_config>\n")
}

fn load(path: &str, text: &str) -> Result<Loaded, Diagnostics> {
    parse_text(&with(path, text))
}

fn valued() -> impl Iterator<Item = Entry> {
    options().into_iter().filter(|entry| !entry.accepts.is_empty())
}

#[test]
fn every_option_has_a_row_in_this_test() {
    let listed: BTreeSet<_> = rows().iter().map(|(path, ..)| (*path).to_owned()).collect();
    let real: BTreeSet<_> = valued().map(|entry| entry.path).collect();
    assert_eq!(
        listed.difference(&real).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "rows without an option"
    );
    assert_eq!(
        real.difference(&listed).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "options without a row"
    );
}

#[test]
fn every_option_takes_its_good_values_and_shows_them() {
    for (path, good, _) in rows() {
        let old = valued().any(|entry| entry.path == path && entry.is_old);
        for case in good {
            let (text, shown) = case.split_once(" => ").unwrap_or((case, case));
            let loaded = load(path, text).unwrap_or_else(|error| panic!("{path} refuses {text}:\n{error}"));
            if old {
                assert!(!loaded.warnings.is_empty(), "{path} is old and not warned about");
                continue;
            }
            let printed = show(&loaded.settings, Secrets::Revealed);
            let (_, name) = path.rsplit_once(['/', '@']).unwrap();
            let element = path.split('@').next().unwrap().rsplit('/').next().unwrap();
            let wanted = if path.contains('@') {
                format!("{name}=\"{shown}\"")
            } else {
                format!(">{shown}</{element}>")
            };
            assert!(
                printed.contains(&wanted),
                "{path}: {text} is not shown as {wanted}:\n{printed}"
            );
        }
    }
}

#[test]
fn every_option_refuses_its_bad_values_at_their_place_and_says_what_it_takes() {
    for (path, _, bad) in rows() {
        let entry = valued().find(|entry| entry.path == path).unwrap();
        for text in bad {
            let Err(refused) = load(path, text) else {
                panic!("{path} takes {text:?}")
            };
            let mine: Vec<_> = refused
                .errors()
                .filter(|error| {
                    error.message.contains(&format!("<{}>", entry.name()))
                        || error.message.contains(entry.name())
                        || path.starts_with("wodle")
                })
                .collect();
            assert!(!mine.is_empty(), "{path} = {text:?}: nothing names it:\n{refused}");
            let error = mine[0];
            let place = error.place.as_ref().unwrap_or_else(|| panic!("{path}: no place"));
            assert_eq!(place.line, 2, "{path} = {text:?}");
            let explains = error.message.contains(&entry.accepts) || path == "nats/server_url";
            assert!(
                explains,
                "{path} = {text:?}: {} does not say {}",
                error.message, entry.accepts
            );
        }
    }
}

#[test]
fn the_listed_default_of_every_option_is_what_it_has_when_it_is_left_out() {
    for entry in valued().filter(|entry| !entry.is_old) {
        let Some(default) = &entry.default else { continue };
        let text = default
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('"', "&quot;");
        let given = load(&entry.path, &text).unwrap_or_else(|error| panic!("{}: {error}", entry.path));
        // A value that is the default leaves everything as it is without it.
        let marker = format!("<{}>", entry.name());
        let without = with(&entry.path, &text).replace(&format!("{marker}{text}</{}>", entry.name()), "");
        let without = without.replace(&format!(" {}=\"{text}\"", entry.name()), "");
        if let Ok(without) = parse_text(&without) {
            assert_eq!(given.settings, without.settings, "{}", entry.path);
        }
    }
}

fn internal(local: &str, shipped: &str) -> Result<Loaded, Diagnostics> {
    let file = |path: &str, text: &str| Input {
        path: path.into(),
        bytes: text.as_bytes().to_vec(),
    };
    parse(&Inputs {
        config: vec![file("etc/ossec.conf", "<ossec_config/>")],
        internal: vec![file("local", local), file("shipped", shipped)],
        ..Inputs::default()
    })
}

#[test]
fn every_internal_option_takes_its_default_and_refuses_words_and_numbers_out_of_range() {
    for entry in internal_options() {
        // One that is left out on purpose takes what its kind does.
        let default = entry.default.clone().unwrap_or_else(|| "1".to_owned());
        let loaded = internal("", &format!("{}={default}\n", entry.path)).unwrap();
        assert_eq!(loaded.warnings, [], "{}", entry.path);
        assert!(show_internal(&loaded.settings.internal).contains(&format!("{}={default}\n", entry.path)));
        for bad in ["", "x", "-1", "99999999999999999999", "1.5"] {
            let refused = internal("", &format!("# a comment\n\n{}={bad}\n", entry.path)).unwrap_err();
            let error = refused.errors().next().unwrap();
            assert_eq!(error.place.as_ref().unwrap().line, 3);
            assert!(
                error.message.starts_with(&entry.path) && error.message.contains(&entry.accepts),
                "{refused}"
            );
        }
    }
}

#[test]
fn the_local_file_counts_before_the_shipped_one_and_the_first_line_before_the_second() {
    let loaded = internal(
        "remoted.worker_pool=2\nremoted.worker_pool=3\n",
        "remoted.worker_pool=7\nremoted.max_attempts = 5\n",
    );
    let remoted = loaded.unwrap().settings.internal.remoted;
    assert_eq!((remoted.worker_pool, remoted.max_attempts), (2, 5));
}

#[test]
fn internal_options_are_converted_to_what_they_mean() {
    let text = "remoted.request_rto_sec=2\nremoted.request_rto_msec=500\nauth.timeout_seconds=3\n\
                auth.timeout_microseconds=250000\nmonitord.delete_old_agents=90\nnatsd.debug=2\nremoted.gather_msec=3\n";
    let internal = internal(text, "").unwrap().settings.internal;
    assert_eq!(internal.remoted.request_rto().as_millis(), 2500);
    assert_eq!(internal.remoted.gather().as_millis(), 3);
    assert_eq!(internal.auth.timeout().as_millis(), 3250);
    assert_eq!(internal.monitord.delete_old_agents.as_secs(), 5400);
    assert_eq!(internal.debug.natsd, 2);
}

#[test]
fn unknown_internal_options_are_warned_about_only_where_we_know_all() {
    let text = "remoted.worker_pol=4\nanalysisd.decoder_order_size=256\nmonitord.rotate_log=1\nsyscheck.debug=0\n";
    let loaded = internal(text, "").unwrap();
    let messages: Vec<_> = loaded.warnings.iter().map(|warning| warning.message.as_str()).collect();
    assert_eq!(
        messages,
        ["unknown internal option 'remoted.worker_pol' is ignored; did you mean remoted.worker_pool?"]
    );
}

#[test]
fn a_line_that_is_no_option_is_an_error() {
    let refused = internal("remoted.debug=1\nremoted debug 1\n", "")
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with("local:2:1: 'remoted debug 1' is no option; write name=value"),
        "{refused}"
    );
}

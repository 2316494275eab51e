//! Stock configurations mean here what they mean there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use std::time::Duration;

use muster_config::{
    Connection, CryptoAccept, HomeKind, Input, Inputs, Layout, LogFormat, ManagerKeepalive, Probe, Protocols, Secrets,
    Settings, home_kind, load, parse, parse_text, show,
};

fn settings(inner: &str) -> Settings {
    parse_text(&format!("<ossec_config>{inner}</ossec_config>"))
        .unwrap_or_else(|error| panic!("{error}"))
        .settings
}

/// The warnings of a configuration that is taken.
fn warnings(inner: &str) -> Vec<String> {
    let loaded = parse_text(&format!("<ossec_config>{inner}</ossec_config>")).unwrap_or_else(|error| panic!("{error}"));
    loaded.warnings.into_iter().map(|warning| warning.message).collect()
}

/// The configuration with which the manager's keepalive was first described, comments and line breaks as they were.
const FIRST_SKETCH: &str = "<ossec_config> <!-- Manager-side keep-alive configuration --> <remote> <connection>secure</connection> \
    <port>1514</port> <protocol>tcp</protocol>\n\
    <!-- New keep-alive settings --> <manager_keepalive> <enabled>yes</enabled> <interval>60</interval> \
    <!-- Send keep-alive every 60 seconds --> <timeout>180</timeout> <!-- Consider agent dead after 180 seconds --> \
    <max_missed>3</max_missed> <retry_interval>30</retry_interval> </manager_keepalive> </remote>\n\
    <!-- NATS Integration for XDR Platform --> <nats> <enabled>yes</enabled> <server_url>nats://xdr-nats:4222</server_url> \
    <credentials_file>/var/ossec/etc/nats.creds</credentials_file> <subject_prefix>wazuh.xdr</subject_prefix> \
    <tls_cert>/var/ossec/etc/nats-client.crt</tls_cert> <tls_key>/var/ossec/etc/nats-client.key</tls_key> \
    <max_reconnects>10</max_reconnects> <reconnect_delay>5</reconnect_delay>\n\
    <!-- Security settings --> <encrypt_messages>yes</encrypt_messages> <message_signing>yes</message_signing> \
    <audit_logging>yes</audit_logging> </nats></ossec_config>";

#[test]
fn the_first_sketch_of_the_keepalive_works_word_for_word() {
    let loaded = parse_text(FIRST_SKETCH).unwrap();
    assert_eq!(loaded.warnings, []);
    let remote = &loaded.settings.remotes[0];
    assert_eq!((remote.connection, remote.port), (Connection::Secure, 1514));
    assert_eq!(remote.protocols, Protocols { tcp: true, udp: false });
    let wanted = ManagerKeepalive {
        enabled: true,
        interval: Duration::from_secs(60),
        timeout: Duration::from_secs(180),
        max_missed: 3,
        retry_interval: Duration::from_secs(30),
        probe: Probe::Auto,
    };
    assert_eq!(remote.keepalive(), Some(&wanted));
    let nats = &loaded.settings.nats;
    assert!(nats.enabled && nats.encrypt_messages && nats.message_signing && nats.audit_logging);
    assert_eq!(nats.servers, ["nats://xdr-nats:4222"]);
    assert_eq!(nats.subject_prefix, "wazuh.xdr");
    assert_eq!(
        nats.credentials_file.as_deref(),
        Some("/var/ossec/etc/nats.creds".as_ref())
    );
    assert_eq!(
        nats.tls_cert.as_deref(),
        Some("/var/ossec/etc/nats-client.crt".as_ref())
    );
    assert_eq!(nats.tls_key.as_deref(), Some("/var/ossec/etc/nats-client.key".as_ref()));
    assert_eq!(
        (nats.max_reconnects, nats.reconnect_delay),
        (10, Duration::from_secs(5))
    );
}

#[test]
fn a_manager_with_every_stock_block_gives_no_warning() {
    let text = r#"
        <global><jsonout_output>yes</jsonout_output><email_to>root@example.org</email_to></global>
        <alerts><log_alert_level>3</log_alert_level></alerts>
        <logging><log_format>plain,json</log_format></logging>
        <remote><connection>secure</connection><port>1514</port><protocol>tcp</protocol><queue_size>131072</queue_size></remote>
        <rootcheck><disabled>no</disabled></rootcheck>
        <wodle name="cis-cat"><disabled>yes</disabled><ciscat_path>wodles/ciscat</ciscat_path></wodle>
        <wodle name="syscollector"><ports all="no">yes</ports></wodle>
        <sca><policies><policy>cis.yml</policy></policies></sca>
        <syscheck><auto_ignore frequency="10" timeframe="3600">no</auto_ignore><directories>C:\</directories></syscheck>
        <global><white_list>127.0.0.1</white_list><white_list>^localhost.localdomain$</white_list></global>
        <command><name>netsh</name><executable>netsh.exe</executable></command>
        <localfile><log_format>full_command</log_format>
          <command>netstat -tulpn | sed 's/\([[:alnum:]]\+\)\ /\1 == \2/' && last -n 20 & echo &unknown;</command></localfile>
        <localfile><query>\<QueryList\>\<Select Path="System"\>*[System[(Level&lt;=3)]]\</Select\>\</QueryList\></query></localfile>
        <ruleset><decoder_dir>ruleset/decoders</decoder_dir><rule_test/></ruleset>
        <rule_test><enabled>yes</enabled></rule_test>
        <auth><disabled>no</disabled><port>1515</port><use_source_ip>no</use_source_ip>
          <force><enabled>yes</enabled><key_mismatch>yes</key_mismatch>
            <disconnected_time enabled="yes">1h</disconnected_time><after_registration_time>1h</after_registration_time></force>
          <purge>yes</purge><use_password>no</use_password><limit_maxagents>yes</limit_maxagents>
          <ciphers>HIGH:!ADH:!EXP:!MD5:!RC4:!3DES:!CAMELLIA:@STRENGTH</ciphers>
          <ssl_verify_host>no</ssl_verify_host><ssl_auto_negotiate>no</ssl_auto_negotiate></auth>
        <cluster><name>wazuh</name><node_name>node01</node_name><key>0123</key><nodes><node>NODE_IP</node></nodes></cluster>
        <vulnerability-detection><enabled>yes</enabled></vulnerability-detection>
        <indexer><hosts><host>https://127.0.0.1:9200</host></hosts></indexer>
        <integration><name>virustotal</name><api_key>KEY</api_key></integration>
        <email_alerts><do_not_delay /></email_alerts>
        <syslog_output><server>192.0.2.1</server></syslog_output>
    "#;
    assert_eq!(warnings(text), [""; 0]);
    let settings = settings(text);
    assert_eq!(settings.node_name(), Some("node01"));
    assert_eq!(settings.logging.log_format, LogFormat::Both);
    assert!(settings.auth.purge && !settings.auth.disabled);
}

#[test]
fn several_roots_and_repeated_blocks_count_as_one() {
    let text = "<ossec_config><auth><port>1</port><purge>yes</purge></auth></ossec_config>\n<!-- local -->\n\
                <ossec_config><auth><port>2</port></auth></ossec_config>";
    let loaded = parse_text(text).unwrap();
    assert_eq!((loaded.settings.auth.port, loaded.settings.auth.purge), (2, true));
    assert_eq!(loaded.warnings, []);
}

#[test]
fn auth_is_off_without_its_block_and_on_with_it() {
    assert!(settings("").auth.disabled);
    assert!(!settings("<auth/>").auth.disabled);
    assert!(settings("<auth><disabled>yes</disabled></auth>").auth.disabled);
}

#[test]
fn without_the_block_nothing_is_published_and_no_keepalive_is_sent() {
    let settings = settings("<remote><connection>secure</connection></remote>");
    assert!(!settings.nats.enabled);
    assert_eq!(settings.remotes[0].keepalive(), None);
    let off =
        "<remote><connection>secure</connection><manager_keepalive><enabled>no</enabled></manager_keepalive></remote>";
    assert_eq!(self::settings(off).remotes[0].keepalive(), None);
}

#[test]
fn an_empty_configuration_means_the_defaults() {
    assert_eq!(settings(""), Settings::default());
}

#[test]
fn old_force_options_count_where_there_is_no_force_block() {
    let auth = settings("<auth><force_insert>no</force_insert><force_time>7200</force_time></auth>").auth;
    assert!(!auth.force.enabled);
    assert_eq!(auth.force.disconnected_time, Some(Duration::from_secs(7200)));
    assert_eq!(
        settings("<auth><force_time>0</force_time></auth>")
            .auth
            .force
            .disconnected_time,
        None
    );
    let auth = settings("<auth><force_insert>no</force_insert><force_time>0</force_time><force/></auth>").auth;
    assert!(
        auth.force.enabled && auth.force.disconnected_time.is_some(),
        "<force> is there and decides"
    );
    assert_eq!(warnings("<auth><force_insert>no</force_insert></auth>").len(), 1);
}

#[test]
fn a_disconnected_time_that_is_off_may_say_anything() {
    let text = |time: &str| {
        format!("<auth><force><disconnected_time enabled=\"no\">{time}</disconnected_time></force></auth>")
    };
    for time in ["1h", "", "whenever"] {
        assert_eq!(settings(&text(time)).auth.force.disconnected_time, None, "{time}");
    }
}

#[test]
fn syslog_connections_have_their_own_port_and_rules() {
    let syslog = |inner: &str| format!("<remote><connection>syslog</connection>{inner}</remote>");
    let allowed = "<allowed-ips>10.0.0.0/8</allowed-ips><allowed-ips>192.0.2.1</allowed-ips>";
    let settings = settings(&syslog(allowed));
    assert_eq!(
        (settings.remotes[0].port, settings.remotes[0].allowed_ips.len()),
        (514, 2)
    );
    assert_eq!(self::settings(&syslog("<port>5140</port>")).remotes[0].port, 5140);
    assert!(warnings(&syslog(""))[0].contains("nobody may send syslog here"));
    assert!(
        warnings(&format!("<remote><connection>secure</connection>{allowed}</remote>"))[0]
            .contains("for syslog connections only")
    );
    for bad in ["<queue_size>1</queue_size>", "<protocol>tcp,udp</protocol>"] {
        assert!(
            parse_text(&format!("<ossec_config>{}</ossec_config>", syslog(bad))).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn an_ossec_home_listens_on_udp_even_where_the_file_says_tcp() {
    let protocols = |home, text: &str| {
        let input = Input {
            path: "etc/ossec.conf".into(),
            bytes: text.as_bytes().to_vec(),
        };
        parse(&Inputs {
            config: vec![input],
            home,
            ..Inputs::default()
        })
        .unwrap()
        .settings
        .remotes[0]
            .protocols
    };
    let plain = "<ossec_config><remote><connection>secure</connection></remote></ossec_config>";
    let tcp = Protocols { tcp: true, udp: false };
    let both = Protocols { tcp: true, udp: true };
    assert_eq!(protocols(HomeKind::Wazuh, plain), tcp);
    assert_eq!(protocols(HomeKind::Ossec, plain), both);
    let with_layout = |layout: &str| {
        plain.replace(
            "<remote>",
            &format!("<muster><layout>{layout}</layout></muster><remote>"),
        )
    };
    assert_eq!(protocols(HomeKind::Wazuh, &with_layout("ossec")), both);
    assert_eq!(protocols(HomeKind::Ossec, &with_layout("wazuh")), tcp);
}

#[test]
fn ossec_ciphers_can_be_narrowed() {
    let text = "<remote><connection>secure</connection><crypto_accept>aes</crypto_accept></remote>";
    assert_eq!(settings(text).remotes[0].crypto_accept, CryptoAccept::Aes);
}

#[test]
fn key_requests_are_off_without_a_block_and_on_with_either() {
    assert_eq!(settings("<auth/>").key_request, None);
    let new = settings("<auth><key_request><socket>/s</socket></key_request></auth>")
        .key_request
        .unwrap();
    assert!(new.enabled);
    assert_eq!((new.timeout.as_secs(), new.threads, new.queue_size), (60, 1, 1024));
    let old =
        settings("<wodle name=\"agent-key-polling\"><exec_path>/x</exec_path><force_insert>yes</force_insert></wodle>");
    let old = old.key_request.unwrap();
    assert_eq!((old.exec_path.as_deref(), old.force_insert), (Some("/x"), Some(true)));
    let default = settings("<wodle name=\"agent-key-polling\"><exec_path>/x</exec_path></wodle>");
    assert_eq!(
        default.key_request.unwrap().force_insert,
        Some(true),
        "as it was up to 4.3"
    );
    assert_eq!(new.force_insert, None);
    assert!(settings("<wodle name=\"osquery\"/>").key_request.is_none());
}

#[test]
fn of_two_key_request_blocks_the_first_counts() {
    let text =
        "<auth><key_request><socket>/a</socket></key_request><key_request><socket>/b</socket></key_request></auth>";
    assert_eq!(
        settings(text).key_request.unwrap().socket.as_deref(),
        Some("/a".as_ref())
    );
    assert_eq!(
        warnings(text),
        ["only the first <key_request> counts; this one is ignored"]
    );
}

#[test]
fn an_older_key_request_before_auth_only_lends_its_sources_and_one_after_it_is_ignored() {
    let old = "<wodle name=\"agent-key-polling\"><socket>/old</socket><timeout>7</timeout></wodle>";
    let new = "<auth><key_request><exec_path>/x</exec_path><timeout>9</timeout></key_request></auth>";
    let before = settings(&format!("{old}{new}")).key_request.unwrap();
    assert_eq!(
        (before.socket.as_deref(), before.timeout.as_secs()),
        (Some("/old".as_ref()), 9)
    );
    let after = settings(&format!("{new}{old}")).key_request.unwrap();
    assert_eq!((after.socket, after.timeout.as_secs()), (None, 9));
    assert!(warnings(&format!("{new}{old}"))[0].starts_with("this block is ignored"));
    let alone = settings(&format!("<auth/>{old}")).key_request.unwrap();
    assert_eq!(alone.timeout.as_secs(), 7);
}

#[test]
fn agentless_entries_keep_their_order_and_their_states_add_up() {
    let text = "<agentless><type>ssh_generic_diff</type><frequency>20000</frequency><host>use_su root@test.com</host>\
                <host>cisco@10.0.0.1</host><state>periodic</state><state>periodic_diff</state><arguments>ls -la; cat x</arguments></agentless>\
                <agentless><type>t</type><host>a@b</host><state>stay_connected</state></agentless>";
    let entries = settings(text).agentless;
    assert_eq!(
        (entries[0].hosts.len(), entries[0].periodic, entries[0].diff),
        (2, true, true)
    );
    assert_eq!(entries[0].hosts[0].target, "root@test.com");
    assert_eq!((entries[1].periodic, entries[1].stay_connected), (false, true));
    for missing in ["<type>t</type>", "<host>a@b</host>", "<state>periodic</state>"] {
        let whole = "<agentless><type>t</type><host>a@b</host><state>periodic</state></agentless>";
        let text = format!("<ossec_config>{}</ossec_config>", whole.replace(missing, ""));
        assert!(
            parse_text(&text).unwrap_err().to_string().contains("it needs one"),
            "{missing}"
        );
    }
    let never = "<ossec_config><agentless><type>t</type><host>a@b</host><state>periodic</state><frequency>0</frequency></agentless></ossec_config>";
    assert!(parse_text(never).is_err());
}

#[test]
fn nodes_are_named_by_nats_before_muster_before_cluster() {
    let cluster = "<cluster><node_name>c</node_name></cluster>";
    let muster = "<muster><node_name>m</node_name></muster>";
    let nats = "<nats><enabled>no</enabled><node_name>n</node_name></nats>";
    assert_eq!(settings(&format!("{cluster}{muster}{nats}")).node_name(), Some("n"));
    assert_eq!(settings(&format!("{cluster}{muster}")).node_name(), Some("m"));
    assert_eq!(settings(cluster).node_name(), Some("c"));
    assert_eq!(
        settings("<cluster><node_name>undefined</node_name></cluster>").node_name(),
        None
    );
}

#[test]
fn entities_cdata_comments_and_marks_at_the_start_are_read() {
    let text = "\u{feff}<?xml version=\"1.0\"?><!DOCTYPE x><ossec_config><auth>\
                <ciphers>A&amp;B&#45;<!-- x --><![CDATA[<C>]]> & D</ciphers><port> <!-- a --> 15<!-- b -->15 </port></auth></ossec_config>";
    let settings = parse_text(text).unwrap().settings;
    assert_eq!(settings.auth.ciphers, "A&B-<C> & D");
    assert_eq!(settings.auth.port, 1515);
}

#[test]
fn bytes_that_are_no_utf8_cost_a_warning_and_keep_places_right() {
    let bytes = b"<ossec_config><!-- gr\xf6\xdfe -->\n<auth><port>x</port></auth></ossec_config>".to_vec();
    let input = Input {
        path: "c".into(),
        bytes,
    };
    let refused = parse(&Inputs {
        config: vec![input],
        ..Inputs::default()
    })
    .unwrap_err()
    .to_string();
    assert!(refused.starts_with("c:1:22: warning: this is not UTF-8"), "{refused}");
    assert!(refused.contains("c:2:13: <port> must be"), "{refused}");
}

#[test]
fn a_second_file_beside_the_stock_one_holds_what_stock_daemons_refuse() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(home.path().join(name), text).unwrap();
    std::fs::create_dir(home.path().join("etc")).unwrap();
    write(
        "etc/ossec.conf",
        "<ossec_config><auth><port>2</port></auth></ossec_config>",
    );
    write(
        "etc/muster.conf",
        "<ossec_config><nats><server_url>nats://a</server_url></nats></ossec_config>",
    );
    write(
        "etc/internal_options.conf",
        "remoted.worker_pool=3\nauth.timeout_seconds=9\n",
    );
    write("etc/local_internal_options.conf", "remoted.worker_pool=5\n");
    let loaded = load(home.path(), None).unwrap();
    assert_eq!((loaded.settings.auth.port, loaded.settings.nats.enabled), (2, true));
    assert_eq!(loaded.settings.internal.remoted.worker_pool, 5);
    assert_eq!(loaded.settings.internal.auth.timeout_seconds, 9);

    write(
        "elsewhere.conf",
        "<ossec_config><auth><port>3</port></auth></ossec_config>",
    );
    let loaded = load(home.path(), Some(&home.path().join("elsewhere.conf"))).unwrap();
    assert_eq!(loaded.settings.auth.port, 3);

    std::fs::create_dir_all(home.path().join("queue/ossec")).unwrap();
    write(
        "etc/ossec.conf",
        "<ossec_config><remote><connection>secure</connection></remote></ossec_config>",
    );
    assert!(load(home.path(), None).unwrap().settings.remotes[0].protocols.udp);
}

#[test]
fn home_stays_what_it_is_when_our_daemons_have_made_their_directories() {
    let home = tempfile::tempdir().unwrap();
    let make = |path: &str| std::fs::create_dir_all(home.path().join(path)).unwrap();
    assert_eq!(home_kind(home.path()), HomeKind::Wazuh);
    make("queue/ossec");
    make("queue/agent-info");
    assert_eq!(home_kind(home.path()), HomeKind::Ossec);
    make("queue/sockets");
    make("queue/db");
    assert_eq!(home_kind(home.path()), HomeKind::Ossec, "we made these");
    // An old directory in a Wazuh home.
    std::fs::write(home.path().join("queue/db/global.db"), "").unwrap();
    assert_eq!(home_kind(home.path()), HomeKind::Wazuh);
}

#[test]
fn the_layout_is_ours_to_say() {
    assert_eq!(
        settings("<muster><layout>ossec</layout></muster>").muster.layout,
        Layout::Ossec
    );
    assert_eq!(settings("").muster.manager_version.to_string(), "v4.14.7");
    assert_eq!(settings("").muster.manager_version.bare(), "4.14.7");
}

#[test]
fn secrets_are_masked_in_what_is_shown_and_in_json() {
    let settings = settings("<nats><server_url>nats://a</server_url><user>u</user><password>hunter2</password></nats>");
    assert!(!show(&settings, Secrets::Masked).contains("hunter2"));
    assert!(!settings.to_json().to_string().contains("hunter2"));
    assert!(!format!("{settings:?}").contains("hunter2"));
    assert!(show(&settings, Secrets::Revealed).contains("hunter2"));
    let again = parse_text(&show(&settings, Secrets::Masked)).unwrap();
    assert!(again.warnings[0].message.contains("in place of a secret"));
}

//! What an operator reads: the place, the line, the caret, the reason and the cure.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use muster_config::{Input, Inputs, load, parse, parse_text};

/// What is printed about a configuration: its errors and warnings, or its warnings alone.
fn said(text: &str) -> String {
    match parse_text(text) {
        Ok(loaded) => loaded.warnings.iter().map(|warning| format!("{warning}\n")).collect(),
        Err(refused) => format!("{refused}\n"),
    }
}

/// The messages alone.
fn messages(text: &str) -> Vec<String> {
    match parse_text(text) {
        Ok(loaded) => loaded.warnings.into_iter().map(|warning| warning.message).collect(),
        Err(refused) => refused.0.into_iter().map(|diagnostic| diagnostic.message).collect(),
    }
}

const REMOTE: &str = "<ossec_config><remote><connection>secure</connection></remote></ossec_config>";

#[test]
fn a_bad_value_shows_its_line_with_a_caret_below_it() {
    let text = "<ossec_config>\n  <remote>\n    <connection>secure</connection>\n    <port>15140000</port>\n  </remote>\n</ossec_config>\n";
    assert_eq!(
        said(text),
        "etc/ossec.conf:4:11: <port> must be a number from 1 to 65535, not '15140000'\n\
         4 |     <port>15140000</port>\n\
         \x20 |           ^^^^^^^^\n"
    );
}

#[test]
fn tabs_stand_before_the_caret_too_and_columns_count_characters() {
    let text = "<ossec_config>\n\t<!-- Größe --> <auth><port>x</port></auth>\n</ossec_config>";
    assert_eq!(
        said(text),
        "etc/ossec.conf:2:29: <port> must be a number from 1 to 65535, not 'x'\n\
         2 | \t<!-- Größe --> <auth><port>x</port></auth>\n\
         \x20 | \t                           ^\n"
    );
}

#[test]
fn all_problems_are_found_before_the_file_is_refused_in_the_order_of_their_lines() {
    let text = "<ossec_config>\n<nats><format>x</format>\n<server_url>nats://a</server_url></nats>\n<auth><port>0</port>\n\
                <purge>Yes</purge>\n<prot>1</prot></auth>\n<remote><port>70000</port></remote>\n</ossec_config>";
    let refused = parse_text(text).unwrap_err();
    let lines: Vec<_> = refused
        .0
        .iter()
        .map(|problem| problem.place.as_ref().unwrap().line)
        .collect();
    assert_eq!(lines, [2, 4, 5, 6, 7, 7]);
    assert_eq!(refused.errors().count(), 5, "{refused}");
}

#[test]
fn unknown_elements_are_warnings_with_what_may_have_been_meant() {
    let text = REMOTE.replace(
        "<remote>",
        "<remote>\n<prot>1514</prot><agents_disconnection_time>5m</agents_disconnection_time><banana/>\n",
    );
    assert_eq!(
        messages(&text),
        [
            "unknown element <prot> in <remote> is ignored; did you mean <port>?",
            "unknown element <agents_disconnection_time> in <remote> is ignored; it belongs in <global>",
            "unknown element <banana> in <remote> is ignored",
        ]
    );
}

#[test]
fn unknown_top_level_blocks_and_roots_are_warnings_too() {
    let text = "<ossec_config><remot/></ossec_config><agent_config/><ossec_conf/><x/>";
    assert_eq!(
        messages(text),
        [
            "unknown element <remot> in <ossec_config> is ignored; did you mean <remote>?",
            "<agent_config> is for agents and belongs in etc/shared/<group>/agent.conf; it is ignored",
            "<ossec_conf> is no root of a configuration and is ignored; did you mean <ossec_config>?",
            "<x> is no root of a configuration and is ignored; put it into <ossec_config>",
        ]
    );
}

#[test]
fn unknown_attributes_are_warnings_and_missing_ones_are_errors() {
    let text =
        "<ossec_config><nats><server_url x='1'>nats://a</server_url><spool max_byte='1GB'/></nats></ossec_config>";
    assert_eq!(
        messages(text),
        [
            "<server_url> has no attribute 'x'; it is ignored",
            "unknown attribute 'max_byte' of <spool> is ignored; did you mean max_bytes?",
        ]
    );
    let text = "<ossec_config><auth><force><disconnected_time>1h</disconnected_time></force></auth></ossec_config>";
    assert_eq!(
        messages(text),
        ["<disconnected_time> has no attribute enabled; write <disconnected_time enabled=\"...\">"]
    );
}

#[test]
fn stray_text_and_elements_within_values_are_pointed_out() {
    let text = "<ossec_config><auth>port>1515</port><purge>yes<b/></purge></auth></ossec_config> end";
    let found = messages(text);
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("</port> closes nothing; <auth> of line 1 is open here")),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("text that means nothing in <auth>")),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|line| line == "<purge> holds a value, not elements; <b> is ignored"),
        "{found:?}"
    );
    assert!(
        found.iter().any(|line| line.starts_with("text outside of every block")),
        "{found:?}"
    );
}

#[test]
fn elements_that_are_never_closed_are_errors_at_their_start_tag() {
    assert_eq!(
        said("<ossec_config>\n  <auth>\n    <port>1515</port>\n"),
        "etc/ossec.conf:1:2: <ossec_config> is not closed at the end of the file; put </ossec_config> where it ends\n\
         1 | <ossec_config>\n\
         \x20 |  ^^^^^^^^^^^^\n\
         etc/ossec.conf:2:4: <auth> is not closed at the end of the file; put </auth> where it ends\n\
         2 |   <auth>\n\
         \x20 |    ^^^^\n"
    );
}

#[test]
fn a_wrong_end_tag_hides_neither_itself_nor_what_follows() {
    let text = "<ossec_config>\n<auth>\n<port>1515</prot>\n<purge>no</purge>\n</auth>\n<nats><format>x</format></nats>\n</ossec_config>";
    assert_eq!(
        messages(text),
        [
            "<port> is not closed before </auth> in line 5; put </port> there",
            "</prot> closes nothing; <port> of line 3 is open here",
            "<port> holds a value, not elements; <purge> is ignored",
            "<nats> has no <server_url>; write one, such as nats://127.0.0.1:4222, or <enabled>no</enabled>",
            "<format> must be 'native', 'cloudevents', 'cloudevents-structured', 'ocsf' or 'ocsf-1.9', not 'x'",
        ]
    );
}

#[test]
fn broken_xml_is_an_error_with_its_place_and_what_came_before_is_still_checked() {
    for (broken, line) in [
        ("<ossec_config>\n<auth><port>0</port></auth>\n<!-- never closed\n", 3),
        ("<ossec_config>\n<auth><port>0</port></auth>\n<![CDATA[ x", 3),
        ("<ossec_config>\n<auth><port>0</port></auth>\n<nats", 3),
        ("<ossec_config>\n<auth><port>0</port></auth>\n<nats x=\"1>\n", 3),
    ] {
        let refused = parse_text(broken).unwrap_err();
        let places: Vec<_> = refused
            .errors()
            .map(|error| error.place.as_ref().unwrap().line)
            .collect();
        assert_eq!(places, [2, line], "{refused}");
        assert!(refused.to_string().contains("broken XML"), "{refused}");
    }
}

#[test]
fn a_broken_attribute_matters_where_the_element_does() {
    let text = "<ossec_config><localfile x=1 y><a b></a></localfile></ossec_config>";
    assert_eq!(messages(text), [""; 0]);
    let text = "<ossec_config><auth><force><disconnected_time enabled=yes>1h</disconnected_time></force></auth></ossec_config>";
    assert!(
        messages(text)[0].starts_with("broken attribute in <disconnected_time>"),
        "{:?}",
        messages(text)
    );
}

#[test]
fn a_lone_less_than_sign_is_named() {
    let text = "<ossec_config><auth><ciphers>a < b</ciphers></auth></ossec_config>";
    assert!(messages(text).contains(&"this '<' begins no element; write &lt; for the character itself".to_owned()));
}

#[test]
fn a_value_given_twice_counts_last_and_a_bad_first_one_is_still_an_error() {
    let twice =
        |first: &str| format!("<ossec_config><auth>\n<port>{first}</port>\n<port>2</port></auth></ossec_config>");
    let loaded = parse_text(&twice("1")).unwrap();
    assert_eq!(loaded.settings.auth.port, 2);
    assert_eq!(
        loaded.warnings[0].message,
        "<port> is given again in line 3; the last one counts"
    );
    assert!(parse_text(&twice("x")).is_err());
}

#[test]
fn legal_and_unwise_keepalives_are_warned_about() {
    let keepalive = |interval, timeout, missed, retry| {
        messages(&REMOTE.replace(
            "</remote>",
            &format!(
                "<manager_keepalive><interval>{interval}</interval><timeout>{timeout}</timeout><max_missed>{missed}</max_missed>\
                 <retry_interval>{retry}</retry_interval></manager_keepalive></remote>"
            ),
        ))
    };
    assert_eq!(keepalive(60, 180, 3, 30), [""; 0]);
    assert!(keepalive(60, 30, 3, 30)[0].contains("shorter than <interval>"));
    assert!(keepalive(60, 600, 3, 30)[0].contains("is 180s"));
    assert!(keepalive(60, 180, 10, 30)[0].contains("never missed"));
    assert!(keepalive(60, 180, 3, 90)[0].contains("the next keepalive comes first"));
}

#[test]
fn options_that_need_each_other_are_checked_together() {
    let nats = |inner: &str| {
        messages(&format!(
            "<ossec_config><nats><server_url>nats://a</server_url>{inner}</nats></ossec_config>"
        ))
    };
    assert!(nats("<tls_cert>c</tls_cert>")[0].starts_with("<tls_cert> needs <tls_key>"));
    assert!(nats("<tls_key>k</tls_key>")[0].starts_with("<tls_key> needs <tls_cert>"));
    assert!(nats("<user>u</user>")[0].starts_with("<user> needs <password>"));
    assert!(nats("<token>t</token><nkey_file>n</nkey_file>")[0].contains("two ways to log in"));
    assert!(messages("<ossec_config><nats/></ossec_config>")[0].starts_with("<nats> has no <server_url>"));
    assert_eq!(
        messages("<ossec_config><nats><enabled>no</enabled></nats></ossec_config>"),
        [""; 0]
    );
    assert!(messages("<ossec_config><remote/></ossec_config>")[0].starts_with("<remote> has no <connection>"));
}

#[test]
fn two_blocks_on_one_port_are_refused_unless_carrier_or_address_differ() {
    let two = |one: &str, other: &str| {
        let block = |inner: &str| format!("<remote><connection>secure</connection>{inner}</remote>");
        parse_text(&format!("<ossec_config>{}{}</ossec_config>", block(one), block(other)))
    };
    assert!(two("", "").is_err());
    assert!(two("<local_ip>127.0.0.1</local_ip>", "").is_err());
    for (one, other) in [
        ("<port>1514</port>", "<port>1513</port>"),
        ("<protocol>tcp</protocol>", "<protocol>udp</protocol>"),
        ("<local_ip>127.0.0.1</local_ip>", "<local_ip>127.0.0.2</local_ip>"),
    ] {
        let loaded = two(one, other).unwrap();
        assert_eq!(loaded.settings.secure_remotes().count(), 2);
        assert!(
            loaded.warnings[0].message.contains("a stock remoted takes one"),
            "several secure blocks are an addition"
        );
    }
}

#[test]
fn secrets_are_shown_neither_in_values_nor_in_lines() {
    let text = "<ossec_config><nats><server_url>nats://user:hunter2@a</server_url><token></token><password>hunter2</password></nats>\
                <cluster><key>hunter2</key></cluster><auth><port>0</port></auth></ossec_config>";
    let refused = parse_text(text).unwrap_err();
    assert!(refused.errors().count() >= 3, "{refused}");
    assert!(!refused.to_string().contains("hunter2"), "{refused}");
    assert!(!format!("{refused:?}").contains("hunter2"));
}

#[test]
fn what_a_file_says_cannot_steer_the_terminal() {
    let text = format!(
        "<ossec_config><auth><port>\u{1b}[2J{}</port></auth></ossec_config>",
        "9".repeat(500)
    );
    let refused = said(&text);
    assert!(!refused.contains('\u{1b}'), "{refused:?}");
    assert!(refused.lines().all(|line| line.chars().count() < 220), "{refused}");
}

#[test]
fn a_crowd_of_problems_is_counted_rather_than_printed() {
    let text = format!(
        "<ossec_config><auth>{}<port>0</port></auth></ossec_config>",
        "<banana/>\n".repeat(5000)
    );
    let refused = parse_text(&text).unwrap_err();
    assert!(refused.0.len() < 300);
    assert!(
        refused.to_string().contains("<port> must be"),
        "the reason for the refusal is not lost"
    );
    assert!(refused.to_string().ends_with("more problems are not shown"));
}

#[test]
fn a_missing_file_is_named_with_the_cure() {
    let home = tempfile::tempdir().unwrap();
    let refused = load(home.path(), None).unwrap_err().to_string();
    assert!(refused.contains("etc/ossec.conf: cannot read"), "{refused}");
    assert!(refused.contains("`muster-control init`"), "{refused}");
}

#[test]
fn files_that_are_no_configuration_are_refused_as_a_whole() {
    let with = |bytes: Vec<u8>| {
        let input = Input {
            path: "x.conf".into(),
            bytes,
        };
        parse(&Inputs {
            config: vec![input],
            ..Inputs::default()
        })
        .unwrap_err()
        .to_string()
    };
    assert_eq!(
        with(vec![b' '; 8 * 1024 * 1024 + 1]),
        "x.conf: is larger than 8 MiB; is it a configuration?"
    );
    assert_eq!(with(b"\xff\xfe<\0o\0".to_vec()), "x.conf: is UTF-16; save it as UTF-8");
}

#[test]
fn a_file_without_a_root_has_defaults_and_a_warning() {
    assert_eq!(
        messages(""),
        ["there is no <ossec_config> in it: every option has its default"]
    );
}

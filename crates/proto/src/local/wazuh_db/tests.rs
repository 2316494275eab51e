use proptest::prelude::*;

use super::*;

const VM: Manager<'static> = Manager {
    host: "vm",
    node: "undefined",
};

#[test]
fn what_a_keepalive_says_has_the_recorded_form() {
    let text = "Linux |dyn5 |6.1.0-28-amd64 |#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 |x86_64 [Debian GNU/Linux|debian: 12 (bookworm)] - Wazuh v4.14.7\nx merged.mg\n#\"_agent_ip\":127.0.0.1\n";
    assert_eq!(
        update_agent_data(5, &Fields::parse(text), VM, false),
        r##"global update-agent-data {"id":5,"version":"Wazuh v4.14.7","merged_sum":"x","manager_host":"vm","node_name":"undefined","agent_ip":"127.0.0.1","labels":"#\"_manager_hostname\":vm\n#\"_agent_ip\":127.0.0.1\n#\"_node_name\":undefined\n#\"_wazuh_version\":Wazuh v4.14.7","connection_status":"active","sync_status":"synced","group_config_status":"not synced","os_name":"Debian GNU/Linux","os_version":"12","os_major":"12","os_codename":"bookworm","os_platform":"debian","os_uname":"Linux |dyn5 |6.1.0-28-amd64 |#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 |x86_64","os_arch":"x86_64"}"##
    );
    let windows = "Microsoft Windows 10 Pro [Ver: 10.0.19045.3570] |WIN-1 |x86_64 - Wazuh v4.14.7 / 0123456789abcdef0123456789abcdef\nca35 merged.mg\n#\"_agent_ip\":10.0.0.9\n";
    let said = update_agent_data(9, &Fields::parse(windows), VM, true);
    assert!(said.starts_with(
        r#"global update-agent-data {"id":9,"version":"Wazuh v4.14.7","config_sum":"0123456789abcdef0123456789abcdef","merged_sum":"ca35","#
    ));
    assert!(said.ends_with(
        r#""group_config_status":"synced","os_name":"Microsoft Windows 10 Pro","os_version":"10.0.19045.3570","os_major":"10","os_minor":"0","os_platform":"windows","os_build":"19045.3570","os_uname":"Microsoft Windows 10 Pro","os_arch":"x86_64"}"#
    ));
}

#[test]
fn labels_of_the_agent_stand_before_those_of_the_manager() {
    let text = "Linux |h - Wazuh v4.14.7\n\"env\":prod\n#\"sys\":1\n!\"hid\":x\n#!\"sh\":y\nca35 merged.mg\n#\"_agent_ip\":127.0.0.1\n";
    assert!(update_agent_data(9, &Fields::parse(text), VM, true).contains(
        r##""labels":"\"env\":prod\n#\"sys\":1\n!\"hid\":x\n#!\"sh\":y\n#\"_manager_hostname\":vm\n#\"_agent_ip\":127.0.0.1\n#\"_node_name\":undefined\n#\"_wazuh_version\":Wazuh v4.14.7""##
    ));
}

#[test]
fn keepalive_that_says_nothing_still_makes_a_row() {
    assert_eq!(
        update_agent_data(9, &Fields::parse("garbage line no fields\n"), VM, false),
        r##"global update-agent-data {"id":9,"manager_host":"vm","node_name":"undefined","labels":"#\"_manager_hostname\":vm\n#\"_node_name\":undefined","connection_status":"active","sync_status":"synced","group_config_status":"not synced"}"##
    );
}

#[test]
fn short_commands_have_the_recorded_form() {
    assert_eq!(
        update_keepalive(5, Connection::Pending),
        r#"global update-keepalive {"id":5,"connection_status":"pending","sync_status":"synced"}"#
    );
    assert_eq!(
        update_connection_status(9, Connection::Disconnected, StatusCode::Shutdown),
        r#"global update-connection-status {"id":9,"connection_status":"disconnected","sync_status":"synced","status_code":3}"#
    );
    assert_eq!(
        update_status_code(10, StatusCode::InvalidVersion, Some("v4.15.0")),
        r#"global update-status-code {"id":10,"status_code":1,"version":"Wazuh v4.15.0","sync_status":"synced"}"#
    );
    assert_eq!(
        update_status_code(10, StatusCode::NoVersion, None),
        r#"global update-status-code {"id":10,"status_code":2,"sync_status":"synced"}"#
    );
    assert_eq!(select_agent_group(5), "global select-agent-group 5");
    assert_eq!(
        set_first_group(5, "default"),
        r#"global set-agent-groups {"mode":"empty_only","sync_status":"synced","data":[{"id":5,"groups":["default"]}]}"#
    );
}

#[test]
fn length_of_a_command_counts_its_nul_and_that_of_an_answer_does_not() {
    assert_eq!(frame("ab"), Some(b"\x03\0\0\0ab\0".to_vec()));
    assert_eq!(frame(&"a".repeat(MAX_FRAME_LEN)), None);
    assert_eq!(answer_len([2, 0, 0, 0]), Some(2));
    assert_eq!(answer_len([0xff; 4]), None);
    assert_eq!(Answer::parse(b"ok"), Answer::Ok(""));
    assert_eq!(Answer::parse(b"ok [{}]"), Answer::Ok("[{}]"));
    assert_eq!(
        Answer::parse(b"err Invalid DB query syntax, near 'nosuch'"),
        Answer::Refused("Invalid DB query syntax, near 'nosuch'")
    );
}

#[test]
fn groups_are_read_as_they_were_recorded() {
    let groups = |list: &[&str]| {
        Some(Membership::Groups(
            list.iter().map(|group| (*group).to_owned()).collect(),
        ))
    };
    assert_eq!(Membership::parse("[]"), Some(Membership::NoRow));
    assert_eq!(Membership::parse("[{}]"), Some(Membership::None));
    assert_eq!(Membership::parse(r#"[{"group":"default"}]"#), groups(&["default"]));
    assert_eq!(
        Membership::parse(r#"[{"group":"default,web"}]"#),
        groups(&["default", "web"])
    );
    assert_eq!(Membership::parse("nonsense"), None);
}

#[test]
fn command_stays_within_a_frame_however_many_labels_there_are() {
    let labels = "\"k\":\"\"\"\"\"\"\"\"\"\"\n".repeat(4000);
    let text = format!("Linux |h - Wazuh v4.14.7\n{labels}x merged.mg\n");
    let said = update_agent_data(1, &Fields::parse(&text), VM, true);
    assert!(frame(&said).is_some());
    assert!(said.contains("_manager_hostname"));
}

proptest! {
    #[test]
    fn any_bytes_are_some_answer(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        if let Answer::Ok(rows) = Answer::parse(&bytes) {
            let _ = Membership::parse(rows);
        }
    }
}

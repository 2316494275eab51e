use super::*;

fn refused(request: &str) -> String {
    let error = Command::parse(request.as_bytes()).expect_err("is refused");
    String::from_utf8(failure(error)).expect("UTF-8")
}

fn saying(error: u8, message: &str) -> String {
    format!(r#"{{"error":{error},"message":"{message}","data":{{}}}}"#)
}

#[test]
fn each_bad_command_is_answered_with_the_stock_number_and_text() {
    let agents = |parameters: &str| format!(r#"{{"command":"getagentsstats","parameters":{parameters}}}"#);
    let many: Vec<String> = (1..200).map(|id| id.to_string()).collect();
    for (request, error, message) in [
        ("{bad".to_owned(), 2, "Invalid JSON input"),
        ("{".to_owned(), 2, "Invalid JSON input"),
        ("{}".to_owned(), 3, "Empty command"),
        (r#"{"command":1}"#.to_owned(), 3, "Empty command"),
        (r#"{"command":"nosuch"}"#.to_owned(), 4, "Unrecognized command"),
        (r#"{"command":""}"#.to_owned(), 4, "Unrecognized command"),
        (r#"{"command":"getagentsstats"}"#.to_owned(), 5, "Empty parameters"),
        (
            r#"{"command":"getconfig","parameters":{}}"#.to_owned(),
            6,
            "Empty section",
        ),
        (
            r#"{"command":"getconfig","parameters":{"section":1}}"#.to_owned(),
            6,
            "Empty section",
        ),
        (
            r#"{"command":"getconfig","parameters":{"section":"nosuch"}}"#.to_owned(),
            7,
            "Unrecognized or not configured section",
        ),
        (agents(r#"{"agents":"1"}"#), 8, "Invalid agents parameter"),
        (agents("{}"), 8, "Invalid agents parameter"),
        (agents(r#"{"agents":["001"]}"#), 9, "Error getting agents from DB"),
        (agents(r#"{"agents":"all"}"#), 10, "Empty last id"),
        (
            agents(&format!(r#"{{"agents":[{}]}}"#, many.join(","))),
            11,
            "Too many agents",
        ),
        (
            r#"{"command":"assigngroup","parameters":{"agent":"001"}}"#.to_owned(),
            12,
            "Invalid agent or md5 parameter",
        ),
        (
            r#"{"command":"assigngroup","parameters":{"agent":1,"md5":"x"}}"#.to_owned(),
            12,
            "Invalid agent or md5 parameter",
        ),
    ] {
        assert_eq!(refused(&request), saying(error, message), "{request}");
    }
}

#[test]
fn good_commands_are_read() {
    for (request, expected) in [
        (r#"{"command":"getstats"}"#, Command::GetStats),
        (r#"{"Command":"getstats"} trailing"#, Command::GetStats),
        (
            r#"{"command":"getagentsstats","parameters":{"agents":[1,2]}}"#,
            Command::GetAgentsStats(AgentsWanted::Listed(vec![1, 2])),
        ),
        (
            r#"{"command":"getagentsstats","parameters":{"agents":"all","last_id":7}}"#,
            Command::GetAgentsStats(AgentsWanted::Behind { last_id: 7 }),
        ),
        (
            r#"{"command":"getconfig","parameters":{"section":"global"}}"#,
            Command::GetConfig(Section::Global),
        ),
        (
            r#"{"command":"assigngroup","parameters":{"agent":"777","md5":"x"}}"#,
            Command::AssignGroup {
                agent: "777".to_owned(),
                md5: "x".to_owned(),
            },
        ),
    ] {
        assert_eq!(Command::parse(request.as_bytes()), Ok(expected), "{request}");
    }
}

#[test]
fn figures_have_the_recorded_form() {
    let stats = Stats {
        started: 1_795_249_869,
        now: 1_795_250_154,
        bytes_received: 15_309,
        bytes_sent: 3016,
        keys_reloads: 0,
        received: Received {
            control: 32,
            kinds: ControlBreakdown {
                keepalive: 2,
                request: 0,
                shutdown: 5,
                startup: 24,
            },
            events: 50,
        },
        discarded: 0,
        pings: 4,
        unknown: 68,
        sent: Sent {
            ack: 26,
            shared: 6,
            ..Sent::default()
        },
        queue_size: 131_072,
        queue_usage: 0,
        tcp_sessions: 1,
        control_waiting: 0,
        control_inserted: 31,
    };
    assert_eq!(
        String::from_utf8(answer(&stats.data(), false)).expect("UTF-8"),
        r#"{"error":0,"message":"ok","data":{"uptime":1795249869,"timestamp":1795250154,"name":"wazuh-remoted","metrics":{"bytes":{"received":15309,"sent":3016},"keys_reload_count":0,"messages":{"received_breakdown":{"control":32,"control_breakdown":{"keepalive":2,"request":0,"shutdown":5,"startup":24},"dequeued_after":0,"discarded":0,"event":50,"ping":4,"unknown":68},"sent_breakdown":{"ack":26,"ar":0,"discarded":0,"request":0,"sca":0,"shared":6}},"queues":{"received":{"size":131072,"usage":0}},"tcp_sessions":1,"control_messages_queue_usage":0,"control_messages_queue_breakdown":{"inserted":31,"replaced":0,"processed":31}}}}"#
    );
    let agent = AgentStats {
        id: 1,
        since: 1_795_250_154,
        received: Received {
            control: 2,
            kinds: ControlBreakdown {
                keepalive: 1,
                startup: 1,
                ..ControlBreakdown::default()
            },
            events: 0,
        },
        sent: Sent {
            ack: 2,
            shared: 3,
            ..Sent::default()
        },
    };
    assert_eq!(
        String::from_utf8(answer(&AgentStats::data(&[agent], 1_795_250_154), false)).expect("UTF-8"),
        r#"{"error":0,"message":"ok","data":{"timestamp":1795250154,"name":"wazuh-remoted","agents":[{"uptime":1795250154,"id":1,"metrics":{"messages":{"received_breakdown":{"control":2,"control_breakdown":{"keepalive":1,"request":0,"shutdown":0,"startup":1},"event":0},"sent_breakdown":{"ack":2,"ar":0,"discarded":0,"request":0,"sca":0,"shared":3}}}}]}}"#
    );
    assert_eq!(
        String::from_utf8(answer(&AgentStats::data(&[], 7), true)).expect("UTF-8"),
        r#"{"error":1,"message":"due","data":{"timestamp":7,"name":"wazuh-remoted","agents":[]}}"#
    );
}

#[test]
fn text_goes_to_the_agent_whose_id_stands_in_front() {
    for (payload, expected) in [
        (
            &b"001 agent getstate"[..],
            Request::Agent {
                id: "001",
                text: b"agent getstate",
            },
        ),
        (b"001 ", Request::Agent { id: "001", text: b"" }),
        (
            b"001 com write \x00\xff",
            Request::Agent {
                id: "001",
                text: b"com write \x00\xff",
            },
        ),
        (b"{}", Request::Json(b"{}")),
        (b"[1]", Request::Nothing),
        (b"", Request::Nothing),
        (b"getstats", Request::Nothing),
        (b"001", Request::Nothing),
        (b"\xff x", Request::Nothing),
    ] {
        assert_eq!(Request::parse(payload), expected);
    }
}

#[test]
fn length_beyond_a_frame_is_none() {
    assert_eq!(payload_len(65_536_u32.to_le_bytes()), Some(MAX_FRAME_LEN));
    assert_eq!(payload_len(65_537_u32.to_le_bytes()), None);
    assert_eq!(frame(b"ab"), b"\x02\x00\x00\x00ab");
}

use proptest::prelude::*;

use super::*;

fn refusal(payload: &str) -> BadRequest {
    match Request::parse(payload.as_bytes()) {
        Err(bad) => bad,
        Ok(_) => panic!("{payload} was accepted"),
    }
}

fn add(arguments: &str) -> Result<Add, BadRequest> {
    match Request::parse(format!(r#"{{"function":"add","arguments":{arguments}}}"#).as_bytes()) {
        Ok(Request::Add(add)) => Ok(*add),
        Ok(_) => panic!("not an add"),
        Err(bad) => Err(bad),
    }
}

fn add_refusal(arguments: &str) -> BadRequest {
    match add(arguments) {
        Err(bad) => bad,
        Ok(_) => panic!("{arguments} was accepted"),
    }
}

#[test]
fn a_frame_is_a_little_endian_length_and_the_text() {
    let payload = Answer::Error(ErrorCode::NoId).to_payload();
    assert_eq!(&*payload, br#"{"error":9010,"message":"No such agent ID"}"#);
    assert_eq!(frame(&payload)[..4], [0x2b, 0, 0, 0]);
    assert_eq!(payload_len([0x2b, 0, 0, 0]), Some(43));
    assert_eq!(payload_len([0, 0, 1, 0]), Some(65_536));
    assert_eq!(payload_len([1, 0, 1, 0]), None);
    assert_eq!(payload_len([0, 0, 0, 0]), None);
}

#[test]
fn requests_that_miss_something_say_what() {
    for (payload, code) in [
        (r#"{"function":"#, ErrorCode::Json),
        ("{}", ErrorCode::NoFunction),
        (r#"{"arguments":{}}"#, ErrorCode::NoFunction),
        (r#"{"function":"add"}"#, ErrorCode::NoArgument),
        (r#"{"function":"nope","arguments":{}}"#, ErrorCode::Internal),
        (r#"{"function":"nope"}"#, ErrorCode::Internal),
        (r#"{"function":5,"arguments":{}}"#, ErrorCode::Json),
        (r#"{"function":"add","arguments":null}"#, ErrorCode::NoName),
        (r#"{"function":"get","arguments":{}}"#, ErrorCode::NoId),
        (r#"{"function":"get","arguments":{"id":2}}"#, ErrorCode::IdNotFound),
        (r#"{"function":"remove","arguments":{"purge":true}}"#, ErrorCode::NoId),
        (r#"{"function":"remove","arguments":{"id":52}}"#, ErrorCode::IdNotFound),
    ] {
        assert_eq!(refusal(payload), BadRequest::Json(code), "{payload}");
    }
}

#[test]
fn what_does_not_begin_with_a_brace_is_a_text_command() {
    assert!(matches!(Request::parse(b"getconfig auth"), Ok(Request::GetConfig(section)) if section == "auth"));
    assert_eq!(
        refusal("getconfig"),
        BadRequest::Text("err AUTHCOM getconfig needs arguments")
    );
    for payload in ["[1]", " {\"function\":\"get\"}", "agentlist", ""] {
        assert_eq!(
            refusal(payload),
            BadRequest::Text("err Unrecognized command"),
            "{payload}"
        );
    }
}

#[test]
fn names_match_in_any_case_and_text_behind_the_value_is_ignored() {
    for payload in [
        r#"{"function":"get","arguments":{"id":"001"}}xyz"#,
        "{\"function\":\"get\",\"arguments\":{\"id\":\"001\"}}\0",
        r#"{"FUNCTION":"get","Arguments":{"ID":"001"},"more":1}"#,
    ] {
        assert!(matches!(Request::parse(payload.as_bytes()), Ok(Request::Get { id }) if id.as_str() == "001"));
    }
}

#[test]
fn what_crashes_the_stock_daemon_is_an_error() {
    for arguments in [
        r#"{"name":5,"ip":"any"}"#,
        r#"{"name":"z1","ip":5}"#,
        r#"{"name":"w","ip":"any","groups":["g1"]}"#,
    ] {
        assert_eq!(add_refusal(arguments), BadRequest::Json(ErrorCode::Json), "{arguments}");
    }
}

#[test]
fn only_the_boolean_true_purges() {
    for (purge, expected) in [
        ("true", true),
        ("false", false),
        ("1", false),
        ("\"true\"", false),
        ("null", false),
    ] {
        let payload = format!(r#"{{"function":"remove","arguments":{{"id":"001","purge":{purge}}}}}"#);
        assert!(
            matches!(Request::parse(payload.as_bytes()), Ok(Request::Remove { purge, .. }) if purge == expected),
            "{payload}"
        );
    }
}

#[test]
fn an_id_has_1_to_8_digits_is_not_zero_and_gets_three() {
    for (id, expected) in [("\"51\"", "051"), ("\"00051\"", "051"), ("\"12345678\"", "12345678")] {
        let added = add(&format!(r#"{{"name":"n1","ip":"any","id":{id}}}"#)).expect("accepted");
        assert_eq!(added.id, Some(AgentId::new(expected)));
    }
    for id in ["\"\"", "\"abc\"", "\"000\"", "\"123456789\"", "\"1 2\""] {
        let arguments = format!(r#"{{"name":"n1","ip":"any","id":{id}}}"#);
        assert_eq!(add_refusal(&arguments), BadRequest::Json(ErrorCode::NoId), "{id}");
    }
}

#[test]
fn an_id_or_key_that_is_no_text_counts_as_absent() {
    let added = add(r#"{"name":"n1","ip":"any","id":77,"key":5,"groups":7}"#).expect("accepted");
    assert!(added.id.is_none() && added.key.is_none() && added.groups.is_empty());
}

#[test]
fn a_key_has_1_to_127_bytes_without_space() {
    assert!(add(r#"{"name":"n1","ip":"any","key":"abc"}"#).is_ok());
    let long = "k".repeat(128);
    for key in ["", "a b", "a\\nb", &long] {
        let arguments = format!(r#"{{"name":"n1","ip":"any","key":"{key}"}}"#);
        assert_eq!(add_refusal(&arguments), BadRequest::Json(ErrorCode::Key), "{key}");
    }
}

#[test]
fn a_name_that_would_break_its_line_is_none() {
    for name in ["", "a b", "!a", "a\\nb"] {
        let arguments = format!(r#"{{"name":"{name}","ip":"any"}}"#);
        assert_eq!(add_refusal(&arguments), BadRequest::Json(ErrorCode::NoName), "{name}");
    }
}

#[test]
fn force_needs_all_its_members() {
    let whole = r#""enabled":true,"key_mismatch":true,"disconnected_time":{"enabled":true,"value":"1h"},"after_registration_time":"0""#;
    let force = |members: &str| add(&format!(r#"{{"name":"n1","ip":"any","force":{members}}}"#));
    assert_eq!(
        force(&format!("{{{whole}}}")).expect("accepted").force,
        Some(Rules {
            after_registration_time: 0,
            ..Rules::default()
        })
    );
    for members in [
        "null".to_owned(),
        "{}".to_owned(),
        "\"yes\"".to_owned(),
        format!("{{{}}}", whole.replace(r#""key_mismatch":true,"#, "")),
        format!("{{{}}}", whole.replace(r#","value":"1h""#, "")),
        format!("{{{}}}", whole.replace(r#"{"enabled":true,"#, "{")),
        format!("{{{}}}", whole.replace(r#":"0""#, r#":"1x""#)),
        format!("{{{}}}", whole.replace(r#":"0""#, ":null")),
    ] {
        assert!(
            matches!(force(&members), Err(BadRequest::Json(ErrorCode::Json))),
            "{members}"
        );
    }
}

#[test]
fn force_takes_numbers_for_booleans_and_negative_times() {
    let added = add(
        r#"{"name":"n1","ip":"any","force":{"enabled":1,"key_mismatch":"yes","disconnected_time":{"enabled":0,"value":7},"after_registration_time":-5}}"#,
    );
    assert_eq!(
        added.expect("accepted").force,
        Some(Rules {
            enabled: true,
            key_mismatch: false,
            disconnected_time: None,
            after_registration_time: -5
        })
    );
}

#[test]
fn answers_have_the_stock_text_and_read_back() {
    let agent = AgentData {
        id: "001".to_owned(),
        name: "web-01".to_owned(),
        ip: "any".to_owned(),
        key: "kk".to_owned(),
    };
    for (answer, text) in [
        (
            Answer::Agent(agent),
            r#"{"error":0,"data":{"id":"001","name":"web-01","ip":"any","key":"kk"}}"#,
        ),
        (
            Answer::Ensured(Ensured::Unchanged),
            r#"{"error":0,"data":{"ensured":"unchanged"}}"#,
        ),
        (Answer::Removed, r#"{"error":0,"data":"Agent deleted successfully."}"#),
        (
            Answer::Error(ErrorCode::InvalidGroups),
            r#"{"error":9014,"message":"Invalid Group(s) Name(s)"}"#,
        ),
    ] {
        assert_eq!(str::from_utf8(&answer.to_payload()), Ok(text));
        assert!(Answer::parse(text.as_bytes()) == Ok(answer));
    }
    assert!(matches!(
        Answer::parse(br#"{"error":9015,"message":"Cannot execute this request on a worker node"}"#),
        Err(AnswerError::UnknownCode { code: 9015, .. })
    ));
    assert!(matches!(Answer::parse(b"nonsense"), Err(AnswerError::Unreadable)));
}

proptest! {
    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::parse(&bytes);
        let _ = Request::parse(&[b"{\"function\":", bytes.as_slice()].concat());
        let _ = Answer::parse(&bytes);
    }

    #[test]
    fn what_is_written_reads_back(
        name in "[A-Za-z0-9_-]{1,30}",
        id in prop::option::of(1u32..99_999_999),
        key in prop::option::of("[!-~]{1,127}"),
        groups in prop::collection::hash_set("[a-z0-9]{1,8}", 0..4),
        key_hash in prop::option::of("[0-9a-f]{40}"),
        times in prop::option::of((prop::option::of(1i64..1_000_000), -5i64..1_000_000)),
    ) {
        let force = times.map(|(disconnected_time, after_registration_time)| Rules {
            enabled: true, key_mismatch: false, disconnected_time, after_registration_time,
        });
        let request = Request::Add(Box::new(Add {
            name,
            ip: "10.0.0.0/8".to_owned(),
            id: id.map(AgentId::from_number),
            key: key.map(Secret::new),
            groups: groups.into_iter().collect(),
            key_hash,
            force,
        }));
        prop_assert!(Request::parse(&request.to_payload()) == Ok(request));
    }
}

//! What local programs send to the sockets that stock daemons know, and what is sent to them.

use muster_proto::{
    agent::AgentId,
    keys::address::RegisteredAddress,
    local::{
        Layout,
        active_response::Order,
        analysis::{MAX_DATAGRAM_LEN, NotForwarded, Source, parse, write_event},
        auth::{self, Answer, BadRequest, Request},
        remote::{self, Command},
        wazuh_db::{self, Connection, Manager, Membership, StatusCode},
    },
    transport::keepalive::Keepalive,
};

use super::draw::Draw;

const LAYOUTS: [Layout; 2] = [Layout::Wazuh, Layout::Ossec];

/// Orders to agents, in both layouts.
pub(super) fn active_response(input: &[u8]) {
    for layout in LAYOUTS {
        let Ok(Some(order)) = Order::parse(layout, input) else {
            continue;
        };
        let _ = order.message().to_bytes();
        let datagram = order.to_datagram("sender");
        for layout in LAYOUTS {
            assert_eq!(Order::parse(layout, &datagram), Ok(Some(order.clone())));
        }
    }
}

/// Datagrams to the analysis daemon: read as they are, and made of what an agent says.
pub(super) fn analysis(input: &[u8]) {
    for layout in LAYOUTS {
        if let Ok(received) = parse(layout, input) {
            assert!(received.location.len() + received.message.len() < input.len());
            let _ = received.origin();
        }
    }
    let mut draw = Draw::new(input);
    let layout = LAYOUTS[draw.below(2)];
    let address = ["any", "10.0.0.5", "2001:db8::1", "10.1.0.0/16"][draw.below(4)];
    let name = ["web-01", "a.b_c", "x|y:z"][draw.below(3)];
    let long = draw.below(8) == 7;
    let payload = if long {
        draw.rest().repeat(3000)
    } else {
        draw.rest().to_vec()
    };
    let Ok(address) = RegisteredAddress::parse(address) else {
        return;
    };
    let source = Source::new(layout, &AgentId::new("001"), name, &address);
    let mut datagram = b"before".to_vec();
    let outcome = write_event(&mut datagram, &source, &payload);
    let Some(datagram) = datagram.strip_prefix(b"before") else {
        panic!("what was in the buffer stays");
    };
    if let Err(refused) = outcome {
        assert!(datagram.is_empty());
        assert!(refused == NotForwarded::SignOfLife || payload.get(1) != Some(&b':') || payload.first() == Some(&0));
        return;
    }
    assert!(datagram.len() <= MAX_DATAGRAM_LEN && datagram.last() == Some(&0));
    let said = payload.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = said.get(2..).unwrap_or_default();
    let body = datagram.strip_suffix(b"\0").unwrap_or_default();
    assert!(
        body.ends_with(text) || datagram.len() == MAX_DATAGRAM_LEN,
        "passed on byte for byte"
    );
    // The agent may leave out the colon behind its location; then it is no event, but never another agent's.
    if let Ok(received) = parse(layout, datagram) {
        assert_eq!(Some(&received.queue), payload.first());
        let origin = received.origin().expect("an agent's event has an origin");
        assert_eq!((origin.name, origin.address), (name, address.host_text()));
        assert_eq!(origin.id, (layout == Layout::Wazuh).then_some("001"));
    }
}

/// authd's JSON, both ways.
pub(super) fn auth_json(input: &[u8]) {
    if let Some(field) = input.first_chunk() {
        assert!(auth::payload_len(*field).is_none_or(|length| length <= auth::MAX_PAYLOAD_LEN));
    }
    match Request::parse(input) {
        Ok(request) => {
            let payload = request.to_payload();
            assert!(Request::parse(&payload) == Ok(request), "{}", payload.escape_ascii());
        }
        Err(BadRequest::Json(code)) => {
            let answer = Answer::Error(code);
            assert!(Answer::parse(&answer.to_payload()) == Ok(answer));
        }
        Err(BadRequest::Text(_)) => {}
    }
    if let Ok(answer) = Answer::parse(input) {
        assert!(Answer::parse(&answer.to_payload()) == Ok(answer));
    }
}

/// What local programs ask remoted.
pub(super) fn remote_socket(input: &[u8]) {
    if let Some(field) = input.first_chunk() {
        assert!(remote::payload_len(*field).is_none_or(|length| length <= remote::MAX_FRAME_LEN));
    }
    match remote::Request::parse(input) {
        remote::Request::Json(json) => {
            assert_eq!(json, input);
            let _ = Command::parse(json);
        }
        remote::Request::Agent { id, text } => {
            assert_eq!([id.as_bytes(), b" ", text].concat(), input);
        }
        remote::Request::Nothing => {}
    }
}

/// What remoted writes to the stock database of what an agent says, and what it reads there.
pub(super) fn wazuh_db(input: &[u8]) {
    if let Some(field) = input.first_chunk() {
        assert!(wazuh_db::answer_len(*field).is_none_or(|length| length <= wazuh_db::MAX_FRAME_LEN));
    }
    if let wazuh_db::Answer::Ok(rows) = wazuh_db::Answer::parse(input)
        && let Some(Membership::Groups(groups)) = Membership::parse(rows)
    {
        assert!(!groups.is_empty() && groups.iter().all(|group| !group.is_empty() && !group.contains(',')));
    }
    let text = String::from_utf8_lossy(input);
    let keepalive = Keepalive::parse(&text);
    let manager = Manager {
        host: &text,
        node: "node01",
    };
    for command in [
        wazuh_db::set_first_group(1, &text),
        wazuh_db::update_status_code(1, StatusCode::InvalidVersion, Some(&text)),
        wazuh_db::update_agent_data(1, &keepalive.fields(), manager, true),
        wazuh_db::update_keepalive(1, Connection::Active),
        wazuh_db::select_agent_group(1),
    ] {
        assert!(
            !command.bytes().any(|byte| byte < b' '),
            "one command, whatever an agent says: {command:?}"
        );
        if let Some((front, json)) = command.split_once(" {") {
            assert_eq!(front.split(' ').count(), 2);
            let json = format!("{{{json}");
            assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok_and(|value| value.is_object()));
        }
        if let Some(frame) = wazuh_db::frame(&command) {
            let (header, payload) = frame.split_first_chunk().expect("a header");
            assert_eq!(wazuh_db::answer_len(*header), Some(payload.len()));
            assert_eq!(payload.strip_suffix(b"\0"), Some(command.as_bytes()));
        }
    }
}

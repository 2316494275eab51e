use proptest::prelude::*;

use super::*;

const KEY: &str = "ac575526e8bbcddf6654e5aa0a39fa60a0020e5d34ed1370916368bdaf5f0c71";

fn by_id(id: &str) -> Lookup {
    Lookup::new("id", id).unwrap()
}

fn by_address(ip: &str) -> Lookup {
    Lookup::new("ip", ip).unwrap()
}

fn success(id: &str, name: &str, ip: &str, key: &str) -> String {
    serde_json::json!({"error": 0, "data": {"id": id, "name": name, "ip": ip, "key": key}}).to_string()
}

fn read(text: &str) -> Result<Answer, Unusable> {
    Answer::read(text.as_bytes(), &by_id("001"))
}

fn agent(text: &str, lookup: &Lookup) -> Agent {
    match Answer::read(text.as_bytes(), lookup) {
        Ok(Answer::Agent(agent)) => agent,
        other => panic!("{other:?} from {text}"),
    }
}

#[test]
fn the_documented_answer_is_read() {
    let text = "{\n    \"error\": 0,\n    \"data\": {\n        \"id\": \"001\",\n        \"name\": \"my_agent\",\n        \
                \"ip\": \"192.168.1.100\",\n        \"key\": \"ac575526e8bbcddf6654e5aa0a39fa60a0020e5d34ed1370916368bdaf5f0c71\"\n    }\n}\n";
    for lookup in [by_id("001"), by_address("192.168.1.100")] {
        let agent = agent(text, &lookup);
        assert_eq!((agent.id.as_str(), agent.name.as_str()), ("001", "my_agent"));
        assert_eq!((agent.address.text(), agent.key.expose()), ("192.168.1.100", KEY));
    }
}

#[test]
fn what_follows_the_object_is_not_looked_at() {
    let text = success("001", "web-01", "any", KEY) + "\nDeprecation warning: }{";
    assert_eq!(agent(&text, &by_id("001")).address.text(), "any");
}

#[test]
fn members_are_found_in_any_order_and_letter_case_and_the_first_counts() {
    let text = r#"{"x":[1,{"id":"9"}],"DATA":{"Key":"k1","extra":null,"IP":"any","Name":"web-01","Id":"1","id":"2"},"Error":0,"error":7}"#;
    let agent = agent(text, &by_id("001"));
    assert_eq!((agent.id.as_str(), agent.key.expose()), ("001", "k1"));
}

#[test]
fn failures_keep_their_number_and_a_tame_message() {
    assert_eq!(
        read(r#"{"error":4,"message":"No agent\nkey found"}"#),
        Ok(Answer::Error {
            code: NO_SUCH_AGENT,
            message: "No agent key found".to_owned()
        })
    );
    assert_eq!(
        read(r#"{"error":-1}"#),
        Ok(Answer::Error {
            code: -1,
            message: String::new()
        })
    );
    let long = serde_json::json!({"error": 1, "message": "é".repeat(5000)}).to_string();
    assert!(matches!(read(&long), Ok(Answer::Error { message, .. }) if message.chars().count() == MAX_MESSAGE_LEN));
}

#[test]
fn broken_answers_say_what_they_should_have_been() {
    for (text, expected) in [
        ("", Unusable::Json),
        ("Traceback (most recent call last):", Unusable::Json),
        ("[]", Unusable::Json),
        ("null", Unusable::Json),
        ("{\"error\":0", Unusable::Json),
        ("{}", Unusable::Error),
        (r#"{"error":"no"}"#, Unusable::Error),
        (r#"{"error":"0","data":{}}"#, Unusable::Error),
        (r#"{"error":0.0,"data":{}}"#, Unusable::Error),
        (r#"{"error":null}"#, Unusable::Error),
        (r#"{"error":0}"#, Unusable::Data),
        (r#"{"error":0,"data":[]}"#, Unusable::Data),
        (r#"{"error":0,"data":{}}"#, Unusable::Field("id")),
        (r#"{"error":0,"data":{"id":1}}"#, Unusable::Field("id")),
        (r#"{"error":0,"data":{"id":"1"}}"#, Unusable::Field("name")),
        (r#"{"error":0,"data":{"id":"1","name":"ab"}}"#, Unusable::Field("ip")),
        (
            r#"{"error":0,"data":{"id":"1","name":"ab","ip":"any"}}"#,
            Unusable::Field("key"),
        ),
        (
            r#"{"error":0,"data":{"id":"1","name":"ab","ip":"any","key":["k"]}}"#,
            Unusable::Field("key"),
        ),
    ] {
        assert_eq!(read(text), Err(expected), "{text}");
    }
}

#[test]
fn fields_are_held_to_the_documented_table() {
    let long_name = "n".repeat(129);
    let long_key = "k".repeat(129);
    for (id, name, ip, key, expected) in [
        ("", "web-01", "any", KEY, Unusable::Id),
        ("0", "web-01", "any", KEY, Unusable::Id),
        ("abc", "web-01", "any", KEY, Unusable::Id),
        ("123456789", "web-01", "any", KEY, Unusable::Id),
        ("001", "", "any", KEY, Unusable::Name),
        ("001", "bad name", "any", KEY, Unusable::Name),
        ("001", "!web", "any", KEY, Unusable::Name),
        ("001", long_name.as_str(), "any", KEY, Unusable::Name),
        ("001", "web-01", "1.2.3", KEY, Unusable::Address),
        ("001", "web-01", "", KEY, Unusable::Address),
        ("001", "web-01", "!any", KEY, Unusable::Address),
        ("001", "web-01", "10.0.0.0/33", KEY, Unusable::Address),
        ("001", "web-01", "any", "", Unusable::Key),
        ("001", "web-01", "any", "a b", Unusable::Key),
        ("001", "web-01", "any", "a\nb", Unusable::Key),
        ("001", "web-01", "any", "clé", Unusable::Key),
        ("001", "web-01", "any", long_key.as_str(), Unusable::Key),
    ] {
        assert_eq!(
            read(&success(id, name, ip, key)),
            Err(expected),
            "{id} {name} {ip} {key}"
        );
    }
}

#[test]
fn networks_are_kept_with_their_prefix() {
    assert_eq!(
        agent(&success("001", "web-01", "10.3.0.0/16", KEY), &by_id("001"))
            .address
            .text(),
        "10.3.0.0/16"
    );
    assert_eq!(
        agent(&success("001", "web-01", "0.0.0.0/0", KEY), &by_id("001"))
            .address
            .text(),
        "0.0.0.0/0"
    );
}

#[test]
fn fields_of_128_bytes_are_cut_as_key_lines_are() {
    let (name, key) = ("n".repeat(128), "k".repeat(128));
    let agent = agent(&success("001", &name, "any", &key), &by_id("001"));
    assert_eq!((agent.name.len(), agent.key.expose().len()), (127, 127));
}

#[test]
fn an_answer_for_another_agent_is_refused() {
    let other = success("902", "web-01", "any", KEY);
    assert_eq!(Answer::read(other.as_bytes(), &by_id("102")), Err(Unusable::OtherId));
    for ip in ["192.168.1.101", "any", "192.168.1.0/24"] {
        let text = success("001", "web-01", ip, KEY);
        let refused = Answer::read(text.as_bytes(), &by_address("192.168.1.100"));
        assert_eq!(refused, Err(Unusable::OtherAddress), "{ip}");
    }
}

#[test]
fn the_same_agent_may_be_written_in_another_way() {
    let short = agent(&success("1", "web-01", "any", KEY), &by_id("00001"));
    assert_eq!(short.id.as_str(), "001");
    agent(
        &success("001", "web-01", "192.168.1.100/32", KEY),
        &by_address("::ffff:192.168.1.100"),
    );
    agent(
        &success("001", "web-01", "2001:db8::1", KEY),
        &by_address("2001:0DB8:0000:0000:0000:0000:0000:0001"),
    );
}

#[test]
fn endless_nesting_is_no_answer() {
    assert_eq!(read(&"{\"a\":".repeat(100_000)), Err(Unusable::Json));
}

proptest! {
    #[test]
    fn whatever_comes_is_an_answer_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Answer::read(&bytes, &by_id("001"));
    }

    #[test]
    fn what_is_accepted_fits_a_key_line(id in "[0-9]{0,9}", name in "\\PC{0,6}", ip in "[0-9./any:]{0,12}", key in "\\PC{0,6}") {
        if let Ok(Answer::Agent(agent)) = Answer::read(success(&id, &name, &ip, &key).as_bytes(), &by_id("001")) {
            let line = format!("{} {} {} {}\n", agent.id, agent.name, agent.address, agent.key.expose());
            let file = muster_proto::keys::file::parse(line.as_bytes());
            prop_assert!(file.problems.is_empty() && file.removed.is_empty());
            prop_assert_eq!(file.entries.len(), 1);
            prop_assert!(file.entries[0].key == agent.key && file.entries[0].name == agent.name);
        }
    }
}

//! Active responses for agents that know no JSON: Wazuh before 4.2, and OSSEC.
//!
//! ```text
//! <command> <user> <address> <alert id> <rule id> <location> <file> <extra arguments>      of an alert
//! <command> <extra arguments>                                                              of an operator
//! restart-ossec0 - null (from_the_server) (no_rule_id)                                     to restart
//! ```
//!
//! What is absent is `-`.

use serde_json::Value;

/// What such agents read of an order.
const MAX_TEXT_LEN: usize = 1023;
/// Restarts a Wazuh agent from 4.2 on.
const RESTART: &str = "restart-wazuh0";
/// Restarts every other one; each `ar.conf` has it.
const RESTART_TEXT: &str = "restart-ossec0";
const FROM_THE_SERVER: &str = "- null (from_the_server) (no_rule_id)";
const ABSENT: &str = "-";

/// The text that says the same as a body in JSON; `None` when the body is no such JSON, and is text already.
///
/// No value can shift those behind it: white space and control characters in a value become `_`.
pub fn to_text(body: &[u8]) -> Option<Vec<u8>> {
    let first = serde_json::Deserializer::from_slice(body).into_iter::<Value>().next();
    let Some(Ok(order @ Value::Object(_))) = first else {
        return None;
    };
    let command = order.get("command")?.as_str()?;
    let command = if command == RESTART { RESTART_TEXT } else { command };
    let parameters = order.get("parameters");
    let arguments: Vec<String> = parameters
        .and_then(|parameters| parameters.get("extra_args"))
        .and_then(Value::as_array)
        .map(|arguments| arguments.iter().map(|argument| word(Some(argument))).collect())
        .unwrap_or_default();
    let alert = parameters
        .and_then(|parameters| parameters.get("alert"))
        .filter(|alert| alert.as_object().is_some_and(|members| !members.is_empty()));
    let rest = match alert {
        Some(alert) => of_alert(alert, &arguments),
        None if command == RESTART_TEXT => FROM_THE_SERVER.to_owned(),
        None if arguments.is_empty() => format!("{ABSENT} {ABSENT}"),
        None => arguments.join(" "),
    };
    let mut text = format!("{} {rest}", tame(command)).into_bytes();
    text.truncate(MAX_TEXT_LEN);
    Some(text)
}

fn of_alert(alert: &Value, arguments: &[String]) -> String {
    let at = |path: &str| alert.pointer(path);
    let location = word(at("/location"));
    let location = match (at("/agent/name"), at("/agent/id").and_then(Value::as_str)) {
        (Some(name), Some(id)) if id != "000" => {
            let address = at("/agent/ip").map_or_else(|| "any".to_owned(), |ip| word(Some(ip)));
            format!("({}) {address}->{location}", word(Some(name)))
        }
        _ => location,
    };
    let arguments = if arguments.is_empty() {
        ABSENT.to_owned()
    } else {
        arguments.join(" ")
    };
    format!(
        "{} {} {} {} {location} {} {arguments}",
        word(at("/data/dstuser")),
        word(at("/data/srcip")),
        word(at("/id")),
        word(at("/rule/id")),
        word(at("/syscheck/path")),
    )
}

/// A value as one word.
fn word(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) if !text.is_empty() => tame(text),
        Some(Value::Number(number)) => number.to_string(),
        _ => ABSENT.to_owned(),
    }
}

fn tame(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_whitespace() || character.is_control() {
                '_'
            } else {
                character
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(body: &str) -> Option<String> {
        to_text(body.as_bytes()).map(|text| String::from_utf8(text).expect("UTF-8"))
    }

    #[test]
    fn each_kind_of_order_has_its_text() {
        for (body, expected) in [
            (
                r#"{"version":1,"origin":{"name":"","module":"wazuh-analysisd"},"command":"firewall-drop180","parameters":{"extra_args":[],"alert":{"id":"1795249868.123","rule":{"id":"5710"},"agent":{"id":"001","name":"web-01"},"location":"/var/log/auth.log","data":{"srcip":"1.2.3.4","dstuser":"root"}}}}"#,
                "firewall-drop180 root 1.2.3.4 1795249868.123 5710 (web-01) any->/var/log/auth.log - -",
            ),
            (
                r#"{"command":"host-deny0","parameters":{"extra_args":["a","b c"],"alert":{"id":"7.1","rule":{"id":"1"},"agent":{"id":"000","name":"mgr"},"location":"/l","syscheck":{"path":"/etc/x"}}}}"#,
                "host-deny0 - - 7.1 1 /l /etc/x a b_c",
            ),
            (
                r#"{"version":1,"origin":{"module":"api"},"command":"restart-wazuh0","parameters":{"extra_args":[],"alert":{}}} - null (from_the_server) (no_rule_id)"#,
                "restart-ossec0 - null (from_the_server) (no_rule_id)",
            ),
            (r#"{"command":"x0","parameters":{"extra_args":["1","2"]}}"#, "x0 1 2"),
            (r#"{"command":"!custom"}"#, "!custom - -"),
        ] {
            assert_eq!(text(body).as_deref(), Some(expected));
        }
    }

    #[test]
    fn what_is_text_already_is_left_alone() {
        for body in ["", "host-deny0 - 1.2.3.4", "{bad", "[]", "{}", r#"{"command":1}"#] {
            assert_eq!(text(body), None, "{body}");
        }
    }

    #[test]
    fn value_with_spaces_shifts_nothing() {
        let body = r#"{"command":"x0","parameters":{"alert":{"data":{"dstuser":"a 6.6.6.6\nb","srcip":"1.1.1.1"}}}}"#;
        assert_eq!(text(body).as_deref(), Some("x0 a_6.6.6.6_b 1.1.1.1 - - - - -"));
    }

    #[test]
    fn text_is_cut_at_what_agents_read() {
        let body = format!(
            r#"{{"command":"x0","parameters":{{"extra_args":["{}"]}}}}"#,
            "y".repeat(5000)
        );
        assert_eq!(text(&body).map(|text| text.len()), Some(MAX_TEXT_LEN));
    }
}

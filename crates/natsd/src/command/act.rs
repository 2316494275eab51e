//! Carrying out what was granted: the other daemons are asked through their own sockets, as `muster-control` asks them.

mod key;

use std::{collections::BTreeMap, io, os::unix::net::UnixDatagram, path::Path, time::Duration};

use muster_proto::{
    agent::{AgentId, AgentStatus},
    command::{Address, Outcome, Verb},
    ipc::control::{AgentInfo, DaemonStatus, Request, Response},
    local::{
        active_response::{Audience, Kind, Order},
        remote,
    },
    paths,
};
use muster_service::client::{Client, ClientError};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::{
    enrollments::{Awaited, Enrollments},
    gate::{Grant, Respond},
};
use crate::keeper::chain;

/// How long one daemon may take for one answer.
const ANSWER: Duration = Duration::from_secs(3);
/// The daemons of a manager.
const DAEMONS: [&str; 4] = ["authd", "remoted", "keypolld", "natsd"];
/// What stands in front of orders of an operator, by custom.
const SENDER: &str = "msg_to_agent";
/// As agents from 4.2 on know it; remoted gives others the text that they know.
const RESTART: &str = "restart-wazuh0";
const RECONNECT: &[u8] = b"force_reconnect";
const RELOAD: &str = "com reload";
/// What agents of OSSEC say of their version.
const OSSEC: &str = "OSSEC";

/// What came of it.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    pub(crate) text: String,
    pub(crate) data: Option<Value>,
    /// What is still to be found out, and tells the requester later.
    pub(crate) pending: Option<Pending>,
}

impl Done {
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Failed,
            text: text.into(),
            data: None,
            pending: None,
        }
    }

    fn with(text: impl Into<String>, data: Option<Value>) -> Self {
        Self {
            outcome: Outcome::Done,
            text: text.into(),
            data,
            pending: None,
        }
    }

    fn accepted(text: &str, pending: Option<Pending>) -> Self {
        Self {
            outcome: Outcome::Accepted,
            text: text.to_owned(),
            data: None,
            pending,
        }
    }
}

/// What an order to an agent leads to.
#[derive(Debug)]
pub(crate) enum Pending {
    /// It comes back: its status changes to active behind this instant, in Unix seconds.
    Return(Option<u64>),
    /// It answers.
    Reload,
    /// It enrolls.
    Enrollment(Awaited),
}

/// Whether the request is this manager's affair: one to any manager is that of the one where the agent is.
pub(crate) async fn concerns_us(address: &Address) -> bool {
    let Some(agent) = &address.agent else { return true };
    match agent_info(agent).await {
        Ok(Some(info)) => {
            let is_there = info.status == AgentStatus::Active;
            is_there || matches!(address.verb, Verb::AgentRemove | Verb::AgentRekey)
        }
        Ok(None) | Err(_) => false,
    }
}

/// Does it. Whatever waits for an agent is left pending.
pub(crate) async fn carry_out(grant: &Grant, node: &str, enrollments: &Enrollments) -> Done {
    let nobody = AgentId::new("");
    let agent = grant.address.agent.as_ref().unwrap_or(&nobody);
    let done = match (grant.address.verb, &grant.respond) {
        (Verb::AgentStatus, _) => status(agent).await,
        (Verb::AgentsSummary, _) => summary().await,
        (Verb::NodeStatus, _) => Ok(node_status().await),
        (Verb::AgentRemove, _) => return key::remove(agent).await,
        (Verb::AgentRekey, _) => key::rekey(agent, enrollments).await,
        (verb, respond) => order(agent, verb, respond.as_ref(), node).await,
    };
    done.unwrap_or_else(|error| Done::failed(unreachable("remoted", &error)))
}

async fn status(agent: &AgentId) -> Result<Done, ClientError> {
    let Some(info) = agent_info(agent).await? else {
        return Ok(no_such(agent));
    };
    Ok(Done::with(
        format!("agent {agent} is {}", info.status),
        serde_json::to_value(&info).ok(),
    ))
}

/// From one look at the roster: pages of it would be of different moments, and take seconds with many agents.
async fn summary() -> Result<Done, ClientError> {
    let Response::Status(status) = connect("remoted").await?.ask(&Request::Status).await? else {
        return Ok(Done::failed("remoted answered something else than was asked"));
    };
    let Some((total, counts)) = census(&status.facts) else {
        return Ok(Done::failed("remoted does not say how many agents there are"));
    };
    Ok(Done::with(
        format!("{total} agents"),
        Some(json!({"total": total, "status": counts})),
    ))
}

/// How many agents there are, and how many of them have which status.
fn census(facts: &[(String, String)]) -> Option<(u64, BTreeMap<String, u64>)> {
    let count = |wanted: &str| {
        let (_, count) = facts.iter().find(|(name, _)| name == wanted)?;
        count.parse::<u64>().ok()
    };
    let statuses = [
        AgentStatus::Active,
        AgentStatus::Disconnected,
        AgentStatus::Pending,
        AgentStatus::NeverConnected,
    ];
    let counts = statuses.map(|status| {
        let status = status.to_string();
        Some((status.clone(), count(&status)?))
    });
    Some((count("agents")?, counts.into_iter().collect::<Option<_>>()?))
}

async fn node_status() -> Done {
    let mut daemons = Vec::new();
    for daemon in DAEMONS {
        daemons.push(daemon_status(daemon).await);
    }
    let well = daemons.iter().filter(|daemon| daemon["ready"] == true).count();
    Done::with(format!("{well} daemons are ready"), Some(json!({"daemons": daemons})))
}

async fn daemon_status(daemon: &str) -> Value {
    let asked = async { connect(daemon).await?.ask(&Request::Status).await };
    match asked.await {
        Ok(Response::Status(status)) => {
            let DaemonStatus {
                version,
                since,
                ready,
                degraded,
                ..
            } = *status;
            json!({
                "daemon": daemon, "state": "running", "version": version, "since": since, "ready": ready,
                "degraded": degraded,
            })
        }
        Err(ClientError::Unreachable { .. }) => json!({"daemon": daemon, "state": "stopped"}),
        Ok(_) | Err(_) => json!({"daemon": daemon, "state": "unresponsive"}),
    }
}

async fn order(agent: &AgentId, verb: Verb, respond: Option<&Respond>, node: &str) -> Result<Done, ClientError> {
    let Some(info) = agent_info(agent).await? else {
        return Ok(no_such(agent));
    };
    if let Some(why) = unable(&info, verb) {
        return Ok(Done::failed(format!("agent {agent}: {why}")));
    }
    let back = Some(Pending::Return(info.since));
    let (kind, body, pending, text) = match (verb, respond) {
        (Verb::AgentReload, _) => return Ok(Done::accepted("the agent is asked to reload", Some(Pending::Reload))),
        (Verb::AgentReconnect, _) => (Kind::Control, RECONNECT.to_vec(), back, "ordered to reconnect"),
        (Verb::AgentRespond, Some(respond)) => (Kind::ActiveResponse, response(respond, node), None, "ordered"),
        _ => {
            let restart = Respond {
                command: RESTART.to_owned(),
                extra_args: Vec::new(),
                alert: serde_json::Map::new(),
            };
            (
                Kind::ActiveResponse,
                response(&restart, node),
                back,
                "ordered to restart",
            )
        }
    };
    let order = Order {
        audience: Audience::Agent(agent.as_str().into()),
        kind,
        body: &body,
    };
    let sent = UnixDatagram::unbound().and_then(|socket| {
        // remoted empties its queue at once; if it does not, waiting here would stop all requests.
        socket.set_nonblocking(true)?;
        socket.send_to(&order.to_datagram(SENDER), paths::ACTIVE_RESPONSE_SOCKET)
    });
    Ok(match sent {
        Ok(_) => Done::accepted(text, pending),
        Err(error) => Done::failed(format!("remoted takes no orders: {error}")),
    })
}

/// Why the agent cannot do it, if so.
fn unable(info: &AgentInfo, verb: Verb) -> Option<&'static str> {
    let is_ossec = info
        .version
        .as_deref()
        .is_some_and(|version| version.starts_with(OSSEC));
    match verb {
        _ if info.status != AgentStatus::Active => Some("it is not connected"),
        Verb::AgentReconnect if is_ossec => Some("OSSEC's agents know no order to reconnect"),
        Verb::AgentReload if is_ossec => Some("OSSEC's agents know no order to reload"),
        _ => None,
    }
}

/// The JSON that agents get.
fn response(respond: &Respond, node: &str) -> Vec<u8> {
    let order = json!({
        "version": 1,
        "origin": {"name": node, "module": "control"},
        "command": respond.command,
        "parameters": {"extra_args": respond.extra_args, "alert": respond.alert},
    });
    order.to_string().into_bytes()
}

/// Asks an agent to reload, and waits for its answer: `ok` or why not.
pub(crate) async fn reload(agent: &AgentId, patience: Duration) -> (Outcome, String) {
    let request = format!("{agent} {RELOAD}");
    let answered = exchange(
        paths::REMOTE_SOCKET,
        remote::frame(request.as_bytes()),
        remote::payload_len,
        patience,
    );
    match answered.await {
        Ok(answer) => {
            let text: String = String::from_utf8_lossy(&answer).trim().chars().take(200).collect();
            if text.starts_with("ok") {
                (Outcome::Done, "the agent reloads".to_owned())
            } else {
                (Outcome::Failed, text)
            }
        }
        Err(error) => (Outcome::Unconfirmed, format!("no answer: {error}")),
    }
}

/// One question and one answer, each behind its length, on a connection of its own.
async fn exchange(
    socket: &str,
    frame: impl AsRef<[u8]>,
    payload_len: fn([u8; 4]) -> Option<usize>,
    patience: Duration,
) -> io::Result<Vec<u8>> {
    let conversation = async {
        let mut stream = UnixStream::connect(Path::new(socket)).await?;
        stream.write_all(frame.as_ref()).await?;
        let mut header = [0; 4];
        stream.read_exact(&mut header).await?;
        let length = payload_len(header).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        Ok(payload)
    };
    let answered = timeout(patience, conversation).await;
    answered.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// All that remoted knows of an agent.
pub(crate) async fn agent_info(agent: &AgentId) -> Result<Option<AgentInfo>, ClientError> {
    let answer = connect("remoted").await?.ask(&Request::Agent(agent.clone())).await?;
    Ok(match answer {
        Response::Agents { agents, .. } => agents.into_iter().next(),
        _ => None,
    })
}

/// Whether an agent that was ordered to go has come back. `before` is since when it had its status at the order.
pub(crate) fn has_returned(before: Option<u64>, now: &AgentInfo) -> bool {
    now.status == AgentStatus::Active && now.since > before
}

async fn connect(daemon: &str) -> Result<Client, ClientError> {
    Client::connect(Path::new(&paths::control_socket(daemon)), "natsd", ANSWER).await
}

fn no_such(agent: &AgentId) -> Done {
    Done::failed(format!("there is no agent {agent}"))
}

fn unreachable(daemon: &str, error: &ClientError) -> String {
    match error {
        ClientError::Unreachable { .. } => format!("{daemon} does not run"),
        error => format!("cannot ask {daemon}: {}", chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn agent(status: AgentStatus, since: Option<u64>, version: &str) -> AgentInfo {
        AgentInfo {
            id: AgentId::new("001"),
            name: "web-01".to_owned(),
            ip: "any".to_owned(),
            status,
            reason: None,
            since,
            version: Some(version.to_owned()),
            last_heard: None,
            last_keepalive: None,
            last_sent: None,
            missed: 0,
            timeout: None,
            observed_interval: None,
            peer: None,
            protocol: None,
            crypto: None,
            reported_ip: None,
            os: None,
            merged_sum: None,
            config_sum: None,
            labels: Vec::new(),
            groups: Vec::new(),
            group_config_status: None,
        }
    }

    #[test]
    fn agents_that_are_away_or_know_no_such_order_are_not_ordered() {
        let wazuh = agent(AgentStatus::Active, Some(1), "Wazuh v4.14.7");
        let ossec = agent(AgentStatus::Active, Some(1), "OSSEC HIDS v3.7.0");
        let away = agent(AgentStatus::Disconnected, Some(1), "Wazuh v4.14.7");
        assert_eq!(unable(&wazuh, Verb::AgentReload), None);
        assert_eq!(unable(&ossec, Verb::AgentRestart), None);
        assert!(unable(&ossec, Verb::AgentReload).is_some());
        assert!(unable(&ossec, Verb::AgentReconnect).is_some());
        assert_eq!(unable(&away, Verb::AgentRestart), Some("it is not connected"));
    }

    #[test]
    fn summary_says_how_many_have_which_status_or_nothing() {
        let facts = [
            ("agents", "7"),
            ("active", "4"),
            ("pending", "0"),
            ("disconnected", "2"),
            ("never_connected", "1"),
        ];
        let facts = facts.map(|(name, count)| (name.to_owned(), count.to_owned()));
        let (total, counts) = census(&facts).expect("complete");
        assert_eq!(total, 7);
        assert_eq!(
            json!(counts),
            json!({"active": 4, "disconnected": 2, "never_connected": 1, "pending": 0})
        );
        assert!(census(&facts[..4]).is_none());
    }

    #[test]
    fn agent_has_returned_when_it_is_active_anew() {
        let before = Some(10);
        assert!(!has_returned(before, &agent(AgentStatus::Active, before, "")));
        assert!(!has_returned(before, &agent(AgentStatus::Pending, Some(11), "")));
        assert!(has_returned(before, &agent(AgentStatus::Active, Some(11), "")));
    }

    #[test]
    fn order_in_json_is_what_agents_read() {
        let respond = Respond {
            command: "firewall-drop600".to_owned(),
            extra_args: vec!["a\"b".to_owned()],
            alert: serde_json::Map::new(),
        };
        let order: Value = serde_json::from_slice(&response(&respond, "mgr-a")).expect("JSON");
        assert_eq!(order["command"], "firewall-drop600");
        assert_eq!(order["parameters"]["extra_args"][0], "a\"b");
        assert_eq!(order["version"], 1);
    }
}

//! Taking an agent's key away.
//!
//! A stock agent gets a key in one way: it enrolls. So a new key for an agent is the end of the old one, with its name and
//! address free for the enrollment that the agent begins when the manager does not know it any more. No key ever goes
//! over NATS.

use muster_proto::{
    agent::AgentId,
    command::Outcome,
    ipc::control::{AgentInfo, Request, Response},
    local::auth,
    paths,
};
use muster_service::client::ClientError;

use super::{ANSWER, Done, Enrollments, OSSEC, Pending, agent_info, connect, exchange, no_such, unreachable};

/// Agents of this and of older versions enroll only when somebody has them do it.
const LAST_TO_BE_ENROLLED: u32 = 3;

/// Its key goes; nobody is expected in its place.
pub(super) async fn remove(agent: &AgentId) -> Done {
    let request = auth::Request::Remove {
        id: agent.clone(),
        purge: false,
    };
    let answered = exchange(
        paths::AUTH_SOCKET,
        auth::frame(&request.to_payload()),
        auth::payload_len,
        ANSWER * 2,
    );
    match answered.await {
        Ok(payload) => match auth::Answer::parse(&payload) {
            Ok(auth::Answer::Removed) => Done::with(format!("agent {agent} is removed"), None),
            Ok(auth::Answer::Error(error)) => Done::failed(format!("agent {agent}: {error}")),
            Ok(auth::Answer::Agent(_) | auth::Answer::Ensured(_)) | Err(_) => {
                Done::failed("authd answered something else than was asked")
            }
        },
        Err(error) => Done::failed(format!("cannot ask authd: {error}")),
    }
}

/// Its key goes, and it is expected to enroll. Nothing is done to an agent that could not.
pub(super) async fn rekey(agent: &AgentId, enrollments: &Enrollments) -> Result<Done, ClientError> {
    let Some(info) = agent_info(agent).await? else {
        return Ok(no_such(agent));
    };
    if let Some(why) = cannot_enroll(&info) {
        return Ok(Done::failed(format!("agent {agent}: {why}")));
    }
    if let Some(why) = takes_no_enrollments().await {
        return Ok(Done::failed(why));
    }
    // Before the key goes: the agent may be quick.
    let awaited = enrollments.expect(&info.name);
    let removed = remove(agent).await;
    if removed.outcome != Outcome::Done {
        return Ok(removed);
    }
    let text = format!("the key of agent {agent} is void; the agent has to enroll");
    Ok(Done::accepted(&text, Some(Pending::Enrollment(awaited))))
}

/// Why the agent does not enroll by itself, if that is known.
fn cannot_enroll(info: &AgentInfo) -> Option<&'static str> {
    let version = info.version.as_deref()?;
    if version.starts_with(OSSEC) {
        return Some("OSSEC's agents do not enroll by themselves; remove it instead");
    }
    let number = version
        .split(|letter: char| !letter.is_ascii_digit())
        .find(|digits| !digits.is_empty())?;
    let is_old = number.parse::<u32>().is_ok_and(|major| major <= LAST_TO_BE_ENROLLED);
    is_old.then_some("agents before 4.0 do not enroll by themselves; remove it instead")
}

/// Why nobody can enroll, if so.
async fn takes_no_enrollments() -> Option<String> {
    let asked = async { connect("authd").await?.ask(&Request::Status).await };
    match asked.await {
        Ok(Response::Status(status)) if status.listening.iter().any(|place| place.starts_with("tcp ")) => None,
        Ok(Response::Status(_)) => Some("authd takes no enrollments, so the agent could not come back".to_owned()),
        Ok(_) => Some("authd answered something else than was asked".to_owned()),
        Err(error) => Some(unreachable("authd", &error)),
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::agent::AgentStatus;

    use super::{super::tests::agent, *};

    #[test]
    fn agents_that_do_not_enroll_by_themselves_keep_their_keys() {
        let of = |version| cannot_enroll(&agent(AgentStatus::Active, None, version)).is_some();
        assert!(of("OSSEC HIDS v3.7.0"));
        assert!(of("Wazuh v3.13.6"));
        assert!(!of("Wazuh v4.14.7"));
        assert!(!of("Wazuh v10.0.0"));
        assert!(!of(""), "an agent that has not said its version");
    }
}

//! `agent list` and `agent show`: what remoted knows.

use muster_proto::{
    agent::AgentId,
    ipc::control::{AgentInfo, Request, Response},
};
use muster_service::exit::{DONE, Exit, FAILED};

use crate::{
    cli::{AgentList, AgentShow, OutputFormat},
    context::{self, Context, mismatched},
    output::{self, tame},
};

/// How many agents are asked for at a time.
const PAGE: u32 = 500;

pub(crate) async fn list(context: &Context, arguments: &AgentList) -> anyhow::Result<u8> {
    let mut agents = all(context).await?;
    if let Some(status) = &arguments.status {
        agents.retain(|agent| agent.status.as_str() == status);
    }
    match context.output {
        OutputFormat::Json => output::json(&agents)?,
        OutputFormat::Text => {
            let rows: Vec<_> = agents.iter().map(row).collect();
            output::table(["ID", "NAME", "IP", "STATUS", "VERSION", "LAST HEARD", "REASON"], &rows)?;
        }
    }
    Ok(DONE)
}

async fn all(context: &Context) -> anyhow::Result<Vec<AgentInfo>> {
    let mut client = context.connect("remoted").await?;
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let request = Request::Agents { after, limit: PAGE };
        let Response::Agents { agents, more } = context::ask(&mut client, "remoted", &request).await? else {
            return Err(mismatched("remoted"));
        };
        after = agents.last().map(|agent| agent.id.clone());
        all.extend(agents);
        // A page without an agent has nothing behind it, whatever it says.
        if !more || after.is_none() {
            return Ok(all);
        }
    }
}

fn row(agent: &AgentInfo) -> [String; 7] {
    [
        agent.id.to_string(),
        tame(&agent.name),
        agent.ip.clone(),
        agent.status.to_string(),
        agent.version.as_deref().map_or_else(|| "-".to_owned(), tame),
        agent.last_heard.map_or_else(|| "never".to_owned(), output::time),
        agent.reason.map_or_else(String::new, |reason| reason.to_string()),
    ]
}

pub(crate) async fn show(context: &Context, arguments: &AgentShow) -> anyhow::Result<u8> {
    let response = context
        .ask("remoted", &Request::Agent(AgentId::new(&arguments.id)))
        .await?;
    let Response::Agents { agents, .. } = response else {
        return Err(mismatched("remoted"));
    };
    let Some(agent) = agents.into_iter().next() else {
        return Err(Exit::new(FAILED, format!("there is no agent {}", arguments.id)).into());
    };
    match context.output {
        OutputFormat::Json => output::json(&agent)?,
        OutputFormat::Text => {
            for (name, value) in facts(&agent) {
                output::line(format!("{name:18} {}", tame(&value)))?;
            }
        }
    }
    Ok(DONE)
}

fn facts(agent: &AgentInfo) -> Vec<(&'static str, String)> {
    let time = |value: Option<u64>| value.map(output::time);
    let seconds = |value: Option<u64>| value.map(output::duration);
    let os = agent.os.clone().unwrap_or_default();
    let system: Vec<_> = [&os.name, &os.version, &os.arch]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    let values = [
        ("id", Some(agent.id.to_string())),
        ("name", Some(agent.name.clone())),
        ("registered address", Some(agent.ip.clone())),
        ("status", Some(agent.status.to_string())),
        ("reason", agent.reason.map(|reason| reason.to_string())),
        ("since", time(agent.since)),
        ("version", agent.version.clone()),
        ("last heard", time(agent.last_heard)),
        ("last keepalive", time(agent.last_keepalive)),
        ("last sent", time(agent.last_sent)),
        ("missed intervals", Some(agent.missed.to_string())),
        ("time-out", seconds(agent.timeout)),
        ("own interval", seconds(agent.observed_interval)),
        ("peer", agent.peer.clone()),
        ("protocol", agent.protocol.clone()),
        ("encryption", agent.crypto.clone()),
        ("own address", agent.reported_ip.clone()),
        ("system", (!system.is_empty()).then(|| system.join(" "))),
        ("uname", os.uname.clone()),
        ("merged.mg", agent.merged_sum.clone()),
        ("agent.conf", agent.config_sum.clone()),
        ("groups", (!agent.groups.is_empty()).then(|| agent.groups.join(","))),
        ("shared files", agent.group_config_status.clone()),
        ("labels", (!agent.labels.is_empty()).then(|| agent.labels.join(", "))),
    ];
    values
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

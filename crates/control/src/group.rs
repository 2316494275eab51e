//! `group …`: directories below `etc/shared`, and who is in which group, which authd knows.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use muster_proto::{
    agent::AgentId,
    enrollment::group::{distinct, is_valid_name},
    ipc::control::{AgentGroups, GroupMode, MAX_GROUP_CHANGES, Request, Response},
    paths,
    shared::{AGENT_CONF, DEFAULT_GROUP, EMPTY_AGENT_CONF, MERGED, sum, unpack},
};
use muster_service::exit::{DONE, Exit, FAILED};
use nix::unistd::geteuid;
use serde_json::json;

use crate::{
    cli::{GroupAssign, GroupName, OutputFormat},
    context::{self, Context, mismatched},
    output::{self, say, tame},
};

/// Agents of one page.
const PAGE: u32 = 5000;

pub(crate) async fn list(context: &Context) -> anyhow::Result<u8> {
    let mut members: BTreeMap<String, usize> = names()?.into_iter().map(|name| (name, 0)).collect();
    for agent in all(context).await? {
        for group in agent.groups {
            *members.entry(group).or_default() += 1;
        }
    }
    let sums = members
        .keys()
        .map(|name| merged(name).ok().map(|content| sum(&content)));
    let groups: Vec<_> = members.iter().zip(sums).collect();
    match context.output {
        OutputFormat::Json => {
            let object = |((name, agents), sum): &((&String, &usize), Option<String>)| json!({ "name": name, "agents": agents, "merged_sum": sum });
            output::json(&groups.iter().map(object).collect::<Vec<_>>())?;
        }
        OutputFormat::Text => {
            let rows: Vec<_> = groups
                .into_iter()
                .map(|((name, agents), sum)| [name.clone(), agents.to_string(), sum.unwrap_or_else(|| "-".to_owned())])
                .collect();
            output::table(["GROUP", "AGENTS", "MERGED"], &rows)?;
        }
    }
    Ok(DONE)
}

pub(crate) async fn create(context: &Context, arguments: &GroupName) -> anyhow::Result<u8> {
    let name = &arguments.group;
    let directory = directory_of(name)?;
    match make(&directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Exit::new(FAILED, format!("there is a group {name} already")).into());
        }
        made => made.with_context(|| format!("making {}", directory.display()))?,
    }
    tell_remoted(context).await;
    say(format!("group {name} is made; its files go to {}", directory.display()));
    Ok(DONE)
}

pub(crate) async fn delete(context: &Context, arguments: &GroupName) -> anyhow::Result<u8> {
    let name = &arguments.group;
    let directory = directory_of(name)?;
    if name == DEFAULT_GROUP {
        return Err(Exit::new(FAILED, "agents without a group need this one").into());
    }
    if !directory.is_dir() {
        return Err(no_group(name));
    }
    let agents: Vec<AgentId> = all(context)
        .await?
        .into_iter()
        .filter(|agent| agent.groups.contains(name))
        .map(|agent| agent.id)
        .collect();
    change(context, &agents, std::slice::from_ref(name), GroupMode::Remove).await?;
    fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
    tell_remoted(context).await;
    say(format!("group {name} is removed; {} agents were in it", agents.len()));
    Ok(DONE)
}

pub(crate) fn files(context: &Context, arguments: &GroupName) -> anyhow::Result<u8> {
    let name = &arguments.group;
    if !directory_of(name)?.is_dir() {
        return Err(no_group(name));
    }
    let merged = merged(name).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let exit = Exit::new(FAILED, "its files are not merged yet; does remoted run?");
            anyhow::Error::new(error).context(exit)
        }
        _ => anyhow::Error::new(error).context(format!("reading {MERGED} of {name}")),
    })?;
    let unpacked = unpack(&merged).with_context(|| format!("reading {MERGED} of {name}"))?;
    match context.output {
        OutputFormat::Json => {
            let files: Vec<_> = unpacked
                .files
                .iter()
                .map(|(path, content)| json!({ "path": path, "size": content.len(), "sum": sum(content) }))
                .collect();
            output::json(&files)?;
        }
        OutputFormat::Text => {
            let rows: Vec<_> = unpacked
                .files
                .iter()
                .map(|(path, content)| [content.len().to_string(), sum(content), tame(path)])
                .collect();
            output::table(["SIZE", "MD5", "FILE"], &rows)?;
        }
    }
    Ok(DONE)
}

pub(crate) async fn assign(context: &Context, arguments: &GroupAssign) -> anyhow::Result<u8> {
    let groups = distinct(&arguments.groups);
    let mode = match (arguments.append, arguments.remove) {
        (true, _) => GroupMode::Append,
        (_, true) => GroupMode::Remove,
        _ => GroupMode::Override,
    };
    let ids: Vec<AgentId> = arguments.ids.iter().map(|id| AgentId::new(id)).collect();
    let changed = change(context, &ids, &groups, mode).await?;
    match context.output {
        OutputFormat::Json => {
            let objects: Vec<_> = changed
                .iter()
                .map(|agent| json!({ "id": agent.id, "groups": agent.groups }))
                .collect();
            output::json(&objects)?;
        }
        OutputFormat::Text => {
            for agent in &changed {
                let groups = agent.groups.join(",");
                let groups = if groups.is_empty() { "none" } else { &groups };
                output::line(format!("{}  {groups}", agent.id))?;
            }
        }
    }
    let mut code = DONE;
    for id in ids.iter().filter(|id| !changed.iter().any(|agent| agent.id == **id)) {
        say(format!("there is no agent {id}"));
        code = FAILED;
    }
    Ok(code)
}

/// Changes groups at authd, so many agents at a time; what they have then.
async fn change(
    context: &Context,
    agents: &[AgentId],
    groups: &[String],
    mode: GroupMode,
) -> anyhow::Result<Vec<AgentGroups>> {
    let mut client = context.connect("authd").await?;
    let mut changed = Vec::new();
    for agents in agents.chunks(MAX_GROUP_CHANGES) {
        let request = Request::SetGroups {
            agents: agents.to_vec(),
            groups: groups.to_vec(),
            mode,
        };
        match context::ask(&mut client, "authd", &request).await? {
            Response::Groups { agents, .. } => changed.extend(agents),
            _ => return Err(mismatched("authd")),
        }
    }
    Ok(changed)
}

/// The groups of all agents.
async fn all(context: &Context) -> anyhow::Result<Vec<AgentGroups>> {
    let mut client = context.connect("authd").await?;
    let mut all: Vec<AgentGroups> = Vec::new();
    loop {
        let request = Request::Groups {
            after: all.last().map(|agent| agent.id.clone()),
            limit: PAGE,
        };
        let Response::Groups { agents, more, .. } = context::ask(&mut client, "authd", &request).await? else {
            return Err(mismatched("authd"));
        };
        let is_over = !more || agents.is_empty();
        all.extend(agents);
        if is_over {
            return Ok(all);
        }
    }
}

/// It looks by itself too, every few seconds, so that an error is none of ours.
async fn tell_remoted(context: &Context) {
    if let Ok(mut client) = context.try_connect("remoted").await {
        let _ = client.ask(&Request::KeysChanged).await;
    }
}

fn names() -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(paths::SHARED) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("reading {}", paths::SHARED))?,
    };
    Ok(entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_valid_name(name))
        .collect())
}

fn merged(group: &str) -> io::Result<Vec<u8>> {
    fs::read(Path::new(paths::SHARED).join(group).join(MERGED))
}

fn directory_of(group: &str) -> anyhow::Result<PathBuf> {
    if !is_valid_name(group) || group.starts_with('.') {
        let text = format!("{group:?} cannot be a group's name: letters, digits, '_', '.' and '-' can");
        return Err(Exit::new(FAILED, text).into());
    }
    Ok(Path::new(paths::SHARED).join(group))
}

fn no_group(group: &str) -> anyhow::Error {
    Exit::new(FAILED, format!("there is no group {group}")).into()
}

/// A directory that belongs to whom the directory above belongs to, with the same rights, and an empty configuration:
/// agents do not take over a group's files without one.
fn make(directory: &Path) -> io::Result<()> {
    let above = fs::metadata(paths::SHARED)?;
    fs::create_dir(directory)?;
    let conf = directory.join(AGENT_CONF);
    fs::write(&conf, EMPTY_AGENT_CONF)?;
    if geteuid().is_root() {
        for path in [directory, &conf] {
            chown(path, Some(above.uid()), Some(above.gid()))?;
        }
    }
    fs::set_permissions(&conf, fs::Permissions::from_mode(0o640))?;
    fs::set_permissions(directory, fs::Permissions::from_mode(above.mode() & 0o7777))
}

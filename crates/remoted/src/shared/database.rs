//! The groups of agents in the stock database, in homes where no authd of ours knows them.

use std::{collections::BTreeMap, path::Path};

use muster_proto::{
    agent::AgentId,
    ipc::control::AgentGroups,
    local::wazuh_db::{Answer, Membership, select_agent_group, set_first_group},
    shared::DEFAULT_GROUP,
};

use super::core::ONLY_ASK;
use crate::wazuh_db::client::{Client, Lost};

/// Whether somebody listens there.
pub(super) async fn is_there(database: &Path) -> bool {
    Client::connect(database).await.is_ok()
}

/// The groups of agents; those that have none get the group that they stand at.
pub(super) async fn look(database: &Path, wanted: &BTreeMap<String, Vec<AgentId>>) -> Result<Vec<AgentGroups>, Lost> {
    let mut client = Client::connect(database).await?;
    let mut found = Vec::new();
    for (group, ids) in wanted {
        for id in ids {
            let Some(number) = id.number() else { continue };
            let known = match client.ask(&select_agent_group(number)).await? {
                Answer::Ok(rows) => Membership::parse(rows),
                Answer::Refused(_) => None,
            };
            let groups = match known {
                Some(Membership::Groups(groups)) => Some(groups),
                Some(Membership::None) if group != ONLY_ASK => first(&mut client, number, group).await?,
                Some(Membership::None | Membership::NoRow) | None => None,
            };
            found.extend(groups.map(|groups| AgentGroups { id: id.clone(), groups }));
        }
    }
    Ok(found)
}

/// Gives an agent its first group. The database may not know that one, for all that its directory is there.
async fn first(client: &mut Client, id: u32, group: &str) -> Result<Option<Vec<String>>, Lost> {
    for group in [group, DEFAULT_GROUP] {
        match client.ask(&set_first_group(id, group)).await? {
            Answer::Ok(_) => return Ok(Some(vec![group.to_owned()])),
            Answer::Refused(why) => tracing::debug!(id, group, reason = why, "wazuh-db gives an agent no group"),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    use super::*;

    /// Answers like the database: agent 1 has two groups, 2 has none, 3 has no row, and `ossec` is no group.
    async fn serve(listener: UnixListener) {
        let (mut stream, _) = listener.accept().await.unwrap();
        while let Ok(length) = stream.read_u32_le().await {
            let mut command = vec![0; length as usize];
            stream.read_exact(&mut command).await.unwrap();
            let command = String::from_utf8(command).unwrap();
            let answer = match command.trim_end_matches('\0') {
                "global select-agent-group 1" => r#"ok [{"group":"default,web"}]"#,
                "global select-agent-group 2" => "ok [{}]",
                "global select-agent-group 3" => "ok []",
                set if set.contains("ossec") => "err An error occurred during the set of the groups",
                _ => "ok",
            };
            stream.write_u32_le(u32::try_from(answer.len()).unwrap()).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    async fn groups(group: &str) -> Vec<(String, String)> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wdb");
        let serving = tokio::spawn(serve(UnixListener::bind(&path).unwrap()));
        let ids = ["001", "002", "003"].map(AgentId::new).to_vec();
        let found = look(&path, &BTreeMap::from([(group.to_owned(), ids)])).await.unwrap();
        serving.await.unwrap();
        found
            .into_iter()
            .map(|agent| (agent.id.to_string(), agent.groups.join(",")))
            .collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(id, groups)| ((*id).to_owned(), (*groups).to_owned()))
            .collect()
    }

    #[tokio::test]
    async fn agents_keep_their_groups_and_those_without_get_one_that_the_database_knows() {
        let kept = ("001", "default,web");
        assert_eq!(groups("web").await, pairs(&[kept, ("002", "web")]));
        assert_eq!(groups("ossec").await, pairs(&[kept, ("002", "default")]));
        assert_eq!(groups(ONLY_ASK).await, pairs(&[kept]));
    }
}

use muster_proto::keys::file;

use super::*;
use crate::keystore::KeyStore;

const NOW: i64 = 1000;

fn registry(text: &str) -> Registry {
    let keys = KeyStore::new(file::parse(text.as_bytes()));
    let registered = keys.live().iter().map(|entry| (entry.id.clone(), 1)).collect();
    Registry {
        keys,
        registered,
        leases: None,
    }
}

fn merged(ours: &str, theirs: &str) -> (Merged, String) {
    let mut registry = registry(ours);
    let found = Found {
        file: file::parse(theirs.as_bytes()),
        is_whole: theirs.ends_with('\n'),
    };
    let merged = merge(&mut registry, found, NOW);
    let image = String::from_utf8(registry.keys.image().to_vec()).expect("UTF-8");
    (merged, image)
}

fn kinds(merged: &Merged) -> Vec<String> {
    merged
        .changes
        .iter()
        .map(|change| match change {
            Change::Enrolled(agent) => format!("+{}", agent.id),
            Change::KeyRotated(agent) => format!("~{}", agent.id),
            Change::Renamed(agent) => format!("={}", agent.id),
            Change::Removed { agent, .. } => format!("-{}", agent.id),
        })
        .collect()
}

#[test]
fn the_same_text_changes_nothing() {
    let text = "001 a any k1\n002 b 10.0.0.0/24 k2\n003 !c any k3\n";
    assert_eq!(merged(text, text), (Merged::default(), text.to_owned()));
}

#[test]
fn unknown_lines_are_taken_in_and_count_for_the_next_id() {
    let mut registry = registry("001 a any k1\n");
    let found = Found {
        file: file::parse(b"001 a any k1\n007 b any k2\n"),
        is_whole: true,
    };
    assert_eq!(kinds(&merge(&mut registry, found, NOW)), ["+007"]);
    assert_eq!(registry.registered[&AgentId::new("007")], NOW);
    assert_eq!(registry.keys.next_id(), Some(AgentId::new("008")));
}

#[test]
fn changed_lines_are_taken_over_in_their_place() {
    for (line, told) in [
        ("001 a any k1", vec![]),
        ("001 new 10.0.0.1 k1", vec!["=001"]),
        ("001 a any k9", vec!["~001"]),
    ] {
        let (merged, image) = merged("001 a 10.0.0.1 k1\n002 b any k2\n", &format!("{line}\n002 b any k2\n"));
        assert_eq!(kinds(&merged), told, "{line}");
        assert_eq!(image, format!("{line}\n002 b any k2\n"));
    }
}

#[test]
fn marked_lines_remove_their_agent_and_stay_as_they_are() {
    for line in ["001 !a any k1", "001 #*#*#*#*#*#*#*#*#*#*#k1"] {
        let (merged, image) = merged("001 a any k1\n002 b any k2\n", &format!("002 b any k2\n{line}\n"));
        assert_eq!(kinds(&merged), ["-001"]);
        assert_eq!(image, format!("002 b any k2\n{line}\n"));
    }
}

#[test]
fn a_removed_line_beside_a_live_one_of_the_same_id_removes_nobody() {
    let (merged, image) = merged("001 a any k1\n", "001 a any k1\n001 !old any k0\n");
    assert_eq!(kinds(&merged), Vec::<String>::new());
    assert_eq!(image, "001 a any k1\n001 !old any k0\n");
}

#[test]
fn an_emptied_file_loses_nobody() {
    let (merged, image) = merged("001 a any k1\n002 b any k2\n003 !c any k\n", "");
    assert_eq!(
        merged,
        Merged {
            changes: vec![],
            missing: 2
        }
    );
    assert_eq!(image, "001 a any k1\n002 b any k2\n003 !c any k\n");
}

#[test]
fn a_half_written_last_line_does_not_shorten_a_known_key() {
    let (merged, image) = merged("001 a any k1\n002 b any longkey\n", "001 a any k1\n002 b any long");
    assert_eq!(kinds(&merged), Vec::<String>::new());
    assert_eq!(image, "001 a any k1\n002 b any longkey\n");
}

#[test]
fn unreadable_lines_are_kept_once() {
    let (merged, image) = merged(
        "001 a any k1\n003 c 1.2.3 k3\n",
        "001 a any k1\n003 c 1.2.3 k3\n004 d 1.2 k4\n",
    );
    assert_eq!(kinds(&merged), Vec::<String>::new());
    assert_eq!(image, "001 a any k1\n003 c 1.2.3 k3\n004 d 1.2 k4\n");
}

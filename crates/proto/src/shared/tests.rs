//! The recorded session of a stock manager, byte for byte, and what holds for any files.

use proptest::prelude::*;

use super::*;

const AR_TEXT: &[u8] = b"restart-ossec0 - restart-ossec.sh - 0\nfirewall-drop180 - firewall-drop - 180\n";
const DEFAULT_CONF: &[u8] = b"<agent_config>\n\n  <!-- Shared agent configuration here -->\n\n</agent_config>\n";
const WEB_CONF: &[u8] = b"<agent_config>\n<labels><label key=\"a\">1</label></labels>\n</agent_config>\n";

fn path(text: &str) -> RelativePath {
    RelativePath::new(text.to_owned()).expect("a short path")
}

fn files(files: &[(&str, &[u8])]) -> GroupFiles {
    files
        .iter()
        .map(|(name, content)| (path(name), content.to_vec()))
        .collect()
}

fn web() -> GroupFiles {
    files(&[
        ("z.txt", b"no newline at end"),
        ("sub/s.txt", b"S\n"),
        ("empty.txt", b""),
        ("sub/deep/d.txt", b"D\n"),
        ("big.txt", &[b'0'; 2500]),
        (AGENT_CONF, WEB_CONF),
    ])
}

#[test]
fn a_group_is_merged_as_the_stock_manager_does() {
    let expected = [
        b"#web\n!77 ar.conf\n".as_slice(),
        AR_TEXT,
        b"!73 agent.conf\n",
        WEB_CONF,
        b"!2500 big.txt\n",
        &[b'0'; 2500],
        b"!0 empty.txt\n!2 sub/deep/d.txt\nD\n!2 sub/s.txt\nS\n!17 z.txt\nno newline at end",
    ]
    .concat();
    assert_eq!(merge_group("web", Some(AR_TEXT), &web()), expected);
}

#[test]
fn groups_together_concatenate_their_agent_conf_and_the_last_file_counts() {
    let default = files(&[(AGENT_CONF, DEFAULT_CONF), ("z.txt", b"overwritten")]);
    let name = multigroup_name(&["default", "web"]);
    let merged = merge_groups(&name, Some(AR_TEXT), &[("default", &default), ("web", &web())]);
    let beginning = [
        b"#5288d400\n!77 ar.conf\n".as_slice(),
        AR_TEXT,
        b"!227 agent.conf\n<!-- Source file: default/agent.conf -->\n",
        DEFAULT_CONF,
        b"<!-- Source file: web/agent.conf -->\n",
        WEB_CONF,
        b"!2500 big.txt\n",
    ]
    .concat();
    assert!(merged.starts_with(&beginning));
    assert!(merged.ends_with(b"!17 z.txt\nno newline at end"));
}

#[test]
fn multigroup_is_named_by_the_list_in_its_order() {
    assert_eq!(multigroup_name(&["default", "web"]), "5288d400");
    assert_ne!(multigroup_name(&["web", "default"]), "5288d400");
    assert!(is_multigroup_name("5288d400"));
    assert!(!is_multigroup_name("5288D400") && !is_multigroup_name("5288d4001") && !is_multigroup_name("default"));
}

/// The pushed file of the recorded session, and the sum that the stock manager announced for it.
#[test]
fn sum_is_the_one_that_the_stock_manager_announced() {
    let merged = merge_group("default", None, &files(&[(AGENT_CONF, DEFAULT_CONF)]));
    assert_eq!(sum(&merged), "ca35f9148a3273413eccb79f149f4757");
}

#[test]
fn group_without_configuration_gets_an_empty_one() {
    let merged = merge_group("g", None, &files(&[("a.txt", b"A")]));
    assert_eq!(
        merged,
        b"#g\n!30 agent.conf\n<agent_config></agent_config>\n!1 a.txt\nA"
    );
    let merged = merge_groups(
        "5288d400",
        None,
        &[("a", &GroupFiles::new()), ("b", &GroupFiles::new())],
    );
    assert_eq!(merged, b"#5288d400\n!30 agent.conf\n<agent_config></agent_config>\n");
}

#[test]
fn the_managers_orders_are_not_overwritten_by_a_group() {
    let group = files(&[(AR_CONF, b"mine"), (AGENT_CONF, b"x")]);
    assert_eq!(
        merge_group("g", Some(b"ours"), &group),
        b"#g\n!4 ar.conf\nours!1 agent.conf\nx"
    );
    assert_eq!(merge_group("g", None, &group), b"#g\n!1 agent.conf\nx!4 ar.conf\nmine");
}

#[test]
fn directories_come_by_their_own_names() {
    let mut paths = ["sub-1", "sub.txt", "sub/z", "sub/a/b", "a"].map(path);
    paths.sort();
    assert_eq!(
        paths.map(|path| path.as_str().to_owned()),
        ["a", "sub/a/b", "sub/z", "sub-1", "sub.txt"]
    );
}

#[test]
fn what_cannot_be_pushed_is_left_out() {
    assert_eq!(admit_name(".hid"), Err(LeftOut::Hidden));
    assert_eq!(admit_name("merged.mg.tmp"), Err(LeftOut::Merged));
    assert_eq!(admit_name("a\nb"), Err(LeftOut::LineFeed));
    assert_eq!(admit_name("agent.conf"), Ok(()));
    assert_eq!(admit_content(b"a\0b"), Err(LeftOut::Nul));
    assert_eq!(RelativePath::new("x".repeat(201)), Err(LeftOut::LongPath));
    assert!(RelativePath::new("x".repeat(200)).is_ok());
    assert!(LeftOut::Nul.is_surprising() && !LeftOut::Hidden.is_surprising());
}

#[test]
fn damaged_files_say_where() {
    assert_eq!(unpack(b""), Err(UnpackError::NoTitle));
    assert_eq!(unpack(b"web\n"), Err(UnpackError::NoTitle));
    assert_eq!(unpack(b"#web\nx"), Err(UnpackError::NoFile(5)));
    assert_eq!(unpack(b"#web\n!x a\n"), Err(UnpackError::NoFile(5)));
    assert_eq!(
        unpack(b"#web\n!99999999999999999999999 a\n"),
        Err(UnpackError::NoFile(5))
    );
    assert_eq!(unpack(b"#web\n!2 a\nx"), Err(UnpackError::CutShort(5)));
}

proptest! {
    #[test]
    fn what_is_merged_comes_apart_again(
        contents in prop::collection::btree_map("[a-z]{1,6}(/[a-z]{1,6}){0,2}", prop::collection::vec(any::<u8>(), 0..40), 0..8),
    ) {
        let files: GroupFiles = contents.into_iter().map(|(name, content)| (path(&name), content)).collect();
        let merged = merge_group("g", Some(b"order\n"), &files);
        let unpacked = unpack(&merged).expect("merged by us");
        prop_assert_eq!(unpacked.title, "g");
        prop_assert_eq!(unpacked.files.first(), Some(&(AR_CONF, b"order\n".as_slice())));
        for (name, content) in &files {
            prop_assert!(unpacked.files.contains(&(name.as_str(), content.as_slice())));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = unpack(&[b"#g\n".as_slice(), &bytes].concat());
    }
}

use std::fs;

use serde_json::json;

use super::*;
use crate::{
    audit::{Audit, HEAD_INTERVAL_MS, ROTATE_LEN},
    keys::{Keyring, Rules, create_if_missing},
};

const NOW: u64 = 1_795_243_200_000;

struct Trails {
    home: tempfile::TempDir,
    keyring: Keyring,
}

impl Trails {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("directory");
        let file = home.path().join("signing.nk");
        create_if_missing(&file).expect("makes a key");
        let (keyring, _) = Keyring::open(&file, home.path(), Rules::plain("n", 1), NOW).expect("opens");
        Self { home, keyring }
    }

    fn path(&self) -> PathBuf {
        self.home.path().join("audit.json")
    }

    /// Three signed heads, each behind two acts, and an act behind them; the second head is at the end of a file.
    fn write(&self) -> [PathBuf; 2] {
        let mut audit = Audit::open(&self.path(), "n", 1).expect("opens");
        let mut now = NOW;
        for round in 0..3 {
            for place in 0..2 {
                audit
                    .write("test", &json!({"round": round, "place": place}), now)
                    .expect("writes");
            }
            if round == 1 {
                audit.length = ROTATE_LEN;
            }
            now += HEAD_INTERVAL_MS;
            audit.tidy(Some(&self.keyring), now).expect("tidies");
        }
        audit.write("test", &json!({"last": true}), now).expect("writes");
        let aside = self
            .path()
            .with_extension(format!("{}.json", NOW + 2 * HEAD_INTERVAL_MS));
        [aside, self.path()]
    }

    fn policy(&self) -> Policy {
        Policy {
            pinned: [self.keyring.key_id().to_owned()].into(),
            ..Policy::default()
        }
    }

    fn check(&self, files: &[PathBuf]) -> Result<Trail, Broken> {
        let mut checker = Checker::new(&self.policy());
        for file in files {
            checker.file(file)?;
        }
        Ok(checker.end())
    }
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("reads");
    text.lines().map(str::to_owned).collect()
}

fn rewrite(path: &Path, lines: &[String]) {
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).expect("writes");
}

/// As one who knows how the chain is made, but has no key.
fn chain_anew(files: &[PathBuf]) {
    let mut head = GENESIS.to_owned();
    for file in files {
        let lines: Vec<String> = lines(file)
            .iter()
            .map(|line| {
                let value: Value = serde_json::from_str(line).expect("JSON");
                let before = value["prev"].as_str().expect("a hash");
                let line = line.replace(before, &head);
                head = hash(line.as_bytes());
                line
            })
            .collect();
        rewrite(file, &lines);
    }
}

#[test]
fn trail_of_several_files_with_signed_heads_is_whole() {
    let trails = Trails::new();
    let files = trails.write();
    let trail = trails.check(&files).expect("is whole");
    assert_eq!((trail.lines, trail.heads, trail.unsigned), (10, 3, 1));
    assert!(trail.from_the_beginning);
    let second = trails.check(&files[1..]).expect("is whole");
    assert!(!second.from_the_beginning);
    assert_eq!(trail.head, second.head);
    let last = lines(&files[1]).pop().expect("a line");
    assert_eq!(trail.head, hash(last.as_bytes()));
}

#[test]
fn first_wrong_line_is_named() {
    let wrong = |spoil: &dyn Fn(&[PathBuf; 2])| {
        let trails = Trails::new();
        let files = trails.write();
        spoil(&files);
        let broken = trails.check(&files).expect_err("is broken");
        let place = files.iter().position(|file| *file == broken.file).expect("one of them");
        (place, broken.line, broken.why)
    };
    let change = |path: &Path, from: &str, to: &str| {
        let text = fs::read_to_string(path).expect("reads");
        assert!(text.contains(from));
        fs::write(path, text.replacen(from, to, 1)).expect("writes");
    };
    let follows = "it does not follow from the line before".to_owned();

    let changed = wrong(&|files| change(&files[0], "\"place\":0", "\"place\":7"));
    assert_eq!(changed, (0, 2, follows.clone()));
    let removed = wrong(&|files| {
        let mut lines = lines(&files[1]);
        lines.remove(1);
        rewrite(&files[1], &lines);
    });
    assert_eq!(removed, (1, 2, follows.clone()));
    let at_the_seam = wrong(&|files| {
        let mut lines = lines(&files[0]);
        lines.pop();
        rewrite(&files[0], &lines);
    });
    assert_eq!(at_the_seam, (1, 1, follows), "the end of a file that was put aside");
    let cut_short = wrong(&|files| {
        let text = fs::read_to_string(&files[1]).expect("reads");
        fs::write(&files[1], &text[..text.len() - 2]).expect("writes");
    });
    assert_eq!(cut_short, (1, 4, "the line is cut short".to_owned()));
    let no_json = wrong(&|files| change(&files[0], "{", "["));
    assert_eq!((no_json.0, no_json.1), (0, 1));
    let head = wrong(&|files| change(&files[0], "\"sig\":\"", "\"sig\":\"A"));
    assert!(
        head.1 == 3 && head.2.starts_with("the signature is not that of U"),
        "{head:?}"
    );
}

#[test]
fn chain_that_was_made_anew_has_a_head_that_nobody_has_signed() {
    let trails = Trails::new();
    let files = trails.write();
    let mut first = lines(&files[0]);
    first[0] = first[0].replace("\"place\":0", "\"place\":7");
    rewrite(&files[0], &first);
    chain_anew(&files);
    let broken = trails.check(&files).expect_err("is broken");
    assert_eq!((broken.file, broken.line), (files[0].clone(), 3));
    assert!(broken.why.starts_with("the signature is not that of"), "{}", broken.why);
    let mut blind = Checker::without_keys();
    for file in &files {
        blind.file(file).expect("without keys nobody sees it");
    }
}

#[test]
fn head_of_a_key_that_is_not_the_managers_is_refused() {
    let (trails, others) = (Trails::new(), Trails::new());
    let files = trails.write();
    let broken = others.check(&files).expect_err("is broken");
    assert_eq!(broken.line, 3);
    assert!(
        broken.why.contains("nobody who is believed has announced the key"),
        "{}",
        broken.why
    );
    let mut of_another_node = trails.policy();
    of_another_node
        .nodes
        .insert(trails.keyring.key_id().to_owned(), "m".to_owned());
    let broken = Checker::new(&of_another_node).file(&files[0]).expect_err("is broken");
    assert!(broken.why.contains("the key is another node's"), "{}", broken.why);
}

#[test]
fn missing_end_is_seen_by_who_knows_a_later_head() {
    let trails = Trails::new();
    let files = trails.write();
    let head = trails.check(&files).expect("is whole").head;
    let found = |head: &str| {
        let mut checker = Checker::new(&trails.policy());
        checker.expect(head);
        for file in &files {
            checker.file(file).expect("is whole");
        }
        checker.end().found
    };
    assert!(found(&head) && found(&head.to_uppercase()));
    let mut last = lines(&files[1]);
    last.pop();
    rewrite(&files[1], &last);
    assert!(!found(&head));
}

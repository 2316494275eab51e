use proptest::prelude::*;

use super::*;

fn written(file: &KeyFile) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in &file.entries {
        write_entry(entry, &mut out);
    }
    for problem in &file.problems {
        if let Some(line) = &problem.keep {
            write_kept(line, &mut out);
        }
    }
    for removed in &file.removed {
        write_kept(&removed.line, &mut out);
    }
    out
}

fn ids(file: &KeyFile) -> Vec<&str> {
    file.entries.iter().map(|entry| entry.id.as_str()).collect()
}

#[test]
fn an_agents_line_is_read_and_written_back() {
    let line = b"001 web-01 10.3.0.0/16 9f1c6b0e5a7d4832\n";
    let file = parse(line);
    let entry = &file.entries[0];
    assert_eq!(
        (entry.id.as_str(), entry.name.as_str(), entry.address.text()),
        ("001", "web-01", "10.3.0.0/16")
    );
    assert_eq!(entry.key.expose(), "9f1c6b0e5a7d4832");
    assert_eq!(written(&file), line);
}

#[test]
fn comments_blank_lines_and_half_lines_go_while_removed_lines_stay_behind_the_live_ones() {
    let file = parse(
        b"# a comment\n506 !gone any kk\n 505 hidden any kk\n\n504\n507\tx\n#507 name any kk\n508 #*#*#*#*#*#*#*#*#*#*#ail of the line\n001 a any kk",
    );
    assert_eq!(
        written(&file),
        b"001 a any kk\n506 !gone any kk\n508 #*#*#*#*#*#*#*#*#*#*#ail of the line\n"
    );
    let problems: Vec<_> = file
        .problems
        .iter()
        .map(|problem| (problem.line_number, problem.kind))
        .collect();
    assert_eq!(
        problems,
        [
            (4, ProblemKind::MissingField),
            (5, ProblemKind::MissingField),
            (6, ProblemKind::MissingField)
        ]
    );
}

#[test]
fn removed_and_broken_lines_count_for_the_next_id_and_comments_do_not() {
    assert_eq!(parse(b"002 a any k\n017 !b any k\n").highest_number, 17);
    assert_eq!(parse(b"002 a any k\n018\n").highest_number, 18);
    assert_eq!(parse(b"002 a any k\n#19 b any k\n 20 c any k\n").highest_number, 2);
    assert_eq!(parse(b"abc a any k\n123456789 b any k\n").highest_number, 0);
}

#[test]
fn a_line_with_a_bad_address_is_set_aside_and_survives_the_next_write() {
    let file = parse(b"001 a 1.2.3 key1\n002 b any key2\n003 two words any key3\n004 c  key4\n");
    assert_eq!(ids(&file), ["002"]);
    assert_eq!(
        file.problems
            .iter()
            .filter(|problem| problem.kind == ProblemKind::BadAddress)
            .count(),
        3
    );
    assert_eq!(
        written(&file),
        b"002 b any key2\n001 a 1.2.3 key1\n003 two words any key3\n004 c  key4\n"
    );
}

#[test]
fn the_key_runs_to_the_end_of_the_line_without_a_carriage_return() {
    let file = parse(b"001 a any one two\r\n002 b any k\r\n");
    assert_eq!(file.entries[0].key.expose(), "one two");
    assert_eq!(file.entries[1].key.expose(), "k");
}

#[test]
fn empty_names_are_read_and_empty_keys_are_not() {
    assert_eq!(parse(b"001  any k\n").entries[0].name, "");
    assert_eq!(parse(b"001 a any \n").problems[0].kind, ProblemKind::MissingField);
    assert_eq!(parse(b"001 a any \r\n").problems[0].kind, ProblemKind::MissingField);
}

#[test]
fn ids_that_repeat_or_are_no_numbers_are_all_kept() {
    assert_eq!(
        ids(&parse(b"001 a any k\n001 b any k\nabc c any k\n51 d any k\n")),
        ["001", "001", "abc", "51"]
    );
}

#[test]
fn fields_are_cut_at_127_bytes() {
    let file = parse(format!("001 {} any {}\n", "n".repeat(128), "k".repeat(200)).as_bytes());
    assert_eq!(file.entries[0].name.len(), 127);
    assert_eq!(file.entries[0].key.expose().len(), 127);
    assert_eq!(cut(&"é".repeat(100)).len(), 126);
}

#[test]
fn overlong_and_non_utf8_lines_are_set_aside_and_survive() {
    let mut bytes = format!("001 a any {}\n", "k".repeat(MAX_LINE_LEN)).into_bytes();
    bytes.extend_from_slice(b"002 \xff any k\n");
    let file = parse(&bytes);
    let kinds: Vec<_> = file.problems.iter().map(|problem| problem.kind).collect();
    assert_eq!(kinds, [ProblemKind::TooLong, ProblemKind::NotUtf8]);
    assert_eq!(written(&file), bytes);
}

#[test]
fn a_removed_line_marks_the_name_and_loses_the_prefix() {
    let file = parse(b"003 n3 10.3.0.0/16 kk\n");
    assert_eq!(&**RemovedLine::of(&file.entries[0]).line, b"003 !n3 10.3.0.0 kk");
}

#[test]
fn no_problem_shows_a_key() {
    let problem = &parse(b"001 a 1.2.3 verysecret\n").problems[0];
    assert_eq!(problem.id, "001");
    assert!(!problem.kind.to_string().contains("verysecret"));
}

proptest! {
    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        parse(&bytes);
    }

    #[test]
    fn what_is_written_reads_back_as_the_same(
        lines in prop::collection::vec(("[0-9]{1,8}", "[!#]?[A-Za-z0-9._-]{0,130}", "any|10\\.0\\.0\\.[1-9](/[1-3]?[0-9])?|x", "[a-z0-9 ]{0,140}"), 0..20)
    ) {
        let text: String =
            lines.iter().map(|(id, name, ip, key)| format!("{id} {name} {ip} {key}\n")).collect();
        let first = parse(text.as_bytes());
        let second = parse(&written(&first));
        prop_assert!(first.entries == second.entries);
        prop_assert!(first.removed == second.removed);
        prop_assert_eq!(written(&first), written(&second));
        prop_assert_eq!(first.entries.len() + first.removed.len() + first.problems.len(), lines.len());
    }
}

#[test]
fn carriage_returns_behind_a_key_do_not_grow_into_the_loss_of_an_agent() {
    let long = format!("001 a any {}\r\rtail\n", "k".repeat(125));
    for line in ["001 a any kk\r\r\n", "001 a any k\r\r\r", long.as_str()] {
        let first = parse(line.as_bytes());
        let second = parse(&written(&first));
        assert_eq!(first.entries.len(), 1, "{line:?}");
        assert!(first.entries == second.entries, "{line:?}");
    }
}

use super::*;
use crate::scenario::Naming;

const OFFICE: &str = "
# an office
[fleet]
notify_time = 10s
seed = 7
duration = 5m   # long enough
sources = 127.0.0.2

[group laptops]
kind = wazuh-aes-tcp
agents = 600
versions = 4.9.2:1, 4.14.7:3
events = 12/m
event_size = 200:90, 1000..4000:10

[group old]
kind = ossec3
agents = 20
notify_time = 1m
sources = 127.0.1.1..127.0.1.20

[story]
1m = stop
30s = storm laptops 50%
";

fn problem(text: &str) -> (usize, String) {
    let error = parse("f", text).unwrap_err();
    (error.line, error.problem)
}

#[test]
fn a_file_becomes_groups_and_a_story_in_the_order_of_time() {
    let scenario = parse("office", OFFICE).unwrap();
    assert_eq!(scenario.agents(), 620);
    assert_eq!(
        (scenario.seed, scenario.duration),
        (Some(7), Some(Duration::from_secs(300)))
    );
    let [laptops, old] = &scenario.groups[..] else {
        panic!("two groups")
    };
    let load = laptops.habits.events.as_ref().unwrap();
    assert_eq!(
        (load.every, load.rhythm, load.sizes.largest()),
        (Duration::from_secs(5), Rhythm::Random, 4000)
    );
    assert_eq!(laptops.habits.notify_time, Duration::from_secs(10));
    assert_eq!((laptops.sources.len(), old.sources.len()), (1, 20));
    assert_eq!(old.habits.notify_time, Duration::from_secs(60));
    assert_eq!(old.habits.events, None);
    let texts: Vec<&str> = scenario.story.iter().map(|scene| scene.text.as_str()).collect();
    assert_eq!(texts, ["storm laptops 50%", "stop"]);
    assert_eq!(scenario.recruits(620, Naming::ByGroup(""))[0].name, "laptops-001");
}

#[test]
fn every_problem_names_its_line_and_the_cure() {
    let group = "[group a]\nkind = ossec3\nagents = 1\n";
    for (text, line, part) in [
        ("", 1, "[group laptops]"),
        ("agents = 1", 1, "begin with [fleet]"),
        ("[fleet", 1, "closing bracket"),
        ("[groups a]", 1, "[group NAME]"),
        ("[group 9]", 1, "a letter"),
        ("[group all]", 1, "not `all`"),
        ("[group a]\nagents = 1", 1, "kind = wazuh-aes-tcp"),
        ("[group a]\nkind = ossec3", 1, "agents = 100"),
        ("[group a]\nkind = ossec5", 2, "one of wazuh-aes-tcp"),
        ("[group a]\nagents = 0", 2, "from 1 to"),
        ("[group a]\nagents = 1\nagents = 2", 3, "twice"),
        ("[group a]\ncolour = red", 2, "one of kind, agents"),
        ("[group a]\nduration = 1m", 2, "unknown key"),
        ("[group a]\nrhythm = slow", 2, "`even` or `random`"),
        ("[group a]\nevents", 2, "an equals sign"),
        ("[fleet]\nkind = ossec3", 2, "one of duration, seed"),
        ("[fleet]\nudp_sockets = 0", 2, "1 or more"),
        ("[fleet]\nnotify_time = 10", 2, "20s"),
        ("[story]\nsoon = stop", 2, "500ms"),
        ("[story]\n1s = dance", 2, "one of kill"),
    ] {
        let (found, said) = problem(text);
        assert_eq!(found, line, "{text:?}: {said}");
        assert!(said.contains(part), "{text:?}: {said}");
    }
    let (line, said) = problem(&format!("{group}[story]\n1s = kill b 3"));
    assert_eq!((line, said.as_str()), (5, "no group is called `b`; there are a"));
    let (line, said) = problem(&format!("{group}[group a]"));
    assert_eq!((line, said.as_str()), (4, "group `a` begins in line 1 already"));
}

#[test]
fn the_examples_that_come_with_the_program_are_right() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../etc/swarm");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let scenario = parse(&path.display().to_string(), &text).unwrap();
        assert!(scenario.agents() > 0);
        seen += 1;
    }
    assert!(seen >= 3, "{seen} examples");
}

use muster_proto::{agent::AgentStatus, keys::file};

use super::*;

const NOW: i64 = 1_000_000;
const POLICY: Policy<'static> = Policy {
    manager_name: "vm",
    max_agents: 0,
};

fn registry(text: &str) -> Registry {
    let keys = KeyStore::new(file::parse(text.as_bytes()));
    let registered = keys.live().iter().map(|entry| (entry.id.clone(), 1)).collect();
    Registry {
        keys,
        registered,
        leases: None,
    }
}

fn ask(name: &str, address: &str) -> Ask {
    Ask {
        name: name.to_owned(),
        address: GivenAddress::parse(address),
        id: None,
        key_hash: None,
        rules: Rules {
            disconnected_time: None,
            ..Rules::default()
        },
        groups: Vec::new(),
        method: Method::Remote,
        source: None,
    }
}

fn decide(registry: &Registry, ask: &Ask) -> Verdict {
    registry.decide(ask, &KnownLiveness::new(), &POLICY, NOW)
}

fn new_key() -> Secret {
    Secret::new("newkey".to_owned())
}

fn grant(registry: &mut Registry, ask: &Ask) -> String {
    let Verdict::Grant(gives_way) = decide(registry, ask) else {
        panic!("refused")
    };
    let (entry, _) = registry
        .grant(ask, &gives_way, new_key(), Trace::Line, NOW)
        .expect("granted");
    entry.id.to_string()
}

fn in_the_way(clash: Clash, id: &str, why: Refusal) -> Verdict {
    Verdict::Refuse(Refused::InTheWay {
        clash,
        id: AgentId::new(id),
        why,
    })
}

fn gives_way(id: &str, name: &str, clash: Clash) -> GivesWay {
    GivesWay {
        id: AgentId::new(id),
        name: name.to_owned(),
        clash,
    }
}

#[test]
fn a_newcomer_gets_the_next_id() {
    let mut registry = registry("");
    assert_eq!(grant(&mut registry, &ask("web-01", "any")), "001");
    assert_eq!(grant(&mut registry, &ask("web-02", "any")), "002");
    assert_eq!(registry.registered[&AgentId::new("002")], NOW);
}

#[test]
fn any_is_nobodys_address() {
    assert_eq!(
        decide(&registry("001 a any k\n"), &ask("b1", "any")),
        Verdict::Grant(vec![])
    );
}

#[test]
fn an_address_is_a_duplicate_whatever_its_prefix() {
    let mut registry = registry("001 a 10.0.0.0/24 k\n");
    registry.registered.insert(AgentId::new("001"), NOW);
    for address in ["10.0.0.0/24", "10.0.0.0", "10.0.0.0/32", "10.0.0.0/255.0.0.0"] {
        assert_eq!(
            decide(&registry, &ask("b1", address)),
            in_the_way(Clash::Address, "001", Refusal::RegisteredTooRecently),
            "{address}"
        );
    }
    assert_eq!(decide(&registry, &ask("b1", "10.0.0.1")), Verdict::Grant(vec![]));
}

#[test]
fn the_address_is_checked_before_the_managers_name_and_that_before_other_names() {
    let mut registry = registry("001 vm 10.0.0.1 k\n002 web-02 any k\n");
    registry.registered.insert(AgentId::new("001"), NOW);
    registry.registered.insert(AgentId::new("002"), NOW);
    assert_eq!(
        decide(&registry, &ask("vm", "10.0.0.1")),
        in_the_way(Clash::Address, "001", Refusal::RegisteredTooRecently)
    );
    assert_eq!(
        decide(&registry, &ask("vm", "any")),
        Verdict::Refuse(Refused::ManagerName)
    );
    assert_eq!(decide(&registry, &ask("VM", "any")), Verdict::Grant(vec![]));
    assert_eq!(
        decide(&registry, &ask("web-02", "any")),
        in_the_way(Clash::Name, "002", Refusal::RegisteredTooRecently)
    );
}

#[test]
fn an_id_is_checked_before_everything_else() {
    let mut registry = registry("050 a any k\n");
    registry.registered.insert(AgentId::new("050"), NOW);
    let wish = Ask {
        id: Some(AgentId::new("050")),
        address: None,
        ..ask("vm", "any")
    };
    assert_eq!(
        decide(&registry, &wish),
        in_the_way(Clash::Id, "050", Refusal::RegisteredTooRecently)
    );
    let wish = Ask {
        id: Some(AgentId::new("051")),
        ..wish
    };
    assert_eq!(decide(&registry, &wish), Verdict::Refuse(Refused::BadAddress));
}

#[test]
fn nothing_is_removed_when_a_later_check_refuses() {
    let mut registry = registry("001 o6 10.0.0.6 k\n002 web-02 any k\n");
    registry.registered.insert(AgentId::new("002"), NOW);
    let verdict = decide(&registry, &ask("web-02", "10.0.0.6"));
    assert_eq!(verdict, in_the_way(Clash::Name, "002", Refusal::RegisteredTooRecently));
    assert!(registry.keys.get("001").is_some());
}

#[test]
fn two_different_agents_may_both_give_way_and_one_only_once() {
    let two = registry("001 a1 10.0.0.1 k\n002 b1 any k\n");
    assert_eq!(
        decide(&two, &ask("b1", "10.0.0.1")),
        Verdict::Grant(vec![
            gives_way("001", "a1", Clash::Address),
            gives_way("002", "b1", Clash::Name)
        ])
    );
    let one = registry("001 a1 10.0.0.1 k\n");
    assert_eq!(
        decide(&one, &ask("a1", "10.0.0.1")),
        Verdict::Grant(vec![gives_way("001", "a1", Clash::Address)])
    );
}

#[test]
fn who_is_replaced_leaves_a_line_and_the_newcomer_gets_a_new_id() {
    let mut registry = registry("001 web-01 any k1\n");
    assert_eq!(grant(&mut registry, &ask("web-01", "any")), "002");
    assert_eq!(&**registry.keys.image(), b"002 web-01 any newkey\n001 !web-01 any k1\n");
    assert!(!registry.registered.contains_key(&AgentId::new("001")));
}

#[test]
fn an_agent_replaced_under_its_own_id_can_be_replaced_again() {
    let mut registry = registry("050 web-04 any k1\n");
    let rules = Rules {
        disconnected_time: None,
        after_registration_time: 0,
        ..Rules::default()
    };
    let wish = Ask {
        id: Some(AgentId::new("050")),
        rules,
        ..ask("web-04n", "any")
    };
    for _ in 0..3 {
        assert_eq!(grant(&mut registry, &wish), "050");
        assert_eq!(registry.registered[&AgentId::new("050")], NOW);
    }
    assert_eq!(registry.keys.live().len(), 1);
    assert_eq!(registry.keys.removed().len(), 3);
}

#[test]
fn liveness_is_asked_for_once_for_each_agent_in_the_way() {
    let registry = registry("001 a1 10.0.0.1 k\n002 b1 any k\n");
    let wish = Ask {
        rules: Rules::default(),
        ..ask("b1", "10.0.0.1")
    };
    let mut known = KnownLiveness::new();
    let gone = Some(Liveness {
        status: AgentStatus::Disconnected,
        disconnected_at: 1,
    });
    for id in ["001", "002"] {
        let verdict = registry.decide(&wish, &known, &POLICY, NOW);
        assert_eq!(verdict, Verdict::NeedsLiveness(AgentId::new(id)));
        known.insert(AgentId::new(id), gone);
    }
    assert!(matches!(registry.decide(&wish, &known, &POLICY, NOW), Verdict::Grant(gone) if gone.len() == 2));
}

#[test]
fn nobody_is_asked_when_nobody_is_replaced_anyway() {
    let registry = registry("001 a1 any k\n");
    let wish = Ask {
        rules: Rules {
            enabled: false,
            ..Rules::default()
        },
        ..ask("a1", "any")
    };
    assert_eq!(
        decide(&registry, &wish),
        in_the_way(Clash::Name, "001", Refusal::Disabled)
    );
}

#[test]
fn unknown_liveness_refuses() {
    let registry = registry("001 a1 any k\n");
    let wish = Ask {
        rules: Rules::default(),
        ..ask("a1", "any")
    };
    let known = KnownLiveness::from([(AgentId::new("001"), None)]);
    assert_eq!(
        registry.decide(&wish, &known, &POLICY, NOW),
        in_the_way(Clash::Name, "001", Refusal::Unknown)
    );
}

#[test]
fn the_hash_counts_in_lower_case_and_for_this_agent_only() {
    let registry = registry("001 a1 any kk\n");
    let hash = key_hash("001", "a1", &Secret::new("kk".to_owned()));
    let with = |hash: String| {
        decide(
            &registry,
            &Ask {
                key_hash: Some(hash),
                ..ask("a1", "any")
            },
        )
    };
    assert_eq!(with(hash.clone()), in_the_way(Clash::Name, "001", Refusal::SameKey));
    assert!(matches!(with(hash.to_uppercase()), Verdict::Grant(_)));
    assert!(matches!(with("0".repeat(40)), Verdict::Grant(_)));
}

#[test]
fn a_full_registry_takes_nobody_unless_somebody_gives_way() {
    let registry = registry("001 a1 any k\n002 b1 any k\n");
    let policy = Policy {
        max_agents: 2,
        ..POLICY
    };
    let decide = |name| registry.decide(&ask(name, "any"), &KnownLiveness::new(), &policy, NOW);
    assert_eq!(decide("c1"), Verdict::Refuse(Refused::Full));
    assert!(matches!(decide("a1"), Verdict::Grant(_)));
}

#[test]
fn without_an_id_left_only_given_ids_work() {
    let registry = registry("99999999 a1 any k\n");
    assert_eq!(decide(&registry, &ask("b1", "any")), Verdict::Refuse(Refused::Full));
    let given = Ask {
        id: Some(AgentId::new("007")),
        ..ask("b1", "any")
    };
    assert_eq!(decide(&registry, &given), Verdict::Grant(vec![]));
}

#[test]
fn of_two_agents_with_one_id_the_one_that_gives_way_goes_and_not_the_other() {
    let mut registry = registry("001 web any k1\n001 db 10.0.0.1 k2\n");
    assert_eq!(grant(&mut registry, &ask("db", "any")), "002");
    let left: Vec<&str> = registry.keys.live().iter().map(|entry| entry.key.expose()).collect();
    assert_eq!(left, ["k1", "newkey"]);
}

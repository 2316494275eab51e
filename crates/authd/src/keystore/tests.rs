use muster_proto::keys::{Secret, address::RegisteredAddress};
use proptest::prelude::*;

use super::*;

fn store(text: &str) -> KeyStore {
    KeyStore::new(file::parse(text.as_bytes()))
}

fn entry(id: &str, name: &str, address: &str) -> KeyEntry {
    KeyEntry {
        id: AgentId::new(id),
        name: name.to_owned(),
        address: RegisteredAddress::parse(address).expect("an address"),
        key: Secret::new(format!("key-of-{id}")),
    }
}

fn image(store: &mut KeyStore) -> String {
    String::from_utf8(store.image().to_vec()).expect("UTF-8")
}

fn ids(found: &[&KeyEntry]) -> Vec<String> {
    found.iter().map(|entry| entry.id.to_string()).collect()
}

#[test]
fn ids_are_counted_up_from_the_highest_one_removed_lines_included() {
    let mut store = store("002 a any k\n009 !b any k\n");
    for expected in ["010", "011"] {
        let id = store.next_id().expect("an id");
        assert_eq!(id.as_str(), expected);
        store.add(entry(expected, expected, "any"));
    }
}

#[test]
fn an_id_given_from_outside_raises_the_counter() {
    let mut store = KeyStore::default();
    store.add(entry("051", "a", "any"));
    assert_eq!(store.next_id(), Some(AgentId::new("052")));
    store.add(entry("007", "b", "any"));
    assert_eq!(store.next_id(), Some(AgentId::new("052")));
}

#[test]
fn an_id_is_not_used_again_after_a_purge_while_the_store_lives() {
    let mut store = store("009 a any k\n");
    store.remove(&AgentId::new("009"), Trace::Nothing);
    assert_eq!(store.next_id(), Some(AgentId::new("010")));
    assert_eq!(image(&mut store), "");
}

#[test]
fn there_is_no_id_behind_the_highest_one() {
    let mut store = KeyStore::default();
    store.add(entry("99999999", "a", "any"));
    assert_eq!(store.next_id(), None);
}

#[test]
fn the_last_agent_moves_into_the_place_of_one_that_goes() {
    let mut store =
        store("056 web-17 any k\n002 web-02 10.0.0.2 k2\n003 web-03 any k\n059 y3 any k\n001 !web-01 any k\n");
    store.remove(&AgentId::new("002"), Trace::Line);
    assert_eq!(
        image(&mut store),
        "056 web-17 any k\n059 y3 any k\n003 web-03 any k\n001 !web-01 any k\n002 !web-02 10.0.0.2 k2\n"
    );
    assert_eq!(store.get("059").map(|entry| entry.name.as_str()), Some("y3"));
    assert!(
        store.get("002").is_none() && store.with_name("web-02").is_empty() && store.with_host("10.0.0.2").is_empty()
    );
}

#[test]
fn a_removed_network_loses_its_prefix_and_a_purged_agent_leaves_nothing() {
    let mut store = store("003 n3 10.3.0.0/16 k3\n004 n4 any k4\n");
    store.remove(&AgentId::new("003"), Trace::Line);
    store.remove(&AgentId::new("004"), Trace::Nothing);
    assert_eq!(image(&mut store), "003 !n3 10.3.0.0 k3\n");
    store.forget_removed();
    assert_eq!(image(&mut store), "");
}

#[test]
fn addresses_are_found_by_their_text_without_prefix() {
    let store = store("001 a 10.0.0.0/24 k\n002 b any k\n");
    assert_eq!(ids(&store.with_host("10.0.0.0")), ["001"]);
    assert!(store.with_host("any").is_empty());
    assert!(store.with_host("10.0.0.7").is_empty());
}

#[test]
fn doubles_of_a_file_are_all_found_and_the_first_one_counts() {
    let mut store = store("001 a 10.0.0.1 k1\n002 a 10.0.0.2 k2\n001 c 10.0.0.1 k3\n");
    assert_eq!(ids(&store.with_name("a")), ["001", "002"]);
    assert_eq!(store.with_host("10.0.0.1").len(), 2);
    assert_eq!(store.with_id(&AgentId::new("001")).len(), 2);
    assert_eq!(store.get("001").map(|entry| entry.name.as_str()), Some("a"));
    store.remove(&AgentId::new("001"), Trace::Nothing);
    assert_eq!(store.get("001").map(|entry| entry.name.as_str()), Some("c"));
    assert_eq!(ids(&store.with_name("a")), ["002"]);
    assert_eq!(image(&mut store), "001 c 10.0.0.1 k3\n002 a 10.0.0.2 k2\n");
}

#[test]
fn a_name_of_128_bytes_is_found_again_although_readers_cut_it() {
    let mut store = KeyStore::default();
    let name = "n".repeat(128);
    store.add(entry("001", &name, "any"));
    assert_eq!(store.with_name(&name).len(), 1);
    let mut again = KeyStore::new(file::parse(&store.image()));
    assert_eq!(again.with_name(&name).len(), 1);
    assert_eq!(image(&mut again), image(&mut store));
}

#[derive(Clone, Debug)]
enum Step {
    Add(u32, String, String),
    Remove(u32, bool),
    Image,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u32..40, "[a-c]{1,2}", "any|10\\.0\\.0\\.[1-9](/24)?").prop_map(|(id, name, host)| Step::Add(id, name, host)),
        (1u32..40, any::<bool>()).prop_map(|(id, trace)| Step::Remove(id, trace)),
        Just(Step::Image),
    ]
}

proptest! {
    /// Against a list that is searched from its beginning.
    #[test]
    fn indexes_agree_with_a_plain_search(
        text in "((0[0-4][1-9]) [!]?[a-c]{1,2} (any|10\\.0\\.0\\.[1-9]) k\n){0,8}",
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let mut store = store(&text);
        for step in steps {
            match step {
                Step::Add(id, name, host) => store.add(entry(&format!("{id:03}"), &name, &host)),
                Step::Remove(id, trace) => {
                    let trace = if trace { Trace::Line } else { Trace::Nothing };
                    store.remove(&AgentId::from_number(id), trace);
                }
                Step::Image => { store.image(); }
            }
        }
        for entry in store.live() {
            let first = store.live().iter().find(|other| other.id == entry.id);
            prop_assert!(store.get(entry.id.as_str()) == first);
            prop_assert!(store.with_name(&entry.name).contains(&entry));
            prop_assert_eq!(store.with_id(&entry.id).len(), store.live().iter().filter(|other| other.id == entry.id).count());
            if !entry.address.is_any() {
                prop_assert!(store.with_host(entry.address.host_text()).contains(&entry));
            }
        }
        prop_assert_eq!(store.get("999").is_some(), false);
        let written = store.image();
        let mut again = KeyStore::new(file::parse(&written));
        prop_assert!(again.live() == store.live());
        prop_assert!(again.removed() == store.removed());
        prop_assert!(again.image() == written);
    }
}

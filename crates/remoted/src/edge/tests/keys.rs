//! The key file changes under running sessions.

use super::*;

#[test]
fn new_key_is_usable_at_once_and_other_sessions_do_not_notice() {
    let mut stage = start();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, STARTUP);
    agent.hear(&mut link);
    stage.news();

    let begun = Instant::now();
    stage.write_keys(&format!("{KEYS}006 new any k6\n"));
    let News::KeysReloaded {
        added,
        changed,
        removed,
    } = stage.news()
    else {
        panic!("reload")
    };
    assert_eq!((added.len(), changed.len(), removed.len()), (1, 0, 0));
    let mut newcomer = Agent::new("006", "new", "k6", Some("006"), CryptoForm::WazuhAes);
    // A connection that is refused in the moment between would be tried again by an agent too.
    wait_until(|| {
        let mut second = stage.connect();
        newcomer.say(&mut second, STARTUP);
        let mut header = [0; 4];
        let Link::Tcp(stream) = &mut second else { unreachable!() };
        stream.read_exact(&mut header).is_ok()
    });
    assert!(begun.elapsed() < Duration::from_secs(5));

    agent.say(&mut link, KEEPALIVE);
    assert_eq!(agent.hear(&mut link), ACK);
}

#[test]
fn removed_agent_keeps_its_connection_until_it_speaks() {
    let mut stage = start();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, STARTUP);
    agent.hear(&mut link);
    stage.news();
    stage.write_keys("005 web any k5\n");
    let News::KeysReloaded { removed, .. } = stage.news() else {
        panic!("reload")
    };
    assert_eq!(removed.len(), 4);
    wait_until(|| stage.edge.agents() == 1);
    assert!(link.is_silent());
    agent.say(&mut link, KEEPALIVE);
    assert!(link.is_closed());
    assert_eq!(stage.requests(), ["id:001"]);
}

#[test]
fn changed_key_shuts_out_the_old_one_and_the_loss_is_told_of_the_new_slot() {
    let mut stage = start();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, STARTUP);
    agent.hear(&mut link);
    stage.news();
    stage.write_keys(&KEYS.replace("001 dyn any k1", "001 dyn any other"));
    let News::KeysReloaded { changed, .. } = stage.news() else {
        panic!("reload")
    };
    let [slot] = changed.as_slice() else {
        panic!("one changed")
    };
    assert!(slot.route().is_some(), "id and address are the same, so the route is");
    agent.say(&mut link, KEEPALIVE);
    assert!(link.is_closed());
    let News::ConnectionLost { slot: lost, .. } = stage.news() else {
        panic!("lost")
    };
    assert!(Arc::ptr_eq(slot, &lost));
    assert_eq!(slot.route(), None);
    assert_eq!(stage.requests(), ["id:001"]);
}

#[test]
fn new_key_under_an_old_id_begins_with_new_counters_also_after_a_restart() {
    let mut stage = start();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.form = CryptoForm::OssecAes;
    agent.say(&mut link, STARTUP);
    agent.hear(&mut link);
    stage.news();
    drop(link);
    stage.news();
    let file = stage.home.path().join("queue/rids/001");
    wait_until(|| file.exists());
    stage.write_keys(&KEYS.replace("001 dyn any k1", "001 dyn any other"));
    stage.news();
    wait_until(|| !file.exists());
    stage.edge.stop();
    let home = stage.home;
    drop(stage.edge);
    assert!(!file.exists());

    let stage = Setting::default().start_in(home);
    let mut agent = Agent::new("001", "dyn", "other", Some("001"), CryptoForm::OssecAes);
    agent.counter = SenderCounter::begin_at(0);
    let mut link = stage.connect();
    agent.say(&mut link, STARTUP);
    assert_eq!(agent.hear(&mut link), ACK);
}

#[test]
fn unreadable_file_keeps_everybody() {
    let mut stage = start();
    fs::remove_file(stage.home.path().join(paths::CLIENT_KEYS)).unwrap();
    stage.edge.keys_changed();
    stage.no_news();
    let (mut agent, mut link) = (Agent::dynamic(), stage.connect());
    agent.say(&mut link, STARTUP);
    assert_eq!(agent.hear(&mut link), ACK);
}

#[test]
fn manager_without_a_key_file_starts_and_takes_the_first_agent() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join("etc")).unwrap();
    let mut stage = Setting::default().start_in(home);
    stage.write_keys("001 dyn any k1\n");
    let News::KeysReloaded { added, .. } = stage.news() else {
        panic!("reload")
    };
    assert_eq!(added.len(), 1);
}

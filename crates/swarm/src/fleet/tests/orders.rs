//! What happens to a fleet beside coming and going, by order and by story.

use super::*;
use crate::scenario::Scene;

fn slow() -> Habits {
    Habits::stock(Duration::from_secs(20))
}

async fn staged(mix: &str) -> (SharedManager, Stage) {
    let manager = Manager::new();
    let address = listen(&manager).await;
    let mut stage = Stage::start(address, &slow(), mix);
    stage.ready().await;
    (manager, stage)
}

#[test]
fn a_storm_brings_everybody_back_once() {
    on_a_stage(async {
        let (manager, mut stage) = staged(ALL).await;
        stage.order("storm all").await;
        assert_eq!(stage.line().await, Line::Storm { count: 10 });
        assert_eq!(stage.ready().await, 10);
        let report = stage.stop().await;
        assert_eq!((report.tally.connects, report.tally.startups_acked), (20, 20));
        assert_eq!(manager.borrow().count("#!-agent startup "), 20);
    });
}

#[test]
fn a_reset_is_a_reset_and_other_endings_are_none() {
    on_a_stage(async {
        let (manager, mut stage) = staged("wazuh-aes-tcp=4").await;
        // Closing with an ack unread would be a reset too.
        stage.until(|report| report.tally.keepalives_acked >= 4).await;
        stage.order("kill 2").await;
        stage.line().await;
        stage.until_connected(2).await;
        stage.order("kill 2 reset").await;
        stage.line().await;
        stage.until_connected(0).await;
        while manager.borrow().resets < 2 {
            time::sleep(Duration::from_millis(5)).await;
        }
        stage.stop().await;
        assert_eq!(manager.borrow().resets, 2);
    });
}

#[test]
fn a_clone_says_hello_with_the_same_key_and_is_counted_apart() {
    on_a_stage(async {
        let (manager, mut stage) = staged("wazuh-aes-tcp=2").await;
        stage.order("clone @sim-002 from 127.0.0.9").await;
        let names = vec!["sim-002".to_owned()];
        assert_eq!(stage.line().await, Line::Cloned { count: 1, names });
        while manager.borrow().count("#!-agent startup ") < 3 {
            time::sleep(Duration::from_millis(5)).await;
        }
        assert!(
            manager
                .borrow()
                .peers
                .iter()
                .any(|peer| peer.ip().to_string() == "127.0.0.9")
        );
        let report = stage.stop().await;
        assert_eq!(report.standing.connected, 2);
        let [fleet, clones] = &report.groups[..] else {
            panic!("two parts: {:?}", report.groups)
        };
        assert_eq!((fleet.members, clones.members), (2, 1));
        assert_eq!((fleet.tally.startups_sent, clones.tally.startups_sent), (2, 1));
        // A clone does not say goodbye in its owner's name.
        assert_eq!((fleet.tally.shutdowns_sent, clones.tally.shutdowns_sent), (2, 0));
        assert_eq!(report.tally.startups_sent, 3);
    });
}

#[test]
fn a_flood_comes_from_whom_it_was_ordered_and_ends() {
    on_a_stage(async {
        let (manager, mut stage) = staged("wazuh-aes-tcp=2,wazuh-aes-udp=1").await;
        stage.order("flood @sim-001 at 1000/s of 100 for 200ms").await;
        let names = vec!["sim-001".to_owned()];
        assert_eq!(stage.line().await, Line::Flooding { count: 1, names });
        let arrived = || manager.borrow().count("1:/var/log/syslog:");
        let mut last = 0;
        // Over when nothing more comes for a while.
        loop {
            time::sleep(Duration::from_millis(300)).await;
            if arrived() > 0 && arrived() == last {
                break;
            }
            last = arrived();
        }
        assert!(last <= 201, "{last}");
        let events = |(_, text): &&(String, String)| text.starts_with("1:/var/log/syslog:");
        assert!(manager.borrow().heard.iter().filter(events).all(|(id, _)| id == "001"));
        let report = stage.stop().await;
        assert_eq!(report.tally.events_made, report.tally.events_sent);
    });
}

#[test]
fn who_is_stalled_goes_on_sending_and_reads_again_when_revived() {
    on_a_stage(async {
        let manager = Manager::new();
        let address = listen(&manager).await;
        let habits = Habits::stock(Duration::from_millis(50));
        let mut stage = Stage::start(address, &habits, "wazuh-aes-tcp=1");
        stage.ready().await;
        stage.order("stall all").await;
        assert!(matches!(stage.line().await, Line::Stalled { count: 1, .. }));
        stage.order("status").await;
        let Line::Status(before) = stage.line().await else {
            panic!("a status")
        };
        let sent = manager.borrow().heard.len();
        while manager.borrow().heard.len() < sent + 10 {
            time::sleep(Duration::from_millis(5)).await;
        }
        stage.order("status").await;
        let Line::Status(stalled) = stage.line().await else {
            panic!("a status")
        };
        assert_eq!(stalled.tally.messages_received, before.tally.messages_received);
        stage.order("revive").await;
        assert!(matches!(stage.line().await, Line::Revived { count: 1, .. }));
        let before = stalled.tally.keepalives_acked;
        stage.until(|report| report.tally.keepalives_acked > before).await;
        assert_eq!(stage.stop().await.tally.connects, 1);
    });
}

#[test]
fn unknown_names_and_groups_are_told() {
    on_a_stage(async {
        let (_manager, mut stage) = staged("wazuh-aes-tcp=1").await;
        for (order, text) in [
            ("kill @nobody", "no agent is named `nobody`"),
            ("storm desks 3", "no group is called `desks`"),
        ] {
            stage.order(order).await;
            assert_eq!(stage.line().await, Line::Error { text: text.to_owned() });
            stage.line().await;
        }
        stage.stop().await;
    });
}

#[test]
fn the_story_begins_when_all_are_there_and_ends_the_run() {
    on_a_stage(async {
        let manager = Manager::new();
        let address = listen(&manager).await;
        let scene = |millis, text: &str| Scene {
            at: Duration::from_millis(millis),
            command: text.parse().unwrap(),
            text: text.to_owned(),
        };
        let scenario = Scenario {
            story: vec![
                scene(0, "kill wazuh-aes-tcp 1"),
                scene(50, "revive"),
                scene(200, "stop"),
            ],
            ..of("wazuh-aes-tcp=3", &slow())
        };
        let mut stage = Stage::playing(address, scenario, 0);
        assert_eq!(stage.ready().await, 3);
        let mut orders = Vec::new();
        while orders.len() < 3 {
            if let Line::Scene { order, .. } = stage.line().await {
                orders.push(order);
            }
        }
        assert_eq!(orders, ["kill wazuh-aes-tcp 1", "revive", "stop"]);
        let report = time::timeout(Duration::from_secs(20), stage.report)
            .await
            .unwrap()
            .unwrap();
        assert_eq!((report.tally.startups_sent, report.tally.shutdowns_sent), (4, 3));
    });
}

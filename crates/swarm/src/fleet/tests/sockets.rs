//! Source addresses, and UDP agents that share sockets.

use std::{collections::HashSet, net::IpAddr};

use super::*;

fn slow() -> Habits {
    Habits::stock(Duration::from_secs(20))
}

#[test]
fn udp_agents_that_share_a_socket_get_their_own_answers() {
    on_a_stage(async {
        let manager = Manager::new();
        let address = listen(&manager).await;
        let scenario = of("wazuh-aes-udp=20,wazuh-blowfish-udp=6,ossec3=6,ossec4=8", &slow());
        let mut stage = Stage::playing(address, scenario, 4);
        assert_eq!(stage.ready().await, 40);
        let sockets: HashSet<SocketAddr> = manager.borrow().peers.iter().copied().collect();
        assert!(sockets.len() <= 5, "{sockets:?}");
        // Each one's first keepalive is acknowledged too.
        stage.until(|report| report.tally.keepalives_acked >= 40).await;
        let report = stage.stop().await;
        let Tally {
            startups_acked,
            undecodable,
            unclaimed,
            stale_counters,
            messages_received,
            ..
        } = report.tally;
        assert_eq!((undecodable, unclaimed, stale_counters), (0, 0, 0));
        // Who waits long says hello again.
        assert!(startups_acked >= 40 && messages_received >= 80, "{report:?}");
    });
}

#[test]
fn a_member_that_leaves_and_comes_back_is_found_again() {
    on_a_stage(async {
        let manager = Manager::new();
        let address = listen(&manager).await;
        let mut stage = Stage::playing(address, of("wazuh-aes-udp=6", &slow()), 1);
        stage.ready().await;
        stage.order("kill 3").await;
        stage.line().await;
        assert_eq!(stage.until_connected(3).await.standing.killed, 3);
        stage.order("revive").await;
        stage.line().await;
        assert_eq!(stage.ready().await, 6);
        let report = stage.stop().await;
        assert_eq!((report.tally.startups_sent, report.tally.startups_acked), (9, 9));
    });
}

#[test]
fn agents_come_from_the_addresses_of_their_group() {
    on_a_stage(async {
        let manager = Manager::new();
        let address = listen(&manager).await;
        for (mix, udp_sockets) in [("wazuh-aes-tcp=4", 0), ("wazuh-aes-udp=4", 9), ("wazuh-aes-udp=8", 2)] {
            manager.borrow_mut().peers.clear();
            let sources: Vec<IpAddr> = vec![[127, 0, 0, 2].into(), [127, 0, 0, 3].into()];
            let mut scenario = of(mix, &slow());
            scenario.groups[0].sources = sources.clone();
            let mut stage = Stage::playing(address, scenario, udp_sockets);
            stage.ready().await;
            stage.stop().await;
            let seen: HashSet<IpAddr> = manager.borrow().peers.iter().map(SocketAddr::ip).collect();
            assert_eq!(seen, sources.into_iter().collect(), "{mix}");
        }
    });
}

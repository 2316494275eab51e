//! What the configuration means for the roster, and what of it can change while the daemon runs.

use std::time::Duration;

use muster_config::{ManagerKeepalive, Probe, Remote, Settings};

use crate::{
    monitor::MonitorSettings,
    roster::RosterSettings,
    schedule::{Policy, ProbeChoice, Sending},
};

/// The roster's part of the configuration. `host` is the manager's name where no other is set.
pub fn roster_settings(settings: &Settings, host: &str) -> RosterSettings {
    RosterSettings {
        policy: policy(settings),
        node: settings.node_name().unwrap_or(host).to_owned(),
        keepalive_events: settings.nats.keepalive_events,
        keepalive_received: settings.nats.keepalive_received,
        escalation: settings.nats.escalation.clone(),
        monitor: monitor(settings),
    }
}

/// What is said in monitord's place.
fn monitor(settings: &Settings) -> MonitorSettings {
    let options = &settings.internal.monitord;
    let alert_time = settings.global.agents_disconnection_alert_time;
    MonitorSettings {
        alert_after: options.monitor_agents.then_some(alert_time),
        delete_after: Some(options.delete_old_agents).filter(|time| !time.is_zero()),
    }
}

/// One roster has one policy: that of the first `<remote>` block with `<manager_keepalive>`.
fn policy(settings: &Settings) -> Policy {
    let keepalive = settings
        .secure_remotes()
        .find_map(|remote| remote.manager_keepalive.as_ref());
    match keepalive.filter(|keepalive| keepalive.enabled) {
        None => Policy::stock(settings.global.agents_disconnection_time),
        Some(ManagerKeepalive {
            interval,
            timeout,
            max_missed,
            retry_interval,
            probe,
            ..
        }) => Policy {
            interval: (*interval).max(Duration::from_secs(1)),
            timeout: *timeout,
            max_missed: *max_missed,
            sending: Some(Sending {
                probe: choice(*probe),
                retry: (*retry_interval).max(Duration::from_secs(1)),
            }),
        },
    }
}

/// What is legal by itself and not together.
///
/// # Errors
/// The sentence for whoever wrote it.
pub fn check(settings: &Settings) -> Result<(), String> {
    let options = &settings.internal.remoted;
    if options.verify_msg_id == Some(true) && options.worker_pool > 1 {
        return Err(format!(
            "message id verification cannot be guaranteed when remoted.worker_pool is greater than 1 (it is {}): set \
             remoted.worker_pool=1 beside remoted.verify_msg_id=1",
            options.worker_pool
        ));
    }
    Ok(())
}

/// The policy as the status shows it.
pub fn in_words(policy: &Policy) -> String {
    let timeout = policy.limits(None).timeout.as_secs();
    match policy.sending {
        None => format!("none sent, disconnected after {timeout} s"),
        Some(Sending { probe, .. }) => {
            let probe = match probe {
                ProbeChoice::Auto => "auto",
                ProbeChoice::Keepalive => "keepalive",
                ProbeChoice::Ack => "ack",
                ProbeChoice::Request => "request",
            };
            format!(
                "{probe} every {} s, disconnected after {timeout} s",
                policy.interval.as_secs()
            )
        }
    }
}

fn choice(probe: Probe) -> ProbeChoice {
    match probe {
        Probe::Auto => ProbeChoice::Auto,
        Probe::Keepalive => ProbeChoice::Keepalive,
        Probe::Ack => ProbeChoice::Ack,
        Probe::Request => ProbeChoice::Request,
    }
}

/// The settings that differ and count only after a restart, by name.
pub fn need_restart(old: &Settings, new: &Settings) -> Vec<String> {
    let mut names = Vec::new();
    let mut differs = |name: &str, differs: bool| {
        if differs {
            names.push(name.to_owned());
        }
    };
    differs("<remote>", without_keepalive(old) != without_keepalive(new));
    let rates = |settings: &Settings| {
        let request = settings.key_request.as_ref();
        request.map(|request| (request.rate_per_address, request.rate_total))
    };
    differs("rates of <key_request>", rates(old) != rates(new));
    differs(
        "<muster>",
        old.muster.manager_version != new.muster.manager_version || old.muster.layout != new.muster.layout,
    );
    differs(
        "remoted.* of the internal options",
        old.internal.remoted != new.internal.remoted,
    );
    names
}

fn without_keepalive(settings: &Settings) -> Vec<Remote> {
    settings
        .remotes
        .iter()
        .map(|remote| Remote {
            manager_keepalive: None,
            ..remote.clone()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(keepalive: Option<ManagerKeepalive>) -> Settings {
        let remote = Remote {
            manager_keepalive: keepalive,
            ..Remote::default()
        };
        Settings {
            remotes: vec![Remote::default(), remote],
            ..Settings::default()
        }
    }

    #[test]
    fn checked_counters_need_one_worker_as_with_stock() {
        let mut settings = Settings::default();
        assert_eq!(check(&settings), Ok(()));
        settings.internal.remoted.verify_msg_id = Some(true);
        assert!(check(&settings).unwrap_err().contains("worker_pool"));
        settings.internal.remoted.worker_pool = 1;
        assert_eq!(check(&settings), Ok(()));
    }

    #[test]
    fn without_the_block_nothing_is_sent_and_the_disconnection_time_counts() {
        let off = ManagerKeepalive {
            enabled: false,
            ..ManagerKeepalive::default()
        };
        for settings in [with(None), with(Some(off))] {
            let policy = roster_settings(&settings, "host").policy;
            assert_eq!(policy, Policy::stock(Duration::from_secs(900)));
            assert_eq!(in_words(&policy), "none sent, disconnected after 900 s");
        }
    }

    #[test]
    fn block_of_any_remote_counts() {
        let settings = roster_settings(&with(Some(ManagerKeepalive::default())), "host");
        assert_eq!(settings.policy.interval, Duration::from_secs(60));
        assert!(settings.policy.sending.is_some());
        assert_eq!(settings.node, "host");
        assert_eq!(in_words(&settings.policy), "auto every 60 s, disconnected after 180 s");
    }

    #[test]
    fn only_what_cannot_change_asks_for_a_restart() {
        let old = with(None);
        let mut new = with(Some(ManagerKeepalive::default()));
        new.global.agents_disconnection_time = Duration::from_secs(7);
        assert_eq!(need_restart(&old, &new), [""; 0]);
        new.remotes[0].port = 7;
        new.internal.remoted.rlimit_nofile = 7;
        assert_eq!(
            need_restart(&old, &new),
            ["<remote>", "remoted.* of the internal options"]
        );
    }
}

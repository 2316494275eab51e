//! Who an agent is, its periods, and the texts that it sends.

use std::time::Duration;

use crate::{dice::Dice, mix::Family};

/// Who an agent is, as its key line says. The key itself lives sealed in its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Registered address.
    pub address: String,
}

/// The periods that all agents of a fleet share.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Between two keepalives.
    pub notify_time: Duration,
    /// Without a word from the manager, the agent reconnects.
    pub reconnect_after: Duration,
    /// A Wazuh agent's wait for the ack of its startup.
    pub ack_wait: Duration,
    /// The shortest wait of an OSSEC agent before it repeats its startup; the longest is twice that.
    pub hello_repeat: Duration,
    /// Between two attempts to connect.
    pub retry_interval: Duration,
    /// Events, if any.
    pub events: Option<EventLoad>,
}

impl Habits {
    /// Stock's proportions: at a keepalive every 20 s the manager is given up after 60 s, a startup after 60 s, and
    /// attempts are 10 s apart.
    pub fn stock(notify_time: Duration) -> Self {
        let second = Duration::from_secs(1);
        Self {
            notify_time,
            reconnect_after: notify_time.saturating_mul(3),
            ack_wait: notify_time
                .saturating_mul(3)
                .clamp(second.saturating_mul(3), second.saturating_mul(60)),
            hello_repeat: (notify_time / 5).clamp(second, second.saturating_mul(3)),
            retry_interval: (notify_time / 2).clamp(second, second.saturating_mul(10)),
            events: None,
        }
    }
}

/// The events of one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventLoad {
    /// Between two events.
    pub every: Duration,
    /// Bytes of payload; shorter than the fixed text means the fixed text.
    pub size: usize,
}

impl EventLoad {
    /// The payload of an agent's event `number`: its name and number, then padding that compresses like a log line.
    pub fn text(&self, name: &str, number: u64, dice: &mut Dice) -> Vec<u8> {
        let mut text = format!("1:/var/log/syslog:{name} swarm[1]: event {number} of {name} ").into_bytes();
        let fixed = text.len();
        while text.len() < self.size {
            let word = WORDS
                .get(usize::try_from(dice.below(WORDS.len() as u64)).unwrap_or(0))
                .unwrap_or(&"x");
            text.extend_from_slice(word.as_bytes());
            text.extend_from_slice(format!(" {:x} ", dice.below(4096)).as_bytes());
        }
        text.truncate(self.size.max(fixed));
        text
    }
}

const WORDS: [&str; 8] = [
    "session", "opened", "from", "user", "port", "accepted", "closed", "request",
];

/// The longest keepalive of an OSSEC agent.
const OSSEC_KEEPALIVE_LEN: usize = 1024;

/// A keepalive as the family writes it.
pub(super) fn keepalive_text(identity: &Identity, family: Family, merged_sum: &str, dice: &mut Dice) -> String {
    let Identity { name, .. } = identity;
    let version = family.version();
    if family.is_ossec() {
        let mut text = format!(
            "#!-Linux {name} 6.1.0-28-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 x86_64 - {version}\n\
             {merged_sum} merged.mg\n\n"
        );
        for _ in 0..dice.below(698) {
            let printable = b'!'.saturating_add(u8::try_from(dice.below(93)).unwrap_or(0));
            text.push(char::from(printable));
        }
        text.truncate(OSSEC_KEEPALIVE_LEN);
        text
    } else {
        format!(
            "#!-Linux |{name} |6.1.0-28-amd64 |#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 |x86_64 \
             [Debian GNU/Linux|debian: 12 (bookworm)] - {version}\n{merged_sum} merged.mg\n#\"_agent_ip\":127.0.0.1\n"
        )
    }
}

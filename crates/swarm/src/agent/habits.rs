//! Who an agent is, its periods, and the texts that it sends.

use std::{rc::Rc, time::Duration};

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
    /// The version that it says it is, such as `4.14.7`.
    pub version: Rc<str>,
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
    /// Whether shared files are kept as well as summed.
    pub keeps_files: bool,
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
            keeps_files: false,
        }
    }
}

/// How the moments of events lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rhythm {
    /// The same time between all of them.
    Even,
    /// As if by chance: sometimes several at once, sometimes none for long, as the events of a real machine.
    Random,
}

/// How many bytes events have: ranges, each with its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes(Vec<(usize, usize, u32)>);

impl Sizes {
    /// Every event has this size.
    pub fn fixed(size: usize) -> Self {
        Self(vec![(size, size, 1)])
    }

    /// Ranges from smallest to largest size, each with its share. `None` when the shares add up to nothing or too much,
    /// or a range runs backwards.
    pub fn ranges(ranges: Vec<(usize, usize, u32)>) -> Option<Self> {
        let total = ranges.iter().try_fold(0_u32, |sum, range| sum.checked_add(range.2))?;
        let forward = ranges.iter().all(|(least, most, _)| least <= most);
        (total > 0 && forward).then_some(Self(ranges))
    }

    /// The largest.
    pub fn largest(&self) -> usize {
        self.0.iter().map(|(_, most, _)| *most).max().unwrap_or(0)
    }

    /// On average.
    pub fn mean(&self) -> f64 {
        let total: u32 = self.0.iter().map(|(.., share)| *share).sum();
        let sum: f64 = self
            .0
            .iter()
            .map(|(least, most, share)| f64::from(*share) * (*least as f64 + *most as f64) / 2.0)
            .sum();
        sum / f64::from(total.max(1))
    }

    fn pick(&self, dice: &mut Dice) -> usize {
        let total: u64 = self.0.iter().map(|(.., share)| u64::from(*share)).sum();
        let mut left = if self.0.len() == 1 { 0 } else { dice.below(total) };
        for (least, most, share) in &self.0 {
            if left < u64::from(*share) {
                let span = u64::try_from(most - least).unwrap_or(0);
                let more = if span == 0 { 0 } else { dice.below(span + 1) };
                return least + usize::try_from(more).unwrap_or(0);
            }
            left -= u64::from(*share);
        }
        0
    }
}

/// The events of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLoad {
    /// Between two events, on average.
    pub every: Duration,
    /// How the moments lie.
    pub rhythm: Rhythm,
    /// Bytes of payload; shorter than the fixed text means the fixed text.
    pub sizes: Sizes,
}

impl EventLoad {
    /// Events of one size, one after each such time.
    pub fn even(every: Duration, size: usize) -> Self {
        Self {
            every,
            rhythm: Rhythm::Even,
            sizes: Sizes::fixed(size),
        }
    }

    /// The time to the next event.
    pub(super) fn gap(&self, dice: &mut Dice) -> Duration {
        match self.rhythm {
            Rhythm::Even => self.every,
            Rhythm::Random => self.every.mul_f64(dice.exponential()),
        }
    }

    /// The payload of an agent's event `number`: its name and number, then padding that compresses like a log line.
    pub fn text(&self, name: &str, number: u64, dice: &mut Dice) -> Vec<u8> {
        let size = self.sizes.pick(dice);
        let mut text = format!("1:/var/log/syslog:{name} swarm[1]: event {number} of {name} ").into_bytes();
        let fixed = text.len();
        while text.len() < size {
            let word = WORDS
                .get(usize::try_from(dice.below(WORDS.len() as u64)).unwrap_or(0))
                .unwrap_or(&"x");
            text.extend_from_slice(word.as_bytes());
            text.extend_from_slice(format!(" {:x} ", dice.below(4096)).as_bytes());
        }
        text.truncate(size.max(fixed));
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
    let Identity { name, version, .. } = identity;
    let product = family.product();
    if family.is_ossec() {
        let mut text = format!(
            "#!-Linux {name} 6.1.0-28-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 x86_64 - {product} v{version}\n\
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
             [Debian GNU/Linux|debian: 12 (bookworm)] - {product} v{version}\n{merged_sum} merged.mg\n#\"_agent_ip\":127.0.0.1\n"
        )
    }
}

//! What the demo shows: the whole screen of a terminal, or plain lines elsewhere.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, IsTerminal, Write},
    time::Duration,
};

use super::manager::{Agent, Event};

/// How many of the latest events are shown.
const EVENTS: usize = 14;
const COLUMNS: usize = 5;

pub(super) struct View {
    terminal: bool,
    colour: bool,
    chapter: String,
    events: VecDeque<String>,
    keepalives: u64,
}

impl View {
    pub(super) fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        Self {
            terminal,
            colour,
            chapter: String::new(),
            events: VecDeque::new(),
            keepalives: 0,
        }
    }

    pub(super) fn chapter(&mut self, text: &str) {
        text.clone_into(&mut self.chapter);
        if !self.terminal {
            println!("       {text}");
        }
    }

    pub(super) fn reached(&mut self, what: &str, after: Duration) {
        let line = format!("{what}, after {:.1} s", after.as_secs_f64());
        if self.terminal {
            self.push(format!("--- {line}"));
        } else {
            println!("   ok  {line}");
        }
    }

    pub(super) fn event(&mut self, event: &Event) {
        if event.subject.contains(".manager.keepalive.") {
            self.keepalives += 1;
            return;
        }
        let change = &event.body["status_change"];
        let line = match change["reason"].as_str() {
            Some(reason) => format!(
                "{}  {} {} -> {}  {reason}  level {}",
                event.subject,
                change["agent_name"].as_str().unwrap_or("?"),
                change["previous_status"],
                change["current_status"],
                change["alert_level"],
            ),
            None => event.subject.clone(),
        };
        self.push(line);
    }

    /// Draws the roster and the latest events. Only on a terminal: elsewhere the chapters tell the story.
    pub(super) fn show(&self, agents: &[Agent]) {
        if !self.terminal {
            return;
        }
        let mut count: BTreeMap<&str, usize> = BTreeMap::new();
        for agent in agents {
            *count.entry(&agent.status).or_default() += 1;
        }
        let count: Vec<String> = count
            .iter()
            .map(|(status, count)| format!("{count} {status}"))
            .collect();
        let mut screen = String::from("\x1b[H\x1b[2J");
        screen.push_str(&format!(
            "Muster demo: {}   [{}]   Ctrl-C ends it\n\n",
            self.chapter,
            count.join(", ")
        ));
        for row in agents.chunks(COLUMNS) {
            for agent in row {
                let (mark, colour) = match agent.status.as_str() {
                    "active" => ("●", "32"),
                    "disconnected" => ("✕", "31"),
                    "pending" => ("◐", "33"),
                    _ => ("○", "90"),
                };
                let version = agent.version.rsplit(' ').next().unwrap_or_default();
                let cell = format!("{mark} {} {} {version}", agent.id, agent.name);
                let padding = 28_usize.saturating_sub(cell.chars().count());
                if self.colour {
                    screen.push_str(&format!("\x1b[{colour}m{cell}\x1b[0m"));
                } else {
                    screen.push_str(&cell);
                }
                screen.push_str(&" ".repeat(padding));
            }
            screen.push('\n');
        }
        screen.push_str(&format!("\nevents ({} keepalives besides):\n", self.keepalives));
        for line in &self.events {
            screen.push_str(line);
            screen.push('\n');
        }
        let mut stdout = io::stdout().lock();
        // A terminal that went away ends the demo through SIGHUP.
        let _ = stdout.write_all(screen.as_bytes()).and_then(|()| stdout.flush());
    }

    pub(super) fn close(&self) {
        if self.terminal {
            println!();
        }
    }

    fn push(&mut self, line: String) {
        self.events.push_back(line);
        if self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }
}

//! The numbers of one stream of one manager: which were seen, which are missing, and where they began anew.

use std::collections::BTreeMap;

use super::{
    MAX_EPOCHS, MAX_HOLES,
    window::{self, Window},
};

/// Numbers of a stream that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The epoch with which the numbers began of which these are; 0 where that is not known.
    pub run: u64,
    /// The last number before it.
    pub after: u64,
    /// Its last number, which at least was used. Nothing where nobody knows how far it goes: the manager has lost its state,
    /// and with it what had not yet been published.
    pub upto: Option<u64>,
}

/// A hole, and whether anybody knows of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Missing {
    pub(super) hole: Hole,
    /// When it was seen, in Unix milliseconds.
    pub(super) since_ms: u64,
    /// Whether it was told as overdue.
    pub(super) told: bool,
}

/// Where a message stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    /// The epoch with which its numbers began.
    pub(super) run: u64,
    /// The first number of that.
    pub(super) first: u64,
    pub(super) epoch: u64,
    pub(super) seq: u64,
    /// The number before it in the stream; 0 = none.
    pub(super) prev: u64,
    /// The epoch with which the numbers began of which `prev` is one.
    pub(super) run_of_prev: u64,
}

/// Whether a message came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Never,
    Before,
    /// It is so old that nobody knows, and nothing is missing there.
    Replay,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    run: u64,
    epoch: u64,
    seq: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Chain {
    windows: BTreeMap<u64, Window>,
    last: Option<Last>,
    pub(super) holes: Vec<Missing>,
}

impl Chain {
    pub(super) fn look(&self, at: At) -> Seen {
        match self.windows.get(&at.epoch).map(|window| window.look(at.seq)) {
            Some(window::Seen::Before) => return Seen::Before,
            Some(window::Seen::TooOld) => return Seen::Replay,
            Some(window::Seen::First) | None => {}
        }
        let Some(last) = self.last else { return Seen::Never };
        let fits = if (at.run, at.seq) > (last.run, last.seq) {
            // Numbers grow with the epochs.
            at.epoch >= last.epoch
        } else {
            at.epoch <= last.epoch && self.hole_of(at).is_some()
        };
        if fits { Seen::Never } else { Seen::Replay }
    }

    /// Takes a message that was never seen.
    pub(super) fn note(&mut self, at: At, now_ms: u64) -> Result<(), String> {
        let Some(last) = self.last else {
            self.reach(at);
            return Ok(());
        };
        if (at.run, at.seq) > (last.run, last.seq) {
            if at.run == last.run {
                check_prev(at, last.seq)?;
            } else {
                self.begin_run(at.run, at.first, now_ms)?;
            }
            let before = self.last.map_or(0, |last| last.seq);
            if at.prev >= at.first {
                if at.prev > before {
                    self.miss(at.run, before, Some(at.prev), now_ms)?;
                }
            } else {
                self.join(at);
            }
            self.reach(at);
            return Ok(());
        }
        let Some(place) = self.hole_of(at) else {
            return Err(format!("{} fits into no hole", at.seq));
        };
        check_prev(at, self.holes[place].hole.after)?;
        let missing = self.holes.swap_remove(place);
        let hole = missing.hole;
        if at.prev > hole.after {
            self.holes.push(Missing {
                hole: Hole {
                    upto: Some(at.prev),
                    ..hole
                },
                ..missing
            });
        } else if at.prev < at.first {
            self.join(at);
        }
        if hole.upto.is_none_or(|upto| at.seq < upto) {
            self.holes.push(Missing {
                hole: Hole { after: at.seq, ..hole },
                ..missing
            });
        }
        self.see(at);
        Ok(())
    }

    /// What came last was before the numbers began anew at `first`, and nothing has come since: then nobody knows what is
    /// missing behind it.
    pub(super) fn cut_off(&self, run: u64, first: u64) -> Option<Hole> {
        let last = self.last.filter(|last| last.run < run && first <= last.seq)?;
        Some(Hole {
            run: last.run,
            after: last.seq,
            upto: None,
        })
    }

    /// The numbers begin anew; what was to come before is missing, until it comes or the first message of the run says that
    /// nothing is.
    pub(super) fn begin_run(&mut self, run: u64, first: u64, now_ms: u64) -> Result<(), String> {
        if let Some(last) = self.last.filter(|last| last.run < run) {
            self.miss(last.run, last.seq, None, now_ms)?;
            self.last = Some(Last {
                run,
                epoch: run,
                seq: first.saturating_sub(1),
            });
        }
        Ok(())
    }

    /// It is heard only now that the numbers began anew before what came last. Whoever looks in order has then seen nothing
    /// of the time before.
    pub(super) fn has_begun(&mut self, run: u64, first: u64) {
        if let Some(last) = &mut self.last
            && last.run < run
            && run <= last.epoch
            && first <= last.seq
        {
            last.run = run;
            self.holes.iter_mut().for_each(|missing| missing.hole.run = run);
        }
    }

    /// The epoch and the number that came last.
    pub(super) fn last(&self) -> Option<(u64, u64)> {
        self.last.map(|last| (last.epoch, last.seq))
    }

    fn miss(&mut self, run: u64, after: u64, upto: Option<u64>, now_ms: u64) -> Result<(), String> {
        if self.holes.len() >= MAX_HOLES {
            return Err("more is missing than can be remembered".to_owned());
        }
        self.holes.push(Missing {
            hole: Hole { run, after, upto },
            since_ms: now_ms,
            told: false,
        });
        Ok(())
    }

    /// The first message of a run names the last one before it.
    fn join(&mut self, at: At) {
        let open = |missing: &Missing| missing.hole.upto.is_none() && missing.hole.run < at.run;
        let newest = self.holes.iter().enumerate().filter(|(_, missing)| open(missing));
        let Some((place, missing)) = newest.max_by_key(|(_, missing)| missing.hole.run) else {
            return;
        };
        let Hole { run, after, .. } = missing.hole;
        if at.prev == 0 || at.run_of_prev != run || at.prev < after {
            return;
        }
        if at.prev == after {
            self.holes.swap_remove(place);
        } else {
            self.holes[place].hole.upto = Some(at.prev);
        }
    }

    fn hole_of(&self, at: At) -> Option<usize> {
        self.holes.iter().position(|Missing { hole, .. }| {
            hole.run == at.run && hole.after < at.seq && hole.upto.is_none_or(|upto| at.seq <= upto)
        })
    }

    fn reach(&mut self, at: At) {
        self.last = Some(Last {
            run: at.run,
            epoch: at.epoch,
            seq: at.seq,
        });
        self.see(at);
    }

    fn see(&mut self, at: At) {
        self.windows.entry(at.epoch).or_default().note(at.seq);
        if self.windows.len() > MAX_EPOCHS {
            self.windows.pop_first();
        }
    }

    #[cfg(test)]
    pub(super) fn windows(&self) -> usize {
        self.windows.len()
    }
}

/// `before` came before it, unless that only stands for the beginning of its run.
fn check_prev(at: At, before: u64) -> Result<(), String> {
    if at.prev < before && before >= at.first {
        return Err(format!(
            "{} names {} as the one before it, which was {before}",
            at.seq, at.prev
        ));
    }
    Ok(())
}

//! Writing: a commit goes behind the newest segment's end, and a full segment is followed by the next.

use muster_proto::event::Class;

use super::{
    Gap, SEGMENT_LEN, Spool, SpoolError, boundary_bytes, entry,
    files::{self, Segment},
    memory::MEMORY,
    record::{Mark, Record, Stored},
};

/// What the disk must take to be worth trying.
const TRIED_LEN: usize = 64 * 1024;
/// So far a segment is filled when the next one is made ready.
const READY_FROM: u64 = SEGMENT_LEN / 4;

/// A commit under way.
#[derive(Debug)]
pub(crate) struct Commit {
    bytes: Vec<u8>,
    places: Vec<(usize, usize)>,
    /// So many at the beginning were held in memory.
    held: usize,
    writer: files::Writer,
    sync: bool,
}

impl Commit {
    /// Writes, and waits for the disk. After a failure nothing has happened.
    pub(crate) fn write(&mut self) -> Result<(), SpoolError> {
        self.writer.write(&self.bytes, self.sync)
    }
}

impl Spool {
    /// Makes events durable: all or none. The three steps of it, for those who hold the spool in a lock, are
    /// [`begin_commit`](Self::begin_commit), [`Commit::write`] and [`finish_commit`](Self::finish_commit).
    #[cfg(test)]
    pub(crate) fn commit(&mut self, events: &[Stored], now_ms: u64) -> Result<Vec<Gap>, SpoolError> {
        let (mut commit, gaps) = self.begin_commit(events, now_ms)?;
        commit.write()?;
        self.finish_commit(commit, events);
        Ok(gaps)
    }

    /// Makes room, and says where the events will stand. Between this and the end of the commit nobody else may begin
    /// one; reading and acknowledging go on.
    pub(crate) fn begin_commit(&mut self, events: &[Stored], now_ms: u64) -> Result<(Commit, Vec<Gap>), SpoolError> {
        let only_audit = events.iter().all(|event| event.class == Class::Audit);
        let length: usize = events.iter().map(Stored::record_len).sum();
        let mut gaps = self.make_room(u64::try_from(length).unwrap_or(u64::MAX), only_audit, now_ms)?;
        gaps.append(&mut self.take_untold());
        match self.begin_commit_anyway(events) {
            Ok(commit) => Ok((commit, gaps)),
            Err(error) => {
                self.tell_later(gaps);
                Err(error)
            }
        }
    }

    /// The same, however full the spool is: what was dropped is told before it goes from the disk.
    pub(crate) fn begin_commit_anyway(&mut self, events: &[Stored]) -> Result<Commit, SpoolError> {
        let mut bytes = boundary_bytes().to_vec();
        let mut places = Vec::with_capacity(events.len());
        for event in events {
            let start = bytes.len();
            event.write_record(&mut bytes);
            places.push((start, bytes.len() - start));
        }
        let sync = self.waits_for_disk();
        let held = self.memory.count();
        let writer = self.current()?.writer();
        Ok(Commit {
            bytes,
            places,
            held,
            writer,
            sync,
        })
    }

    /// Takes the written events into the index, those that were held before first. They are on the disk: from here on
    /// nothing may fail.
    pub(crate) fn finish_commit(&mut self, commit: Commit, events: &[Stored]) {
        let Some(segment) = self.segments.last_mut() else {
            return;
        };
        // The broker may have acknowledged some that were held meanwhile.
        let left = self.memory.clear();
        self.index.forget_tail(MEMORY);
        let waits =
            |(place, event): (usize, &Stored)| !event.history && (place >= commit.held || left.contains(&event.seq));
        let waiting = u64::try_from(events.iter().enumerate().filter(|event| waits(*event)).count()).unwrap_or(0);
        let newest_ms = events.iter().map(|event| event.created_ms).max().unwrap_or(0);
        let (base, number) = (segment.length, segment.number);
        segment.length += u64::try_from(commit.bytes.len()).unwrap_or(u64::MAX);
        segment.newest_ms = segment.newest_ms.max(newest_ms);
        segment.commits += 1;
        segment.waiting += waiting;
        for (event, (start, length)) in events.iter().enumerate().zip(commit.places) {
            if waits(event) {
                let offset = usize::try_from(base).unwrap_or(usize::MAX).saturating_add(start);
                self.index.push(entry(event.1, number, offset, length));
            }
        }
        for event in events {
            self.note_mark(&event.source);
        }
    }

    /// Whether the disk takes anything that is worth talking of. What is tried with is room for what comes next.
    pub(crate) fn try_disk(&mut self) -> Result<(), SpoolError> {
        self.current()?.writer().write(&[0; TRIED_LEN], false)
    }

    fn current(&mut self) -> Result<&mut Segment, SpoolError> {
        let has_room = self.ready.has_room();
        let next = |segment: &Segment| segment.length >= SEGMENT_LEN || (has_room && !segment.made_ready);
        if self.segments.last().is_none_or(next) {
            // The sync of the commit that follows at once is one for the marks, too.
            self.finish_segment(false)?;
        }
        if let Some(segment) = self.segments.last()
            && (!segment.made_ready || segment.length >= READY_FROM)
        {
            let commits = self.segments.iter().rev().take(2);
            let (bytes, count) = commits.fold((0, 0), |(bytes, count), segment| {
                (bytes + segment.length, count + segment.commits)
            });
            self.ready.ask(
                &self.directory,
                segment.number + 1,
                bytes.checked_div(count).unwrap_or(0),
            );
        }
        self.segments.last_mut().ok_or(SpoolError::Full { used: 0, limit: 0 })
    }

    pub(super) fn finish_segment(&mut self, sync: bool) -> Result<(), SpoolError> {
        let next = self.segments.last().map_or(1, |segment| segment.number + 1);
        let finished = self.segments.last().map(Segment::writer);
        self.begin_segment(next, sync)?;
        if let Some(finished) = finished {
            // Room that is left there is known for what it is.
            drop(self.aside.run(move || finished.finish()));
        }
        Ok(())
    }

    pub(super) fn begin_segment(&mut self, number: u64, sync: bool) -> Result<(), SpoolError> {
        let marks = self
            .marks
            .iter()
            .map(|((producer, incarnation), number)| Mark {
                producer: producer.clone(),
                incarnation: *incarnation,
                number: *number,
            })
            .collect();
        let mut bytes = boundary_bytes().to_vec();
        Record::Marks(marks).write(&mut bytes);
        let mut segment = match self.ready.take() {
            Some(segment) => segment,
            None => Segment::create(&self.directory, number)?,
        };
        if let Err(error) = segment.append(&bytes, self.waits_for_disk() && sync) {
            // A later attempt finds its number free.
            files::remove(&self.directory, segment.number)?;
            return Err(error);
        }
        self.segments.push(segment);
        Ok(())
    }
}

//! What a spool holds: segments, then recent chunks in memory. Decides what is dropped at a limit.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::chunk::{CHUNK_COST, Chunk};
use super::segment::{MARK_EVERY, Mark, Segment, discard};

/// Bytes that a spool may keep in memory without using a file, and may keep regardless of the budget.
pub const MEMORY: u64 = 64 * 1024;

/// Bytes that stay with [`Keep::Unread`](super::Keep::Unread) although all readers have passed them: a client that lost its
/// connection can read what was in transit again.
pub const KEEP_BACK: u64 = 512 * 1024;

/// Bytes that may wait to be written to disk before the writer has to wait.
pub(super) const UNFLUSHED_MAX: u64 = 1024 * 1024;

/// Bytes kept in memory for a running job while writes fail; for an ended job, [`MEMORY`].
pub(super) const UNWRITTEN_MAX: u64 = UNFLUSHED_MAX;

/// Bytes kept in memory for readers that keep up, including those that wait to be written.
pub(super) const RECENT_MAX: u64 = 2 * 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Offset of the oldest stored byte.
    pub(super) first: u64,
    /// Offset after the newest byte.
    pub(super) end: u64,
    /// Files, the oldest first. After failed writes there are gaps between them, and between the last one and `flushed`.
    pub(super) segments: VecDeque<Segment>,
    /// Output before this offset is in segments or dropped; output after it is only in `recent`.
    pub(super) flushed: u64,
    /// The newest chunks, without gaps up to `end`.
    pub(super) recent: VecDeque<Chunk>,
    /// Total cost of `recent`.
    pub(super) recent_cost: u64,
    /// Cost of the part of `recent` that is in no segment.
    pub(super) unflushed_cost: u64,
    /// Size that counts against the limit: segments, and chunks that are in no segment.
    pub(super) kept: u64,
    /// The part of `kept` that is charged to the budget.
    pub(super) charged: u64,
    /// A task on a blocking thread is moving chunks into a segment.
    pub(super) is_flushing: bool,
    /// Time of the next write attempt; `None` unless the last write failed.
    pub(super) retry_at: Option<Instant>,
    pub(super) is_ended: bool,
    pub(super) readers: Vec<ReaderPlace>,
    pub(super) next_reader: u64,
}

#[derive(Debug)]
pub(super) struct ReaderPlace {
    pub(super) id: u64,
    /// The reader has consumed everything before this offset.
    pub(super) passed: u64,
    pub(super) holds: bool,
}

impl Contents {
    /// Drops the oldest segment or chunk, unless a reader holds it or it is being written. Returns whether one was dropped.
    pub(super) fn drop_oldest(&mut self) -> bool {
        self.drop_oldest_before(self.held_from().unwrap_or(u64::MAX))
    }

    /// Returns the offset up to which all holding readers have read; `None` without a holding reader.
    pub(super) fn held_from(&self) -> Option<u64> {
        let holding = self.readers.iter().filter(|reader| reader.holds);
        holding.map(|reader| reader.passed).min()
    }

    /// Drops output that `Keep::Unread` does not retain.
    pub(super) fn drop_read(&mut self) {
        let Some(held) = self.held_from() else { return };
        loop {
            let oldest = self.segments.front().map(|segment| segment.size);
            let oldest = oldest.or_else(|| self.recent.front().map(Chunk::cost));
            if oldest.is_none_or(|oldest| self.kept < KEEP_BACK + oldest) || !self.drop_oldest_before(held) {
                return;
            }
        }
    }

    /// Drops the oldest segment or chunk if it ends at or before `horizon` and is not being written.
    fn drop_oldest_before(&mut self, horizon: u64) -> bool {
        if self.segments.is_empty() {
            return self.drop_unwritten_before(horizon);
        }
        let segment = self.take_segment_before(horizon);
        let is_dropped = segment.is_some();
        discard(segment);
        is_dropped
    }

    /// Removes and returns the oldest segment if it ends at or before `horizon` and is not being written.
    pub(super) fn take_segment_before(&mut self, horizon: u64) -> Option<Segment> {
        let is_open = self.segments.len() == 1 && self.is_flushing;
        if is_open || self.segments.front()?.end > horizon {
            return None;
        }
        let segment = self.segments.pop_front()?;
        self.kept -= segment.size;
        self.first = match self.segments.front() {
            Some(next) => next.start,
            None => self.flushed,
        };
        while self.recent.front().is_some_and(|chunk| chunk.end() <= self.first) {
            drop(self.forget_recent());
        }
        Some(segment)
    }

    /// Drops the oldest chunk that is in no segment if it ends at or before `horizon` and is not being written.
    pub(super) fn drop_unwritten_before(&mut self, horizon: u64) -> bool {
        while self
            .recent
            .front()
            .is_some_and(|chunk| chunk.end() <= self.flushed)
        {
            drop(self.forget_recent());
        }
        let Some(chunk) = self.recent.front() else {
            return false;
        };
        if self.is_flushing || chunk.end() > horizon {
            return false;
        }
        self.flushed = chunk.end();
        self.kept -= chunk.cost();
        self.unflushed_cost -= chunk.cost();
        drop(self.forget_recent());
        if self.segments.is_empty() {
            self.first = self.flushed;
        }
        true
    }

    /// While writes fail, drops what exceeds the memory limit, unless a reader holds it.
    pub(super) fn shed(&mut self) {
        let max = if self.is_ended { MEMORY } else { UNWRITTEN_MAX };
        let horizon = self.held_from().unwrap_or(u64::MAX);
        while self.retry_at.is_some()
            && self.unflushed_cost > max
            && (self.cut_newest(max, horizon) || self.drop_unwritten_before(horizon))
        {}
    }

    /// If only the newest chunk is in no segment, discards all but its end, so that a long chunk is not lost as a whole. Only up
    /// to `horizon`, and not while the chunk is being written.
    fn cut_newest(&mut self, max: u64, horizon: u64) -> bool {
        let Some(chunk) = self.recent.back_mut() else {
            return false;
        };
        let from = chunk.end().saturating_sub(max.saturating_sub(CHUNK_COST));
        if self.is_flushing || chunk.cost() != self.unflushed_cost || from <= chunk.offset || from > horizon {
            return false;
        }
        let cut = from - chunk.offset;
        // A copy, because a slice would keep the whole buffer in memory.
        chunk.bytes = Bytes::copy_from_slice(&chunk.part(from, usize::MAX).bytes);
        chunk.offset = from;
        self.flushed = from;
        self.kept -= cut;
        self.unflushed_cost -= cut;
        self.recent_cost -= cut;
        if self.segments.is_empty() {
            self.first = from;
        }
        true
    }

    fn forget_recent(&mut self) -> Option<Chunk> {
        let chunk = self.recent.pop_front()?;
        self.recent_cost -= chunk.cost();
        Some(chunk)
    }

    /// Removes recent chunks that are in a segment and that no reader is about to read. Returns them, so that the caller frees
    /// them after releasing the lock: freeing large ones takes longer than everything else done under it.
    pub(super) fn trim(&mut self) -> Vec<Chunk> {
        let mut forgotten = Vec::new();
        let wanted = self
            .readers
            .iter()
            .map(|reader| reader.passed)
            .min()
            .unwrap_or(u64::MAX);
        while let Some(chunk) = self.recent.front() {
            let is_kept_elsewhere = chunk.end() <= self.flushed;
            let is_wanted = chunk.end() > wanted && self.recent_cost <= RECENT_MAX;
            if !is_kept_elsewhere || is_wanted {
                break;
            }
            forgotten.extend(self.forget_recent());
        }
        if self.recent.is_empty() {
            self.recent = VecDeque::new();
        }
        forgotten
    }

    /// Records that the newest segment now also holds `batch`.
    pub(super) fn add_to_segment(&mut self, batch: &[Chunk]) {
        let segment = self.segments.back_mut().expect("written to just now");
        for chunk in batch {
            let is_far = segment
                .marks
                .last()
                .is_none_or(|mark| segment.size - mark.position >= MARK_EVERY);
            if is_far {
                segment.marks.push(Mark {
                    offset: chunk.offset,
                    position: segment.size,
                });
            }
            segment.size += chunk.framed();
            segment.end = chunk.end();
            self.unflushed_cost -= chunk.cost();
            self.kept = self.kept - chunk.cost() + chunk.framed();
        }
        self.flushed = segment.end;
    }
}

//! What the writer, the handles and the readers of a spool share.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use super::budget::{Budget, EndedSpool, lock};
use super::chunk::{Chunk, Stream};
use super::contents::{Contents, MEMORY, UNFLUSHED_MAX, UNWRITTEN_MAX};
use super::segment::{Segment, discard, nameless_file, write_frames};
use crate::clock::Moment;

/// Minimum of [`Settings::max`]; smaller values are raised to this.
pub const MAX_MIN: u64 = 4 * SEGMENT_MIN;

pub(super) const SEGMENT_MIN: u64 = 64 * 1024;

/// Bytes that may be only in memory while a reader follows a running job. Moving every few bytes separately would cost more than
/// the memory, which a follower needs anyway.
pub(super) const UNFLUSHED_FOLLOWED: u64 = UNFLUSHED_MAX / 2;

/// Pause between attempts to write after an error.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Chunks written by one system call. Each uses two slices, and the system accepts at most 1024.
pub(super) const FLUSH_CHUNKS_MAX: usize = 500;

/// Where spools store their files and how large each may grow.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder for the files, owned by orbd; the files are unlinked right after they are created.
    pub dir: PathBuf,
    /// Size limit of one spool in bytes, raised to [`MAX_MIN`] if smaller.
    pub max: u64,
    /// What a spool keeps below that limit.
    pub keep: Keep,
}

/// What a spool keeps below its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// Everything, so that the output can be read again from the beginning.
    #[default]
    All,
    /// While there is a [holding](super::Spool::follow) reader: the bytes that not all of those readers have passed, and about
    /// the last [`KEEP_BACK`](super::KEEP_BACK) bytes. Without one: everything that arrives.
    Unread,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) max: u64,
    pub(super) segment_max: u64,
    pub(super) keep: Keep,
    pub(super) budget: Budget,
    pub(super) began: Instant,
    pub(super) state: Mutex<Contents>,
    /// Wakes readers: more output, or the end.
    pub(super) grown: Notify,
    /// Wakes the writer: the disk or a reader made room.
    pub(super) room: Notify,
}

/// Result of an attempt to append a chunk.
pub(super) enum Accepted {
    Done,
    Wait,
}

impl Shared {
    /// Returns how many bytes may be only in memory before a flush starts.
    fn backlog_max(state: &Contents) -> u64 {
        if !state.is_ended && state.held_from().is_some() {
            UNFLUSHED_FOLLOWED
        } else {
            MEMORY
        }
    }

    /// Returns how many bytes a flush leaves only in memory.
    fn backlog_left(&self, state: &Contents) -> u64 {
        match self.keep {
            // The followers may still read it from memory.
            Keep::Unread => Self::backlog_max(state),
            Keep::All => MEMORY,
        }
    }

    pub(super) fn start_flushing(self: &Arc<Self>, state: &mut Contents) {
        let is_too_early = || state.retry_at.is_some_and(|at| Moment::now().instant < at);
        if state.is_flushing || state.unflushed_cost <= Self::backlog_max(state) || is_too_early() {
            return;
        }
        // Without a runtime the process is shutting down, and nothing will read the output.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            state.is_flushing = true;
            let shared = Arc::clone(self);
            runtime.spawn_blocking(move || shared.flush());
        }
    }

    pub(super) fn accept(self: &Arc<Self>, stream: Stream, bytes: &Bytes) -> Accepted {
        let at = Moment::now().instant.saturating_duration_since(self.began);
        let mut state = lock(&self.state);
        let chunk = Chunk {
            stream,
            at,
            offset: state.end,
            bytes: bytes.clone(),
        };
        let cost = chunk.cost();
        let is_passed_through = self.keep == Keep::Unread && state.held_from().is_some();
        if state.unflushed_cost + cost > UNFLUSHED_MAX && (state.is_flushing || is_passed_through) {
            return Accepted::Wait;
        }
        while state.kept + cost > self.max || !self.charge(&mut state, cost) {
            if !state.drop_oldest() {
                self.trim(&mut state);
                return Accepted::Wait;
            }
            self.trim(&mut state);
        }
        if state.retry_at.is_some() && state.unflushed_cost + cost > UNWRITTEN_MAX {
            // If the next attempt is due, start it before anything is dropped that it could still write.
            self.start_flushing(&mut state);
            if state.is_flushing {
                self.trim(&mut state);
                return Accepted::Wait;
            }
        }
        while state.retry_at.is_some() && state.unflushed_cost + cost > UNWRITTEN_MAX {
            let horizon = state.held_from().unwrap_or(u64::MAX);
            let is_dropped = state.drop_unwritten_before(horizon);
            self.trim(&mut state);
            if !is_dropped {
                return Accepted::Wait;
            }
        }
        state.end = chunk.end();
        state.kept += cost;
        state.recent_cost += cost;
        state.unflushed_cost += cost;
        state.recent.push_back(chunk);
        if !is_passed_through {
            self.start_flushing(&mut state);
        }
        drop(state);
        self.grown.notify_waiters();
        Accepted::Done
    }

    /// Charges the budget for `cost` more bytes. Returns whether it allowed them.
    fn charge(&self, state: &mut Contents, cost: u64) -> bool {
        let wanted = (state.kept + cost).saturating_sub(MEMORY);
        let more = wanted.saturating_sub(state.charged);
        while !self.budget.take(more) {
            match self.budget.reclaim() {
                Some(segments) => discard(segments),
                None => return false,
            }
        }
        state.charged += more;
        true
    }

    /// Returns to the budget what is no longer needed.
    pub(super) fn trim(&self, state: &mut Contents) {
        let needed = state.kept.saturating_sub(MEMORY);
        let less = state.charged.saturating_sub(needed);
        state.charged -= less;
        self.budget.give_back(less);
    }

    /// Removes and returns the oldest segments to free space on a full disk: those of an ended spool, otherwise one of this
    /// spool.
    fn make_room(&self) -> Option<Vec<Segment>> {
        if let Some(segments) = self.budget.reclaim() {
            return Some(segments);
        }
        let mut state = lock(&self.state);
        let horizon = state.held_from().unwrap_or(u64::MAX);
        // No write is in progress here, so the newest segment may be removed as well.
        state.is_flushing = false;
        let segment = state.take_segment_before(horizon);
        state.is_flushing = true;
        self.trim(&mut state);
        segment.map(|segment| vec![segment])
    }

    /// Moves chunks into segments until little is left to move. Runs on a blocking thread, at most once per spool at a time.
    fn flush(&self) {
        loop {
            let mut state = lock(&self.state);
            if state.unflushed_cost <= self.backlog_left(&state) {
                state.is_flushing = false;
                drop(state);
                self.room.notify_waiters();
                return;
            }
            let new = state.recent.partition_point(|chunk| chunk.end() <= state.flushed);
            let open = state
                .segments
                .back()
                .filter(|segment| segment.size < self.segment_max && segment.end == state.flushed)
                .map(|segment| Arc::clone(&segment.file));
            let position = match &open {
                Some(_) => state.segments.back().map_or(0, |segment| segment.size),
                None => 0,
            };
            let mut size = position;
            let mut batch = Vec::new();
            for chunk in state.recent.range(new..).take(FLUSH_CHUNKS_MAX) {
                if size >= self.segment_max {
                    break;
                }
                size += chunk.framed();
                batch.push(chunk.clone());
            }
            drop(state);

            let is_new = open.is_none();
            let written = open.map_or_else(|| nameless_file(&self.dir).map(Arc::new), Ok);
            let written = written.and_then(|file| write_frames(&file, position, &batch).map(|()| file));

            match written {
                Ok(file) => {
                    let mut state = lock(&self.state);
                    if is_new {
                        let start = state.flushed;
                        state.segments.push_back(Segment {
                            file,
                            start,
                            end: start,
                            size: 0,
                            marks: Vec::new(),
                        });
                    }
                    state.add_to_segment(&batch);
                    state.retry_at = None;
                    let forgotten = state.trim();
                    self.trim(&mut state);
                    drop(state);
                    self.room.notify_waiters();
                    // Frees the written chunks, except those that a reader still uses.
                    drop((forgotten, batch));
                }
                Err(error) => {
                    self.budget.warn(&self.dir, &error);
                    let is_full = matches!(
                        error.kind(),
                        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                    );
                    // Freed in this thread, so that there is room before the write is repeated.
                    if is_full && let Some(segments) = self.make_room() {
                        drop(segments);
                        continue;
                    }
                    let mut state = lock(&self.state);
                    state.is_flushing = false;
                    state.retry_at = Some(Moment::now().instant + RETRY_AFTER);
                    state.shed();
                    self.trim(&mut state);
                    drop(state);
                    self.room.notify_waiters();
                    return;
                }
            }
        }
    }
}

impl EndedSpool for Shared {
    fn reclaim(&self) -> Vec<Segment> {
        let mut state = lock(&self.state);
        let horizon = state.held_from().unwrap_or(u64::MAX);
        let mut segments = Vec::new();
        while let Some(segment) = state.take_segment_before(horizon) {
            segments.push(segment);
        }
        self.trim(&mut state);
        segments
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        self.budget.give_back(state.charged);
        discard(std::mem::take(&mut state.segments));
    }
}

//! A job's output: the bytes of both streams in order of arrival, first in memory, then in files, readable from any offset.
//!
//! ```text
//!            first                 flushed                       end
//!   (dropped)  |--- segments (files) ---|                         |
//!                        |------- recent (memory) ----------------|
//! ```
//!
//! A [`Writer`] appends bytes, a [`Spool`] is a handle to the stored output, a [`Reader`] reads it. The output of a small job
//! never leaves memory. Beyond [`MEMORY`] bytes, a task on a blocking thread moves new chunks into the current segment, an
//! unlinked file, and ends when nothing is left to move. While a reader follows, recent output also stays in memory, so that a
//! reader that keeps up never reads a file, and the task moves larger batches. All file work is done on blocking threads, because
//! a full page cache must not stall the daemon's other requests.
//!
//! **Limits.** A spool keeps at most its `max`; all spools of one [`Budget`] together keep at most the budget's. At a spool's
//! limit its oldest segment is dropped as soon as every [holding](Spool::follow) reader has passed it; until then the writer
//! waits, and with it the child. At the budget's limit the files of the oldest ended spool without a holding reader are dropped
//! first. Readers that come later or do not hold get a gap. Every spool may keep [`MEMORY`] bytes regardless of the budget, so a
//! job without followers never waits.
//!
//! **Disk errors** never end a command. If the disk is full, the spool's own oldest segment is dropped and the write repeated, as
//! at a limit. If there is no such segment, or for any other error, only the newest [`UNWRITTEN_MAX`] bytes are kept in memory,
//! earlier segments stay, and readers get a gap between the two. The next write is attempted after [`RETRY_AFTER`].
//!
//! **Pass-through.** Writing all output to a file costs as much as a client that reads it. For output that is only passed
//! through, [`Keep::Unread`] drops what every holding reader has passed without writing it to a file, except for the last
//! [`KEEP_BACK`] bytes. The writer then waits briefly for a reader before it starts to use a file.
//!
//! Limits count the stored size: the bytes plus an overhead for each chunk, so that a child that writes single bytes is limited
//! as well.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::clock::Moment;

/// Bytes that a spool may keep in memory without using a file, and may keep regardless of the budget.
pub const MEMORY: u64 = 64 * 1024;

/// Minimum of [`Settings::max`]; smaller values are raised to this.
pub const MAX_MIN: u64 = 4 * SEGMENT_MIN;

/// Bytes that may wait to be written to disk before the writer has to wait.
const UNFLUSHED_MAX: u64 = 1024 * 1024;

/// Bytes that may be only in memory while a reader follows a running job. Moving every few bytes separately would cost more than
/// the memory, which a follower needs anyway.
const UNFLUSHED_FOLLOWED: u64 = UNFLUSHED_MAX / 2;

/// Bytes kept in memory for readers that keep up, including those that wait to be written.
const RECENT_MAX: u64 = 2 * 1024 * 1024;

/// Bytes that stay with [`Keep::Unread`] although all readers have passed them: a client that lost its connection can read what
/// was in transit again.
pub const KEEP_BACK: u64 = 512 * 1024;

/// How long the writer waits for a reader, with [`Keep::Unread`], before it starts to use a file.
const PATIENCE: Duration = Duration::from_millis(50);

/// Bytes kept in memory for a running job while writes fail; for an ended job, [`MEMORY`].
const UNWRITTEN_MAX: u64 = UNFLUSHED_MAX;

/// Pause between attempts to write after an error.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Minimum time between two log messages about failed writes.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Size limit of a chunk; longer input is split.
const CHUNK_MAX: usize = 256 * 1024;

/// Chunk size to try if a larger chunk does not fit. It is smaller than [`MEMORY`], so that it fits regardless of the budget.
const CHUNK_SMALL: usize = 32 * 1024;

/// Overhead of a chunk in memory, in bytes.
const CHUNK_COST: u64 = 64;

/// Overhead of a chunk in a file, in bytes: stream and length (8), time (8).
const FRAME: u64 = 16;

/// Chunks written by one system call. Each uses two slices, and the system accepts at most 1024.
const FLUSH_CHUNKS_MAX: usize = 500;

/// Maximum number of chunks in one batch for a reader.
const BATCH_CHUNKS_MAX: usize = 1024;

/// A full spool consists of about this many segments, the unit in which old output is dropped.
const SEGMENTS: u64 = 16;
const SEGMENT_MIN: u64 = 64 * 1024;

/// Distance in bytes between the marked frame positions of a segment.
const MARK_EVERY: u64 = 256 * 1024;

/// One of a child's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output that arrived in one read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The stream that the child wrote to.
    pub stream: Stream,
    /// Time of arrival, since the creation of the spool.
    pub at: Duration,
    /// Number of bytes of both streams before this chunk.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
}

impl Chunk {
    /// Returns the offset of the next byte after the chunk.
    pub fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    fn cost(&self) -> u64 {
        self.bytes.len() as u64 + CHUNK_COST
    }

    fn framed(&self) -> u64 {
        self.bytes.len() as u64 + FRAME
    }

    /// Returns the part from `offset`, which must lie within the chunk, with at most `max` bytes.
    fn part(&self, offset: u64, max: usize) -> Self {
        let skip = usize::try_from(offset - self.offset).expect("within a chunk");
        let until = skip.saturating_add(max).min(self.bytes.len());
        Self {
            stream: self.stream,
            at: self.at,
            offset,
            bytes: self.bytes.slice(skip..until),
        }
    }
}

/// Result of one read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batch {
    /// The next chunks, without a gap between them; never empty.
    Chunks(Vec<Chunk>),
    /// A range that is no longer stored; the reader continues after it.
    Gap {
        /// Offset of the first missing byte.
        from: u64,
        /// Offset of the first byte after the gap.
        to: u64,
    },
    /// The spool has ended and everything was read.
    End,
}

/// The complete output of a small job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inline {
    /// All of stdout.
    pub stdout: Bytes,
    /// All of stderr.
    pub stderr: Bytes,
}

/// A spool's file could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read stored output")]
pub struct ReadError {
    /// The operating system's error.
    #[source]
    pub source: io::Error,
}

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
    /// While there is a [holding](Spool::follow) reader: the bytes that not all of those readers have passed, and about the last
    /// [`KEEP_BACK`] bytes. Without one: everything that arrives.
    Unread,
}

/// Shared limit on what all spools together keep beyond the first [`MEMORY`] bytes of each.
#[derive(Debug, Clone)]
pub struct Budget(Arc<BudgetShared>);

#[derive(Debug)]
struct BudgetShared {
    max: AtomicU64,
    used: AtomicU64,
    /// Ended spools, the oldest first; their files are dropped in this order.
    ended: Mutex<VecDeque<Weak<Shared>>>,
    freed: Notify,
    /// Time of the last log message about a failed write.
    warned: Mutex<Option<Instant>>,
}

impl Budget {
    /// Creates a budget of `max` bytes.
    pub fn new(max: u64) -> Self {
        Self(Arc::new(BudgetShared {
            max: AtomicU64::new(max),
            used: AtomicU64::new(0),
            ended: Mutex::new(VecDeque::new()),
            freed: Notify::new(),
            warned: Mutex::new(None),
        }))
    }

    /// Changes the limit to `max` bytes. Output stored beyond a lowered limit stays, but none is added until usage falls below
    /// the limit.
    pub fn set_max(&self, max: u64) {
        self.0.max.store(max, Ordering::Relaxed);
        self.0.freed.notify_waiters();
    }

    /// Returns the bytes in use.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let max = self.0.max.load(Ordering::Relaxed);
        let taken = self
            .0
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= max)
            });
        taken.is_ok()
    }

    fn give_back(&self, bytes: u64) {
        if bytes > 0 {
            self.0.used.fetch_sub(bytes, Ordering::Relaxed);
            self.0.freed.notify_waiters();
        }
    }

    /// Logs a failed write, at most once per [`WARN_EVERY`], because many commands may be affected.
    fn warn(&self, dir: &Path, error: &io::Error) {
        let now = Moment::now().instant;
        let mut warned = lock(&self.0.warned);
        if warned.is_none_or(|at| now.saturating_duration_since(at) >= WARN_EVERY) {
            *warned = Some(now);
            tracing::warn!(folder = %dir.display(), %error, "cannot write output to disk: commands keep running, older output is dropped");
        }
    }

    /// Removes and returns the segments of the oldest ended spool without a holding reader, if there is one. Call it without a
    /// lock, or with a running spool locked: an ended spool never calls it while holding its own lock, so the locks are always
    /// acquired in this order.
    fn reclaim(&self) -> Option<Vec<Segment>> {
        let mut ended = lock(&self.0.ended);
        let mut place = 0;
        while let Some(weak) = ended.get(place) {
            let Some(shared) = weak.upgrade() else {
                ended.remove(place);
                continue;
            };
            let mut state = lock(&shared.state);
            let horizon = state.held_from().unwrap_or(u64::MAX);
            let mut segments = Vec::new();
            while let Some(segment) = state.take_segment_before(horizon) {
                segments.push(segment);
            }
            shared.trim(&mut state);
            drop(state);
            if !segments.is_empty() {
                return Some(segments);
            }
            place += 1;
        }
        None
    }
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    max: u64,
    segment_max: u64,
    keep: Keep,
    budget: Budget,
    began: Instant,
    state: Mutex<State>,
    /// Wakes readers: more output, or the end.
    grown: Notify,
    /// Wakes the writer: the disk or a reader made room.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Offset of the oldest stored byte.
    first: u64,
    /// Offset after the newest byte.
    end: u64,
    /// Files, the oldest first. After failed writes there are gaps between them, and between the last one and `flushed`.
    segments: VecDeque<Segment>,
    /// Output before this offset is in segments or dropped; output after it is only in `recent`.
    flushed: u64,
    /// The newest chunks, without gaps up to `end`.
    recent: VecDeque<Chunk>,
    /// Total cost of `recent`.
    recent_cost: u64,
    /// Cost of the part of `recent` that is in no segment.
    unflushed_cost: u64,
    /// Size that counts against the limit: segments, and chunks that are in no segment.
    kept: u64,
    /// The part of `kept` that is charged to the budget.
    charged: u64,
    /// A task on a blocking thread is moving chunks into a segment.
    is_flushing: bool,
    /// Time of the next write attempt; `None` unless the last write failed.
    retry_at: Option<Instant>,
    is_ended: bool,
    readers: Vec<ReaderPlace>,
    next_reader: u64,
}

#[derive(Debug)]
struct ReaderPlace {
    id: u64,
    /// The reader has consumed everything before this offset.
    passed: u64,
    holds: bool,
}

/// An unlinked file that holds frames: length, stream, time, bytes.
#[derive(Debug)]
struct Segment {
    file: Arc<File>,
    /// Offset of its first byte.
    start: u64,
    /// Offset after its last byte.
    end: u64,
    /// Size of the file, including frame headers.
    size: u64,
    /// Positions of some frames, in order, to start a search from. A segment with a frame has at least one.
    marks: Vec<Mark>,
}

/// The start of a frame: offset in the output and position in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    offset: u64,
    position: u64,
}

impl State {
    /// Drops the oldest segment or chunk, unless a reader holds it or it is being written. Returns whether one was dropped.
    fn drop_oldest(&mut self) -> bool {
        self.drop_oldest_before(self.held_from().unwrap_or(u64::MAX))
    }

    /// Returns the offset up to which all holding readers have read; `None` without a holding reader.
    fn held_from(&self) -> Option<u64> {
        let holding = self.readers.iter().filter(|reader| reader.holds);
        holding.map(|reader| reader.passed).min()
    }

    /// Drops output that [`Keep::Unread`] does not retain.
    fn drop_read(&mut self) {
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
    fn take_segment_before(&mut self, horizon: u64) -> Option<Segment> {
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
    fn drop_unwritten_before(&mut self, horizon: u64) -> bool {
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
    fn shed(&mut self) {
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
    fn trim(&mut self) -> Vec<Chunk> {
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
}

/// Result of an attempt to append a chunk.
enum Accepted {
    Done,
    Wait,
}

impl Shared {
    /// Returns how many bytes may be only in memory before a flush starts.
    fn backlog_max(state: &State) -> u64 {
        if !state.is_ended && state.held_from().is_some() {
            UNFLUSHED_FOLLOWED
        } else {
            MEMORY
        }
    }

    /// Returns how many bytes a flush leaves only in memory.
    fn backlog_left(&self, state: &State) -> u64 {
        match self.keep {
            // The followers may still read it from memory.
            Keep::Unread => Self::backlog_max(state),
            Keep::All => MEMORY,
        }
    }

    fn start_flushing(self: &Arc<Self>, state: &mut State) {
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

    fn accept(self: &Arc<Self>, stream: Stream, bytes: &Bytes) -> Accepted {
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
    fn charge(&self, state: &mut State, cost: u64) -> bool {
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
    fn trim(&self, state: &mut State) {
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

impl State {
    /// Records that the newest segment now also holds `batch`.
    fn add_to_segment(&mut self, batch: &[Chunk]) {
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

impl Drop for Shared {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        self.budget.give_back(state.charged);
        discard(std::mem::take(&mut state.segments));
    }
}

/// Creates an empty spool and its writer.
pub fn spool(settings: &Settings, budget: &Budget) -> (Writer, Spool) {
    let max = settings.max.max(MAX_MIN);
    let shared = Arc::new(Shared {
        dir: settings.dir.clone(),
        max,
        segment_max: (max / SEGMENTS).max(SEGMENT_MIN),
        keep: settings.keep,
        budget: budget.clone(),
        began: Moment::now().instant,
        state: Mutex::default(),
        grown: Notify::new(),
        room: Notify::new(),
    });
    let writer = Writer {
        shared: Arc::clone(&shared),
    };
    (writer, Spool { shared })
}

/// Creates an empty spool that has already ended. One instance can be shared by all jobs without output.
pub fn nothing(settings: &Settings, budget: &Budget) -> Spool {
    let (_, spool) = spool(settings, budget);
    spool
}

/// Appends a job's output. Dropping it ends the spool.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
}

impl Writer {
    /// Appends bytes, and waits for the disk or the slowest follower at a limit. If the future is dropped, chunks that were not
    /// yet appended are not in the spool.
    pub async fn write(&self, stream: Stream, mut bytes: Bytes) {
        while let Some(left) = self.put(stream, bytes) {
            bytes = left;
            let room = self.shared.room.notified();
            let freed = self.shared.budget.0.freed.notified();
            tokio::pin!(room, freed);
            room.as_mut().enable();
            freed.as_mut().enable();
            // Retried, because room may have been made before the two notifications were enabled.
            let Some(left) = self.put(stream, bytes) else {
                break;
            };
            bytes = left;
            let has_failed = lock(&self.shared.state).retry_at.is_some();
            let pause = match self.shared.keep {
                Keep::Unread => PATIENCE,
                Keep::All => RETRY_AFTER,
            };
            tokio::select! {
                () = room => {}
                () = freed => {}
                () = tokio::time::sleep(pause), if has_failed || self.shared.keep == Keep::Unread => {
                    self.shared.start_flushing(&mut lock(&self.shared.state));
                }
            }
        }
    }

    /// Appends as much as fits now. Returns the rest, which has to wait.
    pub fn put(&self, stream: Stream, mut bytes: Bytes) -> Option<Bytes> {
        let mut chunk_max = CHUNK_MAX;
        while !bytes.is_empty() {
            let chunk = bytes.slice(..bytes.len().min(chunk_max));
            match self.shared.accept(stream, &chunk) {
                Accepted::Done => drop(bytes.split_to(chunk.len())),
                Accepted::Wait if chunk.len() > CHUNK_SMALL => chunk_max = CHUNK_SMALL,
                Accepted::Wait => return Some(bytes),
            }
        }
        None
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.is_ended = true;
        // The last attempt, made without a pause: no later write will trigger one.
        state.retry_at = None;
        self.shared.start_flushing(&mut state);
        let forgotten = state.trim();
        // Most jobs write little, and thousands of ended spools are retained.
        state.recent.shrink_to_fit();
        let has_files = !state.segments.is_empty() || state.is_flushing;
        drop(state);
        drop(forgotten);
        if has_files {
            let mut ended = lock(&self.shared.budget.0.ended);
            ended.retain(|spool| spool.strong_count() > 0);
            ended.push_back(Arc::downgrade(&self.shared));
        }
        self.shared.grown.notify_waiters();
    }
}

/// A handle to stored output, which is freed when the last handle and reader are dropped.
#[derive(Debug, Clone)]
pub struct Spool {
    shared: Arc<Shared>,
}

impl Spool {
    /// Returns the number of bytes that have arrived, including dropped ones.
    pub fn end(&self) -> u64 {
        lock(&self.shared.state).end
    }

    /// Returns the offset of the oldest byte that is still stored.
    pub fn first(&self) -> u64 {
        lock(&self.shared.state).first
    }

    /// Returns whether the output is complete.
    pub fn is_ended(&self) -> bool {
        lock(&self.shared.state).is_ended
    }

    /// Returns whether the spool has ended and is empty.
    pub fn is_nothing(&self) -> bool {
        let state = lock(&self.shared.state);
        state.is_ended && state.end == 0
    }

    /// Returns a holding reader that starts at `offset`: at a limit the writer, and so the child, waits for it. It holds until it
    /// is dropped, so its owner must keep reading or drop it.
    pub fn follow(&self, offset: u64) -> Reader {
        self.add_reader(offset, true)
    }

    /// Returns a reader that starts at `offset` and does not hold: the writer never waits for it, and it gets a gap for output
    /// dropped at a limit.
    pub fn reader(&self, offset: u64) -> Reader {
        self.add_reader(offset, false)
    }

    fn add_reader(&self, offset: u64, holds: bool) -> Reader {
        let mut state = lock(&self.shared.state);
        let id = state.next_reader;
        state.next_reader += 1;
        state.readers.push(ReaderPlace {
            id,
            passed: offset,
            holds,
        });
        drop(state);
        Reader {
            shared: Arc::clone(&self.shared),
            id,
            position: offset,
            mark: None,
        }
    }

    /// Returns everything that has arrived, or `None` if it exceeds `max` bytes or part of it was dropped.
    pub async fn inline(&self, max: usize) -> Result<Option<Inline>, ReadError> {
        let end = {
            let state = lock(&self.shared.state);
            if state.first > 0 || state.end > max as u64 {
                return Ok(None);
            }
            state.end
        };
        let mut reader = self.reader(0);
        let mut streams = [Gathered::default(), Gathered::default()];
        while reader.position < end {
            let left = usize::try_from(end - reader.position).expect("at most max");
            match reader.next(left).await? {
                Batch::Chunks(chunks) => {
                    for chunk in chunks {
                        streams[usize::from(chunk.stream == Stream::Stderr)].push(chunk.bytes);
                    }
                }
                Batch::Gap { .. } => return Ok(None),
                Batch::End => break,
            }
        }
        let [stdout, stderr] = streams.map(Gathered::into_bytes);
        Ok(Some(Inline { stdout, stderr }))
    }
}

/// Concatenates byte buffers; does not copy if there is only one.
#[derive(Default)]
struct Gathered {
    one: Bytes,
    more: BytesMut,
}

impl Gathered {
    fn push(&mut self, bytes: Bytes) {
        if self.one.is_empty() && self.more.is_empty() {
            self.one = bytes;
        } else {
            if self.more.is_empty() {
                self.more.extend_from_slice(&self.one);
            }
            self.more.extend_from_slice(&bytes);
        }
    }

    fn into_bytes(self) -> Bytes {
        if self.more.is_empty() {
            self.one
        } else {
            self.more.freeze()
        }
    }
}

/// Reads a spool from an offset, while it grows and after it has ended.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    id: u64,
    position: u64,
    /// Start offset of a segment, and its frame that contains `position`.
    mark: Option<(u64, Mark)>,
}

/// Location of the next bytes.
enum Found {
    Ready(Batch),
    InFile {
        file: Arc<File>,
        segment: u64,
        mark: Mark,
        size: u64,
    },
    NotYet,
}

impl Reader {
    /// Returns the offset of the next byte.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Continues at another offset.
    pub fn seek(&mut self, offset: u64) {
        self.position = offset;
        self.mark = None;
    }

    /// Returns the next output, at most `max` bytes, and waits for it while the job runs. Cancel-safe. The result of the previous
    /// call counts as consumed from this call on.
    pub async fn next(&mut self, max: usize) -> Result<Batch, ReadError> {
        let max = max.max(1);
        let shared = Arc::clone(&self.shared);
        let mut found = self.look(max);
        loop {
            match found {
                Found::Ready(batch) => return Ok(batch),
                Found::InFile {
                    file,
                    segment,
                    mark,
                    size,
                } => {
                    let position = self.position;
                    let read =
                        tokio::task::spawn_blocking(move || read_frames(&file, mark, size, position, max));
                    let (chunks, mark) = read
                        .await
                        .map_err(io::Error::other)
                        .and_then(|read| read)
                        .map_err(|source| ReadError { source })?;
                    self.mark = Some((segment, mark));
                    self.position = chunks.last().map_or(position, Chunk::end);
                    return Ok(Batch::Chunks(chunks));
                }
                Found::NotYet => {
                    let grown = shared.grown.notified();
                    tokio::pin!(grown);
                    grown.as_mut().enable();
                    // Retried, because output may have arrived before the notification was enabled.
                    found = self.look(max);
                    if matches!(found, Found::NotYet) {
                        grown.await;
                        found = self.look(max);
                    }
                }
            }
        }
    }

    fn look(&mut self, max: usize) -> Found {
        // Declared first, so that it is freed after the lock is released.
        let _forgotten;
        let mut state = lock(&self.shared.state);
        let state = &mut *state;
        _forgotten = self.pass(state);
        if self.position < state.first {
            let gap = Batch::Gap {
                from: self.position,
                to: state.first,
            };
            self.position = state.first;
            return Found::Ready(gap);
        }
        if self.position >= state.end {
            return if state.is_ended {
                Found::Ready(Batch::End)
            } else {
                Found::NotYet
            };
        }
        let is_recent = state
            .recent
            .front()
            .is_some_and(|chunk| chunk.offset <= self.position);
        if is_recent {
            let from = state.recent.partition_point(|chunk| chunk.end() <= self.position);
            let mut chunks = Vec::new();
            let mut left = max;
            for chunk in state.recent.range(from..).take(BATCH_CHUNKS_MAX) {
                if left == 0 {
                    break;
                }
                let part = chunk.part(self.position, left);
                left -= part.bytes.len();
                self.position = part.end();
                chunks.push(part);
            }
            return Found::Ready(Batch::Chunks(chunks));
        }
        let place = state
            .segments
            .partition_point(|segment| segment.end <= self.position);
        let segment = state.segments.get(place);
        let Some(segment) = segment.filter(|segment| segment.start <= self.position) else {
            let next = segment.map(|segment| segment.start);
            let next = next.or_else(|| state.recent.front().map(|chunk| chunk.offset));
            let gap = Batch::Gap {
                from: self.position,
                to: next.unwrap_or(state.end),
            };
            self.position = next.unwrap_or(state.end);
            return Found::Ready(gap);
        };
        let mark = match self.mark {
            Some((start, mark)) if start == segment.start && mark.offset <= self.position => mark,
            _ => {
                let after = segment.marks.partition_point(|mark| mark.offset <= self.position);
                segment.marks[after - 1]
            }
        };
        Found::InFile {
            file: Arc::clone(&segment.file),
            segment: segment.start,
            mark,
            size: segment.size,
        }
    }

    /// Updates this reader's progress in the spool. Returns chunks that are to be freed after the lock is released.
    fn pass(&self, state: &mut State) -> Vec<Chunk> {
        let mut forgotten = Vec::new();
        if let Some(place) = state.readers.iter_mut().find(|place| place.id == self.id)
            && place.passed != self.position
        {
            place.passed = self.position;
            if self.shared.keep == Keep::Unread {
                state.drop_read();
                self.shared.trim(state);
            }
            state.shed();
            self.shared.trim(state);
            forgotten = state.trim();
            self.shared.room.notify_waiters();
        }
        forgotten
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.readers.retain(|place| place.id != self.id);
        if state.readers.is_empty() {
            state.readers = Vec::new();
        }
        // Fewer readers may mean that less output has to stay in memory.
        self.shared.start_flushing(&mut state);
        state.shed();
        self.shared.trim(&mut state);
        let forgotten = state.trim();
        drop(state);
        drop(forgotten);
        self.shared.room.notify_waiters();
    }
}

/// Ignores poisoning: no code that can panic in the middle of a change runs under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes files on a blocking thread, if there is a runtime. Closing the last descriptor of an unlinked file frees its pages and
/// blocks, which takes milliseconds for a large file.
fn discard(segments: impl IntoIterator<Item = Segment>) {
    let files: Vec<Arc<File>> = segments.into_iter().map(|segment| segment.file).collect();
    if files.is_empty() {
        return;
    }
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn_blocking(move || drop(files));
    }
}

/// Creates a file and unlinks it, so that it is freed with its last descriptor even if orbd is killed.
pub(crate) fn nameless_file(dir: &Path) -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("spool-{}-{number}", std::process::id()));
        let made = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match made {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            // Left by an instance that was killed between the two calls above.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // The folder was deleted while orbd was running.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => {
                DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Writes chunks at `position`, the end of a segment. On an error the file is truncated to that position.
fn write_frames(mut file: &File, position: u64, chunks: &[Chunk]) -> io::Result<()> {
    file.seek(SeekFrom::Start(position))?;
    append_frames(file, chunks).inspect_err(|_| {
        // Only frees the blocks: data beyond the segment's recorded size is never read.
        let _ = file.set_len(position);
    })
}

fn append_frames(mut file: &File, chunks: &[Chunk]) -> io::Result<()> {
    let heads: Vec<[u8; 16]> = chunks.iter().map(head).collect();
    let mut slices: Vec<IoSlice<'_>> = chunks
        .iter()
        .zip(&heads)
        .flat_map(|(chunk, head)| [IoSlice::new(head), IoSlice::new(&chunk.bytes)])
        .collect();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn head(chunk: &Chunk) -> [u8; 16] {
    let length = u32::try_from(chunk.bytes.len()).expect("at most CHUNK_MAX");
    let micros = u64::try_from(chunk.at.as_micros()).unwrap_or(u64::MAX);
    let mut head = [0; 16];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4] = u8::from(chunk.stream == Stream::Stderr);
    head[8..].copy_from_slice(&micros.to_le_bytes());
    head
}

/// Reads frames starting at `mark`. Returns at most `max` bytes starting at offset `from`, and the frame in which the next read
/// begins.
fn read_frames(
    file: &File,
    mut mark: Mark,
    size: u64,
    from: u64,
    max: usize,
) -> io::Result<(Vec<Chunk>, Mark)> {
    let mut chunks = Vec::new();
    let mut left = max;
    // The part of the file that was read, starting at position `begin`.
    let mut block = Bytes::new();
    let mut begin = 0;
    let usual = max.clamp(64 * 1024, 1024 * 1024) as u64;
    while left > 0 && mark.position < size && chunks.len() < BATCH_CHUNKS_MAX {
        let wants = |length: u64| -> Option<std::ops::Range<usize>> {
            let start = usize::try_from(mark.position.checked_sub(begin)?).ok()?;
            let end = start.checked_add(usize::try_from(length).ok()?)?;
            (end <= block.len()).then_some(start..end)
        };
        let head = wants(FRAME).map(|range| parse_head(&block[range]));
        let whole = head.and_then(|(_, _, length)| wants(FRAME + length));
        let (Some((stream, at, length)), Some(range)) = (head, whole) else {
            let need = head.map_or(FRAME, |(_, _, length)| FRAME + length);
            let want = usual.max(need).min(size - mark.position);
            if want < need {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut buffer = BytesMut::zeroed(usize::try_from(want).expect("at most a chunk or a megabyte"));
            file.read_exact_at(&mut buffer, mark.position)?;
            block = buffer.freeze();
            begin = mark.position;
            continue;
        };
        let frame = Chunk {
            stream,
            at,
            offset: mark.offset,
            bytes: block.slice(range).slice(usize::try_from(FRAME).expect("small")..),
        };
        if frame.end() > from {
            let part = frame.part(from.max(frame.offset), left);
            left -= part.bytes.len();
            let is_whole = part.end() == frame.end();
            chunks.push(part);
            if !is_whole {
                break;
            }
        }
        mark = Mark {
            offset: mark.offset + length,
            position: mark.position + FRAME + length,
        };
    }
    Ok((chunks, mark))
}

fn parse_head(head: &[u8]) -> (Stream, Duration, u64) {
    let number = |range: std::ops::Range<usize>| {
        head[range]
            .iter()
            .rev()
            .fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let stream = if head[4] == 0 {
        Stream::Stdout
    } else {
        Stream::Stderr
    };
    (stream, Duration::from_micros(number(8..16)), number(0..4))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    struct Fixture {
        dir: TempDir,
        writer: Option<Writer>,
        spool: Spool,
        budget: Budget,
    }

    fn fixture(max: u64, budget: u64) -> Fixture {
        let dir = tempfile::tempdir().expect("a folder");
        let budget = Budget::new(budget);
        let (writer, spool) = add(&dir, max, &budget);
        Fixture {
            dir,
            writer: Some(writer),
            spool,
            budget,
        }
    }

    fn add(dir: &TempDir, max: u64, budget: &Budget) -> (Writer, Spool) {
        let settings = Settings {
            dir: dir.path().into(),
            max,
            keep: Keep::All,
        };
        spool(&settings, budget)
    }

    impl Fixture {
        async fn write(&self, stream: Stream, bytes: impl Into<Bytes>) {
            let writer = self.writer.as_ref().expect("not ended");
            writer.write(stream, bytes.into()).await;
        }

        fn end(&mut self) {
            self.writer = None;
        }

        /// Waits until no write to disk is in progress.
        async fn flushed(&self) {
            loop {
                let room = self.spool.shared.room.notified();
                tokio::pin!(room);
                room.as_mut().enable();
                if !lock(&self.spool.shared.state).is_flushing {
                    return;
                }
                room.await;
            }
        }
    }

    /// Reads to the end. Returns both streams and all gaps.
    async fn read_all(mut reader: Reader, max: usize) -> (Vec<u8>, Vec<u8>, Vec<(u64, u64)>) {
        let (mut out, mut err, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
        let mut position = reader.position();
        let mut at = Duration::ZERO;
        loop {
            match reader.next(max).await.expect("readable") {
                Batch::Chunks(chunks) => {
                    assert!(chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>() <= max);
                    for chunk in chunks {
                        assert_eq!(chunk.offset, position);
                        assert!(!chunk.bytes.is_empty() && chunk.at >= at);
                        position = chunk.end();
                        at = chunk.at;
                        match chunk.stream {
                            Stream::Stdout => out.extend_from_slice(&chunk.bytes),
                            Stream::Stderr => err.extend_from_slice(&chunk.bytes),
                        }
                    }
                }
                Batch::Gap { from, to } => {
                    assert_eq!(from, position);
                    gaps.push((from, to));
                    position = to;
                }
                Batch::End => return (out, err, gaps),
            }
            assert_eq!(reader.position(), position);
        }
    }

    fn pattern(from: u64, length: usize) -> Vec<u8> {
        (from..).take(length).map(|n| (n % 251) as u8).collect()
    }

    #[tokio::test]
    async fn small_output_stays_in_memory() {
        let mut fixture = fixture(1 << 30, 0);
        fixture.write(Stream::Stdout, "out\0\u{fffd}").await;
        fixture.write(Stream::Stderr, "err").await;
        fixture.end();
        let inline = fixture.spool.inline(1024).await.expect("readable");
        let expected = Inline {
            stdout: "out\0\u{fffd}".into(),
            stderr: "err".into(),
        };
        assert_eq!(inline, Some(expected));
        assert_eq!(fixture.spool.inline(8).await.expect("readable"), None);
        assert!(lock(&fixture.spool.shared.state).segments.is_empty());
        assert_eq!(fixture.budget.used(), 0);
    }

    #[tokio::test]
    async fn ended_spool_is_readable_from_any_offset() {
        let mut fixture = fixture(1 << 30, 1 << 30);
        let all = pattern(0, 3_000_000);
        for piece in all.chunks(100_000) {
            fixture.write(Stream::Stdout, piece.to_vec()).await;
        }
        fixture.end();
        fixture.flushed().await;
        for from in [0, 1, 99_999, 100_000, 1_234_567, 2_999_999, 3_000_000] {
            for max in [77_777, 1 << 20] {
                let (out, err, gaps) = read_all(fixture.spool.reader(from), max).await;
                assert!(
                    out == all[usize::try_from(from).expect("small")..],
                    "from {from} by {max}"
                );
                assert_eq!((err.len(), gaps.len()), (0, 0));
            }
        }
        // Without readers, only what is too little for a file is in memory.
        assert!(lock(&fixture.spool.shared.state).recent_cost <= MEMORY);
    }

    #[tokio::test]
    async fn files_are_unlinked_and_freed_with_the_last_handle() {
        let mut fixture = fixture(1 << 30, 1 << 30);
        fixture.write(Stream::Stdout, vec![7; 1_000_000]).await;
        fixture.flushed().await;
        let file = Arc::downgrade(&lock(&fixture.spool.shared.state).segments[0].file);
        assert_eq!(std::fs::read_dir(fixture.dir.path()).expect("listed").count(), 0);
        assert!(fixture.budget.used() > 900_000);
        fixture.end();
        let reader = fixture.spool.reader(0);
        drop(fixture.spool);
        assert_eq!(read_all(reader, 1 << 20).await.0.len(), 1_000_000);
        // The thread that wrote the file may keep it open for a moment.
        while fixture.budget.used() > 0 || file.strong_count() > 0 {
            tokio::task::spawn_blocking(|| ()).await.expect("no panic");
        }
    }

    #[tokio::test]
    async fn reader_waits_for_output_and_for_the_end() {
        let mut fixture = fixture(1 << 30, 0);
        let mut reader = fixture.spool.follow(0);
        let reading = async {
            let first = reader.next(100).await.expect("readable");
            (first, reader.next(100).await.expect("readable"))
        };
        let writing = async {
            fixture.write(Stream::Stdout, "a").await;
            tokio::task::yield_now().await;
            fixture.end();
        };
        let ((first, second), ()) = tokio::join!(reading, writing);
        assert!(matches!(first, Batch::Chunks(chunks) if chunks[0].bytes == "a"));
        assert_eq!(second, Batch::End);
    }

    #[tokio::test]
    async fn follower_that_keeps_up_never_reads_a_file() {
        let mut fixture = fixture(1 << 30, 1 << 30);
        let mut reader = fixture.spool.follow(0);
        for round in 0..200_u64 {
            fixture
                .write(Stream::Stdout, pattern(round * 50_000, 50_000))
                .await;
            let found = reader.look(1 << 20);
            let Found::Ready(Batch::Chunks(chunks)) = found else {
                panic!("not in memory in round {round}");
            };
            // In more than one chunk if the writer had to wait for the disk.
            let bytes = chunks.iter().map(|chunk| &chunk.bytes[..]).collect::<Vec<_>>();
            assert_eq!(bytes.concat(), pattern(round * 50_000, 50_000));
        }
        assert!(lock(&fixture.spool.shared.state).recent_cost <= RECENT_MAX);
        fixture.end();
    }

    #[tokio::test]
    async fn output_in_memory_is_written_when_the_follower_leaves_or_the_job_ends() {
        for leaves in [true, false] {
            let mut fixture = fixture(1 << 30, 1 << 30);
            let mut follower = fixture.spool.follow(0);
            let all = pattern(0, 400_000);
            for piece in all.chunks(50_000) {
                fixture.write(Stream::Stdout, piece.to_vec()).await;
                follower.next(1 << 20).await.expect("readable");
            }
            assert!(lock(&fixture.spool.shared.state).segments.is_empty());
            if leaves {
                drop(follower);
            } else {
                fixture.end();
            }
            fixture.flushed().await;
            assert!(lock(&fixture.spool.shared.state).recent_cost <= MEMORY + 50_100);
            assert!(lock(&fixture.spool.shared.state).unflushed_cost <= MEMORY);
            fixture.end();
            assert!(read_all(fixture.spool.reader(0), 1 << 20).await.0 == all);
        }
    }

    #[tokio::test]
    async fn oldest_output_is_dropped_at_the_limit_without_followers() {
        let mut fixture = fixture(MAX_MIN, 1 << 30);
        let all = pattern(0, 2_000_000);
        let mut late = fixture.spool.reader(0);
        for piece in all.chunks(10_000) {
            fixture.write(Stream::Stderr, piece.to_vec()).await;
        }
        fixture.end();
        let first = fixture.spool.first();
        assert!(lock(&fixture.spool.shared.state).kept <= MAX_MIN);
        assert!(fixture.budget.used() <= MAX_MIN);
        assert!(2_000_000 - first > MAX_MIN / 2, "most of the limit is used");
        let gap = Batch::Gap { from: 0, to: first };
        assert_eq!(late.next(10).await.expect("readable"), gap);
        let (_, err, gaps) = read_all(late, 1 << 20).await;
        assert!(err == all[usize::try_from(first).expect("small")..]);
        assert_eq!(gaps, []);
        assert_eq!(fixture.spool.inline(usize::MAX).await.expect("readable"), None);
    }

    #[tokio::test]
    async fn writer_waits_at_the_limit_for_the_slowest_follower() {
        let mut fixture = fixture(MAX_MIN, 1 << 30);
        let all = pattern(0, 4_000_000);
        let (fast, slow) = (fixture.spool.follow(0), fixture.spool.follow(0));
        let slow_position = async {
            let mut slow = slow;
            let mut read = 0;
            while let Batch::Chunks(chunks) = slow.next(1000).await.expect("readable") {
                read += chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>();
                assert!(fixture.spool.end() <= slow.position() + MAX_MIN);
            }
            read
        };
        let writing = async {
            let writer = fixture.writer.take().expect("not ended");
            for piece in all.chunks(9_999) {
                let bytes = Bytes::copy_from_slice(piece);
                writer.write(Stream::Stdout, bytes).await;
            }
        };
        let (read, (out, _, gaps), ()) = tokio::join!(slow_position, read_all(fast, 1 << 20), writing);
        assert_eq!(read, all.len());
        assert!(out == all);
        assert_eq!(gaps, []);
    }

    #[tokio::test]
    async fn dropping_a_follower_unblocks_the_writer() {
        let mut fixture = fixture(MAX_MIN, 1 << 30);
        let follower = fixture.spool.follow(0);
        let writer = fixture.writer.take().expect("not ended");
        let writing = tokio::spawn(async move {
            for _ in 0..100 {
                let bytes = vec![0; 10_000].into();
                writer.write(Stream::Stdout, bytes).await;
            }
        });
        // The writer stops before the limit, however long the test waits.
        loop {
            fixture.flushed().await;
            let end = fixture.spool.end();
            tokio::task::yield_now().await;
            if end > MAX_MIN / 2 && end == fixture.spool.end() {
                break;
            }
        }
        assert!(!writing.is_finished() && fixture.spool.first() == 0);
        drop(follower);
        writing.await.expect("no panic");
        assert_eq!(fixture.spool.end(), 1_000_000);
    }

    #[tokio::test]
    async fn passed_through_output_is_never_written_to_a_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let settings = Settings {
            dir: dir.path().join("missing"),
            max: 1 << 30,
            keep: Keep::Unread,
        };
        let (writer, spool) = spool(&settings, &Budget::new(1 << 30));
        let mut follower = spool.follow(0);
        for round in 0..200_u64 {
            let bytes = pattern(round, 50_000);
            writer.write(Stream::Stdout, bytes.clone().into()).await;
            let read = follower.next(1 << 20).await.expect("readable");
            assert!(matches!(read, Batch::Chunks(chunks) if chunks[0].bytes == bytes));
            assert!(lock(&spool.shared.state).recent_cost < KEEP_BACK + 200_000);
        }
        assert!(!settings.dir.exists(), "it would have been created for a file");
        // A client that lost its connection reads the last part again.
        let first = spool.first();
        assert!(10_000_000 - first > KEEP_BACK - 10_000);
        let (out, _, gaps) = read_all_now(spool.reader(first), writer).await;
        assert_eq!((out.len() as u64, gaps.len()), (10_000_000 - first, 0));
    }

    #[tokio::test]
    async fn single_bytes_pass_through_without_a_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let settings = Settings {
            dir: dir.path().join("missing"),
            max: 1 << 30,
            keep: Keep::Unread,
        };
        let (writer, spool) = spool(&settings, &Budget::new(1 << 30));
        let mut follower = spool.follow(0);
        for _ in 0..100_000 {
            let byte = Bytes::from_static(b"x");
            writer.write(Stream::Stdout, byte).await;
            follower.next(1).await.expect("readable");
        }
        assert!(lock(&spool.shared.state).recent_cost < 2 * KEEP_BACK);
        assert!(!settings.dir.exists(), "it would have been created for a file");
    }

    async fn read_all_now(reader: Reader, writer: Writer) -> (Vec<u8>, Vec<u8>, Vec<(u64, u64)>) {
        drop(writer);
        read_all(reader, 1 << 20).await
    }

    #[tokio::test]
    async fn slow_pass_through_uses_a_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let settings = Settings {
            dir: dir.path().into(),
            max: 1 << 30,
            keep: Keep::Unread,
        };
        let (writer, spool) = spool(&settings, &Budget::new(1 << 30));
        let follower = spool.follow(0);
        let all = pattern(0, 5_000_000);
        for piece in all.chunks(40_000) {
            let bytes = Bytes::copy_from_slice(piece);
            writer.write(Stream::Stdout, bytes).await;
        }
        let (out, _, gaps) = read_all_now(follower, writer).await;
        assert!(out == all);
        assert_eq!(gaps, []);
    }

    #[tokio::test]
    async fn job_without_output_leaves_an_empty_spool() {
        let mut fixture = fixture(1 << 30, 1 << 30);
        assert!(!fixture.spool.is_nothing(), "output may still arrive");
        fixture.end();
        let settings = Settings {
            dir: "missing".into(),
            max: 0,
            keep: Keep::All,
        };
        let shared = nothing(&settings, &Budget::new(0));
        for spool in [&fixture.spool, &shared] {
            assert!(spool.is_nothing());
            let inline = spool.inline(0).await.expect("readable").expect("whole");
            assert_eq!(inline, Inline::default());
            for mut reader in [spool.follow(0), spool.reader(0), spool.reader(9)] {
                assert_eq!(reader.next(1).await.expect("readable"), Batch::End);
            }
        }
        let wrote = self::fixture(1 << 30, 1 << 30);
        wrote.write(Stream::Stderr, Bytes::from_static(b"x")).await;
        let Fixture { spool, writer, .. } = wrote;
        drop(writer);
        assert!(spool.is_ended() && !spool.is_nothing());
    }

    #[tokio::test]
    async fn budget_drops_files_of_the_oldest_ended_spool_first() {
        let mut old = fixture(1 << 30, 1_000_000);
        old.write(Stream::Stdout, vec![1; 600_000]).await;
        let (writer, newer) = add(&old.dir, 1 << 30, &old.budget);
        old.end();
        old.flushed().await;
        for _ in 0..60 {
            let bytes = vec![2; 10_000].into();
            writer.write(Stream::Stdout, bytes).await;
        }
        assert!(old.spool.first() > 0, "the old spool lost its beginning");
        assert_eq!(newer.first(), 0, "the new spool lost nothing");
        assert!(old.budget.used() <= 1_000_000);
    }

    #[tokio::test]
    async fn job_without_followers_never_waits_for_the_budget() {
        let fixture = fixture(1 << 30, 0);
        let other = add(&fixture.dir, 1 << 30, &fixture.budget);
        fixture.write(Stream::Stdout, vec![1; 1_000_000]).await;
        let bytes = vec![1; 1_000_000].into();
        other.0.write(Stream::Stdout, bytes).await;
        for spool in [&fixture.spool, &other.1] {
            assert_eq!(spool.end(), 1_000_000);
            assert!(spool.end() - spool.first() <= MEMORY);
        }
        assert_eq!(fixture.budget.used(), 0);
    }

    #[tokio::test]
    async fn output_in_single_bytes_is_limited_too() {
        let mut fixture = fixture(MAX_MIN, 1 << 30);
        for n in 0..300_000_u32 {
            let stream = if n % 3 == 0 {
                Stream::Stderr
            } else {
                Stream::Stdout
            };
            fixture.write(stream, Bytes::from_static(b"x")).await;
        }
        fixture.end();
        fixture.flushed().await;
        let first = fixture.spool.first();
        assert!(first > 0);
        let size: u64 = lock(&fixture.spool.shared.state)
            .segments
            .iter()
            .map(|segment| segment.file.metadata().expect("open").len())
            .sum();
        assert!(size <= MAX_MIN);
        let (out, err, _) = read_all(fixture.spool.reader(first), 50_000).await;
        assert_eq!((out.len() + err.len()) as u64, 300_000 - first);
    }

    /// Creates a spool whose folder cannot be created, because a file is in its place. Also returns the folder's path.
    fn without_folder() -> (Fixture, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("spool");
        std::fs::write(&path, "").expect("written");
        let settings = Settings {
            dir: path.clone(),
            max: 1 << 30,
            keep: Keep::All,
        };
        let budget = Budget::new(1 << 30);
        let (writer, spool) = spool(&settings, &budget);
        let fixture = Fixture {
            dir,
            writer: Some(writer),
            spool,
            budget,
        };
        (fixture, path)
    }

    #[tokio::test]
    async fn failed_writes_keep_the_newest_output_and_report_the_gap() {
        let (mut fixture, _) = without_folder();
        let all = pattern(0, 4 << 20);
        for piece in all.chunks(10_000) {
            fixture.write(Stream::Stdout, piece.to_vec()).await;
        }
        fixture.flushed().await;
        let kept = lock(&fixture.spool.shared.state).unflushed_cost;
        assert!((MEMORY..=UNWRITTEN_MAX).contains(&kept), "{kept} bytes in memory");
        for (is_ended, max) in [(false, UNWRITTEN_MAX), (true, MEMORY)] {
            if is_ended {
                fixture.end();
                fixture.flushed().await;
            }
            let first = fixture.spool.first();
            let missing = all.len() as u64 - first;
            assert!((max / 2..=max).contains(&missing), "{missing} bytes are kept");
            let mut reader = fixture.spool.reader(100);
            let gap = reader.next(usize::MAX).await.expect("readable");
            assert_eq!(gap, Batch::Gap { from: 100, to: first });
            let mut rest = Vec::new();
            while reader.position() < all.len() as u64 {
                let Batch::Chunks(chunks) = reader.next(usize::MAX).await.expect("readable") else {
                    panic!("a second gap");
                };
                for chunk in chunks {
                    rest.extend_from_slice(&chunk.bytes);
                }
            }
            assert!(rest == all[usize::try_from(first).expect("small")..]);
        }
        assert!(
            fixture.budget.used() < MEMORY,
            "the budget beyond the free part was returned"
        );
    }

    #[tokio::test]
    async fn writes_go_to_disk_again_when_the_folder_is_back() {
        let (mut fixture, path) = without_folder();
        let all = pattern(0, 4 << 20);
        for piece in all[..2 << 20].chunks(10_000) {
            fixture.write(Stream::Stdout, piece.to_vec()).await;
        }
        fixture.flushed().await;
        let lost = fixture.spool.first();
        assert!(lost > 0);
        std::fs::remove_file(&path).expect("there");
        std::fs::create_dir(&path).expect("made");
        // Ends the pause.
        lock(&fixture.spool.shared.state).retry_at = Some(Moment::now().instant);
        for piece in all[2 << 20..].chunks(10_000) {
            fixture.write(Stream::Stdout, piece.to_vec()).await;
        }
        fixture.end();
        fixture.flushed().await;
        assert_eq!(fixture.spool.first(), lost, "nothing more was lost");
        let (out, _, gaps) = read_all(fixture.spool.reader(0), 100_000).await;
        assert_eq!(gaps, [(0, lost)]);
        assert!(out == all[usize::try_from(lost).expect("small")..]);
    }

    #[tokio::test]
    async fn output_written_before_a_failure_stays_readable_around_the_gap() {
        let mut fixture = fixture(1 << 20, 1 << 30);
        let path = fixture.dir.path().to_owned();
        let all = pattern(0, 3 << 20);
        let (before, after) = all.split_at(200_000);
        for piece in before.chunks(10_000) {
            fixture.write(Stream::Stdout, piece.to_vec()).await;
        }
        fixture.flushed().await;
        // Segments are small here, so the next one is needed soon and cannot be created.
        std::fs::remove_dir(&path).expect("empty");
        std::fs::write(&path, "").expect("written");
        for piece in after[..150_000].chunks(10_000) {
            fixture.write(Stream::Stdout, piece.to_vec()).await;
        }
        fixture.flushed().await;
        assert!(lock(&fixture.spool.shared.state).retry_at.is_some());
        fixture.end();
        fixture.flushed().await;
        let mut reader = fixture.spool.reader(0);
        let (mut gaps, mut bytes) = (Vec::new(), 0);
        loop {
            match reader.next(100_000).await.expect("readable") {
                Batch::Chunks(chunks) => {
                    for chunk in chunks {
                        let from = usize::try_from(chunk.offset).expect("small");
                        assert!(chunk.bytes == all[from..][..chunk.bytes.len()]);
                        bytes += chunk.bytes.len() as u64;
                    }
                }
                Batch::Gap { from, to } => gaps.push((from, to)),
                Batch::End => break,
            }
        }
        let [(from, to)] = gaps[..] else {
            panic!("{gaps:?}");
        };
        assert!(from >= SEGMENT_MIN && to >= 350_000 - MEMORY, "{from}..{to}");
        assert_eq!(bytes, 350_000 - (to - from));
        std::fs::remove_file(&path).expect("there");
        std::fs::create_dir(&path).expect("made");
    }

    #[tokio::test]
    async fn deleted_folder_is_created_again() {
        let mut fixture = fixture(1 << 30, 1 << 30);
        std::fs::remove_dir(fixture.dir.path()).expect("empty");
        let all = pattern(0, 2 << 20);
        for piece in all.chunks(10_000) {
            fixture.write(Stream::Stdout, piece.to_vec()).await;
        }
        fixture.end();
        fixture.flushed().await;
        assert_eq!(
            read_all(fixture.spool.reader(0), 100_000).await,
            (all, vec![], vec![])
        );
        let mode = std::fs::metadata(fixture.dir.path()).expect("made").permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o700);
    }

    #[tokio::test]
    async fn follower_gets_every_byte_although_writes_fail() {
        let (mut fixture, _) = without_folder();
        let follower = tokio::spawn(read_all(fixture.spool.follow(0), 30_000));
        let all = pattern(0, 4 << 20);
        for piece in all.chunks(10_000) {
            fixture.write(Stream::Stdout, piece.to_vec()).await;
        }
        fixture.end();
        let (out, _, gaps) = follower.await.expect("no panic");
        assert_eq!(gaps, []);
        assert!(out == all);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// For any interleaving of writes and reads, the output equals the input.
        #[test]
        fn output_equals_input_for_any_writes_and_reads(
            pieces in proptest::collection::vec((any::<bool>(), 1_usize..40_000, any::<u8>()), 1..60),
            reads in proptest::collection::vec((0_u64..1_500_000, 1_usize..200_000), 1..4),
            follows in any::<bool>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                let mut fixture = fixture(1 << 30, 1 << 30);
                let mut all = Vec::new();
                let follower = follows.then(|| tokio::spawn(read_all(fixture.spool.follow(0), 30_000)));
                for (is_err, length, seed) in pieces {
                    let stream = if is_err { Stream::Stderr } else { Stream::Stdout };
                    let bytes = pattern(u64::from(seed), length);
                    all.extend(bytes.iter().map(|byte| (stream, *byte)));
                    fixture.write(stream, bytes).await;
                    if length % 3 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                fixture.end();
                let expected = |from: u64, wanted: Stream| -> Vec<u8> {
                    let from = usize::try_from(from).expect("small").min(all.len());
                    all[from..].iter().filter(|(stream, _)| *stream == wanted).map(|(_, byte)| *byte).collect()
                };
                let check = |from: u64, found: (Vec<u8>, Vec<u8>, Vec<(u64, u64)>)| {
                    assert!(found.0 == expected(from, Stream::Stdout) && found.1 == expected(from, Stream::Stderr));
                    assert_eq!(found.2, []);
                };
                for (from, max) in reads {
                    let from = from.min(all.len() as u64);
                    check(from, read_all(fixture.spool.reader(from), max).await);
                }
                if let Some(follower) = follower {
                    check(0, follower.await.expect("no panic"));
                }
                let inline = fixture.spool.inline(usize::MAX).await.expect("readable").expect("whole");
                assert!(inline.stdout == expected(0, Stream::Stdout) && inline.stderr == expected(0, Stream::Stderr));
            });
        }
    }
}

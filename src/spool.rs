//! A job's output: the bytes of both streams in order of arrival, first in memory, then in files, read from any offset.
//!
//! ```text
//!            first                 flushed                       end
//!   (dropped)  |--- segments (files) ---|                         |
//!                        |------- recent (memory) ----------------|
//! ```
//!
//! A [`Writer`] puts bytes in, a [`Spool`] is the handle to what is kept, a [`Reader`] follows. A small job never leaves memory.
//! Beyond [`MEMORY`] bytes a blocking thread moves what is new into the current segment, a file that has no name any more, and goes
//! when there is nothing left to move; what is recent stays in memory while somebody follows, so a reader that keeps up never
//! touches a file, and while it does so the thread moves much at a time. All file work is done on blocking threads: a full page
//! cache must not stop the daemon's other answers.
//!
//! **Bounds.** A spool keeps at most its `max`, all spools of one [`Budget`] keep at most the budget's. At a bound the oldest segment
//! goes, as soon as every reader that [holds](Spool::follow) has passed it; until then the writer, and so the child, waits. Readers who
//! come later or do not hold are told the gap. Before that, the budget takes the oldest ended spool that nobody holds. Every
//! spool may keep [`MEMORY`] bytes whatever the budget says, so a job without followers never waits.
//!
//! **A disk that takes nothing** never ends a command. If it is full, the spool's own oldest segment goes and the write is tried again,
//! as at a bound. If there is none, or the error is another one, only the newest [`UNWRITTEN_MAX`] bytes are kept in memory, what was
//! written before stays, and readers are told the gap between the two. The next write is tried after [`RETRY_AFTER`].
//!
//! Writing everything to a file costs as much as a client that reads it. Where output is only passed through, [`Keep::Unread`] lets
//! what every holding reader has passed go without ever being written, but for the last [`KEEP_BACK`] bytes; the writer then waits
//! a moment for a reader before it begins to use a file.
//!
//! Bounds count what is stored: the bytes and a little for each chunk, so that a child that writes single bytes is bounded too.

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

/// What a spool may keep in memory, and keep at all whatever the budget says.
pub const MEMORY: u64 = 64 * 1024;

/// The smallest bound of one spool; a smaller one is taken as this.
pub const MAX_MIN: u64 = 4 * SEGMENT_MIN;

/// What may wait for the disk before the writer does.
const UNFLUSHED_MAX: u64 = 1024 * 1024;

/// What may be in no file while somebody follows a running job: moving each few bytes on their own would cost more than the
/// memory, which followers have in any case.
const UNFLUSHED_FOLLOWED: u64 = UNFLUSHED_MAX / 2;

/// What is kept in memory for readers that keep up, counting what waits for the disk.
const RECENT_MAX: u64 = 2 * 1024 * 1024;

/// What stays with [`Keep::Unread`] although it was passed: whoever lost its connection can come back for what was on the way.
pub const KEEP_BACK: u64 = 512 * 1024;

/// How long the writer waits for a reader, with [`Keep::Unread`], before it begins to use a file.
const PATIENCE: Duration = Duration::from_millis(50);

/// What is kept in memory of a running job while the disk takes nothing; of one that has ended, [`MEMORY`].
const UNWRITTEN_MAX: u64 = UNFLUSHED_MAX;

/// Pause between two attempts to write to a disk that takes nothing.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Shortest time between two warnings about the disk.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The largest chunk; longer ones are split.
const CHUNK_MAX: usize = 256 * 1024;

/// What is tried when a longer chunk does not fit: less than [`MEMORY`], so that it fits whatever the budget says.
const CHUNK_SMALL: usize = 32 * 1024;

/// What a chunk costs in memory beside its bytes.
const CHUNK_COST: u64 = 64;

/// What a chunk costs in a file beside its bytes: stream and length (8), time (8).
const FRAME: u64 = 16;

/// Chunks written by one system call; each is two slices, of which the system takes at most 1024.
const FLUSH_CHUNKS_MAX: usize = 500;

/// Chunks in one batch for a reader.
const BATCH_CHUNKS_MAX: usize = 1024;

/// Spools are dropped from and dropped by a segment, of which there are about sixteen.
const SEGMENTS: u64 = 16;
const SEGMENT_MIN: u64 = 64 * 1024;

/// One place in a segment is remembered for about this many bytes.
const MARK_EVERY: u64 = 256 * 1024;

/// The stream that a child wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Bytes that arrived together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where the child wrote them.
    pub stream: Stream,
    /// When they arrived, from the making of the spool.
    pub at: Duration,
    /// How many bytes of both streams came before.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
}

impl Chunk {
    /// Returns the offset of what comes after.
    pub fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    fn cost(&self) -> u64 {
        self.bytes.len() as u64 + CHUNK_COST
    }

    fn framed(&self) -> u64 {
        self.bytes.len() as u64 + FRAME
    }

    /// Returns the part that starts at `offset`, which must lie within, with at most `max` bytes.
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

/// What a reader gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batch {
    /// The next bytes, without a gap among them; never empty.
    Chunks(Vec<Chunk>),
    /// These bytes are not kept any more; the reader goes on after them.
    Gap {
        /// Offset of the first byte that is gone.
        from: u64,
        /// Offset of the first byte after the gap.
        to: u64,
    },
    /// There is no more and there will be no more.
    End,
}

/// All output of a small job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inline {
    /// All of stdout.
    pub stdout: Bytes,
    /// All of stderr.
    pub stderr: Bytes,
}

/// The spool's file could not be read.
#[derive(Debug, thiserror::Error)]
#[error("kept output could not be read")]
pub struct ReadError {
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Where spools are kept and how large one may become.
#[derive(Debug, Clone)]
pub struct Settings {
    /// An existing folder of ours; files in it lose their names as soon as they are made.
    pub dir: PathBuf,
    /// What one spool keeps at most.
    pub max: u64,
    /// What it keeps below that.
    pub keep: Keep,
}

/// What a spool keeps while its bounds are far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// Everything: it can be read again from the beginning.
    #[default]
    All,
    /// While there is a reader that [holds](Spool::follow): what those have not passed, and about the last
    /// [`KEEP_BACK`] bytes. Without one: everything from then on.
    Unread,
}

/// What all spools together may keep beyond the first [`MEMORY`] bytes of each.
#[derive(Debug, Clone)]
pub struct Budget(Arc<BudgetShared>);

#[derive(Debug)]
struct BudgetShared {
    max: AtomicU64,
    used: AtomicU64,
    /// Ended spools, the oldest first: what they keep goes first.
    ended: Mutex<VecDeque<Weak<Shared>>>,
    freed: Notify,
    /// When a failed write was last reported in the log.
    warned: Mutex<Option<Instant>>,
}

impl Budget {
    /// Makes a budget of `max` bytes.
    pub fn new(max: u64) -> Self {
        Self(Arc::new(BudgetShared {
            max: AtomicU64::new(max),
            used: AtomicU64::new(0),
            ended: Mutex::new(VecDeque::new()),
            freed: Notify::new(),
            warned: Mutex::new(None),
        }))
    }

    /// Allows so many bytes from now on. What is kept beyond a lowered bound stays; nothing joins it until there is room.
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

    /// Reports in the log that a write failed: not for each of many commands.
    fn warn(&self, dir: &Path, error: &io::Error) {
        let now = Moment::now().instant;
        let mut warned = lock(&self.0.warned);
        if warned.is_none_or(|at| now.saturating_duration_since(at) >= WARN_EVERY) {
            *warned = Some(now);
            tracing::warn!(folder = %dir.display(), %error, "cannot write output to disk: commands go on, older output is dropped");
        }
    }

    /// Takes out what the oldest ended spool keeps in files, if there is one that no reader holds. Called without a lock, or with a
    /// running spool locked; an ended spool never calls it with its lock, so the two locks are always taken in this order.
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
            shared.settle(&mut state);
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
    /// Readers wait for more, or for the end.
    grown: Notify,
    /// The writer waits for the disk or for a reader.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Offset of the oldest byte kept.
    first: u64,
    /// Offset after the newest byte.
    end: u64,
    /// Files, the oldest first. Where a write failed there are gaps between them, and between the last one and `flushed`.
    segments: VecDeque<Segment>,
    /// What comes before is in segments or gone, what comes after only in `recent`.
    flushed: u64,
    /// The newest chunks, without gaps up to `end`.
    recent: VecDeque<Chunk>,
    /// What `recent` costs.
    recent_cost: u64,
    /// What of it is not in a segment.
    unflushed_cost: u64,
    /// What counts against the bound: segments and what is not in one yet.
    kept: u64,
    /// What of it was taken from the budget.
    charged: u64,
    /// A blocking thread is moving chunks into a segment.
    is_flushing: bool,
    /// The last write failed; the next one is tried at this time.
    retry_at: Option<Instant>,
    is_ended: bool,
    readers: Vec<ReaderPlace>,
    next_reader: u64,
}

#[derive(Debug)]
struct ReaderPlace {
    id: u64,
    /// What comes before has been passed on by the reader.
    passed: u64,
    holds: bool,
}

/// A file with no name that holds frames: stream, length, time, bytes.
#[derive(Debug)]
struct Segment {
    file: Arc<File>,
    /// Offset of its first byte.
    start: u64,
    /// Offset after its last byte.
    end: u64,
    /// Its size, frames counted.
    size: u64,
    /// Places where a frame begins, at least one where there is a frame.
    marks: Vec<Mark>,
}

/// The beginning of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    offset: u64,
    position: u64,
}

impl State {
    /// Drops the oldest unit, if there is one that no reader holds and that is not being written.
    fn drop_oldest(&mut self) -> bool {
        self.drop_oldest_before(self.held_from().unwrap_or(u64::MAX))
    }

    /// Returns the offset up to which all holding readers have passed, if there is one.
    fn held_from(&self) -> Option<u64> {
        let holding = self.readers.iter().filter(|reader| reader.holds);
        holding.map(|reader| reader.passed).min()
    }

    /// Drops what [`Keep::Unread`] does not keep.
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

    /// Drops the oldest unit if it ends at or before `horizon` and is not being written.
    fn drop_oldest_before(&mut self, horizon: u64) -> bool {
        if self.segments.is_empty() {
            return self.drop_unwritten_before(horizon);
        }
        let segment = self.take_segment_before(horizon);
        let is_dropped = segment.is_some();
        discard(segment);
        is_dropped
    }

    /// Takes the oldest segment out if it ends at or before `horizon` and is not being written.
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

    /// While the disk takes nothing: drops what is too much for memory, if no reader holds it.
    fn shed(&mut self) {
        let max = if self.is_ended { MEMORY } else { UNWRITTEN_MAX };
        let horizon = self.held_from().unwrap_or(u64::MAX);
        while self.retry_at.is_some()
            && self.unflushed_cost > max
            && (self.cut_newest(max, horizon) || self.drop_unwritten_before(horizon))
        {}
    }

    /// If the newest chunk is the only one that is in no segment, cuts off all but its end: a long chunk must not be lost whole. Only up
    /// to `horizon`, and not while it is being written.
    fn cut_newest(&mut self, max: u64, horizon: u64) -> bool {
        let Some(chunk) = self.recent.back_mut() else {
            return false;
        };
        let from = chunk.end().saturating_sub(max.saturating_sub(CHUNK_COST));
        if self.is_flushing || chunk.cost() != self.unflushed_cost || from <= chunk.offset || from > horizon {
            return false;
        }
        let cut = from - chunk.offset;
        // A copy, because a slice would keep all of it in memory.
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

    /// Forgets recent chunks that are in a segment and that no reader is about to want. Returns them, to be freed without the lock:
    /// giving large ones back to the system takes longer than all else that is done with it.
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

/// What became of an attempt to put bytes in.
enum Accepted {
    Done,
    Wait,
}

impl Shared {
    /// Returns what may be in no file before one is used.
    fn backlog_max(state: &State) -> u64 {
        if !state.is_ended && state.held_from().is_some() {
            UNFLUSHED_FOLLOWED
        } else {
            MEMORY
        }
    }

    /// Returns what is left in no file once one is used.
    fn backlog_left(&self, state: &State) -> u64 {
        match self.keep {
            // The followers may take it yet.
            Keep::Unread => Self::backlog_max(state),
            Keep::All => MEMORY,
        }
    }

    fn start_flushing(self: &Arc<Self>, state: &mut State) {
        let is_too_early = || state.retry_at.is_some_and(|at| Moment::now().instant < at);
        if state.is_flushing || state.unflushed_cost <= Self::backlog_max(state) || is_too_early() {
            return;
        }
        // Without a runtime everything ends, and nobody comes back for it.
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
                self.settle(&mut state);
                return Accepted::Wait;
            }
            self.settle(&mut state);
        }
        if state.retry_at.is_some() && state.unflushed_cost + cost > UNWRITTEN_MAX {
            // If it is time for another attempt: before something is dropped that it may still write.
            self.start_flushing(&mut state);
            if state.is_flushing {
                self.settle(&mut state);
                return Accepted::Wait;
            }
        }
        while state.retry_at.is_some() && state.unflushed_cost + cost > UNWRITTEN_MAX {
            let horizon = state.held_from().unwrap_or(u64::MAX);
            let is_dropped = state.drop_unwritten_before(horizon);
            self.settle(&mut state);
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

    /// Takes from the budget what `cost` more bytes need.
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

    /// Gives back to the budget what is not needed any more.
    fn settle(&self, state: &mut State) {
        let needed = state.kept.saturating_sub(MEMORY);
        let less = state.charged.saturating_sub(needed);
        state.charged -= less;
        self.budget.give_back(less);
    }

    /// Takes the oldest output out of files, for a disk that is full: of an ended spool, or of this one.
    fn make_room(&self) -> Option<Vec<Segment>> {
        if let Some(segments) = self.budget.reclaim() {
            return Some(segments);
        }
        let mut state = lock(&self.state);
        let horizon = state.held_from().unwrap_or(u64::MAX);
        // Nothing is being written just now, so the newest segment may go as well.
        state.is_flushing = false;
        let segment = state.take_segment_before(horizon);
        state.is_flushing = true;
        self.settle(&mut state);
        segment.map(|segment| vec![segment])
    }

    /// Moves chunks into segments until little is left to move. Runs on a blocking thread, never twice at once.
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
                    self.settle(&mut state);
                    drop(state);
                    self.room.notify_waiters();
                    // What was written is freed with it, unless a reader has it.
                    drop((forgotten, batch));
                }
                Err(error) => {
                    self.budget.warn(&self.dir, &error);
                    let is_full = matches!(
                        error.kind(),
                        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                    );
                    // Freed here and not elsewhere, so that there is room when the write is tried again.
                    if is_full && let Some(segments) = self.make_room() {
                        drop(segments);
                        continue;
                    }
                    let mut state = lock(&self.state);
                    state.is_flushing = false;
                    state.retry_at = Some(Moment::now().instant + RETRY_AFTER);
                    state.shed();
                    self.settle(&mut state);
                    drop(state);
                    self.room.notify_waiters();
                    return;
                }
            }
        }
    }
}

impl State {
    /// Notes that the newest segment now also holds `batch`.
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

/// Makes an empty spool.
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

/// Makes a spool that has ended with nothing in it. One can stand for all of those.
pub fn nothing(settings: &Settings, budget: &Budget) -> Spool {
    let (_, spool) = spool(settings, budget);
    spool
}

/// Puts a job's output in. Dropping it ends the spool.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
}

impl Writer {
    /// Puts bytes in, waiting for the disk or the slowest follower where a bound is reached. Cancel-safe up to a chunk: what was not
    /// put in when the future is dropped is not in the spool.
    pub async fn write(&self, stream: Stream, mut bytes: Bytes) {
        while let Some(left) = self.put(stream, bytes) {
            bytes = left;
            let room = self.shared.room.notified();
            let freed = self.shared.budget.0.freed.notified();
            tokio::pin!(room, freed);
            room.as_mut().enable();
            freed.as_mut().enable();
            // Again, because room may have been made between the refusal and the two lines above.
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

    /// Puts in as much as fits now; returns what has to wait.
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
        // The last attempt: later there will be nobody to make one.
        state.retry_at = None;
        self.shared.start_flushing(&mut state);
        let forgotten = state.trim();
        // Most jobs write little, and what they wrote is kept by the thousand.
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

/// The handle to what a spool keeps. What is kept goes when the last handle and reader go.
#[derive(Debug, Clone)]
pub struct Spool {
    shared: Arc<Shared>,
}

impl Spool {
    /// Returns how many bytes have arrived, gaps counted.
    pub fn end(&self) -> u64 {
        lock(&self.shared.state).end
    }

    /// Returns the offset of the oldest byte that is still kept.
    pub fn first(&self) -> u64 {
        lock(&self.shared.state).first
    }

    /// Says whether no more will come.
    pub fn is_ended(&self) -> bool {
        lock(&self.shared.state).is_ended
    }

    /// Says whether it has ended with nothing in it.
    pub fn is_nothing(&self) -> bool {
        let state = lock(&self.shared.state);
        state.is_ended && state.end == 0
    }

    /// Returns a reader that starts at `offset` and that the child waits for at a bound. It holds until it is dropped: whoever has
    /// one keeps reading, or gives it up.
    pub fn follow(&self, offset: u64) -> Reader {
        self.add_reader(offset, true)
    }

    /// Returns a reader that starts at `offset` and that nobody waits for: at a bound it is told the gap.
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

    /// Returns everything that has arrived, if it is at most `max` bytes and nothing of it is gone.
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

/// Bytes put together, without a copy where there is only one piece.
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

/// Reads a spool from an offset on, while it grows and after.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    id: u64,
    position: u64,
    /// The frame in a segment that `position` lies in or begins.
    mark: Option<(u64, Mark)>,
}

/// Where the next bytes are.
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

    /// Goes to another offset.
    pub fn seek(&mut self, offset: u64) {
        self.position = offset;
        self.mark = None;
    }

    /// Returns what comes next, at most `max` bytes, waiting for it while the job runs. Cancel-safe. What the last call returned
    /// counts as passed on from this call on.
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
                    // Again, because more may have come between the first look and the line above.
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
        // Freed after the lock is.
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

    /// Tells the spool how far this reader is.
    fn pass(&self, state: &mut State) -> Vec<Chunk> {
        let mut forgotten = Vec::new();
        if let Some(place) = state.readers.iter_mut().find(|place| place.id == self.id)
            && place.passed != self.position
        {
            place.passed = self.position;
            if self.shared.keep == Keep::Unread {
                state.drop_read();
                self.shared.settle(state);
            }
            state.shed();
            self.shared.settle(state);
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
        // With nobody who follows, less may stay in memory.
        self.shared.start_flushing(&mut state);
        state.shed();
        self.shared.settle(&mut state);
        let forgotten = state.trim();
        drop(state);
        drop(forgotten);
        self.shared.room.notify_waiters();
    }
}

/// No code that can panic half-way through a change runs under these locks, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes files. Closing the last descriptor of a nameless file frees its pages and blocks, which takes milliseconds when it is
/// large: on a blocking thread where there is one.
fn discard(segments: impl IntoIterator<Item = Segment>) {
    let files: Vec<Arc<File>> = segments.into_iter().map(|segment| segment.file).collect();
    if files.is_empty() {
        return;
    }
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn_blocking(move || drop(files));
    }
}

/// Makes a file and takes its name away, so that it goes with the last descriptor, however we die.
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
            // Left by a life that died between the two calls above.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // The folder was deleted while orbd runs.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => {
                DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Writes chunks at the end of a segment, which is at `position`. After an error the file ends there, as before.
fn write_frames(mut file: &File, position: u64, chunks: &[Chunk]) -> io::Result<()> {
    file.seek(SeekFrom::Start(position))?;
    append_frames(file, chunks).inspect_err(|_| {
        // Only to free the blocks: what lies beyond the segment's known size is never read.
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

/// Reads frames from `mark` on and returns at most `max` bytes from offset `from` on, with the frame in which the next read begins.
fn read_frames(
    file: &File,
    mut mark: Mark,
    size: u64,
    from: u64,
    max: usize,
) -> io::Result<(Vec<Chunk>, Mark)> {
    let mut chunks = Vec::new();
    let mut left = max;
    // The part of the file that starts at `begin`.
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

        /// Waits until what is in memory is what has to be.
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

    /// Reads to the end; returns both streams, where the first byte was, and whether there were gaps after it.
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
    async fn a_small_job_stays_in_memory() {
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
    async fn an_ended_spool_stays_readable_from_any_offset() {
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
        // Nobody reads any more: only what was too little for the file is in memory.
        assert!(lock(&fixture.spool.shared.state).recent_cost <= MEMORY);
    }

    #[tokio::test]
    async fn nothing_with_a_name_is_left_on_disk_and_the_rest_goes_with_the_last_handle() {
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
        // The thread that wrote the file may hold on for a moment.
        while fixture.budget.used() > 0 || file.strong_count() > 0 {
            tokio::task::spawn_blocking(|| ()).await.expect("no panic");
        }
    }

    #[tokio::test]
    async fn a_reader_waits_for_more_and_for_the_end() {
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
    async fn a_follower_that_keeps_up_never_reads_a_file() {
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
            // In more than one piece where the writer had to wait for the disk.
            let bytes = chunks.iter().map(|chunk| &chunk.bytes[..]).collect::<Vec<_>>();
            assert_eq!(bytes.concat(), pattern(round * 50_000, 50_000));
        }
        assert!(lock(&fixture.spool.shared.state).recent_cost <= RECENT_MAX);
        fixture.end();
    }

    #[tokio::test]
    async fn what_a_follower_kept_in_memory_goes_to_a_file_when_it_leaves_or_the_job_ends() {
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
    async fn at_the_bound_the_oldest_goes_when_nobody_follows() {
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
        assert!(2_000_000 - first > MAX_MIN / 2, "most of the bound is used");
        let gap = Batch::Gap { from: 0, to: first };
        assert_eq!(late.next(10).await.expect("readable"), gap);
        let (_, err, gaps) = read_all(late, 1 << 20).await;
        assert!(err == all[usize::try_from(first).expect("small")..]);
        assert_eq!(gaps, []);
        assert_eq!(fixture.spool.inline(usize::MAX).await.expect("readable"), None);
    }

    #[tokio::test]
    async fn at_the_bound_the_writer_waits_for_the_slowest_follower() {
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
    async fn a_follower_that_gives_up_lets_the_writer_go_on() {
        let mut fixture = fixture(MAX_MIN, 1 << 30);
        let follower = fixture.spool.follow(0);
        let writer = fixture.writer.take().expect("not ended");
        let writing = tokio::spawn(async move {
            for _ in 0..100 {
                let bytes = vec![0; 10_000].into();
                writer.write(Stream::Stdout, bytes).await;
            }
        });
        // It stands still before the bound, however long one waits.
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
    async fn what_is_only_passed_through_never_reaches_a_file() {
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
        assert!(!settings.dir.exists(), "it would have been made for a file");
        // Whoever lost its connection comes back for the last of it.
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
        assert!(!settings.dir.exists(), "it would have been made for a file");
    }

    async fn read_all_now(reader: Reader, writer: Writer) -> (Vec<u8>, Vec<u8>, Vec<(u64, u64)>) {
        drop(writer);
        read_all(reader, 1 << 20).await
    }

    #[tokio::test]
    async fn what_is_passed_through_slowly_goes_by_way_of_a_file() {
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
    async fn nothing_is_what_a_job_without_output_leaves() {
        let mut fixture = fixture(1 << 30, 1 << 30);
        assert!(!fixture.spool.is_nothing(), "something may come");
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
    async fn the_budget_takes_the_oldest_ended_spool_first() {
        let mut old = fixture(1 << 30, 1_000_000);
        old.write(Stream::Stdout, vec![1; 600_000]).await;
        let (writer, newer) = add(&old.dir, 1 << 30, &old.budget);
        old.end();
        old.flushed().await;
        for _ in 0..60 {
            let bytes = vec![2; 10_000].into();
            writer.write(Stream::Stdout, bytes).await;
        }
        assert!(old.spool.first() > 0, "the old one lost its beginning");
        assert_eq!(newer.first(), 0, "the new one nothing");
        assert!(old.budget.used() <= 1_000_000);
    }

    #[tokio::test]
    async fn a_job_without_followers_never_waits_for_the_budget() {
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
    async fn single_bytes_are_bounded_too() {
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

    /// A spool whose folder cannot exist, because there is a file in its place. Returns the folder's path, too.
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
            "memory beyond the free part was given back"
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
        // As if the pause were over.
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
        // Segments are small here, so the next one is soon needed, and cannot be made.
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
    async fn deleted_folder_is_made_again() {
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

        /// Any interleaving, any reads: what comes out is what went in.
        #[test]
        fn what_goes_in_comes_out(
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

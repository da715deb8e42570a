//! Reads a spool from any offset.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::budget::lock;
use super::chunk::Chunk;
use super::contents::Contents;
use super::segment::{BATCH_CHUNKS_MAX, Mark, read_frames};
use super::shared::{Keep, Shared};

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

/// A spool's file could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read stored output")]
pub struct ReadError {
    /// The operating system's error.
    #[source]
    pub source: io::Error,
}

/// Reads a spool from an offset, while it grows and after it has ended.
#[derive(Debug)]
pub struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) id: u64,
    pub(super) position: u64,
    /// Start offset of a segment, and its frame that contains `position`.
    pub(super) mark: Option<(u64, Mark)>,
}

/// Location of the next bytes.
pub(super) enum Found {
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

    pub(super) fn look(&mut self, max: usize) -> Found {
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
    fn pass(&self, state: &mut Contents) -> Vec<Chunk> {
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

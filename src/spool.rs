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
//! at a limit. If there is no such segment, or for any other error, only the newest `UNWRITTEN_MAX` bytes are kept in memory,
//! earlier segments stay, and readers get a gap between the two. The next write is attempted after `RETRY_AFTER`.
//!
//! **Pass-through.** Writing all output to a file costs as much as a client that reads it. For output that is only passed
//! through, [`Keep::Unread`] drops what every holding reader has passed without writing it to a file, except for the last
//! [`KEEP_BACK`] bytes. The writer then waits briefly for a reader before it starts to use a file.
//!
//! Limits count the stored size: the bytes plus an overhead for each chunk, so that a child that writes single bytes is limited
//! as well.

mod budget;
mod chunk;
mod contents;
mod reader;
mod segment;
mod shared;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

pub use budget::Budget;
pub use chunk::{Chunk, Stream};
pub use contents::{KEEP_BACK, MEMORY};
pub use reader::{Batch, ReadError, Reader};
pub(crate) use segment::nameless_file;
pub use shared::{Keep, MAX_MIN, Settings};
pub use writer::Writer;

use crate::clock::Moment;
use budget::lock;
use contents::ReaderPlace;
use shared::{SEGMENT_MIN, Shared};

/// A full spool consists of about this many segments, the unit in which old output is dropped.
const SEGMENTS: u64 = 16;

/// The complete output of a small job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inline {
    /// All of stdout.
    pub stdout: Bytes,
    /// All of stderr.
    pub stderr: Bytes,
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

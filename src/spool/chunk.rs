//! Pieces of output.

use std::time::Duration;

use bytes::Bytes;

/// Size limit of a chunk; longer input is split.
pub(super) const CHUNK_MAX: usize = 256 * 1024;

/// Overhead of a chunk in memory, in bytes.
pub(super) const CHUNK_COST: u64 = 64;

/// Overhead of a chunk in a file, in bytes: stream and length (8), time (8).
pub(super) const FRAME: u64 = 16;

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
    /// The bytes: at least one, at most 256 KiB.
    pub bytes: Bytes,
}

impl Chunk {
    /// Returns the offset of the next byte after the chunk.
    pub fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    pub(super) fn cost(&self) -> u64 {
        self.bytes.len() as u64 + CHUNK_COST
    }

    pub(super) fn framed(&self) -> u64 {
        self.bytes.len() as u64 + FRAME
    }

    /// Returns the part from `offset`, which must lie within the chunk, with at most `max` bytes.
    pub(super) fn part(&self, offset: u64, max: usize) -> Self {
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

//! Appends the output of a job.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;

use super::budget::{EndedSpool, lock};
use super::chunk::{CHUNK_MAX, Stream};
use super::shared::{Accepted, Keep, RETRY_AFTER, Shared};

/// How long the writer waits for a reader, with [`Keep::Unread`], before it starts to use a file.
const PATIENCE: Duration = Duration::from_millis(50);

/// Chunk size to try if a larger chunk does not fit. It is smaller than `MEMORY`, so that it fits regardless of the budget.
const CHUNK_SMALL: usize = 32 * 1024;

/// Appends a job's output. Dropping it ends the spool.
#[derive(Debug)]
pub struct Writer {
    pub(super) shared: Arc<Shared>,
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
            let spool: Weak<dyn EndedSpool> = Arc::<Shared>::downgrade(&self.shared);
            ended.push_back(spool);
        }
        self.shared.grown.notify_waiters();
    }
}

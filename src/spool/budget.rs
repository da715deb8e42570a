//! The limit on what all spools together keep.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::segment::Segment;
use crate::clock::Moment;

/// Minimum time between two log messages about failed writes.
pub(super) const WARN_EVERY: Duration = Duration::from_secs(60);

/// Shared limit on what all spools together keep beyond the first [`MEMORY`](super::MEMORY) bytes of each.
#[derive(Debug, Clone)]
pub struct Budget(pub(super) Arc<BudgetShared>);

#[derive(Debug)]
pub(super) struct BudgetShared {
    max: AtomicU64,
    used: AtomicU64,
    /// Ended spools, the oldest first; their files are dropped in this order.
    pub(super) ended: Mutex<VecDeque<Weak<dyn EndedSpool>>>,
    pub(super) freed: Notify,
    /// Time of the last log message about a failed write.
    warned: Mutex<Option<Instant>>,
}

/// An ended spool, whose files the budget may drop for others.
pub(super) trait EndedSpool: std::fmt::Debug + Send + Sync {
    /// Removes and returns the segments that no holding reader has to read. Locks the spool.
    fn reclaim(&self) -> Vec<Segment>;
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

    pub(super) fn take(&self, bytes: u64) -> bool {
        let max = self.0.max.load(Ordering::Relaxed);
        let taken = self
            .0
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= max)
            });
        taken.is_ok()
    }

    pub(super) fn give_back(&self, bytes: u64) {
        if bytes > 0 {
            self.0.used.fetch_sub(bytes, Ordering::Relaxed);
            self.0.freed.notify_waiters();
        }
    }

    /// Logs a failed write, at most once per [`WARN_EVERY`], because many commands may be affected.
    pub(super) fn warn(&self, dir: &Path, error: &io::Error) {
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
    pub(super) fn reclaim(&self) -> Option<Vec<Segment>> {
        let mut ended = lock(&self.0.ended);
        let mut place = 0;
        while let Some(weak) = ended.get(place) {
            let Some(spool) = weak.upgrade() else {
                ended.remove(place);
                continue;
            };
            let segments = spool.reclaim();
            if !segments.is_empty() {
                return Some(segments);
            }
            place += 1;
        }
        None
    }
}

/// Ignores poisoning: no code that can panic in the middle of a change runs under these locks.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

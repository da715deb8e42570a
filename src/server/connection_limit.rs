//! Limits the number of open connections: in all, per peer process, and with a reserve for `daemon.*`.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// One in this many connections is reserved for `daemon.*`, at most [`RESERVE_MAX`].
const RESERVE_SHARE: usize = 64;
const RESERVE_MAX: usize = 8;

/// Limits the number of open connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ConnectionLimit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    counts: Mutex<Counts>,
    released: Notify,
}

#[derive(Debug)]
struct Counts {
    max: usize,
    max_per_process: usize,
    /// Open connections that may call every method.
    ordinary: usize,
    /// Open connections that may call `daemon.*` only.
    reserved: usize,
    /// All open connections by peer process. Peers whose process the system does not report count as one.
    by_process: HashMap<Option<u32>, usize>,
}

/// Why a connection got no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LimitReached {
    /// The limit of all connections is reached.
    Total(usize),
    /// The limit of the peer process is reached.
    Process(usize),
}

/// Counts as one open connection until it is dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    limit: ConnectionLimit,
    process: Option<u32>,
    is_reserved: AtomicBool,
}

impl Counts {
    fn ordinary_max(&self) -> usize {
        self.max - self.reserve()
    }

    fn reserve(&self) -> usize {
        (self.max / RESERVE_SHARE).min(RESERVE_MAX)
    }
}

impl ConnectionLimit {
    /// Creates a limit of `max` connections, and `max_per_process` of one process.
    pub(super) fn new(max: usize, max_per_process: usize) -> Self {
        Self(Arc::new(Shared {
            counts: Mutex::new(Counts {
                max,
                max_per_process,
                ordinary: 0,
                reserved: 0,
                by_process: HashMap::new(),
            }),
            released: Notify::new(),
        }))
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the limits. Open connections stay open.
    pub(super) fn set(&self, max: usize, max_per_process: usize) {
        let mut counts = self.counts();
        (counts.max, counts.max_per_process) = (max, max_per_process);
        drop(counts);
        self.0.released.notify_waiters();
    }

    /// Acquires a permit for a connection of this process.
    pub(super) fn try_acquire(&self, process: Option<u32>) -> Result<ConnectionPermit, LimitReached> {
        self.take(process, false)
    }

    /// The same from the reserve.
    pub(super) fn try_acquire_reserved(
        &self,
        process: Option<u32>,
    ) -> Result<ConnectionPermit, LimitReached> {
        self.take(process, true)
    }

    /// Waits for a permit.
    pub(super) async fn acquire(&self, process: Option<u32>, is_reserved: bool) -> ConnectionPermit {
        loop {
            let mut released = pin!(self.0.released.notified());
            // Registered before the attempt, so that no release in between is missed.
            released.as_mut().enable();
            if let Ok(permit) = self.take(process, is_reserved) {
                return permit;
            }
            released.await;
        }
    }

    fn take(&self, process: Option<u32>, is_reserved: bool) -> Result<ConnectionPermit, LimitReached> {
        let mut counts = self.counts();
        let of_process = counts.by_process.get(&process).copied().unwrap_or_default();
        if of_process >= counts.max_per_process {
            return Err(LimitReached::Process(counts.max_per_process));
        }
        let has_room = if is_reserved {
            counts.reserved < counts.reserve()
        } else {
            counts.ordinary < counts.ordinary_max()
        };
        if !has_room {
            return Err(LimitReached::Total(counts.max));
        }
        if is_reserved {
            counts.reserved += 1;
        } else {
            counts.ordinary += 1;
        }
        *counts.by_process.entry(process).or_default() += 1;
        Ok(ConnectionPermit {
            limit: self.clone(),
            process,
            is_reserved: AtomicBool::new(is_reserved),
        })
    }
}

impl ConnectionPermit {
    /// Returns whether the connection may call `daemon.*` only.
    pub(super) fn is_reserved(&self) -> bool {
        self.is_reserved.load(Ordering::Relaxed)
    }

    /// Moves the permit out of the reserve. If there is no room, returns the limit on connections as the error.
    pub(super) fn leave_reserve(&self) -> Result<(), usize> {
        if !self.is_reserved() {
            return Ok(());
        }
        let mut counts = self.limit.counts();
        if counts.ordinary >= counts.ordinary_max() {
            return Err(counts.max);
        }
        // Done under the lock, so the counts change once.
        if self.is_reserved.swap(false, Ordering::Relaxed) {
            counts.reserved -= 1;
            counts.ordinary += 1;
            drop(counts);
            self.limit.0.released.notify_waiters();
        }
        Ok(())
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut counts = self.limit.counts();
        if self.is_reserved() {
            counts.reserved -= 1;
        } else {
            counts.ordinary -= 1;
        }
        if let Some(open) = counts.by_process.get_mut(&self.process) {
            *open -= 1;
            if *open == 0 {
                counts.by_process.remove(&self.process);
            }
        }
        drop(counts);
        self.limit.0.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acquired(limit: &ConnectionLimit, processes: impl IntoIterator<Item = u32>) -> Vec<ConnectionPermit> {
        let one = |process| limit.try_acquire(Some(process)).expect("there is room");
        processes.into_iter().map(one).collect()
    }

    #[test]
    fn process_limit_leaves_room_for_other_processes() {
        let limit = ConnectionLimit::new(4, 2);
        let mut permits = acquired(&limit, [1, 1]);
        assert_eq!(
            limit.try_acquire(Some(1)).map(drop),
            Err(LimitReached::Process(2))
        );
        permits.extend(acquired(&limit, [2, 3]));
        assert_eq!(limit.try_acquire(Some(4)).map(drop), Err(LimitReached::Total(4)));
        permits.clear();
        acquired(&limit, [1, 1]);
        assert!(limit.counts().by_process.is_empty());
    }

    #[test]
    fn permit_leaves_the_reserve_when_there_is_room() {
        let limit = ConnectionLimit::new(128, 128);
        let mut permits = acquired(&limit, [1; 126]);
        assert_eq!(
            limit.try_acquire(Some(2)).map(drop),
            Err(LimitReached::Total(128))
        );
        let reserved = limit.try_acquire_reserved(Some(2)).expect("it is free");
        let other = limit.try_acquire_reserved(Some(2)).expect("there are two");
        assert_eq!(
            limit.try_acquire_reserved(Some(2)).map(drop),
            Err(LimitReached::Total(128))
        );
        assert_eq!(reserved.leave_reserve(), Err(128));
        permits.pop();
        assert_eq!(reserved.leave_reserve(), Ok(()));
        assert!(!reserved.is_reserved());
        assert_eq!(other.leave_reserve(), Err(128));
        drop((reserved, other, permits));
        let counts = limit.counts();
        assert_eq!((counts.ordinary, counts.reserved), (0, 0));
    }

    #[test]
    fn open_connections_survive_a_lower_limit() {
        let limit = ConnectionLimit::new(3, 3);
        let mut permits = acquired(&limit, [1, 1, 1]);
        limit.set(1, 3);
        permits.truncate(1);
        assert!(limit.try_acquire(Some(1)).is_err());
        limit.set(2, 3);
        permits.extend(acquired(&limit, [1]));
        assert!(limit.try_acquire(Some(1)).is_err());
        permits.clear();
        limit.set(1, 3);
        permits.extend(acquired(&limit, [1]));
        assert!(limit.try_acquire(Some(1)).is_err());
    }
}

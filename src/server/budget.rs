//! Budget of the bytes that connections make the daemon hold: requests being read or handled, input that a child has not read yet, and
//! answers not written yet.
//!
//! A connection may always hold [`SHARE`] bytes. Bytes beyond that count against the limit of all connections together, so a modest client
//! is served even if others have used up that limit.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Bytes that a connection may always hold.
pub(super) const SHARE: usize = 96 << 10;

/// The limit of all connections together. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct TotalBudget(Arc<Total>);

#[derive(Debug)]
struct Total {
    max: usize,
    used: Mutex<usize>,
    /// Notified when bytes of any connection are released.
    released: Notify,
}

/// The budget of one connection.
#[derive(Debug)]
pub(super) struct Budget {
    total: TotalBudget,
    max: usize,
    used: Mutex<usize>,
}

/// Bytes charged to a budget until this is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

/// Why bytes could not be charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Shortage {
    /// The connection's limit, in bytes.
    #[error(
        "requests in flight and unread answers of this connection would exceed {0} bytes (connection_bytes_max)"
    )]
    Connection(usize),
    /// The limit of all connections, in bytes.
    #[error("requests in flight and unread answers of all connections would exceed {0} bytes (bytes_max)")]
    Total(usize),
}

impl TotalBudget {
    /// Creates a budget of `max` bytes, in addition to the shares.
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(Total {
            max,
            used: Mutex::new(0),
            released: Notify::new(),
        }))
    }

    /// Creates the budget of a connection that may hold `max` bytes, or [`SHARE`] if that is more.
    pub(super) fn connection(&self, max: usize) -> Arc<Budget> {
        Arc::new(Budget {
            total: self.clone(),
            max: max.max(SHARE),
            used: Mutex::new(0),
        })
    }

    fn used(&self) -> MutexGuard<'_, usize> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Budget {
    fn used(&self) -> MutexGuard<'_, usize> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Charges `bytes` if they are available.
    pub(super) fn try_take(self: &Arc<Self>, bytes: usize) -> Result<Permit, Shortage> {
        self.charge(bytes)?;
        Ok(Permit {
            budget: self.clone(),
            bytes,
        })
    }

    /// Charges between `least` and `most` bytes, as many as are available.
    pub(super) fn try_take_some(self: &Arc<Self>, least: usize, most: usize) -> Option<Permit> {
        let mut wanted = most;
        loop {
            match self.try_take(wanted.max(least)) {
                Ok(permit) => return Some(permit),
                Err(_) if wanted <= least => return None,
                Err(_) => wanted /= 2,
            }
        }
    }

    /// The same, but waits until `least` are available.
    pub(super) async fn take_some(self: &Arc<Self>, least: usize, most: usize) -> Permit {
        let least = least.min(self.max);
        self.wait_for(|| self.try_take_some(least, most)).await
    }

    /// Waits until `attempt` succeeds. It is repeated whenever bytes are released.
    pub(super) async fn wait_for<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> T {
        loop {
            let mut released = pin!(self.total.0.released.notified());
            // Registered before the attempt, so that no release in between is missed.
            released.as_mut().enable();
            if let Some(done) = attempt() {
                return done;
            }
            released.await;
        }
    }

    fn charge(&self, bytes: usize) -> Result<(), Shortage> {
        let mut used = self.used();
        let after = used.saturating_add(bytes);
        if after > self.max {
            return Err(Shortage::Connection(self.max));
        }
        let of_total = after.saturating_sub(SHARE) - used.saturating_sub(SHARE);
        if of_total > 0 {
            let mut total = self.total.used();
            if *total + of_total > self.total.0.max {
                return Err(Shortage::Total(self.total.0.max));
            }
            *total += of_total;
        }
        *used = after;
        Ok(())
    }

    fn release(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let mut used = self.used();
        let after = *used - bytes;
        let of_total = used.saturating_sub(SHARE) - after.saturating_sub(SHARE);
        if of_total > 0 {
            *self.total.used() -= of_total;
        }
        *used = after;
        drop(used);
        self.total.0.released.notify_waiters();
    }
}

impl Permit {
    /// Returns the number of charged bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Charges more, up to `bytes` in all.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), Shortage> {
        if bytes > self.bytes {
            self.budget.charge(bytes - self.bytes)?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Releases what exceeds `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        if bytes < self.bytes {
            let surplus = std::mem::replace(&mut self.bytes, bytes) - bytes;
            self.budget.release(surplus);
        }
    }

    /// Splits off a permit for `bytes`. Returns `None` if this permit has fewer.
    pub(super) fn split(&mut self, bytes: usize) -> Option<Self> {
        self.bytes = self.bytes.checked_sub(bytes)?;
        Some(Self {
            budget: self.budget.clone(),
            bytes,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_keeps_its_share_when_the_total_is_used_up() {
        let total = TotalBudget::new(100 << 10);
        let (greedy, modest) = (total.connection(1 << 20), total.connection(1 << 20));
        let held = greedy.try_take(SHARE + (100 << 10)).expect("it is free");
        assert_eq!(
            modest.try_take(SHARE + 1).map(drop),
            Err(Shortage::Total(100 << 10))
        );
        let share = modest.try_take(SHARE).expect("it is its own");
        drop(held);
        assert!(modest.try_take(100 << 10).is_ok());
        drop(share);
        assert_eq!(*total.used(), 0);
    }

    #[test]
    fn connection_cannot_exceed_its_limit() {
        let total = TotalBudget::new(1 << 20);
        let budget = total.connection(132 << 10);
        let mut permit = budget.try_take(60 << 10).expect("it is free");
        assert_eq!(permit.grow_to(133 << 10), Err(Shortage::Connection(132 << 10)));
        assert_eq!(permit.bytes(), 60 << 10);
        permit.grow_to(132 << 10).expect("it fits");
        let part = permit.split(122 << 10).expect("it has as many");
        assert!(permit.split(11 << 10).is_none());
        drop(permit);
        assert_eq!(*total.used(), 26 << 10);
        let mut rest = budget.try_take_some(1 << 10, 1 << 20).expect("some is free");
        assert!(rest.bytes() <= 10 << 10);
        rest.shrink_to(0);
        drop(part);
        assert_eq!(*total.used(), 0);
        drop(rest);
        assert_eq!(*budget.used(), 0);
    }

    #[tokio::test]
    async fn released_bytes_wake_waiters() {
        let total = TotalBudget::new(0);
        let budget = total.connection(1 << 20);
        let held = budget.try_take(SHARE).expect("it is free");
        let waiting = budget.take_some(SHARE / 2, SHARE);
        let mut waiting = pin!(waiting);
        assert!(
            futures_util::FutureExt::now_or_never(&mut waiting).is_none(),
            "nothing is free"
        );
        drop(held);
        assert_eq!(waiting.await.bytes(), SHARE);
    }
}

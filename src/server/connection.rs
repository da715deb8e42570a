//! The peer of a connection, and whether the connection is in use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::budget::{Budget, Permit, Shortage};
use super::connection_limit::ConnectionPermit;
use crate::clock::Moment;
use crate::job::ClientId;
use orbd_proto::errors::ErrorKind;
use orbd_proto::types::ErrorObject;

/// Up to this length bytes are held without being charged.
const HELD_SMALL: usize = 4 << 10;

/// Identifies a connection within one instance of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// An accepted connection. Handlers find it in their extensions.
#[derive(Debug)]
pub struct Connection {
    id: ConnectionId,
    pid: Option<u32>,
    uid: u32,
    /// Owned by the task that serves the connection.
    permit: Weak<ConnectionPermit>,
    budget: Arc<Budget>,
    /// Whether a complete request has arrived.
    has_sent_request: AtomicBool,
    gone: CancellationToken,
    /// Set by `daemon.hello`. The lock is never held across an await.
    name: Mutex<Arc<str>>,
    /// The lock is never held across an await.
    usage: Mutex<Usage>,
}

/// When a connection accepts no more requests.
#[derive(Clone)]
pub(super) struct ConnectionEnd {
    /// The daemon is stopping and all jobs have ended.
    pub(super) stop: CancellationToken,
    /// The daemon is about to be upgraded.
    pub(super) upgrading: CancellationToken,
}

/// Whether a connection is in use.
#[derive(Debug)]
struct Usage {
    /// Number of [`InUse`] guards.
    uses: usize,
    /// Time since which `uses` is 0; meaningless otherwise.
    idle_since: Instant,
    /// The connection is being closed: input that arrives now is not handled.
    closing: bool,
}

/// Guard for a connection in use: input has arrived that is not completely answered yet.
#[derive(Debug)]
pub struct InUse(Arc<Connection>);

impl Drop for InUse {
    fn drop(&mut self) {
        let mut usage = self.0.usage();
        usage.uses -= 1;
        if usage.uses == 0 {
            usage.idle_since = Moment::now().instant;
        }
    }
}

impl Connection {
    /// Creates a connection from the peer that the kernel reported.
    pub(super) fn new(
        id: ConnectionId,
        pid: Option<u32>,
        uid: u32,
        permit: Weak<ConnectionPermit>,
        budget: Arc<Budget>,
    ) -> Self {
        Self {
            id,
            pid,
            uid,
            permit,
            budget,
            has_sent_request: AtomicBool::new(false),
            gone: CancellationToken::new(),
            name: Mutex::new("unnamed".into()),
            usage: Mutex::new(Usage {
                uses: 0,
                idle_since: Moment::now().instant,
                closing: false,
            }),
        }
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the connection as in use. Returns `None` if it is being closed; input that has arrived must then not be handled.
    pub fn begin_use(self: &Arc<Self>) -> Option<InUse> {
        let mut usage = self.usage();
        if usage.closing {
            return None;
        }
        usage.uses += 1;
        Some(InUse(self.clone()))
    }

    /// Returns since when the connection has been idle; `None` while it is in use or being closed.
    pub fn idle_since(&self) -> Option<Instant> {
        let usage = self.usage();
        (usage.uses == 0 && !usage.closing).then_some(usage.idle_since)
    }

    /// Closes the connection if it has been idle for `at_least`. Returns whether it did. Input that arrives afterwards is not handled at
    /// all, so no request is handled in part.
    pub fn close_if_idle(&self, now: Instant, at_least: Duration) -> bool {
        let mut usage = self.usage();
        let is_idle = usage.uses == 0 && !usage.closing;
        if !is_idle || now.saturating_duration_since(usage.idle_since) < at_least {
            return false;
        }
        usage.closing = true;
        drop(usage);
        self.gone.cancel();
        true
    }

    /// Returns the budget of the connection.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Charges bytes that outlive their request, until they are dropped. Small ones are not charged, because the queue limits their number.
    pub(super) fn hold(&self, bytes: Bytes) -> Result<Bytes, ErrorObject> {
        if bytes.len() <= HELD_SMALL {
            return Ok(bytes);
        }
        let permit = self.budget.try_take(bytes.len()).map_err(overloaded)?;
        Ok(Bytes::from_owner(BufferedBytes {
            bytes,
            _permit: permit,
        }))
    }

    /// Records that a complete request has arrived.
    pub(super) fn note_request(&self) {
        self.has_sent_request.store(true, Ordering::Relaxed);
    }

    /// Returns whether a complete request has ever arrived.
    pub(super) fn has_sent_request(&self) -> bool {
        self.has_sent_request.load(Ordering::Relaxed)
    }

    /// Returns whether the connection may call `daemon.*` only.
    pub(super) fn is_reserved(&self) -> bool {
        self.permit.upgrade().is_some_and(|permit| permit.is_reserved())
    }

    /// Refuses methods other than `daemon.*` while the connection's permit is from the reserve.
    pub(super) fn admit(&self, method: &str) -> Result<(), ErrorObject> {
        let Some(permit) = self.permit.upgrade() else {
            return Ok(());
        };
        if method.starts_with("daemon.") {
            return Ok(());
        }
        permit.leave_reserve().map_err(|max| {
            too_many_connections(format!(
                "{max} connections are open (connections_max), and this one may call daemon.* only"
            ))
        })
    }

    /// Returns the id of the connection.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Returns the peer's process id, if the system reports it.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Returns the peer's user id.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Returns the token that is cancelled when the connection ends or is closed for being idle. Handlers may outlive it.
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Returns the name given with `daemon.hello`, else `unnamed`.
    pub fn name(&self) -> Arc<str> {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores the name given with `daemon.hello`.
    pub fn set_name(&self, name: &str) {
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = name.into();
    }

    /// Returns the client for fair queueing: a process counts once, however many connections it has.
    pub fn client(&self) -> ClientId {
        // The high bit distinguishes connection ids from process ids.
        ClientId(self.pid.map_or(self.id.0 | 1 << 63, u64::from))
    }
}

/// Bytes and their permit.
struct BufferedBytes {
    bytes: Bytes,
    _permit: Permit,
}

impl AsRef<[u8]> for BufferedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Returns the error for a connection beyond the limit.
pub(super) fn too_many_connections(message: String) -> ErrorObject {
    let mut data = ErrorKind::TooManyConnections.data();
    data.retry_after_ms = Some(1000);
    ErrorKind::TooManyConnections.with(message, data)
}

/// Returns the error for bytes beyond the budget.
pub(super) fn overloaded(shortage: Shortage) -> ErrorObject {
    let mut data = ErrorKind::Overloaded.data();
    data.retry_after_ms = Some(1000);
    ErrorKind::Overloaded.with(format!("{shortage}; try again later"), data)
}

#[cfg(test)]
mod tests {
    use super::super::budget::TotalBudget;
    use super::*;

    #[test]
    fn connection_is_closed_only_when_idle_and_not_used_afterwards() {
        let connection = Arc::new(Connection::new(
            ConnectionId(1),
            None,
            0,
            Weak::new(),
            TotalBudget::new(0).connection(0),
        ));
        let later = |seconds| Moment::now().instant + Duration::from_secs(seconds);
        let minute = Duration::from_secs(60);

        let (first, second) = (connection.begin_use(), connection.begin_use());
        assert!(first.is_some() && second.is_some());
        drop(first);
        assert_eq!(connection.idle_since(), None);
        assert!(!connection.close_if_idle(later(120), minute), "one use is left");
        drop(second);
        assert!(connection.idle_since().is_some());
        assert!(
            !connection.close_if_idle(later(30), minute),
            "not for long enough"
        );
        assert!(connection.close_if_idle(later(120), minute));
        assert!(connection.gone().is_cancelled());
        assert!(connection.begin_use().is_none());
        assert!(!connection.close_if_idle(later(120), minute), "it is closed once");
    }
}

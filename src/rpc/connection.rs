//! Who is at the other end of a connection, and whether it is in use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::budget::{Budget, Permit, Shortage};
use super::connection_limit::ConnectionPermit;
use super::errors::ErrorKind;
use super::types::ErrorObject;
use crate::clock::Moment;
use crate::job::ClientId;

/// Fewer bytes than this are held without room for them.
const HELD_SMALL: usize = 4 << 10;

/// Identifies a connection for the life of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// One accepted connection. Handlers find it in their extensions.
#[derive(Debug)]
pub struct Connection {
    id: ConnectionId,
    pid: Option<u32>,
    uid: u32,
    /// Held by the task that serves the connection.
    permit: Weak<ConnectionPermit>,
    budget: Arc<Budget>,
    /// A whole request came on it.
    has_sent_request: AtomicBool,
    gone: CancellationToken,
    /// Set by `daemon.hello`. A plain lock, held for a clone and never across an await.
    name: Mutex<Arc<str>>,
    /// A plain lock, too.
    usage: Mutex<Usage>,
}

/// When a connection takes no more requests.
#[derive(Clone)]
pub(super) struct ConnectionEnd {
    /// The daemon stops, and every job has ended.
    pub(super) stop: CancellationToken,
    /// The next instance is about to take over.
    pub(super) upgrading: CancellationToken,
}

/// Whether a connection is in use.
#[derive(Debug)]
struct Usage {
    /// How many [`InUse`] there are.
    uses: usize,
    /// Since when there are none, while there are none.
    idle_since: Instant,
    /// It is being closed: nothing that arrives now is handled any more.
    closing: bool,
}

/// For as long as it lives, its connection is in use: something that arrived on it is not answered to its end.
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
    /// Describes a connection whose peer the kernel named.
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

    /// Takes it into use; `None` when it is being closed, and what has arrived must not be handled.
    pub fn begin_use(self: &Arc<Self>) -> Option<InUse> {
        let mut usage = self.usage();
        if usage.closing {
            return None;
        }
        usage.uses += 1;
        Some(InUse(self.clone()))
    }

    /// Returns since when nobody uses it; `None` while somebody does.
    pub fn idle_since(&self) -> Option<Instant> {
        let usage = self.usage();
        (usage.uses == 0 && !usage.closing).then_some(usage.idle_since)
    }

    /// Closes it if nobody has used it for so long, and says whether it did. Whoever sends now sends too late: a request is
    /// handled or not, never in part.
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

    /// Returns what it may hold.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Takes room for bytes that outlast their request, until they are dropped. A few take none: the queue bounds them.
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

    /// Notes that a whole request came.
    pub(super) fn note_request(&self) {
        self.has_sent_request.store(true, Ordering::Relaxed);
    }

    /// Says whether a whole request ever came.
    pub(super) fn has_sent_request(&self) -> bool {
        self.has_sent_request.load(Ordering::Relaxed)
    }

    /// Says whether it may call `daemon.*` only.
    pub(super) fn is_reserved(&self) -> bool {
        self.permit.upgrade().is_some_and(|permit| permit.is_reserved())
    }

    /// Refuses everything but `daemon.*` on a connection that has a place in the reserve alone.
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

    /// Returns its id.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Returns the peer's process, where the system tells.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Returns the peer's user.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Returns what is cancelled when it is gone or closed for being idle. Handlers may outlive it.
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Returns the name given by `daemon.hello`.
    pub fn name(&self) -> Arc<str> {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers the name that the client gives itself.
    pub fn set_name(&self, name: &str) {
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = name.into();
    }

    /// Returns the party that turns are shared out between: a process counts once, however many connections it has.
    pub fn client(&self) -> ClientId {
        // Connection ids are told from process ids by the high bit.
        ClientId(self.pid.map_or(self.id.0 | 1 << 63, u64::from))
    }
}

/// Bytes, and the room that they take.
struct BufferedBytes {
    bytes: Bytes,
    _permit: Permit,
}

impl AsRef<[u8]> for BufferedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Makes the error for a connection that is one too many.
pub(super) fn too_many_connections(message: String) -> ErrorObject {
    let mut data = ErrorKind::TooManyConnections.data();
    data.retry_after_ms = Some(1000);
    ErrorKind::TooManyConnections.with(message, data)
}

/// Makes the error for bytes that cannot be held.
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
    fn a_connection_is_closed_only_when_nobody_uses_it_and_is_not_used_after_that() {
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

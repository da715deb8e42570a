//! Who is at the other end of a connection, and whether it is in use.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::job::ClientId;

/// Identifies a connection for the life of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// One accepted connection. Handlers find it in their extensions.
#[derive(Debug)]
pub struct Connection {
    id: ConnectionId,
    pid: Option<u32>,
    uid: u32,
    gone: CancellationToken,
    /// Set by `daemon.hello`. A plain lock, held for a clone and never across an await.
    name: Mutex<Arc<str>>,
    /// A plain lock, too.
    usage: Mutex<Usage>,
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
    pub fn new(id: ConnectionId, pid: Option<u32>, uid: u32) -> Self {
        Self {
            id,
            pid,
            uid,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_closed_only_when_nobody_uses_it_and_is_not_used_after_that() {
        let connection = Arc::new(Connection::new(ConnectionId(1), None, 0));
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

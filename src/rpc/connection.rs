//! Who is at the other end of a connection.

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

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
        }
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

    /// Returns what is cancelled when it is gone. Handlers may outlive it.
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

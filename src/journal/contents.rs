//! What the journal records, and what it returns after a crash.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::job::JobId;
use crate::operation::{Access, Class, Lane};
use orbd_host::machine::MachineName;

pub(super) const MAGIC: &[u8; 16] = b"orbd-journal 1\n\0";

pub(super) const HEADER: usize = MAGIC.len() + 8;

/// Maximum size of an entry's body.
pub(super) const ENTRY_MAX: usize = 1 << 20;

/// An event that must be known after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A detached change was accepted. Append it durably, then acknowledge it.
    Accepted(AcceptedJob),
    /// A child is about to be spawned. Append it before the spawn; durably if the job was `Accepted`.
    Starting(Starting),
    /// The child was spawned. Append it at once: a later instance finds the child by it.
    Started {
        /// The job that the child belongs to.
        job: JobId,
        /// The child, which keeps its lanes while it lives.
        process: Process,
        /// For a lease: the client's process; when it exits, the child is ended.
        owner: Option<Process>,
    },
    /// The job has ended; its earlier entries are no longer needed.
    Ended {
        /// The job, which needs no recovery any more.
        job: JobId,
    },
}

impl Entry {
    pub(super) fn job(&self) -> JobId {
        match self {
            Self::Accepted(accepted) => accepted.job,
            Self::Starting(starting) => starting.job,
            Self::Started { job, .. } | Self::Ended { job } => *job,
        }
    }
}

/// An accepted detached change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedJob {
    /// Id that the client was given; it stays the same after a restart.
    pub job: JobId,
    /// The operation, in the caller's own versioned encoding.
    pub operation: Vec<u8>,
    /// Name of the client that submitted the job.
    pub client: String,
    /// Time of acceptance, Unix time in milliseconds.
    pub accepted_ms: u64,
    /// Limit on the time in the queue; `None` for the configured default.
    pub queue_timeout: Option<Duration>,
    /// Limit on the run time; `None` for no limit.
    pub run_timeout: Option<Duration>,
}

/// A job about to spawn its child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Starting {
    /// The job that the child belongs to.
    pub job: JobId,
    /// Marker in the child's environment, by which it is found if orbd dies before [`Entry::Started`] is written.
    pub marker: String,
    /// Lanes that the job holds.
    pub lanes: Vec<(Lane, Access)>,
    /// Verb of the operation.
    pub verb: String,
    /// Main machine of the operation, if it has one.
    pub machine: Option<MachineName>,
    /// Class of the operation.
    pub class: Class,
    /// Whether the job continues when its client disconnects.
    pub detached: bool,
}

/// Identifies one process, even after its pid is reused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id, which the system reuses after the process has ended.
    pub pid: u32,
    /// Start time, in a platform-specific encoding; compared for equality only.
    pub start_time: Vec<u8>,
}

/// A job whose child may still be alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// The job's state before the spawn.
    pub starting: Starting,
    /// The child; `None` if the previous instance died before it had journalled the child, which may or may not have been
    /// spawned.
    pub process: Option<Process>,
    /// For a lease whose child is known: the client's process that acquired it.
    pub owner: Option<Process>,
    /// The accepted job, if it is a detached change.
    pub accepted: Option<AcceptedJob>,
}

/// What the journal of the previous instance contains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// The next job id, greater than all ids used so far.
    pub next_id: u64,
    /// Accepted jobs that never started, ordered by id. The dispatcher queues them again.
    pub waiting: Vec<AcceptedJob>,
    /// Accepted jobs that may have started, because the file was damaged. They end with outcome unknown.
    pub uncertain: Vec<AcceptedJob>,
    /// Jobs whose child may be alive, ordered by id. Each stays in the journal until [`Entry::Ended`].
    pub in_flight: Vec<InFlight>,
    /// Whether the previous instance stopped in order with a complete journal. Otherwise children may be running that the journal
    /// does not name.
    pub clean: bool,
    /// Size in bytes of an incomplete last entry, which was removed.
    pub torn_bytes: u64,
    /// Where a damaged or foreign file was moved.
    pub set_aside: Option<PathBuf>,
}

impl Recovered {
    /// Returns whether every child that may be running is named here.
    pub fn names_every_child(&self) -> bool {
        self.clean && self.in_flight.iter().all(|found| found.process.is_some())
    }
}

/// An error of the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has locked the journal.
    #[error("{path} is in use by another orbd")]
    Locked {
        /// Path of the journal.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {doing} the journal {path}")]
    Io {
        /// The failed operation: a verb phrase that completes "cannot ... the journal".
        doing: &'static str,
        /// Path of the journal.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The entry exceeds the size limit.
    #[error("journal entry of {bytes} bytes exceeds the limit of {ENTRY_MAX}")]
    TooLarge {
        /// Length of the entry's body.
        bytes: usize,
    },
    /// The journal has intact entries that this version does not know: a newer version has written them.
    #[error("the journal {path} has entries that this orbd {version} cannot read", version = env!("CARGO_PKG_VERSION"))]
    Newer {
        /// Path of the journal.
        path: PathBuf,
    },
    /// Earlier entries could not be written and still cannot be.
    #[error("cannot write the journal {path}: {cause}")]
    Unwritable {
        /// Path of the journal.
        path: PathBuf,
        /// Error of the last attempt.
        cause: Arc<str>,
    },
    /// Too many callers are waiting for an fsync.
    #[error("too many entries are waiting for the disk")]
    Busy,
    /// The journal's thread has exited.
    #[error("the journal is closed")]
    Closed,
}

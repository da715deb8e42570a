//! What the dispatcher replies: snapshots, filters and the reasons for a refusal.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::cache::{CacheKey, Generation};
use crate::clock::Moment;
use crate::events::{EventLog, SequencedEvent};
use crate::job::{HealthProblem, JobId, Outcome};
use crate::scheduler::Refusal;
use orbd_host::machine::{MachineName, OrbstackStatus};

use super::answer::ObservedAnswer;
use super::submission::{JobView, WaitingFor};

/// Why a submission was not accepted. It had no effect.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Rejection {
    /// The scheduler refused the job: the queue is full or draining.
    #[error(transparent)]
    Refused(Refusal),
    /// Commands, environments and inputs of unfinished jobs would exceed the memory limit.
    #[error("the commands and inputs of waiting and running jobs would exceed {limit} bytes")]
    OperandsFull {
        /// The limit in bytes.
        limit: u64,
        /// How long to wait before trying again.
        retry_after: Duration,
    },
    /// `orbctl` is unhealthy, and there is no cached answer to serve instead.
    #[error("orbctl is unhealthy and was not called: {}", .0.problem)]
    Unhealthy(OutageView),
    /// The journal cannot be written, so the job would not survive a restart as the client asked.
    #[error("cannot write the journal, so a detached change would not survive a restart: {0}")]
    Journal(Arc<str>),
    /// The client disconnected before its attached job was accepted.
    #[error("the client has disconnected")]
    ClientGone,
    /// The daemon is stopping.
    #[error("orbd is stopping")]
    Stopping,
    /// The next instance is about to take over and will accept the request.
    #[error("orbd is being upgraded; the request was not started, send it again")]
    Upgrading,
}

/// Snapshot of an outage of `orbctl`.
#[derive(Debug, Clone)]
pub struct OutageView {
    /// When the outage was detected.
    pub since: Moment,
    /// The problem that was detected last.
    pub problem: HealthProblem,
    /// How long to wait before trying again: until after the next health probe.
    pub retry_after: Duration,
}

/// Why a read returned no answer.
#[derive(Debug, Clone)]
pub enum ReadError {
    /// Not accepted.
    Rejected(Rejection),
    /// Accepted, and ended without an answer.
    Ended {
        /// Id of the read's job.
        id: JobId,
        /// Outcome of the job.
        outcome: Outcome,
        /// What it was waiting for, if it never started.
        holder: Option<WaitingFor>,
    },
}

/// Result of a request to cancel a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// The job was waiting and will never start.
    NeverStarted,
    /// The job is running and is being stopped.
    Stopping,
    /// The job had already ended.
    AlreadyEnded,
    /// The id is unknown, or the job has been dropped from the history.
    NoSuchJob,
}

/// What to do with a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueVerb {
    /// Start no more of its jobs.
    Pause,
    /// End its pause or drain.
    Resume,
    /// Refuse new jobs. The reply is sent once all accepted jobs have ended.
    Drain,
}

/// Snapshot of the queue.
#[derive(Debug, Clone, Default)]
pub struct QueueView {
    /// Number of waiting jobs.
    pub waiting: usize,
    /// Number of running jobs.
    pub running: usize,
    /// Most jobs that may wait.
    pub queue_max: usize,
    /// Whether the whole queue is paused.
    pub paused: bool,
    /// Machines whose lane is paused.
    pub paused_machines: Vec<MachineName>,
    /// Whether the whole queue is draining, or the daemon is stopping.
    pub draining: bool,
    /// Machines whose lane is draining.
    pub draining_machines: Vec<MachineName>,
    /// Current outage of `orbctl`; `None` while it is healthy.
    pub outage: Option<OutageView>,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only jobs in this state.
    pub state: Option<StateFilter>,
    /// Only jobs of this machine.
    pub machine: Option<MachineName>,
    /// Only jobs with this verb.
    pub verb: Option<String>,
    /// Most jobs to return; the newest are kept.
    pub limit: usize,
}

/// State of a job, without details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateFilter {
    /// Accepted, not started.
    Waiting,
    /// Started.
    Running,
    /// Ended.
    Ended,
}

/// One entry of the cache.
#[derive(Debug, Clone)]
pub struct KeptView {
    /// Key of the entry.
    pub cache_key: CacheKey,
    /// Generation in which its read began.
    pub generation: Generation,
    /// Time since its read began.
    pub age: Duration,
    /// Whether it may still be served; `false` once it was invalidated.
    pub valid: bool,
}

/// Snapshot of the cache.
#[derive(Debug, Clone)]
pub struct CacheView {
    /// Current generation.
    pub generation: Generation,
    /// All entries.
    pub entries: Vec<KeptView>,
}

/// State that the fast path reads without a request to the dispatcher.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// Cached machine list; `None` while it is not valid.
    pub machines: Option<ObservedAnswer>,
    /// Greatest age of a cached answer that may be served.
    pub cache_max_age: Duration,
}

/// Subscription to events. While a subscriber that wants polls exists, the dispatcher keeps polling OrbStack.
pub struct Subscriber {
    /// The most recent events. The channel closes when the dispatcher ends.
    pub events: watch::Receiver<EventLog<Arc<SequencedEvent>>>,
    /// Held if the subscriber wants polls; the dispatcher counts the references.
    pub(super) _wanted: Option<Arc<()>>,
}

/// State of the daemon at one point in the event sequence.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Number of the last event that is included; 0 before the first.
    pub sequence: u64,
    /// When the snapshot was taken.
    pub at: Moment,
    /// The machines as last observed; `None` until the first observation.
    pub machines: Option<ObservedAnswer>,
    /// Whether the machines may have changed since they were observed, and have not been listed again yet.
    pub machines_stale: bool,
    /// OrbStack's status as last observed; `None` until the first observation.
    pub status: Option<OrbstackStatus>,
    /// Waiting and running jobs, oldest first, without reads.
    pub jobs: Vec<JobView>,
    /// Whether newer jobs were left out because there are too many.
    pub more_jobs: bool,
    /// Current outage of `orbctl`; `None` while it is healthy.
    pub outage: Option<OutageView>,
}

/// Why the next instance of the daemon cannot take over yet: state that would be lost.
#[derive(Debug, Clone)]
pub enum BusyReason {
    /// This job runs, or a client waits for it or reads its output.
    Job(WaitingFor),
    /// A detached job has just ended, and its client may be about to fetch its output.
    Recent,
    /// A pause is in force. Pauses are not persisted.
    Paused,
    /// A drain is in force. Drains are not persisted.
    Draining,
}

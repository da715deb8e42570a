//! Words for jobs: one accepted operation with its id, client, state and outcome.

use std::fmt;
use std::sync::Arc;

use crate::machine::MachineName;

/// Identifies a job for as long as anybody remembers it. Numbers grow and are never reused, also over restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Identifies the party that turns are shared out between: a process, however many connections it has, or one connection where the
/// system does not tell whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// How a child process stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It ended by itself with this exit code.
    Exited(i32),
    /// A signal that we did not send ended it.
    Signalled(i32),
    /// Its run limit passed and we ended it.
    TimedOut,
    /// We ended it on request: cancelled, client gone, shutdown, preempted.
    Stopped,
}

/// What the end of an invocation says about `orbctl` itself, whatever it says about the operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthSignal {
    /// OrbStack's service answered.
    Healthy,
    /// It may be sick, or only one machine is.
    Suspect(HealthProblem),
    /// It is sick: the next call will fail or hang in the same way, whatever it asks.
    Unhealthy(HealthProblem),
    /// Nothing.
    Nothing,
}

/// Why `orbctl` is taken for sick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthProblem {
    /// A read, which takes no time when all is well, gave no answer within its limit.
    Blocked {
        /// The read.
        verb: &'static str,
    },
    /// What OrbStack's service, or `orbctl` in its place, said: one line, bounded, without control characters.
    ParsedEntry(Arc<str>),
}

impl fmt::Display for HealthProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocked { verb } => {
                let command = verb.replace('_', " ");
                write!(f, "orbctl {command} gave no answer within its time limit")
            }
            Self::ParsedEntry(line) => write!(f, "orbctl said: {line}"),
        }
    }
}

/// Where a job was when it was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It never started; nothing happened.
    Queued,
    /// It had started.
    Running,
}

/// What an ended job means to whoever asked for it.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It was done.
    Succeeded(Success),
    /// It ran, or was looked at, and could not be done.
    Failed(Failure),
    /// It was cancelled: by request, by its client going away, by a forced change or by shutdown.
    Cancelled(Phase),
    /// A limit passed.
    Expired(Phase),
    /// The daemon that ran it died and its child is gone; how it ended was not seen. Never said of a change.
    Interrupted,
    /// A change was cut short and may have taken effect.
    Unknown(ReconcileReport),
}

/// What a job that was done produced.
#[derive(Debug, Clone, PartialEq)]
pub enum Success {
    /// A read: its answer is in the cache or the spool.
    Read,
    /// A command in a machine ended with this code; a code other than zero is the command's own answer, not our failure.
    Exec {
        /// The guest command's exit code.
        exit_code: i32,
    },
    /// A change.
    Change {
        /// Whether it was needed: false when what it asked for already held.
        changed: bool,
    },
    /// A change was cut short, or `orbctl` reported that the service does not work, and then it was observed to be done.
    Observed {
        /// Whether anything had to be done; `None` where nobody looked before.
        changed: Option<bool>,
        /// What cut it short, and what was observed: a part of a sentence for a person.
        warning: Arc<str>,
    },
    /// A client's own process did it in a lease and said that it went well.
    Lease {
        /// Whether anything had to be done, where success alone tells: a machine that had to be running may have been before.
        changed: Option<bool>,
    },
}

/// What the inventory said after a change was cut short.
#[derive(Debug, Clone, PartialEq)]
pub struct ReconcileReport {
    /// Whether looks came to rest: what is there is what will be there.
    pub stable: bool,
    /// Whether what was asked for now holds, where the looks could tell.
    pub satisfied: Option<bool>,
    /// State of the machine at the last look; `None` when it was not there or no look succeeded.
    pub machine_state: Option<Arc<str>>,
}

impl ReconcileReport {
    /// Nothing could be seen.
    pub const NOTHING: Self = Self {
        stable: false,
        satisfied: None,
        machine_state: None,
    };
}

/// The closed list of failures that a caller can meet once a job was accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// `orbctl` said that there is no such machine.
    #[error("machine {0} does not exist")]
    MachineNotFound(Arc<str>),
    /// `orbctl` said that the name is taken.
    #[error("machine {0} already exists")]
    MachineExists(Arc<str>),
    /// The machine is in a state in which this cannot be done.
    #[error("machine {machine} is {state}")]
    MachineWrongState {
        /// Its name.
        machine: MachineName,
        /// Its state.
        state: Arc<str>,
    },
    /// The machine has no logs of this kind.
    #[error("machine {machine} has no {kind} logs")]
    NoLogs {
        /// Its name.
        machine: MachineName,
        /// The kind, as in `console`.
        kind: Arc<str>,
    },
    /// OrbStack's configuration has no such key.
    #[error("key: OrbStack's configuration has no key '{0}'")]
    ConfigKeyNotFound(Arc<str>),
    /// `orbctl` was not found, could not be executed, or is a version that we do not support.
    #[error("orbctl is not available: {0}")]
    OrbctlUnavailable(Arc<str>),
    /// `orbctl` refused or failed.
    #[error("orbctl failed with exit code {exit_code}: {stderr_tail}")]
    OrbctlFailed {
        /// Its exit code.
        exit_code: i32,
        /// The end of what it wrote to stderr, bounded.
        stderr_tail: Arc<str>,
    },
    /// A signal that orbd did not send ended `orbctl`.
    #[error("orbctl was killed by signal {signal}")]
    OrbctlKilled {
        /// The signal's number.
        signal: i32,
        /// The end of what it wrote to stderr, bounded.
        stderr_tail: Arc<str>,
    },
    /// `orbctl` is sick, so this was not begun.
    #[error("orbctl is sick: {0}")]
    OrbctlUnhealthy(HealthProblem),
    /// It succeeded but said something that we do not know.
    #[error("orbctl's answer could not be read: {0}")]
    OrbctlOutputUnreadable(Arc<str>),
    /// An accepted change was not started, because that could not be written to the journal: after a crash it would be started again.
    #[error("the journal cannot be written: {0}")]
    JournalUnavailable(Arc<str>),
    /// Our own fault.
    #[error("internal error: {0}")]
    Internal(Arc<str>),
}

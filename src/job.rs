//! The vocabulary of jobs. A job is one accepted operation with its id, client, state and outcome.

use std::fmt;
use std::sync::Arc;

use orbd_host::machine::MachineName;

/// Identifies a job. Ids increase and are never reused, not even after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Identifies a client for fair queueing: one process with all its connections, or a single connection if the system cannot report
/// which process it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// How a child process stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It exited by itself with this code.
    Exited(i32),
    /// It was killed by a signal that orbd did not send.
    Signalled(i32),
    /// Its run limit expired and orbd killed it.
    TimedOut,
    /// orbd killed it on request: cancelled, client disconnected, shutdown, or preempted.
    Stopped,
}

/// What the end of an invocation says about the health of `orbctl` itself, independent of the operation's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthSignal {
    /// OrbStack's service answered.
    Healthy,
    /// Not definite: either `orbctl` is unhealthy, or only the machine in question is.
    Suspect(HealthProblem),
    /// `orbctl` is unhealthy: the next call will fail or block in the same way, whatever it requests.
    Unhealthy(HealthProblem),
    /// The end of this invocation says nothing about the health of `orbctl`.
    Nothing,
}

/// Why `orbctl` is considered unhealthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthProblem {
    /// A read did not finish within its limit. A read of a healthy `orbctl` takes a fraction of a second.
    Blocked {
        /// Verb of the read, as in `config_show`.
        verb: &'static str,
    },
    /// The error line of OrbStack's service, or of `orbctl` on its behalf: one line of limited length, without control characters.
    Reported(Arc<str>),
}

impl fmt::Display for HealthProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocked { verb } => {
                let command = verb.replace('_', " ");
                write!(f, "orbctl {command} did not answer within its time limit")
            }
            Self::Reported(line) => write!(f, "orbctl reported: {line}"),
        }
    }
}

/// The phase that a job was in when it was interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It was waiting and never started, so it had no effect.
    Queued,
    /// It had started and may have had an effect.
    Running,
}

/// The result of an ended job, as reported to its client.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The operation was carried out.
    Succeeded(Success),
    /// It ran, or its preconditions were checked, and it could not be carried out.
    Failed(Failure),
    /// It was cancelled: by request, by its client disconnecting, by a forced change or by a shutdown.
    Cancelled(Phase),
    /// Its queue limit or run limit expired.
    Expired(Phase),
    /// The daemon that ran it died, its child process is gone, and its exit status is unknown. Never used for a change: see
    /// [`Outcome::Unknown`].
    Interrupted,
    /// A change was interrupted and may have taken effect.
    Unknown(ReconcileReport),
}

/// What a successful job produced.
#[derive(Debug, Clone, PartialEq)]
pub enum Success {
    /// A read. Its answer is in the cache or in the spool.
    Read,
    /// A command in a machine exited. A non-zero exit code is the command's own result, not a failure of the job.
    Exec {
        /// Exit code of the command in the guest.
        exit_code: i32,
    },
    /// A change.
    Change {
        /// Whether it changed anything: false if the requested state already held.
        changed: bool,
    },
    /// A change was interrupted, or `orbctl` reported that the service does not work, and orbd then observed the requested state.
    Observed {
        /// Whether it changed anything; `None` if the state before the change is unknown.
        changed: Option<bool>,
        /// What interrupted it and what orbd observed: a clause of a sentence for a person.
        warning: Arc<str>,
    },
    /// A client's own process carried it out under a lease and reported success.
    Lease {
        /// Whether it changed anything; `None` if success alone does not show it, as for a machine that may have been running
        /// before.
        changed: Option<bool>,
    },
}

/// What orbd observed in the inventory after a change was interrupted.
#[derive(Debug, Clone, PartialEq)]
pub struct ReconcileReport {
    /// Whether the observed state is stable, so that no further change is expected.
    pub stable: bool,
    /// Whether the requested state holds; `None` if the polls could not determine it.
    pub satisfied: Option<bool>,
    /// State of the machine at the last poll; `None` if the machine did not exist or no poll succeeded.
    pub machine_state: Option<Arc<str>>,
}

impl ReconcileReport {
    /// No poll succeeded.
    pub const NOTHING: Self = Self {
        stable: false,
        satisfied: None,
        machine_state: None,
    };
}

/// The closed list of failures of an accepted job.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// `orbctl` reported that no machine has this name.
    #[error("machine {0} does not exist")]
    MachineNotFound(Arc<str>),
    /// `orbctl` reported that the name is taken.
    #[error("machine {0} already exists")]
    MachineExists(Arc<str>),
    /// The machine is in a state that does not allow this operation.
    #[error("machine {machine} is {state}")]
    MachineWrongState {
        /// Name of the machine.
        machine: MachineName,
        /// State of the machine, as in `stopped`.
        state: Arc<str>,
    },
    /// The machine has no logs of this kind.
    #[error("machine {machine} has no {kind} logs")]
    NoLogs {
        /// Name of the machine.
        machine: MachineName,
        /// Kind of log, as in `console`.
        kind: Arc<str>,
    },
    /// OrbStack's configuration has no such key.
    #[error("key: OrbStack's configuration has no key '{0}'")]
    ConfigKeyNotFound(Arc<str>),
    /// `orbctl` was not found, could not be executed, or has a version that orbd does not support.
    #[error("orbctl is not available: {0}")]
    OrbctlUnavailable(Arc<str>),
    /// `orbctl` exited with an error.
    #[error("orbctl failed with exit code {exit_code}: {stderr_tail}")]
    OrbctlFailed {
        /// Exit code of `orbctl`.
        exit_code: i32,
        /// The end of its stderr, limited in length.
        stderr_tail: Arc<str>,
    },
    /// A signal that orbd did not send ended `orbctl`.
    #[error("orbctl was killed by signal {signal}")]
    OrbctlKilled {
        /// Number of the signal.
        signal: i32,
        /// The end of its stderr, limited in length.
        stderr_tail: Arc<str>,
    },
    /// `orbctl` is unhealthy, so this operation was not started.
    #[error("orbctl is unhealthy: {0}")]
    OrbctlUnhealthy(HealthProblem),
    /// `orbctl` succeeded, but orbd could not parse its output.
    #[error("could not parse orbctl's output: {0}")]
    OrbctlOutputUnreadable(Arc<str>),
    /// An accepted change was not started because its start could not be written to the journal. After a crash, orbd would start it
    /// again.
    #[error("cannot write to the journal: {0}")]
    JournalUnavailable(Arc<str>),
    /// The channel through which a command ran broke, so how the command ended is unknown.
    #[error("the channel to machine {machine} broke, and the command may have run: {reason}")]
    ChannelBroken {
        /// Name of the machine.
        machine: MachineName,
        /// What broke.
        reason: Arc<str>,
    },
    /// A bug in orbd.
    #[error("internal error: {0}")]
    Internal(Arc<str>),
}

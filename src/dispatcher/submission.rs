//! What a client asks for, and the job that it becomes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::job::{ClientId, Ending, HealthProblem, JobId, Outcome};
use crate::operation::{Action, Class, ExecRequest, JobInfo, Stdin};
use crate::spool;
use crate::sys::ChildIdentity;
use orbd_host::machine::{MachineId, MachineName};

/// The client that made a request, and its connection.
#[derive(Debug, Clone)]
pub struct Client {
    /// Unit of fair queueing: a process, or one connection if the process is unknown.
    pub id: ClientId,
    /// Connection that the client's jobs are attached to. When it closes, they are cancelled, except detached jobs, running changes
    /// and running leases.
    pub connection: u64,
    /// Cancelled when that connection closes, before the dispatcher receives
    /// [`Dispatcher::on_disconnect`](super::Dispatcher::on_disconnect). Attached submissions that arrive later are refused, however
    /// long they were delayed.
    pub gone: CancellationToken,
    /// Name that the client gave itself.
    pub name: Arc<str>,
    /// Process id of the client; `None` if the system does not report it.
    pub pid: Option<u32>,
    /// User id of the client.
    pub uid: u32,
}

/// Which process runs `orbctl` for a job, and what it runs.
#[derive(Debug, Clone)]
pub enum Executor {
    /// orbd runs this.
    Daemon(Action),
    /// A process of the client becomes `orbctl` once the lease is granted. orbd knows the job, but not the operands.
    Client(JobInfo, LeaseProcesses),
}

impl Executor {
    pub(super) fn info(&self) -> JobInfo {
        match self {
            Self::Daemon(action) => action.info(),
            Self::Client(info, _) => info.clone(),
        }
    }
}

/// The processes of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseProcesses {
    /// Waits for the grant, then becomes `orbctl`. The lease ends when this process exits.
    pub child: ChildIdentity,
    /// Acquired the lease, and reports how the child ended. If it exits without reporting, orbd kills the child.
    pub owner: ChildIdentity,
}

/// A client's release of a lease.
#[derive(Debug)]
pub(super) struct Release {
    /// How the child ended; `None` if the client does not know.
    pub(super) ending: Option<Ending>,
    /// The forced change for which orbd ended the child, if any.
    pub(super) preempted_by: Option<WaitingFor>,
    /// Dropped without a reply if the lease has already ended.
    pub(super) reply: oneshot::Sender<Released>,
}

/// orbd's reply to a release, sent once the child has exited.
#[derive(Debug)]
pub struct Released {
    /// Why orbd signalled the child: [`Outcome::Cancelled`] or [`Outcome::Expired`]. `None` if orbd did not signal it, or if the
    /// child succeeded anyway.
    pub signalled: Option<Outcome>,
    /// The forced change for which orbd sent the signal, if any.
    pub preempted_by: Option<WaitingFor>,
    /// Whether the lease's change was cut short, so that the job ends only after reconciliation.
    pub is_reconciling: bool,
}

/// An operation that a client asks orbd to carry out.
#[derive(Debug, Clone)]
pub struct Submission {
    /// What is to be carried out, and by which process.
    pub executor: Executor,
    /// Client that asks for it.
    pub client: Client,
    /// Id by which the client named the machine; compared again before the job starts. `None` if it gave a name.
    pub expected_id: Option<MachineId>,
    /// Whether the job continues after its client disconnects.
    pub detached: bool,
    /// Longest time in the queue; `None` means the configured default.
    pub queue_timeout: Option<Duration>,
    /// Longest run time; `None` means the default of the operation's class.
    pub run_timeout: Option<Duration>,
    /// Text that job lists, events and records show with the job.
    pub label: Option<Arc<str>>,
}

/// The part of a job that is fixed at acceptance. It is kept with the ended job, so it has none of the operands, which may hold secrets
/// or megabytes.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// Unique id.
    pub id: JobId,
    /// When the job was accepted.
    pub accepted: Moment,
    /// What the job is and what it locks.
    pub info: JobInfo,
    /// The processes of a lease; `None` for other jobs.
    pub lease: Option<LeaseProcesses>,
    /// Client that asked for it.
    pub client: Client,
    /// Id by which the client named the machine; compared again before the job starts. `None` if it gave a name.
    pub expected_id: Option<MachineId>,
    /// Whether the job continues after its client disconnects.
    pub detached: bool,
    /// Longest time in the queue; `None` for no limit.
    pub queue_timeout: Option<Duration>,
    /// Longest run time; `None` for no limit.
    pub run_timeout: Option<Duration>,
    /// Text that job lists, events and records show with the job.
    pub label: Option<Arc<str>>,
    /// Approximate size of the operands in bytes.
    pub weight: u64,
    /// Whether the client sends the command's input while it runs.
    pub streams_input: bool,
}

impl JobSpec {
    /// Returns whether the job is promised to survive a restart. Detached changes are; commands never are, because their arguments are
    /// not written to disk.
    pub(super) fn is_durable(&self) -> bool {
        self.detached && !matches!(self.info.class, Class::Query | Class::Exec | Class::Session)
    }

    /// Returns the job of a submission. The limits are those of the submission.
    pub(super) fn new(id: JobId, accepted: Moment, submission: &Submission) -> Self {
        let exec = match &submission.executor {
            Executor::Daemon(Action::Exec(_, request)) => Some(request),
            _ => None,
        };
        Self {
            id,
            accepted,
            info: submission.executor.info(),
            lease: match submission.executor {
                Executor::Client(_, processes) => Some(processes),
                Executor::Daemon(_) => None,
            },
            client: submission.client.clone(),
            expected_id: submission.expected_id.clone(),
            detached: submission.detached,
            queue_timeout: submission.queue_timeout,
            run_timeout: submission.run_timeout,
            label: submission.label.clone(),
            weight: exec.map_or(0, ExecRequest::weight),
            streams_input: exec.is_some_and(|request| request.stdin == Stdin::Stream),
        }
    }

    /// Returns a job without a client of this instance: one that an earlier instance accepted, or one of orbd's own.
    pub(super) fn without_client(
        id: JobId,
        info: JobInfo,
        client: &str,
        detached: bool,
        now: Moment,
    ) -> Self {
        let client = Client {
            // No client of this instance has this id, so the job competes with none of them in the fair queue.
            id: ClientId(u64::MAX),
            connection: u64::MAX,
            gone: CancellationToken::new(),
            name: client.into(),
            pid: None,
            uid: rustix::process::getuid().as_raw(),
        };
        Self {
            id,
            accepted: now,
            info,
            lease: None,
            client,
            expected_id: None,
            detached,
            queue_timeout: None,
            run_timeout: None,
            label: None,
            weight: 0,
            streams_input: false,
        }
    }
}

/// State of a job.
#[derive(Debug, Clone)]
pub enum JobState {
    /// Accepted, not started.
    Waiting,
    /// Started.
    Running {
        /// When it started.
        since: Moment,
    },
    /// Ended.
    Ended {
        /// When it started; `None` if it never did.
        since: Option<Moment>,
        /// When it ended.
        at: Moment,
        /// Outcome of the job.
        outcome: Outcome,
        /// What it was waiting for when it ended, if it never started, or the forced change that preempted it.
        holder: Option<WaitingFor>,
    },
}

impl JobState {
    /// Returns whether the job has ended.
    pub fn is_ended(&self) -> bool {
        matches!(self, Self::Ended { .. })
    }
}

/// The whole queue, or the lane of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The whole queue.
    All,
    /// The lane of this machine.
    Machine(MachineName),
}

/// Why a job is waiting.
#[derive(Debug, Clone)]
pub enum WaitingFor {
    /// Another job blocks it.
    Job {
        /// Id of the blocking job.
        id: JobId,
        /// Verb of its operation.
        verb: &'static str,
        /// Machine of its operation, if it has one.
        machine: Option<MachineName>,
        /// Name of its client.
        client: Arc<str>,
        /// How long ago it was accepted.
        age: Duration,
    },
    /// This limit on running jobs is reached.
    Limit(&'static str),
    /// The queue or one of the job's lanes is paused.
    Paused(Target),
    /// `orbctl` is unhealthy.
    Unhealthy(HealthProblem),
}

/// Snapshot of a job.
#[derive(Debug, Clone)]
pub struct JobView {
    /// Operation, client, limits and id.
    pub spec: Arc<JobSpec>,
    /// Current state.
    pub state: JobState,
    /// Why it waits; `None` unless it does.
    pub waiting_for: Option<WaitingFor>,
    /// Number of output bytes so far.
    pub output_bytes: u64,
    /// Number of callers that share the job, not counting the first.
    pub joined: u32,
    /// Whether a resident channel carries it out, instead of an `orbctl run` of its own.
    pub in_channel: bool,
    /// Whether the job runs although its journal entries could not be written, so that the journal does not name its process.
    pub is_unwritten: bool,
}

/// A client's handle to a job.
#[derive(Debug, Clone)]
pub struct Job {
    /// Operation, client, limits and id.
    pub spec: Arc<JobSpec>,
    /// Current state.
    pub state: watch::Receiver<JobState>,
    /// Output of the job; `None` if the job writes none, or if its output is no longer kept.
    pub spool: Option<spool::Spool>,
    /// Number of output bytes that are no longer kept.
    pub output_gone: u64,
}

impl Job {
    /// Describes the job without asking the dispatcher, which may have dropped it from the history. The view does not include what
    /// the job waits for or how many callers share it.
    pub fn view(&self) -> JobView {
        JobView {
            spec: self.spec.clone(),
            state: self.state.borrow().clone(),
            waiting_for: None,
            output_bytes: self.spool.as_ref().map_or(0, spool::Spool::end),
            in_channel: false,
            is_unwritten: false,
            joined: 0,
        }
    }
}

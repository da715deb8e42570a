//! The dispatcher's interface: the types of its requests and replies, and [`Dispatcher`], the handle that sends requests.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::cache::{CacheKey, Generation};
use crate::clock::Moment;
use crate::events::{EventLog, SequencedEvent};
use crate::job::{ClientId, Ending, HealthProblem, JobId, Outcome};
use crate::machine::{MachineId, MachineName, OrbstackStatus};
use crate::operation::{Action, Class, ExecRequest, JobInfo, Query, Scope, Stdin};
use crate::scheduler::Refusal;
use crate::spool;
use crate::sys::ChildIdentity;

use super::Settings;
use super::answer::ObservedAnswer;
use super::marker::Markers;

/// Capacity of the dispatcher's inbox. Each sender waits for its reply, so this bounds the requests in flight, not the jobs that have
/// been accepted.
pub(super) const REQUESTS_MAX: usize = 256;

/// The client that made a request, and its connection.
#[derive(Debug, Clone)]
pub struct Client {
    /// Unit of fair queueing: a process, or one connection if the process is unknown.
    pub id: ClientId,
    /// Connection that the client's jobs are attached to. When it closes, they are cancelled, except detached jobs, running changes
    /// and running leases.
    pub connection: u64,
    /// Cancelled when that connection closes, before the dispatcher receives [`Dispatcher::on_disconnect`]. Attached submissions that
    /// arrive later are refused, however long they were delayed.
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
    /// Returns the job.
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
            is_unwritten: false,
            joined: 0,
        }
    }
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
    /// Whether the job runs although its journal entries could not be written, so that the journal does not name its process.
    pub is_unwritten: bool,
}

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

/// The whole queue, or the lane of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The whole queue.
    All,
    /// The lane of this machine.
    Machine(MachineName),
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

/// A request to the dispatcher, with the channel for its reply.
pub(super) enum Request {
    Submit(Box<Submission>, oneshot::Sender<Result<Job, Rejection>>),
    Read {
        query: Query,
        max_age: Option<Duration>,
        client: Client,
        reply: oneshot::Sender<Result<ObservedAnswer, ReadError>>,
    },
    Job(JobId, oneshot::Sender<Option<Job>>),
    View(JobId, oneshot::Sender<Option<JobView>>),
    List(JobFilter, oneshot::Sender<(Vec<JobView>, bool)>),
    Cancel(JobId, oneshot::Sender<Cancelled>),
    Input(JobId, oneshot::Sender<Option<mpsc::Sender<Bytes>>>),
    EndInput(JobId),
    Release {
        job: JobId,
        ending: Option<Ending>,
        reply: oneshot::Sender<Released>,
    },
    Disconnected(u64),
    HoldingConnections(oneshot::Sender<HashSet<u64>>),
    Queue(QueueVerb, Target, oneshot::Sender<QueueView>),
    QueueView(oneshot::Sender<QueueView>),
    CacheView(oneshot::Sender<CacheView>),
    Invalidate(Scope, oneshot::Sender<Generation>),
    /// The flag is whether the subscriber wants OrbStack to be polled.
    Subscribe(bool, oneshot::Sender<Subscriber>),
    Snapshot(oneshot::Sender<Snapshot>),
    Adopt(Box<Settings>, oneshot::Sender<()>),
    WaitIdle(oneshot::Sender<()>),
    BeginUpgrade(oneshot::Sender<bool>),
    Busy(oneshot::Sender<Option<BusyReason>>),
}

/// Handle that sends requests to the dispatcher. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) published: watch::Receiver<Published>,
    pub(super) upgrading: CancellationToken,
    pub(super) markers: Markers,
}

impl Dispatcher {
    /// Returns the value that the environment of a lease's process must hold in [`crate::sys::MARKER`].
    pub fn marker(&self, spec: &JobSpec) -> String {
        self.markers.of(spec)
    }

    /// Sends a request and waits for the reply. `None` if the dispatcher has ended.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Submits an operation. Returns once it is accepted; a detached change is durable in the journal by then.
    pub async fn submit(&self, submission: Submission) -> Result<Job, Rejection> {
        self.ask(|reply| Request::Submit(Box::new(submission), reply))
            .await
            .unwrap_or_else(|| Err(self.gone_reason()))
    }

    /// Answers a query with facts no older than `max_age`, from the cache or from `orbctl`. `None` means the configured limit.
    pub async fn read(
        &self,
        query: Query,
        max_age: Option<Duration>,
        client: Client,
    ) -> Result<ObservedAnswer, ReadError> {
        self.ask(|reply| Request::Read {
            query,
            max_age,
            client,
            reply,
        })
        .await
        .unwrap_or_else(|| Err(ReadError::Rejected(self.gone_reason())))
    }

    /// Returns a handle to a job; `None` if the job is unknown.
    pub async fn job(&self, id: JobId) -> Option<Job> {
        self.ask(|reply| Request::Job(id, reply)).await?
    }

    /// Returns a snapshot of a job; `None` if the job is unknown.
    pub async fn view(&self, id: JobId) -> Option<JobView> {
        self.ask(|reply| Request::View(id, reply)).await?
    }

    /// Lists jobs, oldest first. The flag is whether older matching jobs were left out.
    pub async fn list(&self, filter: JobFilter) -> (Vec<JobView>, bool) {
        self.ask(|reply| Request::List(filter, reply))
            .await
            .unwrap_or_default()
    }

    /// Cancels a job.
    pub async fn cancel(&self, id: JobId) -> Cancelled {
        self.ask(|reply| Request::Cancel(id, reply))
            .await
            .unwrap_or(Cancelled::NoSuchJob)
    }

    /// Returns the sender for a job's streamed input; `None` if the job takes no input.
    pub async fn input(&self, id: JobId) -> Option<mpsc::Sender<Bytes>> {
        self.ask(|reply| Request::Input(id, reply)).await?
    }

    /// Closes a job's streamed input.
    pub async fn end_input(&self, id: JobId) {
        // If the dispatcher has ended, no input is open.
        let _ = self.requests.send(Request::EndInput(id)).await;
    }

    /// Releases a lease and waits until its child has exited. `None` if the lease has ended or was already released.
    pub async fn release(&self, job: JobId, ending: Option<Ending>) -> Option<Released> {
        self.ask(|reply| Request::Release { job, ending, reply }).await
    }

    /// Reports that a connection has closed. Jobs attached to it are cancelled, except running changes and running leases.
    pub async fn on_disconnect(&self, connection: u64) {
        // If the dispatcher has ended, every job has been stopped already.
        let _ = self.requests.send(Request::Disconnected(connection)).await;
    }

    /// Returns the connections that have attached jobs or leases: if one closed now, a job would be cancelled, stopped or left
    /// without its client. `None` if the dispatcher has ended.
    pub async fn holding_connections(&self) -> Option<HashSet<u64>> {
        self.ask(Request::HoldingConnections).await
    }

    /// Pauses, resumes or drains a target. A drain fails if the daemon stops before the drain is complete.
    pub async fn queue(&self, verb: QueueVerb, target: Target) -> Result<QueueView, Rejection> {
        self.ask(|reply| Request::Queue(verb, target, reply))
            .await
            .ok_or_else(|| self.gone_reason())
    }

    /// Returns a snapshot of the queue.
    pub async fn queue_view(&self) -> QueueView {
        self.ask(Request::QueueView).await.unwrap_or_default()
    }

    /// Returns a snapshot of the cache. `None` if the dispatcher has ended.
    pub async fn cache_view(&self) -> Option<CacheView> {
        self.ask(Request::CacheView).await
    }

    /// Invalidates cached answers and returns the new generation. `None` if the dispatcher has ended.
    pub async fn invalidate(&self, scope: Scope) -> Option<Generation> {
        self.ask(|reply| Request::Invalidate(scope, reply)).await
    }

    /// Subscribes to events; `wants_polls` keeps the dispatcher polling OrbStack. `None` if the dispatcher has ended.
    pub async fn subscribe(&self, wants_polls: bool) -> Option<Subscriber> {
        self.ask(|reply| Request::Subscribe(wants_polls, reply)).await
    }

    /// Returns a snapshot of the daemon's state. `None` if the dispatcher has ended.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        self.ask(Request::Snapshot).await
    }

    /// Replaces the settings; returns once they are in force. Accepted jobs keep the limits that they were given.
    pub async fn adopt(&self, settings: Settings) {
        // If the dispatcher has ended, no settings apply.
        let _ = self.ask(|reply| Request::Adopt(Box::new(settings), reply)).await;
    }

    /// Waits until the daemon is idle: the process can be replaced without losing anything that a client relies on. After 30 s
    /// without an idle moment, new jobs are held back for at most 5 s at a time. `None` if the dispatcher has ended.
    pub async fn wait_idle(&self) -> Option<()> {
        self.ask(Request::WaitIdle).await
    }

    /// If the daemon is idle, refuses all new jobs from now on; returns whether it does. Earlier requests are still answered, and
    /// everything that the next instance needs is in the journal.
    pub async fn begin_upgrade(&self) -> bool {
        self.ask(Request::BeginUpgrade).await.unwrap_or(false)
    }

    /// Returns the token that is cancelled when [`Self::begin_upgrade`] succeeds, before the first refusal.
    pub fn upgrading(&self) -> &CancellationToken {
        &self.upgrading
    }

    /// Returns why the next instance cannot take over yet; `None` if it can, or if the dispatcher has ended.
    pub async fn busy(&self) -> Option<BusyReason> {
        self.ask(Request::Busy).await?
    }

    fn gone_reason(&self) -> Rejection {
        if self.upgrading.is_cancelled() {
            Rejection::Upgrading
        } else {
            Rejection::Stopping
        }
    }

    /// Waits until the dispatcher has ended.
    pub async fn gone(&self) {
        self.requests.closed().await;
    }

    /// Returns the state that may be served without a request to the dispatcher.
    pub fn published(&self) -> watch::Ref<'_, Published> {
        self.published.borrow()
    }
}

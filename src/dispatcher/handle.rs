//! What the rest of orbd says to the dispatcher, and the handle that says it.

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
use crate::operation::{Operation, Query, Scope};
use crate::spool;
use crate::sys::ChildIdentity;

use super::Settings;
use super::answer::ObservedAnswer;
use super::marker::Markers;

/// Requests waiting for the dispatcher. Each sender waits for its answer, so this bounds work in flight, not work accepted.
pub(super) const REQUESTS_MAX: usize = 256;

/// Who asks, and through which connection.
#[derive(Debug, Clone)]
pub struct Client {
    /// The party that turns are shared out between.
    pub id: ClientId,
    /// The connection whose end cancels what is attached to it.
    pub connection: u64,
    /// Cancelled when that connection is gone, before the dispatcher is told so: what it hands in after that is refused, however
    /// late it comes.
    pub gone: CancellationToken,
    /// Name given by the client itself.
    pub name: Arc<str>,
    /// Its process, where the system tells.
    pub pid: Option<u32>,
    /// Its user.
    pub uid: u32,
}

/// Who runs the real tool.
#[derive(Debug, Clone, Copy)]
pub enum Executor {
    /// We do.
    Daemon,
    /// A process of the client's does, once it is told that the place is its own.
    Lease(LeaseProcesses),
}

/// The processes of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseProcesses {
    /// Waits for the grant, then becomes the real tool. The lease ends when this process exits.
    pub child: ChildIdentity,
    /// Asked for the lease and says how the child ended. If it exits without saying so, orbd kills the child.
    pub owner: ChildIdentity,
}

/// What a client says when it releases a lease.
#[derive(Debug)]
pub(super) struct Release {
    /// How the child ended; `None` if the client does not know.
    pub(super) ending: Option<Ending>,
    /// The forced change that orbd ended the child for, if any.
    pub(super) preempted_by: Option<WaitingFor>,
    /// Dropped without an answer if the lease has ended.
    pub(super) reply: oneshot::Sender<Released>,
}

/// What orbd answers to a release, once the child is gone.
#[derive(Debug)]
pub struct Released {
    /// Why orbd signalled the child: `Cancelled` or `Expired`. `None` if it did not, or if the child succeeded anyway.
    pub signalled: Option<Outcome>,
    /// The forced change that the signal was for, if any.
    pub preempted_by: Option<WaitingFor>,
    /// A change was cut short, so the job ends only when the inventory has settled.
    pub is_reconciling: bool,
}

/// Something to be done.
#[derive(Debug, Clone)]
pub struct Submission {
    /// What.
    pub operation: Operation,
    /// For whom.
    pub client: Client,
    /// Who runs the tool.
    pub executor: Executor,
    /// The id by which the machine was named; checked again before the start.
    pub expected_id: Option<MachineId>,
    /// Whether it outlives its client.
    pub detached: bool,
    /// Longest wait; the default where absent.
    pub queue_timeout: Option<Duration>,
    /// Longest run; the class's default where absent.
    pub run_timeout: Option<Duration>,
}

/// What stays the same about a job from acceptance to end.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// Its id.
    pub id: JobId,
    /// When it was accepted.
    pub accepted: Moment,
    /// What was asked for, with the defaults in place of limits that nobody named.
    pub asked: Submission,
}

impl JobSpec {
    /// Returns what is kept of a job that is over: everything but a command's words, environment and input.
    pub(super) fn forgotten(&self) -> Self {
        let mut kept = self.clone();
        if let Operation::Exec(machine, request) = &self.asked.operation {
            kept.asked.operation = Operation::Exec(machine.clone(), request.forgotten());
        }
        kept
    }
}

/// Where a job is.
#[derive(Debug, Clone)]
pub enum JobState {
    /// Accepted, not started.
    Waiting,
    /// Started.
    Running {
        /// When.
        since: Moment,
    },
    /// Over.
    Ended {
        /// When it started, if it did.
        since: Option<Moment>,
        /// When it ended.
        at: Moment,
        /// How.
        outcome: Outcome,
        /// What it waited for at its end, if it never started, or the forced change that it lost to.
        holder: Option<WaitingFor>,
    },
}

impl JobState {
    /// Says whether it is over.
    pub fn is_ended(&self) -> bool {
        matches!(self, Self::Ended { .. })
    }
}

/// Why a job waits.
#[derive(Debug, Clone)]
pub enum WaitingFor {
    /// Another job is in the way.
    Job {
        /// Its id.
        id: JobId,
        /// What it does.
        verb: &'static str,
        /// To which machine.
        machine: Option<MachineName>,
        /// For whom.
        client: Arc<str>,
        /// How long ago it was accepted.
        age: Duration,
    },
    /// A limit is reached.
    Limit(&'static str),
    /// The queue or its lane is paused.
    Paused,
    /// `orbctl` is sick.
    Unhealthy(HealthProblem),
}

/// A job as its followers hold it.
#[derive(Debug, Clone)]
pub struct Job {
    /// What stays the same.
    pub spec: Arc<JobSpec>,
    /// Where it is.
    pub state: watch::Receiver<JobState>,
    /// What it wrote, for jobs that write.
    pub spool: Option<spool::Spool>,
    /// Bytes that it wrote and that are no longer kept.
    pub output_gone: u64,
}

impl Job {
    /// Looks at the job without asking the dispatcher, who may have forgotten it: whoever holds a job that ended can always
    /// tell how. Not told: what it waits for, and how many share it.
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

/// A job at one moment.
#[derive(Debug, Clone)]
pub struct JobView {
    /// What stays the same.
    pub spec: Arc<JobSpec>,
    /// Where it is.
    pub state: JobState,
    /// Why it waits.
    pub waiting_for: Option<WaitingFor>,
    /// Bytes that it wrote so far.
    pub output_bytes: u64,
    /// How many callers share it beside the first.
    pub joined: u32,
    /// Whether it runs and the journal could not be written, so that the journal does not name its process.
    pub is_unwritten: bool,
}

/// Why something was not accepted. Nothing happened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Rejection {
    /// No room.
    #[error("the queue is full: {limit} jobs wait")]
    QueueFull {
        /// The bound.
        limit: usize,
        /// When to come back.
        retry_after: Duration,
    },
    /// No room for this client.
    #[error("{limit} jobs of this client wait already")]
    ClientQueueFull {
        /// The bound.
        limit: usize,
        /// When to come back.
        retry_after: Duration,
    },
    /// No room for what the jobs carry with them.
    #[error("the commands and inputs of waiting and running jobs would take more than {limit} bytes")]
    OperandsFull {
        /// The bound.
        limit: u64,
        /// When to come back.
        retry_after: Duration,
    },
    /// New work is refused.
    #[error("{what} is draining: new work is refused")]
    Draining {
        /// The daemon, the queue or a lane.
        what: String,
    },
    /// `orbctl` is sick, and nothing is known that could be told instead.
    #[error("orbctl is sick and was not asked: {}", .0.problem)]
    Unhealthy(OutageView),
    /// It cannot be written down, and was asked to survive a restart.
    #[error("cannot write the journal, so a detached change could be forgotten: {0}")]
    Journal(Arc<str>),
    /// Its client hung up before it was accepted.
    #[error("the client is gone")]
    ClientGone,
    /// The daemon is going away.
    #[error("orbd is stopping")]
    Stopping,
    /// The next instance is about to take over, and accepts it.
    #[error("orbd is being upgraded; nothing was begun, send the request again")]
    Upgrading,
}

/// What ails `orbctl`, at one moment.
#[derive(Debug, Clone)]
pub struct OutageView {
    /// Since when.
    pub since: Moment,
    /// Why.
    pub problem: HealthProblem,
    /// When to come back: after the next probe.
    pub retry_after: Duration,
}

/// Why a read gave no facts.
#[derive(Debug, Clone)]
pub enum ReadError {
    /// Not accepted.
    Rejected(Rejection),
    /// Accepted, and ended without facts.
    Ended {
        /// The job.
        id: JobId,
        /// How.
        outcome: Outcome,
        /// What it waited for, if it never started.
        holder: Option<WaitingFor>,
    },
}

/// What became of a wish to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It waited, and never starts.
    NeverStarted,
    /// It runs, and is being ended.
    Stopping,
    /// It was over.
    AlreadyEnded,
    /// Unknown, or no longer kept.
    NoSuchJob,
}

/// The whole queue or one machine's lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Everything.
    All,
    /// One machine.
    Machine(MachineName),
}

/// What can be done to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueVerb {
    /// Start nothing more.
    Pause,
    /// End a pause or a drain.
    Resume,
    /// Refuse new work; answered when all is done.
    Drain,
}

/// The queue at one moment.
#[derive(Debug, Clone, Default)]
pub struct QueueView {
    /// Jobs waiting.
    pub waiting: usize,
    /// Jobs running.
    pub running: usize,
    /// Most jobs that may wait.
    pub queue_max: usize,
    /// Nothing starts.
    pub paused: bool,
    /// Machines whose lane is paused.
    pub paused_machines: Vec<MachineName>,
    /// New work is refused.
    pub draining: bool,
    /// Machines for which new work is refused.
    pub draining_machines: Vec<MachineName>,
    /// What ails `orbctl`, while it is sick.
    pub outage: Option<OutageView>,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// `waiting`, `running` or `ended`.
    pub state: Option<StateFilter>,
    /// About this machine.
    pub machine: Option<MachineName>,
    /// With this verb.
    pub verb: Option<String>,
    /// At most so many, the newest.
    pub limit: usize,
}

/// A job's state without its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateFilter {
    /// Accepted, not started.
    Waiting,
    /// Started.
    Running,
    /// Over.
    Ended,
}

/// What is kept about one topic.
#[derive(Debug, Clone)]
pub struct KeptView {
    /// What about.
    pub cache_key: CacheKey,
    /// Generation that it belongs to.
    pub generation: Generation,
    /// How old it is.
    pub age: Duration,
    /// Whether it may still be answered.
    pub valid: bool,
}

/// The cache at one moment.
#[derive(Debug, Clone)]
pub struct CacheView {
    /// The generation now.
    pub generation: Generation,
    /// What is kept.
    pub entries: Vec<KeptView>,
}

/// What the fast path may answer without asking.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// The machine list, while it is valid.
    pub machines: Option<ObservedAnswer>,
    /// Oldest observation that is answered with.
    pub cache_max_age: Duration,
}

/// Follows what happens. While one is there who wants what looks find, the dispatcher looks again and again.
pub struct Subscriber {
    /// The last events. Ends with the dispatcher.
    pub events: watch::Receiver<EventLog<Arc<SequencedEvent>>>,
    /// Counted by the dispatcher.
    pub(super) _wanted: Option<Arc<()>>,
}

/// Everything as it was when one event was the last.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// That event's number; 0 before the first.
    pub sequence: u64,
    /// When this was described.
    pub at: Moment,
    /// The machines as they were last seen; `None` until the first look.
    pub machines: Option<ObservedAnswer>,
    /// Something may have changed them since, and the next look has not ended.
    pub machines_stale: bool,
    /// OrbStack's status as it was last seen.
    pub status: Option<OrbstackStatus>,
    /// Jobs that wait or run, oldest first; reads are not among them.
    pub jobs: Vec<JobView>,
    /// Whether younger ones were left out.
    pub more_jobs: bool,
    /// What ails `orbctl`; absent while it is well.
    pub sick: Option<OutageView>,
}

/// What the next instance of the daemon would not know, so that it cannot take over yet.
#[derive(Debug, Clone)]
pub enum BusyReason {
    /// This job runs, or a client waits for it or reads its output.
    Job(WaitingFor),
    /// A detached job ended a moment ago, and its client may be about to fetch its output.
    Recent,
    /// A pause is in force, which is not stored.
    Paused,
    /// A drain is in force, which is not stored.
    Draining,
}

/// Everything that the dispatcher can be asked. Each carries where the answer goes.
pub(super) enum Request {
    Submit(Box<Submission>, oneshot::Sender<Result<Job, Rejection>>),
    /// The acceptance of this job could not be written down, for this reason.
    RollBack(Box<Job>, Arc<str>, oneshot::Sender<Result<Job, Rejection>>),
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
    /// Whether what looks find is wanted.
    Subscribe(bool, oneshot::Sender<Subscriber>),
    Snapshot(oneshot::Sender<Snapshot>),
    Adopt(Box<Settings>, oneshot::Sender<()>),
    WaitIdle(oneshot::Sender<()>),
    BeginUpgrade(oneshot::Sender<bool>),
    Busy(oneshot::Sender<Option<BusyReason>>),
}

/// Talks to the dispatcher. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) published: watch::Receiver<Published>,
    pub(super) upgrading: CancellationToken,
    pub(super) markers: Markers,
}

impl Dispatcher {
    /// Returns what the environment of a lease's process must say in [`crate::sys::MARKER`].
    pub fn marker(&self, spec: &JobSpec) -> String {
        self.markers.of(spec)
    }

    /// Asks; `None` when the dispatcher is gone.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Hands in something to be done. Returns once it is accepted; a detached change is on disk by then.
    pub async fn submit(&self, submission: Submission) -> Result<Job, Rejection> {
        self.ask(|reply| Request::Submit(Box::new(submission), reply))
            .await
            .unwrap_or_else(|| Err(self.gone_reason()))
    }

    /// Reads facts no older than `max_age`, from what is known or from `orbctl`.
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

    /// Finds a job to follow.
    pub async fn job(&self, id: JobId) -> Option<Job> {
        self.ask(|reply| Request::Job(id, reply)).await?
    }

    /// Looks at a job.
    pub async fn view(&self, id: JobId) -> Option<JobView> {
        self.ask(|reply| Request::View(id, reply)).await?
    }

    /// Lists jobs, oldest first, and says whether older ones were left out.
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

    /// Returns where a job's input goes, while it takes some.
    pub async fn input(&self, id: JobId) -> Option<mpsc::Sender<Bytes>> {
        self.ask(|reply| Request::Input(id, reply)).await?
    }

    /// Says that a job's input is complete.
    pub async fn end_input(&self, id: JobId) {
        // A dispatcher that is gone has no inputs left to end.
        let _ = self.requests.send(Request::EndInput(id)).await;
    }

    /// Releases a lease and waits until its child is gone. `None` if the lease has ended or was released before.
    pub async fn release(&self, job: JobId, ending: Option<Ending>) -> Option<Released> {
        self.ask(|reply| Request::Release { job, ending, reply }).await
    }

    /// Says that a client is gone: what is attached to its connection is cancelled or stopped.
    pub async fn on_disconnect(&self, connection: u64) {
        // A dispatcher that is gone has stopped everything already.
        let _ = self.requests.send(Request::Disconnected(connection)).await;
    }

    /// Returns the connections whose end would cancel, stop or lose sight of a job. `None` when the dispatcher is gone.
    pub async fn holding_connections(&self) -> Option<HashSet<u64>> {
        self.ask(Request::HoldingConnections).await
    }

    /// Pauses, resumes or drains. A drain that was not over when the daemon stopped is no drain.
    pub async fn queue(&self, verb: QueueVerb, target: Target) -> Result<QueueView, Rejection> {
        self.ask(|reply| Request::Queue(verb, target, reply))
            .await
            .ok_or_else(|| self.gone_reason())
    }

    /// Looks at the queue.
    pub async fn queue_view(&self) -> QueueView {
        self.ask(Request::QueueView).await.unwrap_or_default()
    }

    /// Looks at the cache.
    pub async fn cache_view(&self) -> Option<CacheView> {
        self.ask(Request::CacheView).await
    }

    /// Forgets what is known.
    pub async fn invalidate(&self, scope: Scope) -> Option<Generation> {
        self.ask(|reply| Request::Invalidate(scope, reply)).await
    }

    /// Follows what happens; `wants_looks` keeps the dispatcher looking. `None` when it is gone.
    pub async fn subscribe(&self, wants_looks: bool) -> Option<Subscriber> {
        self.ask(|reply| Request::Subscribe(wants_looks, reply)).await
    }

    /// Describes everything as it is. `None` when the dispatcher is gone.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        self.ask(Request::Snapshot).await
    }

    /// Behaves by other settings from now on; returns once it does. What was accepted keeps the limits that it was given.
    pub async fn adopt(&self, settings: Settings) {
        // A dispatcher that is gone behaves in no way.
        let _ = self.ask(|reply| Request::Adopt(Box::new(settings), reply)).await;
    }

    /// Waits for an idle moment: the process could be replaced without losing anything that a client relies on. After 30 s without
    /// one, new work is held back for at most 5 s at a time. `None` when the dispatcher is gone.
    pub async fn wait_idle(&self) -> Option<()> {
        self.ask(Request::WaitIdle).await
    }

    /// Refuses all new work from now on if the daemon is idle, and returns whether it is. What was asked before is answered, and
    /// what the next instance has to know is in the journal.
    pub async fn begin_upgrade(&self) -> bool {
        self.ask(Request::BeginUpgrade).await.unwrap_or(false)
    }

    /// Returns the token that is cancelled when [`Self::begin_upgrade`] succeeds, before anything is refused.
    pub fn upgrading(&self) -> &CancellationToken {
        &self.upgrading
    }

    /// Returns why the next instance cannot take over yet; `None` when it can, or when the dispatcher is gone.
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

    /// Waits until the dispatcher is gone.
    pub async fn gone(&self) {
        self.requests.closed().await;
    }

    /// Returns what may be answered without asking.
    pub fn published(&self) -> watch::Ref<'_, Published> {
        self.published.borrow()
    }
}

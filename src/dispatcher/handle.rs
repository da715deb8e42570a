//! [`Dispatcher`], the handle that sends requests to the dispatcher, and the requests.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::cache::Generation;
use crate::job::{Ending, JobId};
use crate::operation::{Query, Scope};

use super::Settings;
use super::answer::ObservedAnswer;
use super::marker::Markers;
use super::submission::{Client, Job, JobSpec, JobView, Released, Submission, Target};
use super::views::{
    BusyReason, CacheView, Cancelled, JobFilter, Published, QueueVerb, QueueView, ReadError, Rejection,
    Snapshot, Subscriber,
};

/// Capacity of the dispatcher's inbox. Each sender waits for its reply, so this bounds the requests in flight, not the jobs that have
/// been accepted.
pub(super) const REQUESTS_MAX: usize = 256;

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
    CloseChannels(Scope, oneshot::Sender<()>),
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

    /// Closes the channels that a change of this scope would disturb, and waits until they are closed.
    pub async fn close_channels(&self, scope: Scope) {
        let _: Option<()> = self.ask(|reply| Request::CloseChannels(scope, reply)).await;
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

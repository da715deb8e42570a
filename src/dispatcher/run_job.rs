//! Carries out one job, from its start to its outcome.
//!
//! A job may need several invocations of `orbctl`: a probe to check whether a change is already satisfied, the change itself, and
//! probes afterwards if the change was cut short. This module decides no order and keeps no state beyond the job; the dispatcher
//! handles the job's events and its end.
//!
//! ```text
//! start --> named by id? list, compare --> idempotent? probe --satisfied--> succeeded, changed: false
//!                 | other machine                | not satisfied
//!                 v                              v
//!              failed                      invocation --exited--> classified: succeeded or failed
//!                                                | cut short
//!                                                v
//!                            command: cancelled or expired    change: probes until stable --> succeeded, with a warning
//!                                                                                         --> unknown
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::job::{Ending, Failure, HealthSignal, JobId, Outcome, Phase, Success};
use crate::journal::JournalError;
use crate::operation::{Change, ChannelUse, Query};
use crate::orbctl::{
    CallError, CallResult, Exec, Orbctl, RunOptions, SpawnError, Started, orphan_gone, version,
};
use crate::sys::ChildIdentity;
use orbd_host::error_chain::error_chain;
use orbd_host::machine::{MachineName, OrbstackStatus};
use orbd_host::run_command::GuestEnv;

use super::answer::{QueryAnswer, by_id};
use super::reconcile::{self, Reconciliation};
use super::submission::{Job, JobSpec, LeaseProcesses, Release};
use super::views::Rejection;
use super::{ChannelRules, Settings};

/// First pause between probes after a cut; each further pause doubles.
const PROBE_PAUSE_FIRST: Duration = Duration::from_millis(250);
/// Longest pause between probes after a cut.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Completes when a journal entry would survive a power loss.
pub(super) type Durable = BoxFuture<'static, Result<(), JournalError>>;

/// An event that a running job sends to the dispatcher.
#[derive(Debug)]
pub(super) enum Note {
    /// A child was spawned, or a channel has begun the command.
    Started(Started),
    /// The `orbctl` program was replaced. Sent before the new program starts, so that no cached answer of the old one is served once
    /// the new one has answered.
    Replaced,
    /// The result of an invocation that began at this time shows whether `orbctl` is healthy.
    HealthSignal(HealthSignal, Instant),
    /// The acceptance of the job could not be written to the journal, for this reason. Its client waits for the reply.
    NotDurable(Box<Job>, Arc<str>, oneshot::Sender<Result<Job, Rejection>>),
}

/// What a job does once it starts.
pub(super) enum Task {
    Query(Query),
    Exec(Box<Exec>),
    Change(Change),
    Lease(LeaseProcesses, oneshot::Receiver<Release>),
}

/// What every job needs to run, whatever it does.
pub(super) struct Work<O> {
    pub(super) spec: Arc<JobSpec>,
    pub(super) orbctl: Arc<O>,
    pub(super) settings: RunSettings,
    /// Cancelled to stop the running invocation.
    pub(super) stop: CancellationToken,
    /// Cancelled to end reconciliation too: a forced change preempts the job, or orbd stops.
    pub(super) abandon: CancellationToken,
    /// Permits for probes after a cut, shared by all jobs.
    pub(super) probe_permits: Arc<Semaphore>,
    /// Marker for the child's environment, by which the next instance recognizes the child. Empty for a lease: the client puts it
    /// into the environment of its process, and the journal names that process before it runs `orbctl`.
    pub(super) marker: String,
    /// Channel for [`Note`]s to the dispatcher.
    pub(super) notes: mpsc::Sender<(JobId, Note)>,
}

/// The settings that apply to a job from its start to its end.
#[derive(Debug, Clone)]
pub(super) struct RunSettings {
    /// Longest time for one probe.
    query_timeout: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub(super) grace: Duration,
    /// Longest reconciliation after a cut.
    reconcile: Duration,
    /// How environment variables reach a command in a machine.
    guest_env: GuestEnv,
    /// Which commands may run through resident channels.
    channels: ChannelRules,
    /// Folder for the output files of changes. A change may outlive orbd, and a pipe would break then.
    spool_dir: PathBuf,
}

impl RunSettings {
    pub(super) fn of(settings: &Settings) -> Self {
        Self {
            query_timeout: settings.run_timeouts.query,
            grace: settings.grace,
            reconcile: settings.reconcile,
            guest_env: settings.guest_env,
            channels: settings.channels.clone(),
            spool_dir: settings.spool.dir.clone(),
        }
    }
}

/// Result of a job.
#[derive(Debug)]
pub(super) struct JobResult {
    pub(super) outcome: Outcome,
    /// Answer of a query; `None` for other jobs, or if the query failed.
    pub(super) answer: Option<QueryAnswer>,
    pub(super) ending: Option<Ending>,
    pub(super) exit_code: Option<i32>,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
}

impl JobResult {
    pub(super) fn new(outcome: Outcome) -> Self {
        Self {
            outcome,
            answer: None,
            ending: None,
            exit_code: None,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// Returns the result of a job whose main call of `orbctl` ended like this.
    fn of<T>(call: &CallResult<T>, outcome: Outcome) -> Self {
        Self {
            outcome,
            answer: None,
            ending: call.ending,
            exit_code: match call.ending {
                Some(Ending::Exited(code)) => Some(code),
                _ => None,
            },
            bytes_in: call.bytes_in,
            bytes_out: call.bytes_out,
        }
    }
}

/// Runs a job to its end. A change that may outlive orbd starts only once its start entry is durable (`durable`). No behavior of
/// `orbctl` makes this panic.
pub(super) async fn run_job<O: Orbctl>(work: Work<O>, task: Task, durable: Option<Durable>) -> JobResult {
    if let Some(durable) = durable
        && let Err(error) = durable.await
    {
        // Fail now: running it without a durable start entry could run it twice after a crash.
        return JobResult::new(Outcome::Failed(Failure::JournalUnavailable(
            error_chain(&error).into(),
        )));
    }
    // For a clone, the lane's machine is the new copy; the id names its source.
    let named = match &task {
        Task::Change(Change::Clone { source, .. }) => Some(source),
        _ => work.spec.info.machine.as_ref(),
    };
    if let Err(finished) = work.check_id(named).await {
        return finished;
    }
    if let Some(scope) = work.spec.info.disturbs() {
        work.orbctl.close_channels(&scope).await;
    }
    match task {
        Task::Query(query) => work.query(&query).await,
        Task::Exec(exec) => work.exec(*exec).await,
        Task::Change(change) => work.change(&change).await,
        Task::Lease(processes, release) => work.lease(processes, release).await,
    }
}

/// Probes whether `orbctl` is healthy again. Runs `status` first because it starts nothing: while OrbStack is stopped, no service can
/// be unhealthy, and the next call starts it. Otherwise only `list` shows that the service works: `status` was observed to answer
/// while no other verb did.
pub(super) async fn run_probe<O: Orbctl>(work: Work<O>) -> JobResult {
    let began = Moment::now().instant;
    let looked = match work.probe(Query::Status, &work.stop).await {
        Ok(QueryAnswer::Status(OrbstackStatus::Stopped)) => {
            work.report(HealthSignal::Healthy, began).await;
            return JobResult::new(Outcome::Succeeded(Success::Read));
        }
        Ok(_) => work.probe(Query::List, &work.stop).await,
        Err(failure) => Err(failure),
    };
    match looked {
        Ok(answer) => JobResult {
            answer: Some(answer),
            ..JobResult::new(Outcome::Succeeded(Success::Read))
        },
        Err(_) if work.stop.is_cancelled() => JobResult::new(Outcome::Cancelled(Phase::Running)),
        Err(failure) => JobResult::new(Outcome::Failed(failure)),
    }
}

/// Waits until the child processes that a job of the previous instance left running have exited, then reconciles. The job holds its
/// lanes meanwhile.
pub(super) async fn run_orphan<O: Orbctl>(work: Work<O>, children: Vec<ChildIdentity>) -> JobResult {
    for child in children {
        orphan_gone(child, &work.stop, work.settings.grace).await;
    }
    JobResult::new(if work.spec.info.is_change() {
        // How `orbctl` ended, and why, was not observed.
        Outcome::Unknown(work.reconcile().await.last())
    } else {
        Outcome::Interrupted
    })
}

impl<O: Orbctl> Work<O> {
    /// Makes the job's main call of `orbctl`. Reports the child as soon as it is spawned, and the health signal of the result.
    async fn call<T, F>(&self, call: impl FnOnce(RunOptions) -> F) -> CallResult<T>
    where
        F: Future<Output = CallResult<T>>,
    {
        let (started, told) = oneshot::channel();
        let options = self.options(&self.stop, self.spec.run_timeout, Some(started));
        let call = self.reported(call(options));
        tokio::pin!(call);
        let report = async {
            if let Ok(started) = told.await {
                // The dispatcher outlives its jobs. If it has ended, so has the journal.
                let _ = self.notes.send((self.spec.id, Note::Started(started))).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = report => unreachable!("this future never completes"),
            result = &mut call => result,
        }
    }

    fn options(
        &self,
        stop: &CancellationToken,
        run_timeout: Option<Duration>,
        started: Option<oneshot::Sender<Started>>,
    ) -> RunOptions {
        RunOptions {
            stop: stop.clone(),
            run_timeout,
            grace: self.settings.grace,
            marker: self.marker.clone(),
            started,
        }
    }

    /// Awaits a call. Reports first if the program was replaced, and afterwards the health signal of the result.
    async fn reported<T>(&self, call: impl Future<Output = CallResult<T>>) -> CallResult<T> {
        let began = Moment::now().instant;
        if self.orbctl.is_replaced() {
            // The dispatcher outlives its jobs. If it has ended, no cached answer is served any more.
            let _ = self.notes.send((self.spec.id, Note::Replaced)).await;
        }
        let result = call.await;
        self.report(result.signal.clone(), began).await;
        result
    }

    /// Reports what an invocation that began at `began` shows about the health of `orbctl`. The dispatcher gets this report before the
    /// end of the job, or, after a probe, before the next invocation.
    async fn report(&self, signal: HealthSignal, began: Instant) {
        if signal != HealthSignal::Nothing {
            // The dispatcher outlives its jobs. If it has ended, the circuit breaker no longer matters.
            let _ = self
                .notes
                .send((self.spec.id, Note::HealthSignal(signal, began)))
                .await;
        }
    }

    /// Makes one read for the job's own use, until `until` is cancelled. That is `stop` before the work, and `abandon` after a cut,
    /// because reconciliation must also run when `stop` caused the cut.
    async fn probe(&self, query: Query, until: &CancellationToken) -> Result<QueryAnswer, Failure> {
        let options = self.options(until, Some(self.settings.query_timeout), None);
        let call = self.reported(self.orbctl.query(&query, options)).await;
        if let HealthSignal::Unhealthy(problem) = call.signal {
            return Err(Failure::OrbctlUnhealthy(problem));
        }
        call.result.map_err(|error| match error {
            CallError::TimedOut => Failure::OrbctlUnavailable("it did not answer in time".into()),
            CallError::Stopped => Failure::OrbctlUnavailable("the probe was cancelled".into()),
            CallError::Spawn(error) => error.failure(),
            CallError::Failed(failure) => failure,
        })
    }

    /// Checks that the id given by the client still belongs to the machine whose lane the job holds.
    async fn check_id(&self, named: Option<&MachineName>) -> Result<(), JobResult> {
        let (Some(id), Some(name)) = (&self.spec.expected_id, named) else {
            return Ok(());
        };
        match self.probe(Query::List, &self.stop).await {
            _ if self.stop.is_cancelled() => Err(JobResult::new(Outcome::Cancelled(Phase::Running))),
            Ok(QueryAnswer::Machines(all))
                if by_id(&all, id).is_some_and(|machine| machine.name == *name) =>
            {
                Ok(())
            }
            Ok(_) => Err(JobResult::new(Outcome::Failed(Failure::MachineNotFound(
                id.as_str().into(),
            )))),
            Err(failure) => Err(JobResult::new(Outcome::Failed(failure))),
        }
    }

    async fn query(&self, query: &Query) -> JobResult {
        let call = self.call(|options| self.orbctl.query(query, options)).await;
        let outcome = match &call.result {
            Ok(QueryAnswer::Raw(raw)) if let Some(failure) = &raw.failure => Outcome::Failed(failure.clone()),
            Ok(_) => Outcome::Succeeded(Success::Read),
            Err(error) => without_effect(error),
        };
        let mut finished = JobResult::of(&call, outcome);
        finished.answer = call.result.ok();
        finished
    }

    async fn exec(&self, mut exec: Exec) -> JobResult {
        let guest_env = self.settings.guest_env;
        let ChannelRules { enabled, except } = &self.settings.channels;
        if !enabled || except.contains(&exec.machine) {
            exec.request.channel = ChannelUse::Off;
        }
        let call = self
            .call(|options| self.orbctl.exec(exec, guest_env, options))
            .await;
        let outcome = match &call.result {
            Ok(exit_code) => Outcome::Succeeded(Success::Exec {
                exit_code: *exit_code,
            }),
            Err(error) => without_effect(error),
        };
        JobResult::of(&call, outcome)
    }

    async fn change(&self, change: &Change) -> JobResult {
        let info = &self.spec.info;
        if let Some(unsupported) = self.unsupported(change).await {
            return JobResult::new(Outcome::Failed(unsupported));
        }
        // The probe begins after the change was accepted, so `changed: false` never rests on an older state. A forced change skips
        // the probe: it is meant to fix a service that may not answer.
        let is_idempotent = info.goal.is_idempotent();
        let mut before = None;
        if !info.preempts
            && (is_idempotent || info.goal.new_machine().is_some())
            && let Some(query) = info.goal.probe()
        {
            match self.probe(query, &self.stop).await {
                Ok(answer) if is_idempotent && reconcile::satisfied(&info.goal, &answer) == Some(true) => {
                    return JobResult::new(Outcome::Succeeded(Success::Change { changed: false }));
                }
                Ok(answer) => before = Some(answer),
                // The change would fail in the same way. Failing now shows that nothing was done.
                Err(failure @ Failure::OrbctlUnhealthy(_)) => {
                    return JobResult::new(Outcome::Failed(failure));
                }
                // The installed version may not support this read. The change itself will show what is wrong.
                Err(_) => {}
            }
        }
        if self.stop.is_cancelled() {
            return JobResult::new(Outcome::Cancelled(Phase::Running));
        }
        let output_dir = self.settings.spool_dir.clone();
        let call = self
            .call(|options| self.orbctl.change(change, output_dir, options))
            .await;
        let outcome = match &call.result {
            Ok(()) => Outcome::Succeeded(Success::Change { changed: true }),
            Err(CallError::Failed(failure)) if is_definite(&call) => Outcome::Failed(failure.clone()),
            Err(CallError::Spawn(error)) if !matches!(error, SpawnError::Lost { .. }) => {
                Outcome::Failed(error.failure())
            }
            Err(error) => {
                let cut = match (&call.signal, error) {
                    (HealthSignal::Unhealthy(problem) | HealthSignal::Suspect(problem), _) => {
                        problem.to_string()
                    }
                    (_, CallError::Spawn(error)) => error.to_string(),
                    _ => call.ending.map(how_cut).unwrap_or_default(),
                };
                self.reconcile().await.outcome(info, before.as_ref(), &cut)
            }
        };
        JobResult::of(&call, outcome)
    }

    /// Returns the feature that the installed version lacks for this change. Runs `orbctl version` only for changes that need more
    /// than the oldest supported version has.
    async fn unsupported(&self, change: &Change) -> Option<Failure> {
        version::feature(change)?;
        match self.probe(Query::Version, &self.stop).await {
            Ok(QueryAnswer::Version(installed)) => version::supported(&installed)
                .and_then(|installed| version::check(change, installed))
                .err()
                .map(Failure::from),
            Err(failure @ Failure::OrbctlUnhealthy(_)) => Some(failure),
            // If the version cannot be determined, the change itself will show what is wrong.
            _ => None,
        }
    }

    /// Probes until a change that was cut short is stable, the time limit passes or `abandon` is cancelled.
    pub(super) async fn reconcile(&self) -> Reconciliation {
        let info = &self.spec.info;
        let mut reconciliation = Reconciliation::default();
        let Some(query) = info.goal.probe() else {
            return reconciliation;
        };
        let began = Moment::now();
        let mut pause = PROBE_PAUSE_FIRST;
        loop {
            let looked = self
                .probe_with_permit(&query, began.instant + self.settings.reconcile)
                .await;
            let since = Moment::now().instant.saturating_duration_since(began.instant);
            if let Some(Ok(answer)) = looked
                && reconciliation.observe(info, answer, since).stable
            {
                break;
            }
            if since >= self.settings.reconcile || self.abandon.is_cancelled() {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.abandon.cancelled() => break,
            }
            pause = (pause * 2).min(PROBE_PAUSE_MAX);
        }
        reconciliation
    }

    /// Probes once a permit is free. `None` if none was free before `end`, or if `abandon` was cancelled. After a crash the next
    /// instance may have to reconcile many changes, which no queue limit bounds. Forced changes need no permit.
    async fn probe_with_permit(&self, query: &Query, end: Instant) -> Option<Result<QueryAnswer, Failure>> {
        let _place = if self.spec.info.preempts {
            None
        } else {
            tokio::select! {
                place = self.probe_permits.acquire() => Some(place.ok()?),
                () = tokio::time::sleep_until(end.into()) => return None,
                () = self.abandon.cancelled() => return None,
            }
        };
        Some(self.probe_service(query.clone()).await)
    }

    /// Makes a read that also shows whether the service works. `status` alone does not: it was observed to answer while no other verb
    /// did. If OrbStack is stopped, runs nothing more, because that would start it.
    async fn probe_service(&self, query: Query) -> Result<QueryAnswer, Failure> {
        let began = Moment::now().instant;
        let answer = self.probe(query, &self.abandon).await?;
        match answer {
            QueryAnswer::Status(OrbstackStatus::Running) => {
                self.probe(Query::List, &self.abandon).await?;
            }
            QueryAnswer::Status(OrbstackStatus::Stopped) => self.report(HealthSignal::Healthy, began).await,
            _ => {}
        }
        Ok(answer)
    }
}

/// Describes for a person what cut a change short.
pub(super) fn how_cut(ending: Ending) -> String {
    match ending {
        Ending::Exited(code) => format!("orbctl failed with exit code {code}"),
        Ending::Signalled(signal) => format!("orbctl was killed by signal {signal}"),
        Ending::TimedOut => "orbctl did not exit within its run timeout".to_owned(),
        Ending::Stopped => "orbctl was stopped on request".to_owned(),
    }
}

/// Returns whether a failed change did nothing that its failure does not name. Otherwise, if `orbctl` was killed or may be unhealthy,
/// the service may continue without it.
fn is_definite<T>(call: &CallResult<T>) -> bool {
    matches!(call.ending, Some(Ending::Exited(_)))
        && matches!(call.signal, HealthSignal::Healthy | HealthSignal::Nothing)
}

/// Returns the outcome of a read or command that produced nothing.
fn without_effect(error: &CallError) -> Outcome {
    match error {
        CallError::Stopped => Outcome::Cancelled(Phase::Running),
        CallError::TimedOut => Outcome::Expired(Phase::Running),
        CallError::Spawn(error) => Outcome::Failed(error.failure()),
        CallError::Failed(failure) => Outcome::Failed(failure.clone()),
    }
}

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

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::error_chain::error_chain;
use crate::job::{Ending, Failure, HealthSignal, JobId, Outcome, Phase, Success};
use crate::journal::JournalError;
use crate::machine::OrbstackStatus;
use crate::operation::{Effect, Operation, Query, Stdin};
use crate::orbctl::{self, Completion, Input, Invocation, Orbctl, Sink, version};
use crate::spool;
use crate::sys::{self, ChildIdentity};
use orbd_host::run_command::GuestEnv;

use super::answer::{QueryAnswer, RawOutput, by_id};
use super::handle::{Executor, JobSpec, Release};
use super::reconcile::{self, Reconciliation};

/// Most bytes kept of a read's output. A list of ten thousand machines fits.
const ANSWER_MAX: usize = 16 << 20;
/// First pause between probes after a cut; each further pause doubles.
const PROBE_PAUSE_FIRST: Duration = Duration::from_millis(250);
/// Longest pause between probes after a cut.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Completes when a journal entry would survive a power loss.
pub(super) type Durable = BoxFuture<'static, Result<(), JournalError>>;

/// Time limits of a running job.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunLimits {
    /// Longest time for one probe.
    pub(super) query: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub(super) grace: Duration,
    /// Longest reconciliation after a cut.
    pub(super) reconcile: Duration,
}

/// An event that a running job sends to the dispatcher.
#[derive(Debug)]
pub(super) enum Note {
    /// A child was spawned.
    Started(ChildIdentity),
    /// The `orbctl` program was replaced. Sent before the new program starts, so that no cached answer of the old one is served once
    /// the new one has answered.
    Replaced,
    /// The result of an invocation that began at this time shows whether `orbctl` is healthy.
    HealthSignal(HealthSignal, Instant),
}

/// Everything that a job needs to run.
pub(super) struct Work<O> {
    pub(super) spec: Arc<JobSpec>,
    pub(super) orbctl: Arc<O>,
    pub(super) limits: RunLimits,
    /// How environment variables reach a command in a machine.
    pub(super) guest_env: GuestEnv,
    /// Cancelled to stop the running invocation.
    pub(super) stop: CancellationToken,
    /// Cancelled to end reconciliation too: a forced change preempts the job, or orbd stops.
    pub(super) abandon: CancellationToken,
    /// Permits for probes after a cut, shared by all jobs.
    pub(super) probe_permits: Arc<Semaphore>,
    /// Spool for a command's output.
    pub(super) spool: Option<spool::Writer>,
    /// Folder for the output files of changes. A change may outlive orbd, and a pipe would break then.
    pub(super) spool_dir: PathBuf,
    /// Source of streamed input.
    pub(super) input: Option<mpsc::Receiver<Bytes>>,
    /// Marker for the child's environment, by which the next instance recognizes the child.
    pub(super) marker: String,
    /// Channel for [`Note`]s to the dispatcher.
    pub(super) notes: mpsc::Sender<(JobId, Note)>,
    /// For a lease: receives its release.
    pub(super) release: Option<oneshot::Receiver<Release>>,
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

    fn counted(outcome: Outcome, completion: &Completion) -> Self {
        let exit_code = match completion.ending {
            Ending::Exited(code) => Some(code),
            Ending::Signalled(_) | Ending::TimedOut | Ending::Stopped => None,
        };
        let (bytes_in, bytes_out) = (completion.bytes_in, completion.bytes_out);
        Self {
            outcome,
            answer: None,
            ending: Some(completion.ending),
            exit_code,
            bytes_in,
            bytes_out,
        }
    }
}

/// Runs a job to its end. A change that may outlive orbd starts only once its start entry is durable (`durable`). No behavior of
/// `orbctl` makes this panic.
pub(super) async fn run_job<O: Orbctl>(mut work: Work<O>, durable: Option<Durable>) -> JobResult {
    if let Some(durable) = durable
        && let Err(error) = durable.await
    {
        // Fail now: running it without a durable start entry could run it twice after a crash.
        return JobResult::new(Outcome::Failed(Failure::JournalUnavailable(
            error_chain(&error).into(),
        )));
    }
    if let Err(finished) = work.check_id().await {
        return finished;
    }
    if let Executor::Lease(processes) = work.spec.submission.executor {
        return work.lease(processes).await;
    }
    match &work.spec.submission.operation {
        Operation::Query(query) => work.query(query).await,
        Operation::Exec(..) => work.exec().await,
        Operation::ClientAction(_) => {
            let why = "this operation runs only in a client's process, under a lease";
            JobResult::new(Outcome::Failed(Failure::Internal(why.into())))
        }
        _ => work.change().await,
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
        tokio::select! {
            () = sys::gone(child) => {}
            () = work.stop.cancelled() => end_orphan(child, work.limits.grace).await,
        }
    }
    JobResult::new(match work.spec.submission.operation.effect() {
        // How `orbctl` ended, and why, was not observed.
        Effect::Changes(_) => Outcome::Unknown(work.reconcile().await.last()),
        Effect::Reads => Outcome::Interrupted,
    })
}

impl<O: Orbctl> Work<O> {
    /// Runs `orbctl` once. Reports the child as soon as it is spawned, and the health signal of the result.
    async fn invoke(&self, mut invocation: Invocation) -> Result<Completion, orbctl::SpawnError> {
        let (started, told) = oneshot::channel();
        invocation.started = Some(started);
        invocation.marker.clone_from(&self.marker);
        invocation.grace = self.limits.grace;
        let began = Moment::now().instant;
        let run = self.start(invocation, self.stop.clone());
        tokio::pin!(run);
        let report = async {
            if let Ok(identity) = told.await {
                // The dispatcher outlives its jobs. If it has ended, so has the journal.
                let _ = self.notes.send((self.spec.id, Note::Started(identity))).await;
            }
            std::future::pending::<()>().await;
        };
        let completion = tokio::select! {
            biased;
            () = report => unreachable!("this future never completes"),
            completion = &mut run => completion,
        }?;
        self.report(
            orbctl::classify::classify(&self.spec.submission.operation, &completion).signal,
            began,
        )
        .await;
        Ok(completion)
    }

    /// Runs `orbctl`; reports first if the program was replaced.
    async fn start(
        &self,
        invocation: Invocation,
        stop: CancellationToken,
    ) -> Result<Completion, orbctl::SpawnError> {
        if self.orbctl.is_replaced() {
            // The dispatcher outlives its jobs. If it has ended, no cached answer is served any more.
            let _ = self.notes.send((self.spec.id, Note::Replaced)).await;
        }
        self.orbctl.run(invocation, stop).await
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
        let operation = Operation::Query(query);
        let mut invocation = Invocation::new(
            orbctl::argv::call(&operation, self.guest_env),
            Sink::Capture { max: ANSWER_MAX },
        );
        invocation.run_timeout = Some(self.limits.query);
        invocation.grace = self.limits.grace;
        invocation.marker.clone_from(&self.marker);
        let began = Moment::now().instant;
        let completion = self
            .start(invocation, until.clone())
            .await
            .map_err(|error| error.failure())?;
        let signal = orbctl::classify::classify(&operation, &completion).signal;
        self.report(signal.clone(), began).await;
        match signal {
            HealthSignal::Unhealthy(problem) => Err(Failure::OrbctlUnhealthy(problem)),
            HealthSignal::Healthy | HealthSignal::Suspect(_) | HealthSignal::Nothing => {
                read(&operation, &completion)
            }
        }
    }

    /// Checks that the id given by the client still belongs to the machine whose lane the job holds.
    async fn check_id(&self) -> Result<(), JobResult> {
        // For a clone, the lane's machine is the new copy; the id names its source.
        let named = match &self.spec.submission.operation {
            Operation::Clone { source, .. } => Some(source),
            other => other.machine(),
        };
        let (Some(id), Some(name)) = (&self.spec.submission.expected_id, named) else {
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
        let operation = Operation::Query(query.clone());
        let mut invocation = Invocation::new(
            orbctl::argv::call(&operation, self.guest_env),
            Sink::Capture { max: ANSWER_MAX },
        );
        invocation.run_timeout = self.spec.submission.run_timeout;
        let completion = match self.invoke(invocation).await {
            Ok(completion) => completion,
            Err(error) => return JobResult::new(Outcome::Failed(error.failure())),
        };
        if let Some(outcome) = cut_short(&completion) {
            return JobResult::counted(outcome, &completion);
        }
        if let Query::RawQuery(_) = query {
            return raw_result(&operation, &completion);
        }
        match read(&operation, &completion) {
            Ok(answer) => {
                let mut finished = JobResult::counted(Outcome::Succeeded(Success::Read), &completion);
                finished.answer = Some(answer);
                finished
            }
            Err(failure) => JobResult::counted(Outcome::Failed(failure), &completion),
        }
    }

    async fn exec(&mut self) -> JobResult {
        let input = match (&self.spec.submission.operation, self.input.take()) {
            (_, Some(stream)) => Input::Stream(stream),
            (Operation::Exec(_, request), None) => match &request.stdin {
                Stdin::Bytes(bytes) => Input::Bytes(bytes.clone()),
                Stdin::Empty | Stdin::Stream => Input::Empty,
            },
            _ => Input::Empty,
        };
        let sink = self
            .spool
            .take()
            .map_or(Sink::Capture { max: ANSWER_MAX }, Sink::Spool);
        let mut invocation = Invocation::new(
            orbctl::argv::call(&self.spec.submission.operation, self.guest_env),
            sink,
        );
        invocation.stdin = input;
        invocation.run_timeout = self.spec.submission.run_timeout;
        let completion = match self.invoke(invocation).await {
            Ok(completion) => completion,
            Err(error) => return JobResult::new(Outcome::Failed(error.failure())),
        };
        if let Some(outcome) = cut_short(&completion) {
            return JobResult::counted(outcome, &completion);
        }
        let verdict = orbctl::classify::classify(&self.spec.submission.operation, &completion);
        let outcome = match (verdict.failure, completion.ending) {
            (Some(failure), _) => Outcome::Failed(failure),
            (None, Ending::Exited(exit_code)) => Outcome::Succeeded(Success::Exec { exit_code }),
            (None, ending) => Outcome::Failed(Failure::Internal(
                format!("unclassified ending {ending:?}").into(),
            )),
        };
        JobResult::counted(outcome, &completion)
    }

    async fn change(&self) -> JobResult {
        let operation = &self.spec.submission.operation;
        if let Some(unsupported) = self.unsupported().await {
            return JobResult::new(Outcome::Failed(unsupported));
        }
        // The probe begins after the change was accepted, so `changed: false` never rests on an older state. A forced change skips
        // the probe: it is meant to fix a service that may not answer.
        let is_idempotent = reconcile::is_idempotent(operation);
        let mut before = None;
        if !operation.preempts()
            && (is_idempotent || reconcile::makes(operation).is_some())
            && let Some(query) = reconcile::probe_query(operation)
        {
            match self.probe(query, &self.stop).await {
                Ok(answer) if is_idempotent && reconcile::satisfied(operation, &answer) == Some(true) => {
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
        // The change may outlive orbd, after a stop or a crash, so its output must not go to a pipe, which would break.
        let sink = Sink::Files {
            dir: self.spool_dir.clone(),
            max: ANSWER_MAX,
        };
        let mut invocation = Invocation::new(orbctl::argv::call(operation, self.guest_env), sink);
        invocation.run_timeout = self.spec.submission.run_timeout;
        let completion = match self.invoke(invocation).await {
            Ok(completion) => completion,
            // A child ran, but its exit status is unknown: only the inventory can show the result.
            Err(error @ orbctl::SpawnError::Lost { .. }) => {
                let reconciliation = self.reconcile().await;
                return JobResult::new(reconciliation.outcome(
                    operation,
                    before.as_ref(),
                    &error.to_string(),
                ));
            }
            Err(error) => return JobResult::new(Outcome::Failed(error.failure())),
        };
        let verdict = orbctl::classify::classify(operation, &completion);
        let may_be_unhealthy = verdict.may_be_unhealthy();
        match (completion.ending, verdict.failure) {
            (Ending::Exited(_), None) => {
                JobResult::counted(Outcome::Succeeded(Success::Change { changed: true }), &completion)
            }
            (Ending::Exited(_), Some(failure)) if !may_be_unhealthy => {
                JobResult::counted(Outcome::Failed(failure), &completion)
            }
            // Killed, timed out, stopped, or `orbctl` crashed: the service may continue without it.
            (ending, _) => {
                let cut = match &verdict.signal {
                    HealthSignal::Unhealthy(problem) | HealthSignal::Suspect(problem) => problem.to_string(),
                    HealthSignal::Healthy | HealthSignal::Nothing => how_cut(ending),
                };
                let outcome = self.reconcile().await.outcome(operation, before.as_ref(), &cut);
                JobResult::counted(outcome, &completion)
            }
        }
    }

    /// Returns the feature that the installed version lacks for this change. Runs `orbctl version` only for changes that need more
    /// than the oldest supported version has.
    async fn unsupported(&self) -> Option<Failure> {
        version::feature(&self.spec.submission.operation)?;
        match self.probe(Query::Version, &self.stop).await {
            Ok(QueryAnswer::Version(installed)) => version::supported(&installed)
                .and_then(|installed| version::check(&self.spec.submission.operation, installed))
                .err()
                .map(Failure::from),
            Err(failure @ Failure::OrbctlUnhealthy(_)) => Some(failure),
            // If the version cannot be determined, the change itself will show what is wrong.
            _ => None,
        }
    }

    /// Probes until a change that was cut short is stable, the time limit passes or `abandon` is cancelled.
    pub(super) async fn reconcile(&self) -> Reconciliation {
        let operation = &self.spec.submission.operation;
        let mut reconciliation = Reconciliation::default();
        let Some(query) = reconcile::probe_query(operation) else {
            return reconciliation;
        };
        let began = Moment::now();
        let mut pause = PROBE_PAUSE_FIRST;
        loop {
            let looked = self
                .probe_with_permit(&query, began.instant + self.limits.reconcile)
                .await;
            let since = Moment::now().instant.saturating_duration_since(began.instant);
            if let Some(Ok(answer)) = looked
                && reconciliation.observe(operation, answer, since).stable
            {
                break;
            }
            if since >= self.limits.reconcile || self.abandon.is_cancelled() {
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
        let _place = if self.spec.submission.operation.preempts() {
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

/// Ends the process group of a child of an earlier instance: SIGTERM, and SIGKILL after the grace.
async fn end_orphan(identity: ChildIdentity, grace: Duration) {
    sys::terminate_group(identity);
    if tokio::time::timeout(grace, sys::gone(identity)).await.is_err() {
        sys::kill_group(identity);
        sys::gone(identity).await;
    }
}

/// Returns the outcome of a read or command that orbd ended; `None` if it ended by itself.
fn cut_short(completion: &Completion) -> Option<Outcome> {
    match completion.ending {
        Ending::Stopped => Some(Outcome::Cancelled(Phase::Running)),
        Ending::TimedOut => Some(Outcome::Expired(Phase::Running)),
        Ending::Exited(_) | Ending::Signalled(_) => None,
    }
}

/// Returns the unparsed output as the answer, also if the read failed: that output is the answer of `orbctl` too.
fn raw_result(operation: &Operation, completion: &Completion) -> JobResult {
    let (stdout, stderr) = (&completion.stdout, &completion.stderr);
    if completion.output_cut || !stdout.is_whole() || !stderr.is_whole() {
        let failure = Failure::OrbctlOutputUnreadable("output exceeds the size limit".into());
        return JobResult::counted(Outcome::Failed(failure), completion);
    }
    let outcome = match orbctl::classify::classify(operation, completion).failure {
        Some(failure) => Outcome::Failed(failure),
        None => Outcome::Succeeded(Success::Read),
    };
    let mut finished = JobResult::counted(outcome, completion);
    finished.answer = Some(QueryAnswer::Raw(RawOutput {
        stdout: stdout.bytes.clone(),
        stderr: stderr.bytes.clone(),
        ending: completion.ending,
    }));
    finished
}

/// Parses the answer of a query.
fn read(operation: &Operation, completion: &Completion) -> Result<QueryAnswer, Failure> {
    let Operation::Query(query) = operation else {
        return Err(Failure::Internal("the operation is not a query".into()));
    };
    if completion.ending == Ending::TimedOut {
        return Err(Failure::OrbctlUnavailable("it did not answer in time".into()));
    }
    if completion.ending == Ending::Stopped {
        return Err(Failure::OrbctlUnavailable("the probe was cancelled".into()));
    }
    let verdict = orbctl::classify::classify(operation, completion);
    if let Some(failure) = verdict.failure {
        return Err(failure);
    }
    let stdout = &completion.stdout.bytes;
    let answer = match query {
        Query::List => orbctl::output::list(stdout).map(QueryAnswer::Machines),
        Query::Info(_) => orbctl::output::info(stdout).map(|info| QueryAnswer::Info(Box::new(info))),
        Query::Status => orbctl::output::status(completion.ending, stdout).map(QueryAnswer::Status),
        Query::Version => orbctl::output::version(stdout).map(QueryAnswer::Version),
        Query::ConfigShow => orbctl::output::config(stdout).map(QueryAnswer::Config),
        Query::Default => orbctl::output::default_machine(stdout).map(QueryAnswer::Default),
        Query::Ssh | Query::Logs(..) => Ok(QueryAnswer::Text(String::from_utf8_lossy(stdout).into_owned())),
        Query::RawQuery(_) => return Err(Failure::Internal("a raw query has no parsed answer".into())),
    };
    answer.map_err(|error| Failure::OrbctlOutputUnreadable(error.to_string().into()))
}

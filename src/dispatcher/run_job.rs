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
use crate::error_chain::error_chain;
use crate::job::{Ending, Failure, HealthSignal, JobId, Outcome, Phase, Success};
use crate::journal::JournalError;
use crate::machine::{MachineName, OrbstackStatus};
use crate::operation::{Change, ExecRequest, Query};
use crate::orbctl::classify::{self, Verdict};
use crate::orbctl::{self, Completion, Input, Invocation, Orbctl, Sink, version};
use crate::spool;
use crate::sys::{self, ChildIdentity};
use orbd_host::run_command::GuestEnv;

use super::Settings;
use super::answer::{QueryAnswer, RawOutput, by_id};
use super::handle::{JobSpec, LeaseProcesses, Release};
use super::reconcile::{self, Reconciliation};

/// Most bytes kept of a read's output. A list of ten thousand machines fits.
const ANSWER_MAX: usize = 16 << 20;
/// First pause between probes after a cut; each further pause doubles.
const PROBE_PAUSE_FIRST: Duration = Duration::from_millis(250);
/// Longest pause between probes after a cut.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Completes when a journal entry would survive a power loss.
pub(super) type Durable = BoxFuture<'static, Result<(), JournalError>>;

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

/// What a job does once it starts.
pub(super) enum Task {
    Query(Query),
    Exec(Box<Exec>),
    Change(Change),
    Lease(LeaseProcesses, oneshot::Receiver<Release>),
}

/// A command with its streams.
pub(super) struct Exec {
    pub(super) machine: MachineName,
    pub(super) request: ExecRequest,
    pub(super) stdin: Input,
    pub(super) output: spool::Writer,
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
pub(super) struct RunSettings {
    /// Longest time for one probe.
    query_timeout: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub(super) grace: Duration,
    /// Longest reconciliation after a cut.
    reconcile: Duration,
    /// How environment variables reach a command in a machine.
    guest_env: GuestEnv,
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
        tokio::select! {
            () = sys::gone(child) => {}
            () = work.stop.cancelled() => end_orphan(child, work.settings.grace).await,
        }
    }
    JobResult::new(if work.spec.info.is_change() {
        // How `orbctl` ended, and why, was not observed.
        Outcome::Unknown(work.reconcile().await.last())
    } else {
        Outcome::Interrupted
    })
}

impl<O: Orbctl> Work<O> {
    /// Runs `orbctl` once. Reports the child as soon as it is spawned, and the health signal of the result.
    async fn invoke(
        &self,
        mut invocation: Invocation,
        classify: impl FnOnce(&Completion) -> Verdict,
    ) -> Result<(Completion, Verdict), orbctl::SpawnError> {
        let (started, told) = oneshot::channel();
        invocation.started = Some(started);
        invocation.run_timeout = self.spec.run_timeout;
        invocation.marker.clone_from(&self.marker);
        invocation.grace = self.settings.grace;
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
        let verdict = classify(&completion);
        self.report(verdict.signal.clone(), began).await;
        Ok((completion, verdict))
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
        let mut invocation = Invocation::new(orbctl::argv::query(&query), Sink::Capture { max: ANSWER_MAX });
        invocation.run_timeout = Some(self.settings.query_timeout);
        invocation.grace = self.settings.grace;
        invocation.marker.clone_from(&self.marker);
        let began = Moment::now().instant;
        let completion = self
            .start(invocation, until.clone())
            .await
            .map_err(|error| error.failure())?;
        let verdict = classify::query(&query, &completion);
        self.report(verdict.signal.clone(), began).await;
        match verdict.signal {
            HealthSignal::Unhealthy(problem) => Err(Failure::OrbctlUnhealthy(problem)),
            HealthSignal::Healthy | HealthSignal::Suspect(_) | HealthSignal::Nothing => {
                read(&query, &completion, verdict.failure)
            }
        }
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
        let invocation = Invocation::new(orbctl::argv::query(query), Sink::Capture { max: ANSWER_MAX });
        let classify = |completion: &Completion| classify::query(query, completion);
        let (completion, verdict) = match self.invoke(invocation, classify).await {
            Ok(result) => result,
            Err(error) => return JobResult::new(Outcome::Failed(error.failure())),
        };
        if let Some(outcome) = cut_short(&completion) {
            return JobResult::counted(outcome, &completion);
        }
        if let Query::RawQuery(_) = query {
            return raw_result(&completion, verdict.failure);
        }
        match read(query, &completion, verdict.failure) {
            Ok(answer) => {
                let mut finished = JobResult::counted(Outcome::Succeeded(Success::Read), &completion);
                finished.answer = Some(answer);
                finished
            }
            Err(failure) => JobResult::counted(Outcome::Failed(failure), &completion),
        }
    }

    async fn exec(&self, exec: Exec) -> JobResult {
        let call = orbctl::argv::exec(&exec.machine, &exec.request, self.settings.guest_env);
        let mut invocation = Invocation::new(call, Sink::Spool(exec.output));
        invocation.stdin = exec.stdin;
        let classify = |completion: &Completion| classify::exec(&exec.machine, completion);
        let (completion, verdict) = match self.invoke(invocation, classify).await {
            Ok(result) => result,
            Err(error) => return JobResult::new(Outcome::Failed(error.failure())),
        };
        if let Some(outcome) = cut_short(&completion) {
            return JobResult::counted(outcome, &completion);
        }
        let outcome = match (verdict.failure, completion.ending) {
            (Some(failure), _) => Outcome::Failed(failure),
            (None, Ending::Exited(exit_code)) => Outcome::Succeeded(Success::Exec { exit_code }),
            (None, ending) => Outcome::Failed(Failure::Internal(
                format!("unclassified ending {ending:?}").into(),
            )),
        };
        JobResult::counted(outcome, &completion)
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
        // The change may outlive orbd, after a stop or a crash, so its output must not go to a pipe, which would break.
        let sink = Sink::Files {
            dir: self.settings.spool_dir.clone(),
            max: ANSWER_MAX,
        };
        let invocation = Invocation::new(orbctl::argv::change(change), sink);
        let classify = |completion: &Completion| classify::change(change, completion);
        let (completion, verdict) = match self.invoke(invocation, classify).await {
            Ok(result) => result,
            // A child ran, but its exit status is unknown: only the inventory can show the result.
            Err(error @ orbctl::SpawnError::Lost { .. }) => {
                let reconciliation = self.reconcile().await;
                return JobResult::new(reconciliation.outcome(info, before.as_ref(), &error.to_string()));
            }
            Err(error) => return JobResult::new(Outcome::Failed(error.failure())),
        };
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
                let outcome = self.reconcile().await.outcome(info, before.as_ref(), &cut);
                JobResult::counted(outcome, &completion)
            }
        }
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
fn raw_result(completion: &Completion, failure: Option<Failure>) -> JobResult {
    let (stdout, stderr) = (&completion.stdout, &completion.stderr);
    if completion.output_cut || !stdout.is_whole() || !stderr.is_whole() {
        let failure = Failure::OrbctlOutputUnreadable("output exceeds the size limit".into());
        return JobResult::counted(Outcome::Failed(failure), completion);
    }
    let outcome = match failure {
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

/// Parses the answer of a query, unless it failed.
fn read(query: &Query, completion: &Completion, failure: Option<Failure>) -> Result<QueryAnswer, Failure> {
    if completion.ending == Ending::TimedOut {
        return Err(Failure::OrbctlUnavailable("it did not answer in time".into()));
    }
    if completion.ending == Ending::Stopped {
        return Err(Failure::OrbctlUnavailable("the probe was cancelled".into()));
    }
    if let Some(failure) = failure {
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

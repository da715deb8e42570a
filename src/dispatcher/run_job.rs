//! Carries out one job, from its start to its outcome.
//!
//! A job may need several invocations: a look whether a change already holds, the change itself, and looks afterwards when it was
//! cut short. Nothing here decides order or remembers anything beyond the job; the dispatcher hears of the end and does the rest.
//!
//! ```text
//! start --> named by id? look, compare --> idempotent? look --holds--> succeeded, changed: false
//!                 | other machine                | no
//!                 v                              v
//!              failed                      invocation --exited--> classified: succeeded or failed
//!                                                | cut short
//!                                                v
//!                            command: cancelled or expired    change: looks until settled --> succeeded, with a warning
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
use crate::orbctl::argv::GuestEnv;
use crate::orbctl::{self, Completion, Input, Invocation, Orbctl, Sink, version};
use crate::spool;
use crate::sys::{self, ChildIdentity};

use super::answer::{QueryAnswer, RawOutput, by_id};
use super::handle::{Executor, JobSpec, Release};
use super::reconcile::{self, Reconciliation};

/// Most bytes of a read's answer that are kept; a list of ten thousand machines fits.
const ANSWER_MAX: usize = 16 << 20;
/// First pause between looks after a cut; it doubles.
const PROBE_PAUSE_FIRST: Duration = Duration::from_millis(250);
/// Longest pause between looks.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Ends when an entry of the journal would survive a loss of power.
pub(super) type Durable = BoxFuture<'static, Result<(), JournalError>>;

/// Limits that a job runs under.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunLimits {
    /// Longest time for one look.
    pub(super) query: Duration,
    /// Between SIGTERM and SIGKILL.
    pub(super) grace: Duration,
    /// Longest time that looks go on after a cut.
    pub(super) reconcile: Duration,
}

/// What a job says while it runs.
#[derive(Debug)]
pub(super) enum Note {
    /// There is a child.
    Started(ChildIdentity),
    /// `orbctl` is another program than before. Said before that one starts, so that nobody is told what the old one said once
    /// the new one has answered.
    Replaced,
    /// An invocation that began then says something about `orbctl` itself.
    HealthSignal(HealthSignal, Instant),
}

/// What a job needs to run.
pub(super) struct Work<O> {
    pub(super) spec: Arc<JobSpec>,
    pub(super) orbctl: Arc<O>,
    pub(super) limits: RunLimits,
    /// How variables reach the guest.
    pub(super) guest_env: GuestEnv,
    /// Ends what runs.
    pub(super) stop: CancellationToken,
    /// Ends looking, too: somebody forces the lane, or we are going away.
    pub(super) abandon: CancellationToken,
    /// Places for looks after a cut, shared by all jobs.
    pub(super) probe_permits: Arc<Semaphore>,
    /// Where a command's output goes.
    pub(super) spool: Option<spool::Writer>,
    /// Folder for a change's output, which must not break when we end first.
    pub(super) spool_dir: PathBuf,
    /// Where streamed input comes from.
    pub(super) input: Option<mpsc::Receiver<Bytes>>,
    /// Put into the child's environment, so that our next life recognises it.
    pub(super) marker: String,
    /// Told of each child, as soon as there is one, and of what each invocation says about `orbctl` itself.
    pub(super) notes: mpsc::Sender<(JobId, Note)>,
    /// For a lease: where its release comes from.
    pub(super) release: Option<oneshot::Receiver<Release>>,
}

/// How a job ended.
#[derive(Debug)]
pub(super) struct JobResult {
    pub(super) outcome: Outcome,
    /// What a query saw.
    pub(super) facts: Option<QueryAnswer>,
    pub(super) ending: Option<Ending>,
    pub(super) exit_code: Option<i32>,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
}

impl JobResult {
    pub(super) fn new(outcome: Outcome) -> Self {
        Self {
            outcome,
            facts: None,
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
            facts: None,
            ending: Some(completion.ending),
            exit_code,
            bytes_in,
            bytes_out,
        }
    }
}

/// Runs a job to its end; a change that outlives us not before it is on disk (`durable`). Never panics on anything that `orbctl` does.
pub(super) async fn run_job<O: Orbctl>(mut work: Work<O>, durable: Option<Durable>) -> JobResult {
    if let Some(durable) = durable
        && let Err(error) = durable.await
    {
        // Not run at all, rather than perhaps twice.
        return JobResult::new(Outcome::Failed(Failure::JournalUnavailable(
            error_chain(&error).into(),
        )));
    }
    if let Err(finished) = work.check_id().await {
        return finished;
    }
    if let Executor::Lease(processes) = work.spec.asked.executor {
        return work.lease(processes).await;
    }
    match &work.spec.asked.operation {
        Operation::Query(query) => work.query(query).await,
        Operation::Exec(..) => work.exec().await,
        Operation::ClientAction(_) => {
            let why = "only a client's own process can do this";
            JobResult::new(Outcome::Failed(Failure::Internal(why.into())))
        }
        _ => work.change().await,
    }
}

/// Asks only whether `orbctl` is well again. `status` comes first because it wakes nobody: with OrbStack stopped there is nobody
/// who could be sick, and the next call starts it. Otherwise only the list shows that the service works: `status` was recorded to
/// answer while nothing else did.
pub(super) async fn run_probe<O: Orbctl>(work: Work<O>) -> JobResult {
    let began = Moment::now().instant;
    let looked = match work.look(Query::Status, &work.stop).await {
        Ok(QueryAnswer::Status(OrbstackStatus::Stopped)) => {
            work.report(HealthSignal::Healthy, began).await;
            return JobResult::new(Outcome::Succeeded(Success::Read));
        }
        Ok(_) => work.look(Query::List, &work.stop).await,
        Err(failure) => Err(failure),
    };
    match looked {
        Ok(facts) => JobResult {
            facts: Some(facts),
            ..JobResult::new(Outcome::Succeeded(Success::Read))
        },
        Err(_) if work.stop.is_cancelled() => JobResult::new(Outcome::Cancelled(Phase::Running)),
        Err(failure) => JobResult::new(Outcome::Failed(failure)),
    }
}

/// Waits until what a job of the last life left running is gone, and looks what came of it. The lanes stay held meanwhile.
pub(super) async fn run_orphan<O: Orbctl>(work: Work<O>, children: Vec<ChildIdentity>) -> JobResult {
    for child in children {
        tokio::select! {
            () = sys::gone(child) => {}
            () = work.stop.cancelled() => end_orphan(child, work.limits.grace).await,
        }
    }
    JobResult::new(match work.spec.asked.operation.effect() {
        // How its `orbctl` ended, and why, was not seen.
        Effect::Changes(_) => Outcome::Unknown(work.reconcile().await.last()),
        Effect::Reads => Outcome::Interrupted,
    })
}

impl<O: Orbctl> Work<O> {
    /// Runs `orbctl` once and reports the child as soon as there is one.
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
                // The dispatcher outlives its jobs; if it is gone, so is the journal.
                let _ = self.notes.send((self.spec.id, Note::Started(identity))).await;
            }
            std::future::pending::<()>().await;
        };
        let completion = tokio::select! {
            biased;
            () = report => unreachable!("it never ends"),
            completion = &mut run => completion,
        }?;
        self.report(
            orbctl::classify::classify(&self.spec.asked.operation, &completion).signal,
            began,
        )
        .await;
        Ok(completion)
    }

    /// Starts `orbctl`, and first says so if it is another program than before.
    async fn start(
        &self,
        invocation: Invocation,
        stop: CancellationToken,
    ) -> Result<Completion, orbctl::SpawnError> {
        if self.orbctl.is_replaced() {
            // The dispatcher outlives its jobs; if it is gone, nobody is told anything any more.
            let _ = self.notes.send((self.spec.id, Note::Replaced)).await;
        }
        self.orbctl.run(invocation, stop).await
    }

    /// Tells what an invocation that began then says about `orbctl` itself: before its job ends, and a look before the next one.
    async fn report(&self, signal: HealthSignal, began: Instant) {
        if signal != HealthSignal::Nothing {
            // The dispatcher outlives its jobs; if it is gone, nobody is let through anyway.
            let _ = self
                .notes
                .send((self.spec.id, Note::HealthSignal(signal, began)))
                .await;
        }
    }

    /// Makes one read for the job's own use. What ends it depends on when it is made: before the work `stop` does, after a cut,
    /// when looks are what follows a stop, only `abandon`.
    async fn look(&self, query: Query, until: &CancellationToken) -> Result<QueryAnswer, Failure> {
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

    /// Checks that an id still means the machine whose lane the job holds.
    async fn check_id(&self) -> Result<(), JobResult> {
        // A copy is listed under its own name; what was named is its source.
        let named = match &self.spec.asked.operation {
            Operation::Clone { source, .. } => Some(source),
            other => other.machine(),
        };
        let (Some(id), Some(name)) = (&self.spec.asked.expected_id, named) else {
            return Ok(());
        };
        match self.look(Query::List, &self.stop).await {
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
        invocation.run_timeout = self.spec.asked.run_timeout;
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
            Ok(facts) => {
                let mut finished = JobResult::counted(Outcome::Succeeded(Success::Read), &completion);
                finished.facts = Some(facts);
                finished
            }
            Err(failure) => JobResult::counted(Outcome::Failed(failure), &completion),
        }
    }

    async fn exec(&mut self) -> JobResult {
        let input = match (&self.spec.asked.operation, self.input.take()) {
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
            orbctl::argv::call(&self.spec.asked.operation, self.guest_env),
            sink,
        );
        invocation.stdin = input;
        invocation.run_timeout = self.spec.asked.run_timeout;
        let completion = match self.invoke(invocation).await {
            Ok(completion) => completion,
            Err(error) => return JobResult::new(Outcome::Failed(error.failure())),
        };
        if let Some(outcome) = cut_short(&completion) {
            return JobResult::counted(outcome, &completion);
        }
        let verdict = orbctl::classify::classify(&self.spec.asked.operation, &completion);
        let outcome = match (verdict.failure, completion.ending) {
            (Some(failure), _) => Outcome::Failed(failure),
            (None, Ending::Exited(exit_code)) => Outcome::Succeeded(Success::Exec { exit_code }),
            (None, ending) => {
                Outcome::Failed(Failure::Internal(format!("{ending:?} was not classified").into()))
            }
        };
        JobResult::counted(outcome, &completion)
    }

    async fn change(&self) -> JobResult {
        let operation = &self.spec.asked.operation;
        if let Some(unsupported) = self.unsupported().await {
            return JobResult::new(Outcome::Failed(unsupported));
        }
        // The look begins after the change was accepted, so `changed: false` is never said of something older. A forced change
        // does not wait for a look: it is there to mend what may not answer.
        let is_idempotent = reconcile::is_idempotent(operation);
        let mut before = None;
        if !operation.preempts()
            && (is_idempotent || reconcile::makes(operation).is_some())
            && let Some(query) = reconcile::probe_query(operation)
        {
            match self.look(query, &self.stop).await {
                Ok(facts) if is_idempotent && reconcile::satisfied(operation, &facts) == Some(true) => {
                    return JobResult::new(Outcome::Succeeded(Success::Change { changed: false }));
                }
                Ok(facts) => before = Some(facts),
                // The change would meet the same, and now it can still be said that nothing was done.
                Err(failure @ Failure::OrbctlUnhealthy(_)) => {
                    return JobResult::new(Outcome::Failed(failure));
                }
                // It may be a look that the installed version cannot make: the change itself will tell.
                Err(_) => {}
            }
        }
        if self.stop.is_cancelled() {
            return JobResult::new(Outcome::Cancelled(Phase::Running));
        }
        // A stop leaves it to finish, and a crash cannot ask: no pipe of ours may break under it.
        let sink = Sink::Files {
            dir: self.spool_dir.clone(),
            max: ANSWER_MAX,
        };
        let mut invocation = Invocation::new(orbctl::argv::call(operation, self.guest_env), sink);
        invocation.run_timeout = self.spec.asked.run_timeout;
        let completion = match self.invoke(invocation).await {
            Ok(completion) => completion,
            // There was a child, and how it ended was not seen: the inventory must tell.
            Err(error @ orbctl::SpawnError::Lost { .. }) => {
                let settling = self.reconcile().await;
                return JobResult::new(settling.outcome(operation, before.as_ref(), &error.to_string()));
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
            // Killed, timed out, stopped, or it fell over: the service may go on without it.
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

    /// Says what the installed version lacks for this change; asks only for changes that need more than the oldest has.
    async fn unsupported(&self) -> Option<Failure> {
        version::feature(&self.spec.asked.operation)?;
        match self.look(Query::Version, &self.stop).await {
            Ok(QueryAnswer::Version(installed)) => version::supported(&installed)
                .and_then(|installed| version::check(&self.spec.asked.operation, installed))
                .err()
                .map(Failure::from),
            Err(failure @ Failure::OrbctlUnhealthy(_)) => Some(failure),
            // If it cannot say its version, the change itself will show what is wrong.
            _ => None,
        }
    }

    /// Looks until a change that was cut short has come to rest.
    pub(super) async fn reconcile(&self) -> Reconciliation {
        let operation = &self.spec.asked.operation;
        let mut settling = Reconciliation::default();
        let Some(query) = reconcile::probe_query(operation) else {
            return settling;
        };
        let began = Moment::now();
        let mut pause = PROBE_PAUSE_FIRST;
        loop {
            let looked = self
                .probe_with_permit(&query, began.instant + self.limits.reconcile)
                .await;
            let since = Moment::now().instant.saturating_duration_since(began.instant);
            if let Some(Ok(facts)) = looked
                && settling.look(operation, facts, since).stable
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
        settling
    }

    /// Looks once one of the places for looks is free; `None` when none was by then, or nobody wants to know any more. A life that
    /// begins after many deaths has many changes to look after, and no limit of the queue holds what it adopts. What forces waits
    /// for nothing.
    async fn probe_with_permit(&self, query: &Query, end: Instant) -> Option<Result<QueryAnswer, Failure>> {
        let _place = if self.spec.asked.operation.preempts() {
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

    /// Makes a read that also shows whether the service works. `status` alone does not: it was recorded to answer while nothing else
    /// did. Of a stopped OrbStack nothing more is asked, because that would start it.
    async fn probe_service(&self, query: Query) -> Result<QueryAnswer, Failure> {
        let began = Moment::now().instant;
        let facts = self.look(query, &self.abandon).await?;
        match facts {
            QueryAnswer::Status(OrbstackStatus::Running) => {
                self.look(Query::List, &self.abandon).await?;
            }
            QueryAnswer::Status(OrbstackStatus::Stopped) => self.report(HealthSignal::Healthy, began).await,
            _ => {}
        }
        Ok(facts)
    }
}

/// Says what cut a change short.
pub(super) fn how_cut(ending: Ending) -> String {
    match ending {
        Ending::Exited(code) => format!("orbctl failed with exit code {code}"),
        Ending::Signalled(signal) => format!("orbctl was killed by signal {signal}"),
        Ending::TimedOut => "orbctl did not end within its run timeout".to_owned(),
        Ending::Stopped => "orbctl was ended on request".to_owned(),
    }
}

/// Ends what a child of an earlier life of ours started with it, too.
async fn end_orphan(identity: ChildIdentity, grace: Duration) {
    sys::terminate_group(identity);
    if tokio::time::timeout(grace, sys::gone(identity)).await.is_err() {
        sys::kill_group(identity);
        sys::gone(identity).await;
    }
}

/// Says what a read or a command that did not end by itself means.
fn cut_short(completion: &Completion) -> Option<Outcome> {
    match completion.ending {
        Ending::Stopped => Some(Outcome::Cancelled(Phase::Running)),
        Ending::TimedOut => Some(Outcome::Expired(Phase::Running)),
        Ending::Exited(_) | Ending::Signalled(_) => None,
    }
}

/// Takes what was printed for the answer, also of a read that failed: that is the tool's answer, too.
fn raw_result(operation: &Operation, completion: &Completion) -> JobResult {
    let (stdout, stderr) = (&completion.stdout, &completion.stderr);
    if completion.output_cut || !stdout.is_whole() || !stderr.is_whole() {
        let failure = Failure::OrbctlOutputUnreadable("it printed more than is kept".into());
        return JobResult::counted(Outcome::Failed(failure), completion);
    }
    let outcome = match orbctl::classify::classify(operation, completion).failure {
        Some(failure) => Outcome::Failed(failure),
        None => Outcome::Succeeded(Success::Read),
    };
    let mut finished = JobResult::counted(outcome, completion);
    finished.facts = Some(QueryAnswer::Raw(RawOutput {
        stdout: stdout.bytes.clone(),
        stderr: stderr.bytes.clone(),
        ending: completion.ending,
    }));
    finished
}

/// Reads a query's answer.
fn read(operation: &Operation, completion: &Completion) -> Result<QueryAnswer, Failure> {
    let Operation::Query(query) = operation else {
        return Err(Failure::Internal("not a query".into()));
    };
    if completion.ending == Ending::TimedOut {
        return Err(Failure::OrbctlUnavailable("it gave no answer in time".into()));
    }
    if completion.ending == Ending::Stopped {
        return Err(Failure::OrbctlUnavailable("the look was given up".into()));
    }
    let verdict = orbctl::classify::classify(operation, completion);
    if let Some(failure) = verdict.failure {
        return Err(failure);
    }
    let stdout = &completion.stdout.bytes;
    let facts = match query {
        Query::List => orbctl::output::list(stdout).map(QueryAnswer::Machines),
        Query::Info(_) => orbctl::output::info(stdout).map(|info| QueryAnswer::Info(Box::new(info))),
        Query::Status => orbctl::output::status(completion.ending, stdout).map(QueryAnswer::Status),
        Query::Version => orbctl::output::version(stdout).map(QueryAnswer::Version),
        Query::ConfigShow => orbctl::output::config(stdout).map(QueryAnswer::Config),
        Query::Default => orbctl::output::default_machine(stdout).map(QueryAnswer::Default),
        Query::Ssh | Query::Logs(..) => Ok(QueryAnswer::Text(String::from_utf8_lossy(stdout).into_owned())),
        Query::RawQuery(_) => return Err(Failure::Internal("has no meaning, only bytes".into())),
    };
    facts.map_err(|error| Failure::OrbctlOutputUnreadable(error.to_string().into()))
}

//! The dispatcher's task: jobs and their lives, reads and who shares them, what is known and when it stops being true.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Generation, Recorded, Source, Ticket, Topic};
use crate::clock::Moment;
use crate::job::{Failure, JobId, Outcome, Phase, Priority, Sighting, Success};
use crate::journal::{AcceptedJob, Entry as JournalEntry, InFlight, Journal, Recovered, Starting};
use crate::machine::MachineState;
use crate::metrics::{self, Counter, Metrics, OperationRecord, OutcomeWord};
use crate::operation::{Class, Effect, Operation, Query, Scope, Stdin};
use crate::orbctl::Orbctl;
use crate::scheduler::{self, Admission, Blocker, CancelResult, NewJob, Refusal, Scheduler};
use crate::spool;
use crate::sys::{self, ChildIdentity};

use super::handle::{
    CacheView, Cancelled, Carrier, Client, Job, JobFilter, JobSpec, JobState, JobView, KeptView, Published,
    QueueVerb, QueueView, ReadError, Rejection, Request, StateFilter, Submission, Target, WaitingFor,
};
use super::known::{Known, Seen, by_name, topic};
use super::run_job::{Durable, Finished, Work, run_job, run_orphan};
use super::stored;
use super::{Parts, Settings};

/// Requests handled before the ends of jobs are looked at again.
const REQUESTS_AT_ONCE: usize = 64;
/// Pieces of streamed input between a client and a child.
const INPUT_MAX: usize = 4;
/// Most bytes of commands, environments and inputs held by jobs that are not over.
const OPERANDS_MAX: u64 = 256 << 20;
/// When a caller refused for that may come back.
const OPERANDS_RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long after a stop running changes are waited for before they are left to themselves.
const LEAVE_CHANGES_AFTER: Duration = Duration::from_secs(10);

/// Everything about one job.
struct Entry {
    spec: Arc<JobSpec>,
    state: watch::Sender<JobState>,
    /// Ends what runs.
    stop: CancellationToken,
    /// Ends looking afterwards, too.
    abandon: CancellationToken,
    spool: Option<spool::Spool>,
    /// Bytes that it wrote and that are no longer kept.
    output_gone: u64,
    /// Until the start: where output will go.
    writer: Option<spool::Writer>,
    /// Where streamed input goes in, while it may.
    input: Option<mpsc::Sender<Bytes>>,
    /// Until the start: where streamed input comes out.
    input_end: Option<mpsc::Receiver<Bytes>>,
    /// For a lease: told how the client's process ended.
    release: Option<oneshot::Sender<Option<i32>>>,
    /// What the job makes stale, at its start and at its end.
    touches: Option<Scope>,
    /// How many callers share it beside the first.
    joined: u32,
}

impl Entry {
    fn is_running_change(&self) -> bool {
        matches!(*self.state.borrow(), JobState::Running { .. })
            && !matches!(self.spec.operation, Operation::Query(_) | Operation::Exec(..))
    }
}

/// A read under way, and who waits for it.
struct Reading {
    job: JobId,
    /// Absent while it waits.
    begun: Option<Begun>,
    waiters: Vec<oneshot::Sender<Result<Seen, ReadError>>>,
}

/// What is remembered of a read when it begins.
struct Begun {
    /// For answers that are kept.
    ticket: Option<Ticket>,
    /// For those that are not: any change since then may show in them.
    generation: Generation,
    at: Moment,
}

/// Owns what changes.
pub(super) struct State<O> {
    settings: Settings,
    orbctl: Arc<O>,
    journal: Journal,
    /// To ourselves, for what ends outside of us. Weak: it must not keep our own inbox open.
    requests: mpsc::WeakSender<Request>,
    metrics: Metrics,
    scheduler: Scheduler,
    cache: Cache<Arc<Known>>,
    jobs: BTreeMap<JobId, Entry>,
    /// Ended jobs, oldest first, with when they ended.
    ended: VecDeque<(Instant, JobId)>,
    /// Those of them whose output is still kept, with what it takes in memory.
    outputs: VecDeque<(JobId, u64)>,
    ended_bytes: u64,
    /// Bytes of commands and input that jobs hold until they are over.
    operands: u64,
    reads: HashMap<Query, Reading>,
    /// Reads that newer callers could not join, by job: their own waiters are still to be told.
    outdated: HashMap<JobId, Reading>,
    running: JoinSet<(JobId, Finished)>,
    spawned: mpsc::Sender<(JobId, ChildIdentity)>,
    children: mpsc::Receiver<(JobId, ChildIdentity)>,
    spools: spool::Budget,
    publish: watch::Sender<Published>,
    drains: Vec<(scheduler::Target, oneshot::Sender<QueueView>)>,
    paused: Vec<Target>,
    draining: Vec<Target>,
    stopping: bool,
}

impl<O: Orbctl> State<O> {
    pub(super) fn new(
        settings: Settings,
        parts: Parts<O>,
        publish: watch::Sender<Published>,
        requests: mpsc::WeakSender<Request>,
    ) -> Self {
        let (spawned, children) = mpsc::channel(64);
        let mut state = Self {
            scheduler: Scheduler::new(settings.limits.clone()),
            spools: spool::Budget::new(settings.spool_total_max),
            settings,
            orbctl: parts.orbctl,
            journal: parts.journal,
            requests,
            metrics: parts.metrics,
            cache: Cache::default(),
            jobs: BTreeMap::new(),
            ended: VecDeque::new(),
            outputs: VecDeque::new(),
            ended_bytes: 0,
            operands: 0,
            reads: HashMap::new(),
            outdated: HashMap::new(),
            running: JoinSet::new(),
            spawned,
            children,
            publish,
            drains: Vec::new(),
            paused: Vec::new(),
            draining: Vec::new(),
            stopping: false,
        };
        state.recover(parts.recovered);
        state
    }

    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Request>,
        shutdown: CancellationToken,
    ) -> Journal {
        let mut leave_at: Option<Instant> = None;
        self.start_ready();
        loop {
            let deadline = [self.scheduler.next_deadline(), self.next_forgotten(), leave_at]
                .into_iter()
                .flatten()
                .min();
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // First: an inbox that is never empty must not keep us from stopping.
                () = shutdown.cancelled(), if !self.stopping => {
                    leave_at = Some(Moment::now().instant + LEAVE_CHANGES_AFTER.max(self.settings.grace));
                    self.begin_stop();
                }
                Some((id, child)) = self.children.recv() => self.child_started(id, child),
                Some(ended) = self.running.join_next() => match ended {
                    Ok((id, finished)) => self.end(id, finished),
                    Err(error) => tracing::error!(%error, "a job's task was lost"),
                },
                request = inbox.recv() => match request {
                    Some(request) => {
                        self.request(request);
                        for _ in 1..REQUESTS_AT_ONCE {
                            match inbox.try_recv() {
                                Ok(request) => self.request(request),
                                Err(_) => break,
                            }
                        }
                    }
                    // Nobody can ask any more, so nobody waits.
                    None => return self.journal,
                },
                () = timer => {}
            }
            let now = Moment::now().instant;
            self.expire(now);
            self.forget(now);
            self.start_ready();
            self.answer_drains();
            if self.stopping && (self.running.is_empty() || leave_at.is_some_and(|at| at <= now)) {
                self.leave();
                return self.journal;
            }
        }
    }

    fn request(&mut self, request: Request) {
        // An answer that nobody waits for any more is dropped: its caller is gone.
        match request {
            Request::Submit(submission, reply) => self.submit(*submission, reply),
            Request::Undo(accepted, cause, reply) => self.undo(*accepted, cause, reply),
            Request::Read {
                query,
                max_age,
                client,
                reply,
            } => self.read(&query, max_age, &client, reply),
            Request::Job(id, reply) => {
                let _ = reply.send(self.jobs.get(&id).map(Self::job));
            }
            Request::View(id, reply) => {
                let _ = reply.send(self.jobs.get(&id).map(|entry| self.view(entry)));
            }
            Request::List(filter, reply) => {
                let _ = reply.send(self.list(&filter));
            }
            Request::Cancel(id, reply) => {
                let _ = reply.send(self.cancel(id));
            }
            Request::Input(id, reply) => {
                let _ = reply.send(self.jobs.get(&id).and_then(|entry| entry.input.clone()));
            }
            Request::EndInput(id) => {
                if let Some(entry) = self.jobs.get_mut(&id) {
                    entry.input = None;
                }
            }
            Request::Release {
                job,
                exit_code,
                reply,
            } => {
                let release = self.jobs.get_mut(&job).and_then(|entry| entry.release.take());
                let _ = reply.send(release.is_some_and(|release| release.send(exit_code).is_ok()));
            }
            Request::ConnectionGone(connection) => self.connection_gone(connection),
            Request::Queue(verb, target, reply) => self.queue(verb, &target, reply),
            Request::QueueView(reply) => {
                let _ = reply.send(self.queue_view());
            }
            Request::CacheView(reply) => {
                let _ = reply.send(self.cache_view());
            }
            Request::Invalidate(scope, reply) => {
                if scope == Scope::Everything {
                    // On request also the version, which no change of ours touches.
                    self.cache.invalidate_all();
                }
                self.invalidate(&scope);
                let _ = reply.send(self.cache.generation());
            }
        }
    }

    // ---- acceptance ---------------------------------------------------------------------------------------------------------

    fn submit(&mut self, submission: Submission, reply: oneshot::Sender<Result<Job, Rejection>>) {
        let queue_timeout = submission.queue_timeout.unwrap_or(self.settings.queue_timeout);
        let id = self.journal.next_id();
        let class = submission.operation.class();
        let spec = Arc::new(JobSpec {
            id,
            run_timeout: submission
                .run_timeout
                .or_else(|| self.settings.run_timeouts.of(class)),
            operation: submission.operation,
            client: submission.client,
            carrier: submission.carrier,
            expected_id: submission.expected_id,
            detached: submission.detached,
            priority: submission.priority,
            accepted: Moment::now(),
        });
        let accepted = match self.accept(&spec, queue_timeout) {
            Ok(job) => job,
            Err(rejection) => {
                let _ = reply.send(Err(rejection));
                return;
            }
        };
        if !is_durable(&spec) {
            let _ = reply.send(Ok(accepted));
            return;
        }
        // It may start at once; it is acknowledged only when a power loss could no longer forget it.
        let entry = JournalEntry::Accepted(AcceptedJob {
            job: id,
            operation: stored::encode(&spec.operation, spec.expected_id.as_ref()),
            client: spec.client.name.to_string(),
            accepted_ms: spec.accepted.unix_ms(),
            priority: spec.priority,
            queue_timeout: Some(queue_timeout),
            run_timeout: spec.run_timeout,
        });
        let written = self.journal.append_durable(&entry);
        let requests = self.requests.clone();
        tokio::spawn(async move {
            match written.await {
                Ok(()) => {
                    let _ = reply.send(Ok(accepted));
                }
                Err(error) => {
                    // A dispatcher that is gone answers nobody.
                    if let Some(requests) = requests.upgrade() {
                        let _ = requests
                            .send(Request::Undo(Box::new(accepted), error.to_string().into(), reply))
                            .await;
                    }
                }
            }
        });
    }

    /// Takes back a job whose acceptance could not be written down. One that started meanwhile goes on, and is acknowledged:
    /// "nothing happened" would not be true of it.
    fn undo(&mut self, accepted: Job, cause: Arc<str>, reply: oneshot::Sender<Result<Job, Rejection>>) {
        let id = accepted.spec.id;
        let waits = self
            .jobs
            .get(&id)
            .is_some_and(|entry| matches!(*entry.state.borrow(), JobState::Waiting));
        let answer = if waits {
            self.cancel(id);
            Err(Rejection::Journal(cause))
        } else {
            tracing::error!(job_id = id.0, %cause, "it runs, but a loss of power would forget it");
            Ok(accepted)
        };
        let _ = reply.send(answer);
    }

    /// Puts a job into the queue and carries out what its force does to others.
    fn accept(&mut self, spec: &Arc<JobSpec>, queue_timeout: Duration) -> Result<Job, Rejection> {
        if self.stopping {
            return Err(Rejection::Stopping);
        }
        let new = NewJob {
            queue_deadline: spec.accepted.instant.checked_add(queue_timeout),
            ..scheduled(spec)
        };
        if self.operands.saturating_add(spec.operation.weight()) > OPERANDS_MAX {
            self.metrics.count(Counter::Refusals);
            return Err(Rejection::OperandsFull {
                limit: OPERANDS_MAX,
                retry_after: OPERANDS_RETRY_AFTER,
            });
        }
        let admission = self.scheduler.submit(new, spec.accepted.instant).map_err(|refusal| {
            self.metrics.count(Counter::Refusals);
            tracing::info!(operation = spec.operation.verb(), client = %spec.client.name, %refusal, "refused");
            rejected(refusal)
        })?;
        let job = self.enter(spec);
        tracing::debug!(
            job_id = spec.id.0,
            operation = spec.operation.verb(),
            machine = spec.operation.machine().map(tracing::field::display),
            client = %spec.client.name,
            "accepted"
        );
        self.preempt(admission, spec.id);
        Ok(job)
    }

    fn enter(&mut self, spec: &Arc<JobSpec>) -> Job {
        let entry = self.entry(spec);
        let job = Self::job(&entry);
        self.operands += spec.operation.weight();
        self.jobs.insert(spec.id, entry);
        job
    }

    fn entry(&self, spec: &Arc<JobSpec>) -> Entry {
        let (mut spool, mut writer, mut input, mut input_end) = (None, None, None, None);
        if let Operation::Exec(_, request) = &spec.operation {
            let (into, out_of) = spool::spool(&self.settings.spool, &self.spools);
            (writer, spool) = (Some(into), Some(out_of));
            if request.stdin == Stdin::Stream {
                let (into, out_of) = mpsc::channel(INPUT_MAX);
                (input, input_end) = (Some(into), Some(out_of));
            }
        }
        Entry {
            spec: spec.clone(),
            state: watch::Sender::new(JobState::Waiting),
            stop: CancellationToken::new(),
            abandon: CancellationToken::new(),
            spool,
            output_gone: 0,
            writer,
            input,
            input_end,
            release: None,
            touches: None,
            joined: 0,
        }
    }

    fn preempt(&mut self, admission: Admission, by: JobId) {
        for id in admission.cancelled {
            self.end_unstarted(id, Outcome::Cancelled(Phase::Queued), None);
        }
        for id in admission.stop {
            if let Some(entry) = self.jobs.get(&id) {
                tracing::info!(job_id = id.0, by = by.0, "preempted");
                entry.stop.cancel();
                entry.abandon.cancel();
            }
        }
    }

    // ---- reads --------------------------------------------------------------------------------------------------------------

    /// Answers a read from what is known, or joins an equal one, or asks.
    fn read(
        &mut self,
        query: &Query,
        max_age: Option<Duration>,
        client: &Client,
        reply: oneshot::Sender<Result<Seen, ReadError>>,
    ) {
        let now = Moment::now();
        let max_age = max_age
            .unwrap_or(self.settings.cache_max_age)
            .min(self.settings.cache_max_age);
        if let Some(topic) = topic(query)
            && let Some(seen) = self.cache.fresh(&topic, &now, max_age)
        {
            self.metrics.count(Counter::CacheHits);
            self.metrics.count(Counter::SpawnsSaved);
            let _ = reply.send(Ok(seen.clone()));
            return;
        }
        self.metrics.count(Counter::CacheMisses);
        if let Some(reading) = self.reads.get_mut(query) {
            // A read may be shared while it waits; one that runs, only if nothing changed since it began and the caller
            // accepts an observation as old as that.
            let may_join = match &reading.begun {
                None => true,
                Some(begun) => {
                    let is_current = match &begun.ticket {
                        Some(ticket) => self.cache.is_current(ticket),
                        None => begun.generation == self.cache.generation(),
                    };
                    is_current && now.age_of(&begun.at) <= max_age
                }
            };
            if may_join {
                self.metrics.count(Counter::Joins);
                self.metrics.count(Counter::SpawnsSaved);
                if let Some(entry) = self.jobs.get_mut(&reading.job) {
                    entry.joined += 1;
                }
                reading.waiters.push(reply);
                return;
            }
        }
        let id = self.journal.next_id();
        let spec = Arc::new(JobSpec {
            id,
            operation: Operation::Query(query.clone()),
            client: client.clone(),
            carrier: Carrier::Daemon,
            expected_id: None,
            // A read is shared, so no single client's going away ends it.
            detached: true,
            priority: Priority::Normal,
            accepted: now,
            run_timeout: Some(self.settings.run_timeouts.query),
        });
        match self.accept(&spec, self.settings.queue_timeout) {
            Ok(_) => {
                let before = self.reads.insert(
                    query.clone(),
                    Reading {
                        job: id,
                        begun: None,
                        waiters: vec![reply],
                    },
                );
                // The one that could not be joined goes on; its waiters are told by its own end.
                if let Some(before) = before {
                    self.superseded(before);
                }
            }
            Err(rejection) => {
                let _ = reply.send(Err(ReadError::Rejected(rejection)));
            }
        }
    }

    /// Keeps the waiters of a read that newer callers could not join with its job.
    fn superseded(&mut self, reading: Reading) {
        self.outdated.insert(reading.job, reading);
    }

    fn finish_read(&mut self, id: JobId, finished: &mut Finished, holder: Option<&WaitingFor>) {
        let Some(entry) = self.jobs.get(&id) else { return };
        let Operation::Query(query) = entry.spec.operation.clone() else {
            return;
        };
        let reading = match self.reads.get(&query) {
            Some(reading) if reading.job == id => self.reads.remove(&query),
            _ => self.outdated.remove(&id),
        };
        let Some(reading) = reading else { return };
        let answer = match (finished.facts.take(), reading.begun) {
            (Some(facts), Some(begun)) => {
                let known = Arc::new(Known::new(facts));
                let seen = Seen {
                    value: known.clone(),
                    generation: begun.generation,
                    observed_at: begun.at,
                    source: Source::List,
                };
                if let Some(ticket) = begun.ticket
                    && self.cache.record(ticket, known.clone()) == Recorded::Stored
                {
                    self.learned(&query, &known);
                }
                Ok(seen)
            }
            _ => Err(ReadError::Ended {
                id,
                outcome: finished.outcome.clone(),
                holder: holder.cloned(),
            }),
        };
        for waiter in reading.waiters {
            let _ = waiter.send(answer.clone());
        }
    }

    /// Does what follows from something new being known.
    fn learned(&mut self, query: &Query, known: &Known) {
        if *query == Query::List {
            if let Some(machines) = known.machines() {
                self.cache
                    .retain_machines(machines.iter().map(|machine| &machine.name));
            }
            self.publish_machines();
        }
    }

    fn publish_machines(&self) {
        let machines = self.cache.get(&Topic::Machines).cloned();
        self.publish.send_replace(Published { machines });
    }

    fn invalidate(&mut self, scope: &Scope) {
        self.cache.invalidate(scope);
        self.publish_machines();
    }

    // ---- starting -----------------------------------------------------------------------------------------------------------

    fn start_ready(&mut self) {
        while let Some(id) = self.scheduler.start_next(Moment::now().instant) {
            self.start(id);
        }
    }

    fn start(&mut self, id: JobId) {
        let now = Moment::now();
        let Some(entry) = self.jobs.get_mut(&id) else {
            debug_assert!(false, "job {id} starts, but is not known");
            self.scheduler.end(id, now.instant);
            return;
        };
        let spec = entry.spec.clone();
        entry.touches = match spec.operation.effect() {
            Effect::Changes(scope) => Some(scope),
            Effect::Reads => {
                may_start_its_machine(&spec.operation, &self.cache, &now, self.settings.cache_max_age)
            }
        };
        let release = matches!(spec.carrier, Carrier::Lease(_)).then(|| {
            let (told, release) = oneshot::channel();
            entry.release = Some(told);
            release
        });
        let work = Work {
            orbctl: self.orbctl.clone(),
            limits: self.settings.run_limits(),
            stop: entry.stop.clone(),
            abandon: entry.abandon.clone(),
            spool: entry.writer.take(),
            spool_dir: self.settings.spool.dir.clone(),
            input: entry.input_end.take(),
            marker: format!("{}:{id}", self.settings.instance),
            spawned: self.spawned.clone(),
            release,
            spec: spec.clone(),
        };
        let touches = entry.touches.clone();
        let mut durable = None;
        if let Operation::Query(query) = &spec.operation {
            if let Some(reading) = self.reads.get_mut(query).filter(|reading| reading.job == id) {
                let ticket = topic(query).map(|topic| self.cache.begin(&topic, &now));
                reading.begun = Some(Begun {
                    ticket,
                    generation: self.cache.generation(),
                    at: now,
                });
            }
        } else {
            durable = self.journal_start(&spec, &work.marker);
        }
        if let Some(scope) = touches {
            self.invalidate(&scope);
        }
        // Last: whoever sees it run may act on it, a lease's owner at once, and by then our next life must know of it.
        if let Some(entry) = self.jobs.get(&id) {
            entry.state.send_replace(JobState::Running { since: now });
        }
        tracing::debug!(job_id = id.0, operation = spec.operation.verb(), "started");
        self.running.spawn(async move {
            // A panic in here is our fault; it must end this job and nothing else.
            let finished = AssertUnwindSafe(run_job(work, durable)).catch_unwind().await;
            let broken = || Finished::new(Outcome::Failed(Failure::Internal("a job's task panicked".into())));
            (id, finished.unwrap_or_else(|_| broken()))
        });
    }

    /// Writes down that a child may exist from now on: without this line our next life could run beside it. For a change that
    /// was acknowledged to outlive us it returns what the child must wait for, so that no loss of power makes it run twice.
    fn journal_start(&self, spec: &JobSpec, marker: &str) -> Option<Durable> {
        let entry = JournalEntry::Starting(Starting {
            job: spec.id,
            marker: marker.to_owned(),
            lanes: spec.operation.footprint().lanes().to_vec(),
            verb: spec.operation.verb().to_owned(),
            machine: spec.operation.machine().cloned(),
            class: spec.operation.class(),
            detached: spec.detached,
        });
        let durable = is_durable(spec).then(|| -> Durable { Box::pin(self.journal.append_durable(&entry)) });
        if durable.is_none() {
            self.journal_append(&entry);
        }
        if let Carrier::Lease(identity) = &spec.carrier {
            self.child_started(spec.id, *identity);
        }
        durable
    }

    fn child_started(&self, id: JobId, child: ChildIdentity) {
        self.metrics.count(Counter::Spawns);
        let needed = self
            .jobs
            .get(&id)
            .is_some_and(|entry| !matches!(entry.spec.operation, Operation::Query(_)));
        if needed {
            self.journal_append(&JournalEntry::Started {
                job: id,
                process: stored::process(&child),
            });
        }
    }

    fn journal_append(&self, entry: &JournalEntry) {
        if let Err(error) = self.journal.append(entry) {
            // Work goes on: refusing a stop or a delete because the disk is full would make things worse.
            tracing::error!(%error, "the journal cannot be written: a crash now could forget what runs");
        }
    }

    // ---- ending -------------------------------------------------------------------------------------------------------------

    /// A running job is over.
    fn end(&mut self, id: JobId, mut finished: Finished) {
        let now = Moment::now();
        let Some(entry) = self.jobs.get_mut(&id) else {
            debug_assert!(false, "job {id} ends, but is not known");
            return;
        };
        let spec = entry.spec.clone();
        entry.input = None;
        // Before anybody is answered: whoever reads after that answer reads what is true after the change.
        let touches = entry.touches.take();
        let since = match *entry.state.borrow() {
            JobState::Running { since } => Some(since),
            JobState::Waiting | JobState::Ended { .. } => None,
        };
        if let Some(scope) = touches {
            self.invalidate(&scope);
        }
        if !matches!(spec.operation, Operation::Query(_)) {
            self.journal_append(&JournalEntry::Ended { job: id });
        }
        self.scheduler.end(id, now.instant);
        self.finish_read(id, &mut finished, None);
        if matches!(
            finished.outcome,
            Outcome::Succeeded(Success::Change { changed: false })
        ) {
            self.metrics.count(Counter::ChangesSkipped);
            self.metrics.count(Counter::SpawnsSaved);
        }
        self.conclude(id, since, now, &finished, None);
    }

    /// A job that never started is over; the scheduler has forgotten it.
    fn end_unstarted(&mut self, id: JobId, outcome: Outcome, holder: Option<WaitingFor>) {
        let now = Moment::now();
        if self.jobs.get(&id).is_some_and(|entry| is_durable(&entry.spec)) {
            self.journal_append(&JournalEntry::Ended { job: id });
        }
        let mut finished = Finished::new(outcome);
        self.finish_read(id, &mut finished, holder.as_ref());
        self.conclude(id, None, now, &finished, holder);
    }

    /// Tells followers, records, and keeps what is to be kept.
    fn conclude(
        &mut self,
        id: JobId,
        since: Option<Moment>,
        now: Moment,
        finished: &Finished,
        holder: Option<WaitingFor>,
    ) {
        let Some(entry) = self.jobs.get_mut(&id) else {
            return;
        };
        // Dropping an unused writer ends its spool, and with it every follower's wait.
        entry.writer = None;
        entry.input_end = None;
        let spec = entry.spec.clone();
        let outcome = finished.outcome.clone();
        self.metrics
            .record(record(&spec, since, now, finished, entry.joined));
        let level_worthy = !matches!(outcome, Outcome::Succeeded(_));
        let run_us = since.map(|since| now.instant.saturating_duration_since(since.instant).as_micros());
        if level_worthy {
            tracing::info!(
                job_id = id.0,
                operation = spec.operation.verb(),
                outcome = outcome_word(&outcome).as_str(),
                run_us,
                "ended"
            );
        } else {
            tracing::debug!(job_id = id.0, operation = spec.operation.verb(), run_us, "ended");
        }
        entry.state.send_replace(JobState::Ended {
            since,
            at: now,
            outcome,
            holder,
        });
        self.operands -= spec.operation.weight();
        if matches!(spec.operation, Operation::Exec(..)) {
            entry.spec = Arc::new(spec.forgotten());
        }
        if matches!(spec.operation, Operation::Query(_)) {
            // Reads are answered to whoever waited, and there are many of them: the metrics remember them, the job list does not.
            self.jobs.remove(&id);
        } else {
            if let Some(spool) = &entry.spool {
                let bytes = spool.end().min(spool::MEMORY);
                self.ended_bytes += bytes;
                self.outputs.push_back((id, bytes));
            }
            self.ended.push_back((now.instant, id));
        }
    }

    fn next_forgotten(&self) -> Option<Instant> {
        self.ended.front().map(|(at, _)| *at + self.settings.keep)
    }

    /// Forgets ended jobs that are too old or too many, and before that the oldest outputs, where they are too large.
    fn forget(&mut self, now: Instant) {
        while self.ended_bytes > self.settings.keep_bytes && self.outputs.len() > 1 {
            self.forget_oldest_output();
        }
        while let Some((at, id)) = self.ended.front().copied() {
            let too_old = now.saturating_duration_since(at) >= self.settings.keep;
            let too_many = self.ended.len() > self.settings.keep_max;
            if !(too_old || too_many) {
                return;
            }
            self.ended.pop_front();
            // Both lines are in order of end, so its output is the oldest, if it is still there.
            if self.outputs.front().is_some_and(|(oldest, _)| *oldest == id) {
                self.forget_oldest_output();
            }
            self.jobs.remove(&id);
        }
    }

    fn forget_oldest_output(&mut self) {
        let Some((id, bytes)) = self.outputs.pop_front() else {
            return;
        };
        self.ended_bytes -= bytes;
        if let Some(entry) = self.jobs.get_mut(&id)
            && let Some(spool) = entry.spool.take()
        {
            entry.output_gone = spool.end();
        }
    }

    fn expire(&mut self, now: Instant) {
        for scheduler::Expired { id, blocker } in self.scheduler.expire(now) {
            let holder = self.waiting_for(&blocker);
            self.end_unstarted(id, Outcome::Expired(Phase::Queued), holder);
        }
    }

    fn cancel(&mut self, id: JobId) -> Cancelled {
        let Some(entry) = self.jobs.get(&id) else {
            return Cancelled::NoSuchJob;
        };
        if entry.state.borrow().is_ended() {
            return Cancelled::AlreadyEnded;
        }
        entry.stop.cancel();
        match self.scheduler.cancel(id) {
            CancelResult::NeverStarted => {
                self.end_unstarted(id, Outcome::Cancelled(Phase::Queued), None);
                Cancelled::NeverStarted
            }
            CancelResult::Stopping | CancelResult::NoSuchJob => Cancelled::Stopping,
        }
    }

    /// Cancels what waits and stops commands of a client that is gone; a running change is left to finish, and a lease is free
    /// only when its process is gone.
    fn connection_gone(&mut self, connection: u64) {
        let attached: Vec<JobId> = self
            .jobs
            .values()
            .filter(|entry| entry.spec.client.connection == connection && !entry.spec.detached)
            .filter(|entry| match *entry.state.borrow() {
                JobState::Waiting => true,
                JobState::Running { .. } => {
                    matches!(entry.spec.operation, Operation::Exec(..))
                        && matches!(entry.spec.carrier, Carrier::Daemon)
                }
                JobState::Ended { .. } => false,
            })
            .map(|entry| entry.spec.id)
            .collect();
        for id in attached {
            self.cancel(id);
        }
        for entry in self
            .jobs
            .values_mut()
            .filter(|entry| entry.spec.client.connection == connection)
        {
            // Nobody is left to say how the process ended.
            entry.release = None;
        }
    }

    // ---- looking ------------------------------------------------------------------------------------------------------------

    fn job(entry: &Entry) -> Job {
        Job {
            spec: entry.spec.clone(),
            state: entry.state.subscribe(),
            spool: entry.spool.clone(),
            output_gone: entry.output_gone,
        }
    }

    fn view(&self, entry: &Entry) -> JobView {
        let state = entry.state.borrow().clone();
        let waiting_for = match state {
            JobState::Waiting => self
                .scheduler
                .blocker(entry.spec.id)
                .and_then(|blocker| self.waiting_for(&blocker)),
            JobState::Running { .. } | JobState::Ended { .. } => None,
        };
        JobView {
            spec: entry.spec.clone(),
            state,
            waiting_for,
            output_bytes: entry.spool.as_ref().map_or(entry.output_gone, spool::Spool::end),
            joined: entry.joined,
        }
    }

    fn waiting_for(&self, blocker: &Blocker) -> Option<WaitingFor> {
        match blocker {
            Blocker::Job { id, .. } => self.jobs.get(id).map(|entry| WaitingFor::Job {
                id: *id,
                verb: entry.spec.operation.verb(),
                machine: entry.spec.operation.machine().cloned(),
                client: entry.spec.client.name.clone(),
                age: Moment::now().age_of(&entry.spec.accepted),
            }),
            Blocker::Limit { name, .. } => Some(WaitingFor::Limit(name)),
            Blocker::Paused(_) => Some(WaitingFor::Paused),
            Blocker::NotWaiting => None,
        }
    }

    fn list(&self, filter: &JobFilter) -> (Vec<JobView>, bool) {
        let wanted = |entry: &&Entry| {
            let state = match *entry.state.borrow() {
                JobState::Waiting => StateFilter::Waiting,
                JobState::Running { .. } => StateFilter::Running,
                JobState::Ended { .. } => StateFilter::Ended,
            };
            filter.state.is_none_or(|only| only == state)
                && filter
                    .machine
                    .as_ref()
                    .is_none_or(|only| entry.spec.operation.machine() == Some(only))
                && filter
                    .verb
                    .as_ref()
                    .is_none_or(|only| entry.spec.operation.verb() == only)
        };
        let mut newest = self.jobs.values().rev().filter(wanted);
        let mut jobs: Vec<JobView> = newest
            .by_ref()
            .take(filter.limit)
            .map(|entry| self.view(entry))
            .collect();
        let more = newest.next().is_some();
        jobs.reverse();
        (jobs, more)
    }

    fn cache_view(&self) -> CacheView {
        let now = Moment::now();
        let entries = self
            .cache
            .entries()
            .map(|(topic, seen, valid)| KeptView {
                topic: topic.clone(),
                generation: seen.generation,
                age: now.age_of(&seen.observed_at),
                valid,
            })
            .collect();
        CacheView {
            generation: self.cache.generation(),
            entries,
        }
    }

    // ---- the queue ----------------------------------------------------------------------------------------------------------

    fn queue(&mut self, verb: QueueVerb, target: &Target, reply: oneshot::Sender<QueueView>) {
        let lane = lane_target(target);
        tracing::info!(?verb, ?target, "queue");
        match verb {
            QueueVerb::Pause => {
                self.scheduler.pause(lane);
                remember(&mut self.paused, target);
            }
            QueueVerb::Resume => {
                self.scheduler.resume(lane.clone());
                self.scheduler.undrain(lane);
                self.paused.retain(|other| other != target);
                self.draining.retain(|other| other != target);
            }
            QueueVerb::Drain => {
                self.scheduler.drain(lane.clone());
                remember(&mut self.draining, target);
                self.drains.push((lane, reply));
                return;
            }
        }
        let _ = reply.send(self.queue_view());
    }

    fn answer_drains(&mut self) {
        if self.drains.is_empty() {
            return;
        }
        let (done, waiting): (Vec<_>, Vec<_>) = self
            .drains
            .drain(..)
            .partition(|(target, reply)| reply.is_closed() || self.scheduler.is_idle(target));
        self.drains = waiting;
        for (_, reply) in done {
            let _ = reply.send(self.queue_view());
        }
    }

    fn queue_view(&self) -> QueueView {
        let machines = |targets: &[Target]| {
            targets
                .iter()
                .filter_map(|target| match target {
                    Target::All => None,
                    Target::Machine(name) => Some(name.clone()),
                })
                .collect()
        };
        QueueView {
            waiting: self.scheduler.waiting().total(),
            running: self.scheduler.running().total(),
            queue_max: self.scheduler.limits().queue_max,
            paused: self.paused.contains(&Target::All),
            paused_machines: machines(&self.paused),
            draining: self.stopping || self.draining.contains(&Target::All),
            draining_machines: machines(&self.draining),
        }
    }

    // ---- beginning and stopping ---------------------------------------------------------------------------------------------

    /// Takes over from the life before: its children keep their lanes, its acknowledged changes their places.
    fn recover(&mut self, recovered: Recovered) {
        let now = Moment::now();
        self.recover_running(recovered.in_flight, now);
        self.recover_waiting(recovered.waiting, recovered.doubtful, now);
    }

    fn recover_running(&mut self, in_flight: Vec<InFlight>, now: Moment) {
        for found in in_flight {
            let starting = &found.starting;
            // An outline holds the lane as well, should the whole be from a version that we do not understand.
            let accepted = found
                .accepted
                .as_ref()
                .and_then(|accepted| stored::decode(&accepted.operation));
            let Some(operation) = accepted
                .map(|(operation, _)| operation)
                .or_else(|| stored::outline(starting))
            else {
                tracing::error!(
                    job_id = starting.job.0,
                    "a job of the last run cannot be read; its lane is not held"
                );
                continue;
            };
            let client = found.accepted.as_ref().map_or("", |accepted| &accepted.client);
            let spec = Arc::new(stored::revived(
                starting.job,
                operation,
                client,
                starting.detached,
                now,
            ));
            let children = match found.process.as_ref().and_then(stored::identity) {
                Some(child) => vec![child],
                // It died between deciding to start a child and learning of it: the child's own environment tells.
                None => sys::children_with_marker(&starting.marker),
            };
            tracing::warn!(
                job_id = spec.id.0,
                operation = spec.operation.verb(),
                children = children.len(),
                "left by the last run; its lanes are held until its children are gone"
            );
            self.scheduler.adopt(scheduled(&spec));
            let entry = self.entry(&spec);
            entry.state.send_replace(JobState::Running { since: now });
            let touches = match spec.operation.effect() {
                Effect::Changes(scope) => Some(scope),
                Effect::Reads => None,
            };
            // A command's words died with its daemon, and whoever waited for it with the connection.
            if matches!(spec.operation, Operation::Exec(..)) {
                entry.stop.cancel();
            }
            self.operands += spec.operation.weight();
            let work = Work {
                orbctl: self.orbctl.clone(),
                limits: self.settings.run_limits(),
                stop: entry.stop.clone(),
                abandon: entry.abandon.clone(),
                spool: None,
                input: None,
                spool_dir: self.settings.spool.dir.clone(),
                marker: starting.marker.clone(),
                spawned: self.spawned.clone(),
                release: None,
                spec: spec.clone(),
            };
            self.jobs.insert(
                spec.id,
                Entry {
                    touches,
                    writer: None,
                    ..entry
                },
            );
            self.running
                .spawn(async move { (spec.id, run_orphan(work, children).await) });
        }
    }

    fn recover_waiting(&mut self, waiting: Vec<AcceptedJob>, doubtful: Vec<AcceptedJob>, now: Moment) {
        for doubtful in doubtful {
            let Some((operation, _)) = stored::decode(&doubtful.operation) else {
                continue;
            };
            let spec = Arc::new(stored::revived(
                doubtful.job,
                operation,
                &doubtful.client,
                true,
                now,
            ));
            tracing::error!(
                job_id = spec.id.0,
                operation = spec.operation.verb(),
                "may or may not have run: the journal is damaged"
            );
            let entry = self.entry(&spec);
            self.jobs.insert(spec.id, entry);
            self.end_unstarted(doubtful.job, Outcome::Unknown(Sighting::NOTHING), None);
        }
        for waiting in waiting {
            let Some((operation, expected_id)) = stored::decode(&waiting.operation) else {
                tracing::error!(
                    job_id = waiting.job.0,
                    "an accepted job of the last run cannot be read and is dropped"
                );
                continue;
            };
            let spec = Arc::new(JobSpec {
                priority: waiting.priority,
                expected_id,
                run_timeout: waiting.run_timeout,
                ..stored::revived(waiting.job, operation, &waiting.client, true, now)
            });
            // It was acknowledged, so no limit of this life turns it away.
            let queue_timeout = waiting.queue_timeout.unwrap_or(self.settings.queue_timeout);
            let new = NewJob {
                queue_deadline: now.instant.checked_add(queue_timeout),
                ..scheduled(&spec)
            };
            self.scheduler.readmit(new, now.instant);
            self.enter(&spec);
            tracing::info!(
                job_id = spec.id.0,
                operation = spec.operation.verb(),
                "queued again after a restart"
            );
        }
    }

    /// Cancels what waits for somebody, ends commands, and leaves changes to finish.
    fn begin_stop(&mut self) {
        self.stopping = true;
        tracing::info!(
            waiting = self.scheduler.waiting().total(),
            running = self.running.len(),
            "stopping"
        );
        let ids: Vec<JobId> = self
            .jobs
            .values()
            .filter(|entry| {
                let waits = matches!(*entry.state.borrow(), JobState::Waiting);
                let keeps = is_durable(&entry.spec);
                // A detached change that waits is in the journal: the next life does it.
                if waits {
                    !keeps
                } else {
                    !entry.is_running_change() && !entry.state.borrow().is_ended()
                }
            })
            .map(|entry| entry.spec.id)
            .collect();
        for id in ids {
            self.cancel(id);
        }
        self.scheduler.pause(scheduler::Target::All);
        for entry in self.jobs.values() {
            entry.abandon.cancel();
        }
    }

    /// Lets go of changes that still run: their process groups are their own, and the journal remembers them.
    fn leave(&mut self) {
        if !self.running.is_empty() {
            tracing::warn!(
                jobs = self.running.len(),
                "left to finish by themselves; the next start finds them"
            );
        }
        self.running.detach_all();
        // Whoever waits for them must not take our going away for a refusal and ask again.
        let now = Moment::now();
        for entry in self.jobs.values() {
            let JobState::Running { since } = *entry.state.borrow() else {
                continue;
            };
            entry.state.send_replace(JobState::Ended {
                since: Some(since),
                at: now,
                outcome: unseen(&entry.spec.operation),
                holder: None,
            });
        }
    }
}

/// Says what became of a job whose end nobody saw.
fn unseen(operation: &Operation) -> Outcome {
    match operation.effect() {
        Effect::Changes(_) => Outcome::Unknown(Sighting::NOTHING),
        Effect::Reads => Outcome::Interrupted,
    }
}

/// Says whether a job is acknowledged to survive a restart: detached changes are. A command never is, because its words are not
/// written down.
fn is_durable(spec: &JobSpec) -> bool {
    spec.detached
        && !matches!(
            spec.operation.class(),
            Class::Query | Class::Exec | Class::Session
        )
}

/// Says what a command makes stale: its machine, if that is not freshly seen running, because then the command may start it.
fn may_start_its_machine(
    operation: &Operation,
    cache: &Cache<Arc<Known>>,
    now: &Moment,
    max_age: Duration,
) -> Option<Scope> {
    let (Operation::Exec(name, _) | Operation::Push(name) | Operation::Pull(name)) = operation else {
        return None;
    };
    let running = cache
        .fresh(&Topic::Machines, now, max_age)
        .and_then(|seen| by_name(seen.value.machines()?, name))
        .is_some_and(|machine| machine.state == MachineState::Running);
    (!running).then(|| Scope::Machines(vec![name.clone()]))
}

/// Describes a job to the scheduler, without a deadline.
fn scheduled(spec: &JobSpec) -> NewJob {
    NewJob {
        id: spec.id,
        client: spec.client.id,
        class: spec.operation.class(),
        footprint: spec.operation.footprint(),
        priority: spec.priority,
        queue_deadline: None,
        preempts: spec.operation.preempts(),
        machine: spec.operation.machine().cloned(),
    }
}

fn rejected(refusal: Refusal) -> Rejection {
    match refusal {
        Refusal::QueueFull { limit, retry_after } => Rejection::QueueFull { limit, retry_after },
        Refusal::ClientQueueFull { limit, retry_after } => Rejection::ClientQueueFull { limit, retry_after },
        Refusal::Draining { what } => Rejection::Draining {
            what: what.to_string(),
        },
    }
}

fn lane_target(target: &Target) -> scheduler::Target {
    match target {
        Target::All => scheduler::Target::All,
        Target::Machine(name) => scheduler::Target::Lane(crate::operation::Lane::Machine(name.clone())),
    }
}

fn remember(targets: &mut Vec<Target>, target: &Target) {
    if !targets.contains(target) {
        targets.push(target.clone());
    }
}

fn outcome_word(outcome: &Outcome) -> OutcomeWord {
    match outcome {
        Outcome::Succeeded(_) => OutcomeWord::Succeeded,
        Outcome::Failed(_) => OutcomeWord::Failed,
        Outcome::Cancelled(_) => OutcomeWord::Cancelled,
        Outcome::Expired(_) => OutcomeWord::Expired,
        Outcome::Interrupted => OutcomeWord::Interrupted,
        Outcome::Unknown(_) => OutcomeWord::Unknown,
    }
}

/// Describes an ended job to the metrics. Nothing of its arguments, environment or input is part of it.
fn record(
    spec: &JobSpec,
    since: Option<Moment>,
    now: Moment,
    finished: &Finished,
    joined: u32,
) -> OperationRecord {
    let micros = |from: Instant, to: Instant| {
        u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
    };
    let changed = match finished.outcome {
        Outcome::Succeeded(Success::Change { changed }) => Some(changed),
        _ => None,
    };
    OperationRecord {
        id: spec.id.0,
        operation: spec.operation.verb().into(),
        machine: spec.operation.machine().cloned(),
        class: spec.operation.class(),
        client: metrics::Client {
            name: spec.client.name.clone(),
            pid: spec.client.pid,
            uid: spec.client.uid,
        },
        accepted_ms: spec.accepted.unix_ms(),
        started_ms: since.map(|since| since.unix_ms()),
        ended_ms: now.unix_ms(),
        wait_us: micros(spec.accepted.instant, since.unwrap_or(now).instant),
        run_us: since.map_or(0, |since| micros(since.instant, now.instant)),
        ending: finished.ending,
        outcome: outcome_word(&finished.outcome),
        exit_code: finished.exit_code,
        bytes_in: finished.bytes_in,
        bytes_out: finished.bytes_out,
        joined: joined > 0,
        cache_hits: 0,
        changed,
    }
}

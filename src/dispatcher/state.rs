//! The dispatcher's task: calls the parts of its state in the right order.

mod acceptance;
mod ending;
mod health;
mod idle;
mod queue;
mod reads;
mod recovery;
mod starting;
mod views;
mod watching;

use std::sync::Arc;
use std::time::Instant;

use orbd_host::config::LEAVE_CHANGES_AFTER;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::job::JobId;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::orbctl::Orbctl;
use crate::scheduler::{NewJob, Scheduler};

use super::drains::Drains;
use super::handle::{JobSpec, Published, Request};
use super::health::Health;
use super::idle::Idle;
use super::jobs::JobTable;
use super::read_table::ReadTable;
use super::run_job::{JobResult, Note};
use super::watch::Watch;
use super::{Parts, Settings};

/// Most requests handled before the ends of jobs are checked again.
const REQUESTS_AT_ONCE: usize = 64;

/// State of the dispatcher.
pub(super) struct State<O> {
    settings: Settings,
    orbctl: Arc<O>,
    journal: Journal,
    /// Sender to the dispatcher's own inbox, for work that completes in another task. Weak, so that it does not keep the inbox open.
    requests: mpsc::WeakSender<Request>,
    metrics: Metrics,
    scheduler: Scheduler,
    jobs: JobTable,
    reads: ReadTable,
    running: JoinSet<(JobId, JobResult)>,
    /// Permits for probes after a cut, shared by all jobs.
    probe_permits: Arc<Semaphore>,
    notes: mpsc::Sender<(JobId, Note)>,
    notes_inbox: mpsc::Receiver<(JobId, Note)>,
    health: Health,
    watch: Watch,
    drains: Drains,
    idle: Idle,
}

impl<O: Orbctl> State<O> {
    pub(super) fn new(
        settings: Settings,
        parts: Parts<O>,
        publish: watch::Sender<Published>,
        requests: mpsc::WeakSender<Request>,
        upgrading: CancellationToken,
    ) -> Self {
        let (notes, notes_inbox) = mpsc::channel(64);
        let probe_permits = settings.probes_max();
        let reads = ReadTable::new(settings.cache_max_age, publish);
        let mut state = Self {
            scheduler: Scheduler::new(settings.limits.clone()),
            jobs: JobTable::new(&settings),
            watch: Watch::new(settings.watch_interval),
            settings,
            orbctl: parts.orbctl,
            journal: parts.journal,
            requests,
            metrics: parts.metrics,
            reads,
            running: JoinSet::new(),
            probe_permits: Arc::new(Semaphore::new(probe_permits)),
            notes,
            notes_inbox,
            health: Health::default(),
            drains: Drains::default(),
            idle: Idle::new(upgrading),
        };
        state.recover(parts.recovered, parts.survivors);
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
            let deadlines = [
                self.scheduler.next_deadline(),
                self.jobs.next_drop(),
                self.next_poll(),
                self.next_probe(),
                self.idle.next_check(),
                leave_at,
            ];
            let deadline = deadlines.into_iter().flatten().min();
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // Polled first: an inbox that is never empty must not delay a stop.
                () = shutdown.cancelled(), if !self.scheduler.is_closed() => {
                    leave_at = Some(Moment::now().instant + LEAVE_CHANGES_AFTER.max(self.settings.grace));
                    self.begin_stop();
                }
                Some((id, note)) = self.notes_inbox.recv() => self.on_job_event(id, note),
                Some(ended) = self.running.join_next() => match ended {
                    Ok((id, finished)) => self.end(id, finished),
                    Err(error) => tracing::error!(%error, "job task was lost"),
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
                    // All handles are dropped, so no caller is waiting.
                    None => return self.journal,
                },
                () = timer => {}
            }
            let now = Moment::now().instant;
            self.expire(now);
            self.jobs.drop_old(now);
            self.poll_if_due(now);
            self.probe_if_due();
            self.start_ready();
            self.answer_drains();
            self.check_idle(now);
            let may_leave = self.idle.is_upgrading() || leave_at.is_some_and(|at| at <= now);
            if self.scheduler.is_closed() && (may_leave || !self.jobs.delays_a_stop()) {
                self.leave();
                return self.journal;
            }
        }
    }

    fn request(&mut self, request: Request) {
        // Errors of `reply.send` are ignored: the caller has stopped waiting.
        match request {
            Request::Submit(submission, reply) if self.holds_back(&submission) => {
                self.idle.hold_back(Request::Submit(submission, reply));
            }
            Request::Submit(submission, reply) => self.submit(*submission, reply),
            Request::RollBack(accepted, cause, reply) => self.roll_back(*accepted, cause, reply),
            Request::Read {
                query,
                max_age,
                client,
                reply,
            } => self.read(&query, max_age, &client, reply),
            Request::Job(id, reply) => {
                self.asked_about(id);
                let _ = reply.send(self.jobs.job(id));
            }
            Request::View(id, reply) => {
                let _ = reply.send(self.jobs.get(id).map(|entry| self.view(entry)));
            }
            Request::List(filter, reply) => {
                let _ = reply.send(self.list(&filter));
            }
            Request::Cancel(id, reply) => {
                let _ = reply.send(self.cancel(id));
            }
            Request::Input(id, reply) => {
                let _ = reply.send(self.jobs.input(id));
            }
            Request::EndInput(id) => self.jobs.close_input(id),
            Request::Release { job, ending, reply } => self.jobs.release(job, ending, reply),
            Request::Disconnected(connection) => self.on_disconnect(connection),
            Request::HoldingConnections(reply) => {
                let _ = reply.send(self.jobs.connections());
            }
            // The next instance would not know of the change. Dropping the reply refuses the request like a new job.
            Request::Queue(..) if self.idle.is_upgrading() => {}
            Request::Queue(verb, target, reply) => self.queue(verb, &target, reply),
            Request::QueueView(reply) => {
                let _ = reply.send(self.queue_view());
            }
            Request::CacheView(reply) => {
                let _ = reply.send(self.cache_view());
            }
            Request::Invalidate(scope, reply) => {
                self.invalidate_untrusted(&scope);
                let _ = reply.send(self.reads.cache().generation());
            }
            Request::Subscribe(wants_polls, reply) => {
                let _ = reply.send(self.subscribe(wants_polls));
            }
            Request::Snapshot(reply) => {
                let _ = reply.send(self.snapshot());
            }
            Request::Adopt(settings, reply) => {
                self.adopt(*settings);
                let _ = reply.send(());
            }
            Request::WaitIdle(reply) => self.idle.wait(reply, Moment::now().instant),
            Request::BeginUpgrade(reply) => {
                let _ = reply.send(self.begin_upgrade());
            }
            Request::Busy(reply) => {
                let _ = reply.send(self.busy());
            }
        }
    }

    /// Replaces the settings. Jobs beyond a lowered limit keep running or waiting.
    fn adopt(&mut self, settings: Settings) {
        self.scheduler.set_limits(settings.limits.clone());
        self.jobs.adopt(&settings);
        if settings.probes_max() != self.settings.probes_max() {
            // Running jobs keep the permits of the old semaphore.
            self.probe_permits = Arc::new(Semaphore::new(settings.probes_max()));
        }
        if settings.watch_interval != self.settings.watch_interval {
            self.watch
                .set_interval(settings.watch_interval, Moment::now().instant);
        }
        self.reads.set_max_age(settings.cache_max_age);
        self.settings = settings;
    }
}

/// Converts a job for the scheduler, without a deadline.
fn scheduled(spec: &JobSpec) -> NewJob {
    NewJob {
        id: spec.id,
        client: spec.client.id,
        class: spec.info.class,
        footprint: spec.info.footprint.clone(),
        queue_deadline: None,
        preempts: spec.info.preempts,
        machine: spec.info.machine.clone(),
    }
}

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

use std::time::Instant;

use orbd_host::config::LEAVE_CHANGES_AFTER;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::{Moment, sleep_until};
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::operation::Scope;
use crate::orbctl::Orbctl;
use crate::scheduler::{NewJob, Scheduler};

use super::drains::Drains;
use super::handle::Request;
use super::health::Health;
use super::idle::Idle;
use super::jobs::JobTable;
use super::read_table::ReadTable;
use super::runner::{Report, Runner};
use super::submission::JobSpec;
use super::views::Published;
use super::watch::Watch;
use super::{ChannelRules, Parts, Settings};

/// Most requests handled before the ends of jobs are checked again.
const REQUESTS_AT_ONCE: usize = 64;

/// State of the dispatcher. Each part keeps its own invariant; the methods of the state only call them in the right order, and carry
/// out what they return.
pub(super) struct State<O> {
    journal: Journal,
    metrics: Metrics,
    scheduler: Scheduler,
    jobs: JobTable,
    reads: ReadTable,
    health: Health,
    watch: Watch,
    drains: Drains,
    idle: Idle,
    runner: Runner<O>,
}

impl<O: Orbctl> State<O> {
    pub(super) fn new(
        settings: &Settings,
        parts: Parts<O>,
        publish: watch::Sender<Published>,
        upgrading: CancellationToken,
    ) -> Self {
        let mut state = Self {
            journal: parts.journal,
            metrics: parts.metrics,
            scheduler: Scheduler::new(settings.limits.clone()),
            jobs: JobTable::new(settings),
            reads: ReadTable::new(settings.cache_max_age, publish),
            health: Health::default(),
            watch: Watch::new(settings.watch_interval),
            drains: Drains::default(),
            idle: Idle::new(upgrading),
            runner: Runner::new(parts.orbctl, settings),
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
            let timer = sleep_until(deadline);
            tokio::select! {
                biased;
                // Polled first: an inbox that is never empty must not delay a stop.
                () = shutdown.cancelled(), if !self.scheduler.is_closed() => {
                    leave_at = Some(Moment::now().instant + LEAVE_CHANGES_AFTER.max(self.runner.grace()));
                    self.begin_stop();
                }
                report = self.runner.next() => match report {
                    Report::Note(id, note) => self.on_job_event(id, note),
                    Report::Ended(id, finished) => self.end(id, finished),
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
                self.runner.close_all_channels().await;
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
            Request::CloseChannels(scope, reply) => {
                self.runner.close_channels(scope, || {
                    // Fails if the caller has gone.
                    let _ = reply.send(());
                });
            }
            Request::Subscribe(wants_polls, reply) => {
                let _ = reply.send(self.subscribe(wants_polls));
            }
            Request::Snapshot(reply) => {
                let _ = reply.send(self.snapshot());
            }
            Request::Adopt(settings, reply) => {
                self.adopt(&settings);
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
    fn adopt(&mut self, settings: &Settings) {
        self.scheduler.set_limits(settings.limits.clone());
        self.jobs.adopt(settings);
        self.reads.set_max_age(settings.cache_max_age);
        self.watch
            .set_interval(settings.watch_interval, Moment::now().instant);
        self.runner.adopt(settings);
        let ChannelRules { enabled, except } = &settings.channels;
        if !enabled {
            self.runner.close_channels(Scope::Everything, || {});
        } else if !except.is_empty() {
            let machines = except.iter().cloned().collect();
            self.runner.close_channels(Scope::Machines(machines), || {});
        }
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

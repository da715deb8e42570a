//! Idle detection: can this process be replaced without losing anything that a client relies on?
//!
//! The check runs only while a new program waits to take over. The next instance knows what is in the journal: leases and sessions,
//! which are processes of their clients, and waiting detached changes. It does not know other running jobs, clients that wait for a
//! job or read its output, pauses and drains. While [`HoldTimer`] holds, requests for new jobs are kept without accepting them,
//! because this instance would have to finish accepted ones. They are accepted after the hold, or refused so that their clients send
//! them to the next instance.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::clock::Moment;
use crate::job::JobId;
use crate::orbctl::Orbctl;

use super::super::handle::{BusyReason, Request, Submission, WaitingFor};
use super::super::hold::{HoldTimer, Load};
use super::entry::JobPhase;
use super::{Entry, State, is_durable};

/// How long after the end of a detached job, or a request about one, its client may still fetch the rest.
const FETCH_TIME: Duration = Duration::from_secs(1);
/// Requests about a job that ended longer ago than this do not delay an upgrade. Otherwise a client that polls could delay it
/// indefinitely.
const FETCH_TIME_MAX: Duration = Duration::from_secs(30);
/// Shortest and longest pause between two checks. The pause doubles while nothing happens.
const CHECK_PAUSE: Duration = Duration::from_millis(250);
const CHECK_PAUSE_MAX: Duration = Duration::from_secs(5);

/// The waiter for an idle moment, and the requests that are held back.
#[derive(Default)]
pub(super) struct Idle {
    /// When a client last used a detached job.
    touched: Option<Instant>,
    wait: Option<Wait>,
    /// Held requests for new jobs, oldest first.
    held: VecDeque<Request>,
}

struct Wait {
    /// `None` once it was answered.
    reply: Option<oneshot::Sender<()>>,
    hold: HoldTimer,
    /// When to check next. Checks are spaced because each one visits all jobs.
    next: Instant,
    pause: Duration,
}

impl Idle {
    /// Records that a client uses a job.
    pub(super) fn touch(&mut self, now: Instant) {
        self.touched = Some(now);
        self.check_at(now + CHECK_PAUSE);
    }

    /// Schedules a check now, because a job has ended.
    pub(super) fn job_ended(&mut self, now: Instant) {
        self.check_at(now);
    }

    fn check_at(&mut self, at: Instant) {
        if let Some(wait) = &mut self.wait {
            wait.pause = CHECK_PAUSE;
            wait.next = wait.next.min(at);
        }
    }

    pub(super) fn is_holding(&self) -> bool {
        self.wait.as_ref().is_some_and(|wait| wait.hold.is_holding())
    }

    /// Keeps a request for a new job until the hold is over.
    pub(super) fn hold_back(&mut self, request: Request) {
        self.held.push_back(request);
    }
}

impl<O: Orbctl> State<O> {
    /// Answers at the next idle moment. If called again, replaces the previous waiter.
    pub(super) fn wait_idle(&mut self, reply: oneshot::Sender<()>) {
        let now = Moment::now().instant;
        // A repeated call continues the same wait: the timer keeps its progress.
        let hold = self.idle.wait.take().map(|wait| wait.hold);
        self.idle.wait = Some(Wait {
            reply: Some(reply),
            hold: hold.unwrap_or_else(|| HoldTimer::new(now)),
            next: now,
            pause: CHECK_PAUSE,
        });
    }

    /// If the daemon is idle, refuses all new jobs from now on; returns whether it does. Nothing can be accepted between the check
    /// and the refusal. All other requests are still answered.
    pub(super) fn begin_upgrade(&mut self) -> bool {
        if self.scheduler.is_closed() || self.is_upgrading() || self.busy().is_some() {
            return false;
        }
        // Before the first refusal, so that a connection that sees it knows the reason.
        self.upgrading.cancel();
        self.idle.wait = None;
        self.pass_held();
        true
    }

    /// Returns whether this instance accepts no more jobs because the next instance is taking over.
    pub(super) fn is_upgrading(&self) -> bool {
        self.upgrading.is_cancelled()
    }

    /// Returns when to check next; `None` while there is no waiter.
    pub(super) fn next_idle_check(&self) -> Option<Instant> {
        self.idle.wait.as_ref().map(|wait| wait.next)
    }

    pub(super) fn check_idle(&mut self, now: Instant) {
        if self.next_idle_check().is_none_or(|next| next > now) {
            return;
        }
        let busy = self.busy();
        let Some(mut wait) = self.idle.wait.take() else {
            return;
        };
        let is_wanted = wait.reply.as_ref().is_some_and(|reply| !reply.is_closed());
        if is_wanted {
            let was_holding = wait.hold.is_holding();
            wait.hold.step(now, load(busy.as_ref()));
            if wait.hold.is_holding() != was_holding {
                tracing::info!(
                    holding = !was_holding,
                    ?busy,
                    "toggled the upgrade hold on new jobs"
                );
            }
            if busy.is_none()
                && let Some(reply) = wait.reply.take()
            {
                // The receiver may have been dropped meanwhile.
                let _ = reply.send(());
            }
            wait.next = (now + wait.pause).min(wait.hold.deadline(now).unwrap_or(now + CHECK_PAUSE_MAX));
            wait.pause = (wait.pause * 2).min(CHECK_PAUSE_MAX);
            self.idle.wait = Some(wait);
        }
        // Otherwise the waiter did not call again within a pause after its answer, or stopped waiting.
        if !self.idle.is_holding() {
            self.pass_held();
        }
    }

    /// Returns whether to delay this submission until the upgrade is over. Forced changes are never delayed: they are for emergencies.
    pub(super) fn holds_back(&self, submission: &Submission) -> bool {
        self.is_holding() && !submission.executor.info().preempts
    }

    /// Returns whether new jobs are held back. At most as many are held as the queue may hold.
    pub(super) fn is_holding(&self) -> bool {
        self.idle.is_holding() && self.idle.held.len() < self.settings.limits.queue_max
    }

    /// Accepts the held requests, or refuses them if an upgrade has begun.
    fn pass_held(&mut self) {
        for request in std::mem::take(&mut self.idle.held) {
            self.request(request);
        }
    }

    /// Records that a client asked about a job, because it may be about to fetch the output.
    pub(super) fn asked_about(&mut self, id: JobId) {
        let now = Moment::now().instant;
        let may_fetch = |entry: &Entry| match &entry.phase {
            JobPhase::ActiveJob(_) => true,
            JobPhase::EndedJob(over) => now.saturating_duration_since(over.at.instant) < FETCH_TIME_MAX,
        };
        if self.jobs.get(&id).is_some_and(may_fetch) {
            self.idle.touch(now);
        }
    }

    /// Returns what the next instance would not know; `None` if the daemon is idle.
    pub(super) fn busy(&self) -> Option<BusyReason> {
        if !self.scheduler.paused().is_empty() {
            return Some(BusyReason::Paused);
        }
        if !self.scheduler.draining().is_empty() {
            return Some(BusyReason::Draining);
        }
        let mut followed = self.ended_job_watchers.jobs().filter_map(|id| self.jobs.get(&id));
        let busy = self.jobs.values().find(|entry| needs_this_instance(entry));
        if let Some(entry) = busy.or_else(|| followed.next()) {
            return Some(BusyReason::Job(Self::in_the_way(entry)));
        }
        let now = Moment::now().instant;
        let is_recent = |touched: Instant| now.saturating_duration_since(touched) < FETCH_TIME;
        self.idle
            .touched
            .is_some_and(is_recent)
            .then_some(BusyReason::Recent)
    }
}

fn load(busy: Option<&BusyReason>) -> Load {
    match busy {
        None => Load::Idle,
        Some(BusyReason::Job(WaitingFor::Job { id, .. })) => Load::Busy(Some(*id)),
        Some(BusyReason::Job(_) | BusyReason::Recent) => Load::Busy(None),
        Some(BusyReason::Paused | BusyReason::Draining) => Load::Blocked,
    }
}

/// Returns whether a client would lose the job if this instance did not finish it.
fn needs_this_instance(entry: &Entry) -> bool {
    let Some(live) = entry.live() else {
        return false;
    };
    let is_known_to_the_next = if live.is_waiting() {
        is_durable(&entry.spec)
    } else {
        entry.spec.lease.is_some()
    };
    // A client that waits for the job would get no answer.
    !is_known_to_the_next || live.state.receiver_count() > 0
}

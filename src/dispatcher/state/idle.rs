//! Idle detection: can this process be replaced without losing anything that a client relies on?
//!
//! Asked only while a new program waits to take over. The next instance knows what the journal knows: leases and sessions, whose
//! processes are their clients', and detached changes that wait. It does not know a job that runs, a job that somebody waits for or
//! whose output somebody reads, a pause or a drain. While [`HoldTimer`] holds, requests for new work are kept unaccepted: accepted ones
//! would have to be carried out by this instance. Either they are accepted later, or their clients send them to the next instance.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::clock::Moment;
use crate::job::JobId;
use crate::orbctl::Orbctl;

use super::super::handle::{BusyReason, Executor, Request, Submission, WaitingFor};
use super::super::hold::{HoldTimer, Load};
use super::entry::JobPhase;
use super::{Entry, State, is_durable};

/// How long after the end of a detached job, or a question about one, its client may still fetch the rest.
const FETCH_TIME: Duration = Duration::from_secs(1);
/// Questions about a job that ended longer ago than this do not delay an upgrade, or a client that polls could do so for ever.
const FETCH_TIME_MAX: Duration = Duration::from_secs(30);
/// Pauses between two checks while nothing ends, shortest and longest.
const CHECK_PAUSE: Duration = Duration::from_millis(250);
const CHECK_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Who waits for an idle moment, and what is held back meanwhile.
#[derive(Default)]
pub(super) struct Idle {
    /// When a client last had to do with a detached job.
    touched: Option<Instant>,
    wait: Option<Wait>,
    /// Requests for new work, oldest first.
    held: VecDeque<Request>,
}

struct Wait {
    /// Absent once it was answered.
    reply: Option<oneshot::Sender<()>>,
    hold: HoldTimer,
    /// When to check next: a check visits all jobs.
    next: Instant,
    pause: Duration,
}

impl Idle {
    /// A client has to do with a job.
    pub(super) fn touch(&mut self, now: Instant) {
        self.touched = Some(now);
        self.check_at(now + CHECK_PAUSE);
    }

    /// A job has ended, so this may be an idle moment.
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

    /// Keeps a request for new work until the hold is over.
    pub(super) fn hold_back(&mut self, request: Request) {
        self.held.push_back(request);
    }
}

impl<O: Orbctl> State<O> {
    /// Answers at the next idle moment. Of several who wait, the last one is answered.
    pub(super) fn wait_idle(&mut self, reply: oneshot::Sender<()>) {
        let now = Moment::now().instant;
        // One who asks again goes on waiting: its patience does not begin anew.
        let hold = self.idle.wait.take().map(|wait| wait.hold);
        self.idle.wait = Some(Wait {
            reply: Some(reply),
            hold: hold.unwrap_or_else(|| HoldTimer::new(now)),
            next: now,
            pause: CHECK_PAUSE,
        });
    }

    /// Refuses all new work from now on if the daemon is idle, and returns whether it is: nothing is accepted between check and
    /// refusal. Everything else is still answered.
    pub(super) fn begin_upgrade(&mut self) -> bool {
        if self.stopping || self.is_upgrading() || self.busy().is_some() {
            return false;
        }
        // Before anything is refused: a connection that sees a refusal has to know why.
        self.upgrading.cancel();
        self.idle.wait = None;
        self.pass_held();
        true
    }

    /// Says whether this instance accepts nothing more because the next one is about to.
    pub(super) fn is_upgrading(&self) -> bool {
        self.upgrading.is_cancelled()
    }

    /// Returns when to check next; never while nobody waits.
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
                    "new work is held back for an upgrade"
                );
            }
            if busy.is_none()
                && let Some(reply) = wait.reply.take()
            {
                // The receiver may have gone meanwhile.
                let _ = reply.send(());
            }
            wait.next = (now + wait.pause).min(wait.hold.deadline(now).unwrap_or(now + CHECK_PAUSE_MAX));
            wait.pause = (wait.pause * 2).min(CHECK_PAUSE_MAX);
            self.idle.wait = Some(wait);
        }
        // Otherwise nobody came back within a pause after the answer, or the wait was given up.
        if !self.idle.is_holding() {
            self.pass_held();
        }
    }

    /// Says whether a submission is held back. What ends other jobs by force is not: it is what one does in an emergency.
    pub(super) fn holds_back(&self, submission: &Submission) -> bool {
        self.is_holding() && !submission.operation.preempts()
    }

    /// Says whether new work is held back: as much of it as may wait in the queue.
    pub(super) fn is_holding(&self) -> bool {
        self.idle.is_holding() && self.idle.held.len() < self.settings.limits.queue_max
    }

    /// Accepts what was held back, or refuses it if an upgrade has begun.
    fn pass_held(&mut self) {
        for request in std::mem::take(&mut self.idle.held) {
            self.request(request);
        }
    }

    /// A client asks about a job, and may be about to fetch what it wrote.
    pub(super) fn asked_about(&mut self, id: JobId) {
        let now = Moment::now().instant;
        let may_fetch = |entry: &Entry| match &entry.life {
            JobPhase::ActiveJob(_) => true,
            JobPhase::EndedJob(over) => now.saturating_duration_since(over.at.instant) < FETCH_TIME_MAX,
        };
        if self.jobs.get(&id).is_some_and(may_fetch) {
            self.idle.touch(now);
        }
    }

    /// Returns what the next instance would not know; `None` when the daemon is idle.
    pub(super) fn busy(&self) -> Option<BusyReason> {
        if !self.paused.is_empty() {
            return Some(BusyReason::Paused);
        }
        if !self.draining.is_empty() {
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

/// Says whether a job would be lost to somebody if it did not end in this instance.
fn needs_this_instance(entry: &Entry) -> bool {
    let Some(live) = entry.live() else {
        return false;
    };
    let is_known_to_the_next = if live.is_waiting() {
        is_durable(&entry.spec)
    } else {
        matches!(entry.spec.asked.executor, Executor::Lease(_))
    };
    // Whoever waits for it would have no answer.
    !is_known_to_the_next || live.state.receiver_count() > 0
}

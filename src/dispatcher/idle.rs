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
use tokio_util::sync::CancellationToken;

use super::handle::Request;
use super::hold::{HoldTimer, Load};
use super::submission::WaitingFor;
use super::views::BusyReason;

/// How long after the end of a detached job, or a request about one, its client may still fetch the rest.
const FETCH_TIME: Duration = Duration::from_secs(1);
/// Requests about a job that ended longer ago than this do not delay an upgrade. Otherwise a client that polls could delay it
/// indefinitely.
const FETCH_TIME_MAX: Duration = Duration::from_secs(30);
/// Shortest and longest pause between two checks. The pause doubles while nothing happens.
const CHECK_PAUSE: Duration = Duration::from_millis(250);
const CHECK_PAUSE_MAX: Duration = Duration::from_secs(5);

/// The waiter for an idle moment, and the requests that are held back.
///
/// Requests are held back only while a waiter's timer holds: whatever ends the hold returns them. After the upgrade has begun there
/// is neither a waiter nor a held request.
pub(super) struct Idle {
    /// When a client last used a detached job.
    touched: Option<Instant>,
    wait: Option<Wait>,
    /// Held requests for new jobs, oldest first.
    held: VecDeque<Request>,
    /// Cancelled once no more jobs are accepted because the next instance takes over.
    upgrading: CancellationToken,
}

struct Wait {
    /// `None` once it was answered.
    reply: Option<oneshot::Sender<()>>,
    hold: HoldTimer,
    /// When to check next. Checks are spaced because each one visits all jobs.
    next: Instant,
    pause: Duration,
}

/// What a check changed.
#[must_use = "released requests are to be handled"]
pub(super) struct Checked {
    /// Whether the timer holds from now on; `None` if that did not change.
    pub(super) holding: Option<bool>,
    /// Requests that are no longer held back, oldest first.
    pub(super) released: VecDeque<Request>,
}

impl Idle {
    /// `upgrading` is cancelled when the upgrade begins.
    pub(super) fn new(upgrading: CancellationToken) -> Self {
        Self {
            touched: None,
            wait: None,
            held: VecDeque::new(),
            upgrading,
        }
    }

    /// Records that a client uses a job.
    pub(super) fn touch(&mut self, now: Instant) {
        self.touched = Some(now);
        self.check_at(now + CHECK_PAUSE);
    }

    /// Records that a client asked about a job, because it may be about to fetch the output. `ended` is `None` for an active job.
    pub(super) fn asked_about(&mut self, ended: Option<Instant>, now: Instant) {
        if ended.is_none_or(|ended| now.saturating_duration_since(ended) < FETCH_TIME_MAX) {
            self.touch(now);
        }
    }

    /// Returns whether a client used a job so recently that it may be about to fetch the rest.
    pub(super) fn is_in_use(&self, now: Instant) -> bool {
        self.touched
            .is_some_and(|touched| now.saturating_duration_since(touched) < FETCH_TIME)
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

    /// Answers at the next idle moment. If called again, replaces the previous waiter and continues the same wait: the timer keeps
    /// its progress.
    pub(super) fn wait(&mut self, reply: oneshot::Sender<()>, now: Instant) {
        let hold = self.wait.take().map(|wait| wait.hold);
        self.wait = Some(Wait {
            reply: Some(reply),
            hold: hold.unwrap_or_else(|| HoldTimer::new(now)),
            next: now,
            pause: CHECK_PAUSE,
        });
    }

    /// Returns when to check next; `None` while there is no waiter.
    pub(super) fn next_check(&self) -> Option<Instant> {
        self.wait.as_ref().map(|wait| wait.next)
    }

    /// Checks once the time has come: answers the waiter if nothing keeps the daemon busy, and begins or ends a hold.
    pub(super) fn check(&mut self, now: Instant, busy: Option<&BusyReason>) -> Checked {
        let mut holding = None;
        if let Some(mut wait) = self.wait.take()
            // Otherwise the waiter did not call again within a pause after its answer, or stopped waiting.
            && wait.reply.as_ref().is_some_and(|reply| !reply.is_closed())
        {
            let before = wait.hold.is_holding();
            wait.hold.step(now, load(busy));
            let after = wait.hold.is_holding();
            holding = (before != after).then_some(after);
            if let Some(reply) = wait.reply.take_if(|_| busy.is_none()) {
                // The receiver may have been dropped meanwhile.
                let _ = reply.send(());
            }
            wait.next = (now + wait.pause).min(wait.hold.deadline(now).unwrap_or(now + CHECK_PAUSE_MAX));
            wait.pause = (wait.pause * 2).min(CHECK_PAUSE_MAX);
            self.wait = Some(wait);
        }
        let released = if self.is_holding() {
            VecDeque::new()
        } else {
            std::mem::take(&mut self.held)
        };
        Checked { holding, released }
    }

    /// Returns whether the hold keeps new jobs from being accepted.
    pub(super) fn is_holding(&self) -> bool {
        self.wait.as_ref().is_some_and(|wait| wait.hold.is_holding())
    }

    /// Returns whether to hold back a request for a new job. At most as many are held as the queue may hold.
    pub(super) fn holds_back(&self, queue_max: usize) -> bool {
        self.is_holding() && self.held.len() < queue_max
    }

    /// Keeps a request for a new job until the hold is over.
    pub(super) fn hold_back(&mut self, request: Request) {
        self.held.push_back(request);
    }

    /// Begins the upgrade: no job is accepted from now on. Returns the held requests, which are to be refused.
    #[must_use]
    pub(super) fn begin_upgrade(&mut self) -> VecDeque<Request> {
        // Before the first refusal, so that a connection that sees it knows the reason.
        self.upgrading.cancel();
        self.wait = None;
        std::mem::take(&mut self.held)
    }

    /// Returns whether this instance accepts no more jobs because the next instance is taking over.
    pub(super) fn is_upgrading(&self) -> bool {
        self.upgrading.is_cancelled()
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

#[cfg(test)]
mod tests {
    use super::super::hold::{HOLD_MAX, PATIENCE};
    use super::*;
    use crate::clock::Moment;
    use crate::job::JobId;

    const BUSY: BusyReason = BusyReason::Recent;

    fn idle() -> (Idle, Instant) {
        (Idle::new(CancellationToken::new()), Moment::now().instant)
    }

    fn wait(idle: &mut Idle, now: Instant) -> oneshot::Receiver<()> {
        let (reply, answer) = oneshot::channel();
        idle.wait(reply, now);
        answer
    }

    fn check(idle: &mut Idle, now: Instant, busy: Option<&BusyReason>) -> usize {
        idle.check(now, busy).released.len()
    }

    #[test]
    fn waiter_is_answered_at_the_first_check_that_finds_nothing() {
        let (mut idle, now) = idle();
        assert_eq!(idle.next_check(), None);
        let mut answer = wait(&mut idle, now);
        assert_eq!(idle.next_check(), Some(now));
        check(&mut idle, now, Some(&BUSY));
        assert!(answer.try_recv().is_err());
        assert_eq!(idle.next_check(), Some(now + CHECK_PAUSE));
        check(&mut idle, now + CHECK_PAUSE, None);
        assert!(answer.try_recv().is_ok());
        let next = idle.next_check().expect("the waiter may call again");
        check(&mut idle, next, None);
        assert_eq!(idle.next_check(), None, "it did not");
    }

    #[test]
    fn end_of_a_job_and_its_use_bring_the_next_check_forward() {
        let (mut idle, now) = idle();
        let _answer = wait(&mut idle, now);
        for _ in 0..8 {
            check(&mut idle, now, Some(&BUSY));
        }
        assert_eq!(idle.next_check(), Some(now + CHECK_PAUSE_MAX));
        idle.touch(now);
        assert_eq!(idle.next_check(), Some(now + CHECK_PAUSE));
        idle.job_ended(now);
        assert_eq!(idle.next_check(), Some(now));
    }

    #[test]
    fn use_of_a_job_counts_briefly_unless_the_job_ended_long_ago() {
        let (mut idle, now) = idle();
        idle.asked_about(Some(now), now + FETCH_TIME_MAX);
        assert!(!idle.is_in_use(now + FETCH_TIME_MAX));
        for ended in [None, Some(now)] {
            idle.asked_about(ended, now);
            assert!(idle.is_in_use(now) && !idle.is_in_use(now + FETCH_TIME));
        }
    }

    #[test]
    fn held_requests_are_released_by_whatever_ends_the_hold() {
        for how in ["time", "gone", "upgrade"] {
            let (mut idle, start) = idle();
            let answer = wait(&mut idle, start);
            let now = start + PATIENCE;
            assert_eq!(idle.check(now, Some(&BUSY)).holding, Some(true));
            assert!(idle.holds_back(1));
            idle.hold_back(Request::EndInput(JobId(1)));
            assert!(
                idle.is_holding() && !idle.holds_back(1),
                "as many as the queue may hold"
            );
            assert_eq!(check(&mut idle, now, Some(&BUSY)), 0);
            let released = match how {
                "time" => check(&mut idle, now + HOLD_MAX, Some(&BUSY)),
                "gone" => {
                    drop(answer);
                    check(&mut idle, now, Some(&BUSY))
                }
                _ => idle.begin_upgrade().len(),
            };
            assert_eq!(released, 1, "{how}");
            assert!(!idle.is_holding() && idle.held.is_empty());
            assert_eq!(idle.is_upgrading(), how == "upgrade");
        }
    }

    #[test]
    fn repeated_wait_keeps_the_progress_of_the_timer() {
        let (mut idle, start) = idle();
        let first = wait(&mut idle, start);
        let _second = wait(&mut idle, start + PATIENCE / 2);
        drop(first);
        assert_eq!(idle.check(start + PATIENCE, Some(&BUSY)).holding, Some(true));
    }
}

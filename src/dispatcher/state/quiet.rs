//! Quiet: whether the daemon could be replaced at this moment and nobody would notice.
//!
//! Asked for only while a new program waits to take over. What the journal hands on may go on: leases and sessions, whose processes
//! are their clients', and detached changes that wait. Everything else would be lost to somebody: a job that runs, one that somebody
//! waits for, an end that somebody has not been told, a pause that somebody asked for, and what is last known while `orbctl` is sick.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::clock::Moment;
use crate::orbctl::Orbctl;

use super::super::handle::{Carrier, Target, Unrest};
use super::{Entry, State, is_durable};

/// How long after the end of a job, or a question about one, its client may still be about to ask for the rest.
const QUIET_FOR: Duration = Duration::from_secs(1);
/// Between two looks while jobs come and go, and at most.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(5);

/// What is known of quiet, and who waits for it.
#[derive(Debug)]
pub(super) struct Quiet {
    /// When somebody last had to do with a job.
    touched: Option<Instant>,
    wanted: Option<Wanted>,
}

#[derive(Debug)]
struct Wanted {
    reply: oneshot::Sender<()>,
    /// When to look next: all jobs are looked at, so not after every event.
    next: Instant,
    pause: Duration,
}

impl Quiet {
    pub(super) fn new() -> Self {
        Self {
            touched: None,
            wanted: None,
        }
    }

    /// Somebody has to do with a job.
    pub(super) fn touch(&mut self, now: Instant) {
        self.touched = Some(now);
        if let Some(wanted) = &mut self.wanted {
            wanted.pause = LOOK_PAUSE;
            wanted.next = wanted.next.min(now + LOOK_PAUSE);
        }
    }
}

impl<O: Orbctl> State<O> {
    /// Tells when it is quiet, the next time that it is.
    pub(super) fn until_quiet(&mut self, reply: oneshot::Sender<()>) {
        self.quiet.wanted = Some(Wanted {
            reply,
            next: Moment::now().instant,
            pause: LOOK_PAUSE,
        });
    }

    /// Begins to stop if it is quiet, and says whether it was: nothing is accepted between the look and the stop.
    pub(super) fn stop_if_quiet(&mut self) -> bool {
        if self.stopping || self.unrest().is_some() {
            return false;
        }
        self.begin_stop();
        self.succeeded = true;
        true
    }

    /// Returns when to look next whether it is quiet: never while nobody wants to know.
    pub(super) fn next_quiet(&self) -> Option<Instant> {
        self.quiet.wanted.as_ref().map(|wanted| wanted.next)
    }

    pub(super) fn look_for_quiet(&mut self, now: Instant) {
        if self.next_quiet().is_none_or(|next| next > now) {
            return;
        }
        let is_quiet = self.unrest().is_none();
        let Some(mut wanted) = self.quiet.wanted.take() else {
            return;
        };
        if wanted.reply.is_closed() {
            return;
        }
        if is_quiet {
            // Whoever waited may have gone meanwhile.
            let _ = wanted.reply.send(());
            return;
        }
        wanted.next = now + wanted.pause;
        wanted.pause = (wanted.pause * 2).min(LOOK_PAUSE_MAX);
        self.quiet.wanted = Some(wanted);
    }

    /// Says what would be lost now; `None` when nothing would.
    pub(super) fn unrest(&self) -> Option<Unrest> {
        let is_paused = |targets: &[Target]| !targets.is_empty();
        if is_paused(&self.paused) {
            return Some(Unrest::Paused);
        }
        if is_paused(&self.draining) {
            return Some(Unrest::Draining);
        }
        if self.breaker.sickness().is_some() {
            return Some(Unrest::Sick);
        }
        let mut followed = self.followed.jobs().filter_map(|id| self.jobs.get(&id));
        let busy = self.jobs.values().find(|entry| would_be_missed(entry));
        if let Some(entry) = busy.or_else(|| followed.next()) {
            return Some(Unrest::Job(Self::in_the_way(entry)));
        }
        let now = Moment::now().instant;
        let is_recent = |touched: Instant| now.saturating_duration_since(touched) < QUIET_FOR;
        self.quiet
            .touched
            .is_some_and(is_recent)
            .then_some(Unrest::Recent)
    }
}

/// Says whether somebody would miss a job that is not over if this life of the daemon ended now.
fn would_be_missed(entry: &Entry) -> bool {
    let Some(live) = entry.live() else {
        return false;
    };
    let is_handed_on = if live.is_waiting() {
        is_durable(&entry.spec)
    } else {
        matches!(entry.spec.asked.carrier, Carrier::Lease(_))
    };
    !is_handed_on || live.state.receiver_count() > 0
}

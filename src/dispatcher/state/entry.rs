//! One job as it is remembered: what a live one needs, and what is left of one that is over.
//!
//! Few jobs live at a time, and ended ones are remembered by the thousand. So an ended job has nothing that only a live one uses: no
//! way to stop it, no input, no channel to its followers. What it has is how it ended, and what it wrote.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::job::{JobId, Outcome};
use crate::operation::{Class, Operation, Scope};
use crate::spool::{self, Spool};

use super::super::handle::{Job, JobSpec, JobState, Release, StateFilter, WaitingFor};

/// Everything about one job.
pub(super) struct Entry {
    pub(super) spec: Arc<JobSpec>,
    pub(super) life: JobPhase,
    pub(super) output: Output,
    /// How many callers share it beside the first.
    pub(super) joined: u32,
}

/// Where a job is. Both boxed: a tree of jobs has room for about twice as many as are in it.
pub(super) enum JobPhase {
    /// It waits or runs.
    ActiveJob(Box<ActiveJob>),
    /// It has ended.
    EndedJob(Box<EndedJob>),
}

/// What only a job has that waits or runs.
pub(super) struct ActiveJob {
    /// Never an end: that is told when this is let go.
    pub(super) state: watch::Sender<JobState>,
    /// Ends what runs.
    pub(super) stop: CancellationToken,
    /// Ends looking afterwards, too.
    pub(super) abandon: CancellationToken,
    /// Until the start: where output will go.
    pub(super) writer: Option<spool::Writer>,
    /// Where streamed input goes in, while it may.
    pub(super) input: Option<mpsc::Sender<Bytes>>,
    /// Until the start: where streamed input comes out.
    pub(super) input_end: Option<mpsc::Receiver<Bytes>>,
    /// For a lease: where its release goes, until there was one.
    pub(super) release: Option<oneshot::Sender<Release>>,
    /// What the job makes stale, at its start and at its end.
    pub(super) touches: Option<Scope>,
    /// The forced change that ends it, if one does.
    pub(super) preempted_by: Option<WaitingFor>,
}

/// How a job ended.
pub(super) struct EndedJob {
    /// When it started, if it did.
    pub(super) since: Option<Moment>,
    /// When it ended.
    pub(super) at: Moment,
    pub(super) outcome: Outcome,
    /// What it waited for at its end, if it never started, or the forced change that it lost to.
    pub(super) holder: Option<Box<WaitingFor>>,
}

/// What a job wrote.
pub(super) enum Output {
    /// It is not one that writes.
    None,
    Kept(Spool),
    /// So many bytes, which are no longer kept.
    Gone(u64),
}

impl Entry {
    pub(super) fn new(spec: Arc<JobSpec>, live: ActiveJob, output: Output) -> Self {
        Self {
            spec,
            life: JobPhase::ActiveJob(Box::new(live)),
            output,
            joined: 0,
        }
    }

    pub(super) fn live(&self) -> Option<&ActiveJob> {
        match &self.life {
            JobPhase::ActiveJob(live) => Some(live),
            JobPhase::EndedJob(_) => None,
        }
    }

    pub(super) fn live_mut(&mut self) -> Option<&mut ActiveJob> {
        match &mut self.life {
            JobPhase::ActiveJob(live) => Some(live),
            JobPhase::EndedJob(_) => None,
        }
    }

    pub(super) fn state(&self) -> JobState {
        match &self.life {
            JobPhase::ActiveJob(live) => live.state.borrow().clone(),
            JobPhase::EndedJob(over) => over.state(),
        }
    }

    /// Returns the state without what it holds.
    pub(super) fn phase(&self) -> StateFilter {
        match &self.life {
            JobPhase::ActiveJob(live) if live.is_waiting() => StateFilter::Waiting,
            JobPhase::ActiveJob(_) => StateFilter::Running,
            JobPhase::EndedJob(_) => StateFilter::Ended,
        }
    }

    /// Hands the job to somebody who follows it.
    pub(super) fn job(&self, followed: &mut EndedJobWatchers) -> Job {
        let state = match &self.life {
            JobPhase::ActiveJob(live) => live.state.subscribe(),
            JobPhase::EndedJob(over) => {
                let (channel, state) = watch::channel(over.state());
                followed.keep(self.spec.id, channel);
                state
            }
        };
        let (spool, output_gone) = match &self.output {
            Output::None => (None, 0),
            Output::Kept(spool) => (Some(spool.clone()), 0),
            Output::Gone(bytes) => (None, *bytes),
        };
        Job {
            spec: self.spec.clone(),
            state,
            spool,
            output_gone,
        }
    }

    /// Says whether a stop of ours leaves it alone: a change finishes, and a client's own process is not ours to end.
    pub(super) fn is_left_to_finish(&self) -> bool {
        self.phase() == StateFilter::Running
            && !matches!(
                self.spec.asked.operation,
                Operation::Query(_) | Operation::Exec(..)
            )
    }

    /// Says whether a stop of ours waits for it. A session may go on for days, and the next life finds it.
    pub(super) fn holds_up_a_stop(&self) -> bool {
        self.phase() == StateFilter::Running && self.spec.asked.operation.class() != Class::Session
    }
}

impl ActiveJob {
    pub(super) fn is_waiting(&self) -> bool {
        matches!(*self.state.borrow(), JobState::Waiting)
    }

    /// Returns when it started; `None` while it waits.
    pub(super) fn running_since(&self) -> Option<Moment> {
        match *self.state.borrow() {
            JobState::Running { since } => Some(since),
            JobState::Waiting | JobState::Ended { .. } => None,
        }
    }

    /// Drops everything but the channel. A writer that nobody took ends its spool with that, and every follower's wait for more.
    pub(super) fn release_waiters(self) -> watch::Sender<JobState> {
        self.state
    }
}

impl EndedJob {
    pub(super) fn state(&self) -> JobState {
        JobState::Ended {
            since: self.since,
            at: self.at,
            outcome: self.outcome.clone(),
            holder: self.holder.as_deref().cloned(),
        }
    }
}

impl Output {
    /// Returns how many bytes came so far.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Kept(spool) => spool.end(),
            Self::Gone(bytes) => *bytes,
        }
    }
}

/// Channels that are looked through for those that nobody follows any more, at least.
const FOLLOWED_MIN: usize = 16;

/// The channels of jobs that are over, while somebody holds the other end: by these alone it is known that an end, or what a job
/// wrote, is still being told to somebody.
#[derive(Default)]
pub(super) struct EndedJobWatchers {
    channels: Vec<(JobId, watch::Sender<JobState>)>,
    /// How many there may be before they are looked through: twice as many as were found last, so that each costs little.
    many: usize,
}

impl EndedJobWatchers {
    /// Keeps a channel that tells an end for as long as somebody follows it.
    pub(super) fn keep(&mut self, id: JobId, channel: watch::Sender<JobState>) {
        if channel.receiver_count() == 0 {
            return;
        }
        if self.channels.len() >= self.many {
            self.channels.retain(|(_, channel)| channel.receiver_count() > 0);
            self.many = (self.channels.len() * 2).max(FOLLOWED_MIN);
            self.channels.shrink_to(self.many);
        }
        self.channels.push((id, channel));
    }

    /// Returns the jobs that somebody follows.
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobId> {
        let followed = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.receiver_count() > 0);
        followed.map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> (watch::Sender<JobState>, watch::Receiver<JobState>) {
        let over = EndedJob {
            since: None,
            at: Moment::now(),
            outcome: Outcome::Interrupted,
            holder: None,
        };
        watch::channel(over.state())
    }

    #[test]
    fn a_channel_is_kept_while_it_is_followed() {
        let mut followed = EndedJobWatchers::default();
        let (first, one) = channel();
        let (second, other) = channel();
        followed.keep(JobId(1), first);
        followed.keep(JobId(2), second);
        followed.keep(JobId(3), channel().0);
        assert!(followed.jobs().eq([JobId(1), JobId(2)]), "nobody followed 3");
        drop(one);
        assert!(followed.jobs().eq([JobId(2)]));
        assert!(other.borrow().is_ended());
        drop(other);
        assert_eq!(followed.jobs().count(), 0);
    }

    #[test]
    fn channels_that_nobody_follows_do_not_pile_up() {
        let mut followed = EndedJobWatchers::default();
        let (channel_of_one, one) = channel();
        followed.keep(JobId(0), channel_of_one);
        for id in 1..10_000 {
            let (channel, receiver) = channel();
            followed.keep(JobId(id), channel);
            drop(receiver);
            assert!(followed.channels.len() <= FOLLOWED_MIN);
        }
        assert!(followed.jobs().eq([JobId(0)]));
        drop(one);
    }

    #[test]
    fn many_who_follow_are_all_known() {
        let mut followed = EndedJobWatchers::default();
        let receivers: Vec<_> = (0..1_000)
            .map(|id| {
                let (channel, receiver) = channel();
                followed.keep(JobId(id), channel);
                receiver
            })
            .collect();
        assert_eq!(followed.jobs().count(), 1_000);
        drop(receivers);
        let (channel, _receiver) = channel();
        for id in 0..2_000 {
            let (other, receiver) = self::channel();
            followed.keep(JobId(id), other);
            drop(receiver);
        }
        followed.keep(JobId(7), channel);
        assert!(followed.channels.len() <= FOLLOWED_MIN, "room is given back");
        assert!(followed.channels.capacity() <= 2 * FOLLOWED_MIN);
        assert!(followed.jobs().eq([JobId(7)]));
    }
}

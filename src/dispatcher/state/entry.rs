//! Per-job record. [`ActiveJob`] holds channels and handles; [`EndedJob`] holds the result.
//!
//! Few jobs are active at a time, but thousands of ended ones are kept. So an ended job holds nothing that only an active one needs:
//! no stop token, no input, no channel to watchers.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::job::{JobId, Outcome};
use crate::operation::{Class, Query, Scope};
use crate::spool::Spool;

use super::super::handle::{Job, JobSpec, JobState, Release, StateFilter, WaitingFor};
use super::super::run_job::Task;

pub(super) struct Entry {
    pub(super) spec: Arc<JobSpec>,
    pub(super) phase: JobPhase,
    pub(super) output: Output,
    /// Number of callers that share the job, not counting the first.
    pub(super) joined: u32,
}

/// Phase of a job. Both variants are boxed because B-tree nodes have room for about twice the entries that they hold.
pub(super) enum JobPhase {
    ActiveJob(Box<ActiveJob>),
    EndedJob(Box<EndedJob>),
}

/// State of a job that waits or runs.
pub(super) struct ActiveJob {
    /// Never `Ended`: that state is sent through the channel that [`ActiveJob::release_waiters`] returns.
    pub(super) state: watch::Sender<JobState>,
    /// Cancelled to stop the running invocation.
    pub(super) stop: CancellationToken,
    /// Cancelled to end reconciliation too.
    pub(super) abandon: CancellationToken,
    /// What the job does; taken when it starts.
    pub(super) task: Option<Task>,
    /// The query of a read; `None` for other jobs.
    pub(super) query: Option<Query>,
    /// Sender for streamed input; `None` once the input is closed, or if the job takes none.
    pub(super) input: Option<mpsc::Sender<Bytes>>,
    /// For a lease: sender for its release; `None` once it was released.
    pub(super) release: Option<oneshot::Sender<Release>>,
    /// Cache scope that the job invalidates, at its start and at its end.
    pub(super) touches: Option<Scope>,
    /// The forced change that preempted the job, if one did.
    pub(super) preempted_by: Option<WaitingFor>,
}

pub(super) struct EndedJob {
    /// When it started; `None` if it never did.
    pub(super) since: Option<Moment>,
    pub(super) at: Moment,
    pub(super) outcome: Outcome,
    /// What it was waiting for when it ended, if it never started, or the forced change that preempted it.
    pub(super) holder: Option<Box<WaitingFor>>,
}

/// Output of a job.
pub(super) enum Output {
    /// The operation writes no output.
    None,
    Kept(Spool),
    /// The job wrote this many bytes, which are no longer kept.
    Gone(u64),
}

impl Entry {
    pub(super) fn new(spec: Arc<JobSpec>, live: ActiveJob, output: Output) -> Self {
        Self {
            spec,
            phase: JobPhase::ActiveJob(Box::new(live)),
            output,
            joined: 0,
        }
    }

    pub(super) fn live(&self) -> Option<&ActiveJob> {
        match &self.phase {
            JobPhase::ActiveJob(live) => Some(live),
            JobPhase::EndedJob(_) => None,
        }
    }

    pub(super) fn live_mut(&mut self) -> Option<&mut ActiveJob> {
        match &mut self.phase {
            JobPhase::ActiveJob(live) => Some(live),
            JobPhase::EndedJob(_) => None,
        }
    }

    /// Returns the query of an active read; `None` for other jobs.
    pub(super) fn query(&self) -> Option<&Query> {
        self.live()?.query.as_ref()
    }

    pub(super) fn state(&self) -> JobState {
        match &self.phase {
            JobPhase::ActiveJob(live) => live.state.borrow().clone(),
            JobPhase::EndedJob(over) => over.state(),
        }
    }

    /// Returns the state without details.
    pub(super) fn phase(&self) -> StateFilter {
        match &self.phase {
            JobPhase::ActiveJob(live) if live.is_waiting() => StateFilter::Waiting,
            JobPhase::ActiveJob(_) => StateFilter::Running,
            JobPhase::EndedJob(_) => StateFilter::Ended,
        }
    }

    /// Returns a handle to the job. For an ended job, `watchers` keeps the sender of its state channel.
    pub(super) fn job(&self, watchers: &mut EndedJobWatchers) -> Job {
        let state = match &self.phase {
            JobPhase::ActiveJob(live) => live.state.subscribe(),
            JobPhase::EndedJob(over) => {
                let (channel, state) = watch::channel(over.state());
                watchers.keep(self.spec.id, channel);
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

    /// Returns whether a stop of the daemon leaves the job running: changes finish, and a client's process is not orbd's to end.
    pub(super) fn is_left_to_finish(&self) -> bool {
        self.phase() == StateFilter::Running
            && !self.spec.info.is_read()
            && !self.spec.info.is_command_of_daemon()
    }

    /// Returns whether a stop of the daemon waits for the job. Sessions may run for days, so the next instance takes them over
    /// instead.
    pub(super) fn holds_up_a_stop(&self) -> bool {
        self.phase() == StateFilter::Running && self.spec.info.class != Class::Session
    }
}

impl ActiveJob {
    /// Creates a waiting job. Without a task, it is one that orbd itself carries on.
    pub(super) fn new(task: Option<Task>) -> Self {
        let query = match &task {
            Some(Task::Query(query)) => Some(query.clone()),
            _ => None,
        };
        Self {
            state: watch::Sender::new(JobState::Waiting),
            stop: CancellationToken::new(),
            abandon: CancellationToken::new(),
            task,
            query,
            input: None,
            release: None,
            touches: None,
            preempted_by: None,
        }
    }

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

    /// Drops everything but the state channel. Dropping the task of a command that never started ends its spool, so that readers stop
    /// waiting for output.
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
    /// Returns the number of bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Kept(spool) => spool.end(),
            Self::Gone(bytes) => *bytes,
        }
    }
}

/// Smallest number of channels at which [`EndedJobWatchers`] removes those without receivers.
const FOLLOWED_MIN: usize = 16;

/// State channels of ended jobs that still have receivers. They show which clients have yet to read a job's result or output; an
/// upgrade waits for them.
#[derive(Default)]
pub(super) struct EndedJobWatchers {
    channels: Vec<(JobId, watch::Sender<JobState>)>,
    /// Number of channels at which unwatched ones are removed: twice the number that the last removal left, so that the cost per
    /// channel is constant.
    many: usize,
}

impl EndedJobWatchers {
    /// Keeps the channel of an ended job while it has receivers.
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

    /// Returns the ended jobs that still have a watcher.
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobId> {
        let watchers = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.receiver_count() > 0);
        watchers.map(|(id, _)| *id)
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
    fn channel_is_kept_while_it_has_a_receiver() {
        let mut watchers = EndedJobWatchers::default();
        let (first, one) = channel();
        let (second, other) = channel();
        watchers.keep(JobId(1), first);
        watchers.keep(JobId(2), second);
        watchers.keep(JobId(3), channel().0);
        assert!(watchers.jobs().eq([JobId(1), JobId(2)]), "job 3 has no watcher");
        drop(one);
        assert!(watchers.jobs().eq([JobId(2)]));
        assert!(other.borrow().is_ended());
        drop(other);
        assert_eq!(watchers.jobs().count(), 0);
    }

    #[test]
    fn channels_without_receivers_do_not_accumulate() {
        let mut watchers = EndedJobWatchers::default();
        let (channel_of_one, one) = channel();
        watchers.keep(JobId(0), channel_of_one);
        for id in 1..10_000 {
            let (channel, receiver) = channel();
            watchers.keep(JobId(id), channel);
            drop(receiver);
            assert!(watchers.channels.len() <= FOLLOWED_MIN);
        }
        assert!(watchers.jobs().eq([JobId(0)]));
        drop(one);
    }

    #[test]
    fn many_watched_channels_are_kept_and_released() {
        let mut watchers = EndedJobWatchers::default();
        let receivers: Vec<_> = (0..1_000)
            .map(|id| {
                let (channel, receiver) = channel();
                watchers.keep(JobId(id), channel);
                receiver
            })
            .collect();
        assert_eq!(watchers.jobs().count(), 1_000);
        drop(receivers);
        let (channel, _receiver) = channel();
        for id in 0..2_000 {
            let (other, receiver) = self::channel();
            watchers.keep(JobId(id), other);
            drop(receiver);
        }
        watchers.keep(JobId(7), channel);
        assert!(watchers.channels.len() <= FOLLOWED_MIN, "memory is released");
        assert!(watchers.channels.capacity() <= 2 * FOLLOWED_MIN);
        assert!(watchers.jobs().eq([JobId(7)]));
    }
}

//! Per-job record. [`ActiveJob`] holds channels and handles; [`EndedJob`] holds the result.
//!
//! Few jobs are active at a time, but thousands of ended ones are kept. So an ended job holds nothing that only an active one needs:
//! no stop token, no input, no channel to watchers.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::job::Outcome;
use crate::operation::{Class, Query, Scope};
use crate::spool::Spool;

use super::super::handle::{Job, JobSpec, JobState, Release, StateFilter, WaitingFor};
use super::super::run_job::Task;
use super::watchers::EndedJobWatchers;

pub(in crate::dispatcher) struct Entry {
    pub(in crate::dispatcher) spec: Arc<JobSpec>,
    pub(in crate::dispatcher) phase: JobPhase,
    pub(in crate::dispatcher) output: Output,
    /// Number of callers that share the job, not counting the first.
    pub(in crate::dispatcher) joined: u32,
}

/// Phase of a job. Both variants are boxed because B-tree nodes have room for about twice the entries that they hold.
pub(in crate::dispatcher) enum JobPhase {
    ActiveJob(Box<ActiveJob>),
    EndedJob(Box<EndedJob>),
}

/// State of a job that waits or runs.
pub(in crate::dispatcher) struct ActiveJob {
    /// Never `Ended`: that state is sent through the channel that [`ActiveJob::release_waiters`] returns.
    pub(in crate::dispatcher) state: watch::Sender<JobState>,
    /// Cancelled to stop the running invocation.
    pub(in crate::dispatcher) stop: CancellationToken,
    /// Cancelled to end reconciliation too.
    pub(in crate::dispatcher) abandon: CancellationToken,
    /// What the job does; taken when it starts.
    pub(in crate::dispatcher) task: Option<Task>,
    /// The query of a read; `None` for other jobs.
    pub(in crate::dispatcher) query: Option<Query>,
    /// Sender for streamed input; `None` once the input is closed, or if the job takes none.
    pub(in crate::dispatcher) input: Option<mpsc::Sender<Bytes>>,
    /// For a lease: sender for its release; `None` once it was released.
    pub(in crate::dispatcher) release: Option<oneshot::Sender<Release>>,
    /// Cache scope that the job invalidates, at its start and at its end.
    pub(in crate::dispatcher) touches: Option<Scope>,
    /// The forced change that preempted the job, if one did.
    pub(in crate::dispatcher) preempted_by: Option<WaitingFor>,
}

pub(in crate::dispatcher) struct EndedJob {
    /// When it started; `None` if it never did.
    pub(in crate::dispatcher) since: Option<Moment>,
    pub(in crate::dispatcher) at: Moment,
    pub(in crate::dispatcher) outcome: Outcome,
    /// What it was waiting for when it ended, if it never started, or the forced change that preempted it.
    pub(in crate::dispatcher) holder: Option<Box<WaitingFor>>,
}

/// Output of a job.
pub(in crate::dispatcher) enum Output {
    /// The operation writes no output.
    None,
    Kept(Spool),
    /// The job wrote this many bytes, which are no longer kept.
    Gone(u64),
}

impl Entry {
    pub(in crate::dispatcher) fn new(spec: Arc<JobSpec>, live: ActiveJob, output: Output) -> Self {
        Self {
            spec,
            phase: JobPhase::ActiveJob(Box::new(live)),
            output,
            joined: 0,
        }
    }

    pub(in crate::dispatcher) fn live(&self) -> Option<&ActiveJob> {
        match &self.phase {
            JobPhase::ActiveJob(live) => Some(live),
            JobPhase::EndedJob(_) => None,
        }
    }

    pub(in crate::dispatcher) fn live_mut(&mut self) -> Option<&mut ActiveJob> {
        match &mut self.phase {
            JobPhase::ActiveJob(live) => Some(live),
            JobPhase::EndedJob(_) => None,
        }
    }

    /// Returns the query of an active read; `None` for other jobs.
    pub(in crate::dispatcher) fn query(&self) -> Option<&Query> {
        self.live()?.query.as_ref()
    }

    pub(in crate::dispatcher) fn state(&self) -> JobState {
        match &self.phase {
            JobPhase::ActiveJob(live) => live.state.borrow().clone(),
            JobPhase::EndedJob(over) => over.state(),
        }
    }

    /// Returns the state without details.
    pub(in crate::dispatcher) fn phase(&self) -> StateFilter {
        match &self.phase {
            JobPhase::ActiveJob(live) if live.is_waiting() => StateFilter::Waiting,
            JobPhase::ActiveJob(_) => StateFilter::Running,
            JobPhase::EndedJob(_) => StateFilter::Ended,
        }
    }

    /// Returns a handle to the job. For an ended job, `watchers` keeps the sender of its state channel.
    pub(in crate::dispatcher) fn job(&self, watchers: &mut EndedJobWatchers) -> Job {
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
    pub(in crate::dispatcher) fn is_left_to_finish(&self) -> bool {
        self.phase() == StateFilter::Running
            && !self.spec.info.is_read()
            && !self.spec.info.is_command_of_daemon()
    }

    /// Returns whether a stop of the daemon waits for the job. Sessions may run for days, so the next instance takes them over
    /// instead.
    pub(in crate::dispatcher) fn holds_up_a_stop(&self) -> bool {
        self.phase() == StateFilter::Running && self.spec.info.class != Class::Session
    }
}

impl ActiveJob {
    /// Creates a waiting job. Without a task, it is one that orbd itself carries on.
    pub(in crate::dispatcher) fn new(task: Option<Task>) -> Self {
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

    pub(in crate::dispatcher) fn is_waiting(&self) -> bool {
        matches!(*self.state.borrow(), JobState::Waiting)
    }

    /// Returns when it started; `None` while it waits.
    pub(in crate::dispatcher) fn running_since(&self) -> Option<Moment> {
        match *self.state.borrow() {
            JobState::Running { since } => Some(since),
            JobState::Waiting | JobState::Ended { .. } => None,
        }
    }

    /// Drops everything but the state channel. Dropping the task of a command that never started ends its spool, so that readers stop
    /// waiting for output.
    pub(in crate::dispatcher) fn release_waiters(self) -> watch::Sender<JobState> {
        self.state
    }
}

impl EndedJob {
    pub(in crate::dispatcher) fn state(&self) -> JobState {
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
    pub(in crate::dispatcher) fn bytes(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Kept(spool) => spool.end(),
            Self::Gone(bytes) => *bytes,
        }
    }
}

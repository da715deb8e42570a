//! Per-job record. [`ActiveJob`] holds channels and handles; [`EndedJob`] holds the result.
//!
//! Few jobs are active at a time, but thousands of ended ones are kept. So an ended job holds nothing that only an active one needs:
//! no stop token, no input, no channel to watchers.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Moment;
use crate::job::Outcome;
use crate::operation::{Class, Query, Scope};
use crate::spool::Spool;

use super::super::run_job::Task;
use super::super::submission::{Job, JobSpec, JobState, Release, WaitingFor};
use super::super::views::StateFilter;
use super::Tokens;
use super::watchers::EndedJobWatchers;

pub(in crate::dispatcher) struct Entry {
    pub(in crate::dispatcher) spec: Arc<JobSpec>,
    pub(super) phase: JobPhase,
    pub(super) output: Output,
    /// Number of callers that share the job, not counting the first.
    pub(in crate::dispatcher) joined: u32,
    /// Whether a resident channel carries it out.
    pub(in crate::dispatcher) in_channel: bool,
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
    pub(super) tokens: Tokens,
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

pub(in crate::dispatcher) struct EndedJob {
    /// When it started; `None` if it never did.
    pub(in crate::dispatcher) since: Option<Moment>,
    pub(in crate::dispatcher) at: Moment,
    pub(in crate::dispatcher) outcome: Outcome,
    /// What it was waiting for when it ended, if it never started, or the forced change that preempted it.
    pub(in crate::dispatcher) holder: Option<Box<WaitingFor>>,
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
            in_channel: false,
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

    /// Returns the number of output bytes so far.
    pub(in crate::dispatcher) fn output_bytes(&self) -> u64 {
        self.output.bytes()
    }

    /// Returns whether it waits or runs.
    pub(in crate::dispatcher) fn is_active(&self) -> bool {
        self.live().is_some()
    }

    /// Returns when it ended; `None` if it has not.
    pub(in crate::dispatcher) fn ended_at(&self) -> Option<Moment> {
        match &self.phase {
            JobPhase::ActiveJob(_) => None,
            JobPhase::EndedJob(over) => Some(over.at),
        }
    }

    /// Describes the job to the clients whose jobs it blocks.
    pub(in crate::dispatcher) fn as_blocker(&self, now: &Moment) -> WaitingFor {
        WaitingFor::Job {
            id: self.spec.id,
            verb: self.spec.info.verb.as_str(),
            machine: self.spec.info.machine.clone(),
            client: self.spec.client.name.clone(),
            age: now.age_of(&self.spec.accepted),
        }
    }

    /// Returns whether a client would lose the job if this instance did not finish it.
    pub(super) fn needs_this_instance(&self) -> bool {
        let Some(live) = self.live() else {
            return false;
        };
        let is_known_to_the_next = if live.is_waiting() {
            self.spec.is_durable()
        } else {
            self.spec.info.is_lease
        };
        // A client that waits for the job would get no answer.
        !is_known_to_the_next || live.state.receiver_count() > 0
    }

    /// Returns whether the job ends if its connection closes.
    pub(super) fn ends_with_its_connection(&self) -> bool {
        let is_stoppable = |live: &ActiveJob| live.is_waiting() || self.spec.info.is_command_of_daemon();
        !self.spec.detached && self.live().is_some_and(is_stoppable)
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
            tokens: Tokens::default(),
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

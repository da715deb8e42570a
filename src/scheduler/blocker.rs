//! Why a job waits, for its client and for displays of the queue.

use super::gates::Target;
use super::{LockMode, Scheduler, State};
use crate::job::JobId;
use crate::operation::Lane;

/// Why a job waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocker {
    /// A conflicting job, waiting or running. Of several, the one that was accepted first.
    Job {
        /// Id of the other job.
        id: JobId,
        /// Lane in which they conflict.
        lane: Lane,
    },
    /// A limit on running jobs is reached.
    Limit {
        /// The limit's name in the configuration.
        name: &'static str,
        /// Value of the limit.
        limit: usize,
    },
    /// The queue or a lane of the job is paused.
    Paused(Target),
    /// The queue is held.
    Held,
    /// The job does not wait: it runs, or starts when [`Scheduler::start_next`] is called.
    NotWaiting,
}

impl Scheduler {
    /// Returns why a job waits; `None` for an unknown job. Of several reasons, it returns the one that is likely to last longest: a
    /// pause, a hold, another job, a limit.
    pub fn blocker(&self, id: JobId) -> Option<Blocker> {
        let job = self.jobs.get(&id)?;
        Some(if matches!(job.state, State::Running) {
            Blocker::NotWaiting
        } else if job.is_session() {
            self.session_blocker(id).unwrap_or(Blocker::NotWaiting)
        } else {
            self.paused_target(id)
                .map(Blocker::Paused)
                .or_else(|| (self.gates.held && job.manner == LockMode::Fifo).then_some(Blocker::Held))
                .or_else(|| self.lane_blocker(id))
                .or_else(|| self.limit_blocker(id))
                .unwrap_or(Blocker::NotWaiting)
        })
    }

    fn session_blocker(&self, id: JobId) -> Option<Blocker> {
        let machine = self.jobs[&id].machine.as_ref()?;
        let (id, lane) = self.lanes.running_change(machine)?;
        Some(Blocker::Job { id, lane })
    }

    fn paused_target(&self, id: JobId) -> Option<Target> {
        let job = &self.jobs[&id];
        if job.manner == LockMode::Preempting {
            return None;
        }
        if self.gates.is_queue_paused() {
            return Some(Target::All);
        }
        let mut lanes = job.footprint.lanes().iter().map(|(lane, _)| lane);
        lanes
            .find(|lane| self.lanes.is_paused(lane))
            .map(|lane| Target::Lane(lane.clone()))
    }

    fn lane_blocker(&self, id: JobId) -> Option<Blocker> {
        let job = &self.jobs[&id];
        let (id, lane) = self.lanes.blocker(&job.footprint, job.manner, job.seq)?;
        Some(Blocker::Job { id, lane })
    }

    fn limit_blocker(&self, id: JobId) -> Option<Blocker> {
        let job = &self.jobs[&id];
        let reached = match job.manner {
            LockMode::Preempting => self.ready.strict_limit(),
            LockMode::Fifo => self.ready.limit_on(&job.group()?),
        }?;
        Some(Blocker::Limit {
            name: reached.name,
            limit: reached.limit,
        })
    }
}

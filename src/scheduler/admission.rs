//! What comes into the queue, what it is told, and when it is turned away.

use std::time::{Duration, Instant};

use super::Target;
use crate::job::{ClientId, JobId};
use crate::machine::MachineName;
use crate::operation::{Class, Footprint};

/// A job to be queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Its id, which no job known here has.
    pub id: JobId,
    /// Whose turn it uses up.
    pub client: ClientId,
    /// Which limits apply.
    pub class: Class,
    /// The lanes that it touches. Queries and sessions touch none.
    pub footprint: Footprint,
    /// When it gives up waiting; at this moment it no longer starts.
    pub queue_deadline: Option<Instant>,
    /// A forced change: it cancels what waits in its way, asks for the end of what runs there, and no limit holds it.
    pub preempts: bool,
    /// The machine that it is about: commands are limited per machine; a session waits for a running change of it.
    pub machine: Option<MachineName>,
}

/// A job was accepted. What a forced change did to others is for the caller to carry out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "cancelled jobs are told so, running ones are stopped"]
pub struct Admission {
    /// Waiting jobs that it cancelled, in order of acceptance. They are gone and never start.
    pub cancelled: Vec<JobId>,
    /// Running jobs that it wants ended, in order of acceptance. They hold their lanes until
    /// [`Scheduler::end`](super::Scheduler::end).
    pub stop: Vec<JobId>,
}

/// A job was not accepted; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As many jobs wait as may.
    #[error("the queue is full: {limit} jobs wait")]
    QueueFull {
        /// How many may wait.
        limit: usize,
        /// When trying again is worth while, judged by how fast jobs start.
        retry_after: Duration,
    },
    /// As many jobs of this client wait as may.
    #[error("the client's share of the queue is full: {limit} of its jobs wait")]
    ClientQueueFull {
        /// How many of one client may wait.
        limit: usize,
        /// When trying again is worth while, judged by how fast jobs start.
        retry_after: Duration,
    },
    /// New work is refused until [`Scheduler::undrain`](super::Scheduler::undrain).
    #[error("{what} takes no new work: it is being drained")]
    Draining {
        /// What is being drained.
        what: Target,
    },
}

/// How fast the queue moves: a running mean of the time between starts while jobs wait.
#[derive(Debug)]
pub(super) struct ThroughputEstimate {
    interval: Duration,
    last_start: Option<Instant>,
}

/// Nobody is asked back sooner; an immediate retry would only be refused again.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(100);

/// Nobody is sent away for longer, however slow the queue has been: a lane may come free at any moment.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

impl ThroughputEstimate {
    pub(super) const fn new() -> Self {
        Self {
            interval: Duration::from_secs(1),
            last_start: None,
        }
    }

    /// Takes note of a start. Time that passes while nothing waits says nothing about the pace.
    pub(super) fn started(&mut self, now: Instant, others_wait: bool) {
        if let Some(last) = self.last_start {
            self.interval = (self.interval * 7 + now.saturating_duration_since(last)) / 8;
        }
        self.last_start = others_wait.then_some(now);
    }

    /// Returns how long until about so many jobs have started.
    pub(super) fn time_for(&self, starts: usize) -> Duration {
        let starts = u32::try_from(starts).unwrap_or(u32::MAX);
        self.interval
            .saturating_mul(starts)
            .clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;

    #[test]
    fn a_refused_caller_is_asked_back_after_about_one_start() {
        let mut throughput = ThroughputEstimate::new();
        let mut now = Moment::now().instant;
        for _ in 0..50 {
            now += Duration::from_secs(4);
            throughput.started(now, true);
        }
        let after = throughput.time_for(1);
        assert!(
            after > Duration::from_millis(3900) && after <= Duration::from_secs(4),
            "{after:?}"
        );
        assert_eq!(throughput.time_for(1000), RETRY_AFTER_MAX);
    }

    #[test]
    fn time_without_waiting_jobs_says_nothing_about_the_pace() {
        let mut throughput = ThroughputEstimate::new();
        let start = Moment::now().instant;
        throughput.started(start, false);
        throughput.started(start + Duration::from_secs(3600), true);
        assert_eq!(throughput.time_for(1), Duration::from_secs(1));
    }
}

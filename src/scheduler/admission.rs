//! Admission to the queue: the data of a new job, the reasons to refuse it, and the estimated retry time.

use std::time::{Duration, Instant};

use super::Target;
use crate::job::{ClientId, JobId};
use crate::operation::{Class, Footprint};
use orbd_host::machine::MachineName;

/// A job to add to the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Id; must differ from that of every waiting or running job.
    pub id: JobId,
    /// Client under which the job waits in the fair queue.
    pub client: ClientId,
    /// Class, which determines the limits that apply.
    pub class: Class,
    /// Lanes that it locks; empty for queries and sessions.
    pub footprint: Footprint,
    /// When it expires if it has not started; from that moment on it no longer starts.
    pub queue_deadline: Option<Instant>,
    /// Whether it is a forced change: it cancels conflicting jobs that wait, requests the end of those that run, and ignores all
    /// limits but strict mode.
    pub preempts: bool,
    /// Machine that it is about. Commands are limited per machine; a session waits for a running change of it.
    pub machine: Option<MachineName>,
}

/// The result of accepting a job. The caller must carry out the effects of a forced change on other jobs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "the caller must report the cancelled jobs and stop the running ones"]
pub struct Admission {
    /// Waiting jobs that it cancelled, in order of acceptance. They have been removed and never start.
    pub cancelled: Vec<JobId>,
    /// Running jobs that the caller must stop, in order of acceptance. They hold their lanes until
    /// [`Scheduler::end`](super::Scheduler::end).
    pub stop: Vec<JobId>,
}

/// Why a job was refused. The scheduler is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The number of waiting jobs is at its limit.
    #[error("the queue is full: {limit} jobs are waiting")]
    QueueFull {
        /// The configured `queue_max`.
        limit: usize,
        /// Estimated time until a retry can succeed, based on how fast jobs start.
        retry_after: Duration,
    },
    /// The number of waiting jobs of this client is at its limit.
    #[error("the client's share of the queue is full: {limit} of its jobs are waiting")]
    ClientQueueFull {
        /// The configured `queue_max_per_client`.
        limit: usize,
        /// Estimated time until a retry can succeed, based on how fast jobs start.
        retry_after: Duration,
    },
    /// New jobs are refused until [`Scheduler::undrain`](super::Scheduler::undrain).
    #[error("{what} is draining: new work is refused")]
    Draining {
        /// The queue or the lane that is being drained.
        what: Target,
    },
}

/// A moving average of the time between starts while jobs wait.
#[derive(Debug)]
pub(super) struct ThroughputEstimate {
    interval: Duration,
    last_start: Option<Instant>,
}

/// Shortest retry time: an immediate retry would only be refused again.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(100);

/// Longest retry time, however slow the queue has been: a lane may become free at any moment.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

impl ThroughputEstimate {
    pub(super) const fn new() -> Self {
        Self {
            interval: Duration::from_secs(1),
            last_start: None,
        }
    }

    /// Records a start. Time during which no job waits is ignored.
    pub(super) fn started(&mut self, now: Instant, others_wait: bool) {
        if let Some(last) = self.last_start {
            self.interval = (self.interval * 7 + now.saturating_duration_since(last)) / 8;
        }
        self.last_start = others_wait.then_some(now);
    }

    /// Returns the estimated time until this number of jobs has started.
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
    fn retry_time_is_about_the_time_of_one_start() {
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
    fn time_without_waiting_jobs_does_not_affect_the_estimate() {
        let mut throughput = ThroughputEstimate::new();
        let start = Moment::now().instant;
        throughput.started(start, false);
        throughput.started(start + Duration::from_secs(3600), true);
        assert_eq!(throughput.time_for(1), Duration::from_secs(1));
    }
}

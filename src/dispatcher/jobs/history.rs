//! Which ended jobs, and whose output, are kept.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::job::JobId;

/// How much of the history is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retention {
    /// How long ended jobs are kept.
    pub(super) time: Duration,
    /// Most ended jobs.
    pub(super) jobs_max: usize,
    /// Most bytes of their output in memory. The latest output is kept in any case.
    pub(super) bytes_max: u64,
}

/// Ended jobs in order of their ends.
///
/// The jobs whose output is kept are among them, in the same order, and `bytes` is the sum of their outputs.
#[derive(Debug, Default)]
pub(super) struct History {
    ended: VecDeque<(Instant, JobId)>,
    /// Jobs whose output is still kept, with its bytes in memory.
    outputs: VecDeque<(JobId, u64)>,
    bytes: u64,
}

/// What the history no longer keeps.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// The output of this job.
    Output(JobId),
    /// This job, and its output.
    Job(JobId),
}

impl History {
    /// Adds a job that has just ended. `output` is the number of bytes of its output in memory; `None` if it has no output.
    pub(super) fn push(&mut self, job: JobId, output: Option<u64>, now: Instant) {
        self.ended.push_back((now, job));
        if let Some(bytes) = output {
            self.bytes += bytes;
            self.outputs.push_back((job, bytes));
        }
    }

    /// Returns when the oldest job is too old.
    pub(super) fn next_drop(&self, retention: &Retention) -> Option<Instant> {
        self.ended.front().map(|(at, _)| *at + retention.time)
    }

    /// Drops the oldest outputs while they exceed the memory limit, then jobs that are too old or too many. Call this until it returns
    /// `None`.
    pub(super) fn drop_next(&mut self, retention: &Retention, now: Instant) -> Option<Dropped> {
        if self.bytes > retention.bytes_max && self.outputs.len() > 1 {
            return self.drop_oldest_output().map(Dropped::Output);
        }
        let (at, job) = *self.ended.front()?;
        let too_old = now.saturating_duration_since(at) >= retention.time;
        let too_many = self.ended.len() > retention.jobs_max;
        if !(too_old || too_many) {
            return None;
        }
        self.ended.pop_front();
        if self.outputs.front().is_some_and(|(oldest, _)| *oldest == job) {
            self.drop_oldest_output();
        }
        Some(Dropped::Job(job))
    }

    fn drop_oldest_output(&mut self) -> Option<JobId> {
        let (job, bytes) = self.outputs.pop_front()?;
        self.bytes -= bytes;
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Moment;

    const SECOND: Duration = Duration::from_secs(1);

    fn retention(seconds: u32, jobs_max: usize, bytes_max: u64) -> Retention {
        Retention {
            time: SECOND * seconds,
            jobs_max,
            bytes_max,
        }
    }

    fn dropped(history: &mut History, retention: &Retention, now: Instant) -> Vec<Dropped> {
        std::iter::from_fn(|| history.drop_next(retention, now)).collect()
    }

    #[test]
    fn jobs_are_dropped_when_they_are_too_old_or_too_many() {
        let (mut history, start) = (History::default(), Moment::now().instant);
        for job in 0..3 {
            history.push(JobId(u64::from(job)), None, start + SECOND * job);
        }
        let keep = retention(10, 2, 0);
        assert_eq!(history.next_drop(&keep), Some(start + 10 * SECOND));
        assert_eq!(
            dropped(&mut history, &keep, start + 2 * SECOND),
            [Dropped::Job(JobId(0))]
        );
        assert_eq!(
            dropped(&mut history, &keep, start + 11 * SECOND),
            [Dropped::Job(JobId(1))]
        );
        assert_eq!(history.next_drop(&keep), Some(start + 12 * SECOND));
    }

    #[test]
    fn oldest_outputs_are_dropped_first_and_the_latest_never() {
        let (mut history, now) = (History::default(), Moment::now().instant);
        for (job, bytes) in [(1, Some(60)), (2, None), (3, Some(50)), (4, Some(200))] {
            history.push(JobId(job), bytes, now);
        }
        let outputs = [JobId(1), JobId(3)].map(Dropped::Output);
        assert_eq!(dropped(&mut history, &retention(10, 9, 100), now), outputs);
        let jobs = [1, 2, 3, 4].map(|job| Dropped::Job(JobId(job)));
        assert_eq!(dropped(&mut history, &retention(0, 9, 100), now), jobs);
        assert_eq!(history.bytes, 0);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_within_the_limits_and_each_thing_is_dropped_once(
            jobs in prop::collection::vec((0u32..5, prop::option::of(0u64..100)), 1..60),
            time in 1u32..20, jobs_max in 0usize..20, bytes_max in 0u64..300,
        ) {
            let keep = retention(time, jobs_max, bytes_max);
            let (mut history, mut now) = (History::default(), Moment::now().instant);
            let (mut kept, mut outputs) = (Vec::new(), Vec::new());
            for (id, (pause, output)) in jobs.into_iter().enumerate() {
                let id = JobId(id as u64);
                now += SECOND * pause;
                history.push(id, output, now);
                kept.push(id);
                outputs.extend(output.map(|bytes| (id, bytes)));
                for gone in dropped(&mut history, &keep, now) {
                    let (Dropped::Job(gone_id) | Dropped::Output(gone_id)) = gone;
                    let had_output = outputs.first().is_some_and(|(oldest, _)| *oldest == gone_id);
                    if had_output {
                        outputs.remove(0);
                    }
                    if gone == Dropped::Job(gone_id) {
                        prop_assert_eq!(kept.remove(0), gone_id);
                    } else {
                        prop_assert!(had_output);
                    }
                }
                let bytes: u64 = outputs.iter().map(|(_, bytes)| bytes).sum();
                prop_assert!(kept.len() <= jobs_max);
                prop_assert!(bytes <= bytes_max || outputs.len() <= 1);
                prop_assert_eq!(history.bytes, bytes);
                prop_assert!(history.next_drop(&keep).is_none_or(|next| next > now));
            }
        }
    }
}

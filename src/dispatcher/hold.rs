//! Decides when new jobs are held back so that the daemon becomes idle. Pure logic, without clock or I/O.
//!
//! An upgrade needs one moment without a running job. A client that submits continuously never leaves such a moment, so after [`PATIENCE`]
//! new jobs are held back for at most [`HOLD_MAX`] at a time. If a job outlasts the hold, new jobs pass again, and no new hold begins
//! while that job still runs: it would fail in the same way and only delay others.
//!
//! ```text
//!            PATIENCE has passed and the daemon is busy
//! waiting ──────────────────────────────────────────► holding
//!    ▲                                                   │
//!    └── HOLD_MAX has passed, or the queue is blocked ───┘
//! ```

use std::time::{Duration, Instant};

use crate::job::JobId;

/// How long to wait for an idle moment before new jobs are held back, and between two holds.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Longest duration of a hold.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(5);

/// Whether the daemon is idle, and if not, whether a hold can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// The process could be replaced now without losing anything.
    Idle,
    /// The daemon becomes idle when its current work ends. Names the oldest blocking job, if a job is the reason.
    Busy(Option<JobId>),
    /// The daemon does not become idle by itself: the queue is paused or draining.
    Blocked,
}

/// State machine that decides when new jobs are held back.
#[derive(Debug)]
pub(super) struct HoldTimer {
    phase: Phase,
    /// The job that still ran when the last hold ended. It starts no further hold.
    outlasted: Option<JobId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting { hold_at: Instant },
    Holding { until: Instant },
}

impl HoldTimer {
    /// Starts the wait for an idle moment.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Waiting {
                hold_at: now + PATIENCE,
            },
            outlasted: None,
        }
    }

    /// Returns whether new jobs are held back.
    pub(super) fn is_holding(&self) -> bool {
        matches!(self.phase, Phase::Holding { .. })
    }

    /// Returns when to call [`Self::step`] at the latest; `None` if only a change of the load can change the phase.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        match self.phase {
            Phase::Waiting { hold_at } => Some(hold_at).filter(|hold_at| *hold_at > now),
            Phase::Holding { until } => Some(until),
        }
    }

    /// Applies the current load: begins or ends a hold.
    pub(super) fn step(&mut self, now: Instant, load: Load) {
        self.phase = match (self.phase, load) {
            (Phase::Holding { until }, Load::Busy(blocker)) if now >= until => {
                self.outlasted = blocker;
                Phase::Waiting {
                    hold_at: now + PATIENCE,
                }
            }
            (Phase::Holding { until }, Load::Idle) if now >= until => Phase::Waiting {
                hold_at: now + PATIENCE,
            },
            (Phase::Holding { .. }, Load::Blocked) => Phase::Waiting {
                hold_at: now + PATIENCE,
            },
            (Phase::Waiting { hold_at }, Load::Busy(blocker))
                if now >= hold_at && (blocker.is_none() || blocker != self.outlasted) =>
            {
                Phase::Holding {
                    until: now + HOLD_MAX,
                }
            }
            (phase, _) => phase,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Moment;

    const MS: Duration = Duration::from_millis(1);

    /// Steps the timer every 10 ms, and at its deadlines, for `length`. Returns the begin and end of each hold.
    fn holds(length: Duration, mut load: impl FnMut(Duration, bool) -> Load) -> Vec<(Duration, Duration)> {
        let start = Moment::now().instant;
        let mut timer = HoldTimer::new(start);
        let (mut found, mut since, mut at) = (Vec::new(), None, Duration::ZERO);
        while at < length {
            timer.step(start + at, load(at, timer.is_holding()));
            match (since, timer.is_holding()) {
                (None, true) => since = Some(at),
                (Some(begin), false) => {
                    found.push((begin, at));
                    since = None;
                }
                _ => {}
            }
            let next = at + 10 * MS;
            at = timer
                .deadline(start + at)
                .map_or(next, |deadline| next.min(deadline - start));
        }
        found.extend(since.map(|begin| (begin, length)));
        found
    }

    #[test]
    fn continuous_short_jobs_become_idle_within_one_hold() {
        // A 400 ms job every 300 ms: without a hold there is no idle moment.
        let mut idle_at = None;
        let holds = holds(60 * 1000 * MS, |at, is_holding| {
            if idle_at.is_some() {
                return Load::Idle;
            }
            let started = at.min(PATIENCE);
            let ends = started + 400 * MS;
            if is_holding && at >= ends {
                idle_at = Some(at);
                return Load::Idle;
            }
            Load::Busy(Some(JobId(u64::try_from(started.as_millis() / 300).unwrap_or(0))))
        });
        let (begin, _) = holds[0];
        assert_eq!(begin, PATIENCE);
        assert!(idle_at.is_some_and(|at| at < PATIENCE + HOLD_MAX), "{idle_at:?}");
    }

    #[test]
    fn one_long_job_causes_one_hold_and_another_job_causes_the_next() {
        let change_at = 100 * 1000 * MS;
        let holds = holds(140 * 1000 * MS, |at, _| {
            Load::Busy(Some(JobId(if at < change_at { 1 } else { 2 })))
        });
        assert_eq!(
            holds,
            [(PATIENCE, PATIENCE + HOLD_MAX), (change_at, change_at + HOLD_MAX)]
        );
    }

    #[test]
    fn paused_queue_starts_no_hold_and_a_pause_ends_a_hold() {
        assert_eq!(holds(100 * 1000 * MS, |_, _| Load::Blocked), []);
        let pause_at = PATIENCE + 1000 * MS;
        let holds = holds(60 * 1000 * MS, |at, _| {
            if at < pause_at {
                Load::Busy(None)
            } else {
                Load::Blocked
            }
        });
        assert_eq!(holds, [(PATIENCE, pause_at)]);
    }

    proptest! {
        #[test]
        fn holds_are_bounded_and_spaced_for_any_load(
            loads in prop::collection::vec((0u8..5, 1u64..20_000), 1..40),
        ) {
            let lengths: Vec<(Load, Duration)> = loads
                .into_iter()
                .map(|(kind, ms)| {
                    let load = match kind {
                        0 => Load::Idle,
                        1 => Load::Blocked,
                        2 => Load::Busy(None),
                        kind => Load::Busy(Some(JobId(u64::from(kind)))),
                    };
                    (load, Duration::from_millis(ms))
                })
                .collect();
            let total: Duration = lengths.iter().map(|(_, length)| *length).sum();
            let at_time = |at: Duration| {
                let mut until = Duration::ZERO;
                lengths
                    .iter()
                    .find(|(_, length)| {
                        until += *length;
                        at < until
                    })
                    .map_or(Load::Idle, |(load, _)| *load)
            };
            let holds = holds(total, |at, _| at_time(at));
            let mut free_since = Duration::ZERO;
            for (begin, end) in holds {
                prop_assert!(begin >= free_since + PATIENCE, "{begin:?} after {free_since:?}");
                prop_assert!(end <= begin + HOLD_MAX, "{begin:?} to {end:?}");
                prop_assert!(matches!(at_time(begin), Load::Busy(_)));
                free_since = end;
            }
        }
    }
}

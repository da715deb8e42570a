//! Pause, hold and drain, of the whole queue or of one lane.
//!
//! A *pause* keeps waiting jobs from starting; new jobs are still accepted and wait too. A *drain* refuses new jobs; jobs accepted
//! before still run, so a drained lane becomes idle. The two are independent: if a lane is both drained and paused, only running
//! jobs continue.
//!
//! A *hold* is a pause of the whole queue that users can neither request nor undo: the dispatcher holds the queue while `orbctl` is
//! unhealthy. The same jobs pass a hold as a pause.
//!
//! - A forced change passes a pause, because it may be needed to repair OrbStack. It does not pass a drain: a drained lane must
//!   become empty, and running jobs in it can still be cancelled.
//! - A session passes a pause, because it is queued in no lane; a drain of the whole queue refuses it.
//! - Only the lanes of a job's footprint count. A pause of one machine's lane does not block a change of the whole fleet; a pause
//!   of the fleet's lane blocks every job that touches machines.

use std::collections::BTreeSet;
use std::fmt;

use super::Scheduler;
use crate::operation::{Footprint, Lane};

/// The target of a pause or a drain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// The whole queue.
    All,
    /// One lane.
    Lane(Lane),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("the queue"),
            Self::Lane(lane) => fmt::Display::fmt(lane, f),
        }
    }
}

/// The pauses, holds and drains in force. The pause of a lane is stored in the lane, where it stops the frontier.
#[derive(Debug, Default)]
pub(super) struct Gates {
    pub(super) paused: bool,
    pub(super) held: bool,
    draining: bool,
    draining_lanes: BTreeSet<Lane>,
}

impl Gates {
    /// Returns the target of the drain that refuses a job with this footprint.
    pub(super) fn refuses(&self, footprint: &Footprint) -> Option<Target> {
        if self.draining {
            return Some(Target::All);
        }
        footprint
            .lanes()
            .iter()
            .map(|(lane, _)| lane)
            .find(|lane| self.draining_lanes.contains(lane))
            .map(|lane| Target::Lane(lane.clone()))
    }
}

impl Scheduler {
    /// Keeps waiting jobs from starting. The cost is proportional to the number of runnable jobs in a paused lane.
    pub fn pause(&mut self, what: Target) {
        match what {
            Target::All => self.gates.paused = true,
            Target::Lane(lane) => {
                let blocked = self.lanes.pause(&lane);
                self.block(blocked);
            }
        }
    }

    /// Undoes a pause of the same target; other pauses stay in force.
    pub fn resume(&mut self, what: Target) {
        match what {
            Target::All => self.gates.paused = false,
            Target::Lane(lane) => {
                let freed = self.lanes.resume(&lane);
                self.settle(freed);
            }
        }
    }

    /// Keeps waiting jobs from starting, independently of any pause.
    pub fn hold(&mut self) {
        self.gates.held = true;
    }

    /// Undoes the hold; pauses stay in force.
    pub fn release(&mut self) {
        self.gates.held = false;
    }

    /// Returns whether exactly this target is paused.
    pub fn is_paused(&self, what: &Target) -> bool {
        match what {
            Target::All => self.gates.paused,
            Target::Lane(lane) => self.lanes.is_paused(lane),
        }
    }

    /// Refuses new jobs from now on. The drain is complete when [`Scheduler::is_idle`] returns true.
    pub fn drain(&mut self, what: Target) {
        match what {
            Target::All => self.gates.draining = true,
            Target::Lane(lane) => {
                self.gates.draining_lanes.insert(lane);
            }
        }
    }

    /// Accepts new jobs again; drains of other targets stay in force.
    pub fn undrain(&mut self, what: Target) {
        match what {
            Target::All => self.gates.draining = false,
            Target::Lane(lane) => {
                self.gates.draining_lanes.remove(&lane);
            }
        }
    }

    /// Returns whether exactly this target is being drained.
    pub fn is_draining(&self, what: &Target) -> bool {
        match what {
            Target::All => self.gates.draining,
            Target::Lane(lane) => self.gates.draining_lanes.contains(lane),
        }
    }

    /// Returns whether no job runs or waits in the target. Sessions do not count.
    pub fn is_idle(&self, what: &Target) -> bool {
        match what {
            Target::All => self.waiting().without_sessions() == 0 && self.is_still(),
            Target::Lane(lane) => self.lanes.is_idle(lane),
        }
    }

    /// Returns whether no job runs; some may wait. Sessions do not count.
    pub fn is_still(&self) -> bool {
        self.running().without_sessions() == 0
    }
}

//! Pause, hold and drain, of the whole queue or of one lane.
//!
//! A *pause* keeps waiting jobs from starting; new jobs are still accepted and wait too. A *drain* refuses new jobs; jobs accepted
//! before still run, so a drained lane becomes idle. The two are independent: if a lane is both drained and paused, only running
//! jobs continue.
//!
//! A *hold* is a pause of the whole queue that users can neither request nor undo: the dispatcher holds the queue while `orbctl` is
//! unhealthy. The same jobs pass a hold as a pause. A *close* is a pause of the whole queue that stays: the dispatcher is stopping.
//!
//! - A forced change passes a pause, because it may be needed to repair OrbStack. It does not pass a drain: a drained lane must
//!   become empty, and running jobs in it can still be cancelled.
//! - A session passes a pause, because it is queued in no lane; a drain of the whole queue refuses it.
//! - Only the lanes of a job's footprint count. A pause of one machine's lane does not block a change of the whole fleet; a pause
//!   of the fleet's lane blocks every job that touches machines.

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

/// The pauses, holds and drains in force.
#[derive(Debug, Default)]
pub(super) struct Gates {
    /// In order of request. The pause of a lane is stored in the lane too, where it stops the frontier.
    pub(super) paused: Vec<Target>,
    /// In order of request.
    draining: Vec<Target>,
    pub(super) held: bool,
    pub(super) closed: bool,
}

impl Gates {
    /// Returns whether only sessions and forced changes may start.
    pub(super) fn is_shut(&self) -> bool {
        self.held || self.is_queue_paused()
    }

    /// Returns whether a pause or the close applies to the whole queue.
    pub(super) fn is_queue_paused(&self) -> bool {
        self.closed || self.paused.contains(&Target::All)
    }

    /// Returns the target of the drain that refuses a job with this footprint.
    pub(super) fn refuses(&self, footprint: &Footprint) -> Option<Target> {
        if self.draining.contains(&Target::All) {
            return Some(Target::All);
        }
        let drains = |lane: &Lane| {
            let is_it = |target: &&Target| matches!(target, Target::Lane(drained) if drained == lane);
            self.draining.iter().find(is_it)
        };
        let lanes = footprint.lanes().iter();
        lanes.map(|(lane, _)| lane).find_map(drains).cloned()
    }
}

fn add(targets: &mut Vec<Target>, target: Target) {
    if !targets.contains(&target) {
        targets.push(target);
    }
}

impl Scheduler {
    /// Keeps waiting jobs from starting. The cost is proportional to the number of runnable jobs in a paused lane.
    pub fn pause(&mut self, what: Target) {
        if let Target::Lane(lane) = &what {
            let blocked = self.lanes.pause(lane);
            self.block(blocked);
        }
        add(&mut self.gates.paused, what);
    }

    /// Undoes a pause of the same target; other pauses stay in force.
    pub fn resume(&mut self, what: &Target) {
        self.gates.paused.retain(|paused| paused != what);
        if let Target::Lane(lane) = what {
            let freed = self.lanes.resume(lane);
            self.settle(freed);
        }
    }

    /// Returns the paused targets in order of request.
    pub fn paused(&self) -> &[Target] {
        &self.gates.paused
    }

    /// Keeps waiting jobs from starting, independently of any pause.
    pub fn hold(&mut self) {
        self.gates.held = true;
    }

    /// Undoes the hold; pauses stay in force.
    pub fn release(&mut self) {
        self.gates.held = false;
    }

    /// Keeps waiting jobs from starting for good, as a pause of the whole queue that nothing resumes.
    pub fn close(&mut self) {
        self.gates.closed = true;
    }

    /// Returns whether [`Scheduler::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.gates.closed
    }

    /// Refuses new jobs from now on. The drain is complete when [`Scheduler::is_idle`] returns true.
    pub fn drain(&mut self, what: Target) {
        add(&mut self.gates.draining, what);
    }

    /// Accepts new jobs again; drains of other targets stay in force.
    pub fn undrain(&mut self, what: &Target) {
        self.gates.draining.retain(|draining| draining != what);
    }

    /// Returns the draining targets in order of request.
    pub fn draining(&self) -> &[Target] {
        &self.gates.draining
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

//! Pause, resume and drain, of everything or of one lane.
//!
//! A *pause* keeps waiting jobs from starting; new ones are accepted and wait too. A *drain* refuses new jobs; those accepted
//! before get their turn, so a drained lane comes to rest. The two are independent: drained and paused, only what runs goes on.
//!
//! A *hold* is a pause of everything that people do not ask for and cannot take back: the dispatcher holds while `orbctl` is sick. It
//! lets through what a pause does.
//!
//! - A forced change passes a pause: the verbs that mend things get through, and whoever forces means it. It does not pass a
//!   drain: who drains a lane wants it empty, and can still cancel what runs in it.
//! - A session passes a pause, because it stands in no line; a drain of everything refuses it.
//! - A lane is what a footprint says. A pause of one machine's lane does not hold a change of the whole fleet; a pause of the
//!   fleet's lane holds all that touches machines.

use std::collections::BTreeSet;
use std::fmt;

use super::Scheduler;
use crate::operation::{Footprint, Lane};

/// What is paused or drained.
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

/// What is closed. A lane's own pause is kept in the lane, where it holds the line back.
#[derive(Debug, Default)]
pub(super) struct Gates {
    pub(super) paused: bool,
    pub(super) held: bool,
    draining: bool,
    draining_lanes: BTreeSet<Lane>,
}

impl Gates {
    /// Returns the drain that refuses a job with this footprint.
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
    /// Keeps waiting jobs from starting. Takes time for each job at the front of a paused lane.
    pub fn pause(&mut self, what: Target) {
        match what {
            Target::All => self.gates.paused = true,
            Target::Lane(lane) => {
                let blocked = self.lanes.pause(&lane);
                self.block(blocked);
            }
        }
    }

    /// Takes back a pause of the same target; other pauses stay.
    pub fn resume(&mut self, what: Target) {
        match what {
            Target::All => self.gates.paused = false,
            Target::Lane(lane) => {
                let freed = self.lanes.resume(&lane);
                self.settle(freed);
            }
        }
    }

    /// Keeps waiting jobs from starting, beside any pause.
    pub fn hold(&mut self) {
        self.gates.held = true;
    }

    /// Takes back the hold; pauses stay.
    pub fn release(&mut self) {
        self.gates.held = false;
    }

    /// Says whether exactly this target is paused.
    pub fn is_paused(&self, what: &Target) -> bool {
        match what {
            Target::All => self.gates.paused,
            Target::Lane(lane) => self.lanes.is_paused(lane),
        }
    }

    /// Refuses new jobs from now on. It is over when [`Scheduler::is_idle`] says so.
    pub fn drain(&mut self, what: Target) {
        match what {
            Target::All => self.gates.draining = true,
            Target::Lane(lane) => {
                self.gates.draining_lanes.insert(lane);
            }
        }
    }

    /// Accepts new jobs again; drains of other targets stay.
    pub fn undrain(&mut self, what: Target) {
        match what {
            Target::All => self.gates.draining = false,
            Target::Lane(lane) => {
                self.gates.draining_lanes.remove(&lane);
            }
        }
    }

    /// Says whether exactly this target is being drained.
    pub fn is_draining(&self, what: &Target) -> bool {
        match what {
            Target::All => self.gates.draining,
            Target::Lane(lane) => self.gates.draining_lanes.contains(lane),
        }
    }

    /// Says whether no job runs or waits there. Sessions do not count.
    pub fn is_idle(&self, what: &Target) -> bool {
        match what {
            Target::All => self.waiting().without_sessions() == 0 && self.is_still(),
            Target::Lane(lane) => self.lanes.is_idle(lane),
        }
    }

    /// Says whether no job runs, though some may wait. Sessions do not count.
    pub fn is_still(&self) -> bool {
        self.running().without_sessions() == 0
    }
}

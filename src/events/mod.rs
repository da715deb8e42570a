//! What can be told to whoever watches, in one order, and when it is worth looking again.
//!
//! An [`Event`] that happened becomes [`SequencedEvent`]: it has a place in the one sequence, from 1 on, and the moment at which it was noticed.
//! The last of them are kept in a [`EventLog`]; a reader remembers nothing but the number of the last event that it was told, so a
//! slow one costs no memory and holds nobody up. One that stayed behind for too long is told of the gap and of everything as it
//! is, and goes on from there:
//!
//! ```text
//! kept        5  6  7  8        since(6): 7, 8        since(8): nothing yet        since(2): a gap; everything as it is at 8
//! ```
//!
//! [`differences`] finds what changed between two lists of machines, [`Backoff`] says how long to wait before the next look. Nothing
//! here reads a clock or runs anything.

mod backoff;
mod event_log;
mod inventory;

use std::sync::{Arc, OnceLock};

pub use backoff::Backoff;
pub use event_log::{EventLog, Gap};
pub use inventory::{Difference, differences};

use crate::cache::Generation;
use crate::clock::Moment;
use crate::job::{JobId, Outcome};
use crate::machine::{Machine, MachineName, OrbstackStatus};
use crate::operation::Scope;

/// A job, as far as events tell of it: nothing of its arguments, environment or input.
#[derive(Debug, Clone, PartialEq)]
pub struct JobFacts {
    /// Its id.
    pub id: JobId,
    /// What it does, as in `start`.
    pub verb: &'static str,
    /// To which machine.
    pub machine: Option<MachineName>,
    /// For whom.
    pub client: Arc<str>,
}

/// Something that happened. Reads tell nothing: they change nothing, and watching itself is made of them.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The list of machines was seen for the first time in this life of the daemon.
    MachinesKnown {
        /// Every machine.
        machines: Vec<Machine>,
        /// The generation in which the look began.
        generation: Generation,
    },
    /// There is a machine that was not there before.
    MachineAppeared {
        /// As it is now.
        machine: Machine,
        /// The generation in which the look began.
        generation: Generation,
    },
    /// A machine is not as it was.
    MachineChanged {
        /// As it is now.
        machine: Machine,
        /// Its name before, if it has another now.
        renamed_from: Option<MachineName>,
        /// The generation in which the look began.
        generation: Generation,
    },
    /// A machine is not there any more.
    MachineGone {
        /// As it was last seen.
        machine: Machine,
        /// The generation in which the look began.
        generation: Generation,
    },
    /// OrbStack itself is not as it was, or was seen for the first time.
    OrbstackChanged {
        /// As it is now.
        status: OrbstackStatus,
        /// The generation in which the look began.
        generation: Generation,
    },
    /// A job was accepted.
    JobQueued(JobFacts),
    /// A job runs.
    JobStarted(JobFacts),
    /// A job is over.
    JobEnded(JobFacts, Outcome),
    /// What was known became stale.
    CacheInvalidated {
        /// Of what.
        scope: Scope,
        /// The generation that began with it.
        generation: Generation,
    },
    /// `orbctl` itself does not work.
    OrbctlUnhealthy {
        /// What is wrong with it.
        reason: Arc<str>,
    },
    /// `orbctl` works again.
    OrbctlRecovered,
}

/// What an event is about, without its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// See [`Event::MachinesKnown`].
    MachinesKnown,
    /// See [`Event::MachineAppeared`].
    MachineAppeared,
    /// See [`Event::MachineChanged`].
    MachineChanged,
    /// See [`Event::MachineGone`].
    MachineGone,
    /// See [`Event::OrbstackChanged`].
    OrbstackChanged,
    /// See [`Event::JobQueued`].
    JobQueued,
    /// See [`Event::JobStarted`].
    JobStarted,
    /// See [`Event::JobEnded`].
    JobEnded,
    /// See [`Event::CacheInvalidated`].
    CacheInvalidated,
    /// See [`Event::OrbctlUnhealthy`].
    OrbctlUnhealthy,
    /// See [`Event::OrbctlRecovered`].
    OrbctlRecovered,
}

impl Kind {
    /// Says whether such events are found by looking: only whoever wants them makes orbd look again and again.
    pub const fn is_found_by_looking(self) -> bool {
        match self {
            Self::MachinesKnown
            | Self::MachineAppeared
            | Self::MachineChanged
            | Self::MachineGone
            | Self::OrbstackChanged => true,
            Self::JobQueued
            | Self::JobStarted
            | Self::JobEnded
            | Self::CacheInvalidated
            | Self::OrbctlUnhealthy
            | Self::OrbctlRecovered => false,
        }
    }
}

impl Event {
    /// Returns what it is about.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::MachinesKnown { .. } => Kind::MachinesKnown,
            Self::MachineAppeared { .. } => Kind::MachineAppeared,
            Self::MachineChanged { .. } => Kind::MachineChanged,
            Self::MachineGone { .. } => Kind::MachineGone,
            Self::OrbstackChanged { .. } => Kind::OrbstackChanged,
            Self::JobQueued(_) => Kind::JobQueued,
            Self::JobStarted(_) => Kind::JobStarted,
            Self::JobEnded(..) => Kind::JobEnded,
            Self::CacheInvalidated { .. } => Kind::CacheInvalidated,
            Self::OrbctlUnhealthy { .. } => Kind::OrbctlUnhealthy,
            Self::OrbctlRecovered => Kind::OrbctlRecovered,
        }
    }
}

/// An event with its place among all, and room for the form in which it is served: it is encoded once, however many are told.
#[derive(Debug)]
pub struct SequencedEvent {
    /// Its number: one more than the event before it has.
    pub sequence: u64,
    /// When it was noticed.
    pub at: Moment,
    /// What happened.
    pub event: Event,
    /// Filled by whoever serves it first.
    pub encoded: OnceLock<Box<str>>,
}

impl SequencedEvent {
    /// Gives an event its place.
    pub fn new(sequence: u64, at: Moment, event: Event) -> Self {
        Self {
            sequence,
            at,
            event,
            encoded: OnceLock::new(),
        }
    }
}

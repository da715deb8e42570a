//! Events for subscribers, in one sequence, and the interval between polls.
//!
//! An [`Event`] becomes a [`SequencedEvent`] when orbd detects it: it gets the next number of the sequence, starting at 1, and a
//! timestamp. The [`EventLog`] keeps the most recent ones. A reader stores only the number of the last event that it received, so a
//! slow reader costs no memory and delays no other. If the log no longer has the next event, the reader gets a gap and a snapshot
//! of the current state, and continues from there:
//!
//! ```text
//! kept        5  6  7  8        since(6): 7, 8        since(8): empty        since(2): Gap; continue with a snapshot at 8
//! ```
//!
//! [`differences`] compares two lists of machines, and [`Backoff`] determines the time until the next poll. This module reads no
//! clock and runs nothing.

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
use crate::operation::Scope;
use orbd_host::machine::{Machine, MachineName, OrbstackStatus};

/// The data of a job that events carry: nothing of its arguments, environment or input.
#[derive(Debug, Clone, PartialEq)]
pub struct JobFacts {
    /// Id of the job.
    pub id: JobId,
    /// Verb of the operation, as in `start`.
    pub verb: &'static str,
    /// Machine that the operation is mainly about, if there is one.
    pub machine: Option<MachineName>,
    /// Name of the client.
    pub client: Arc<str>,
    /// Label that the client gave the job.
    pub label: Option<Arc<str>>,
}

/// Something that happened. Reads cause no events: they change nothing, and polling itself consists of reads.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// This instance of the daemon read the list of machines for the first time.
    MachinesKnown {
        /// All machines, in `orbctl`'s order.
        machines: Vec<Machine>,
        /// Cache generation in which the read began.
        generation: Generation,
    },
    /// A new machine exists.
    MachineAppeared {
        /// The machine as it is now.
        machine: Machine,
        /// Cache generation in which the read began.
        generation: Generation,
    },
    /// The state, name or settings of a machine changed.
    MachineChanged {
        /// The machine as it is now.
        machine: Machine,
        /// Its previous name if it was renamed.
        renamed_from: Option<MachineName>,
        /// Cache generation in which the read began.
        generation: Generation,
    },
    /// A machine no longer exists.
    MachineGone {
        /// The machine as last seen.
        machine: Machine,
        /// Cache generation in which the read began.
        generation: Generation,
    },
    /// The status of OrbStack changed, or was read for the first time.
    OrbstackChanged {
        /// The current status.
        status: OrbstackStatus,
        /// Cache generation in which the read began.
        generation: Generation,
    },
    /// A job was accepted.
    JobQueued(JobFacts),
    /// A job started.
    JobStarted(JobFacts),
    /// A job ended.
    JobEnded(JobFacts, Outcome),
    /// Cached data became stale.
    CacheInvalidated {
        /// The data that became stale.
        scope: Scope,
        /// Cache generation that began with the invalidation.
        generation: Generation,
    },
    /// The circuit breaker opened: `orbctl` became unhealthy.
    OrbctlUnhealthy {
        /// Description of the problem.
        reason: Arc<str>,
    },
    /// The circuit breaker closed: `orbctl` is healthy again.
    OrbctlRecovered,
}

/// An event with its number, and a slot for its encoded form: it is encoded once, however many subscribers receive it.
#[derive(Debug)]
pub struct SequencedEvent {
    /// Number in the sequence: one more than that of the previous event.
    pub sequence: u64,
    /// When orbd detected it.
    pub at: Moment,
    /// What happened.
    pub event: Event,
    /// The encoded form; set by the first connection that sends the event.
    pub encoded: OnceLock<Box<str>>,
}

impl SequencedEvent {
    /// Creates an event with the given number and time.
    pub fn new(sequence: u64, at: Moment, event: Event) -> Self {
        Self {
            sequence,
            at,
            event,
            encoded: OnceLock::new(),
        }
    }
}

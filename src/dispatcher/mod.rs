//! The one task that owns what changes: it coordinates; the scheduler and the cache decide.
//!
//! Whatever can wake it is one of three things: a request ([`Dispatcher`] sends them), the end of a running job, or a deadline.
//! After each it starts whatever may start. It never waits for anything else, so a stuck `orbctl`, disk or client cannot hold it.
//!
//! ```text
//! handlers --requests--> dispatcher --spawns--> run_job, one task each --+
//!    ^                    |  ^  ^                                        |
//!    |                    |  |  +---- end of a job; child started, sign -+
//!    +--state of a job----+  +------- deadline; look or probe that is due
//!    +--events (watch)----+
//!                         +--journal (inline, page cache) --metrics (never blocks)
//! ```

mod about_job;
mod answer;
mod handle;
mod hold;
mod lease;
mod marker;
mod reconcile;
mod run_job;
#[cfg(test)]
mod simulation;
mod state;
mod stored;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use answer::{CachedAnswer, ObservedAnswer, QueryAnswer, RawOutput};
pub use handle::{
    BusyReason, CacheView, Cancelled, Client, Dispatcher, Executor, Job, JobFilter, JobSpec, JobState,
    JobView, KeptView, LeaseProcesses, OutageView, Published, QueueVerb, QueueView, ReadError, Rejection,
    Released, Snapshot, StateFilter, Submission, Subscriber, Target, WaitingFor,
};
pub use marker::{Markers, Survivor};

use crate::journal::{Journal, Recovered};
use crate::metrics::Metrics;
use crate::operation::Class;
use crate::orbctl::Orbctl;
use crate::orbctl::argv::GuestEnv;
use crate::scheduler::Limits;
use crate::spool;

/// How long after a stop running changes are waited for, unless the grace is longer, before they are left to themselves.
pub const LEAVE_CHANGES_AFTER: Duration = Duration::from_secs(10);

/// How the dispatcher behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bounds of waiting and running.
    pub limits: Limits,
    /// Oldest observation that is answered with.
    pub cache_max_age: Duration,
    /// Shortest pause between looks while somebody watches.
    pub watch_interval: Duration,
    /// Longest wait where the caller says nothing.
    pub queue_timeout: Duration,
    /// Longest runs where the caller says nothing.
    pub run_timeouts: RunTimeouts,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Longest time that looks go on after a change was cut short.
    pub reconcile: Duration,
    /// How long ended jobs are remembered.
    pub keep: Duration,
    /// How many ended jobs are remembered.
    pub keep_max: usize,
    /// Most output of ended jobs kept in memory, beside what is in files.
    pub keep_bytes: u64,
    /// Where output is spooled, and how much of it.
    pub spool: spool::Settings,
    /// Output of all jobs together.
    pub spool_total_max: u64,
    /// How variables for a command reach the guest.
    pub guest_env: GuestEnv,
    /// Names the children of this instance in their environment.
    pub markers: Markers,
}

impl Settings {
    /// Looks after a cut at once. No job waits there for its own place in the queue: looks are made in it, and strict alone means
    /// one at a time.
    fn probes_max(&self) -> usize {
        if self.limits.strict {
            1
        } else {
            self.limits.queries_max
        }
    }

    fn run_limits(&self) -> run_job::RunLimits {
        run_job::RunLimits {
            query: self.run_timeouts.query,
            grace: self.grace,
            reconcile: self.reconcile,
        }
    }
}

/// Longest runs by class.
#[derive(Debug, Clone, Copy)]
pub struct RunTimeouts {
    /// Reads.
    pub query: Duration,
    /// Changes of a machine.
    pub change: Duration,
    /// Creates and imports.
    pub creation: Duration,
    /// Settings.
    pub configuration: Duration,
    /// Changes of OrbStack as a whole.
    pub fleet: Duration,
}

impl RunTimeouts {
    /// Returns the limit of a class; commands and sessions have none but their caller's.
    fn of(&self, class: Class) -> Option<Duration> {
        match class {
            Class::Query => Some(self.query),
            Class::Change => Some(self.change),
            Class::Creation => Some(self.creation),
            Class::Configuration => Some(self.configuration),
            Class::Fleet => Some(self.fleet),
            Class::Exec | Class::Session => None,
        }
    }
}

/// The outside things that the dispatcher works with.
pub struct Parts<O> {
    /// Runs `orbctl`.
    pub orbctl: Arc<O>,
    /// Remembers over a crash.
    pub journal: Journal,
    /// What the journal remembered.
    pub recovered: Recovered,
    /// Processes of earlier instances, unless the journal is known to name all of them.
    pub survivors: Vec<Survivor>,
    /// Records what happened.
    pub metrics: Metrics,
}

/// Starts the dispatcher. It runs until `shutdown`, and then until what must end has ended; its task then gives the journal back,
/// to be closed.
pub fn start<O: Orbctl>(
    settings: Settings,
    parts: Parts<O>,
    shutdown: CancellationToken,
) -> (Dispatcher, tokio::task::JoinHandle<Journal>) {
    let (requests, inbox) = mpsc::channel(handle::REQUESTS_MAX);
    let (publish, published) = watch::channel(Published {
        machines: None,
        cache_max_age: settings.cache_max_age,
    });
    let upgrading = CancellationToken::new();
    let markers = settings.markers.clone();
    let state = state::State::new(settings, parts, publish, requests.downgrade(), upgrading.clone());
    let task = tokio::spawn(state.run(inbox, shutdown));
    let dispatcher = Dispatcher {
        requests,
        published,
        upgrading,
        markers,
    };
    (dispatcher, task)
}

/// Returns the folder for spooled output below the state folder.
pub fn spool_folder(state: &std::path::Path) -> PathBuf {
    state.join("spool")
}

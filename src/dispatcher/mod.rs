//! The dispatcher: one task that owns all mutable state. It coordinates; the scheduler and the cache decide.
//!
//! Three things wake it: a request (sent through [`Dispatcher`]), an event of a running job, and a deadline. After each it starts
//! every job that may start. It awaits nothing else, so a stuck `orbctl`, disk or client cannot block it.
//!
//! ```text
//! handlers --requests--> dispatcher --spawns--> run_job, one task each ----------+
//!    ^                    |  ^  ^                                                |
//!    |                    |  |  +-- job ended; child started; health signal -----+
//!    +--state of a job----+  +----- deadline; due poll or health probe
//!    +--events (watch)----+
//!                         +--journal (inline, page cache) --metrics (never blocks)
//! ```

mod about_job;
mod answer;
mod drains;
#[cfg(test)]
mod fixture;
mod handle;
mod health;
mod hold;
mod idle;
mod jobs;
mod lease;
mod marker;
mod read_table;
mod reconcile;
mod run_job;
mod runner;
#[cfg(test)]
mod simulation;
mod state;
mod stored;
mod submission;
mod views;
mod watch;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Part of [`Rejection`].
pub use crate::scheduler::Refusal;
pub use answer::{CachedAnswer, ObservedAnswer, QueryAnswer, RawOutput, Read};
pub use handle::Dispatcher;
pub use marker::{Markers, Survivor, take_channels};
pub use submission::{
    Client, Executor, Job, JobSpec, JobState, JobView, LeaseProcesses, Released, Submission, Target,
    WaitingFor,
};
pub use views::{
    BusyReason, CacheView, Cancelled, JobFilter, KeptView, OutageView, Published, QueueVerb, QueueView,
    ReadError, Rejection, Snapshot, StateFilter, Subscriber,
};

use crate::journal::{Journal, Recovered};
use crate::metrics::Metrics;
use crate::operation::Class;
use crate::orbctl::Orbctl;
use crate::scheduler::Limits;
use crate::spool;
use orbd_host::machine::MachineName;
use orbd_host::run_command::GuestEnv;

/// Which commands may run through resident channels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChannelRules {
    /// Whether any may.
    pub enabled: bool,
    /// Machines whose commands may not.
    pub except: Arc<BTreeSet<MachineName>>,
}

/// Settings of the dispatcher.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Limits on waiting and running jobs.
    pub limits: Limits,
    /// Greatest age of a cached answer that may be served.
    pub cache_max_age: Duration,
    /// Shortest interval between polls while a subscriber wants them.
    pub watch_interval: Duration,
    /// Longest time in the queue, if the caller sets no limit.
    pub queue_timeout: Duration,
    /// Longest run times, if the caller sets no limit.
    pub run_timeouts: RunTimeouts,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Longest reconciliation after a change was cut short.
    pub reconcile: Duration,
    /// How long ended jobs stay in the history.
    pub keep: Duration,
    /// Most ended jobs in the history.
    pub keep_max: usize,
    /// Most bytes of output of ended jobs in memory, not counting spool files.
    pub keep_bytes: u64,
    /// Where output is spooled, and how much per job.
    pub spool: spool::Settings,
    /// Most bytes of spooled output of all jobs together.
    pub spool_total_max: u64,
    /// How environment variables reach a command in a machine.
    pub guest_env: GuestEnv,
    /// Which commands may run through resident channels.
    pub channels: ChannelRules,
    /// Markers for the environment of this instance's child processes.
    pub markers: Markers,
}

impl Settings {
    /// Most jobs that may probe the inventory at once after a cut. Probes run within the job's own slot, so they never wait for
    /// another slot; strict mode allows one at a time.
    fn probes_max(&self) -> usize {
        if self.limits.strict {
            1
        } else {
            self.limits.queries_max
        }
    }
}

/// Longest run time of each class of operation.
#[derive(Debug, Clone, Copy)]
pub struct RunTimeouts {
    /// Reads.
    pub query: Duration,
    /// Changes of a machine.
    pub change: Duration,
    /// Creates and imports.
    pub creation: Duration,
    /// Changes of OrbStack's configuration.
    pub configuration: Duration,
    /// Changes of OrbStack as a whole.
    pub fleet: Duration,
}

impl RunTimeouts {
    /// Returns the limit of a class; `None` for commands and sessions, which only their caller limits.
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

/// The dispatcher's dependencies.
pub struct Parts<O> {
    /// Runs `orbctl`.
    pub orbctl: Arc<O>,
    /// Persists jobs across a crash.
    pub journal: Journal,
    /// Jobs that the journal recovered from the previous instance.
    pub recovered: Recovered,
    /// Processes of earlier instances. Empty if the journal is known to name all of them.
    pub survivors: Vec<Survivor>,
    /// Records ended jobs.
    pub metrics: Metrics,
}

/// Starts the dispatcher. It runs until `shutdown` is cancelled and the jobs that delay a stop have ended. Its task then returns the
/// journal for the caller to close.
pub fn start<O: Orbctl>(
    settings: &Settings,
    parts: Parts<O>,
    shutdown: CancellationToken,
) -> (Dispatcher, tokio::task::JoinHandle<Journal>) {
    let (requests, inbox) = mpsc::channel(handle::REQUESTS_MAX);
    let (publish, published) = tokio::sync::watch::channel(Published::default());
    let upgrading = CancellationToken::new();
    let markers = settings.markers.clone();
    let state = state::State::new(settings, parts, publish, upgrading.clone());
    let task = tokio::spawn(state.run(inbox, shutdown));
    let dispatcher = Dispatcher {
        requests,
        published,
        upgrading,
        markers,
    };
    (dispatcher, task)
}

/// Returns whether this version can decode every accepted change that the journal still needs. A newer version may know more changes.
pub fn understands(recovered: &Recovered) -> bool {
    let accepted = recovered.waiting.iter().chain(&recovered.uncertain);
    accepted
        .map(|accepted| stored::decode(&accepted.operation))
        .all(|decoded| decoded.is_some())
}

/// Returns the folder for spooled output within the state folder.
pub fn spool_folder(state: &std::path::Path) -> PathBuf {
    state.join("spool")
}

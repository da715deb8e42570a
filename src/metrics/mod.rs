//! Metrics: one record per operation with its result and durations, kept across restarts; and counters since the daemon started.
//!
//! The daemon is isolated from the store. [`Metrics`] is a cheap handle: [`Metrics::record`] pushes into a bounded buffer and never waits,
//! [`Metrics::count`] adds to an atomic. One thread (`worker`) moves the buffered records every two seconds into the store, which lives in
//! a helper process (`helper`, `store`) that is started on demand and ends when idle:
//!
//! ```text
//! dispatcher ── record ──> buffer ──> worker thread ── socket pair ──> helper process ──> sled
//!            ── summary, history ──>  (in the same order)
//! ```
//!
//! So if the store panics, aborts, hangs, is locked or is damaged, the daemon can lose records (counted as dropped) and queries can fail,
//! each within a time limit; nothing else is affected. A damaged store is set aside under a new name, and a new one is created. An idle
//! daemon has no helper and no wakeups.
//!
//! A crash of the daemon loses the records that it has not sent to the helper: at most two seconds of them. A power loss loses the records
//! that were not flushed: at most five seconds of them.

mod counters;
mod export;
mod handle;
mod helper;
mod inbox;
mod query;
mod record;
mod rollup;
mod store;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

pub use counters::{Counter, Counters, StoreState};
pub use export::{Export, RecordFormat};
pub use handle::Metrics;
pub use helper::{Launch, serve_store};
pub use query::{
    Cursor, CursorError, HISTORY_PAGE_MAX, HistoryFilter, HistoryPage, HistoryRequest, Order, StoreError,
    Summary, SummaryRequest, WindowResolution,
};
pub use record::{CLIENT_NAME_MAX, Client, OperationRecord, OutcomeWord};
pub use rollup::{Counts, GroupBy, MachineLabel, SERIES_MAX, Series, Spread, SummaryRow};

/// Settings of the metrics.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory that contains the stores. Created if missing.
    pub folder: PathBuf,
    /// Maximum number of records kept.
    pub history_max: u64,
    /// How long records are kept.
    pub history_max_age: Duration,
    /// How the helper is started.
    pub launch: Launch,
    /// Idle time after which the helper ends.
    pub quiet: Duration,
}

impl Settings {
    /// Returns the defaults: 100,000 records, 90 days, and a helper process of this binary that ends after ten idle seconds.
    pub fn new(folder: PathBuf) -> std::io::Result<Self> {
        Ok(Self {
            folder,
            history_max: 100_000,
            history_max_age: Duration::from_secs(90 * 24 * 3600),
            launch: Launch::of_this_binary()?,
            quiet: Duration::from_secs(10),
        })
    }
}

#[cfg(test)]
mod tests;

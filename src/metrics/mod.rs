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

mod export;
mod helper;
mod record;
mod rollup;
mod store;
mod worker;

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use export::{Export, RecordFormat};
pub use helper::{Launch, serve_store};
pub use record::{CLIENT_NAME_MAX, Client, OperationRecord, OutcomeWord};
pub use rollup::{Counts, GroupBy, MachineLabel, SERIES_MAX, Series, Spread, SummaryRow};

use helper::{Request, Response};

/// Maximum number of records that wait for the store, about 3 MB. Further records are dropped and counted.
const BUFFER_MAX: usize = 16_384;
/// Number of waiting records at which the worker writes to the store before its interval has passed.
const BUFFER_HIGH: usize = 1_024;
/// Maximum number of queries that wait for the store.
const QUESTIONS_MAX: usize = 64;
/// Time limit for one query in the store.
const QUESTION_LIMIT: Duration = Duration::from_secs(3);
/// Maximum number of records in one page of history.
pub const HISTORY_PAGE_MAX: usize = 1_000;

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

/// An event that is counted since the daemon started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counter {
    /// A read answered from the cache.
    CacheHits,
    /// A read that the cache could not answer.
    CacheMisses,
    /// A job that joined another job's invocation.
    Joins,
    /// A change that was skipped because the machine already had the desired state.
    ChangesSkipped,
    /// A request refused before acceptance.
    Refusals,
    /// An `orbctl` process started, by the daemon or by a client that holds a lease.
    Spawns,
    /// A child process that the cache, a join or a skipped change made unnecessary.
    SpawnsSaved,
    /// A connection accepted.
    Connections,
}

impl Counter {
    /// Every counter, in the order of declaration.
    pub const ALL: [Self; 8] = [
        Self::CacheHits,
        Self::CacheMisses,
        Self::Joins,
        Self::ChangesSkipped,
        Self::Refusals,
        Self::Spawns,
        Self::SpawnsSaved,
        Self::Connections,
    ];

    /// Returns the name used on the wire and in exports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CacheHits => "cache_hits",
            Self::CacheMisses => "cache_misses",
            Self::Joins => "joins",
            Self::ChangesSkipped => "changes_skipped",
            Self::Refusals => "refusals",
            Self::Spawns => "spawns",
            Self::SpawnsSaved => "spawns_saved",
            Self::Connections => "connections",
        }
    }

    /// Returns a one-sentence description for the Prometheus page.
    pub fn help(self) -> &'static str {
        match self {
            Self::CacheHits => "Reads answered from the cache.",
            Self::CacheMisses => "Reads that the cache could not answer.",
            Self::Joins => "Jobs that shared another's invocation.",
            Self::ChangesSkipped => "Changes that already held and were not carried out.",
            Self::Refusals => "Requests refused before acceptance.",
            Self::Spawns => "Child processes started.",
            Self::SpawnsSaved => {
                "Child processes avoided by the cache, by joins and by changes that already held."
            }
            Self::Connections => "Connections accepted.",
        }
    }
}

/// State of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreState {
    /// Closed, because it is idle or was not needed yet.
    Closed,
    /// Open in the helper process.
    Open,
    /// Unavailable for now. Records stay in the buffer while there is room, and the worker retries.
    Failed {
        /// Why the store is unavailable.
        reason: String,
    },
}

/// Values of all counters since the daemon started, and the state of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    values: [u64; Counter::ALL.len()],
    /// Number of calls of [`Metrics::record`].
    pub recorded: u64,
    /// Number of records lost because the buffer was full or the store refused them.
    pub dropped: u64,
    /// Number of records that wait for the store.
    pub buffered: u64,
    /// State of the store.
    pub store: StoreState,
    /// Directory of the last opened store; `None` until one was opened.
    pub store_folder: Option<PathBuf>,
    /// Path to which the last damaged store was renamed; `None` if this instance found none.
    pub set_aside: Option<PathBuf>,
}

impl Counters {
    /// Returns the value of one counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }
}

/// Why a query of the metrics failed. The rest of the daemon is not affected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The store did not answer in time.
    #[error("the metrics store did not answer in time")]
    TimedOut,
    /// Too many queries are already waiting.
    #[error("too many queries are waiting for the metrics store")]
    Busy,
    /// The store is unavailable for now.
    #[error("the metrics store is unavailable: {reason}")]
    Unavailable {
        /// Why the store is unavailable.
        reason: String,
    },
    /// The daemon is stopping.
    #[error("the metrics store is closed")]
    Closed,
}

/// A query for a summary of operations. The default selects all operations of all time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SummaryRequest {
    /// Start of the window: only operations that ended at this time or later, in Unix milliseconds.
    pub since_ms: u64,
    /// End of the window: only operations that ended before this time, in Unix milliseconds. The present or a later time is no limit.
    pub until_ms: u64,
    /// Only operations with this verb.
    pub operation: Option<String>,
    /// Only operations on this machine.
    pub machine: Option<String>,
    /// How operations are grouped into rows.
    pub group_by: GroupBy,
}

impl Default for SummaryRequest {
    fn default() -> Self {
        Self {
            since_ms: 0,
            until_ms: u64::MAX,
            operation: None,
            machine: None,
            group_by: GroupBy::default(),
        }
    }
}

impl SummaryRequest {
    fn matches(&self, series: &Series) -> bool {
        self.operation
            .as_ref()
            .is_none_or(|verb| *verb == series.operation)
            && self
                .machine
                .as_ref()
                .is_none_or(|name| matches!(&series.machine, MachineLabel::Named(other) if other == name))
    }
}

/// Precision of the edges of a summary's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WindowResolution {
    /// Exact: the edges are those of the request.
    Record,
    /// An edge was widened to a whole hour.
    Hour,
    /// An edge was widened to a whole day.
    Day,
}

/// A summary of the operations within a window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Actual start of the window, in Unix milliseconds. It is the start of an hour or day before the requested time if the records of
    /// that time are no longer kept.
    pub since_ms: u64,
    /// Actual end of the window, in Unix milliseconds. It is later than the present only if a later time was requested.
    pub until_ms: u64,
    /// Precision of the window's edges.
    pub resolution: WindowResolution,
    /// The rows, by number of operations in descending order. At most [`SERIES_MAX`] rows with a machine's name, and one `other` per verb.
    pub rows: Vec<SummaryRow>,
}

/// Position of one record in the history. Clients get it as text and pass it back to request the next page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cursor {
    ended_ms: u64,
    seq: u32,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ended_ms, self.seq)
    }
}

/// A text is not a valid [`Cursor`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid cursor; use one that an earlier page returned")]
pub struct CursorError;

impl std::str::FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let (ms, seq) = text.split_once('-').ok_or(CursorError)?;
        Ok(Self {
            ended_ms: ms.parse().map_err(|_| CursorError)?,
            seq: seq.parse().map_err(|_| CursorError)?,
        })
    }
}

/// Order of records in the history, by time of end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Order {
    /// Newest record first.
    #[default]
    NewestFirst,
    /// Oldest record first.
    OldestFirst,
}

/// Filter of records. A field that is `None` matches every record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryFilter {
    /// Only operations that ended at this time or later, in Unix milliseconds.
    pub since_ms: Option<u64>,
    /// Only operations that ended before this time, in Unix milliseconds.
    pub until_ms: Option<u64>,
    /// Only operations with this verb.
    pub operation: Option<String>,
    /// Only operations on this machine.
    pub machine: Option<String>,
    /// Only operations of clients with this name.
    pub client: Option<String>,
    /// Only operations with this outcome.
    pub outcome: Option<OutcomeWord>,
}

impl HistoryFilter {
    /// Returns whether the filter depends on more than the time, so that records must be decoded.
    fn reads_records(&self) -> bool {
        self.operation.is_some() || self.machine.is_some() || self.client.is_some() || self.outcome.is_some()
    }

    /// Returns whether a record matches all fields except the times, which the store applies by key range.
    fn matches(&self, record: &OperationRecord) -> bool {
        self.operation
            .as_ref()
            .is_none_or(|verb| *verb == record.operation)
            && self.machine.as_ref().is_none_or(|name| {
                record
                    .machine
                    .as_ref()
                    .is_some_and(|machine| machine.as_str() == name)
            })
            && self
                .client
                .as_ref()
                .is_none_or(|name| **name == *record.client.name)
            && self.outcome.is_none_or(|outcome| outcome == record.outcome)
    }
}

/// A query for one page of records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRequest {
    /// Which records to return.
    pub filter: HistoryFilter,
    /// Maximum number of records in the page, from 1 to [`HISTORY_PAGE_MAX`]. [`HistoryPage::next`] shows whether there are more.
    pub limit: usize,
    /// Only records older than this one. Set it to request the next page in the order [`Order::NewestFirst`].
    pub before: Option<Cursor>,
    /// Only records newer than this one. Set it to request the next page in the order [`Order::OldestFirst`], or records added since.
    pub after: Option<Cursor>,
    /// Order of the records.
    pub order: Order,
}

impl Default for HistoryRequest {
    fn default() -> Self {
        Self {
            filter: HistoryFilter::default(),
            limit: 100,
            before: None,
            after: None,
            order: Order::default(),
        }
    }
}

/// One page of history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryPage {
    /// The records in the requested order, each with its cursor.
    pub records: Vec<(Cursor, OperationRecord)>,
    /// Pass this as `before` (newest first) or `after` (oldest first) to request the next page; `None` if this page is the last one.
    pub next: Option<Cursor>,
}

/// A query that waits for the store, and the channel for its answer.
struct Question {
    request: Request,
    reply: oneshot::Sender<Result<Response, StoreError>>,
}

/// Records and queries that wait for the worker.
#[derive(Default)]
struct Inbox {
    records: Vec<OperationRecord>,
    /// Number of records that the worker has taken but not yet sent to the helper.
    held: usize,
    questions: VecDeque<Question>,
    /// Set when no handle is left or `shutdown` was called.
    closing: bool,
    /// Set when the worker has ended.
    closed: bool,
}

/// State shared by the handles and the worker.
struct Shared {
    inbox: Mutex<Inbox>,
    woken: Condvar,
    values: [AtomicU64; Counter::ALL.len()],
    recorded: AtomicU64,
    dropped: AtomicU64,
    status: Mutex<StoreStatus>,
}

/// The part of [`Counters`] that describes the store.
struct StoreStatus {
    state: StoreState,
    folder: Option<PathBuf>,
    set_aside: Option<PathBuf>,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // A poisoned lock is safe to use: no code that can panic runs under it.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> MutexGuard<'_, StoreStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the worker when the last handle is dropped.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.inbox().closing = true;
        self.0.woken.notify_all();
    }
}

/// A handle to the metrics. Clones share the same state.
#[derive(Clone)]
pub struct Metrics {
    owner: Arc<Owner>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Starts the worker and returns immediately. The worker opens the store on the first record or query.
    pub fn start(settings: Settings) -> Self {
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            woken: Condvar::new(),
            values: Default::default(),
            recorded: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            status: Mutex::new(StoreStatus {
                state: StoreState::Closed,
                folder: None,
                set_aside: None,
            }),
        });
        if let Err(error) = worker::start(settings, Arc::clone(&shared)) {
            tracing::error!(%error, "could not start the metrics thread; nothing is recorded");
            shared.status().state = StoreState::Failed {
                reason: error.to_string(),
            };
            shared.inbox().closed = true;
        }
        Self {
            owner: Arc::new(Owner(shared)),
        }
    }

    fn shared(&self) -> &Shared {
        &self.owner.0
    }

    /// Adds a record to the buffer. Never waits: if the buffer is full, the record is dropped and counted.
    pub fn record(&self, record: OperationRecord) {
        let shared = self.shared();
        shared.recorded.fetch_add(1, Ordering::Relaxed);
        let mut inbox = shared.inbox();
        if inbox.closed || inbox.records.len() + inbox.held >= BUFFER_MAX {
            drop(inbox);
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        inbox.records.push(record);
        let waiting = inbox.records.len();
        drop(inbox);
        // The first record starts the worker's timer, and a full batch wakes it early. Other records cause no wakeup.
        if waiting == 1 || waiting == BUFFER_HIGH {
            shared.woken.notify_one();
        }
    }

    /// Adds one to a counter.
    pub fn count(&self, counter: Counter) {
        self.count_many(counter, 1);
    }

    /// Adds to a counter.
    pub fn count_many(&self, counter: Counter, times: u64) {
        self.shared().values[counter as usize].fetch_add(times, Ordering::Relaxed);
    }

    /// Returns all counters and the state of the store.
    pub fn counters(&self) -> Counters {
        let shared = self.shared();
        let buffered = {
            let inbox = shared.inbox();
            inbox.records.len() + inbox.held
        };
        let status = shared.status();
        Counters {
            values: std::array::from_fn(|at| shared.values[at].load(Ordering::Relaxed)),
            recorded: shared.recorded.load(Ordering::Relaxed),
            dropped: shared.dropped.load(Ordering::Relaxed),
            buffered: buffered as u64,
            store: status.state.clone(),
            store_folder: status.folder.clone(),
            set_aside: status.set_aside.clone(),
        }
    }

    /// Returns a summary of the operations that ended within a window. Includes everything recorded before this call.
    pub async fn summary(&self, request: SummaryRequest) -> Result<Summary, StoreError> {
        let request = Request::Summary {
            request,
            now_ms: crate::clock::Moment::now().unix_ms(),
            limit: QUESTION_LIMIT,
        };
        match self.ask(request).await? {
            Response::Summary(summary) => Ok(summary),
            _ => Err(unexpected()),
        }
    }

    /// Returns one page of records. Includes everything recorded before this call.
    pub async fn history(&self, mut request: HistoryRequest) -> Result<HistoryPage, StoreError> {
        request.limit = request.limit.clamp(1, HISTORY_PAGE_MAX);
        let request = Request::History {
            request,
            limit: QUESTION_LIMIT,
        };
        let Response::History(page) = self.ask(request).await? else {
            return Err(unexpected());
        };
        let records = page.records.into_iter().map(|(cursor, stored)| {
            let record = OperationRecord::decode(&stored).map_err(|error| StoreError::Unavailable {
                reason: error.to_string(),
            })?;
            Ok((cursor, record))
        });
        Ok(HistoryPage {
            records: records.collect::<Result<_, StoreError>>()?,
            next: page.next,
        })
    }

    /// Starts an export of all matching records, oldest first. No resources of the store are held between chunks.
    pub fn export(&self, format: RecordFormat, filter: HistoryFilter) -> Export {
        Export::new(self.clone(), format, filter)
    }

    /// Returns counters and summaries in the Prometheus text exposition format 0.0.4.
    pub async fn prometheus_page(&self) -> String {
        export::prometheus_page(self).await
    }

    /// Returns the totals of all time, one row per operation and machine.
    async fn totals(&self) -> Result<Vec<SummaryRow>, StoreError> {
        match self
            .ask(Request::Totals {
                limit: QUESTION_LIMIT,
            })
            .await?
        {
            Response::Totals(rows) => Ok(rows),
            _ => Err(unexpected()),
        }
    }

    async fn ask(&self, request: Request) -> Result<Response, StoreError> {
        let (reply, answer) = oneshot::channel();
        {
            let mut inbox = self.shared().inbox();
            if inbox.closed || inbox.closing {
                return Err(StoreError::Closed);
            }
            if inbox.questions.len() >= QUESTIONS_MAX {
                return Err(StoreError::Busy);
            }
            inbox.questions.push_back(Question { request, reply });
        }
        self.shared().woken.notify_one();
        // Twice the limit: once for work ahead of the query (opening the store, writing a batch), once for the query.
        match tokio::time::timeout(QUESTION_LIMIT * 2, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(_) => Err(StoreError::TimedOut),
        }
    }

    /// Writes the buffered records, then flushes and closes the store. Returns after `limit` even if the store hangs. Other handles stay
    /// valid, but record nothing more.
    pub async fn shutdown(self, limit: Duration) {
        let (reply, answer) = oneshot::channel();
        {
            let mut inbox = self.shared().inbox();
            if inbox.closed {
                return;
            }
            inbox.closing = true;
            inbox.questions.push_back(Question {
                request: Request::Close,
                reply,
            });
        }
        self.shared().woken.notify_all();
        if tokio::time::timeout(limit, answer).await.is_err() {
            tracing::warn!(
                limit_ms = limit.as_millis(),
                "the metrics store did not close in time; stopping without it"
            );
        }
    }
}

fn unexpected() -> StoreError {
    StoreError::Unavailable {
        reason: "unexpected answer from the store's helper".into(),
    }
}

#[cfg(test)]
mod tests;

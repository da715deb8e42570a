//! What happened, how often and how long it took: one record per operation, kept over restarts.
//!
//! Daemon and store are apart. [`Metrics`] is a cheap handle: [`Metrics::record`] pushes into a bounded buffer and never waits,
//! [`Metrics::count`] adds to an atomic. One thread (`worker`) empties the buffer every two seconds into the store, which
//! lives in a helper process (`helper`, `store`) that comes and goes with need:
//!
//! ```text
//! dispatcher ── record ──> buffer ──> worker thread ── socket pair ──> helper process ──> sled
//!            ── summary, history ──>  (in the same order)
//! ```
//!
//! So a store that panics, aborts, hangs, is locked or is damaged costs records (counted as dropped) and answers to questions about
//! the past, each under a time limit; it never touches anything else. A damaged store is set aside under a new name and a fresh one
//! begun. An idle daemon has no helper and no wakeups.
//!
//! A crash of the daemon loses what it had not handed over: two seconds. A power loss loses what was not flushed: at most five.

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

/// At most so many records wait for the store; more are dropped and counted. About 3 MB.
const BUFFER_MAX: usize = 16_384;
/// With so many waiting the store is written to early.
const BUFFER_HIGH: usize = 1_024;
/// At most so many questions wait for the store.
const QUESTIONS_MAX: usize = 64;
/// A question is answered within this, or not at all.
const QUESTION_LIMIT: Duration = Duration::from_secs(3);
/// The most records in one page of history.
pub const HISTORY_PAGE_MAX: usize = 1_000;

/// How the metrics are kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder in which stores live. Made when missing.
    pub folder: PathBuf,
    /// At most so many records are kept.
    pub history_max: u64,
    /// Records are kept so long.
    pub history_max_age: Duration,
    /// How the store's helper is started.
    pub launch: Launch,
    /// How long the helper stays without work.
    pub quiet: Duration,
}

impl Settings {
    /// Returns the defaults: 100,000 records, 90 days, a helper process of this binary that leaves after ten quiet seconds.
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

/// Something that is counted since the daemon started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counter {
    /// A read answered from the cache.
    CacheHits,
    /// A read that the cache could not answer.
    CacheMisses,
    /// A job that shared another's invocation.
    Joins,
    /// A change that already held and was not carried out.
    ChangesSkipped,
    /// A request refused before acceptance.
    Refusals,
    /// An `orbctl` process started, by the daemon or by a client that holds a lease.
    Spawns,
    /// A child process not started thanks to the cache, a join, or a change that already held.
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

    /// Returns one sentence on what it counts.
    pub fn help(self) -> &'static str {
        match self {
            Self::CacheHits => "Reads answered from the cache.",
            Self::CacheMisses => "Reads that the cache could not answer.",
            Self::Joins => "Jobs that shared another's invocation.",
            Self::ChangesSkipped => "Changes that already held and were not carried out.",
            Self::Refusals => "Requests refused before acceptance.",
            Self::Spawns => "Child processes started.",
            Self::SpawnsSaved => {
                "Child processes not started thanks to the cache, a join or a change that already held."
            }
            Self::Connections => "Connections accepted.",
        }
    }
}

/// Where the store stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreState {
    /// Closed: nothing to do, or nothing done yet.
    Closed,
    /// Open.
    Open,
    /// Cannot be used for now; records wait as long as there is room, and it is tried again.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What was counted since the daemon started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    values: [u64; Counter::ALL.len()],
    /// Records handed to [`Metrics::record`].
    pub recorded: u64,
    /// Of them: lost because the store was away for too long.
    pub dropped: u64,
    /// Of them: waiting for the store.
    pub buffered: u64,
    /// Where the store stands.
    pub store: StoreState,
    /// The folder in use, once one was opened.
    pub store_folder: Option<PathBuf>,
    /// Where the last damaged store was put.
    pub set_aside: Option<PathBuf>,
}

impl Counters {
    /// Returns one counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }
}

/// Why a question about the past has no answer. The daemon is well regardless.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The store did not answer in time.
    #[error("the metrics store did not answer in time")]
    TimedOut,
    /// Too many questions wait already.
    #[error("too many questions wait for the metrics store")]
    Busy,
    /// The store cannot be used for now.
    #[error("the metrics store cannot be used: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// The daemon is stopping.
    #[error("the metrics store is closed")]
    Closed,
}

/// What to sum up. The default is all operations of all time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SummaryRequest {
    /// Operations that ended at this time or later, milliseconds since 1970.
    pub since_ms: u64,
    /// And before this time. Now or later means: everything there is.
    pub until_ms: u64,
    /// Only this verb.
    pub operation: Option<String>,
    /// Only this machine.
    pub machine: Option<String>,
    /// How rows are told apart.
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

/// How finely the edges of a window can be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WindowResolution {
    /// Anywhere: single records are kept.
    Record,
    /// At whole hours.
    Hour,
    /// At whole days.
    Day,
}

/// The operations of a window, summed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Where the window really begins: earlier than asked, at an hour or a day, where single records are no longer kept.
    pub since_ms: u64,
    /// Where it really ends; never later than now unless that was asked for.
    pub until_ms: u64,
    /// How finely its edges could be cut.
    pub resolution: WindowResolution,
    /// The rows, those with the most operations first; at most [`SERIES_MAX`] and one `other` per verb.
    pub rows: Vec<SummaryRow>,
}

/// Names one record in the history. Its text form is for clients to hand back.
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

/// The text is not a cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor: take one from an earlier page")]
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

/// Which end of the history comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Order {
    /// The newest.
    #[default]
    NewestFirst,
    /// The oldest.
    OldestFirst,
}

/// Which records are wanted: all, where nothing is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryFilter {
    /// Only operations that ended at this time or later, milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Only operations that ended before this time.
    pub until_ms: Option<u64>,
    /// Only this verb.
    pub operation: Option<String>,
    /// Only this machine.
    pub machine: Option<String>,
    /// Only clients of this name.
    pub client: Option<String>,
    /// Only this outcome.
    pub outcome: Option<OutcomeWord>,
}

impl HistoryFilter {
    /// Returns whether a record's fields, beside its time, decide.
    fn reads_records(&self) -> bool {
        self.operation.is_some() || self.machine.is_some() || self.client.is_some() || self.outcome.is_some()
    }

    /// Compares everything but the time, which the store's keys decide.
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

/// Which page of records to return.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRequest {
    /// Which records.
    pub filter: HistoryFilter,
    /// At most so many, at most [`HISTORY_PAGE_MAX`]. [`HistoryPage::next`] says whether there are more.
    pub limit: usize,
    /// Only records older than this one: the page after one that was newest first.
    pub before: Option<Cursor>,
    /// Only records newer than this one: the page after one that was oldest first, or what came since.
    pub after: Option<Cursor>,
    /// Which end comes first.
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
    /// The records, in the order asked for, each with its name.
    pub records: Vec<(Cursor, OperationRecord)>,
    /// Hand this back as `before` (newest first) or `after` (oldest first) for the next page; `None` when there is none.
    pub next: Option<Cursor>,
}

/// A question for the store.
struct Question {
    request: Request,
    reply: oneshot::Sender<Result<Response, StoreError>>,
}

/// What waits for the worker.
#[derive(Default)]
struct Inbox {
    records: Vec<OperationRecord>,
    /// Records that the worker took and could not yet hand over.
    held: usize,
    questions: VecDeque<Question>,
    /// No handle is left, or `shutdown` was called.
    closing: bool,
    /// The worker ended.
    closed: bool,
}

/// What handle and worker share.
struct Shared {
    inbox: Mutex<Inbox>,
    woken: Condvar,
    values: [AtomicU64; Counter::ALL.len()],
    recorded: AtomicU64,
    dropped: AtomicU64,
    status: Mutex<StoreStatus>,
}

/// What [`Counters`] tells of the store.
struct StoreStatus {
    state: StoreState,
    folder: Option<PathBuf>,
    set_aside: Option<PathBuf>,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // Nothing that can panic runs under it, and half a push is still an inbox.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> MutexGuard<'_, StoreStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the worker when the last handle is gone.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.inbox().closing = true;
        self.0.woken.notify_all();
    }
}

/// A handle to the metrics; clones share all.
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
    /// Starts the worker and returns at once; the store is opened when there is something to write or to ask.
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
            tracing::error!(%error, "the metrics thread cannot be started: nothing is recorded");
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

    /// Hands a record over. Never waits: without room the record is dropped and counted.
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
        // The first one sets the worker's clock, a full batch calls it early; the others cost no wakeup.
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

    /// Returns what was counted since the daemon started.
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

    /// Sums up the operations that ended within a window, with everything recorded before this call.
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

    /// Returns one page of records, with everything recorded before this call.
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

    /// Begins an export of all records that match, oldest first. Nothing is held between chunks.
    pub fn export(&self, format: RecordFormat, filter: HistoryFilter) -> Export {
        Export::new(self.clone(), format, filter)
    }

    /// Writes counters and summaries in the Prometheus text exposition format 0.0.4.
    pub async fn prometheus_page(&self) -> String {
        export::prometheus_page(self).await
    }

    /// Returns the sums over all time.
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
        // Twice the limit: once for what is ahead of it (opening, a batch), once for itself.
        match tokio::time::timeout(QUESTION_LIMIT * 2, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(_) => Err(StoreError::TimedOut),
        }
    }

    /// Writes what waits, flushes and closes the store; gives up after `limit`, whatever the store does. Other handles stay
    /// valid: they record nothing more.
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
                "the metrics store did not close in time and is left behind"
            );
        }
    }
}

fn unexpected() -> StoreError {
    StoreError::Unavailable {
        reason: "the store's helper gave an unexpected answer".into(),
    }
}

#[cfg(test)]
mod tests;

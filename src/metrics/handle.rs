//! The handle through which the daemon records, counts and queries.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use super::counters::{Counter, Counters, StoreState};
use super::helper::{Request, Response};
use super::inbox::{BUFFER_HIGH, QUESTION_LIMIT, Question, Shared, StoreStatus};
use super::query::{HISTORY_PAGE_MAX, HistoryPage, HistoryRequest, StoreError, Summary, SummaryRequest};
use super::record::OperationRecord;
use super::rollup::SummaryRow;
use super::{Settings, worker};

/// Maximum number of records that wait for the store, about 3 MB. Further records are dropped and counted.
pub(super) const BUFFER_MAX: usize = 16_384;

/// Maximum number of queries that wait for the store.
const QUESTIONS_MAX: usize = 64;

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

    /// Returns the totals of all time, one row per operation and machine.
    pub(super) async fn totals(&self) -> Result<Vec<SummaryRow>, StoreError> {
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

    pub(super) async fn ask(&self, request: Request) -> Result<Response, StoreError> {
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

//! What the handles and the worker share: the buffer of records and queries, and the counters.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::counters::{Counter, StoreState};
use super::helper::{Request, Response};
use super::query::StoreError;
use super::record::OperationRecord;

/// Number of waiting records at which the worker writes to the store before its interval has passed.
pub(super) const BUFFER_HIGH: usize = 1_024;

/// Time limit for one query in the store.
pub(super) const QUESTION_LIMIT: Duration = Duration::from_secs(3);

/// A query that waits for the store, and the channel for its answer.
pub(super) struct Question {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Result<Response, StoreError>>,
}

/// Records and queries that wait for the worker.
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) records: Vec<OperationRecord>,
    /// Number of records that the worker has taken but not yet sent to the helper.
    pub(super) held: usize,
    pub(super) questions: VecDeque<Question>,
    /// Set when no handle is left or `shutdown` was called.
    pub(super) closing: bool,
    /// Set when the worker has ended.
    pub(super) closed: bool,
}

/// State shared by the handles and the worker.
pub(super) struct Shared {
    pub(super) inbox: Mutex<Inbox>,
    pub(super) woken: Condvar,
    pub(super) values: [AtomicU64; Counter::ALL.len()],
    pub(super) recorded: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) status: Mutex<StoreStatus>,
}

/// The part of `Counters` that describes the store.
pub(super) struct StoreStatus {
    pub(super) state: StoreState,
    pub(super) folder: Option<PathBuf>,
    pub(super) set_aside: Option<PathBuf>,
}

impl Shared {
    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // A poisoned lock is safe to use: no code that can panic runs under it.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> MutexGuard<'_, StoreStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

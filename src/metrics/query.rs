//! Queries of the metrics and their answers.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::record::{OperationRecord, OutcomeWord};
use super::rollup::{GroupBy, MachineLabel, Series, SummaryRow};

/// Maximum number of records in one page of history.
pub const HISTORY_PAGE_MAX: usize = 1_000;

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
    pub(super) fn matches(&self, series: &Series) -> bool {
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
    /// The rows, by number of operations in descending order. At most [`SERIES_MAX`](super::SERIES_MAX) rows with a machine's name, and
    /// one `other` per verb.
    pub rows: Vec<SummaryRow>,
}

/// Position of one record in the history. Clients get it as text and pass it back to request the next page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cursor {
    pub(super) ended_ms: u64,
    pub(super) seq: u32,
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
    /// Newest record first, as `metrics.history` returns them.
    #[default]
    NewestFirst,
    /// Oldest record first, as exports write them.
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
    pub(super) fn reads_records(&self) -> bool {
        self.operation.is_some() || self.machine.is_some() || self.client.is_some() || self.outcome.is_some()
    }

    /// Returns whether a record matches all fields except the times, which the store applies by key range.
    pub(super) fn matches(&self, record: &OperationRecord) -> bool {
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

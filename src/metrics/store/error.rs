//! Why the store failed.

use std::io;

use serde::{Deserialize, Serialize};

/// Why an operation of the database failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(in crate::metrics) enum Trouble {
    /// Another process has the store open.
    #[error("another process has the store open")]
    Locked,
    /// The cause is the disk or its permissions, not the store.
    #[error("{0}")]
    Unavailable(String),
    /// The store's contents cannot be trusted.
    #[error("{0}")]
    Damaged(String),
    /// The query exceeded its time limit.
    #[error("the query took too long")]
    TimedOut,
}

/// Returns whether the cause of an error is the disk, so that setting the store aside would not help.
pub(in crate::metrics) fn is_of_the_disk(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(
        error.kind(),
        PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull
    )
}

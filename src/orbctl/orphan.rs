//! Children that an earlier instance of the daemon left running.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::sys::{self, ChildIdentity};

/// Waits until a child has exited. If `stop` is cancelled, ends its process group: SIGTERM, and SIGKILL after the grace.
pub async fn orphan_gone(child: ChildIdentity, stop: &CancellationToken, grace: Duration) {
    if stop.run_until_cancelled(sys::gone(child)).await.is_some() {
        return;
    }
    sys::terminate_group(child);
    if tokio::time::timeout(grace, sys::gone(child)).await.is_err() {
        sys::kill_group(child);
        sys::gone(child).await;
    }
}

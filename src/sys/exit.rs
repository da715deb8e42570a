//! Waits for the exit of a process.

use std::io;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{ChildIdentity, exit_descriptor, is_alive};

/// Waits until a process has exited. It need not be a child; its exit status is left to its parent.
///
/// Waiting costs nothing, unless the kernel refuses to watch (descriptors exhausted, a kernel before 5.3). Then the process is
/// polled at intervals that grow to one second: reporting a running process as gone would free its lane.
pub async fn gone(identity: ChildIdentity) {
    if watch(&identity).await.is_ok() && !is_alive(&identity) {
        return;
    }
    let mut pause = Duration::from_millis(20);
    while is_alive(&identity) {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Waits until the process has exited. Fails if it cannot be watched or did not exist.
async fn watch(identity: &ChildIdentity) -> io::Result<()> {
    let descriptor = exit_descriptor(identity.pid)?;
    // Checked after the descriptor was opened: it refers to whichever process had the pid at that moment.
    if !is_alive(identity) {
        return Ok(());
    }
    #[expect(
        deprecated,
        reason = "deprecated because a type may close its descriptor early; an OwnedFd does not, and the replacement is unsafe"
    )]
    let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE)?;
    descriptor.readable().await?.retain_ready();
    Ok(())
}

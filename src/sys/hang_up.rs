//! Detects that the peer has closed a socket while nothing is read from it.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// The readiness that reports a full hang-up without also waking for data. Linux reports EPOLLHUP, which mio maps to read-closed,
/// for any interest. A half-close (EPOLLRDHUP) is reported only with EPOLLIN, which is not requested here. kqueue has no such
/// interest: there the write filter's `EV_EOF` reports the hang-up (`kqueue(2)`: set when the reader disconnects), at the price
/// of also waking when the socket becomes writable again.
#[cfg(target_os = "linux")]
const INTEREST: Interest = Interest::PRIORITY;
#[cfg(not(target_os = "linux"))]
const INTEREST: Interest = Interest::WRITABLE;

/// Watches one connection for a full hang-up. A half-close does not count.
#[derive(Debug)]
pub struct HangUp {
    /// A duplicate descriptor of the socket, so that its readiness is separate from that of reading and writing.
    descriptor: AsyncFd<OwnedFd>,
}

impl HangUp {
    /// Starts watching a connection.
    pub fn watch(stream: &UnixStream) -> io::Result<Self> {
        let descriptor = rustix::io::fcntl_dupfd_cloexec(stream, 0)?;
        #[expect(
            unsafe_code,
            reason = "tokio's safe constructor that takes an interest is deprecated"
        )]
        // SAFETY: the descriptor is owned, stays open until the `AsyncFd` is dropped, and never changes.
        let descriptor = unsafe { AsyncFd::register_with_interest(descriptor, INTEREST) }?;
        Ok(Self { descriptor })
    }

    /// Waits until both directions are closed or the socket has failed. Cancel-safe.
    pub async fn observed(&mut self) {
        loop {
            match self.descriptor.ready(INTEREST).await {
                Ok(mut ready) => {
                    let state = ready.ready();
                    let gone = if cfg!(target_os = "linux") {
                        state.is_read_closed()
                    } else {
                        state.is_write_closed()
                    };
                    if gone {
                        return;
                    }
                    ready.clear_ready();
                }
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn full_hang_up_is_detected_behind_unread_data_and_half_close_is_ignored() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let mut hang_up = HangUp::watch(&ours).expect("watch");
        theirs.write_all(b"unread").await.expect("write");
        theirs.shutdown().await.expect("half-close");
        tokio::select! {
            biased;
            () = hang_up.observed() => panic!("a half-close is not a hang-up"),
            () = async { for _ in 0..1000 { tokio::task::yield_now().await; } } => {}
        }
        drop(theirs);
        hang_up.observed().await;
    }
}

//! Sees the other end of a socket go away while nothing is read from it.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// Which readiness tells a full hang-up without also waking for data. Linux reports EPOLLHUP, which mio shows as closed for
/// reading, for any interest; a half-close (EPOLLRDHUP) it reports only with EPOLLIN, which is not asked for. kqueue has no such
/// interest: there the write filter's `EV_EOF` tells (`kqueue(2)`: set when the reader disconnects), at the price of waking when the socket becomes writable again.
#[cfg(target_os = "linux")]
const INTEREST: Interest = Interest::PRIORITY;
#[cfg(not(target_os = "linux"))]
const INTEREST: Interest = Interest::WRITABLE;

/// Watches one connection for a full hang-up. A half-close is not one.
#[derive(Debug)]
pub struct HangUp {
    /// A second descriptor of the same socket, so that its readiness is kept apart from that of reading and writing.
    descriptor: AsyncFd<OwnedFd>,
}

impl HangUp {
    /// Starts watching.
    pub fn watch(stream: &UnixStream) -> io::Result<Self> {
        let descriptor = rustix::io::fcntl_dupfd_cloexec(stream, 0)?;
        #[expect(
            unsafe_code,
            reason = "tokio's safe constructor cannot name an interest without being deprecated"
        )]
        // SAFETY: the descriptor is owned, stays open until the `AsyncFd` is dropped, and is always the same one.
        let descriptor = unsafe { AsyncFd::register_with_interest(descriptor, INTEREST) }?;
        Ok(Self { descriptor })
    }

    /// Returns when both directions are closed, or the socket failed. Cancel-safe.
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
    async fn a_full_hang_up_is_seen_behind_unread_data_and_a_half_close_is_not_one() {
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

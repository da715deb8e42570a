//! Waits for the end of a run, and ends it on request or at its time limit.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::job::Ending;

/// How long to read a silent pipe that another process holds open after the child has exited.
pub(super) const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// More than any pipe holds: once this much was read since the child exited, everything that the child wrote has been read.
const PIPE_MAX: u64 = 2 * 1024 * 1024;

/// What is supervised: a child process, or anything else that carries out a command and takes signals.
pub(super) trait Run {
    /// Waits until it has ended. Cancel-safe. Fails if it has ended, but how is unknown.
    fn ended(&mut self) -> impl Future<Output = io::Result<Ending>> + Send;

    /// Sends a signal to all of its processes. If there are none left, does nothing.
    fn signal(&mut self, signal: Signal);
}

/// The conditions under which orbd ends a run.
pub(super) struct Limits<'a> {
    pub(super) stop: &'a CancellationToken,
    pub(super) run_timeout: Option<Duration>,
    pub(super) grace: Duration,
}

/// Waits until a run has ended while its streams are drained and fed. Returns the ending and whether output was cut.
pub(super) async fn supervise(
    mut run: impl Run,
    limits: &Limits<'_>,
    progress: &Progress,
    draining: impl Future<Output = ()>,
    feeding: impl Future<Output = ()>,
) -> io::Result<(Ending, bool)> {
    let mut draining = pin!(draining);
    let mut feeding = pin!(Some(feeding));
    let mut run_limit = pin!(maybe_sleep(limits.run_timeout));
    let mut grace_over = pin!(None);
    let mut is_drained = false;
    let mut ended_by_us = None;
    let mut is_killed = false;
    // Stop and limits are polled before draining: a child that writes without pause must not delay a stop.
    let ending = loop {
        tokio::select! {
            biased;
            ending = run.ended() => break ending?,
            why = reason_to_end(limits.stop, run_limit.as_mut()), if ended_by_us.is_none() => {
                ended_by_us = Some(why);
                run.signal(Signal::TERM);
                grace_over.set(Some(tokio::time::sleep(limits.grace)));
            }
            () = done(grace_over.as_mut()), if grace_over.is_some() => {
                grace_over.set(None);
                is_killed = true;
                run.signal(Signal::KILL);
            }
            () = done(feeding.as_mut()), if feeding.is_some() => feeding.set(None),
            () = draining.as_mut(), if !is_drained => is_drained = true,
        }
    };
    // Dropping the feed closes the input channel, so its sender sees that the child has exited.
    feeding.set(None);

    let mut output_cut = false;
    let mut drain_limit = DrainLimit::new(progress);
    while !is_drained {
        tokio::select! {
            biased;
            () = draining.as_mut() => is_drained = true,
            _ = reason_to_end(limits.stop, run_limit.as_mut()), if ended_by_us.is_none() => {
                output_cut = true;
                break;
            }
            () = tokio::time::sleep(DRAIN_LIMIT) => {
                if ended_by_us.is_some() && !is_killed {
                    // The rest of the group received SIGTERM together with the child, long ago.
                    is_killed = true;
                    run.signal(Signal::KILL);
                } else if ended_by_us.is_some() || drain_limit.is_reached(progress) {
                    output_cut = true;
                    break;
                }
            }
        }
    }
    if ended_by_us.is_some() && !is_killed {
        // For group members that hold none of the child's streams. Pids are allocated sequentially, so an empty group's id is not
        // reused yet.
        run.signal(Signal::KILL);
    }
    Ok((ended_by_us.unwrap_or(ending), output_cut))
}

/// Waits for a stop or the time limit. Returns the ending that the child's termination is reported as.
async fn reason_to_end(stop: &CancellationToken, run_limit: impl Future<Output = ()>) -> Ending {
    tokio::select! {
        biased;
        () = stop.cancelled() => Ending::Stopped,
        () = run_limit => Ending::TimedOut,
    }
}

async fn maybe_sleep(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Waits for a future. If it was dropped already, never returns.
async fn done<F: Future<Output = ()>>(future: Pin<&mut Option<F>>) {
    match future.as_pin_mut() {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// State shared between the two drains and the loop that watches them.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes read from both pipes.
    pub(super) read: AtomicU64,
    /// Number of drains that currently wait for the spool; `waits` counts how often one began to wait.
    pub(super) waiting: AtomicU64,
    pub(super) waits: AtomicU64,
}

/// Decides when to stop reading after the child has exited. An interval in which a drain waited for the spool does not count,
/// because the child's own bytes may still be in the pipe, unless more was read than a pipe holds.
struct DrainLimit {
    read: u64,
    waits: u64,
}

impl DrainLimit {
    fn new(progress: &Progress) -> Self {
        Self {
            read: progress.read.load(Ordering::Relaxed),
            waits: progress.waits.load(Ordering::Relaxed),
        }
    }

    fn is_reached(&mut self, progress: &Progress) -> bool {
        let waits = progress.waits.load(Ordering::Relaxed);
        let has_waited = progress.waiting.load(Ordering::Relaxed) > 0 || waits != self.waits;
        self.waits = waits;
        !has_waited || progress.read.load(Ordering::Relaxed) - self.read > PIPE_MAX
    }
}

//! Supervises upgrades: runs the preflight of a replaced binary, waits until the daemon is idle, and begins the upgrade. Stops a daemon
//! whose program was deleted once it is unused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::dispatcher::Dispatcher;
use crate::server::context;
use crate::sys::FileId;
use crate::upgrade::{BinaryWatcher, PreflightError, Program, Step, UpgradeState, preflight};
use orbd_host::error_chain::error_chain;

/// How often to look for the program if no client connects, so that a daemon without users does not outlive its program for long.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(3600);
/// How long the program must be missing before the daemon stops. A package manager replaces it in less time.
const ABSENCE_MIN: Duration = Duration::from_secs(5);

/// The task that supervises upgrades, with what it needs.
pub(super) struct UpgradeSupervisor {
    pub(super) program: Program,
    pub(super) watcher: Arc<BinaryWatcher>,
    /// Notified on each reload, which allows a refused file another preflight.
    pub(super) reloaded: Arc<Notify>,
    pub(super) dispatcher: Dispatcher,
    pub(super) report: watch::Sender<Option<context::Upgrade>>,
    /// Number of open connections.
    pub(super) connections: Arc<AtomicUsize>,
    /// Cancelled to stop the daemon.
    pub(super) stop: CancellationToken,
}

impl UpgradeSupervisor {
    /// Runs until an upgrade begins or the dispatcher stops. Returns whether an upgrade has begun.
    pub(super) async fn run(self) -> bool {
        let mut state = UpgradeState::new(self.program.stamp);
        // Whether the pending file had disappeared or changed when the upgrade was about to begin. Set until the next check or reload.
        let mut is_missing = false;
        let mut absence = Absence::new(Moment::now().instant);
        loop {
            let pending = state.pending().filter(|_| !is_missing);
            tokio::select! {
                biased;
                () = self.dispatcher.gone() => return false,
                () = self.watcher.changed() => {
                    is_missing = false;
                    absence.look(self.is_absent(), Moment::now().instant);
                }
                () = tokio::time::sleep_until(absence.next.into()) => {
                    if absence.look(self.is_absent(), Moment::now().instant) && self.is_unused().await {
                        tracing::info!(program = %self.program.path.display(), "the program was deleted and no client is connected; stopping");
                        self.stop.cancel();
                        return false;
                    }
                }
                () = self.reloaded.notified() => {
                    is_missing = false;
                    state.retry();
                }
                Some(()) = self.dispatcher.wait_idle(), if pending.is_some() => {
                    // The file may have been replaced again, unnoticed if no client has connected since.
                    if FileId::of(&self.program.path) != pending {
                        is_missing = true;
                        self.watcher.forget();
                    } else if self.dispatcher.begin_upgrade().await {
                        return true;
                    }
                }
            }
            self.look(&mut state).await;
            self.watcher.checked();
        }
    }

    /// Returns whether there is no file at the program's path.
    fn is_absent(&self) -> bool {
        FileId::of(&self.program.path).is_none()
    }

    /// Returns whether a stop would be unnoticed: no client is connected, no job waits or runs, and no pause would be lost.
    async fn is_unused(&self) -> bool {
        let queue = self.dispatcher.queue_view().await;
        self.connections.load(Ordering::Relaxed) == 0
            && queue.waiting + queue.running == 0
            && self.dispatcher.busy().await.is_none()
    }

    /// Checks the file at the program's path until it needs no further action.
    async fn look(&self, state: &mut UpgradeState) {
        loop {
            match state.on_file(FileId::of(&self.program.path)) {
                Step::Nothing => return,
                Step::Withdraw => {
                    tracing::info!("upgrade withdrawn: the running program is back at its path");
                    self.report.send_replace(None);
                }
                Step::Check(stamp) => {
                    let noticed = Moment::now();
                    if self.is_reinstalled(stamp).await {
                        if FileId::of(&self.program.path) == Some(stamp) {
                            state.on_same_contents();
                            self.report.send_replace(None);
                            tracing::info!(
                                "the program was reinstalled with the same contents; nothing to do"
                            );
                        }
                        continue;
                    }
                    let result = preflight(&self.program).await;
                    if FileId::of(&self.program.path) != Some(stamp) {
                        // The file changed during its preflight, so the result is about another file.
                        continue;
                    }
                    if matches!(result, Err(PreflightError::Busy)) {
                        // The file is still open for writing, and closing it does not change its `FileId`. Forget it: the next check
                        // then notifies.
                        state.retry();
                        self.watcher.forget();
                        return;
                    }
                    state.on_preflight(result.is_ok());
                    let path = self.program.path.display();
                    match &result {
                        Ok(version) => tracing::info!(
                            program = %path,
                            version,
                            "the program was replaced; the new one takes over when the daemon is idle"
                        ),
                        Err(error) => tracing::warn!(
                            program = %path,
                            error = error_chain(error),
                            "the program was replaced, but the new one failed its preflight; the old one keeps running"
                        ),
                    }
                    let preflight = result.map_err(|error| error_chain(&error));
                    self.report
                        .send_replace(Some(context::Upgrade { noticed, preflight }));
                }
            }
        }
    }

    /// Returns whether the file at the path has the contents of the running program.
    async fn is_reinstalled(&self, stamp: FileId) -> bool {
        if stamp.size != self.program.stamp.size {
            return false;
        }
        let program = self.program.clone();
        let compared = tokio::task::spawn_blocking(move || program.has_same_contents()).await;
        // A file that cannot be read has its preflight, whose error says why.
        matches!(compared, Ok(Ok(true)))
    }
}

/// When to look for the program, and since when it is missing.
struct Absence {
    next: Instant,
    since: Option<Instant>,
}

impl Absence {
    fn new(now: Instant) -> Self {
        Self {
            next: now + PRESENCE_INTERVAL,
            since: None,
        }
    }

    /// Records whether the program is missing now. Returns whether it has been missing for [`ABSENCE_MIN`].
    fn look(&mut self, is_absent: bool, now: Instant) -> bool {
        if !is_absent {
            *self = Self::new(now);
            return false;
        }
        let since = *self.since.get_or_insert(now);
        self.next = now + ABSENCE_MIN;
        now - since >= ABSENCE_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn program_counts_as_deleted_only_after_it_was_missing_for_a_while() {
        let start = Moment::now().instant;
        let mut absence = Absence::new(start);
        assert_eq!(absence.next, start + PRESENCE_INTERVAL);
        assert!(!absence.look(true, start), "it may be being replaced");
        assert_eq!(absence.next, start + ABSENCE_MIN);
        assert!(!absence.look(false, start + ABSENCE_MIN), "it was");
        assert_eq!(absence.next, start + ABSENCE_MIN + PRESENCE_INTERVAL);
        let later = start + PRESENCE_INTERVAL;
        assert!(!absence.look(true, later));
        assert!(!absence.look(true, later + ABSENCE_MIN / 2));
        assert!(absence.look(true, later + ABSENCE_MIN));
        assert!(absence.look(true, later + ABSENCE_MIN * 2), "it still is");
    }
}

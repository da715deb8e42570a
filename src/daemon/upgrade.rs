//! Supervises upgrades: runs the preflight of a replaced binary, waits until the daemon is idle, and begins the upgrade.

use std::sync::Arc;

use tokio::sync::{Notify, watch};

use crate::clock::Moment;
use crate::dispatcher::Dispatcher;
use crate::server::context;
use crate::sys::FileId;
use crate::upgrade::{BinaryWatcher, PreflightError, Program, Step, UpgradeState, preflight};
use orbd_host::error_chain::error_chain;

/// The task that supervises upgrades, with what it needs.
pub(super) struct UpgradeSupervisor {
    pub(super) program: Program,
    pub(super) watcher: Arc<BinaryWatcher>,
    /// Notified on each reload, which allows a refused file another preflight.
    pub(super) reloaded: Arc<Notify>,
    pub(super) dispatcher: Dispatcher,
    pub(super) report: watch::Sender<Option<context::Upgrade>>,
}

impl UpgradeSupervisor {
    /// Runs until an upgrade begins or the dispatcher stops. Returns whether an upgrade has begun.
    pub(super) async fn run(self) -> bool {
        let mut state = UpgradeState::new(self.program.stamp);
        // Whether the pending file had disappeared or changed when the upgrade was about to begin. Set until the next check or reload.
        let mut is_missing = false;
        loop {
            let pending = state.pending().filter(|_| !is_missing);
            tokio::select! {
                biased;
                () = self.dispatcher.gone() => return false,
                () = self.watcher.changed() => is_missing = false,
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
        }
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
}

//! Supervises upgrades: runs the preflight of a replaced program, waits for an idle moment, and begins the upgrade.

use std::sync::Arc;

use tokio::sync::{Notify, watch};

use crate::clock::Moment;
use crate::dispatcher::Dispatcher;
use crate::error_chain::error_chain;
use crate::rpc::server;
use crate::sys::FileId;
use crate::upgrade::{BinaryWatcher, PreflightError, Program, Step, UpgradeState, preflight};

/// What supervising takes.
pub(super) struct UpgradeSupervisor {
    pub(super) program: Program,
    pub(super) watcher: Arc<BinaryWatcher>,
    /// A reload, which also tries a refused file again.
    pub(super) reloaded: Arc<Notify>,
    pub(super) dispatcher: Dispatcher,
    pub(super) report: watch::Sender<Option<server::Upgrade>>,
}

impl UpgradeSupervisor {
    /// Runs until an upgrade has begun, or until the dispatcher is gone; returns whether one has begun.
    pub(super) async fn run(self) -> bool {
        let mut state = UpgradeState::new(self.program.stamp);
        // The pending file was missing when it was to be executed; the next check finds out more.
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
                    // No client may have connected since it was replaced again.
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

    /// Looks at the file until there is nothing new about it.
    async fn look(&self, state: &mut UpgradeState) {
        loop {
            match state.on_file(FileId::of(&self.program.path)) {
                Step::Nothing => return,
                Step::Withdraw => {
                    tracing::info!("the running program is back at its path; nothing takes over");
                    self.report.send_replace(None);
                }
                Step::Check(stamp) => {
                    let noticed = Moment::now();
                    let result = preflight(&self.program).await;
                    if FileId::of(&self.program.path) != Some(stamp) {
                        // It is still being written, so the preflight was of another file.
                        continue;
                    }
                    if matches!(result, Err(PreflightError::Busy)) {
                        // Closing it changes nothing about the file, so no check would notify.
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
                        .send_replace(Some(server::Upgrade { noticed, preflight }));
                }
            }
        }
    }
}

//! Runs a lease: a job whose `orbctl` is a process of the client.
//!
//! A lease has two processes. The **child** becomes `orbctl`; the slot is free when it has exited. The **owner** acquired the lease
//! and reports how the child ended. A caller with a deadline may kill only the owner, with SIGKILL, which the owner cannot forward.
//! So if the owner exits without a release, orbd kills the child. Only the exit of the process counts: a closed connection ends
//! nothing.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::job::{Ending, Failure, Outcome, Phase, Success};
use crate::operation::{Class, JobInfo};
use crate::orbctl::Orbctl;
use crate::sys;

use super::run_job::{JobResult, Work, how_cut};
use super::submission::{LeaseProcesses, Release, Released};

/// How long a live owner has to release the lease after the child has exited.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

/// Watches the two processes of a lease and receives the release.
struct LeaseWatch {
    processes: LeaseProcesses,
    child_exit: Pin<Box<dyn Future<Output = ()> + Send>>,
    owner_exit: Pin<Box<dyn Future<Output = ()> + Send>>,
    has_owner_exited: bool,
    /// `None` once the channel has yielded a release or was closed.
    receiver: Option<oneshot::Receiver<Release>>,
    release: Option<Release>,
}

impl LeaseWatch {
    fn new(processes: LeaseProcesses, receiver: oneshot::Receiver<Release>) -> Self {
        Self {
            processes,
            child_exit: Box::pin(sys::gone(processes.child)),
            owner_exit: Box::pin(sys::gone(processes.owner)),
            has_owner_exited: false,
            receiver: Some(receiver),
            release: None,
        }
    }

    /// Waits until the child has exited, and kills it if the owner exits without a release. Cancel-safe. Must not be called again
    /// after it has returned.
    async fn child_gone(&mut self) {
        loop {
            tokio::select! {
                biased;
                () = &mut self.child_exit => return,
                release = received(&mut self.receiver) => self.release = release,
                () = &mut self.owner_exit, if self.release.is_none() && !self.has_owner_exited => {
                    self.has_owner_exited = true;
                    tracing::info!(
                        owner = self.processes.owner.pid,
                        child = self.processes.child.pid,
                        "lease owner exited without releasing the lease; killing its child"
                    );
                    // A child of orbd-ctl or of the drop-in leads no process group, so only the child is killed, as with `orbctl`
                    // itself.
                    sys::kill_group(self.processes.child);
                }
            }
        }
    }

    /// Ends the child as a cancelled command is ended: SIGTERM, and SIGKILL after the grace.
    async fn end_child(&mut self, grace: Duration) {
        sys::terminate(self.processes.child);
        if tokio::time::timeout(grace, self.child_gone()).await.is_err() {
            sys::kill(self.processes.child);
            self.child_gone().await;
        }
    }

    /// Waits for the release after the child has exited. Does not wait for an owner that has exited.
    async fn into_release(mut self) -> Option<Release> {
        if self.release.is_some() {
            return self.release;
        }
        if self.has_owner_exited {
            // The release may have arrived after the owner's exit was handled.
            return self.receiver?.try_recv().ok();
        }
        tokio::select! {
            biased;
            release = received(&mut self.receiver) => release,
            () = &mut self.owner_exit => None,
            () = tokio::time::sleep(RELEASE_WAIT) => None,
        }
    }
}

/// Waits for the release. Once the channel has yielded or closed, later calls stay pending. Cancel-safe.
async fn received(receiver: &mut Option<oneshot::Receiver<Release>>) -> Option<Release> {
    let Some(pending) = receiver else {
        return std::future::pending().await;
    };
    let release = pending.await.ok();
    *receiver = None;
    release
}

impl<O: Orbctl> Work<O> {
    /// Holds the slot until the child has exited, whatever happens to the client.
    pub(super) async fn lease(
        &self,
        processes: LeaseProcesses,
        release: oneshot::Receiver<Release>,
    ) -> JobResult {
        let mut watch = LeaseWatch::new(processes, release);
        let limit = async {
            match self.spec.run_timeout {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let cut = tokio::select! {
            biased;
            () = watch.child_gone() => None,
            () = self.stop.cancelled() => Some(Outcome::Cancelled(Phase::Running)),
            () = limit => Some(Outcome::Expired(Phase::Running)),
        };
        if cut.is_some() {
            watch.end_child(self.settings.grace).await;
        }
        let release = watch.into_release().await;
        let reported = release.as_ref().and_then(|release| release.ending);
        let info = &self.spec.info;
        let outcome = leased(info, reported, cut.clone());
        if let Some(release) = release {
            let has_succeeded = matches!(outcome, Some(Outcome::Succeeded(_)));
            // The client may have stopped waiting for the reply.
            let _ = release.reply.send(Released {
                signalled: cut.clone().filter(|_| !has_succeeded),
                preempted_by: release.preempted_by,
                is_reconciling: outcome.is_none(),
            });
        }
        let outcome = if let Some(outcome) = outcome {
            outcome
        } else {
            // The child has exited, but OrbStack's service may still be carrying out its request.
            let cut = match (cut, reported) {
                (Some(Outcome::Expired(_)), _) => how_cut(Ending::TimedOut),
                (Some(_), _) => how_cut(Ending::Stopped),
                (None, Some(ending)) => how_cut(ending),
                (None, None) => "the client did not report how orbctl ended".to_owned(),
            };
            self.reconcile().await.outcome(info, None, &cut)
        };
        let mut finished = JobResult::new(outcome);
        finished.ending = reported;
        finished.exit_code = match reported {
            Some(Ending::Exited(exit_code)) => Some(exit_code),
            _ => None,
        };
        finished
    }
}

/// Returns the outcome of a lease from the ending that its owner reported (`reported`) and the reason why orbd cut it short (`cut`), if
/// it did. `None` if only the inventory can show the outcome.
fn leased(info: &JobInfo, reported: Option<Ending>, cut: Option<Outcome>) -> Option<Outcome> {
    let is_change = info.is_change();
    let exited = |exit_code| Some(Outcome::Succeeded(Success::Exec { exit_code }));
    match (reported, cut) {
        (Some(Ending::Exited(0)), _) if is_change => {
            // The state before the change was not observed. An idempotent operation also succeeds if nothing had to be done.
            let changed = (!info.goal.is_idempotent()).then_some(true);
            Some(Outcome::Succeeded(Success::Lease { changed }))
        }
        (_, Some(_)) | (None | Some(Ending::Signalled(_) | Ending::TimedOut | Ending::Stopped), None)
            if is_change =>
        {
            None
        }
        (_, Some(cut)) => Some(cut),
        (Some(Ending::Exited(exit_code)), None) if info.has_own_exit_code() => exited(exit_code),
        // Shells report a signal as 128 + its number. A signal is the normal end of a session: Ctrl-C, or a closed terminal.
        (Some(Ending::Signalled(signal)), None) if info.class == Class::Session => exited(128 + signal),
        (Some(Ending::Exited(0)), None) => Some(Outcome::Succeeded(Success::Lease { changed: None })),
        (Some(Ending::Exited(exit_code)), None) => Some(Outcome::Failed(Failure::OrbctlFailed {
            exit_code,
            stderr_tail: "".into(),
        })),
        (Some(Ending::Signalled(signal)), None) => Some(Outcome::Failed(Failure::OrbctlKilled {
            signal,
            stderr_tail: "".into(),
        })),
        // An owner cannot report these endings: they apply only to children of orbd.
        (None | Some(Ending::TimedOut | Ending::Stopped), None) => Some(Outcome::Interrupted),
    }
}

//! Runs a lease: a job whose tool a client's own process runs.
//!
//! Two processes matter. The **child** runs the tool; the slot is free when it is gone. The **owner** asked for the lease and says how
//! the child ended. A caller with a deadline kills the owner alone with SIGKILL, which the owner cannot pass on; so orbd does it: an
//! owner that exits without a release ends its child. Only the exit of the process counts: a closed connection ends nothing.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::job::{Ending, Failure, Outcome, Phase, Success};
use crate::operation::{Class, ClientAction, Effect, Operation, RawQuery};
use crate::orbctl::Orbctl;
use crate::sys;

use super::handle::{LeaseProcesses, Release, Released};
use super::reconcile;
use super::run_job::{JobResult, Work, how_cut};

/// How long a living owner has to say how its child ended, after the child is gone.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

/// Watches the processes of a lease, and receives its release.
struct LeaseWatch {
    processes: LeaseProcesses,
    child_exit: Pin<Box<dyn Future<Output = ()> + Send>>,
    owner_exit: Pin<Box<dyn Future<Output = ()> + Send>>,
    has_owner_exited: bool,
    /// Until it yielded something.
    receiver: Option<oneshot::Receiver<Release>>,
    release: Option<Release>,
}

impl LeaseWatch {
    fn new(processes: LeaseProcesses, receiver: Option<oneshot::Receiver<Release>>) -> Self {
        Self {
            processes,
            child_exit: Box::pin(sys::gone(processes.child)),
            owner_exit: Box::pin(sys::gone(processes.owner)),
            has_owner_exited: false,
            receiver,
            release: None,
        }
    }

    /// Waits until the child is gone, and kills it if the owner exits without a release. Cancel-safe; not to be called after it
    /// has returned.
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
                        "the owner of a lease exited without releasing it; its child is killed"
                    );
                    // A child of ours or of the drop-in leads no group, so it is killed alone, as the tool itself would have been.
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

    /// Returns the release, once the child is gone. An owner that has exited is not waited for.
    async fn into_release(mut self) -> Option<Release> {
        if self.release.is_some() {
            return self.release;
        }
        if self.has_owner_exited {
            // It may have been received between the exit and now.
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

/// Waits for what a receiver yields: once, and then never again. Cancel-safe.
async fn received(receiver: &mut Option<oneshot::Receiver<Release>>) -> Option<Release> {
    let Some(pending) = receiver else {
        return std::future::pending().await;
    };
    let release = pending.await.ok();
    *receiver = None;
    release
}

impl<O: Orbctl> Work<O> {
    /// Holds the slot until the child is gone, whatever happens to its client and to us.
    pub(super) async fn lease(&mut self, processes: LeaseProcesses) -> JobResult {
        let mut watch = LeaseWatch::new(processes, self.release.take());
        let limit = async {
            match self.spec.asked.run_timeout {
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
            watch.end_child(self.limits.grace).await;
        }
        let release = watch.into_release().await;
        let told = release.as_ref().and_then(|release| release.ending);
        let operation = &self.spec.asked.operation;
        let outcome = leased(operation, told, cut.clone());
        if let Some(release) = release {
            let has_succeeded = matches!(outcome, Some(Outcome::Succeeded(_)));
            // A client that no longer waits for the answer misses nothing.
            let _ = release.reply.send(Released {
                signalled: cut.clone().filter(|_| !has_succeeded),
                preempted_by: release.preempted_by,
                is_reconciling: outcome.is_none(),
            });
        }
        let outcome = if let Some(outcome) = outcome {
            outcome
        } else {
            // The child is gone, but what it told OrbStack's service to do may go on.
            let cut = match (cut, told) {
                (Some(Outcome::Expired(_)), _) => how_cut(Ending::TimedOut),
                (Some(_), _) => how_cut(Ending::Stopped),
                (None, Some(ending)) => how_cut(ending),
                (None, None) => "the client did not report how orbctl ended".to_owned(),
            };
            self.reconcile().await.outcome(operation, None, &cut)
        };
        let mut finished = JobResult::new(outcome);
        finished.ending = told;
        finished.exit_code = match told {
            Some(Ending::Exited(exit_code)) => Some(exit_code),
            _ => None,
        };
        finished
    }
}

/// Says what the end of a client's own process means: how it ended by its owner's word, and what we cut it short for, if we did.
/// `None` where only the inventory can tell.
fn leased(operation: &Operation, told: Option<Ending>, cut: Option<Outcome>) -> Option<Outcome> {
    let is_change = matches!(operation.effect(), Effect::Changes(_));
    let is_command = matches!(
        operation,
        Operation::ClientAction(
            ClientAction::Run(_) | ClientAction::Shell(_) | ClientAction::Read(RawQuery::Status)
        )
    );
    let exited = |exit_code| Some(Outcome::Succeeded(Success::Exec { exit_code }));
    match (told, cut) {
        (Some(Ending::Exited(0)), _) if is_change => {
            // Nobody looked before: of what may have held already, success does not say that it did not.
            let changed = (!reconcile::is_idempotent(operation)).then_some(true);
            Some(Outcome::Succeeded(Success::Lease { changed }))
        }
        (_, Some(_)) | (None | Some(Ending::Signalled(_) | Ending::TimedOut | Ending::Stopped), None)
            if is_change =>
        {
            None
        }
        (_, Some(cut)) => Some(cut),
        // A code other than zero is the command's own answer, as it is of those that we run; and `status` says with it that OrbStack
        // is stopped.
        (Some(Ending::Exited(exit_code)), None) if is_command => exited(exit_code),
        // As shells tell it: whoever closes a terminal or interrupts a log ends it in the way that it is meant to be ended.
        (Some(Ending::Signalled(signal)), None) if operation.class() == Class::Session => {
            exited(128 + signal)
        }
        (Some(Ending::Exited(0)), None) => Some(Outcome::Succeeded(Success::Lease { changed: None })),
        (Some(Ending::Exited(exit_code)), None) => Some(Outcome::Failed(Failure::OrbctlFailed {
            exit_code,
            stderr_tail: "".into(),
        })),
        (Some(Ending::Signalled(signal)), None) => Some(Outcome::Failed(Failure::OrbctlKilled {
            signal,
            stderr_tail: "".into(),
        })),
        // Its owner cannot say these: they are said of children of ours.
        (None | Some(Ending::TimedOut | Ending::Stopped), None) => Some(Outcome::Interrupted),
    }
}

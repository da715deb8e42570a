//! Runs a lease: a job whose tool a client's own process runs.

use std::time::Duration;

use crate::job::{Ending, Failure, Outcome, Phase, Success};
use crate::operation::{Class, Effect, Leased, Operation, Verbatim};
use crate::orbctl::Orbctl;
use crate::sys::{self, ChildIdentity};

use super::run_job::{Finished, Work, how_cut};
use super::settle;

/// How long the owner of a lease has to say how its process ended, after it is gone.
const RELEASE_WAIT: Duration = Duration::from_secs(2);

impl<O: Orbctl> Work<O> {
    /// Holds the place for the client's process until that process is gone, whoever else dies.
    pub(super) async fn lease(&mut self, identity: ChildIdentity) -> Finished {
        let gone = sys::gone(identity);
        tokio::pin!(gone);
        let released = self.release.take();
        let limit = async {
            match self.spec.asked.run_timeout {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let cut = tokio::select! {
            () = &mut gone => None,
            () = self.stop.cancelled() => Some(Outcome::Cancelled(Phase::Running)),
            () = limit => Some(Outcome::Expired(Phase::Running)),
        };
        if cut.is_some() {
            end_process(identity, self.limits.grace).await;
        }
        // The process is gone, so its owner can say how it ended; one that does not say so soon never will.
        let told = match released {
            Some(release) => tokio::time::timeout(RELEASE_WAIT, release)
                .await
                .ok()
                .and_then(Result::ok)
                .flatten(),
            None => None,
        };
        let operation = &self.spec.asked.operation;
        let outcome = if let Some(outcome) = leased(operation, told, cut.clone()) {
            outcome
        } else {
            // Its process is gone, but what it told OrbStack's service to do may go on.
            let cut = match (cut, told) {
                (Some(Outcome::Expired(_)), _) => how_cut(Ending::TimedOut),
                (Some(_), _) => how_cut(Ending::Stopped),
                (None, Some(ending)) => how_cut(ending),
                (None, None) => "the client did not report how orbctl ended".to_owned(),
            };
            self.settle().await.outcome(operation, None, &cut)
        };
        let mut finished = Finished::new(outcome);
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
        Operation::Leased(Leased::Run(_) | Leased::Shell(_) | Leased::Read(Verbatim::Status))
    );
    let exited = |exit_code| Some(Outcome::Succeeded(Success::Exec { exit_code }));
    match (told, cut) {
        (Some(Ending::Exited(0)), _) if is_change => {
            // Nobody looked before: of what may have held already, success does not say that it did not.
            let changed = (!settle::is_idempotent(operation)).then_some(true);
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

/// Ends a process that is not our child, politely and then not, and waits until it is gone.
async fn end_process(identity: ChildIdentity, grace: Duration) {
    sys::terminate(identity);
    if tokio::time::timeout(grace, sys::gone(identity)).await.is_err() {
        sys::kill(identity);
        sys::gone(identity).await;
    }
}

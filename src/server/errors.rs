//! Converts rejections, failures and other outcomes of jobs to errors.

use super::convert::{ms, waiting_for};
use crate::clock::{Moment, unix_ms};
use crate::dispatcher::{ReadError, Refusal, Rejection, WaitingFor};
use crate::job::{Failure, JobId, Outcome, Phase};
use crate::operation::{JobInfo, Query};
use orbd_host::machine::{MachineName, MachineState};
use orbd_proto::errors::ErrorKind;
use orbd_proto::types::{self, ErrorObject};

/// Retry delay during an upgrade: the next instance starts within milliseconds, and new connections wait for it.
const UPGRADE_RETRY_AFTER_MS: u64 = 100;

/// Converts a rejection to an error.
pub(super) fn rejection(rejection: &Rejection) -> ErrorObject {
    match rejection {
        Rejection::Refused(
            Refusal::QueueFull { retry_after, .. } | Refusal::ClientQueueFull { retry_after, .. },
        )
        | Rejection::OperandsFull { retry_after, .. } => {
            let mut data = ErrorKind::QueueFull.data();
            data.retry_after_ms = Some(ms(*retry_after));
            ErrorKind::QueueFull.with(rejection.to_string(), data)
        }
        Rejection::Unhealthy(outage) => {
            let retry_after_ms = ms(outage.retry_after);
            let text = format!("{rejection}; try again in {retry_after_ms} ms, or use force");
            let mut data = ErrorKind::OrbctlUnhealthy.data();
            data.retry_after_ms = Some(retry_after_ms);
            ErrorKind::OrbctlUnhealthy.with(text, data)
        }
        Rejection::ClientGone => {
            let mut data = ErrorKind::JobCancelled.data();
            data.phase = Some("queued".into());
            ErrorKind::JobCancelled.with(rejection.to_string(), data)
        }
        Rejection::Refused(Refusal::Draining { .. }) | Rejection::Stopping => {
            ErrorKind::Draining.error(rejection.to_string())
        }
        Rejection::Upgrading => {
            let mut data = ErrorKind::Draining.data();
            data.retry_after_ms = Some(UPGRADE_RETRY_AFTER_MS);
            ErrorKind::Draining.with(rejection.to_string(), data)
        }
        Rejection::Journal(_) => ErrorKind::JournalUnavailable.error(rejection.to_string()),
    }
}

/// Converts the error of a read.
pub(super) fn read_error(error: &ReadError, query: &Query) -> ErrorObject {
    match error {
        ReadError::Rejected(refused) => rejection(refused),
        ReadError::Ended { id, outcome, holder } => {
            outcome_error(outcome, *id, &JobInfo::read(query), holder.as_ref())
        }
    }
}

/// Retry delay after a job failed because `orbctl` is unhealthy: the first probe starts within a second. An earlier retry is refused with a
/// more precise delay.
const UNHEALTHY_RETRY_AFTER_MS: u64 = 1000;

/// Logs a bug in orbd and returns an error with the incident number of the log line.
pub(super) fn internal(what: &str) -> ErrorObject {
    let incident = format!("{:x}", unix_ms(Moment::now().wall));
    tracing::error!(incident, what, "internal error");
    let mut data = ErrorKind::Internal.data();
    data.incident = Some(incident.clone());
    ErrorKind::Internal.with(
        format!("internal error in orbd; see incident {incident} in its log"),
        data,
    )
}

/// Returns the error for an outcome other than success. `holder_seen` is what the job waited for, or the job that preempted it.
pub(super) fn outcome_error(
    outcome: &Outcome,
    id: JobId,
    info: &JobInfo,
    holder_seen: Option<&WaitingFor>,
) -> ErrorObject {
    let verb = info.verb.as_str();
    let what = match &info.machine {
        Some(machine) => format!("{verb} {machine}"),
        None => verb.to_owned(),
    };
    let start = |kind: ErrorKind| {
        let mut data = kind.data();
        data.job_id = Some(id.0);
        data.machine = info.machine.as_ref().map(MachineName::to_string);
        data
    };
    let phase_word = |phase: &Phase| match phase {
        Phase::Queued => "queued".to_owned(),
        Phase::Running => "running".to_owned(),
    };
    match outcome {
        Outcome::Succeeded(_) => internal("a successful outcome was treated as an error"),
        Outcome::Failed(failure) => failure_error(failure, &what, start),
        Outcome::Cancelled(phase) => {
            let mut data = start(ErrorKind::JobCancelled);
            data.phase = Some(phase_word(phase));
            let mut text = match phase {
                Phase::Queued => format!("job {id} ({what}) was cancelled before it started"),
                Phase::Running => format!("job {id} ({what}) was cancelled while it ran"),
            };
            if let Some(force) = holder_seen {
                let holder = waiting_for(force);
                text = format!("{text}: preempted by {}", holder.description);
                data.waiting_for = Some(holder);
            }
            ErrorKind::JobCancelled.with(text, data)
        }
        Outcome::Expired(phase) => {
            let mut data = start(ErrorKind::DeadlineExceeded);
            data.phase = Some(phase_word(phase));
            let text = match (phase, holder_seen) {
                (Phase::Queued, Some(waiting)) => {
                    let holder = waiting_for(waiting);
                    let text = format!(
                        "job {id} ({what}) exceeded its queue timeout while waiting for {}",
                        holder.description
                    );
                    data.waiting_for = Some(holder);
                    text
                }
                (Phase::Queued, None) => format!("job {id} ({what}) exceeded its queue timeout"),
                (Phase::Running, _) => {
                    format!("job {id} ({what}) exceeded its run timeout and was ended")
                }
            };
            ErrorKind::DeadlineExceeded.with(text, data)
        }
        Outcome::Interrupted => ErrorKind::JobInterrupted.with(
            format!("job {id} ({what}) was interrupted: orbd or the client exited while it ran"),
            start(ErrorKind::JobInterrupted),
        ),
        Outcome::Unknown(sighting) => {
            let mut data = start(ErrorKind::OutcomeUnknown);
            let seen = match (sighting.satisfied, sighting.stable) {
                (Some(true), _) => "the requested state was observed, but may have existed before",
                (Some(false), true) => "the requested state was not observed",
                (Some(false), false) => "it may still be under way",
                (None, _) => "its result could not be determined",
            };
            data.observed = Some(types::ReconcileReport {
                stable: sighting.stable,
                satisfied: sighting.satisfied,
                machine_state: sighting.machine_state.as_deref().map(str::to_owned),
            });
            let text = format!("job {id} ({what}) was interrupted: {seen}; check before you try again");
            ErrorKind::OutcomeUnknown.with(text, data)
        }
    }
}

/// Returns the reason in an error text of `orbctl`, for a sentence that already has the operation: without the code of its internal
/// protocol, as in `[-32098] create 'web': unknown distro`, and without the operation and the machine.
fn reason_of<'a>(what: &str, stderr_tail: &'a str) -> &'a str {
    let text = stderr_tail.trim();
    let without_code = text.strip_prefix('[').and_then(|rest| {
        let (code, rest) = rest.split_once("] ")?;
        code.parse::<i64>().is_ok().then_some(rest)
    });
    let text = without_code.unwrap_or(text);
    let repeated = text
        .split_once(": ")
        .filter(|(before, _)| before.replace('\'', "") == what);
    repeated.map_or(text, |(_, reason)| reason)
}

fn failure_error(
    failure: &Failure,
    what: &str,
    start: impl Fn(ErrorKind) -> types::ErrorData,
) -> ErrorObject {
    let text = failure.to_string();
    match failure {
        Failure::MachineNotFound(name) => {
            let mut data = start(ErrorKind::MachineNotFound);
            data.machine = Some(name.to_string());
            ErrorKind::MachineNotFound.with(text, data)
        }
        Failure::MachineExists(name) => {
            let mut data = start(ErrorKind::MachineExists);
            data.machine = Some(name.to_string());
            ErrorKind::MachineExists.with(text, data)
        }
        Failure::MachineWrongState { machine, state } => {
            let mut data = start(ErrorKind::MachineWrongState);
            data.machine = Some(machine.to_string());
            // A machine that is changing state will soon be in another one.
            data.retryable = matches!(MachineState::from_word(state), MachineState::Busy(_));
            data.machine_state = Some(state.to_string());
            ErrorKind::MachineWrongState.with(text, data)
        }
        Failure::NoLogs { machine, .. } => {
            let mut data = start(ErrorKind::MachineWrongState);
            data.machine = Some(machine.to_string());
            ErrorKind::MachineWrongState.with(text, data)
        }
        Failure::ConfigKeyNotFound(_) => {
            let mut data = start(ErrorKind::InvalidParams);
            data.field = Some("key".into());
            ErrorKind::InvalidParams.with(text, data)
        }
        Failure::OrbctlUnavailable(_) => {
            ErrorKind::OrbctlUnavailable.with(text, start(ErrorKind::OrbctlUnavailable))
        }
        Failure::OrbctlFailed {
            exit_code,
            stderr_tail,
        } => {
            let mut data = start(ErrorKind::OrbctlFailed);
            data.exit_code = Some(*exit_code);
            data.stderr_tail = Some(stderr_tail.to_string());
            let how = match exit_code {
                1 => "failed".to_owned(),
                code => format!("failed with exit code {code}"),
            };
            let reason = reason_of(what, stderr_tail);
            let text = if reason.is_empty() {
                format!("{what} {how}; orbctl printed no error")
            } else {
                format!("{what} {how}: {reason}")
            };
            ErrorKind::OrbctlFailed.with(text, data)
        }
        Failure::OrbctlKilled { signal, stderr_tail } => {
            let mut data = start(ErrorKind::OrbctlKilled);
            data.signal = Some(*signal);
            data.stderr_tail = Some(stderr_tail.to_string());
            ErrorKind::OrbctlKilled.with(format!("{what}: {text}"), data)
        }
        Failure::OrbctlUnhealthy(_) => {
            let mut data = start(ErrorKind::OrbctlUnhealthy);
            data.retry_after_ms = Some(UNHEALTHY_RETRY_AFTER_MS);
            ErrorKind::OrbctlUnhealthy.with(format!("{what}: {text}"), data)
        }
        Failure::OrbctlOutputUnreadable(_) => ErrorKind::OrbctlOutputUnreadable.with(
            format!("{what}: {text}"),
            start(ErrorKind::OrbctlOutputUnreadable),
        ),
        Failure::JournalUnavailable(_) => {
            ErrorKind::JournalUnavailable.with(text, start(ErrorKind::JournalUnavailable))
        }
        Failure::ChannelBroken { machine, .. } => {
            let mut data = start(ErrorKind::JobInterrupted);
            data.machine = Some(machine.to_string());
            ErrorKind::JobInterrupted.with(format!("{what}: {text}"), data)
        }
        Failure::Internal(cause) => internal(&format!("{what}: {cause}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_repeats_neither_code_nor_operation() {
        let check = |what: &str, tail: &str, expected: &str| assert_eq!(reason_of(what, tail), expected);
        check(
            "create x",
            "[-32098] create 'x': unknown distro: 'y'\n",
            "unknown distro: 'y'",
        );
        check(
            "config_set",
            "[-32098] unknown config key: 'k'",
            "unknown config key: 'k'",
        );
        check("start x", "[oops] no", "[oops] no");
        check("start x", "stop 'x': no", "stop 'x': no");
        check("start x", "one\ntwo", "one\ntwo");
        check("start x", " \n", "");
    }
}

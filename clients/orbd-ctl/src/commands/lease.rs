//! Runs the real `orbctl` in this client under a lease, for operations on the Mac's files or the terminal.
//!
//! The daemon never opens the Mac's files, because it does not have the privacy permissions of a terminal. Therefore the client runs
//! the real tool itself, but only while it holds a lease. The lease belongs to the process that does the work:
//!
//! ```text
//! orbd-ctl push                  child                       orbd
//!   |-- forks ----------------------->| reads a pipe          |
//!   |-- lease.acquire {pid of the child} -------------------->| queues the lease,
//!   |<------------------------------- path of orbctl ---------| stores pid and start time
//!   |-- path, arguments ------------->| execs orbctl          |
//!   |<------------------- exit code --|                       |
//!   |-- lease.release {exit code} --------------------------->| releases the lanes
//! ```
//!
//! [`crate::lease_child`] implements the child and the messages to it.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use orbd_client::Client;
use orbd_host::run_command::Call;
use orbd_host::sys::MARKER;
use orbd_proto::errors::ErrorKind;
use orbd_proto::methods::{JobWait, LeaseAcquire, LeaseRelease, MachineList};
use orbd_proto::types::{
    Job, JobStateWord, JobWaitParams, LeaseOperation, ReadParams, ReleaseAnswer, ReleaseParams,
};
use rustix::process::Signal;

use super::targets;
use crate::context::{Context, JobFlags, request, wait_with_progress};
use crate::error::{CliError, exit};
use crate::interrupt::Interrupt;
use crate::lease_child::{self, LeaseChild, Start, Tool};
use crate::progress::{Progress, Wait};
use crate::render;

/// A lease to acquire.
pub(super) struct LeaseRequest {
    /// The operation to run under the lease.
    pub(super) operation: LeaseOperation,
    /// Name of the operation in job lists.
    pub(super) verb: &'static str,
    /// Name or id of the machine.
    pub(super) machine: String,
    /// Which process uses the terminal meanwhile.
    pub(super) terminal: Terminal,
    /// Message after success; `None` for a tool with output of its own.
    pub(super) done: Option<String>,
}

/// Which process handles the keys of the terminal while the real tool runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Terminal {
    /// This client: Ctrl-C interrupts the tool, and a second Ctrl-C also ends the client.
    Ours,
    /// The tool: all input, including Ctrl-C, is for the program that runs in it.
    Its,
}

/// Acquires a lease and runs the real `orbctl` with `arguments`. Returns the exit code of `orbctl`. `arguments` is called with the
/// machine's name, because the user may have given an id where `orbctl` accepts only names.
pub(super) fn carry_out<C: Into<Call>>(
    context: &mut Context,
    request: LeaseRequest,
    job_flags: &JobFlags,
    arguments: impl FnOnce(&str) -> C,
) -> Result<ExitCode, CliError> {
    let LeaseRequest {
        operation,
        verb,
        machine,
        terminal,
        done,
    } = request;
    let child = start_child(context)?;
    let interrupt = Interrupt::watch()?;
    let mut client = match context.connect() {
        Ok(client) => client,
        Err(error) => {
            child.dismiss();
            return Err(error);
        }
    };
    let params = request!(
        job_flags,
        LeaseParams {
            operation,
            pid: child.pid(),
            machine: Some(machine.clone()),
            machine_names: Vec::new(),
            new_name: None,
            force: false,
            read: None,
            unknown_form: None,
        }
    );
    let mut progress = Progress::new(&context.link, Wait::Ours(verb, format!("{verb} {machine}")));
    let granted = client
        .start::<LeaseAcquire>(&params)
        .map_err(CliError::from)
        .and_then(|mut pending| {
            wait_with_progress(&mut pending, &interrupt, &mut progress, &mut context.console)
        });
    drop(progress);
    let lease = match granted {
        Ok(lease) => lease,
        Err(error) => {
            child.dismiss();
            return Err(error);
        }
    };
    if terminal == Terminal::Its {
        interrupt.let_pass()?;
    }
    let mut call: Call = arguments(lease.machine_names.first().unwrap_or(&machine)).into();
    call.env.push((MARKER.into(), lease.marker.into()));
    let child = child.grant(&Tool {
        program: lease.orbctl.clone().into(),
        name: lease.orbctl.into(),
        variables: call.env,
        arguments: call.args,
    });
    let status = lease_child::wait(child).map_err(|source| CliError::Local {
        what: "cannot wait for orbctl".into(),
        source,
    })?;
    let released = release(context, &mut client, lease.job_id, status);
    if status.code() == Some(1)
        && names_existing(operation)
        && let Some(error) = not_found(context, &machine)
    {
        return Err(error);
    }
    // The tool has written to our stdout, so print nothing more there.
    if terminal == Terminal::Its {
        return Ok(ExitCode::from(code_of(status)));
    }
    if interrupt.came() {
        context.console.eprint("orbctl was interrupted");
    } else if let (Some(signal), Some(answer)) = (status.signal(), &released)
        && let Some(error) = cut_short(&end_of(&mut client, &answer.job), signal)
    {
        // The outcome of a change has the resulting state, but not the reason for the signal; print the reason too.
        if let Some(why) = &answer.signalled
            && error.kind() == Some(ErrorKind::OutcomeUnknown)
        {
            context.console.eprint(&why.message);
        }
        return Err(error);
    }
    // For `run`, `done` is `None`: nothing is added to the command's output.
    if let (Some(answer), Some(done)) = (released, done) {
        context
            .console
            .answer(&answer, |answer, _| match answer.job.run_us {
                _ if !status.success() => String::new(),
                Some(us) => format!("{done} (took {})\n", render::duration_us(us)),
                None => format!("{done}\n"),
            })?;
    }
    Ok(ExitCode::from(code_of(status)))
}

/// Forks the child that will exec the tool. Returns only in the parent.
#[expect(clippy::exit, reason = "the child must not continue as its parent does")]
fn start_child(context: &mut Context) -> Result<LeaseChild, CliError> {
    match LeaseChild::start() {
        Ok(Start::Parent(child)) => Ok(child),
        Ok(Start::Child(granted)) => {
            let code = granted.exec(|problem| context.console.eprint(problem));
            std::process::exit(i32::from(code))
        }
        Err(source) => Err(CliError::Local {
            what: "cannot start the helper process".into(),
            source,
        }),
    }
}

/// Returns whether the machine of an operation must exist before.
fn names_existing(operation: LeaseOperation) -> bool {
    !matches!(operation, LeaseOperation::Create | LeaseOperation::Import)
}

/// Returns the error for a machine that does not exist. The tool exits with 1 then, as it does for other reasons, and its text is not
/// reliable; so this reads the list, after the failure and not before each call.
fn not_found(context: &Context, machine: &str) -> Option<CliError> {
    let mut client = context.link.side_connection()?;
    let now = ReadParams { max_age_ms: Some(0) };
    let answer = client.call::<MachineList>(&now).ok()?;
    let is_known = answer.observed.stale
        || answer
            .machines
            .iter()
            .any(|known| known.name == machine || known.id == machine);
    if is_known {
        return None;
    }
    Some(targets::not_found(machine))
}

/// Returns the error if the daemon ended the tool: a time limit expired, or another client cancelled the job.
fn cut_short(job: &Job, signal: i32) -> Option<CliError> {
    let by_the_daemon = [Signal::TERM, Signal::KILL].map(Signal::as_raw).contains(&signal);
    let error = CliError::Refused(job.outcome.as_ref()?.error.clone()?);
    let by_the_daemon = by_the_daemon
        && matches!(
            error.kind(),
            Some(ErrorKind::DeadlineExceeded | ErrorKind::JobCancelled | ErrorKind::OutcomeUnknown)
        );
    by_the_daemon.then_some(error)
}

/// Waits until a job has ended: after an interrupted change, orbd first reconciles its result. Returns `job` itself if the call fails.
fn end_of(client: &mut Client, job: &Job) -> Job {
    let params = JobWaitParams {
        job_id: job.job_id,
        timeout_ms: None,
    };
    match job.state {
        JobStateWord::Ended => job.clone(),
        JobStateWord::Waiting | JobStateWord::Running => client
            .call::<JobWait>(&params)
            .map_or_else(|_| job.clone(), |answer| answer.job),
    }
}

/// Releases the lease. Errors are ignored: the daemon also releases the lease when the child exits.
fn release(context: &Context, client: &mut Client, job_id: u64, status: ExitStatus) -> Option<ReleaseAnswer> {
    let params = ReleaseParams {
        job_id,
        exit_code: status.code(),
        signal: status.signal(),
    };
    let answer = client.call::<LeaseRelease>(&params).or_else(|error| {
        // The connection was idle while the tool ran, and the daemon may have closed it.
        *client = context.link.side_connection().ok_or(error)?;
        client.call::<LeaseRelease>(&params)
    });
    answer.ok()
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(exit::FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_of_a_signal_is_128_plus_its_number() {
        assert_eq!(code_of(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code_of(ExitStatus::from_raw(9)), 137);
    }
}

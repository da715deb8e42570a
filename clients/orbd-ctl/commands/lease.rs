//! Work that the real `orbctl` does for us on the Mac's files, in a place of the queue.
//!
//! The daemon never opens the Mac's files: it lacks the privacy rights that a terminal has. So the client runs the real
//! tool itself, but only while it holds a place in the queue, and that place belongs to the process that does the work:
//!
//! ```text
//! orbd-ctl push            orbd-ctl lease-exec (child)      orbd
//!   |-- starts --------------->| waits on its input           |
//!   |-- lease.acquire {pid of the child} -------------------->| waits in the queue,
//!   |<------------------------------- path of orbctl ---------| remembers pid and start time
//!   |-- path, arguments, our input -->| becomes orbctl        |
//!   |<------------------- exit code --|                       |
//!   |-- lease.release {exit code} ------------------------->| the place is free
//! ```
//!
//! [`crate::waiting_child`] has the child and how it is told.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use orbd::client::Client;
use orbd::orbctl::argv::Call;
use orbd::rpc::api::{JobWait, LeaseAcquire, LeaseRelease};
use orbd::rpc::errors::ErrorKind;
use orbd::rpc::types::{Job, JobStateWord, JobWaitParams, LeaseOperation, ReleaseAnswer, ReleaseParams};
use orbd::sys::MARKER;
use rustix::process::Signal;

use crate::context::{Context, JobFlags, request, wait_with_progress};
use crate::error::{CliError, exit};
use crate::interrupt::Interrupt;
use crate::progress::{Progress, Wait};
use crate::render;
use crate::waiting_child::WaitingChild;

/// A place in the queue that is wanted.
pub(super) struct Place {
    /// What for.
    pub(super) operation: LeaseOperation,
    /// Its verb in job lists.
    pub(super) verb: &'static str,
    /// Name or id of the machine.
    pub(super) machine: String,
    /// Whose the terminal is meanwhile.
    pub(super) terminal: Terminal,
    /// Said when it was done, where the tool itself says nothing.
    pub(super) done: Option<String>,
}

/// Whose the terminal is while the real tool runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Terminal {
    /// Ours: Ctrl-C interrupts the tool, and a second one ends us too.
    Ours,
    /// The tool's: whatever is typed is for what runs in it.
    Its,
}

/// Runs the real `orbctl` with `arguments` in a place of the queue; the exit code is its own. `arguments` is told the
/// machine's name, in case an id was typed where `orbctl` takes only names.
pub(super) fn carry_out<C: Into<Call>>(
    context: &mut Context,
    place: Place,
    job_flags: &JobFlags,
    arguments: impl FnOnce(&str) -> C,
) -> Result<ExitCode, CliError> {
    let Place {
        operation,
        verb,
        machine,
        terminal,
        done,
    } = place;
    let interrupt = Interrupt::watch()?;
    let mut client = context.connect()?;
    let child = WaitingChild::start().map_err(|source| CliError::Local {
        what: "cannot start ourselves a second time".into(),
        source,
    })?;
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
    let mut child = child.grant(lease.orbctl.as_ref(), &call);
    let status = child.wait().map_err(|source| CliError::Local {
        what: "cannot wait for orbctl".into(),
        source,
    })?;
    let released = release(context, &mut client, lease.job_id, status);
    // What has the terminal has our stdout too, and whoever reads that did not ask for a job in it.
    if terminal == Terminal::Its {
        return Ok(ExitCode::from(code_of(status)));
    }
    if interrupt.came() {
        context.console.eprint("orbctl was interrupted");
    } else if let (Some(signal), Some(answer)) = (status.signal(), &released)
        && let Some(error) = cut_short(&end_of(&mut client, &answer.job), signal)
    {
        // Of a change the outcome tells what came of it, but not why it was cut short.
        if let Some(why) = &answer.signalled
            && error.kind() == Some(ErrorKind::OutcomeUnknown)
        {
            context.console.eprint(&why.message);
        }
        return Err(error);
    }
    // What a command writes is its own, so nothing is said of it.
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

/// Returns why the daemon ended the tool, where it did: a limit passed, or somebody cancelled the job.
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

/// Waits for the end of a job: of a change that was cut short orbd looks what came of it. As it is where orbd cannot be asked.
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

/// Releases the lease. That the child is gone is enough for the daemon, so nothing here is a reason to fail.
fn release(context: &Context, client: &mut Client, job_id: u64, status: ExitStatus) -> Option<ReleaseAnswer> {
    let params = ReleaseParams {
        job_id,
        exit_code: status.code(),
        signal: status.signal(),
    };
    let answer = client.call::<LeaseRelease>(&params).or_else(|error| {
        // It was idle for as long as the copy took, and may have been closed for that.
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
    fn a_signal_is_told_as_shells_tell_it() {
        assert_eq!(code_of(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code_of(ExitStatus::from_raw(9)), 137);
    }
}

//! Requests a lease from orbd and runs the real tool under it.
//!
//! **Calls inside a job.** A process that runs in a job, and its descendants, have `ORBD_JOB` in their environment. A call from such a
//! process takes no lanes and shares no reads, to avoid a deadlock: the job does not end before the call does, and may hold the lane
//! that the call would wait for, or be queued before a job that holds it. So the call runs as `other`, or as a read whose output the tool
//! prints itself; neither waits for other jobs. A marker of a job that has ended is ignored.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use orbd_client::{CallError, Client, Sent};
use orbd_host::sys::MARKER;
use orbd_proto::errors::ErrorKind;
use orbd_proto::methods::{JobGet, LeaseAcquire, LeaseRead, LeaseRelease, Method};
use orbd_proto::types::{
    JobParams, JobStateWord, LeaseAnswer, LeaseOperation, LeaseParams, LeaseReadParams, RawOutputAnswer,
    RawRead, RawStream, ReleaseParams,
};
use rustix::event::{PollFd, PollFlags};
use signal_hook::consts::SIGPIPE;

use super::guard::{Ended, Guard};
use super::plan::{self, LeaseRequest, Plan};
use super::{Invocation, REFUSED, Settings, refuse};
use crate::args::{Global, millis};
use crate::console::{Console, now};
use crate::error::CliError;
use crate::error::exit::FAILED;
use crate::lease_child::{LeaseChild, Start};
use crate::link::{self, Link};
use crate::progress::{Progress, Wait};

/// The client name that orbd shows in job lists and records.
const CLIENT_NAME: &str = "orbctl";

/// How often a wait updates its progress message.
const TICK: Duration = Duration::from_secs(1);

/// Timeout of the call that releases the lease.
const RELEASE_MAX: Duration = Duration::from_secs(2);

/// Timeout of the same call after a signal terminated the tool.
const RELEASE_CUT_MAX: Duration = Duration::from_millis(250);

/// Why the tool did not run under a lease.
enum Failed {
    /// The daemon is not running, or unreachable, or speaks another protocol.
    NoDaemon(CliError),
    /// The daemon has not found the tool.
    NoTool,
    /// The daemon does not support the request, or does not know the machine. The tool itself reports the error.
    Unsupported,
    /// The daemon cannot forward the tool's output, for example because it is too large.
    OutputUnavailable,
    /// The daemon refused the request, or the job ended before the tool ran.
    Refused(String),
}

impl From<CliError> for Failed {
    fn from(error: CliError) -> Self {
        match error.kind() {
            Some(
                ErrorKind::InvalidParams
                | ErrorKind::MachineNotFound
                | ErrorKind::MethodNotFound
                | ErrorKind::InvalidRequest,
            ) => Self::Unsupported,
            Some(ErrorKind::OrbctlUnavailable) => Self::NoTool,
            Some(ErrorKind::OrbctlOutputUnreadable) => Self::OutputUnavailable,
            Some(_) => Self::Refused(error.to_string()),
            // An unknown error kind of a newer daemon is a refusal too.
            None if matches!(error, CliError::Refused(_)) => Self::Refused(error.to_string()),
            None => Self::NoDaemon(error),
        }
    }
}

/// Runs one invocation of the tool.
pub(super) fn carry_out(invocation: &Invocation, settings: &Settings, began: Instant) -> ExitCode {
    let (input, output) = (io::stdin().is_terminal(), io::stdout().is_terminal());
    let plan = plan::plan(invocation.called, &invocation.arguments, input && output);
    if plan == Plan::Untouched {
        return invocation.pass_through(settings);
    }
    match attempt(invocation, settings, plan, began) {
        Ok(code) => code,
        Err(Failed::Refused(why)) => refuse(&why, REFUSED),
        Err(failed) if settings.strict => refuse(
            &format!("{failed}; orbctl was not run because ORBD_STRICT is set"),
            REFUSED,
        ),
        Err(_) => invocation.pass_through(settings),
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDaemon(error) => error.fmt(f),
            Self::NoTool => f.write_str("orbd has not found orbctl"),
            Self::Unsupported => f.write_str("orbd does not support this request"),
            Self::OutputUnavailable => f.write_str("orbd cannot forward the output of orbctl"),
            Self::Refused(why) => f.write_str(why),
        }
    }
}

fn attempt(
    invocation: &Invocation,
    settings: &Settings,
    plan: Plan,
    began: Instant,
) -> Result<ExitCode, Failed> {
    let link = Link::resolve(&Global::default(), settings.environment.clone()).map_err(Failed::NoDaemon)?;
    let client = link.dial().map_err(Failed::NoDaemon)?;
    let mut session = Session {
        invocation,
        settings,
        link: &link,
        client,
        instance: None,
    };
    let is_inside = session.is_inside();
    match plan {
        Plan::Read(read) if !is_inside && !prints_on_a_terminal() => {
            match session.ask::<LeaseRead>(&read_params(&read, settings, began)) {
                Ok(raw_output) => Ok(print_output(&raw_output)),
                // The tool prints its output itself.
                Err(Failed::OutputUnavailable) => session.lease(of_read(read)),
                Err(Failed::Unsupported) => session.lease(of(LeaseOperation::Other)),
                Err(failed) => Err(failed),
            }
        }
        Plan::Read(read) => session.lease(of_read(read)),
        Plan::Lease(request) if !is_inside => session.lease(of_request(request)),
        Plan::Lease(_) | Plan::Other | Plan::Untouched => session.lease(of(LeaseOperation::Other)),
    }
}

/// Returns whether stdout or stderr is a terminal. The tool may format its output differently there, so it prints it itself.
fn prints_on_a_terminal() -> bool {
    io::stdout().is_terminal() || io::stderr().is_terminal()
}

fn read_params(read: &RawRead, settings: &Settings, began: Instant) -> LeaseReadParams {
    // An answer that was read after our start is as fresh as one that the tool itself would read.
    let max_age = settings.max_age.max(now() - began);
    LeaseReadParams {
        read: read.clone(),
        max_age_ms: Some(millis(max_age)),
    }
}

fn of(operation: LeaseOperation) -> LeaseParams {
    LeaseParams {
        operation,
        ..LeaseParams::default()
    }
}

fn of_read(read: RawRead) -> LeaseParams {
    LeaseParams {
        read: Some(read),
        ..of(LeaseOperation::Read)
    }
}

fn of_request(request: LeaseRequest) -> LeaseParams {
    LeaseParams {
        machine: request.machine,
        machine_names: request.machines,
        new_name: request.new_name,
        force: request.force,
        unknown_form: request.unknown_form,
        ..of(request.operation)
    }
}

/// An invocation with its connection to orbd.
struct Session<'a> {
    invocation: &'a Invocation,
    settings: &'a Settings,
    link: &'a Link,
    client: Client,
    /// Instance of the daemon; `None` before the greeting.
    instance: Option<String>,
}

impl Session<'_> {
    /// Returns whether an ancestor process runs in a job that has not ended.
    fn is_inside(&mut self) -> bool {
        let Some(job_id) = self.settings.above else {
            return false;
        };
        let asked = self.ask::<JobGet>(&JobParams { job_id });
        asked.is_ok_and(|answer| answer.job.state != JobStateWord::Ended)
    }

    /// Makes a call and waits for its answer. The first call is sent in one message with the greeting, which saves a round trip. If the
    /// daemon speaks another protocol the answer is not used, and a lease that it granted ends when the child exits.
    fn ask<M: Method>(&mut self, params: &M::Params) -> Result<M::Answer, Failed> {
        let sent = if self.instance.is_some() {
            self.client.send_one::<M>(params).map_err(CliError::from)?
        } else {
            let mut switch = link::SwitchWait::default();
            let (hello, sent) = loop {
                match link::greet_and_ask::<M>(&mut self.client, &self.link.socket, CLIENT_NAME, params) {
                    Ok(greeted) => break greeted,
                    Err(error) if switch.is_worth_another_try(&error) => {
                        self.client = self.link.dial().map_err(Failed::NoDaemon)?;
                    }
                    Err(error) => return Err(Failed::NoDaemon(error)),
                }
            };
            self.instance = Some(hello.instance);
            sent
        };
        self.answer(&sent)
    }

    /// Waits for an answer without a timeout: orbd enforces the limits.
    fn answer<M: Method>(&mut self, sent: &Sent<M>) -> Result<M::Answer, Failed> {
        let mut progress = self.settings.verbose.then(|| {
            (
                Progress::new(self.link, Wait::All("orbctl")),
                Console::of_process(&self.settings.environment, false),
            )
        });
        loop {
            if let Some(answer) = self.client.fetch(sent, TICK).map_err(CliError::from)? {
                return Ok(answer);
            }
            if let Some((progress, console)) = &mut progress {
                progress.tick(console);
            }
        }
    }

    /// Acquires a lease, runs the tool under it, and releases it.
    fn lease(mut self, mut params: LeaseParams) -> Result<ExitCode, Failed> {
        let child = match LeaseChild::start() {
            Ok(Start::Parent(child)) => child,
            Ok(Start::Child(granted)) => {
                // Closes the child's copy of the connection: orbd detects that the parent has exited by the end of the connection.
                drop(self);
                let code = granted.exec(|problem| {
                    refuse(problem, REFUSED);
                });
                return Ok(ExitCode::from(code));
            }
            Err(error) => return Err(Failed::Refused(format!("cannot start a process: {error}"))),
        };
        params.pid = child.pid();
        let ready = self.acquire(&params).and_then(|lease| {
            let orbctl = Path::new(&lease.orbctl);
            let program = self
                .invocation
                .finder
                .named(self.invocation.called, orbctl)
                .map_err(|missing| Failed::Refused(missing.to_string()))?;
            let guard = Guard::begin()
                .map_err(|error| Failed::Refused(format!("cannot listen for signals: {error}")))?;
            Ok((lease, program, guard))
        });
        let (lease, program, guard) = match ready {
            Ok(ready) => ready,
            Err(failed) => {
                child.dismiss();
                return Err(failed);
            }
        };
        let marker = (OsString::from(MARKER), OsString::from(lease.marker));
        let ended = guard.watch(child.grant(&self.invocation.tool(&program, vec![marker])));
        self.release(lease.job_id, ended);
        Ok(ended.repeat())
    }

    /// Acquires a lease. If orbd does not support the request, acquires one for `other`, which takes no lanes, so that the tool reports
    /// the error.
    fn acquire(&mut self, params: &LeaseParams) -> Result<LeaseAnswer, Failed> {
        match self.ask::<LeaseAcquire>(params) {
            Err(Failed::Unsupported) if params.operation != LeaseOperation::Other => self
                .ask::<LeaseAcquire>(&LeaseParams {
                    pid: params.pid,
                    ..of(LeaseOperation::Other)
                }),
            other => other,
        }
    }

    /// Releases the lease with the result of the tool. Errors are ignored: orbd also releases the lease when the tool exits.
    fn release(&mut self, job_id: u64, ended: Ended) {
        let (exit_code, signal, patience) = match ended {
            Ended::Exited(code) => (Some(code), None, RELEASE_MAX),
            // The caller may have a deadline, and the answer only adds the reason if orbd sent the signal.
            Ended::Signalled(signal) => (None, Some(signal), RELEASE_CUT_MAX),
        };
        let params = ReleaseParams {
            job_id,
            exit_code,
            signal,
        };
        let release = |client: &mut Client| {
            client.set_timeout(Some(patience)).map_err(CallError::Lost)?;
            client.call::<LeaseRelease>(&params)
        };
        let released = match release(&mut self.client) {
            // The connection was idle while the tool ran, and the daemon may have closed it.
            Err(CallError::Lost(error)) if !is_timeout(&error) => self
                .link
                .side_connection()
                .and_then(|mut client| release(&mut client).ok()),
            other => other.ok(),
        };
        if let Some(why) = released.and_then(|answer| answer.signalled) {
            refuse(&why.message, REFUSED);
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Prints the output that orbd read from the tool, and ends as the tool did.
fn print_output(raw_output: &RawOutputAnswer) -> ExitCode {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    for (stream, bytes) in [
        (stdout.as_fd(), &raw_output.stdout),
        (stderr.as_fd(), &raw_output.stderr),
    ] {
        if let Err(error) = write(stream, bytes) {
            return match error.kind() {
                io::ErrorKind::BrokenPipe => Ended::Signalled(SIGPIPE).repeat(),
                _ => refuse(&format!("cannot write the output of orbctl: {error}"), FAILED),
            };
        }
    }
    match (raw_output.exit_code, raw_output.signal) {
        (_, Some(signal)) => Ended::Signalled(signal).repeat(),
        (code, None) => Ended::Exited(code.unwrap_or(i32::from(REFUSED))).repeat(),
    }
}

/// Writes all bytes, bypassing the standard library's buffers.
fn write(stream: BorrowedFd<'_>, bytes: &RawStream) -> io::Result<()> {
    let decoded;
    let mut rest = match (&bytes.text, &bytes.base64) {
        (Some(text), _) => text.as_bytes(),
        (None, Some(base64)) => {
            decoded = BASE64.decode(base64).map_err(io::Error::other)?;
            &decoded
        }
        (None, None) => &[],
    };
    while !rest.is_empty() {
        match rustix::io::write(stream, rest) {
            Ok(written) => rest = &rest[written..],
            Err(rustix::io::Errno::INTR) => {}
            // Our caller's descriptor may be non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                let mut ready = [PollFd::from_borrowed_fd(stream, PollFlags::OUT)];
                let _ = rustix::event::poll(&mut ready, None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

//! Asks orbd, and lets the real tool run in the place that it gives.
//!
//! **Called from inside of a place.** A process that runs in a place, and what it starts, has `ORBD_JOB` in its environment. Such a call
//! takes no lane and shares nothing: whoever started it holds a place until it ends, and may hold the very lane that it would wait
//! for, or stand before somebody who does. So it runs as what orbd has no word for, or as a read that the tool itself prints; both
//! wait for nobody. A marker of a job that is over counts for nothing: it was left behind in somebody's environment.

use std::fmt;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use orbd::client::{CallError, Client, Sent};
use orbd::rpc::api::{JobGet, LeaseAcquire, LeaseRead, LeaseRelease, Method};
use orbd::rpc::errors::ErrorKind;
use orbd::rpc::types::{
    JobParams, JobStateWord, LeaseAnswer, LeaseOperation, LeaseParams, LeaseReadParams, Printed,
    RawOutputAnswer, RawRead, ReleaseParams,
};
use rustix::event::{PollFd, PollFlags};
use signal_hook::consts::SIGPIPE;

use super::child::{RealTool, Start};
use super::guard::{Ended, Guard};
use super::words::{self, Place, Plan};
use super::{Invocation, REFUSED, Settings, refuse};
use crate::args::{Global, millis};
use crate::console::{Console, now};
use crate::error::CliError;
use crate::error::exit::FAILED;
use crate::link::{self, Link};
use crate::progress::{Progress, Wait};

/// Our name in job lists and records.
const CLIENT_NAME: &str = "orbctl";

/// How often a long wait is looked into.
const TICK: Duration = Duration::from_secs(1);

/// How long orbd may take to take in how the tool ended.
const RELEASE_MAX: Duration = Duration::from_secs(2);

/// The same where a signal ended the tool.
const RELEASE_CUT_MAX: Duration = Duration::from_millis(250);

/// How it ends, other than as the tool ended.
enum Failed {
    /// There is no daemon, or none that we can talk to.
    NoDaemon(CliError),
    /// The daemon has no tool.
    NoTool,
    /// It has no word for this, or none for what it is about; the tool itself says what is wrong.
    NoWord,
    /// What was printed cannot be passed on.
    NoPrintout,
    /// It does not take it, or gave it up.
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
            ) => Self::NoWord,
            Some(ErrorKind::OrbctlUnavailable) => Self::NoTool,
            Some(ErrorKind::OrbctlOutputUnreadable) => Self::NoPrintout,
            Some(_) => Self::Refused(error.to_string()),
            // A kind that a newer daemon has is still a refusal.
            None if matches!(error, CliError::Refused(_)) => Self::Refused(error.to_string()),
            None => Self::NoDaemon(error),
        }
    }
}

/// Carries out a call.
pub(super) fn carry_out(invocation: &Invocation, settings: &Settings, began: Instant) -> ExitCode {
    let (input, output) = (io::stdin().is_terminal(), io::stdout().is_terminal());
    let plan = words::plan(invocation.called, &invocation.arguments, input && output);
    if plan == Plan::Untouched {
        return invocation.pass_through(settings);
    }
    match attempt(invocation, settings, plan, began) {
        Ok(code) => code,
        Err(Failed::Refused(why)) => refuse(&why, REFUSED),
        Err(failed) if settings.strict => refuse(
            &format!("{failed}; ORBD_STRICT is set, so orbctl was not run"),
            REFUSED,
        ),
        Err(_) => invocation.pass_through(settings),
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDaemon(error) => error.fmt(f),
            Self::NoTool => f.write_str("orbd has no orbctl"),
            Self::NoWord => f.write_str("orbd does not understand what is asked"),
            Self::NoPrintout => f.write_str("orbd cannot pass on what orbctl printed"),
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
            match session.ask::<LeaseRead>(&printout_of(&read, settings, began)) {
                Ok(raw_output) => Ok(printed(&raw_output)),
                // Too much to be passed on; the tool can print it itself.
                Err(Failed::NoPrintout) => session.lease(of_read(read)),
                Err(Failed::NoWord) => session.lease(of(LeaseOperation::Other)),
                Err(failed) => Err(failed),
            }
        }
        Plan::Read(read) => session.lease(of_read(read)),
        Plan::Place(place) if !is_inside => session.lease(of_place(place)),
        Plan::Place(_) | Plan::Other | Plan::Untouched => session.lease(of(LeaseOperation::Other)),
    }
}

/// The tool may print otherwise on a terminal, so it prints there itself.
fn prints_on_a_terminal() -> bool {
    io::stdout().is_terminal() || io::stderr().is_terminal()
}

fn printout_of(read: &RawRead, settings: &Settings, began: Instant) -> LeaseReadParams {
    // What was begun since we were called is as new as what the tool itself would have seen.
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

fn of_place(place: Place) -> LeaseParams {
    LeaseParams {
        machine: place.machine,
        machine_names: place.machines,
        new_name: place.new_name,
        force: place.force,
        unknown_form: place.unknown_form,
        ..of(place.operation)
    }
}

/// A call that talks to orbd.
struct Session<'a> {
    invocation: &'a Invocation,
    settings: &'a Settings,
    link: &'a Link,
    client: Client,
    /// The life of the daemon that answers, once it has greeted us.
    instance: Option<String>,
}

impl Session<'_> {
    /// Says whether a process above us holds a place.
    fn is_inside(&mut self) -> bool {
        let Some(job_id) = self.settings.above else {
            return false;
        };
        let asked = self.ask::<JobGet>(&JobParams { job_id });
        asked.is_ok_and(|answer| answer.job.state != JobStateWord::Ended)
    }

    /// Asks, and waits for the answer. The first question goes in one message with the greeting, which saves a round trip; of a daemon
    /// that speaks another protocol its answer is not used, and a place that such a daemon gives ends with the child that has it.
    fn ask<M: Method>(&mut self, params: &M::Params) -> Result<M::Answer, Failed> {
        let sent = if self.instance.is_some() {
            self.client.send_one::<M>(params).map_err(CliError::from)?
        } else {
            let asked = link::greet_and_ask::<M>(&mut self.client, &self.link.socket, CLIENT_NAME, params);
            let (hello, sent) = asked.map_err(Failed::NoDaemon)?;
            self.instance = Some(hello.instance);
            sent
        };
        self.answer(&sent)
    }

    /// Waits for an answer however long it takes: orbd has the limits.
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

    /// Lets the tool run in a place.
    fn lease(mut self, mut params: LeaseParams) -> Result<ExitCode, Failed> {
        let child = match RealTool::start() {
            Ok(Start::Parent(child)) => child,
            Ok(Start::Child(granted)) => {
                // Our parent's alone: orbd sees by its end that nobody asks any more.
                let invocation = self.invocation;
                drop(self);
                return Ok(granted.wait(invocation));
            }
            Err(error) => return Err(Failed::Refused(format!("cannot start a process: {error}"))),
        };
        params.pid = child.pid();
        let ready = self.place(&params).and_then(|lease| {
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
        let ended = guard.watch(child.grant(&program, &lease.marker));
        self.release(lease.job_id, ended);
        Ok(ended.repeat())
    }

    /// Waits for a place. Where orbd does not understand it, the tool says what is wrong, in a place that is in nobody's way.
    fn place(&mut self, params: &LeaseParams) -> Result<LeaseAnswer, Failed> {
        match self.ask::<LeaseAcquire>(params) {
            Err(Failed::NoWord) if params.operation != LeaseOperation::Other => {
                self.ask::<LeaseAcquire>(&LeaseParams {
                    pid: params.pid,
                    ..of(LeaseOperation::Other)
                })
            }
            other => other,
        }
    }

    /// Says how the tool ended. That it is gone is enough for orbd, so nothing here is a reason to fail.
    fn release(&mut self, job_id: u64, ended: Ended) {
        let (exit_code, signal, patience) = match ended {
            Ended::Exited(code) => (Some(code), None, RELEASE_MAX),
            // Its caller may have a deadline, and the answer only adds why orbd sent the signal, if it did.
            Ended::Signalled(signal) => (None, Some(signal), RELEASE_CUT_MAX),
        };
        let params = ReleaseParams {
            job_id,
            exit_code,
            signal,
        };
        let tell = |client: &mut Client| {
            client.set_timeout(Some(patience)).map_err(CallError::Lost)?;
            client.call::<LeaseRelease>(&params)
        };
        let told = match tell(&mut self.client) {
            // It was idle for as long as the tool ran, and may have been closed for that.
            Err(CallError::Lost(error)) if !is_impatience(&error) => self
                .link
                .side_connection()
                .and_then(|mut client| tell(&mut client).ok()),
            other => other.ok(),
        };
        if let Some(why) = told.and_then(|answer| answer.signalled) {
            refuse(&why.message, REFUSED);
        }
    }
}

fn is_impatience(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Prints what the tool printed, and ends as it ended.
fn printed(raw_output: &RawOutputAnswer) -> ExitCode {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    for (stream, bytes) in [
        (stdout.as_fd(), &raw_output.stdout),
        (stderr.as_fd(), &raw_output.stderr),
    ] {
        if let Err(error) = write(stream, bytes) {
            return match error.kind() {
                io::ErrorKind::BrokenPipe => Ended::Signalled(SIGPIPE).repeat(),
                _ => refuse(&format!("cannot write what orbctl printed: {error}"), FAILED),
            };
        }
    }
    match (raw_output.exit_code, raw_output.signal) {
        (_, Some(signal)) => Ended::Signalled(signal).repeat(),
        (code, None) => Ended::Exited(code.unwrap_or(i32::from(REFUSED))).repeat(),
    }
}

/// Writes all bytes, past the standard library's buffers.
fn write(stream: BorrowedFd<'_>, bytes: &Printed) -> io::Result<()> {
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
            // Our caller's descriptor may be one that does not block.
            Err(rustix::io::Errno::AGAIN) => {
                let mut ready = [PollFd::from_borrowed_fd(stream, PollFlags::OUT)];
                let _ = rustix::event::poll(&mut ready, None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

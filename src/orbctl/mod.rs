//! The only module that knows `orbctl`: its arguments, processes, output, errors, versions and location.
//!
//! - [`Orbctl`] is the trait that the rest of the daemon uses: typed calls with typed results;
//! - `call` implements it for every [`Runner`]: `argv` builds the arguments, `classify` interprets how a run ended, `output`
//!   parses stdout;
//! - `process` is the [`Runner`] of the installed program, `supervise` ends a run at its limits, `environment` computes the
//!   environment of every child; tests replace it with a scripted in-memory version;
//! - [`version`] maps versions to features; [`orbd_host::locate`] finds the program.
//!
//! This module does not decide when something runs, and it never logs arguments, environment, input or output.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use orbd_host::run_command::GuestEnv;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::job::{Ending, Failure, HealthSignal};
use crate::operation::{Change, ExecRequest, Query, Scope};
use crate::spool;
pub use crate::sys::{ChildIdentity, StartTime};
pub use channel::{ChannelEvent, ChannelState, ChannelView, Channels, MARKER_SUFFIX, Observer, Unused};
pub use invocation::{Captured, Completion, Input, Invocation, Sink, SpawnError};
use orbd_host::machine::{Machine, MachineInfo, MachineName, OrbctlVersion, OrbstackStatus};
pub use orphan::orphan_gone;
pub use process::Installed;

mod argv;
mod call;
mod channel;
mod classify;
mod environment;
mod files;
mod invocation;
mod orphan;
mod output;
mod process;
mod spawner;
mod supervise;
pub mod version;

/// Bytes of each stream's end that are kept for error messages when the output goes to a spool.
pub const TAIL_MAX: usize = 4 * 1024;

/// Bytes of each stream's beginning that are always kept: a Go panic prints its cause first, followed by pages of stack traces.
pub const OPENING_MAX: usize = 512;

/// Default time between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);

/// Calls `orbctl`. Every [`Runner`] implements it.
///
/// Cancelling the token of the [`RunOptions`] ends a call; what it has already done is not undone. Dropping the future leaves the
/// child running: when the daemon stops in order, running changes finish on their own.
pub trait Orbctl: Send + Sync + 'static {
    /// Reports whether the program's file has been replaced since the previous call, for example by an upgrade of OrbStack. Call
    /// it before each run; it costs one `stat`.
    fn is_replaced(&self) -> bool;

    /// Makes a read.
    fn query(
        &self,
        query: &Query,
        options: RunOptions,
    ) -> impl Future<Output = CallResult<QueryAnswer>> + Send;

    /// Runs a command in a machine and returns its exit code. Its output goes to the spool, which ends with the call.
    fn exec(
        &self,
        exec: Exec,
        guest_env: GuestEnv,
        options: RunOptions,
    ) -> impl Future<Output = CallResult<i32>> + Send;

    /// Carries out a change. It may outlive orbd, after a stop or a crash, so its output goes to files in `output_dir`: a pipe
    /// would break.
    fn change(
        &self,
        change: &Change,
        output_dir: PathBuf,
        options: RunOptions,
    ) -> impl Future<Output = CallResult<()>> + Send;

    /// Closes the channels that a change of this scope would disturb, and waits until they are closed.
    fn close_channels(&self, _scope: &Scope) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// Runs the program with given arguments. The production implementation is [`Installed`].
pub trait Runner: Send + Sync + 'static {
    /// See [`Orbctl::is_replaced`].
    fn is_replaced(&self) -> bool;

    /// Runs one invocation to its end. Cancelling `stop` ends the child.
    fn run(
        &self,
        invocation: Invocation,
        stop: CancellationToken,
    ) -> impl Future<Output = Result<Completion, SpawnError>> + Send;
}

/// How one call is run, whatever it does.
#[derive(Debug)]
pub struct RunOptions {
    /// Cancelled to end the call.
    pub stop: CancellationToken,
    /// Run-time limit; `None` for no limit.
    pub run_timeout: Option<Duration>,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Value of `ORBD_JOB` in the child's environment, by which a later instance of the daemon recognises the child.
    pub marker: String,
    /// Receives the child as soon as it runs; dropped without a value if no child starts.
    pub started: Option<oneshot::Sender<Started>>,
}

/// The start of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// The process of `orbctl`.
    pub child: ChildIdentity,
    /// Whether it was open before, as a channel that serves more commands than this one.
    pub in_channel: bool,
}

/// A command in a machine, with its streams.
pub struct Exec {
    /// Name of the machine.
    pub machine: MachineName,
    /// The command.
    pub request: ExecRequest,
    /// Its standard input.
    pub stdin: Input,
    /// Destination of its output.
    pub output: spool::Writer,
}

/// How one call of `orbctl` ended.
#[derive(Debug)]
pub struct CallResult<T> {
    /// What the call produced.
    pub result: Result<T, CallError>,
    /// What the result implies for the health of `orbctl` itself.
    pub signal: HealthSignal,
    /// How the child ended; `None` if there was none, or if its exit status is unknown.
    pub ending: Option<Ending>,
    /// Bytes of input that were written.
    pub bytes_in: u64,
    /// Bytes of output that were read.
    pub bytes_out: u64,
}

/// Why a call produced nothing.
#[derive(Debug)]
pub enum CallError {
    /// No child was started, or its exit status is unknown.
    Spawn(SpawnError),
    /// orbd ended it on request.
    Stopped,
    /// orbd ended it at its time limit.
    TimedOut,
    /// It failed.
    Failed(Failure),
}

/// The answer to one query.
#[derive(Debug, Clone, PartialEq)]
pub enum QueryAnswer {
    /// Every machine.
    Machines(Vec<Machine>),
    /// One machine.
    Info(Box<MachineInfo>),
    /// Whether OrbStack runs.
    Status(OrbstackStatus),
    /// Version of the installed `orbctl`.
    Version(OrbctlVersion),
    /// Keys and values of OrbStack's configuration.
    Config(Vec<(String, String)>),
    /// The default machine; `None` if none is set.
    Default(Option<MachineName>),
    /// Human-readable text: SSH instructions or logs.
    Text(String),
    /// Unparsed output, for clients that print what `orbctl` itself would print.
    Raw(RawOutput),
}

/// Output of `orbctl` for a read, byte for byte, and how `orbctl` ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RawOutput {
    /// Complete stdout.
    pub stdout: Bytes,
    /// Complete stderr.
    pub stderr: Bytes,
    /// Exit code, or a signal that orbd did not send.
    pub ending: Ending,
    /// Why the read failed, if it did: its output is an answer all the same.
    pub failure: Option<Failure>,
}

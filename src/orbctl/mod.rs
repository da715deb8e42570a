//! The only module that knows `orbctl`: its arguments, its processes, its output, its errors, its versions and where it is.
//!
//! - [`argv`] turns an [`Operation`](crate::operation::Operation) into arguments;
//! - [`environment`] is what every child has in its environment;
//! - [`process`] runs them and sees every way in which that can end;
//! - [`output`] turns bytes into types, [`classify`] turns an ending and stderr into a [`Failure`];
//! - [`version`] says what the installed version can do, [`locate`] where it is.
//!
//! [`Orbctl`] is the seam: tests of the daemon script it in memory. Nothing here decides when something runs, and nothing of
//! arguments, environment, input or output is logged.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::job::{Ending, Failure};
use crate::spool;
pub use crate::sys::{ChildIdentity, StartTime};
use argv::Call;

pub mod argv;
pub mod classify;
pub mod environment;
mod files;
pub mod locate;
pub mod output;
pub mod process;
mod spawner;
pub mod version;

/// How much of the end of each stream is kept beside a spool, for error messages.
pub const TAIL_MAX: usize = 4 * 1024;

/// How much of a stream's beginning is always kept: a panic says what happened first and where for pages after.
pub const OPENING_MAX: usize = 512;

/// How long a child has between SIGTERM and SIGKILL, unless told otherwise.
pub const GRACE: Duration = Duration::from_secs(5);

/// Runs `orbctl`. The real one is [`process::Installed`].
pub trait Orbctl: Send + Sync + 'static {
    /// Looks whether the program is another one than when this was last asked, as after an upgrade of OrbStack. To be asked before a
    /// run: it costs a look at one file.
    fn is_replaced(&self) -> bool;

    /// Runs one invocation to its end. When `stop` is cancelled the child is ended; what it had done stays done.
    ///
    /// Dropping the future leaves the child running on its own: an orderly stop of the daemon leaves changes to finish.
    fn run(
        &self,
        invocation: Invocation,
        stop: CancellationToken,
    ) -> impl Future<Output = Result<Completion, SpawnError>> + Send;
}

/// One run of the child process.
pub struct Invocation {
    /// Its arguments, and the variables that it has beside those of every call.
    pub call: Call,
    /// What the child reads.
    pub stdin: Input,
    /// Where its output goes.
    pub output: Sink,
    /// How long it may run, from its start.
    pub run_timeout: Option<Duration>,
    /// How long it has between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Put in its environment as `ORBD_JOB`, so that the next life of the daemon recognises it. Empty: none.
    pub marker: String,
    /// Told which process it became, as soon as it has; dropped untold when there is none.
    pub started: Option<oneshot::Sender<ChildIdentity>>,
}

impl Invocation {
    /// Makes an invocation with empty input, no time limit and the usual grace.
    pub fn new(call: impl Into<Call>, output: Sink) -> Self {
        Self {
            call: call.into(),
            stdin: Input::Empty,
            output,
            run_timeout: None,
            grace: GRACE,
            marker: String::new(),
            started: None,
        }
    }
}

/// Shows counts, never contents.
impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invocation")
            .field("args", &self.call.args.len())
            .field("run_timeout", &self.run_timeout)
            .field("marker", &self.marker)
            .finish_non_exhaustive()
    }
}

/// What a child reads.
pub enum Input {
    /// End of file at once.
    Empty,
    /// These bytes, then end of file.
    Bytes(Bytes),
    /// What arrives here, then end of file when the sender is dropped. The receiver is dropped when a write shows that the child
    /// reads no more, or when the child is gone.
    Stream(mpsc::Receiver<Bytes>),
}

/// Where a child's output goes.
pub enum Sink {
    /// Into the [`Completion`]: the beginning of stdout and the end of stderr, at most `max` bytes each; the rest is read and counted.
    Capture {
        /// Bytes kept of each stream.
        max: usize,
    },
    /// Into a spool, which ends with the invocation; the [`Completion`] has the end of each stream.
    Spool(spool::Writer),
    /// Into two files without names, so that nothing breaks for the child when we end before it. The [`Completion`] is that of
    /// [`Sink::Capture`]. Where no such file can be had, it is a capture: a full disk must not keep a machine from being stopped.
    Files {
        /// An existing folder of ours.
        dir: PathBuf,
        /// Bytes kept of each stream.
        max: usize,
    },
}

/// How an invocation ended and what it left.
#[derive(Debug, Clone)]
pub struct Completion {
    /// How the child stopped.
    pub ending: Ending,
    /// What was kept of its stdout.
    pub stdout: Captured,
    /// What was kept of its stderr.
    pub stderr: Captured,
    /// From before the start until nothing more was to be read.
    pub took: Duration,
    /// Bytes that it took from its input.
    pub bytes_in: u64,
    /// Bytes that it wrote to both streams, as far as they were read.
    pub bytes_out: u64,
    /// Another process still held a stream after the child was gone, and reading was given up, or files could not be read; there may
    /// be more that nobody saw.
    pub output_cut: bool,
}

/// What was kept of one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// What was kept: the beginning of a captured stdout, otherwise the end.
    pub bytes: Bytes,
    /// The first bytes, at most [`OPENING_MAX`], whatever else was kept.
    pub opening: Bytes,
    /// How many bytes there were in all.
    pub total: u64,
}

impl Captured {
    /// Makes a capture of a whole stream.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            opening: bytes.slice(..bytes.len().min(OPENING_MAX)),
            total: bytes.len() as u64,
            bytes,
        }
    }

    /// Says whether nothing is missing.
    pub fn is_whole(&self) -> bool {
        self.bytes.len() as u64 == self.total
    }
}

/// Why there is no completion. No child was started and nothing happened, except with [`SpawnError::Lost`].
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// It is nowhere.
    #[error(transparent)]
    NotLocated(#[from] locate::LocateError),
    /// There is no such file.
    #[error("{} does not exist", .program.display())]
    NotFound {
        /// The program.
        program: PathBuf,
    },
    /// The file is there but is not a program that we may execute.
    #[error("{} cannot be executed", .program.display())]
    NotExecutable {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The arguments are too long for the system, or hold a NUL byte.
    #[error("the arguments cannot be passed to a process")]
    Arguments {
        /// What the system said.
        source: io::Error,
    },
    /// Processes, descriptors or memory are used up; later it may work.
    #[error("no process could be started: the system's limits are reached")]
    Exhausted {
        /// What the system said.
        source: io::Error,
    },
    /// Anything else.
    #[error("{} could not be started", .program.display())]
    Other {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A child ran and is gone, but the system did not say how it ended: what it was to do may have been done.
    #[error("how orbctl ended could not be learnt")]
    Lost {
        /// What the system said.
        source: io::Error,
    },
}

impl SpawnError {
    /// Returns what a caller is told.
    pub fn failure(&self) -> Failure {
        match self {
            // What a shell says of it; `orbctl` itself is well.
            Self::Arguments { source } => Failure::OrbctlFailed {
                exit_code: 126,
                stderr_tail: format!("{self}: {source}").into(),
            },
            Self::NotLocated(_) | Self::NotFound { .. } => {
                Failure::OrbctlUnavailable(self.to_string().into())
            }
            Self::NotExecutable { source, .. } | Self::Exhausted { source } | Self::Other { source, .. } => {
                Failure::OrbctlUnavailable(format!("{self}: {source}").into())
            }
            Self::Lost { source } => Failure::Internal(format!("{self}: {source}").into()),
        }
    }
}

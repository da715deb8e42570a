//! One run of `orbctl`: its parameters and its result.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use orbd_host::locate::LocateError;
use orbd_host::run_command::Call;
use tokio::sync::{mpsc, oneshot};

use super::{GRACE, OPENING_MAX, Started};
use crate::job::{Ending, Failure};
use crate::spool;

/// The parameters of one run of `orbctl`.
pub struct Invocation {
    /// Arguments, and variables in addition to those that every child gets.
    pub call: Call,
    /// The child's standard input.
    pub stdin: Input,
    /// Destination of the child's output.
    pub output: Sink,
    /// Run-time limit, counted from the start of the invocation; `None` for no limit.
    pub run_timeout: Option<Duration>,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Value of `ORBD_JOB` in the child's environment, by which a later instance of the daemon recognises the child. Empty: the
    /// variable is not set.
    pub marker: String,
    /// Receives the child's identity as soon as the child runs; dropped without a value if no child starts.
    pub started: Option<oneshot::Sender<Started>>,
}

impl Invocation {
    /// Creates an invocation with empty input, no time limit and the default grace period.
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

/// Prints counts, never contents: arguments may hold secrets.
impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invocation")
            .field("args", &self.call.args.len())
            .field("run_timeout", &self.run_timeout)
            .field("marker", &self.marker)
            .finish_non_exhaustive()
    }
}

/// A child's standard input.
pub enum Input {
    /// End of file immediately.
    Empty,
    /// These bytes, then end of file.
    Bytes(Bytes),
    /// What arrives on this channel, then end of file when the sender is dropped. The receiver is dropped when a write shows that
    /// the child has closed its input, or when the child has exited.
    Stream(mpsc::Receiver<Bytes>),
}

/// Destination of a child's output.
pub enum Sink {
    /// Into the [`Completion`]: the beginning of stdout and the end of stderr, at most `max` bytes each. The rest is read,
    /// counted and discarded.
    Capture {
        /// Bytes kept of each stream.
        max: usize,
    },
    /// Into a spool, which ends with the invocation. The [`Completion`] holds only the end of each stream.
    Spool(spool::Writer),
    /// Into two unlinked files, so that the child's writes do not fail if the daemon exits first. The [`Completion`] is filled as
    /// for [`Sink::Capture`]. If the files cannot be created, the output is captured through pipes instead: a full disk must not
    /// prevent stopping a machine.
    Files {
        /// An existing folder that orbd owns.
        dir: PathBuf,
        /// Bytes kept of each stream.
        max: usize,
    },
}

/// The result of an invocation.
#[derive(Debug, Clone)]
pub struct Completion {
    /// How the child ended.
    pub ending: Ending,
    /// The retained part of stdout.
    pub stdout: Captured,
    /// The retained part of stderr.
    pub stderr: Captured,
    /// Time from before the spawn until all output was read.
    pub took: Duration,
    /// Bytes of input written to the child.
    pub bytes_in: u64,
    /// Bytes that were read from both output streams.
    pub bytes_out: u64,
    /// Output may be incomplete: another process kept a stream open after the child had exited and reading was given up, or the
    /// output files could not be read.
    pub output_cut: bool,
}

/// The retained part of one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// The beginning of a captured stdout; for all other streams the end.
    pub bytes: Bytes,
    /// The first bytes of the stream, at most [`OPENING_MAX`], independent of `bytes`.
    pub opening: Bytes,
    /// Total bytes in the stream.
    pub total: u64,
}

impl Captured {
    /// Creates a capture that holds a whole stream.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            opening: bytes.slice(..bytes.len().min(OPENING_MAX)),
            total: bytes.len() as u64,
            bytes,
        }
    }

    /// Returns whether `bytes` is the whole stream.
    pub fn is_whole(&self) -> bool {
        self.bytes.len() as u64 == self.total
    }
}

/// Why an invocation has no [`Completion`]. No child was started, except with [`SpawnError::Lost`].
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// `orbctl` was not found.
    #[error(transparent)]
    NotLocated(#[from] LocateError),
    /// The program's file does not exist.
    #[error("{} does not exist", .program.display())]
    NotFound {
        /// Path of the program.
        program: PathBuf,
    },
    /// The file exists but cannot be executed.
    #[error("cannot execute {}", .program.display())]
    NotExecutable {
        /// Path of the program.
        program: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The arguments are too long for the system or contain a NUL byte.
    #[error("cannot pass the arguments to a process")]
    Arguments {
        /// The operating system's error.
        source: io::Error,
    },
    /// Processes, descriptors or memory are exhausted; a later attempt may succeed.
    #[error("cannot start a process: system limits reached")]
    Exhausted {
        /// The operating system's error.
        source: io::Error,
    },
    /// Any other spawn error.
    #[error("cannot start {}", .program.display())]
    Other {
        /// Path of the program.
        program: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A child ran and exited, but the system did not report its exit status: the operation may have been carried out.
    #[error("could not determine orbctl's exit status")]
    Lost {
        /// The operating system's error.
        source: io::Error,
    },
}

impl SpawnError {
    /// Returns the failure that is reported to the caller.
    pub fn failure(&self) -> Failure {
        match self {
            // Exit code 126, as a shell reports it; `orbctl` itself is healthy.
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

//! All refusals of the stand-in, with the recorded text where one exists.
//!
//! `docs/orbctl-sim.md` lists which of these texts are invented.

use std::fmt;
use std::io;

use crate::answers::{Answers, UnknownMachine};
use crate::state::MachineState;

/// A refusal: one line on stderr, nothing on stdout, exit code 1.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// No machine has this name or id. Recorded for `info` and `run`.
    MachineNotFound(String),
    /// The name of a machine to be made is taken.
    AlreadyExists {
        operation: &'static str,
        machine: String,
    },
    /// The service could not do what was requested, for the given reason.
    Service {
        operation: &'static str,
        machine: String,
        cause: String,
    },
    /// The service failed before it reached any machine.
    Whole(String),
    /// The machine's state does not allow the change. Without `way`, the change keeps the state.
    Transition {
        state: MachineState,
        way: Option<MachineState>,
    },
    /// OrbStack was stopped during the change.
    ServiceGone,
    /// OrbStack was started, but the client gave up waiting. Recorded without an error code (gh#2531).
    StartTimedOut,
    /// There is no machine to run a command in.
    NoMachines,
    /// Text that the service has already printed, unchanged.
    ServiceText(Vec<u8>),
    /// The arguments are invalid: the error and the usage block.
    Usage(String),
    /// Messages that the real tool does not have: about the stand-in's own settings, script and limits.
    Own(String),
}

/// The result of anything that may be refused.
pub(crate) type Outcome<T> = Result<T, Refusal>;

impl Refusal {
    /// Returns a service refusal with any displayable cause.
    pub(crate) fn service(operation: &'static str, machine: &str, cause: impl fmt::Display) -> Refusal {
        Refusal::Service {
            operation,
            machine: machine.to_owned(),
            cause: format!("{cause:#}"),
        }
    }

    /// Returns the refusal in the form that an operation gives it.
    pub(crate) fn of(self, operation: &'static str, answers: Answers) -> Refusal {
        match self {
            Refusal::MachineNotFound(machine) if answers.unknown_machine == UnknownMachine::Prefixed => {
                let cause = format!("machine not found: '{machine}'");
                Refusal::service(operation, &machine, cause)
            }
            other => other,
        }
    }

    /// Returns a message of the stand-in itself.
    pub(crate) fn own(text: impl Into<String>) -> Refusal {
        Refusal::Own(text.into())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::MachineNotFound(machine) => {
                write!(f, "[-32098] machine not found: '{machine}'")
            }
            Refusal::AlreadyExists { operation, machine } => {
                write!(
                    f,
                    "[-32098] {operation} '{machine}': machine already exists: '{machine}'"
                )
            }
            Refusal::Service {
                operation,
                machine,
                cause,
            } => {
                write!(f, "[-32098] {operation} '{machine}': {cause}")
            }
            Refusal::Transition {
                state,
                way: Some(way),
            } => {
                let (state, way) = (state.word(), way.word());
                write!(f, "[-32098] cannot transition from {state} to {way}")
            }
            Refusal::Transition { state, way: None } => {
                write!(f, "[-32098] machine is {}", state.word())
            }
            Refusal::StartTimedOut => f.write_str("start VM: timed out waiting for VM to start"),
            Refusal::ServiceGone => f.write_str("unexpected EOF"),
            Refusal::Whole(cause) => write!(f, "[-32098] {cause}"),
            Refusal::NoMachines => f.write_str(NO_MACHINES),
            Refusal::ServiceText(said) => f.write_str(String::from_utf8_lossy(said).trim_end()),
            Refusal::Usage(text) => f.write_str(text),
            Refusal::Own(text) => write!(f, "orbctl-sim: {text}"),
        }
    }
}

/// Recorded from a tool without a machine to run a command in; data, not our wording.
const NO_MACHINES: &str = "To use Docker:
    docker run ...
See \"orb docker\" for more info.

To create a Linux machine:
    orb create ubuntu
See \"orb create --help\" for supported distros and options.";

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Whole(error.to_string())
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(error: rustix::io::Errno) -> Refusal {
        Refusal::Whole(error.to_string())
    }
}

//! Errors of the client: messages, hints and exit codes.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use orbd_client::CallError;
use orbd_host::error_chain::append_causes;
use orbd_host::nearest::nearest;
use orbd_proto::errors::ErrorKind;
use orbd_proto::types::{ErrorData, ErrorObject};
use serde::Serialize;

use crate::console::Console;
use crate::render;

/// Exit codes. `orbd-ctl --help` and `docs/cli.md` document them.
pub(crate) mod exit {
    /// The operation failed.
    pub(crate) const FAILED: u8 = 1;
    /// The command line, or a value in it, is invalid.
    pub(crate) const USAGE: u8 = 2;
    /// The daemon is unreachable, or speaks another protocol.
    pub(crate) const UNREACHABLE: u8 = 3;
    /// The named object does not exist, already exists, or is in the wrong state.
    pub(crate) const WRONG_OBJECT: u8 = 4;
    /// The queue refused the request, orbctl is unhealthy, or a time limit expired.
    pub(crate) const REFUSED: u8 = 5;
    /// Another client cancelled the job, or the daemon died while it ran.
    pub(crate) const CUT_SHORT: u8 = 6;
    /// A change was interrupted and may have taken effect.
    pub(crate) const UNKNOWN: u8 = 7;
    /// `run`: the command's time limit expired. The same code as `timeout(1)`.
    pub(crate) const RUN_TIMED_OUT: u8 = 124;
    /// `run`: the command could not be run. The same code as `docker run`.
    pub(crate) const RUN_FAILED: u8 = 125;
    /// Ctrl-C: 128 + SIGINT.
    pub(crate) const INTERRUPTED: u8 = 130;
    /// The reader of our output closed it: 128 + SIGPIPE.
    pub(crate) const BROKEN_PIPE: u8 = 141;
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The daemon answered with an error.
    #[error("{}", .0.message)]
    Refused(ErrorObject),
    /// The daemon answered with an error, and this client knows a better hint than the error's kind gives.
    #[error("{}", .error.message)]
    Explained { error: ErrorObject, hint: String },
    /// Nothing listens on the socket.
    #[error("orbd is not running: nothing listens on {}", .socket.display())]
    NotRunning { socket: PathBuf },
    /// The socket exists but connecting to it failed.
    #[error("cannot connect to orbd on {}", .socket.display())]
    Unreachable {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The daemon accepts connections but does not answer.
    #[error("orbd{} on {} accepts connections but does not answer", pid_text(*.pid), .socket.display())]
    Mute {
        socket: PathBuf,
        /// Its process id, if the system reports it.
        pid: Option<u32>,
    },
    /// The daemon could not be started.
    #[error("cannot start orbd: {reason}")]
    NotStarted { reason: String, hint: String },
    /// The service manager's tool failed, or the service did not stop.
    #[error("{message}")]
    Service { message: String, hint: String },
    /// The connection broke before the answer arrived.
    #[error("lost the connection to orbd")]
    Lost(#[source] io::Error),
    /// The answer does not have the expected shape.
    #[error("cannot parse orbd's answer to {method}")]
    Unreadable {
        method: &'static str,
        #[source]
        source: serde_json::Error,
    },
    /// Client and daemon speak different protocols.
    #[error("{message}")]
    Protocol {
        message: String,
        hint: String,
        /// The daemon has found a new program and is about to execute it.
        is_switching: bool,
    },
    /// The command line or the environment is invalid in a way that clap cannot detect.
    #[error("{message}")]
    Usage { message: String, hint: String },
    /// The requested object does not exist.
    #[error("{message}")]
    Absent { message: String, hint: String },
    /// Ctrl-C. The code that handled it has already printed what happens to the job.
    #[error("interrupted")]
    Interrupted,
    /// An operation of the client itself failed, such as writing a file.
    #[error("{what}")]
    Local {
        what: String,
        #[source]
        source: io::Error,
    },
    /// Writing to stdout or stderr failed.
    #[error("cannot write output")]
    Output(#[from] io::Error),
}

impl From<CallError> for CliError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(error) => Self::Refused(error),
            CallError::Lost(source) => Self::Lost(source),
            CallError::Unreadable { method, source } => Self::Unreadable { method, source },
        }
    }
}

/// A failure as `--json` prints it.
#[derive(Serialize)]
struct JsonError {
    error: ErrorObject,
}

impl CliError {
    /// Returns the error kind that the daemon sent, or `None` if this client does not know it.
    pub(crate) fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused(_) | Self::Explained { .. } => ErrorKind::from_word(&self.data()?.kind),
            _ => None,
        }
    }

    /// Returns the exit code.
    pub(crate) fn exit(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Explained { .. } => self.kind().map_or(exit::FAILED, exit_of_kind),
            Self::NotRunning { .. }
            | Self::Unreachable { .. }
            | Self::Mute { .. }
            | Self::NotStarted { .. }
            | Self::Lost(_)
            | Self::Unreadable { .. }
            | Self::Protocol { .. } => exit::UNREACHABLE,
            Self::Usage { .. } => exit::USAGE,
            Self::Absent { .. } => exit::WRONG_OBJECT,
            Self::Interrupted => exit::INTERRUPTED,
            Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe => exit::BROKEN_PIPE,
            Self::Service { .. } | Self::Local { .. } | Self::Output(_) => exit::FAILED,
        }
    }

    /// Returns the exit code of `run`, whose small codes are reserved for the guest's command.
    pub(crate) fn exit_of_run(&self) -> u8 {
        match self.exit() {
            code @ (exit::INTERRUPTED | exit::BROKEN_PIPE) => code,
            _ if self.ran_out_of_time() => exit::RUN_TIMED_OUT,
            _ => exit::RUN_FAILED,
        }
    }

    /// Returns whether the run limit expired, as opposed to the queue limit.
    fn ran_out_of_time(&self) -> bool {
        self.kind() == Some(ErrorKind::DeadlineExceeded)
            && self.data().and_then(|data| data.phase.as_deref()) == Some("running")
    }

    fn data(&self) -> Option<&ErrorData> {
        match self {
            Self::Refused(error) | Self::Explained { error, .. } => error.data.as_deref(),
            _ => None,
        }
    }

    /// Returns the message with all its causes. A parameter name at its start is replaced by the flag that the user typed.
    fn chain(&self) -> String {
        let mut text = self.to_string();
        let field = self.data().and_then(|data| data.field.as_deref());
        if let Some(flag) = field.and_then(flag_of)
            && let Some(rest) = field.and_then(|field| text.strip_prefix(field))
        {
            text = format!("{flag}{rest}");
        }
        append_causes(&mut text, self);
        text
    }

    /// Returns the hint that is printed below the message.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Refused(error) => return hint_of_refusal(self.kind()?, error.data.as_ref()?),
            Self::NotRunning { .. } => "`orbd-ctl daemon start` starts it",
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "the socket belongs to another user; orbd runs once per user: check ORBD_SOCKET and --socket"
            }
            Self::Unreachable { .. } => {
                "check ORBD_SOCKET and --socket; a socket path is limited to 103 bytes"
            }
            Self::Mute { .. } => {
                "it may be suspended (`fg` resumes it) or hung: check `orbd-ctl daemon logs`; `orbd-ctl daemon stop --force` kills it"
            }
            Self::Lost(_) => {
                "the request may have been carried out: check `orbd-ctl list` and `orbd-ctl jobs --all` before you repeat it"
            }
            Self::Unreadable { .. } => {
                "orbd and orbd-ctl have different versions: `orbd-ctl doctor` names the command that upgrades the older one"
            }
            Self::Explained { hint, .. }
            | Self::NotStarted { hint, .. }
            | Self::Protocol { hint, .. }
            | Self::Service { hint, .. }
            | Self::Usage { hint, .. }
            | Self::Absent { hint, .. } => hint,
            Self::Interrupted | Self::Local { .. } | Self::Output(_) => return None,
        };
        Some(hint.to_owned())
    }

    /// Returns the hint for a machine name that is probably misspelt.
    fn suggestion(&self, console: &Console) -> Option<String> {
        let name = match (self.kind(), self.data()) {
            (Some(ErrorKind::MachineNotFound), Some(data)) => data.machine.as_deref()?,
            _ => return None,
        };
        let names = (console.machine_names)();
        // After a machine was deleted meanwhile, its own name would be suggested.
        let others = names.iter().map(String::as_str).filter(|other| *other != name);
        let near = nearest(name, others)?;
        Some(format!(
            "did you mean '{near}'? `orbd-ctl list` shows the machines"
        ))
    }

    /// Returns the error in the API's shape. Kinds that only the client knows have code 0.
    fn error_object(&self) -> ErrorObject {
        let kind = match self {
            Self::Refused(error) | Self::Explained { error, .. } => return error.clone(),
            Self::NotRunning { .. } | Self::Unreachable { .. } | Self::Mute { .. } => "daemon_unreachable",
            Self::NotStarted { .. } => "daemon_not_started",
            Self::Service { .. } => "service_manager",
            Self::Lost(_) => "connection_lost",
            Self::Unreadable { .. } => "answer_unreadable",
            Self::Protocol { .. } => {
                return ErrorKind::ProtocolMismatch.error(self.chain());
            }
            Self::Usage { .. } => return ErrorKind::InvalidParams.error(self.chain()),
            Self::Absent { .. } => "not_found",
            Self::Interrupted => "interrupted",
            Self::Local { .. } | Self::Output(_) => "local",
        };
        ErrorObject {
            code: 0,
            message: self.chain(),
            data: Some(Box::new(ErrorData {
                kind: kind.into(),
                ..ErrorData::default()
            })),
        }
    }

    /// Prints the message and the hint to stderr, and with `--json` also the error object to stdout.
    pub(crate) fn tell(&self, console: &mut Console) {
        if matches!(self, Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe) {
            // The reader closed our output on purpose, as `head` does.
            return;
        }
        if console.json
            && let Ok(mut line) = serde_json::to_vec(&JsonError {
                error: self.error_object(),
            })
        {
            line.push(b'\n');
            let _ = console.print(&line);
        }
        if matches!(self, Self::Interrupted) {
            return;
        }
        let paint = |style, text| render::paint(console.err_look, style, text);
        let mut text = format!("{} {}\n", paint(render::BAD, "orbd-ctl:"), self.chain());
        if let Some(tail) = self.data().and_then(|data| data.stderr_tail.as_deref()) {
            let sentence = text.clone();
            // Skips lines that the message already quotes, there without the code and the operation before the reason.
            let is_new = |line: &&str| {
                let line = line.trim();
                let reason = line.rsplit_once("] ").map_or(line, |(_, rest)| rest);
                let reason = reason.split_once(": ").map_or(reason, |(_, rest)| rest);
                !line.is_empty() && !sentence.contains(line) && !sentence.contains(reason)
            };
            text.extend(
                tail.lines()
                    .filter(is_new)
                    .map(|line| format!("  orbctl: {line}\n")),
            );
        }
        if let Some(hint) = self.suggestion(console).or_else(|| self.hint()) {
            let label = paint(render::HINT, "hint:");
            text.extend([label.as_str(), " ", &hint, "\n"]);
        }
        let _ = console
            .err
            .write_all(console.err_look.paragraph(&text, 2).as_bytes());
    }

    /// Prints the error and returns its exit code.
    pub(crate) fn end(&self, console: &mut Console) -> ExitCode {
        self.tell(console);
        ExitCode::from(self.exit())
    }
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

/// Returns the flag for a request parameter, or `None` if both have the same name.
fn flag_of(field: &str) -> Option<&'static str> {
    Some(match field {
        "run_timeout_ms" | "timeout_ms" => "--timeout",
        "queue_timeout_ms" => "--queue-timeout",
        "max_age_ms" => "--max-age",
        "label" => "--label",
        "new_name" => "the new name",
        "window_ms" => "--window",
        "mounts" => "--mount",
        "limit" => "-n",
        "cpus" => "--cpus",
        "memory" => "--memory",
        "disk" => "--disk",
        "arch" => "--arch",
        "user" => "--user",
        "workdir" => "--workdir",
        "env" => "--env",
        "cursor" => "--cursor",
        _ => return None,
    })
}

fn exit_of_kind(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidParams => exit::USAGE,
        ErrorKind::ParseError
        | ErrorKind::InvalidRequest
        | ErrorKind::MethodNotFound
        | ErrorKind::ProtocolMismatch => exit::UNREACHABLE,
        ErrorKind::QueueFull
        | ErrorKind::TooManyConnections
        | ErrorKind::Overloaded
        | ErrorKind::Draining
        | ErrorKind::DeadlineExceeded
        | ErrorKind::OrbctlUnhealthy => exit::REFUSED,
        ErrorKind::MachineNotFound
        | ErrorKind::MachineExists
        | ErrorKind::MachineWrongState
        | ErrorKind::JobNotFound => exit::WRONG_OBJECT,
        ErrorKind::JobCancelled | ErrorKind::JobInterrupted => exit::CUT_SHORT,
        ErrorKind::OutcomeUnknown => exit::UNKNOWN,
        ErrorKind::OrbctlUnavailable
        | ErrorKind::OrbctlFailed
        | ErrorKind::OrbctlKilled
        | ErrorKind::OrbctlOutputUnreadable
        | ErrorKind::ConfigInvalid
        | ErrorKind::StoreUnavailable
        | ErrorKind::JournalUnavailable
        | ErrorKind::Internal => exit::FAILED,
    }
}

fn hint_of_refusal(kind: ErrorKind, data: &ErrorData) -> Option<String> {
    let machine = data.machine.as_deref();
    Some(match kind {
        ErrorKind::InvalidParams | ErrorKind::OrbctlFailed => return None,
        ErrorKind::ConfigInvalid => {
            "orbd keeps its current configuration; `orbd-ctl daemon config check` validates the file".into()
        }
        ErrorKind::ParseError
        | ErrorKind::InvalidRequest
        | ErrorKind::MethodNotFound
        | ErrorKind::ProtocolMismatch => {
            "orbd and orbd-ctl have different versions: `orbd-ctl doctor` names the command that upgrades the older one".into()
        }
        ErrorKind::MachineNotFound => "`orbd-ctl list` shows the machines".into(),
        ErrorKind::MachineExists => match machine {
            Some(name) => format!("choose another name, or run `orbd-ctl delete {name}` first"),
            None => "choose another name; `orbd-ctl list` shows the existing machines".into(),
        },
        ErrorKind::MachineWrongState => match machine {
            Some(name) => format!("`orbd-ctl info {name}` shows its state"),
            None => "`orbd-ctl list` shows the states".into(),
        },
        ErrorKind::QueueFull => {
            let when = data
                .retry_after_ms
                .map_or_else(String::new, |ms| format!(" in {}", render::duration_us(ms * 1000)));
            format!("try again{when}; `orbd-ctl jobs` shows the waiting jobs")
        }
        ErrorKind::StoreUnavailable => {
            "try again in a few seconds; only metrics are affected, and `orbd-ctl metrics counters` shows the state of the store"
                .into()
        }
        ErrorKind::JournalUnavailable => {
            "free disk space in orbd's state directory, or run it without --detach; `orbd-ctl doctor` shows the directory".into()
        }
        ErrorKind::Overloaded => "try again once other clients have read their pending answers".into(),
        ErrorKind::TooManyConnections => {
            "close connections of other clients, or raise `connections_max` in orbd's configuration".into()
        }
        ErrorKind::Draining => "`orbd-ctl queue resume` ends the drain".into(),
        ErrorKind::JobNotFound => {
            "`orbd-ctl jobs --all` lists recent jobs, `orbd-ctl metrics history` older ones".into()
        }
        ErrorKind::JobCancelled => match data.phase.as_deref() {
            Some("queued") => "it did not start; `orbd-ctl jobs --all` shows it".into(),
            _ => "it was stopped while running; `orbd-ctl jobs --all` shows it".into(),
        },
        ErrorKind::DeadlineExceeded => match (data.phase.as_deref(), &data.waiting_for) {
            (Some("running"), _) => "it reached its run limit; `--timeout` sets the limit".into(),
            (_, Some(holder)) => format!(
                "it did not start: it was waiting for {}; `--queue-timeout` allows a longer wait",
                holder.description
            ),
            _ => "it did not start; `--queue-timeout` allows a longer wait".into(),
        },
        ErrorKind::JobInterrupted => {
            "orbd died while it ran, so its result is unknown: check the machine before you repeat it".into()
        }
        ErrorKind::OutcomeUnknown => {
            let seen = match &data.observed {
                Some(seen) => {
                    let state = seen.machine_state.as_deref().map_or_else(
                        || "that the machine does not exist".into(),
                        |state| format!("the machine {state}"),
                    );
                    let settled = if seen.stable { "" } else { ", which may still change" };
                    format!("the last check found {state}{settled}; ")
                }
                None => String::new(),
            };
            format!("{seen}orbd did not retry; `orbd-ctl list --max-age 0` shows the current state")
        }
        ErrorKind::OrbctlUnavailable => {
            "install OrbStack, or set `orbctl` in orbd's configuration to its path; `orbd-ctl daemon status` shows the path in use"
                .into()
        }
        ErrorKind::OrbctlUnhealthy => {
            "nothing was started; orbd keeps probing orbctl, and `orbd-ctl queue` shows the reason; if it does not recover, run \
             `orbd-ctl restart --orbstack --force`"
                .into()
        }
        ErrorKind::OrbctlKilled | ErrorKind::OrbctlOutputUnreadable => {
            "`orbd-ctl status` shows whether OrbStack is running; `orbd-ctl daemon logs` has the details".into()
        }
        ErrorKind::Internal => match data.incident.as_deref() {
            Some(incident) => format!("this is a bug in orbd; search its log for {incident}"),
            None => "this is a bug in orbd; `orbd-ctl daemon logs` has the details".into(),
        },
    })
}

#[cfg(test)]
mod tests {
    use orbd_proto::types::ReconcileReport;

    use super::*;
    use crate::fake;

    fn refused(kind: ErrorKind, fill: impl FnOnce(&mut ErrorData)) -> CliError {
        let mut error = kind.error("sorry");
        fill(error.data.as_mut().expect("has data"));
        CliError::Refused(error)
    }

    #[test]
    fn every_error_kind_has_a_nonzero_exit_code() {
        for kind in ErrorKind::ALL {
            let error = CliError::Refused(kind.error("sorry"));
            assert!((1..=7).contains(&error.exit()), "{kind:?}");
            assert!(error.exit_of_run() >= 124, "{kind:?}");
        }
    }

    #[test]
    fn run_distinguishes_the_run_limit_from_the_queue_limit() {
        let phase = |phase: &str| {
            refused(ErrorKind::DeadlineExceeded, |data| {
                data.phase = Some(phase.into());
            })
        };
        assert_eq!(phase("running").exit_of_run(), exit::RUN_TIMED_OUT);
        assert_eq!(phase("queued").exit_of_run(), exit::RUN_FAILED);
        assert_eq!(CliError::Interrupted.exit_of_run(), exit::INTERRUPTED);
    }

    #[test]
    fn hints_name_the_next_command() {
        let check = |error: &CliError, expected: &str| assert_eq!(error.hint().as_deref(), Some(expected));
        check(
            &refused(ErrorKind::MachineNotFound, |_| {}),
            "`orbd-ctl list` shows the machines",
        );
        check(
            &refused(ErrorKind::MachineExists, |data| data.machine = Some("web".into())),
            "choose another name, or run `orbd-ctl delete web` first",
        );
        check(
            &refused(ErrorKind::QueueFull, |data| data.retry_after_ms = Some(1500)),
            "try again in 1.5 s; `orbd-ctl jobs` shows the waiting jobs",
        );
        check(
            &refused(ErrorKind::DeadlineExceeded, |data| {
                data.phase = Some("queued".into());
                data.waiting_for = Some(fake::waiting_for_create());
            }),
            "it did not start: it was waiting for job 12 (create web) of pyinfra; `--queue-timeout` allows a longer wait",
        );
        check(
            &refused(ErrorKind::OutcomeUnknown, |data| {
                data.observed = Some(ReconcileReport {
                    stable: false,
                    satisfied: None,
                    machine_state: Some("starting".into()),
                });
            }),
            "the last check found the machine starting, which may still change; orbd did not retry; `orbd-ctl list --max-age 0` shows the current state",
        );
    }
}

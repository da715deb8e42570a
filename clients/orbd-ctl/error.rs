//! What can go wrong, what to say of it, what to do next, and with which code to exit.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use orbd::client::CallError;
use orbd::error_chain::append_causes;
use orbd::rpc::errors::ErrorKind;
use orbd::rpc::types::{ErrorData, ErrorObject};
use serde::Serialize;

use crate::console::Console;
use crate::render;

/// Exit codes. The table for people is in `orbd-ctl --help` and in `docs/cli.md`.
pub(crate) mod exit {
    /// It was tried and failed.
    pub(crate) const FAILED: u8 = 1;
    /// The command line, or a value in it, is wrong.
    pub(crate) const USAGE: u8 = 2;
    /// The daemon cannot be reached.
    pub(crate) const UNREACHABLE: u8 = 3;
    /// What was named does not exist, exists already, or is in the wrong state.
    pub(crate) const WRONG_OBJECT: u8 = 4;
    /// The queue refused, or a limit passed.
    pub(crate) const REFUSED: u8 = 5;
    /// Somebody else cancelled it, or the daemon died under it.
    pub(crate) const CUT_SHORT: u8 = 6;
    /// It may have happened.
    pub(crate) const UNKNOWN: u8 = 7;
    /// `run`: the command's time limit passed, as `timeout` says it.
    pub(crate) const RUN_TIMED_OUT: u8 = 124;
    /// `run`: the command could not be run, as `docker run` says it.
    pub(crate) const RUN_FAILED: u8 = 125;
    /// Ctrl-C: 128 + SIGINT.
    pub(crate) const INTERRUPTED: u8 = 130;
    /// Our reader went away: 128 + SIGPIPE.
    pub(crate) const BROKEN_PIPE: u8 = 141;
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The daemon refused or failed.
    #[error("{}", .0.message)]
    Refused(ErrorObject),
    /// Nobody listens on the socket.
    #[error("orbd is not running: nothing listens on {}", .socket.display())]
    NotRunning {
        /// Where it would listen.
        socket: PathBuf,
    },
    /// The socket is there but cannot be used.
    #[error("cannot connect to orbd on {}", .socket.display())]
    Unreachable {
        /// Where.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The daemon takes connections but says nothing.
    #[error("orbd on {} takes connections but does not answer", .socket.display())]
    Mute {
        /// Where.
        socket: PathBuf,
    },
    /// The daemon could not be started.
    #[error("orbd could not be started: {reason}")]
    NotStarted {
        /// Why.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// The service manager refused.
    #[error("{message}")]
    Service {
        /// What it was told, and what it said.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The connection broke in the middle.
    #[error("the connection to orbd was lost")]
    Lost(#[source] io::Error),
    /// The answer makes no sense to us.
    #[error("orbd's answer to {method} could not be read")]
    Unreadable {
        /// The call.
        method: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Client and daemon speak different protocols.
    #[error("{message}")]
    Protocol {
        /// Who speaks which.
        message: String,
        /// What brings both to one.
        hint: String,
    },
    /// What was typed makes no sense, in a way that the grammar cannot see.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to type instead.
        hint: String,
    },
    /// What was asked for is not there.
    #[error("{message}")]
    Absent {
        /// What is missing.
        message: String,
        /// What to do.
        hint: String,
    },
    /// Ctrl-C; whoever noticed has said what became of the job.
    #[error("interrupted")]
    Interrupted,
    /// Something on this side failed.
    #[error("{what}")]
    Local {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Our own output could not be written.
    #[error("output could not be written")]
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

/// What `--json` says of a failure.
#[derive(Serialize)]
struct JsonError {
    error: ErrorObject,
}

impl CliError {
    /// Returns the kind that the daemon gave, where it is one we know.
    pub(crate) fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused(error) => ErrorKind::from_word(&error.data.as_ref()?.kind),
            _ => None,
        }
    }

    /// Returns the exit code.
    pub(crate) fn exit(&self) -> u8 {
        match self {
            Self::Refused(_) => self.kind().map_or(exit::FAILED, exit_of_kind),
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

    /// Returns the exit code of `run`, where the small numbers belong to the guest's command.
    pub(crate) fn exit_of_run(&self) -> u8 {
        match self.exit() {
            code @ (exit::INTERRUPTED | exit::BROKEN_PIPE) => code,
            _ if self.ran_out_of_time() => exit::RUN_TIMED_OUT,
            _ => exit::RUN_FAILED,
        }
    }

    /// Says whether the run limit passed, not the one for waiting.
    fn ran_out_of_time(&self) -> bool {
        self.kind() == Some(ErrorKind::DeadlineExceeded)
            && self.data().and_then(|data| data.phase.as_deref()) == Some("running")
    }

    fn data(&self) -> Option<&ErrorData> {
        match self {
            Self::Refused(error) => error.data.as_deref(),
            _ => None,
        }
    }

    /// Returns the whole chain in one sentence. What the wire calls by another name than the command line is called as it was
    /// typed.
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

    /// Returns what to do next.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Refused(error) => return hint_of_refusal(self.kind()?, error.data.as_ref()?),
            Self::NotRunning { .. } => "`orbd-ctl daemon start` starts it",
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "the socket belongs to another user; orbd runs once per user: check ORBD_SOCKET and --socket"
            }
            Self::Unreachable { .. } => "check ORBD_SOCKET and --socket; a path has at most 103 bytes",
            Self::Mute { .. } => {
                "it may be stopped (`fg`) or stuck: its log says more; ending its process and `orbd-ctl daemon start` gets a fresh one"
            }
            Self::Lost(_) => {
                "what was asked may have been done: look (`orbd-ctl list`, `orbd-ctl jobs --all`) before you repeat it"
            }
            Self::Unreadable { .. } => {
                "after an upgrade, `orbd-ctl daemon restart` brings both to one version; `orbd-ctl version` shows them"
            }
            Self::NotStarted { hint, .. }
            | Self::Protocol { hint, .. }
            | Self::Service { hint, .. }
            | Self::Usage { hint, .. }
            | Self::Absent { hint, .. } => hint,
            Self::Interrupted | Self::Local { .. } | Self::Output(_) => return None,
        };
        Some(hint.to_owned())
    }

    /// Returns it as the wire would say it; kinds of our own have code 0.
    fn error_object(&self) -> ErrorObject {
        let kind = match self {
            Self::Refused(error) => return error.clone(),
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

    /// Tells it: a sentence and a hint for a person, and with `--json` the object for a program.
    pub(crate) fn tell(&self, console: &mut Console) {
        if matches!(self, Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe) {
            // Whoever read our output has seen enough.
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
            // The message often quotes its last line already.
            let is_new = |line: &&str| !line.trim().is_empty() && !sentence.contains(line.trim());
            text.extend(
                tail.lines()
                    .filter(is_new)
                    .map(|line| format!("  orbctl: {line}\n")),
            );
        }
        if let Some(hint) = self.hint() {
            let label = paint(render::HINT, "hint:");
            text.extend([label.as_str(), " ", &hint, "\n"]);
        }
        let _ = console
            .err
            .write_all(console.err_look.paragraph(&text, 2).as_bytes());
    }

    /// Tells it and returns the exit code.
    pub(crate) fn end(&self, console: &mut Console) -> ExitCode {
        self.tell(console);
        ExitCode::from(self.exit())
    }
}

/// Returns what is typed for a field of the wire, where it is not called the same.
fn flag_of(field: &str) -> Option<&'static str> {
    Some(match field {
        "run_timeout_ms" | "timeout_ms" => "--timeout",
        "queue_timeout_ms" => "--queue-timeout",
        "max_age_ms" => "--max-age",
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
            "orbd goes on as it was; `orbd-ctl daemon config check` says whether the file is in order".into()
        }
        ErrorKind::ParseError
        | ErrorKind::InvalidRequest
        | ErrorKind::MethodNotFound
        | ErrorKind::ProtocolMismatch => {
            "orbd is another version: `orbd-ctl daemon restart` after an upgrade".into()
        }
        ErrorKind::MachineNotFound => "`orbd-ctl list` shows the machines".into(),
        ErrorKind::MachineExists => match machine {
            Some(name) => format!("choose another name, or `orbd-ctl delete {name}` first"),
            None => "choose another name; `orbd-ctl list` shows those taken".into(),
        },
        ErrorKind::MachineWrongState => match machine {
            Some(name) => format!("`orbd-ctl info {name}` shows its state"),
            None => "`orbd-ctl list` shows the states".into(),
        },
        ErrorKind::QueueFull => {
            let when = data
                .retry_after_ms
                .map_or_else(String::new, |ms| format!(" in {}", render::duration_us(ms * 1000)));
            format!("try again{when}; `orbd-ctl jobs` shows what waits")
        }
        ErrorKind::StoreUnavailable => {
            "try again in a few seconds; `orbd-ctl metrics counters` shows the state of the store, and everything else works"
                .into()
        }
        ErrorKind::JournalUnavailable => {
            "free some space on the disk of orbd's state folder, or run it without --detach; `orbd-ctl doctor` shows the folder".into()
        }
        ErrorKind::Overloaded => "try again when other clients have read their answers".into(),
        ErrorKind::TooManyConnections => {
            "close connections of other clients and try again; `connections_max` in the configuration allows more".into()
        }
        ErrorKind::Draining => "`orbd-ctl queue resume` accepts work again".into(),
        ErrorKind::JobNotFound => {
            "`orbd-ctl jobs --all` lists the jobs still known, `orbd-ctl metrics history` older ones".into()
        }
        ErrorKind::JobCancelled => match data.phase.as_deref() {
            Some("queued") => "it never started; `orbd-ctl jobs --all` shows it".into(),
            _ => "it was stopped while it ran; `orbd-ctl jobs --all` shows it".into(),
        },
        ErrorKind::DeadlineExceeded => match (data.phase.as_deref(), &data.waiting_for) {
            (Some("running"), _) => "it ran into its limit; `--timeout` sets it".into(),
            (_, Some(holder)) => format!(
                "it never started: {} was in the way; `--queue-timeout` allows it longer",
                holder.description
            ),
            _ => "it never started; `--queue-timeout` allows it longer".into(),
        },
        ErrorKind::JobInterrupted => {
            "orbd died while it ran, and how it ended was not seen: look before you repeat it".into()
        }
        ErrorKind::OutcomeUnknown => {
            let seen = match &data.observed {
                Some(seen) => {
                    let state = seen.machine_state.as_deref().map_or_else(
                        || "the machine was not there".into(),
                        |state| format!("the machine was {state}"),
                    );
                    let settled = if seen.stable { "" } else { ", and that may still change" };
                    format!("at the last look {state}{settled}; ")
                }
                None => String::new(),
            };
            format!("{seen}`orbd-ctl list --max-age 0` looks again. Nothing was tried twice")
        }
        ErrorKind::OrbctlUnavailable => {
            "install OrbStack, or say where orbctl is in orbd's configuration; `orbd-ctl daemon status` shows what was found"
                .into()
        }
        ErrorKind::OrbctlUnhealthy => {
            "nothing was begun; orbd keeps looking, and `orbd-ctl queue` shows since when. If it does not pass: \
             `orbd-ctl stop --orbstack --force`, then `orbd-ctl start --force`"
                .into()
        }
        ErrorKind::OrbctlKilled | ErrorKind::OrbctlOutputUnreadable => {
            "`orbd-ctl status` shows how OrbStack is; orbd's log has the details".into()
        }
        ErrorKind::Internal => match data.incident.as_deref() {
            Some(incident) => format!("this is a bug in orbd; its log has the line {incident}"),
            None => "this is a bug in orbd; its log says more".into(),
        },
    })
}

#[cfg(test)]
mod tests {
    use orbd::rpc::types::{ReconcileReport, WaitingFor};

    use super::*;

    fn refused(kind: ErrorKind, fill: impl FnOnce(&mut ErrorData)) -> CliError {
        let mut error = kind.error("sorry");
        fill(error.data.as_mut().expect("has data"));
        CliError::Refused(error)
    }

    #[test]
    fn each_kind_has_an_exit_code_that_is_not_success() {
        for kind in ErrorKind::ALL {
            let error = CliError::Refused(kind.error("sorry"));
            assert!((1..=7).contains(&error.exit()), "{kind:?}");
            assert!(error.exit_of_run() >= 124, "{kind:?}");
        }
    }

    #[test]
    fn a_run_tells_its_own_time_limit_from_the_queues() {
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
            "choose another name, or `orbd-ctl delete web` first",
        );
        check(
            &refused(ErrorKind::QueueFull, |data| data.retry_after_ms = Some(1500)),
            "try again in 1.5 s; `orbd-ctl jobs` shows what waits",
        );
        check(
            &refused(ErrorKind::DeadlineExceeded, |data| {
                data.phase = Some("queued".into());
                data.waiting_for = Some(WaitingFor {
                    kind: "job".into(),
                    description: "job 12 (create web) of pyinfra".into(),
                    job_id: Some(12),
                    operation: None,
                    machine: None,
                    client: None,
                    age_ms: None,
                    limit: None,
                    reason: None,
                });
            }),
            "it never started: job 12 (create web) of pyinfra was in the way; `--queue-timeout` allows it longer",
        );
        check(
            &refused(ErrorKind::OutcomeUnknown, |data| {
                data.observed = Some(ReconcileReport {
                    stable: false,
                    satisfied: None,
                    machine_state: Some("starting".into()),
                });
            }),
            "at the last look the machine was starting, and that may still change; `orbd-ctl list --max-age 0` looks again. Nothing was tried twice",
        );
    }
}

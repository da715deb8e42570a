//! Typed operations: operands, class, the lanes that an operation locks, and the cached data that it makes stale.
//!
//! An [`Operation`] does not say how it is carried out; only `orbctl::argv` converts it to arguments. Keep the table in
//! `docs/ARCHITECTURE.md` in step with [`Operation::footprint`].

mod client_action;
mod footprint;
mod raw_query;
mod unknown_form;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

pub use client_action::{BatchVerb, ClientAction};
pub use footprint::{Access, Class, Effect, Footprint, Lane, Scope};
pub use orbd_host::caller_env::{CallerEnv, CallerEnvError, EnvName};
pub use orbd_host::token::{Arch, ConfigKey, Distro, DistroVersion, Mount, Size, TokenError, UserName};
pub use raw_query::{Format, RawQuery};
pub use unknown_form::{FormVerb, UnknownForm};

use crate::machine::{MachineId, MachineName};

/// One operation that a caller can request.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// A read. Equal reads share one invocation.
    Query(Query),
    /// Runs a command in a machine.
    Exec(MachineName, ExecRequest),
    /// Copies files from the Mac into a machine. The client carries it out under a lease.
    Push(MachineName),
    /// Copies files from a machine to the Mac. The client carries it out under a lease.
    Pull(MachineName),
    /// Creates a machine and boots it.
    Create(NewMachine),
    /// Boots a machine.
    Start(MachineName),
    /// Shuts a machine down.
    Stop(MachineName, Force),
    /// Shuts a machine down and boots it again.
    Restart(MachineName),
    /// Deletes a machine and its data.
    Delete(MachineName),
    /// Renames a machine.
    Rename {
        /// Current name.
        from: MachineName,
        /// New name.
        to: MachineName,
    },
    /// Copies a machine; the copy is stopped.
    Clone {
        /// Name of the machine to copy.
        source: MachineName,
        /// Name of the copy.
        copy: MachineName,
    },
    /// Writes a machine to an archive on the Mac.
    Export(MachineName, PathBuf),
    /// Creates a machine from an archive on the Mac.
    Import(MachineName, PathBuf),
    /// Sets the default machine, used by commands that name none. `None` clears it.
    SetDefault(Option<MachineName>),
    /// Sets one configuration key.
    ConfigSet {
        /// Configuration key, as in `machine.web.username`.
        key: ConfigKey,
        /// Value, in the syntax of `orbctl config set`.
        value: Arc<str>,
    },
    /// Resets the whole configuration to its defaults.
    ConfigReset,
    /// Starts OrbStack itself.
    StartOrbstack(Force),
    /// Stops OrbStack itself and with it every machine.
    StopOrbstack(Force),
    /// Starts every machine.
    StartAll,
    /// Stops every machine.
    StopAll(Force),
    /// An operation that only clients carry out, under leases.
    ClientAction(ClientAction),
}

/// A read. Equal queries share one invocation until the cache generation changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Query {
    /// Every machine.
    List,
    /// One machine with its addresses and size.
    Info(MachineName),
    /// Status of OrbStack. The only query that does not start OrbStack.
    Status,
    /// Version of `orbctl`.
    Version,
    /// The whole configuration.
    ConfigShow,
    /// The default machine.
    Default,
    /// SSH connection settings for machines.
    Ssh,
    /// A machine's log so far.
    Logs(MachineName, LogScope),
    /// The raw output of `orbctl` for a read, byte for byte.
    RawQuery(RawQuery),
}

/// Which logs of a machine to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LogScope {
    /// The logs that `orbctl logs` shows by default.
    Default,
    /// All logs (`--all`).
    All,
}

/// Whether an operation waits for conflicting jobs or preempts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Force {
    /// Wait for conflicting jobs.
    No,
    /// Stop conflicting jobs that run and cancel those that wait, so that an operation that repairs OrbStack never queues behind
    /// jobs that are stuck.
    Yes,
}

/// A command to run in a machine. Its `Debug` output shows counts, never contents: arguments, environment and input may hold
/// secrets.
#[derive(Clone, PartialEq)]
pub struct ExecRequest {
    /// Program and arguments. Never empty; the program does not start with `-`; no NUL bytes.
    command: Vec<String>,
    /// Guest user; `None` for the machine's default user.
    pub user: Option<UserName>,
    /// Guest directory; `None` for the guest user's home.
    pub workdir: Option<String>,
    /// Guest directory to start in if it exists, otherwise the home directory. Ignored if `workdir` is set.
    pub try_workdir: Option<String>,
    /// Additional environment variables, in order.
    pub env: Vec<(EnvName, String)>,
    /// Variables from the caller's environment that `orbctl run` reads or passes to the guest.
    pub caller_env: CallerEnv,
    /// Standard input of the command.
    pub stdin: Stdin,
    /// How much of its output orbd keeps.
    pub output: OutputKept,
}

/// Why a command was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The command has no arguments, not even a program.
    #[error("a command cannot be empty")]
    Empty,
    /// `orbctl run` would parse the first argument as a flag of its own.
    #[error("the program of a command cannot be empty or start with '-'")]
    LeadingHyphen,
    /// A process argument cannot contain a NUL byte.
    #[error("a command cannot contain NUL bytes")]
    Nul,
}

impl ExecRequest {
    /// Creates a request to run `command` as the machine's default user, in that user's home, with empty input.
    pub fn new(command: Vec<String>) -> Result<Self, CommandError> {
        let first = command.first().ok_or(CommandError::Empty)?;
        if first.is_empty() || first.starts_with('-') {
            return Err(CommandError::LeadingHyphen);
        }
        if command.iter().any(|word| word.contains('\0')) {
            return Err(CommandError::Nul);
        }
        Ok(Self {
            command,
            user: None,
            workdir: None,
            try_workdir: None,
            env: Vec::new(),
            caller_env: CallerEnv::default(),
            stdin: Stdin::Empty,
            output: OutputKept::All,
        })
    }

    /// Returns a copy that keeps only whether input was streamed and how output is kept. An ended command needs no more, and its
    /// arguments, environment and input may hold secrets or megabytes.
    #[must_use]
    pub fn forgotten(&self) -> Self {
        let stdin = if self.stdin == Stdin::Stream {
            Stdin::Stream
        } else {
            Stdin::Empty
        };
        Self {
            command: vec!["forgotten".into()],
            user: None,
            workdir: None,
            try_workdir: None,
            env: Vec::new(),
            caller_env: CallerEnv::default(),
            stdin,
            output: self.output,
        }
    }

    /// Returns the program and its arguments.
    pub fn command(&self) -> &[String] {
        &self.command
    }
}

impl fmt::Debug for ExecRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecRequest")
            .field("words", &self.command.len())
            .field("user", &self.user)
            .field("env", &self.env.len())
            .finish_non_exhaustive()
    }
}

/// How much of a command's output orbd keeps, within the spool's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKept {
    /// Keep everything.
    All,
    /// Keep what attached readers have not read yet and the most recent output; keep everything while no reader is attached.
    Unread,
}

/// Standard input of a command.
#[derive(Clone, PartialEq)]
pub enum Stdin {
    /// Empty: end of file at once.
    Empty,
    /// These bytes, then end of file.
    Bytes(Bytes),
    /// Bytes that the client sends while the command runs.
    Stream,
}

/// The parameters of a machine to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMachine {
    /// Name of the new machine.
    pub name: MachineName,
    /// Distribution to install.
    pub distro: Distro,
    /// Version; `None` for the distribution's newest.
    pub version: Option<DistroVersion>,
    /// Architecture; `None` for that of the Mac.
    pub arch: Option<Arch>,
    /// Default user; `None` for the name of the Mac's user.
    pub user: Option<UserName>,
    /// Processor limit (OrbStack 2.2 and later).
    pub cpus: Option<u32>,
    /// Memory limit (OrbStack 2.2 and later).
    pub memory: Option<Size>,
    /// Disk limit (OrbStack 2.2 and later).
    pub disk: Option<Size>,
    /// Deny access to the Mac (OrbStack 2.1 and later).
    pub isolated: bool,
    /// Deny access to the Mac's network (OrbStack 2.1 and later).
    pub isolate_network: bool,
    /// Shared folders of an isolated machine (OrbStack 2.1 and later).
    pub mounts: Vec<Mount>,
    /// Forward the Mac's SSH agent (OrbStack 2.1 and later).
    pub forward_ssh_agent: bool,
}

/// A machine as named by a caller. An id is resolved to a name before a footprint is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineRef {
    /// A name.
    Name(MachineName),
    /// Shaped like an id, but may also be the name of a machine.
    IdOrName(MachineId, MachineName),
}

impl std::str::FromStr for MachineRef {
    type Err = crate::machine::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name: MachineName = text.parse()?;
        Ok(match text.parse::<MachineId>() {
            Ok(id) => Self::IdOrName(id, name),
            Err(_) => Self::Name(name),
        })
    }
}

impl Operation {
    /// Returns the verb used on the wire, in logs and in metrics.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Query(query) => query.verb(),
            Self::Exec(..) => "run",
            Self::Push(_) => "push",
            Self::Pull(_) => "pull",
            Self::Create(_) => "create",
            Self::Start(_) => "start",
            Self::Stop(..) => "stop",
            Self::Restart(_) => "restart",
            Self::Delete(_) => "delete",
            Self::Rename { .. } => "rename",
            Self::Clone { .. } => "clone",
            Self::Export(..) => "export",
            Self::Import(..) => "import",
            Self::SetDefault(_) => "set_default",
            Self::ConfigSet { .. } => "config_set",
            Self::ConfigReset => "config_reset",
            Self::StartOrbstack(_) => "start_orbstack",
            Self::StopOrbstack(_) => "stop_orbstack",
            Self::StartAll => "start_all",
            Self::StopAll(_) => "stop_all",
            Self::ClientAction(client_action) => client_action.verb(),
        }
    }

    /// Returns the machine that the operation is mainly about, if there is one.
    pub fn machine(&self) -> Option<&MachineName> {
        match self {
            Self::Query(Query::Info(name) | Query::Logs(name, _))
            | Self::Exec(name, _)
            | Self::Push(name)
            | Self::Pull(name)
            | Self::Start(name)
            | Self::Stop(name, _)
            | Self::Restart(name)
            | Self::Delete(name)
            | Self::Rename { from: name, .. }
            | Self::Clone { copy: name, .. }
            | Self::Export(name, _)
            | Self::Import(name, _)
            | Self::SetDefault(Some(name)) => Some(name),
            Self::Create(new) => Some(&new.name),
            Self::ClientAction(client_action) => client_action.machine(),
            Self::Query(Query::RawQuery(read)) => read.machine(),
            Self::Query(_)
            | Self::SetDefault(None)
            | Self::ConfigSet { .. }
            | Self::ConfigReset
            | Self::StartOrbstack(_)
            | Self::StopOrbstack(_)
            | Self::StartAll
            | Self::StopAll(_) => None,
        }
    }

    /// Returns the class, which determines the limits that apply.
    pub fn class(&self) -> Class {
        match self {
            Self::Query(_) => Class::Query,
            Self::Exec(..) | Self::Push(_) | Self::Pull(_) => Class::Exec,
            Self::Create(_) | Self::Import(..) => Class::Creation,
            Self::Start(_)
            | Self::Stop(..)
            | Self::Restart(_)
            | Self::Delete(_)
            | Self::Rename { .. }
            | Self::Clone { .. }
            | Self::Export(..)
            | Self::SetDefault(_) => Class::Change,
            Self::ConfigSet { .. } | Self::ConfigReset => Class::Configuration,
            Self::StartOrbstack(_) | Self::StopOrbstack(_) | Self::StartAll | Self::StopAll(_) => {
                Class::Fleet
            }
            Self::ClientAction(client_action) => client_action.class(),
        }
    }

    /// Returns the lanes that the operation locks, and the access to each.
    pub fn footprint(&self) -> Footprint {
        use Access::{Exclusive, Shared};
        let machine = |name: &MachineName, access| (Lane::Machine(name.clone()), access);
        let fleet = (Lane::Fleet, Shared);
        match self {
            Self::Query(_) => Footprint::NONE,
            Self::Exec(name, _) | Self::Push(name) | Self::Pull(name) => {
                Footprint::new([machine(name, Shared), fleet])
            }
            Self::Create(NewMachine { name, .. })
            | Self::Start(name)
            | Self::Stop(name, _)
            | Self::Restart(name)
            | Self::Delete(name)
            | Self::Export(name, _)
            | Self::Import(name, _) => Footprint::new([machine(name, Exclusive), fleet]),
            Self::Rename { from: one, to: other }
            | Self::Clone {
                source: one,
                copy: other,
            } => Footprint::new([machine(one, Exclusive), machine(other, Exclusive), fleet]),
            Self::SetDefault(name) => Footprint::new(
                name.iter()
                    .map(|name| machine(name, Exclusive))
                    .chain([(Lane::Configuration, Exclusive), fleet]),
            ),
            // Takes no machine's lane, so it blocks no machine; a change of the fleet waits for it.
            Self::ConfigSet { .. } | Self::ConfigReset => {
                Footprint::new([(Lane::Configuration, Exclusive), fleet])
            }
            Self::StartOrbstack(_) | Self::StopOrbstack(_) | Self::StartAll | Self::StopAll(_) => {
                Footprint::new([(Lane::Fleet, Exclusive)])
            }
            Self::ClientAction(client_action) => client_action.footprint(),
        }
    }

    /// Returns what the operation makes stale. A command changes its machine only if it may start it, which only the dispatcher
    /// knows.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Query(_) | Self::Exec(..) | Self::Push(_) | Self::Pull(_) => Effect::Reads,
            Self::Create(NewMachine { name, .. })
            | Self::Start(name)
            | Self::Stop(name, _)
            | Self::Restart(name)
            | Self::Delete(name)
            | Self::Export(name, _)
            | Self::Import(name, _) => Effect::Changes(Scope::Machines(vec![name.clone()])),
            Self::Rename { from: one, to: other }
            | Self::Clone {
                source: one,
                copy: other,
            } => Effect::Changes(Scope::Machines(vec![one.clone(), other.clone()])),
            Self::SetDefault(_) | Self::ConfigSet { .. } | Self::ConfigReset => {
                Effect::Changes(Scope::Configuration)
            }
            Self::StartOrbstack(_) | Self::StopOrbstack(_) | Self::StartAll | Self::StopAll(_) => {
                Effect::Changes(Scope::Everything)
            }
            Self::ClientAction(client_action) => client_action.effect(),
        }
    }

    /// Returns the approximate size of its operands in bytes.
    pub fn weight(&self) -> u64 {
        let Self::Exec(_, request) = self else {
            return 0;
        };
        let words: usize = request.command.iter().map(String::len).sum();
        let env: usize = request.env.iter().map(|(_, value)| value.len()).sum();
        let input = match &request.stdin {
            Stdin::Bytes(bytes) => bytes.len(),
            Stdin::Empty | Stdin::Stream => 0,
        };
        (words + env + input) as u64
    }

    /// Returns whether the run limit of its class applies.
    pub fn has_run_limit(&self) -> bool {
        match self {
            Self::ClientAction(client_action) => client_action.has_run_limit(),
            _ => true,
        }
    }

    /// Returns whether it stops conflicting jobs that run and cancels those that wait, instead of queueing behind them.
    pub fn preempts(&self) -> bool {
        match self {
            Self::Stop(_, force)
            | Self::StartOrbstack(force)
            | Self::StopOrbstack(force)
            | Self::StopAll(force) => *force == Force::Yes,
            Self::ClientAction(client_action) => client_action.preempts(),
            _ => false,
        }
    }
}

impl Query {
    /// Returns the verb used on the wire, in logs and in metrics.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Info(_) => "info",
            Self::Status => "status",
            Self::Version => "version",
            Self::ConfigShow => "config_show",
            Self::Default => "default",
            Self::Ssh => "ssh",
            Self::Logs(..) => "logs",
            Self::RawQuery(read) => read.subject().verb(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> MachineName {
        text.parse().expect("a valid name")
    }

    #[test]
    fn query_locks_no_lane() {
        assert_eq!(Operation::Query(Query::List).footprint(), Footprint::NONE);
    }

    #[test]
    fn rename_locks_both_names_exclusively() {
        let rename = Operation::Rename {
            from: name("a"),
            to: name("b"),
        };
        for machine in ["a", "b"] {
            assert!(
                rename
                    .footprint()
                    .lanes()
                    .contains(&(Lane::Machine(name(machine)), Access::Exclusive))
            );
        }
    }

    #[test]
    fn debug_output_of_a_command_shows_none_of_its_contents() {
        let mut request = ExecRequest::new(vec!["echo".into(), "hunter2".into()]).expect("valid");
        request
            .env
            .push(("TOKEN".parse().expect("valid"), "hunter2".into()));
        request.stdin = Stdin::Bytes(Bytes::from_static(b"hunter2"));
        assert!(!format!("{request:?}").contains("hunter2"));
    }

    #[test]
    fn command_that_could_become_a_flag_is_rejected() {
        assert_eq!(ExecRequest::new(vec![]), Err(CommandError::Empty));
        assert_eq!(
            ExecRequest::new(vec!["-u".into()]),
            Err(CommandError::LeadingHyphen)
        );
        assert_eq!(ExecRequest::new(vec!["a\0".into()]), Err(CommandError::Nul));
    }
}

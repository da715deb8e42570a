//! What a caller can ask for, in three parts: the [`Action`] that orbd runs, with its operands; the [`JobInfo`] that the rest of the
//! daemon sees; and the [`Goal`] that reconciliation checks.
//!
//! An [`Action`] does not say how it is carried out; only `orbctl` converts it to arguments. An operation that a client's
//! own process carries out under a lease has no action: its operands stay with the client.

mod footprint;
mod goal;
mod job_info;
mod raw_query;
mod verb;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

pub use footprint::{Access, Class, Effect, Footprint, Lane, Scope};
pub use goal::Goal;
pub use job_info::JobInfo;
pub use orbd_host::caller_env::{CallerEnv, CallerEnvError, EnvName};
pub use orbd_host::token::{Arch, ConfigKey, Distro, DistroVersion, Mount, Size, TokenError, UserName};
pub use raw_query::{Format, RawQuery};
pub use verb::Verb;

use orbd_host::machine::{MachineId, MachineName};

/// What orbd runs for a job, with all operands.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// A read. Equal reads share one invocation.
    Query(Query),
    /// Runs a command in a machine.
    Exec(MachineName, ExecRequest),
    /// Changes machines or OrbStack.
    Change(Change),
}

/// A change that orbd carries out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
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
    /// Adds an entry to a configuration key that holds a list.
    ConfigAdd {
        /// Configuration key, as in `machine.web.mounts`.
        key: ConfigKey,
        /// Entry, in the syntax of `orbctl config add`.
        value: Arc<str>,
    },
    /// Removes an entry from a configuration key that holds a list.
    ConfigRemove {
        /// Configuration key, as in `machine.web.mounts`.
        key: ConfigKey,
        /// Entry, as it was added.
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
}

impl From<Change> for Action {
    fn from(change: Change) -> Self {
        Self::Change(change)
    }
}

impl Action {
    /// Returns the job that runs this action.
    pub fn info(&self) -> JobInfo {
        match self {
            Self::Query(query) => JobInfo::read(query),
            Self::Exec(machine, _) => JobInfo::new(false, Verb::Run, vec![machine.clone()]),
            Self::Change(change) => change.info(),
        }
    }
}

impl Change {
    /// Returns the job that carries out this change.
    pub fn info(&self) -> JobInfo {
        let on = |verb, machines: &[&MachineName]| {
            JobInfo::new(false, verb, machines.iter().copied().cloned().collect())
        };
        match self {
            Self::Create(new) => on(Verb::Create, &[&new.name]),
            Self::Start(name) => on(Verb::Start, &[name]),
            Self::Stop(name, force) => on(Verb::Stop, &[name]).forced(*force),
            Self::Restart(name) => on(Verb::Restart, &[name]),
            Self::Delete(name) => on(Verb::Delete, &[name]),
            Self::Rename { from, to } => on(Verb::Rename, &[from, to]),
            Self::Clone { source, copy } => on(Verb::Clone, &[source, copy]),
            Self::Export(name, _) => on(Verb::Export, &[name]),
            Self::Import(name, _) => on(Verb::Import, &[name]),
            Self::SetDefault(name) => on(Verb::SetDefault, name.as_ref().as_slice()),
            Self::ConfigSet { key, value } => {
                let mut info = on(Verb::ConfigSet, &[]);
                info.goal = Goal::Setting {
                    key: key.clone(),
                    value: value.clone(),
                };
                info
            }
            Self::ConfigAdd { .. } => on(Verb::ConfigAdd, &[]),
            Self::ConfigRemove { .. } => on(Verb::ConfigRemove, &[]),
            Self::ConfigReset => on(Verb::ConfigReset, &[]),
            Self::StartOrbstack(force) => on(Verb::StartOrbstack, &[]).forced(*force),
            Self::StopOrbstack(force) => on(Verb::StopOrbstack, &[]).forced(*force),
            Self::StartAll => on(Verb::StartAll, &[]),
            Self::StopAll(force) => on(Verb::StopAll, &[]).forced(*force),
        }
    }
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
    /// Whether it may run through a resident channel.
    pub channel: ChannelUse,
}

/// Whether a command may run through a resident channel to its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChannelUse {
    /// If there is one that is free, or if several commands follow each other.
    #[default]
    Auto,
    /// The same, and more commands for the machine will follow: the first one opens a channel.
    MoreFollow,
    /// No: as an `orbctl run` of its own.
    Off,
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
            channel: ChannelUse::Auto,
        })
    }

    /// Returns the program and its arguments.
    pub fn command(&self) -> &[String] {
        &self.command
    }

    /// Returns the approximate size of its operands in bytes.
    pub fn weight(&self) -> u64 {
        let words: usize = self.command.iter().map(String::len).sum();
        let env: usize = self.env.iter().map(|(_, value)| value.len()).sum();
        let input = match &self.stdin {
            Stdin::Bytes(bytes) => bytes.len(),
            Stdin::Empty | Stdin::Stream => 0,
        };
        (words + env + input) as u64
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

impl NewMachine {
    /// Returns a machine with OrbStack's defaults.
    pub fn new(name: MachineName, distro: Distro) -> Self {
        Self {
            name,
            distro,
            version: None,
            arch: None,
            user: None,
            cpus: None,
            memory: None,
            disk: None,
            isolated: false,
            isolate_network: false,
            mounts: Vec::new(),
            forward_ssh_agent: false,
        }
    }
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
    type Err = orbd_host::machine::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name: MachineName = text.parse()?;
        Ok(match text.parse::<MachineId>() {
            Ok(id) => Self::IdOrName(id, name),
            Err(_) => Self::Name(name),
        })
    }
}

impl Query {
    /// Returns the verb of the read.
    pub fn verb(&self) -> Verb {
        match self {
            Self::List => Verb::List,
            Self::Info(_) => Verb::Info,
            Self::Status => Verb::Status,
            Self::Version => Verb::Version,
            Self::ConfigShow => Verb::ConfigShow,
            Self::Default => Verb::Default,
            Self::Ssh => Verb::Ssh,
            Self::Logs(..) => Verb::Logs,
            Self::RawQuery(read) => read.subject().verb(),
        }
    }

    /// Returns the machine that the read is about, if there is one.
    pub fn machine(&self) -> Option<&MachineName> {
        match self {
            Self::Info(name) | Self::Logs(name, _) => Some(name),
            Self::RawQuery(read) => read.machine(),
            Self::List | Self::Status | Self::Version | Self::ConfigShow | Self::Default | Self::Ssh => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

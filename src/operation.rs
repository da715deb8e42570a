//! What a caller wants, typed: its operands, its class, the lanes it touches and what it makes stale.
//!
//! An [`Operation`] says nothing about how it is carried out; `orbctl::argv` alone turns it into arguments. The table in
//! `docs/ARCHITECTURE.md` and the one in [`Operation::footprint`] are the same.

mod client_action;
mod raw_query;
mod unknown_form;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

pub use client_action::{BatchVerb, ClientAction};
pub use raw_query::{Format, RawQuery};
pub use unknown_form::{FormVerb, UnknownForm};

use crate::machine::{MachineId, MachineName};

/// One thing that a caller can ask of `orbctl`.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// A read. Equal ones join.
    Query(Query),
    /// Runs a command in a machine.
    Exec(MachineName, ExecRequest),
    /// Copies files of the Mac into a machine; carried out by the client in a lease.
    Push(MachineName),
    /// Copies files out of a machine to the Mac; carried out by the client in a lease.
    Pull(MachineName),
    /// Makes a machine and boots it.
    Create(NewMachine),
    /// Boots a machine.
    Start(MachineName),
    /// Shuts a machine down.
    Stop(MachineName, Force),
    /// Shuts a machine down and boots it.
    Restart(MachineName),
    /// Destroys a machine.
    Delete(MachineName),
    /// Gives a machine another name.
    Rename {
        /// Its name now.
        from: MachineName,
        /// Its name then.
        to: MachineName,
    },
    /// Copies a machine; the copy is stopped.
    Clone {
        /// What is copied.
        source: MachineName,
        /// The copy.
        copy: MachineName,
    },
    /// Writes a machine to an archive on the Mac.
    Export(MachineName, PathBuf),
    /// Makes a machine of an archive on the Mac.
    Import(MachineName, PathBuf),
    /// Names the machine that commands without a machine go to, or clears it.
    SetDefault(Option<MachineName>),
    /// Sets one configuration key.
    ConfigSet {
        /// Key, as in `machine.web.username`.
        key: ConfigKey,
        /// Value, as `orbctl config set` takes it.
        value: Arc<str>,
    },
    /// Puts the whole configuration back to its defaults.
    ConfigReset,
    /// Starts OrbStack itself.
    StartOrbstack(Force),
    /// Stops OrbStack itself and with it every machine.
    StopOrbstack(Force),
    /// Starts every machine.
    StartAll,
    /// Stops every machine.
    StopAll(Force),
    /// Something that only clients carry out, in leases.
    ClientAction(ClientAction),
}

/// A read. Equal queries share one invocation while the generation has not moved.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Query {
    /// Every machine.
    List,
    /// One machine with its addresses and size.
    Info(MachineName),
    /// How OrbStack is. The only one that does not wake it.
    Status,
    /// Which `orbctl` this is.
    Version,
    /// The whole configuration.
    ConfigShow,
    /// The default machine.
    Default,
    /// How to reach machines over SSH.
    Ssh,
    /// A machine's log so far.
    Logs(MachineName, LogScope),
    /// What `orbctl` prints for a read, byte for byte.
    RawQuery(RawQuery),
}

/// Which of a machine's logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LogScope {
    /// What `orbctl logs` shows by itself.
    Default,
    /// Everything, `--all`.
    All,
}

/// Whether to be polite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Force {
    /// Wait for what runs.
    No,
    /// End what runs, cancel what waits: the verbs that mend things never queue behind the illness.
    Yes,
}

/// A command to run in a machine. Its `Debug` shows counts, never contents: arguments, environment and input may hold secrets.
#[derive(Clone, PartialEq)]
pub struct ExecRequest {
    /// Program and arguments, kept as words. Never empty; the first does not start with `-`; no NUL bytes.
    command: Vec<String>,
    /// Guest user; the machine's default where absent.
    pub user: Option<UserName>,
    /// Guest directory; the guest user's home where absent.
    pub workdir: Option<String>,
    /// Guest directory to start in if it exists, otherwise the home. Unused where there is a `workdir`.
    pub try_workdir: Option<String>,
    /// Additional environment, in order.
    pub env: Vec<(EnvName, String)>,
    /// Variables of the caller's own environment that `orbctl run` reads or passes on.
    pub caller_env: CallerEnv,
    /// What the command reads.
    pub stdin: Stdin,
    /// What is kept of what it writes.
    pub output: OutputKept,
}

/// Why a command cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No words.
    #[error("a command has at least one word")]
    Empty,
    /// `orbctl run` would take the first word for a flag of its own.
    #[error("a command's first word cannot be empty or start with '-'")]
    LeadingHyphen,
    /// No process argument can hold a NUL byte.
    #[error("a command cannot contain NUL bytes")]
    Nul,
}

impl ExecRequest {
    /// Makes a request to run `command` as the machine's default user in its home with empty input.
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

    /// Returns a request that says no more than whether input was streamed: all that is needed of a command that is over, whose
    /// words, environment and input may hold secrets and megabytes.
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

    /// Returns program and arguments.
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

/// The variable in which a caller lists, separated by colons, the variables that `orbctl run` passes to the guest.
pub const ORBENV: &str = "ORBENV";

/// Variables of its caller that `orbctl run` reads, or passes to the guest without being asked to.
const READ_BY_ORBCTL: [&str; 11] = [
    ORBENV,
    "TERM",
    "DISPLAY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

/// What the environment of an `orbctl run` started by the caller itself would give the guest: `ORBENV`, the variables that it lists,
/// proxy settings, `TERM` and `DISPLAY`. The values may hold secrets, so there is no `Debug` output of them.
#[derive(Clone, PartialEq, Default)]
pub struct CallerEnv(BTreeMap<String, String>);

/// Why a variable does not belong into a [`CallerEnv`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallerEnvError {
    /// `orbctl run` would not pass it to the guest.
    #[error("`{0}` is neither listed in ORBENV nor a proxy variable, TERM or DISPLAY")]
    NotListed(String),
    /// An environment cannot hold it.
    #[error("the value of {0} contains a NUL byte")]
    Nul(String),
    /// JSON cannot carry it.
    #[error("the value of {0} in the environment is not UTF-8")]
    NotUtf8(String),
}

impl CallerEnv {
    /// Checks that nothing but what `orbctl run` reads is among these variables.
    pub fn new(variables: BTreeMap<String, String>) -> Result<Self, CallerEnvError> {
        let orbenv = variables.get(ORBENV).map_or("", String::as_str);
        for (name, value) in &variables {
            if !READ_BY_ORBCTL.contains(&name.as_str()) && !listed(orbenv).any(|listed| listed == name) {
                return Err(CallerEnvError::NotListed(name.clone()));
            }
            if value.contains('\0') {
                return Err(CallerEnvError::Nul(name.clone()));
            }
        }
        Ok(Self(variables))
    }

    /// Collects the variables from an environment that `read` looks into.
    pub fn collect(read: impl Fn(&str) -> Option<OsString>) -> Result<Self, CallerEnvError> {
        let text = |name: &str| {
            read(name)
                .map(|value| {
                    value
                        .into_string()
                        .map_err(|_| CallerEnvError::NotUtf8(name.into()))
                })
                .transpose()
        };
        let orbenv = text(ORBENV)?.unwrap_or_default();
        let mut variables = BTreeMap::new();
        for name in READ_BY_ORBCTL.into_iter().chain(listed(&orbenv)) {
            if let Some(value) = text(name)? {
                variables.insert(name.to_owned(), value);
            }
        }
        Ok(Self(variables))
    }

    /// Returns the variables by name.
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl fmt::Debug for CallerEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallerEnv({})", self.0.len())
    }
}

/// Returns the names that the value of `ORBENV` lists. What follows a `/` in an entry is a flag, as in WSLENV.
fn listed(orbenv: &str) -> impl Iterator<Item = &str> {
    orbenv
        .split(':')
        .map(listed_name)
        .filter(|name| is_env_name(name) && !name.starts_with("ORBD_"))
}

/// Returns the name in an entry of `ORBENV`.
pub fn listed_name(entry: &str) -> &str {
    entry.split('/').next().unwrap_or_default()
}

fn is_env_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether every `sh` (dash, bash and busybox were tried) exports exactly the value that it is given under this name. Some names are
/// read-only there or have a meaning of their own; `ORBD_E0` and so on are how values travel.
fn is_exported_as_given(name: &str) -> bool {
    const SET_BY_SH: [&str; 19] = [
        "_",
        "UID",
        "EUID",
        "PPID",
        "BASHOPTS",
        "BASHPID",
        "SHELLOPTS",
        "SHLVL",
        "OPTIND",
        "LINENO",
        "RANDOM",
        "SRANDOM",
        "SECONDS",
        "EPOCHSECONDS",
        "EPOCHREALTIME",
        "GROUPS",
        "DIRSTACK",
        "HISTCMD",
        "FUNCNAME",
    ];
    !SET_BY_SH.contains(&name)
        && (!name.starts_with("BASH_") || name == "BASH_ENV")
        && !name
            .strip_prefix("ORBD_E")
            .is_some_and(|number| number.chars().all(|c| c.is_ascii_digit()))
}

/// What is kept of a command's output while the bounds are far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKept {
    /// Everything.
    All,
    /// What those who follow have not read, and the last of it; everything while nobody follows.
    Unread,
}

/// What a command reads.
#[derive(Clone, PartialEq)]
pub enum Stdin {
    /// End of file at once.
    Empty,
    /// These bytes, then end of file.
    Bytes(Bytes),
    /// Bytes that the client sends while the command runs.
    Stream,
}

/// A token that is safe as one word of `orbctl`'s command line: not empty, no leading `-`, no blanks, control characters or `/`.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && !text.starts_with('-')
        && !text
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || c == '/')
}

macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Returns it as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = TokenError;

            fn from_str(text: &str) -> Result<Self, TokenError> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.into())) } else { Err(TokenError { what: $what }) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// A word is not of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {what}")]
pub struct TokenError {
    what: &'static str,
}

token! {
    /// A guest user's name.
    UserName, "user name: no blanks, no '/', no leading '-'", is_token
}
token! {
    /// A distribution's name, as in `ubuntu`.
    Distro, "distribution: letters, digits, '-' and '_'",
    |t| is_token(t) && t.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}
token! {
    /// A distribution's version, as in `24.04` or `noble`.
    DistroVersion, "version: letters, digits, '-', '.' and '_'",
    |t| is_token(t) && t.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}
token! {
    /// An amount as `orbctl` takes it, as in `4G` or `2048M`.
    Size, "size: digits followed by an optional K, M, G or T",
    |t| {
        let digits = t.trim_end_matches(['K', 'M', 'G', 'T', 'k', 'm', 'g', 't']);
        !digits.is_empty() && t.len() - digits.len() <= 1 && digits.bytes().all(|b| b.is_ascii_digit())
    }
}
token! {
    /// A configuration key, as in `machine.web.username`.
    ConfigKey, "configuration key: letters, digits, '-', '.' and '_'",
    |t| is_token(t) && t.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'))
}
token! {
    /// The name of an environment variable.
    EnvName, "environment variable name: letters, digits and '_', not starting with a digit, and none that `sh` sets itself or cannot \
              export, such as UID or RANDOM",
    |t| is_env_name(t) && is_exported_as_given(t)
}
token! {
    /// A shared folder, `SRC[:DEST]`.
    Mount, "mount: SRC or SRC:DEST, absolute paths",
    |t| t.starts_with('/') && t.len() <= 4096 && !t.chars().any(|c| c.is_control() || c == ',')
}

/// A processor architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// Apple silicon.
    Arm64,
    /// Intel, emulated by Rosetta on Apple silicon.
    Amd64,
}

impl Arch {
    /// Returns `orbctl`'s word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Arm64 => "arm64",
            Self::Amd64 => "amd64",
        }
    }
}

impl std::str::FromStr for Arch {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        match text {
            "arm64" => Ok(Self::Arm64),
            "amd64" => Ok(Self::Amd64),
            _ => Err(TokenError {
                what: "architecture: arm64 or amd64",
            }),
        }
    }
}

/// A machine to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMachine {
    /// Its name.
    pub name: MachineName,
    /// Distribution.
    pub distro: Distro,
    /// Version; the distribution's newest where absent.
    pub version: Option<DistroVersion>,
    /// Architecture; the Mac's own where absent.
    pub arch: Option<Arch>,
    /// Default user; the Mac user's name where absent.
    pub user: Option<UserName>,
    /// Processor limit (OrbStack 2.2 and later).
    pub cpus: Option<u32>,
    /// Memory limit (OrbStack 2.2 and later).
    pub memory: Option<Size>,
    /// Disk limit (OrbStack 2.2 and later).
    pub disk: Option<Size>,
    /// No access to the Mac (OrbStack 2.1 and later).
    pub isolated: bool,
    /// No access to the Mac's network (OrbStack 2.1 and later).
    pub isolate_network: bool,
    /// Shared folders of an isolated machine (OrbStack 2.1 and later).
    pub mounts: Vec<Mount>,
    /// Forward the Mac's SSH agent (OrbStack 2.1 and later).
    pub forward_ssh_agent: bool,
}

/// A machine as a caller names it: an id is resolved to its name before a footprint is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineRef {
    /// Certainly a name.
    Name(MachineName),
    /// Shaped like an id; may still be a name.
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

/// A line in which operations wait.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// All of OrbStack.
    Fleet,
    /// OrbStack's configuration and the default machine.
    Configuration,
    /// One machine.
    Machine(MachineName),
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet => f.write_str("fleet"),
            Self::Configuration => f.write_str("configuration"),
            Self::Machine(name) => write!(f, "machine {name}"),
        }
    }
}

/// How a lane is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Beside others that share it.
    Shared,
    /// Alone.
    Exclusive,
}

/// The lanes that an operation touches, each once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Footprint(Vec<(Lane, Access)>);

impl Footprint {
    /// Touches nothing: waits behind nothing and is in nobody's way.
    pub const NONE: Self = Self(Vec::new());

    /// Builds a footprint; a lane named twice is taken once, with the stronger access.
    pub fn new(lanes: impl IntoIterator<Item = (Lane, Access)>) -> Self {
        let mut all: Vec<(Lane, Access)> = lanes.into_iter().collect();
        // The stronger access sorts last within a lane, and `dedup_by_key` keeps the first: hence the reversal.
        all.sort_by(|a, b| b.cmp(a));
        all.dedup_by(|later, kept| later.0 == kept.0);
        Self(all)
    }

    /// Returns the lanes and how each is touched.
    pub fn lanes(&self) -> &[(Lane, Access)] {
        &self.0
    }
}

/// Which limits apply to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// A read.
    Query,
    /// A command or a file transfer in a machine.
    Exec,
    /// A change of machines.
    Change,
    /// A change that makes a machine from outside: create or import.
    Creation,
    /// A change of settings.
    Configuration,
    /// A change of OrbStack as a whole.
    Fleet,
    /// A terminal or a follow: recorded, never in anybody's way.
    Session,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 7] = [
        Self::Query,
        Self::Exec,
        Self::Change,
        Self::Creation,
        Self::Configuration,
        Self::Fleet,
        Self::Session,
    ];

    /// Returns the name used on the wire, in logs and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Exec => "exec",
            Self::Change => "change",
            Self::Creation => "creation",
            Self::Configuration => "configuration",
            Self::Fleet => "fleet",
            Self::Session => "session",
        }
    }
}

/// What facts an operation makes stale.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The list, and what is known of these machines.
    Machines(Vec<MachineName>),
    /// The configuration and what the list shows of it.
    Configuration,
    /// Everything.
    Everything,
}

/// What an operation does to what is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Reads,
    /// Makes a scope stale, when it starts and when it ends.
    Changes(Scope),
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

    /// Returns the machine that it is chiefly about, where there is one.
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

    /// Returns the class, which says which limits apply.
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

    /// Returns the lanes that it touches and how.
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
            // No machine waits for it; a change of the fleet does.
            Self::ConfigSet { .. } | Self::ConfigReset => {
                Footprint::new([(Lane::Configuration, Exclusive), fleet])
            }
            Self::StartOrbstack(_) | Self::StopOrbstack(_) | Self::StartAll | Self::StopAll(_) => {
                Footprint::new([(Lane::Fleet, Exclusive)])
            }
            Self::ClientAction(client_action) => client_action.footprint(),
        }
    }

    /// Returns what it makes stale. A command counts as a change of its machine only where it may start it, which the
    /// dispatcher knows.
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

    /// Returns about how many bytes its operands take.
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

    /// Whether the limit of its class ends it.
    pub fn has_run_limit(&self) -> bool {
        match self {
            Self::ClientAction(client_action) => client_action.has_run_limit(),
            _ => true,
        }
    }

    /// Says whether it ends what runs in its lanes and cancels what waits there, instead of queueing behind it.
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
    fn a_footprint_names_each_lane_once_with_the_stronger_access() {
        let lane = Lane::Machine(name("a"));
        let print = Footprint::new([(lane.clone(), Access::Shared), (lane.clone(), Access::Exclusive)]);
        assert_eq!(print.lanes(), [(lane, Access::Exclusive)]);
    }

    #[test]
    fn a_query_touches_no_lane() {
        assert_eq!(Operation::Query(Query::List).footprint(), Footprint::NONE);
    }

    #[test]
    fn a_rename_holds_both_names() {
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
    fn the_debug_form_of_a_command_shows_none_of_its_words() {
        let mut request = ExecRequest::new(vec!["echo".into(), "hunter2".into()]).expect("valid");
        request
            .env
            .push(("TOKEN".parse().expect("valid"), "hunter2".into()));
        request.stdin = Stdin::Bytes(Bytes::from_static(b"hunter2"));
        assert!(!format!("{request:?}").contains("hunter2"));
    }

    fn env(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        variables.iter().map(owned).collect()
    }

    #[test]
    fn caller_env_takes_only_what_orbctl_run_reads() {
        let given = env(&[
            ("ORBENV", "TOKEN:CI/p"),
            ("TOKEN", "1"),
            ("CI", "2"),
            ("no_proxy", "x"),
            ("TERM", "t"),
        ]);
        assert_eq!(
            CallerEnv::new(given.clone()).expect("allowed").variables(),
            &given
        );
        let refused = |variables: &[(&str, &str)]| CallerEnv::new(env(variables)).expect_err("refused");
        let not_listed = |name: &str| CallerEnvError::NotListed(name.into());
        assert_eq!(refused(&[("TOKEN", "1")]), not_listed("TOKEN"));
        assert_eq!(refused(&[("ORBENV", "A:B"), ("PATH", "/x")]), not_listed("PATH"));
        assert_eq!(
            refused(&[("ORBENV", "ORBD_JOB"), ("ORBD_JOB", "x")]),
            not_listed("ORBD_JOB")
        );
        assert_eq!(refused(&[("TERM", "a\0")]), CallerEnvError::Nul("TERM".into()));
    }

    #[test]
    fn caller_env_collects_only_what_orbctl_run_reads() {
        let all = env(&[
            ("ORBENV", "A:UNSET:a b"),
            ("A", "1"),
            ("B", "2"),
            ("HTTPS_PROXY", "p"),
            ("HOME", "/h"),
        ]);
        let collected = CallerEnv::collect(|name| all.get(name).map(OsString::from)).expect("text");
        assert_eq!(
            collected.variables(),
            &env(&[("ORBENV", "A:UNSET:a b"), ("A", "1"), ("HTTPS_PROXY", "p")])
        );
        assert_eq!(CallerEnv::new(collected.variables().clone()), Ok(collected));
    }

    #[test]
    fn a_name_that_sh_cannot_export_is_refused() {
        for name in [
            "UID",
            "RANDOM",
            "_",
            "BASH_ARGV",
            "ORBD_E0",
            "ORBD_E12",
            "1A",
            "A-B",
            "",
        ] {
            assert!(name.parse::<EnvName>().is_err(), "{name}");
        }
        for name in ["A", "_A", "PATH", "BASH_ENV", "ORBD_EX", "ORBD_SOCKET", "IFS"] {
            assert!(name.parse::<EnvName>().is_ok(), "{name}");
        }
    }

    #[test]
    fn a_command_that_could_become_a_flag_cannot_be_built() {
        assert_eq!(ExecRequest::new(vec![]), Err(CommandError::Empty));
        assert_eq!(
            ExecRequest::new(vec!["-u".into()]),
            Err(CommandError::LeadingHyphen)
        );
        assert_eq!(ExecRequest::new(vec!["a\0".into()]), Err(CommandError::Nul));
    }
}

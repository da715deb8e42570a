//! Reads whose caller wants the raw output of `orbctl` rather than parsed data: the drop-in, which replaces `orbctl` on the
//! caller's `PATH`.
//!
//! The list is closed and operands are typed, so no value sent by a caller can become a flag.

use super::{ConfigKey, LogScope, Query};
use orbd_host::machine::MachineName;

/// A read with `orbctl`'s own arguments. Its answer is both output streams, byte for byte, and the exit status.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RawQuery {
    /// `list`.
    List {
        /// `--format`; `None` if not given.
        format: Option<Format>,
        /// `--quiet`: names only.
        quiet: bool,
        /// `--running`: only machines that run.
        running: bool,
    },
    /// `info`. `orbctl` itself determines whether the operand is a name or an id.
    Info {
        /// Name or id of the machine.
        machine: MachineName,
        /// `--format`; `None` if not given.
        format: Option<Format>,
    },
    /// `status`. Does not start OrbStack.
    Status,
    /// `version`.
    Version,
    /// `config show`.
    ConfigShow,
    /// `config get`.
    ConfigGet(ConfigKey),
    /// `default` without a name.
    Default,
    /// `ssh`.
    Ssh,
    /// `logs`. `orbctl` itself determines whether the operand is a name or an id.
    Logs(MachineName, LogScope),
}

/// An output format of `orbctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// Plain text.
    Text,
    /// JSON.
    Json,
}

impl Format {
    /// Returns the value of `--format`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl RawQuery {
    /// Returns the typed query that reads the same data. Both have the same verb, and their results say the same about the health
    /// of `orbctl`.
    pub fn subject(&self) -> Query {
        match self {
            Self::List { .. } => Query::List,
            Self::Info { machine, .. } => Query::Info(machine.clone()),
            Self::Status => Query::Status,
            Self::Version => Query::Version,
            Self::ConfigShow | Self::ConfigGet(_) => Query::ConfigShow,
            Self::Default => Query::Default,
            Self::Ssh => Query::Ssh,
            Self::Logs(machine, scope) => Query::Logs(machine.clone(), *scope),
        }
    }

    /// Returns the machine that the query is about, if there is one.
    pub fn machine(&self) -> Option<&MachineName> {
        match self {
            Self::Info { machine, .. } | Self::Logs(machine, _) => Some(machine),
            Self::List { .. }
            | Self::Status
            | Self::Version
            | Self::ConfigShow
            | Self::ConfigGet(_)
            | Self::Default
            | Self::Ssh => None,
        }
    }
}

//! Reads in `orbctl`'s own words, for a caller who wants what it prints and not what it means: a drop-in that stands before it.
//!
//! A closed list, with operands that are types: nothing that a caller sends can become a flag.

use super::{ConfigKey, LogScope, Query};
use crate::machine::MachineName;

/// A read under `orbctl`'s own arguments. Its answer is both streams, byte for byte, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RawQuery {
    /// `list`.
    List {
        /// `--format`, where given.
        format: Option<Format>,
        /// `--quiet`: names only.
        quiet: bool,
        /// `--running`: those that run.
        running: bool,
    },
    /// `info`. The tool itself finds out whether this is a name or an id.
    Info {
        /// Name or id.
        machine: MachineName,
        /// `--format`, where given.
        format: Option<Format>,
    },
    /// `status`. Does not wake OrbStack.
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
    /// `logs`. The tool itself finds out whether this is a name or an id.
    Logs(MachineName, LogScope),
}

/// A form in which `orbctl` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Format {
    /// Returns `orbctl`'s word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl RawQuery {
    /// Returns the query about the same thing: what its end says of `orbctl`, and the name under which it is recorded, are the same.
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

    /// Returns the machine that it is about, where it is one.
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

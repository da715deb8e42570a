//! What a change is meant to achieve, as far as a read can show it.

use std::sync::Arc;

use super::{ConfigKey, Query};
use orbd_host::machine::MachineName;

/// The state in which a change is done. It is checked before an idempotent change, and after a change that was cut short.
#[derive(Debug, Clone, PartialEq)]
pub enum Goal {
    /// These machines run.
    Running(Vec<MachineName>),
    /// These machines are stopped.
    Stopped(Vec<MachineName>),
    /// No machine has one of these names.
    Gone(Vec<MachineName>),
    /// A machine of this name exists that did not exist before.
    New {
        /// Name of the machine.
        name: MachineName,
        /// Whether it must also run.
        must_run: bool,
    },
    /// A machine has the new name, and none the old one.
    Renamed {
        /// Old name.
        from: MachineName,
        /// New name.
        to: MachineName,
    },
    /// Every machine runs.
    AllRunning,
    /// Every machine is stopped.
    AllStopped,
    /// OrbStack runs.
    OrbstackRunning,
    /// OrbStack is stopped.
    OrbstackStopped,
    /// This is the default machine.
    Default(Option<MachineName>),
    /// The configuration has this value.
    Setting {
        /// Configuration key.
        key: ConfigKey,
        /// Value, as `orbctl config show` prints it.
        value: Arc<str>,
    },
    /// No read shows whether the change is done: a machine that ran before a restart and runs after it shows nothing.
    Invisible {
        /// The read that shows when the change has come to rest, if there is one.
        probe: Option<Query>,
        /// See [`Goal::is_idempotent`].
        is_idempotent: bool,
    },
}

impl Goal {
    /// Returns the read that shows the progress of the change; `None` if no read shows any.
    pub fn probe(&self) -> Option<Query> {
        match self {
            Self::Running(_)
            | Self::Stopped(_)
            | Self::Gone(_)
            | Self::New { .. }
            | Self::Renamed { .. }
            | Self::AllRunning
            | Self::AllStopped => Some(Query::List),
            Self::OrbstackRunning | Self::OrbstackStopped => Some(Query::Status),
            Self::Default(_) => Some(Query::Default),
            Self::Setting { .. } => Some(Query::ConfigShow),
            Self::Invisible { probe, .. } => probe.clone(),
        }
    }

    /// Returns whether nothing has to be done if the goal is already reached. A creation is not idempotent: an existing machine of
    /// that name belongs to another caller.
    pub fn is_idempotent(&self) -> bool {
        match self {
            Self::Gone(_) | Self::New { .. } | Self::Renamed { .. } => false,
            Self::Running(_)
            | Self::Stopped(_)
            | Self::AllRunning
            | Self::AllStopped
            | Self::OrbstackRunning
            | Self::OrbstackStopped
            | Self::Default(_)
            | Self::Setting { .. } => true,
            Self::Invisible { is_idempotent, .. } => *is_idempotent,
        }
    }

    /// Returns the machine that the change creates.
    pub fn new_machine(&self) -> Option<&MachineName> {
        match self {
            Self::New { name, .. } => Some(name),
            _ => None,
        }
    }
}

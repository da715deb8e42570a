//! Operations that a client's own process carries out under a lease, and that the daemon has no operation for.
//!
//! Such an operation has no operands: they stay with the client, which runs the real tool. orbd only needs to know what the
//! operation locks and what it makes stale.

use super::{Access, Class, Effect, Footprint, Force, Lane, Operation, RawQuery, Scope, UnknownForm};
use crate::machine::MachineName;

/// An operation that a client's own process carries out while it holds a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAction {
    /// A command in a machine, without a terminal.
    Run(MachineName),
    /// A shell or a command in a machine, on the client's terminal.
    Shell(MachineName),
    /// Follows a machine's log.
    Logs(MachineName),
    /// Creates a machine and boots it.
    Create(MachineName),
    /// Sets a configuration key.
    ConfigSet,
    /// One verb applied to several machines, in one invocation.
    Batch(BatchVerb, Vec<MachineName>),
    /// Restarts every machine.
    RestartAll,
    /// Restarts OrbStack itself.
    RestartOrbstack,
    /// Updates OrbStack itself.
    UpdateOrbstack,
    /// Deletes all of OrbStack's data.
    ResetOrbstack,
    /// A read whose output the real tool prints itself: on a terminal, or for a client that already holds a lease.
    Read(RawQuery),
    /// A form of `orbctl` that orbd does not fully know and that may change machines.
    UnknownForm(UnknownForm),
    /// An unknown operation that names no machine. It locks no lane, and afterwards all cached data is stale.
    Other,
}

/// The verb applied to each machine of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchVerb {
    /// Boots the machine.
    Start,
    /// Shuts the machine down.
    Stop(Force),
    /// Shuts the machine down and boots it again.
    Restart,
    /// Deletes the machine and its data.
    Delete,
}

impl BatchVerb {
    /// Returns the equivalent operation on one machine.
    pub fn on(self, machine: MachineName) -> Operation {
        match self {
            Self::Start => Operation::Start(machine),
            Self::Stop(force) => Operation::Stop(machine, force),
            Self::Restart => Operation::Restart(machine),
            Self::Delete => Operation::Delete(machine),
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop(_) => "stop",
            Self::Restart => "restart",
            Self::Delete => "delete",
        }
    }
}

impl ClientAction {
    /// Returns the verb used on the wire, in logs and in metrics. It is the same as the verb of the equivalent daemon operation.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::Shell(_) => "shell",
            Self::Logs(_) => "logs",
            Self::Create(_) => "create",
            Self::ConfigSet => "config_set",
            Self::Batch(each, _) => each.verb(),
            Self::RestartAll => "restart_all",
            Self::RestartOrbstack => "restart_orbstack",
            Self::UpdateOrbstack => "update_orbstack",
            Self::ResetOrbstack => "reset_orbstack",
            Self::Read(read) => read.subject().verb(),
            Self::UnknownForm(form) => form.verb(),
            Self::Other => "other",
        }
    }

    /// Returns the machine that the operation is about, if there is exactly one.
    pub fn machine(&self) -> Option<&MachineName> {
        match self {
            Self::Run(name) | Self::Shell(name) | Self::Logs(name) | Self::Create(name) => Some(name),
            Self::UnknownForm(form) => form.machine(),
            Self::Batch(..)
            | Self::ConfigSet
            | Self::RestartAll
            | Self::RestartOrbstack
            | Self::UpdateOrbstack
            | Self::ResetOrbstack
            // A session with a machine waits for a running change of it; a read must not wait, so it has none.
            | Self::Read(_)
            | Self::Other => None,
        }
    }

    /// Returns the class, which determines the limits that apply.
    pub fn class(&self) -> Class {
        match self {
            Self::Run(_) => Class::Exec,
            Self::Shell(_) | Self::Logs(_) | Self::Read(_) | Self::Other => Class::Session,
            Self::Create(_) => Class::Creation,
            Self::ConfigSet => Class::Configuration,
            Self::Batch(..) => Class::Change,
            Self::UnknownForm(form) => form.class(),
            Self::RestartAll | Self::RestartOrbstack | Self::UpdateOrbstack | Self::ResetOrbstack => {
                Class::Fleet
            }
        }
    }

    /// Returns the lanes that the operation locks, and the access to each.
    pub fn footprint(&self) -> Footprint {
        use Access::{Exclusive, Shared};
        let fleet = (Lane::Fleet, Shared);
        let machine = |name: &MachineName, access| (Lane::Machine(name.clone()), access);
        match self {
            Self::Run(name) => Footprint::new([machine(name, Shared), fleet]),
            Self::Shell(_) | Self::Logs(_) | Self::Read(_) | Self::Other => Footprint::NONE,
            Self::Create(name) => Footprint::new([machine(name, Exclusive), fleet]),
            Self::ConfigSet => Footprint::new([(Lane::Configuration, Exclusive), fleet]),
            Self::Batch(_, names) => {
                Footprint::new(names.iter().map(|name| machine(name, Exclusive)).chain([fleet]))
            }
            Self::UnknownForm(form) => form.footprint().clone(),
            Self::RestartAll | Self::RestartOrbstack | Self::UpdateOrbstack | Self::ResetOrbstack => {
                Footprint::new([(Lane::Fleet, Exclusive)])
            }
        }
    }

    /// Returns what the operation makes stale. Only the dispatcher knows whether a command or a shell may start its machine.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Run(_) | Self::Shell(_) | Self::Logs(_) | Self::Read(_) => Effect::Reads,
            Self::Create(name) => Effect::Changes(Scope::Machines(vec![name.clone()])),
            Self::ConfigSet => Effect::Changes(Scope::Configuration),
            Self::Batch(_, names) => Effect::Changes(Scope::Machines(names.clone())),
            Self::UnknownForm(form) => form.effect(),
            Self::RestartAll
            | Self::RestartOrbstack
            | Self::UpdateOrbstack
            | Self::ResetOrbstack
            | Self::Other => Effect::Changes(Scope::Everything),
        }
    }

    /// Returns whether the version of `orbctl` may change.
    pub fn may_replace_orbctl(&self) -> bool {
        match self {
            Self::UpdateOrbstack | Self::Other => true,
            Self::UnknownForm(form) => form.may_replace_orbctl(),
            _ => false,
        }
    }

    /// Returns whether the run limit of its class applies.
    pub fn has_run_limit(&self) -> bool {
        match self {
            Self::UnknownForm(form) => form.has_run_limit(),
            _ => true,
        }
    }

    /// Returns whether it stops conflicting jobs that run and cancels those that wait.
    pub fn preempts(&self) -> bool {
        match self {
            Self::Batch(BatchVerb::Stop(Force::Yes), _) => true,
            Self::UnknownForm(form) => form.preempts(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[&str]) -> Vec<MachineName> {
        all.iter()
            .map(|name| name.parse().expect("a valid name"))
            .collect()
    }

    #[test]
    fn batch_locks_each_machine_as_the_single_operation_does() {
        for each in [
            BatchVerb::Start,
            BatchVerb::Stop(Force::No),
            BatchVerb::Stop(Force::Yes),
            BatchVerb::Restart,
            BatchVerb::Delete,
        ] {
            let several = Operation::ClientAction(ClientAction::Batch(each, names(&["a", "b", "a"])));
            let mut lanes = Vec::new();
            for name in names(&["a", "b"]) {
                let one = each.on(name);
                assert_eq!(
                    (one.verb(), one.class(), one.preempts()),
                    (several.verb(), several.class(), several.preempts())
                );
                lanes.extend_from_slice(one.footprint().lanes());
            }
            assert_eq!(several.footprint(), Footprint::new(lanes));
        }
    }

    #[test]
    fn session_locks_no_lane_and_names_its_machine() {
        for session in [ClientAction::Shell as fn(_) -> _, ClientAction::Logs] {
            let session = session(names(&["web"]).remove(0));
            assert_eq!(session.class(), Class::Session);
            assert_eq!(session.footprint(), Footprint::NONE);
            assert_eq!(session.machine().map(MachineName::as_str), Some("web"));
        }
    }
}

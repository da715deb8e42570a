//! What a client's own process carries out in a lease, where no operation of the daemon's own says it.
//!
//! Such an operation has no operands: they stay with the client, who runs the real tool. orbd has to know what is touched, and
//! that is all that is here.

use super::{Access, Class, Effect, Footprint, Force, Lane, Operation, RawQuery, Scope, UnknownForm};
use crate::machine::MachineName;

/// What a client's own process carries out while it holds a place in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAction {
    /// A command in a machine, without a terminal.
    Run(MachineName),
    /// A shell or a command in a machine, on the client's terminal.
    Shell(MachineName),
    /// A machine's log, as it grows.
    Logs(MachineName),
    /// Makes a machine and boots it.
    Create(MachineName),
    /// Sets a configuration key.
    ConfigSet,
    /// The same for several machines, in one invocation.
    Batch(BatchVerb, Vec<MachineName>),
    /// Restarts every machine.
    RestartAll,
    /// Restarts OrbStack itself.
    RestartOrbstack,
    /// Brings OrbStack itself up to date.
    UpdateOrbstack,
    /// Wipes everything that OrbStack has.
    ResetOrbstack,
    /// A read whose answer the tool itself is to print: on a terminal, or for a client that is in a place already.
    Read(RawQuery),
    /// A form that is not known in full, and that may touch machines.
    UnknownForm(UnknownForm),
    /// Something that orbd has no word for and that names no machine. It takes no lane, and afterwards everything is stale.
    Other,
}

/// What is done to each of several machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchVerb {
    /// Boots it.
    Start,
    /// Shuts it down.
    Stop(Force),
    /// Shuts it down and boots it.
    Restart,
    /// Destroys it.
    Delete,
}

impl BatchVerb {
    /// Returns the operation on one machine.
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
    /// Returns the verb used on the wire, in logs and in metrics: the one of the same operation that the daemon carries out.
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

    /// Returns the machine that it is about, where it is one.
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
            // A session that names a machine waits for a change of it that runs; a read waits for none.
            | Self::Read(_)
            | Self::Other => None,
        }
    }

    /// Returns the class, which says which limits apply.
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

    /// Returns the lanes that it touches and how.
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

    /// Returns what it makes stale. That a command or a shell may start its machine is known to the dispatcher.
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

    /// Says whether even the version of `orbctl` may be another one afterwards.
    pub fn may_replace_orbctl(&self) -> bool {
        match self {
            Self::UpdateOrbstack | Self::Other => true,
            Self::UnknownForm(form) => form.may_replace_orbctl(),
            _ => false,
        }
    }

    /// Whether the limit of its class ends it.
    pub fn has_run_limit(&self) -> bool {
        match self {
            Self::UnknownForm(form) => form.has_run_limit(),
            _ => true,
        }
    }

    /// Says whether it ends what runs in its lanes and cancels what waits there.
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
    fn several_machines_are_held_as_each_of_them_alone_would_be() {
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
    fn a_session_touches_no_lane_and_names_its_machine() {
        for session in [ClientAction::Shell as fn(_) -> _, ClientAction::Logs] {
            let session = session(names(&["web"]).remove(0));
            assert_eq!(session.class(), Class::Session);
            assert_eq!(session.footprint(), Footprint::NONE);
            assert_eq!(session.machine().map(MachineName::as_str), Some("web"));
        }
    }
}

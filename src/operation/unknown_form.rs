//! An `orbctl` call that orbd knows only in part, because of an unknown flag or an unknown verb.
//!
//! orbd cannot determine what such a call changes, so it locks the strictest lanes that the call could need. Too few lanes would
//! let two changes overlap; too many only delay. If the call may change anything, all cached data is stale afterwards.

use super::{Access, Class, Effect, Footprint, Force, Lane, Scope};
use crate::machine::MachineName;

/// A call that orbd does not fully know. Its arguments stay with the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownForm {
    verb: FormVerb,
    /// The machine that the call names, if it names exactly one.
    machine: Option<MachineName>,
    footprint: Footprint,
    force: Force,
}

/// The verb of an unknown form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormVerb {
    /// `create`.
    Create,
    /// `start`.
    Start,
    /// `stop`.
    Stop,
    /// `restart`.
    Restart,
    /// `delete`.
    Delete,
    /// `rename`.
    Rename,
    /// `clone`.
    Clone,
    /// `export`.
    Export,
    /// `import`.
    Import,
    /// `default NAME`.
    SetDefault,
    /// `run`.
    Run,
    /// `push`.
    Push,
    /// `pull`.
    Pull,
    /// A verb that orbd does not know.
    Other,
}

impl FormVerb {
    const ALL: [Self; 14] = [
        Self::Create,
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Delete,
        Self::Rename,
        Self::Clone,
        Self::Export,
        Self::Import,
        Self::SetDefault,
        Self::Run,
        Self::Push,
        Self::Pull,
        Self::Other,
    ];

    /// Returns the verb used on the wire, in logs and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Delete => "delete",
            Self::Rename => "rename",
            Self::Clone => "clone",
            Self::Export => "export",
            Self::Import => "import",
            Self::SetDefault => "set_default",
            Self::Run => "run",
            Self::Push => "push",
            Self::Pull => "pull",
            Self::Other => "other",
        }
    }

    /// Returns the verb with this name; [`FormVerb::Other`] for every unknown name.
    pub fn named(name: &str) -> Self {
        let found = Self::ALL.into_iter().find(|verb| verb.as_str() == name);
        found.unwrap_or(Self::Other)
    }

    /// Returns whether the verb runs inside a machine and changes none, except that it may start one.
    fn is_command(self) -> bool {
        matches!(self, Self::Run | Self::Push | Self::Pull)
    }
}

impl UnknownForm {
    /// Creates a change of these machines. If the list is empty, it locks the whole fleet and never preempts, because its target is
    /// unknown.
    pub fn change(verb: FormVerb, machines: Vec<MachineName>, force: Force) -> Self {
        if machines.is_empty() {
            return Self::restored(verb, None, Footprint::new([(Lane::Fleet, Access::Exclusive)]));
        }
        let machine = only(&machines);
        let configuration =
            (verb == FormVerb::SetDefault).then_some((Lane::Configuration, Access::Exclusive));
        let machines = machines
            .into_iter()
            .map(|name| (Lane::Machine(name), Access::Exclusive));
        let fleet = (Lane::Fleet, Access::Shared);
        Self {
            verb,
            machine,
            footprint: Footprint::new(machines.chain(configuration).chain([fleet])),
            force,
        }
    }

    /// Creates a command in one of the `shared` machines that may also be a change of the `exclusive` ones. The first of `shared`
    /// is the most likely target.
    pub fn command(verb: FormVerb, shared: Vec<MachineName>, exclusive: Vec<MachineName>) -> Self {
        let machine = shared.first().cloned();
        let lanes = |names: Vec<MachineName>, access| {
            names.into_iter().map(move |name| (Lane::Machine(name), access))
        };
        let footprint = Footprint::new(
            lanes(shared, Access::Shared)
                .chain(lanes(exclusive, Access::Exclusive))
                .chain([(Lane::Fleet, Access::Shared)]),
        );
        Self {
            verb,
            machine,
            footprint,
            force: Force::No,
        }
    }

    /// Restores a running call from the journal. Whether it was forced no longer matters, because it has already started.
    pub fn restored(verb: FormVerb, machine: Option<MachineName>, footprint: Footprint) -> Self {
        Self {
            verb,
            machine,
            footprint,
            force: Force::No,
        }
    }

    /// Returns the verb used on the wire, in logs and in metrics.
    pub fn verb(&self) -> &'static str {
        self.verb.as_str()
    }

    /// Returns the machine that the call is mainly about, if there is one.
    pub fn machine(&self) -> Option<&MachineName> {
        self.machine.as_ref()
    }

    /// Returns every machine whose lane the call locks.
    pub fn machines(&self) -> impl Iterator<Item = &MachineName> {
        self.footprint.lanes().iter().filter_map(|(lane, _)| match lane {
            Lane::Machine(name) => Some(name),
            Lane::Fleet | Lane::Configuration => None,
        })
    }

    /// Returns whether it locks the whole fleet exclusively.
    pub fn takes_fleet(&self) -> bool {
        self.footprint.lanes().contains(&(Lane::Fleet, Access::Exclusive))
    }

    /// Returns the class, which determines the limits that apply.
    pub fn class(&self) -> Class {
        let is_alone = |(lane, access): &(Lane, Access)| {
            matches!(lane, Lane::Machine(_)) && *access == Access::Exclusive
        };
        match self.verb {
            _ if self.takes_fleet() => Class::Fleet,
            FormVerb::Create | FormVerb::Import => Class::Creation,
            verb if verb.is_command() => Class::Exec,
            FormVerb::Other if !self.footprint.lanes().iter().any(is_alone) => Class::Exec,
            _ => Class::Change,
        }
    }

    /// Returns the lanes that the call locks, and the access to each.
    pub fn footprint(&self) -> &Footprint {
        &self.footprint
    }

    /// Returns what the call makes stale. Only the dispatcher knows whether a command may start its machine.
    pub fn effect(&self) -> Effect {
        if self.verb.is_command() {
            Effect::Reads
        } else {
            Effect::Changes(Scope::Everything)
        }
    }

    /// Returns whether the version of `orbctl` may change.
    pub fn may_replace_orbctl(&self) -> bool {
        self.verb == FormVerb::Other
    }

    /// Returns whether the run limit of its class applies. It does not apply to an unknown verb, whose usual duration is unknown.
    pub fn has_run_limit(&self) -> bool {
        self.verb != FormVerb::Other
    }

    /// Returns whether it stops conflicting jobs that run and cancels those that wait.
    pub fn preempts(&self) -> bool {
        self.verb == FormVerb::Stop && self.force == Force::Yes
    }
}

/// Returns the name in a list of exactly one.
fn only(names: &[MachineName]) -> Option<MachineName> {
    match names {
        [only] => Some(only.clone()),
        _ => None,
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
    fn change_without_machines_locks_the_fleet() {
        let form = UnknownForm::change(FormVerb::Delete, Vec::new(), Force::No);
        assert_eq!(form.footprint().lanes(), [(Lane::Fleet, Access::Exclusive)]);
        assert_eq!(form.class(), Class::Fleet);
    }

    #[test]
    fn forced_stop_of_an_unknown_machine_preempts_nothing() {
        let form = UnknownForm::change(FormVerb::Stop, Vec::new(), Force::Yes);
        assert!(!form.preempts());
    }

    #[test]
    fn only_a_forced_stop_preempts() {
        for verb in FormVerb::ALL {
            for force in [Force::No, Force::Yes] {
                let form = UnknownForm::change(verb, names(&["web"]), force);
                let is_forced_stop = verb == FormVerb::Stop && force == Force::Yes;
                assert_eq!(form.preempts(), is_forced_stop, "{verb:?} {force:?}");
            }
        }
    }

    #[test]
    fn unknown_verb_locks_the_lanes_of_both_a_change_and_a_command() {
        let form = UnknownForm::command(FormVerb::Other, names(&["web"]), names(&["db", "web"]));
        let machine = |name: &str| Lane::Machine(name.parse().expect("a valid name"));
        let lanes = form.footprint().lanes();
        assert_eq!(lanes.len(), 3);
        for lane in ["web", "db"] {
            assert!(lanes.contains(&(machine(lane), Access::Exclusive)), "{lane}");
        }
        assert_eq!(form.class(), Class::Change);
        let form = UnknownForm::command(FormVerb::Other, names(&["web"]), Vec::new());
        assert_eq!(form.class(), Class::Exec);
        assert_eq!(form.effect(), Effect::Changes(Scope::Everything));
    }

    #[test]
    fn every_verb_is_found_by_its_name() {
        for verb in FormVerb::ALL {
            assert_eq!(FormVerb::named(verb.as_str()), verb);
        }
        assert_eq!(FormVerb::named("suspend"), FormVerb::Other);
    }
}

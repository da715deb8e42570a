//! A form of `orbctl` that orbd knows only in part: a flag that it does not know, or a verb.
//!
//! orbd cannot tell what such a call touches, so it takes the strictest lanes that the call could need. Too few lanes let two
//! changes overlap; too many only delay. Where the form may change anything, everything is stale afterwards.

use super::{Access, Class, Effect, Footprint, Force, Lane, Scope};
use crate::machine::MachineName;

/// A call in a form that is not known in full. The words stay with the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownForm {
    verb: FormVerb,
    /// The machine that it names, where it names exactly one.
    machine: Option<MachineName>,
    footprint: Footprint,
    force: Force,
}

/// The verb of a form, as far as it is known.
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

    /// Returns the verb with this name; [`FormVerb::Other`] for every other name.
    pub fn named(name: &str) -> Self {
        let found = Self::ALL.into_iter().find(|verb| verb.as_str() == name);
        found.unwrap_or(Self::Other)
    }

    /// Whether the verb works inside a machine and changes none, apart from starting it.
    fn is_command(self) -> bool {
        matches!(self, Self::Run | Self::Push | Self::Pull)
    }
}

impl UnknownForm {
    /// A change of these machines, or of the whole fleet if there are none: then nobody knows what is meant, so it never preempts.
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

    /// A command in one of the `shared` machines, which may as well be a change of the `exclusive` ones. The first of the `shared` is
    /// the likeliest.
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

    /// Restores what the journal kept of a call that is under way. Whether it was forced no longer matters: it runs.
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

    /// Returns the machine that it is chiefly about, where it is one.
    pub fn machine(&self) -> Option<&MachineName> {
        self.machine.as_ref()
    }

    /// Returns every machine whose lane it takes.
    pub fn machines(&self) -> impl Iterator<Item = &MachineName> {
        self.footprint.lanes().iter().filter_map(|(lane, _)| match lane {
            Lane::Machine(name) => Some(name),
            Lane::Fleet | Lane::Configuration => None,
        })
    }

    /// Whether it takes the whole fleet.
    pub fn takes_fleet(&self) -> bool {
        self.footprint.lanes().contains(&(Lane::Fleet, Access::Exclusive))
    }

    /// Returns the class, which says which limits apply.
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

    /// Returns the lanes that it touches and how.
    pub fn footprint(&self) -> &Footprint {
        &self.footprint
    }

    /// Returns what it makes stale. That a command may start its machines is known to the dispatcher.
    pub fn effect(&self) -> Effect {
        if self.verb.is_command() {
            Effect::Reads
        } else {
            Effect::Changes(Scope::Everything)
        }
    }

    /// Whether even the version of `orbctl` may differ afterwards.
    pub fn may_replace_orbctl(&self) -> bool {
        self.verb == FormVerb::Other
    }

    /// Whether the limit of its class ends it. How long an unknown verb takes, nobody can say.
    pub fn has_run_limit(&self) -> bool {
        self.verb != FormVerb::Other
    }

    /// Whether it ends what runs in its lanes and cancels what waits there.
    pub fn preempts(&self) -> bool {
        self.verb == FormVerb::Stop && self.force == Force::Yes
    }
}

/// Returns the only name in a list.
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
    fn a_change_without_machines_takes_the_fleet() {
        let form = UnknownForm::change(FormVerb::Delete, Vec::new(), Force::No);
        assert_eq!(form.footprint().lanes(), [(Lane::Fleet, Access::Exclusive)]);
        assert_eq!(form.class(), Class::Fleet);
    }

    #[test]
    fn a_forced_stop_of_no_known_machine_preempts_nothing() {
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
    fn a_word_that_may_be_a_change_or_a_command_takes_the_lanes_of_both() {
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

//! What the daemon knows about a job without its operands: what it locks, what it makes stale, what it is meant to achieve.
//!
//! Everything here follows from the verb, the machines and who runs `orbctl`. Keep the table in `docs/ARCHITECTURE.md` in step with
//! [`class_of`] and [`footprint_of`].
//!
//! **Unknown forms.** A client may run a call of `orbctl` that orbd knows only in part, because of an unknown flag or an unknown
//! verb. orbd cannot determine what such a call changes, so it locks the strictest lanes that the call could need. Too few lanes
//! would let two changes overlap; too many only delay. If the call may change anything, all cached data is stale afterwards.

use super::{Access, Class, Effect, Footprint, Force, Goal, Lane, Query, Scope, Verb};
use orbd_host::machine::MachineName;

/// A job without its operands. Scheduler, journal, metrics and clients see only this.
#[derive(Debug, Clone, PartialEq)]
pub struct JobInfo {
    /// What the job does.
    pub verb: Verb,
    /// The machine that the job is mainly about; `None` if there is none or more than one.
    pub machine: Option<MachineName>,
    /// Determines which limits apply.
    pub class: Class,
    /// The lanes that the job locks.
    pub footprint: Footprint,
    /// What the job makes stale.
    pub effect: Effect,
    /// Whether it stops conflicting jobs that run and cancels those that wait, instead of queueing behind them.
    pub preempts: bool,
    /// What the job is meant to achieve.
    pub goal: Goal,
    /// Whether a process of the client runs `orbctl`, under a lease. The operands then stay with the client.
    pub is_lease: bool,
    /// Whether orbd knows only in part what the call does.
    is_unknown_form: bool,
}

impl JobInfo {
    /// Returns the job of a read.
    pub fn read(query: &Query) -> Self {
        Self::new(
            false,
            query.verb(),
            query.machine().cloned().into_iter().collect(),
        )
    }

    /// Returns the job of an operation that a client's own process carries out while it holds a lease. A read under a lease is a
    /// session: its output goes directly to the client.
    pub fn lease(verb: Verb, machines: Vec<MachineName>, force: Force) -> Self {
        Self::new(true, verb, machines).forced(force)
    }

    /// Returns the job of an unknown form that is a change of these machines. If the list is empty, it locks the whole fleet and
    /// never preempts, because its target is unknown.
    pub fn unknown_change(verb: Verb, machines: &[MachineName], force: Force) -> Self {
        if machines.is_empty() {
            return Self::unknown(verb, None, Footprint::new([(Lane::Fleet, Access::Exclusive)]));
        }
        let machine = match machines {
            [only] => Some(only.clone()),
            _ => None,
        };
        let configuration = (verb == Verb::SetDefault).then_some((Lane::Configuration, Access::Exclusive));
        let footprint = Footprint::new(
            lanes(machines, Access::Exclusive)
                .chain(configuration)
                .chain([(Lane::Fleet, Access::Shared)]),
        );
        let force = if verb == Verb::Stop { force } else { Force::No };
        Self::unknown(verb, machine, footprint).forced(force)
    }

    /// Returns the job of an unknown form that is a command in one of the `shared` machines and may also be a change of the
    /// `exclusive` ones. The first of `shared` is the most likely target.
    pub fn unknown_command(verb: Verb, shared: &[MachineName], exclusive: &[MachineName]) -> Self {
        let footprint = Footprint::new(
            lanes(shared, Access::Shared)
                .chain(lanes(exclusive, Access::Exclusive))
                .chain([(Lane::Fleet, Access::Shared)]),
        );
        Self::unknown(verb, shared.first().cloned(), footprint)
    }

    /// Restores a running job from what the journal has about it. The lanes of the journal are authoritative: a call that orbd knew
    /// only in part may hold more lanes than its verb implies. Whether it was forced no longer matters, because it has started.
    pub fn restored(
        is_lease: bool,
        verb: &str,
        machine: Option<&MachineName>,
        class: Class,
        footprint: Footprint,
    ) -> Self {
        let verb = Verb::named(verb);
        let others = footprint.machines().filter(|name| Some(*name) != machine);
        let mut machines: Vec<MachineName> = machine.into_iter().chain(others).cloned().collect();
        if verb == Verb::Clone {
            // Its main machine is the copy.
            machines.reverse();
        }
        let known = verb
            .takes(machines.len())
            .then(|| Self::new(is_lease, verb, machines));
        match known {
            Some(known) if known.footprint == footprint && known.class == class => known,
            _ => Self {
                class,
                is_lease,
                ..Self::unknown(verb, machine.cloned(), footprint)
            },
        }
    }

    pub(super) fn new(is_lease: bool, verb: Verb, machines: Vec<MachineName>) -> Self {
        let class = class_of(verb, is_lease);
        let machine = match (verb, machines.as_slice()) {
            (Verb::Rename, [one, _]) | (Verb::Clone, [_, one]) | (_, [one]) => Some(one.clone()),
            _ => None,
        };
        Self {
            verb,
            machine,
            class,
            footprint: footprint_of(verb, class, &machines),
            effect: effect_of(verb, class, &machines),
            preempts: false,
            goal: goal_of(verb, machines),
            is_lease,
            is_unknown_form: false,
        }
    }

    pub(super) fn forced(self, force: Force) -> Self {
        let preempts = force == Force::Yes;
        Self { preempts, ..self }
    }

    fn unknown(verb: Verb, machine: Option<MachineName>, footprint: Footprint) -> Self {
        let has_lane = |lane: fn(&Lane) -> bool| {
            let mut lanes = footprint.lanes().iter();
            lanes.any(|(taken, access)| lane(taken) && *access == Access::Exclusive)
        };
        let is_command = matches!(verb, Verb::Run | Verb::Push | Verb::Pull);
        let class = if has_lane(|lane| *lane == Lane::Fleet) {
            Class::Fleet
        } else if matches!(verb, Verb::Create | Verb::Import) {
            Class::Creation
        } else if is_command || (verb == Verb::Other && !has_lane(|lane| matches!(lane, Lane::Machine(_)))) {
            Class::Exec
        } else {
            Class::Change
        };
        let effect = if is_command {
            Effect::MayStart(footprint.machines().cloned().collect())
        } else {
            Effect::Changes(Scope::Everything)
        };
        let probe = match class {
            // `list` would start OrbStack, which the call may have stopped.
            Class::Fleet => Some(Query::Status),
            Class::Exec => None,
            _ => Some(Query::List),
        };
        Self {
            verb,
            machine,
            class,
            footprint,
            effect,
            preempts: false,
            goal: Goal::Invisible {
                probe,
                is_idempotent: true,
            },
            is_lease: true,
            is_unknown_form: true,
        }
    }

    /// Returns whether it is a read whose answer is shared and cached.
    pub fn is_read(&self) -> bool {
        self.class == Class::Query
    }

    /// Returns whether it changes machines or OrbStack. An interrupted change is never repeated.
    pub fn is_change(&self) -> bool {
        matches!(self.effect, Effect::Changes(_))
    }

    /// Returns what it affects in a way that no resident channel may stay open meanwhile; `None` for reads and commands.
    pub fn disturbs(&self) -> Option<Scope> {
        match (&self.effect, self.verb) {
            (Effect::Changes(scope), _) => Some(scope.clone()),
            (_, Verb::Push | Verb::Pull) => {
                Some(Scope::Machines(self.footprint.machines().cloned().collect()))
            }
            _ => None,
        }
    }

    /// Returns whether orbd ends it together with its client or with orbd itself: a command that orbd runs.
    pub fn is_command_of_daemon(&self) -> bool {
        self.class == Class::Exec && !self.is_lease
    }

    /// Returns whether a nonzero exit code is the job's own result, and not a failure of `orbctl`. For `status` it means that
    /// OrbStack is stopped.
    pub fn has_own_exit_code(&self) -> bool {
        !self.is_unknown_form && matches!(self.verb, Verb::Run | Verb::Shell | Verb::Status)
    }

    /// Returns whether the version of `orbctl` may change.
    pub fn may_replace_orbctl(&self) -> bool {
        matches!(self.verb, Verb::UpdateOrbstack | Verb::Other)
    }

    /// Returns whether the run limit of its class applies. It does not apply to an unknown verb, whose usual duration is unknown.
    pub fn has_run_limit(&self) -> bool {
        self.verb != Verb::Other
    }
}

fn lanes(machines: &[MachineName], access: Access) -> impl Iterator<Item = (Lane, Access)> {
    machines
        .iter()
        .map(move |name| (Lane::Machine(name.clone()), access))
}

fn class_of(verb: Verb, is_lease: bool) -> Class {
    match verb {
        Verb::List
        | Verb::Info
        | Verb::Status
        | Verb::Version
        | Verb::ConfigShow
        | Verb::Default
        | Verb::Ssh
        | Verb::Logs => {
            if is_lease {
                Class::Session
            } else {
                Class::Query
            }
        }
        Verb::Run | Verb::Push | Verb::Pull => Class::Exec,
        Verb::Shell | Verb::Other => Class::Session,
        Verb::Create | Verb::Import => Class::Creation,
        Verb::Start
        | Verb::Stop
        | Verb::Restart
        | Verb::Delete
        | Verb::Rename
        | Verb::Clone
        | Verb::Export
        | Verb::SetDefault => Class::Change,
        Verb::ConfigSet | Verb::ConfigAdd | Verb::ConfigRemove | Verb::ConfigReset => Class::Configuration,
        Verb::StartAll
        | Verb::StopAll
        | Verb::RestartAll
        | Verb::StartOrbstack
        | Verb::StopOrbstack
        | Verb::RestartOrbstack
        | Verb::UpdateOrbstack
        | Verb::ResetOrbstack => Class::Fleet,
    }
}

fn footprint_of(verb: Verb, class: Class, machines: &[MachineName]) -> Footprint {
    use Access::{Exclusive, Shared};
    let fleet = (Lane::Fleet, Shared);
    let configuration = (Lane::Configuration, Exclusive);
    match class {
        Class::Query | Class::Session => Footprint::NONE,
        Class::Exec => Footprint::new(lanes(machines, Shared).chain([fleet])),
        _ if verb == Verb::SetDefault => {
            Footprint::new(lanes(machines, Exclusive).chain([configuration, fleet]))
        }
        Class::Change | Class::Creation => Footprint::new(lanes(machines, Exclusive).chain([fleet])),
        // Takes no machine's lane, so it blocks no machine; a change of the fleet waits for it.
        Class::Configuration => Footprint::new([configuration, fleet]),
        Class::Fleet => Footprint::new([(Lane::Fleet, Exclusive)]),
    }
}

fn effect_of(verb: Verb, class: Class, machines: &[MachineName]) -> Effect {
    match (verb, class) {
        (Verb::Shell, _) | (_, Class::Exec) => Effect::MayStart(machines.to_vec()),
        (Verb::Other, _) | (_, Class::Fleet) => Effect::Changes(Scope::Everything),
        (Verb::SetDefault, _) | (_, Class::Configuration) => Effect::Changes(Scope::Configuration),
        (_, Class::Change | Class::Creation) => Effect::Changes(Scope::Machines(machines.to_vec())),
        (_, Class::Query | Class::Session) => Effect::Reads,
    }
}

fn goal_of(verb: Verb, machines: Vec<MachineName>) -> Goal {
    let invisible = |probe, is_idempotent| Goal::Invisible { probe, is_idempotent };
    match (verb, machines.as_slice()) {
        (Verb::Start, _) => Goal::Running(machines),
        (Verb::Stop, _) => Goal::Stopped(machines),
        (Verb::Delete, _) => Goal::Gone(machines),
        (Verb::Create, [name]) => Goal::New {
            name: name.clone(),
            must_run: true,
        },
        (Verb::Import, [name]) | (Verb::Clone, [_, name]) => Goal::New {
            name: name.clone(),
            must_run: false,
        },
        (Verb::Rename, [from, to]) => Goal::Renamed {
            from: from.clone(),
            to: to.clone(),
        },
        (Verb::StartAll, _) => Goal::AllRunning,
        (Verb::StopAll, _) => Goal::AllStopped,
        (Verb::StartOrbstack, _) => Goal::OrbstackRunning,
        (Verb::StopOrbstack, _) => Goal::OrbstackStopped,
        (Verb::SetDefault, machines) => Goal::Default(machines.first().cloned()),
        (Verb::Restart | Verb::RestartAll, _) => invisible(Some(Query::List), false),
        (Verb::RestartOrbstack, _) => invisible(Some(Query::Status), false),
        (Verb::ConfigSet | Verb::UpdateOrbstack | Verb::Other, _) => invisible(None, true),
        _ => invisible(None, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Change;

    fn names(all: &[&str]) -> Vec<MachineName> {
        all.iter()
            .map(|name| name.parse().expect("a valid name"))
            .collect()
    }

    #[test]
    fn query_locks_no_lane() {
        assert_eq!(JobInfo::read(&Query::List).footprint, Footprint::NONE);
    }

    #[test]
    fn rename_locks_both_names_exclusively() {
        let [from, to] = ["a", "b"].map(|name| name.parse().expect("a valid name"));
        let rename = Change::Rename { from, to }.info();
        for machine in names(&["a", "b"]) {
            assert!(
                rename
                    .footprint
                    .lanes()
                    .contains(&(Lane::Machine(machine), Access::Exclusive))
            );
        }
    }

    #[test]
    fn batch_locks_each_machine_as_the_single_operation_does() {
        for (verb, force) in [
            (Verb::Start, Force::No),
            (Verb::Stop, Force::No),
            (Verb::Stop, Force::Yes),
            (Verb::Restart, Force::No),
            (Verb::Delete, Force::No),
        ] {
            let several = JobInfo::lease(verb, names(&["a", "b", "a"]), force);
            let mut lanes = Vec::new();
            for name in names(&["a", "b"]) {
                let one = JobInfo::lease(verb, vec![name], force);
                assert_eq!(
                    (one.verb, one.class, one.preempts),
                    (several.verb, several.class, several.preempts)
                );
                lanes.extend_from_slice(one.footprint.lanes());
            }
            assert_eq!(several.footprint, Footprint::new(lanes));
        }
    }

    #[test]
    fn session_locks_no_lane_and_names_its_machine() {
        for session in [Verb::Shell, Verb::Logs] {
            let session = JobInfo::lease(session, names(&["web"]), Force::No);
            assert_eq!(session.class, Class::Session);
            assert_eq!(session.footprint, Footprint::NONE);
            assert_eq!(session.machine.as_ref().map(MachineName::as_str), Some("web"));
        }
    }

    #[test]
    fn change_without_machines_locks_the_fleet() {
        let form = JobInfo::unknown_change(Verb::Delete, &[], Force::No);
        assert_eq!(form.footprint.lanes(), [(Lane::Fleet, Access::Exclusive)]);
        assert_eq!(form.class, Class::Fleet);
    }

    #[test]
    fn forced_stop_of_an_unknown_machine_preempts_nothing() {
        let form = JobInfo::unknown_change(Verb::Stop, &[], Force::Yes);
        assert!(!form.preempts);
    }

    #[test]
    fn only_a_forced_stop_preempts() {
        for verb in Verb::ALL {
            for force in [Force::No, Force::Yes] {
                let form = JobInfo::unknown_change(*verb, &names(&["web"]), force);
                let is_forced_stop = *verb == Verb::Stop && force == Force::Yes;
                assert_eq!(form.preempts, is_forced_stop, "{verb:?} {force:?}");
            }
        }
    }

    #[test]
    fn unknown_verb_locks_the_lanes_of_both_a_change_and_a_command() {
        let form = JobInfo::unknown_command(Verb::Other, &names(&["web"]), &names(&["db", "web"]));
        let machine = |name: &str| Lane::Machine(name.parse().expect("a valid name"));
        let lanes = form.footprint.lanes();
        assert_eq!(lanes.len(), 3);
        for lane in ["web", "db"] {
            assert!(lanes.contains(&(machine(lane), Access::Exclusive)), "{lane}");
        }
        assert_eq!(form.class, Class::Change);
        let form = JobInfo::unknown_command(Verb::Other, &names(&["web"]), &[]);
        assert_eq!(form.class, Class::Exec);
        assert_eq!(form.effect, Effect::Changes(Scope::Everything));
    }

    #[test]
    fn lease_holds_the_same_lanes_after_a_crash() {
        let lease = |verb, machines: &[&str]| JobInfo::lease(verb, names(machines), Force::No);
        let change = |verb, machines: &[&str]| JobInfo::unknown_change(verb, &names(machines), Force::No);
        let command = |verb| JobInfo::unknown_command(verb, &names(&["a", "b"]), &names(&["c"]));
        for info in [
            lease(Verb::Run, &["a"]),
            lease(Verb::Shell, &["a"]),
            lease(Verb::Logs, &["a"]),
            lease(Verb::Create, &["a"]),
            lease(Verb::ConfigSet, &[]),
            lease(Verb::Start, &["a", "b"]),
            lease(Verb::Stop, &["a", "b"]),
            lease(Verb::Restart, &["a", "b"]),
            lease(Verb::Delete, &["a", "b"]),
            lease(Verb::RestartAll, &[]),
            lease(Verb::RestartOrbstack, &[]),
            lease(Verb::UpdateOrbstack, &[]),
            lease(Verb::ResetOrbstack, &[]),
            lease(Verb::Logs, &[]),
            lease(Verb::Other, &[]),
            change(Verb::Delete, &[]),
            change(Verb::Delete, &["a", "b"]),
            change(Verb::Create, &["a", "b"]),
            change(Verb::Clone, &["a", "b", "c"]),
            change(Verb::Rename, &["a"]),
            change(Verb::SetDefault, &["a", "b"]),
            change(Verb::Import, &[]),
            change(Verb::Other, &["a"]),
            command(Verb::Run),
            command(Verb::Push),
            command(Verb::Other),
            lease(Verb::Push, &["a"]),
            lease(Verb::Delete, &["a"]),
            lease(Verb::Rename, &["a", "b"]),
            lease(Verb::Clone, &["a", "b"]),
            lease(Verb::SetDefault, &["a"]),
            lease(Verb::ConfigReset, &[]),
            lease(Verb::StopOrbstack, &[]),
            lease(Verb::StopAll, &[]),
        ] {
            let verb = info.verb.as_str();
            let restored = JobInfo::restored(
                true,
                verb,
                info.machine.as_ref(),
                info.class,
                info.footprint.clone(),
            );
            assert_eq!(
                (restored.verb, restored.class, &restored.footprint),
                (info.verb, info.class, &info.footprint),
            );
            assert_eq!(restored.machine, info.machine, "{verb}");
        }
    }

    #[test]
    fn unknown_verb_still_holds_its_lanes() {
        let lanes = Footprint::new([(Lane::Machine(names(&["a"]).remove(0)), Access::Exclusive)]);
        let restored = JobInfo::restored(
            true,
            "suspend",
            Some(&names(&["a"])[0]),
            Class::Exec,
            lanes.clone(),
        );
        assert_eq!(restored.footprint, lanes);
    }
}

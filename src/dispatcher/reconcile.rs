//! Decides from probes of the inventory whether a change is already satisfied, and whether a change that was cut short has finished.
//!
//! Killing `orbctl` does not undo what its service was asked to do, so after a cut only the inventory shows the result. Pure logic:
//! the caller runs the probes and measures the time between them.
//!
//! A change that was cut short and is then observed stable and satisfied has succeeded, with a warning. Whether it *changed* anything
//! is known only if the state before it was observed too. A machine that a change creates must be new: a machine of that name that
//! existed before, or may have existed, does not show that the change was done.

use std::time::Duration;

use crate::job::{Outcome, ReconcileReport, Success};
use crate::operation::{Goal, JobInfo};
use orbd_host::machine::{Machine, MachineName, MachineState, OrbstackStatus};

use super::answer::{QueryAnswer, by_name};

/// An unsatisfied change counts as stable once the inventory has been unchanged and at rest for this long.
pub(super) const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Returns whether this answer shows that the goal is reached; `None` if it cannot show it.
pub(super) fn satisfied(goal: &Goal, answer: &QueryAnswer) -> Option<bool> {
    let running = |machine: &Machine| machine.state == MachineState::Running;
    let stopped = |machine: &Machine| machine.state == MachineState::Stopped;
    match (goal, answer) {
        (Goal::Running(names), QueryAnswer::Machines(all)) => {
            each(names, |name| by_name(all, name).is_some_and(running))
        }
        (Goal::Stopped(names), QueryAnswer::Machines(all)) => {
            each(names, |name| by_name(all, name).is_some_and(stopped))
        }
        (Goal::Gone(names), QueryAnswer::Machines(all)) => each(names, |name| by_name(all, name).is_none()),
        (Goal::New { name, must_run }, QueryAnswer::Machines(all)) => Some(
            by_name(all, name).is_some_and(|machine| running(machine) || (!must_run && stopped(machine))),
        ),
        (Goal::Renamed { from, to }, QueryAnswer::Machines(all)) => {
            Some(by_name(all, from).is_none() && by_name(all, to).is_some())
        }
        (Goal::AllRunning, QueryAnswer::Machines(all)) => Some(all.iter().all(running)),
        (Goal::AllStopped, QueryAnswer::Machines(all)) => Some(all.iter().all(stopped)),
        (Goal::OrbstackRunning, QueryAnswer::Status(status)) => Some(*status == OrbstackStatus::Running),
        (Goal::OrbstackStopped, QueryAnswer::Status(status)) => Some(*status == OrbstackStatus::Stopped),
        (Goal::Default(name), QueryAnswer::Default(default)) => Some(name == default),
        (Goal::Setting { key, value }, QueryAnswer::Config(values)) => {
            Some(values.iter().any(|(k, v)| k == key.as_str() && v == &**value))
        }
        _ => None,
    }
}

/// Returns whether all machines are as wanted; `None` if there are none, which shows nothing.
fn each(names: &[MachineName], is_done: impl Fn(&MachineName) -> bool) -> Option<bool> {
    (!names.is_empty()).then(|| names.iter().all(is_done))
}

/// Returns whether no machine that the job touches is in a transitional state.
fn is_at_rest(info: &JobInfo, answer: &QueryAnswer) -> bool {
    match answer {
        QueryAnswer::Machines(all) => {
            let touched: Vec<_> = info.footprint.machines().collect();
            all.iter()
                .filter(|machine| touched.is_empty() || touched.contains(&&machine.name))
                .all(|machine| !matches!(machine.state, MachineState::Busy(_)))
        }
        QueryAnswer::Status(status) => !matches!(status, OrbstackStatus::Other(_)),
        _ => true,
    }
}

/// The probes after a change was cut short.
#[derive(Debug, Default)]
pub(super) struct Reconciliation {
    last: Option<(QueryAnswer, Duration)>,
    sighting: Option<ReconcileReport>,
}

impl Reconciliation {
    /// Adds one probe result, taken `since` after the cut, and returns the resulting report.
    pub(super) fn observe(
        &mut self,
        info: &JobInfo,
        answer: QueryAnswer,
        since: Duration,
    ) -> ReconcileReport {
        let satisfied = satisfied(&info.goal, &answer);
        let at_rest = is_at_rest(info, &answer);
        let unchanged_since = match &self.last {
            Some((before, when)) if *before == answer => *when,
            _ => since,
        };
        let quiet = since.saturating_sub(unchanged_since) >= STABLE_AFTER;
        let machine_state = match (&answer, &info.machine) {
            (QueryAnswer::Machines(all), Some(name)) => {
                by_name(all, name).map(|machine| machine.state.as_str().into())
            }
            _ => None,
        };
        let sighting = ReconcileReport {
            stable: at_rest && (satisfied == Some(true) || quiet),
            satisfied,
            machine_state,
        };
        self.last = Some((answer, unchanged_since));
        self.sighting = Some(sighting.clone());
        sighting
    }

    /// Returns the outcome of a change. `cut` states what cut it short; `before` is what a probe observed just before the change, if
    /// one did.
    pub(super) fn outcome(self, info: &JobInfo, before: Option<&QueryAnswer>, cut: &str) -> Outcome {
        let is_done = self
            .sighting
            .as_ref()
            .is_some_and(|seen| seen.stable && seen.satisfied == Some(true));
        let new_machine = info.goal.new_machine();
        let changed = match (new_machine, before) {
            (Some(name), before) => self.is_new(name, before).then_some(true),
            (None, Some(before)) => satisfied(&info.goal, before).map(|held| !held),
            (None, None) => None,
        };
        if !is_done || (new_machine.is_some() && changed.is_none()) {
            return Outcome::Unknown(self.last());
        }
        let state = self.sighting.and_then(|seen| seen.machine_state);
        let seen = match (&info.goal, &info.machine, state) {
            (Goal::Gone(_), Some(name), _) => format!("machine '{name}' no longer exists"),
            (Goal::New { .. }, Some(name), Some(state)) => {
                format!("machine '{name}' exists and is {state}; its initial setup may be incomplete")
            }
            (_, Some(name), Some(state)) => format!("machine '{name}' is {state}"),
            _ => "the requested state was observed afterwards".to_owned(),
        };
        Outcome::Succeeded(Success::Observed {
            changed,
            warning: format!("{cut}, but {seen}").into(),
        })
    }

    /// Returns whether the machine of this name in the last probe did not exist before.
    fn is_new(&self, name: &MachineName, before: Option<&QueryAnswer>) -> bool {
        match (before, &self.last) {
            (Some(QueryAnswer::Machines(before)), Some((QueryAnswer::Machines(now), _))) => {
                by_name(now, name).is_some_and(|made| before.iter().all(|machine| machine.id != made.id))
            }
            _ => false,
        }
    }

    /// Returns the last report; an unstable, empty one if no probe succeeded.
    pub(super) fn last(self) -> ReconcileReport {
        self.sighting.unwrap_or(ReconcileReport::NOTHING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::{Force, Verb};
    use orbd_host::machine::{Image, MachineConfig};

    fn machines(all: &[(&str, &str)]) -> QueryAnswer {
        QueryAnswer::Machines(
            all.iter()
                .map(|(name, state)| Machine {
                    id: "01M4HXHNTVZXRXR1F5PV7GC8R7".parse().expect("an id"),
                    name: name.parse().expect("a name"),
                    state: MachineState::from_word(state),
                    image: Image::default(),
                    config: MachineConfig::default(),
                    builtin: false,
                })
                .collect(),
        )
    }

    fn lease(verb: Verb, machines: &[&str]) -> JobInfo {
        let names = machines.iter().map(|name| name.parse().expect("a name"));
        JobInfo::lease(verb, names.collect(), Force::No)
    }

    fn start(name: &str) -> JobInfo {
        lease(Verb::Start, &[name])
    }

    #[test]
    fn satisfied_change_at_rest_is_stable_at_once() {
        let sighting =
            Reconciliation::default().observe(&start("a"), machines(&[("a", "running")]), Duration::ZERO);
        assert_eq!((sighting.stable, sighting.satisfied), (true, Some(true)));
    }

    #[test]
    fn busy_machine_never_becomes_stable() {
        let mut reconciliation = Reconciliation::default();
        for seconds in [0, 5, 60] {
            let observe = reconciliation.observe(
                &start("a"),
                machines(&[("a", "starting")]),
                Duration::from_secs(seconds),
            );
            assert!(!observe.stable);
        }
    }

    #[test]
    fn unsatisfied_change_is_stable_only_after_a_quiet_period() {
        let mut reconciliation = Reconciliation::default();
        assert!(
            !reconciliation
                .observe(&start("a"), machines(&[("a", "stopped")]), Duration::ZERO)
                .stable
        );
        assert!(
            !reconciliation
                .observe(&start("a"), machines(&[("a", "stopped")]), STABLE_AFTER / 2)
                .stable
        );
        let last = reconciliation.observe(&start("a"), machines(&[("a", "stopped")]), STABLE_AFTER);
        assert_eq!((last.stable, last.satisfied), (true, Some(false)));
    }

    fn outcome_of(info: &JobInfo, before: Option<&QueryAnswer>, after: QueryAnswer) -> Outcome {
        let mut reconciliation = Reconciliation::default();
        reconciliation.observe(info, after, Duration::ZERO);
        reconciliation.outcome(info, before, "orbctl was killed by signal 9")
    }

    #[test]
    fn cut_change_observed_done_succeeds_and_reports_whether_it_changed_anything() {
        let running = || machines(&[("a", "running")]);
        for (before, expected) in [
            (Some(machines(&[("a", "stopped")])), Some(true)),
            (Some(running()), Some(false)),
            (None, None),
        ] {
            let Outcome::Succeeded(Success::Observed { changed, warning }) =
                outcome_of(&start("a"), before.as_ref(), running())
            else {
                panic!("not a success");
            };
            assert_eq!(changed, expected);
            assert_eq!(
                &*warning,
                "orbctl was killed by signal 9, but machine 'a' is running"
            );
        }
    }

    #[test]
    fn cut_change_that_is_not_observed_done_is_unknown() {
        let stopped = || machines(&[("a", "stopped")]);
        let outcome = outcome_of(&start("a"), Some(&stopped()), stopped());
        assert!(matches!(outcome, Outcome::Unknown(seen) if seen.satisfied == Some(false)));
        let outcome = outcome_of(&start("a"), None, machines(&[("a", "starting")]));
        assert!(matches!(outcome, Outcome::Unknown(seen) if !seen.stable));
        // A machine that ran before a restart and runs after it shows nothing.
        let restart = lease(Verb::Restart, &["a"]);
        let outcome = outcome_of(&restart, Some(&stopped()), machines(&[("a", "running")]));
        assert!(matches!(outcome, Outcome::Unknown(seen) if seen.satisfied.is_none()));
    }

    #[test]
    fn cut_create_succeeds_only_if_its_machine_was_observed_not_to_exist_before() {
        let import = lease(Verb::Import, &["a"]);
        let running = || machines(&[("a", "running")]);
        let outcome = outcome_of(&import, Some(&machines(&[])), running());
        assert!(matches!(
            outcome,
            Outcome::Succeeded(Success::Observed {
                changed: Some(true),
                ..
            })
        ));
        for before in [None, Some(running())] {
            let outcome = outcome_of(&import, before.as_ref(), running());
            assert!(matches!(outcome, Outcome::Unknown(seen) if seen.satisfied == Some(true)));
        }
    }

    #[test]
    fn batch_is_satisfied_and_at_rest_only_if_each_machine_is() {
        let start = lease(Verb::Start, &["a", "b"]);
        let check = |state: &str, expected| {
            let answer = machines(&[("a", "running"), ("b", state), ("c", "stopping")]);
            let seen = Reconciliation::default().observe(&start, answer, Duration::ZERO);
            assert_eq!((seen.stable, seen.satisfied), expected, "{state}");
        };
        check("running", (true, Some(true)));
        check("starting", (false, Some(false)));
        check("stopped", (false, Some(false)));
        let answer = machines(&[("a", "running"), ("b", "running")]);
        assert_eq!(satisfied(&lease(Verb::Restart, &["a", "b"]).goal, &answer), None);
    }

    #[test]
    fn delete_is_satisfied_once_the_machine_is_gone() {
        let delete = lease(Verb::Delete, &["a"]).goal;
        assert_eq!(satisfied(&delete, &machines(&[("b", "running")])), Some(true));
        assert_eq!(satisfied(&delete, &machines(&[("a", "stopped")])), Some(false));
    }
}

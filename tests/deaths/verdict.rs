//! Checks the clients' answers against the ledger.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::support::Ledger;

use super::clients::{Look, Promise};

/// Finds the invocations of a change by its verb and the machine that it makes or changes.
#[derive(Default)]
pub(super) struct Index {
    places: HashMap<(String, String), Vec<usize>>,
    indexed: usize,
}

impl Index {
    /// Adds what the ledger has read since the last time.
    pub(super) fn read_on(&mut self, ledger: &Ledger) {
        for (place, invocation) in ledger.invocations.iter().enumerate().skip(self.indexed) {
            let machine = match invocation.command.as_str() {
                // `clone` names its source first.
                "clone" => invocation.args.last(),
                _ => Some(&invocation.machine),
            };
            let key = (invocation.command.clone(), machine.cloned().unwrap_or_default());
            self.places.entry(key).or_default().push(place);
        }
        self.indexed = ledger.invocations.len();
    }

    /// Returns how often a change was started and how often it succeeded.
    pub(super) fn runs(&self, ledger: &Ledger, promise: &Promise) -> (usize, usize) {
        let key = (promise.verb.to_owned(), promise.machine.clone());
        let places = self.places.get(&key).map_or(&[][..], Vec::as_slice);
        let is_done = |place: &&usize| ledger.invocations[**place].exit == Some(0);
        (places.len(), places.iter().filter(is_done).count())
    }
}

/// What became of the promised changes.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) once: usize,
    /// The daemon died between the journal entry for the start and the start itself.
    pub(super) cut_before_the_start: usize,
    /// A forced stop of their machine cancelled them or cut them short.
    pub(super) forced_away: usize,
    pub(super) lost: Vec<String>,
    pub(super) twice: Vec<String>,
}

/// Counts how often each promised change ran.
pub(super) fn promises(
    ledger: &Ledger,
    index: &Index,
    promises: &[Promise],
    in_doubt: &BTreeMap<(&'static str, String), usize>,
    forced: &BTreeSet<String>,
    log: &str,
) -> Kept {
    // Each is logged once, by the instance that found it.
    let never_started: BTreeSet<u64> = log
        .lines()
        .filter(|line| line.contains("children=0"))
        .filter_map(|line| {
            let (_, rest) = line.split_once("job_id=")?;
            rest.split_whitespace().next()?.parse().ok()
        })
        .collect();
    let mut by_change: BTreeMap<(&str, &str), Vec<&Promise>> = BTreeMap::new();
    for promise in promises {
        by_change
            .entry((promise.verb, &promise.machine))
            .or_default()
            .push(promise);
    }
    let mut kept = Kept::default();
    for ((verb, machine), promises) in by_change {
        let (times, _) = index.runs(ledger, promises[0]);
        let uncertain = in_doubt.get(&(verb, machine.to_owned())).copied().unwrap_or(0);
        let cut = promises
            .iter()
            .filter(|one| never_started.contains(&one.id))
            .count();
        let what = || {
            let ids: Vec<u64> = promises.iter().map(|one| one.id).collect();
            format!("{verb} {machine}, jobs {ids:?}, ran {times} times")
        };
        if times > promises.len() + uncertain {
            kept.twice.push(what());
        } else if times + cut < promises.len() {
            if promises.iter().any(|promise| promise.is_among(forced)) {
                kept.forced_away += promises.len() - times;
            } else {
                kept.lost.push(what());
            }
        } else {
            kept.once += times.min(promises.len());
            kept.cut_before_the_start += promises.len().saturating_sub(times);
        }
    }
    kept
}

/// No machine has more jobs at the same time than this, whatever dies.
const AT_ONCE_MAX: usize = 32;

/// How the answers compare with the actual states.
#[derive(Default)]
pub(super) struct Freshness {
    /// Number of states for which only the reported one was possible.
    pub(super) checked: usize,
    /// Number of states that were read during a change.
    pub(super) in_motion: usize,
    pub(super) breaches: Vec<String>,
}

/// A change that the service carried out on one machine.
struct Done {
    began_ns: i128,
    ended_ns: i128,
    left: Left,
}

/// How a change leaves its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    In(&'static str),
    Gone,
    /// It did not do what was requested, so any state is possible.
    Unsure,
}

impl Left {
    /// Returns whether a machine may be reported in this state (`None`: not listed) after the change.
    fn agrees_with(self, told: Option<&str>) -> bool {
        match self {
            Self::In(state) => told == Some(state),
            Self::Gone => told.is_none(),
            Self::Unsure => true,
        }
    }
}

/// Checks each answer against what the service did: every change that ended before the answer's claimed time must show
/// in it.
pub(super) fn freshness(ledger: &Ledger, shared: &[&'static str], reads: &[Look]) -> Freshness {
    let mut history: BTreeMap<&str, Vec<Done>> = BTreeMap::new();
    for machine in shared {
        // The shared machines were made before the ledger's first line.
        let made = Done {
            began_ns: 0,
            ended_ns: 0,
            left: Left::In("running"),
        };
        history.entry(machine).or_default().push(made);
    }
    for invocation in &ledger.invocations {
        for work in &invocation.works {
            let copy = invocation.command == "clone" && invocation.args.last() == Some(&work.machine);
            let left = match invocation.command.as_str() {
                "create" | "start" | "restart" | "run" => Left::In("running"),
                "stop" => Left::In("stopped"),
                "clone" if copy => Left::In("stopped"),
                "delete" => Left::Gone,
                // Other commands change neither a machine's state nor its existence.
                _ => continue,
            };
            let (ended_ns, is_done) = work.end.unwrap_or((i128::MAX, false));
            history.entry(&work.machine).or_default().push(Done {
                // From here on the change may show.
                began_ns: invocation.start_ns,
                ended_ns,
                left: if is_done { left } else { Left::Unsure },
            });
        }
    }
    for line in history.values_mut() {
        line.sort_unstable_by_key(|done| done.ended_ns);
    }
    let mut freshness = Freshness::default();
    let mut reads: Vec<_> = reads.iter().map(|look| (look, states(look))).collect();
    reads.sort_unstable_by_key(|(look, _)| look.claimed_ns);
    for (machine, line) in &history {
        // Most machines exist for a short time only; answers before and after that time are checked below.
        let (first, last) = (line[0].began_ns, line[line.len() - 1].ended_ns);
        let from = reads.partition_point(|(look, _)| look.claimed_ns < first);
        let to = match line[line.len() - 1].left {
            Left::Gone => reads.partition_point(|(look, _)| look.claimed_ns <= last),
            _ => reads.len(),
        };
        for (look, told) in &reads[from..to] {
            let told = told.get(machine).copied();
            if told.is_none() && !look.is_whole {
                continue;
            }
            let after = line.partition_point(|done| done.ended_ns < look.claimed_ns);
            let mut later = line[after..].iter().take(AT_ONCE_MAX);
            let is_in_motion = later.any(|done| done.began_ns <= look.received_ns);
            let left = line[..after].last().map_or(Left::Gone, |done| done.left);
            if is_in_motion || left == Left::Unsure {
                freshness.in_motion += 1;
                continue;
            }
            freshness.checked += 1;
            if !left.agrees_with(told) {
                freshness.breaches.push(format!(
                    "{machine} was left as {left:?} but reported as {told:?}; claimed {} received {}",
                    look.claimed_ns, look.received_ns
                ));
            }
        }
    }
    for (look, told) in &reads {
        for machine in told.keys() {
            let was_there = history.get(machine).is_some_and(|line| {
                let last = &line[line.len() - 1];
                line[0].began_ns <= look.received_ns
                    && (last.left != Left::Gone || last.ended_ns >= look.claimed_ns)
            });
            freshness.checked += 1;
            if !was_there {
                freshness.breaches.push(format!(
                    "{machine} was listed while it did not exist; claimed {}",
                    look.claimed_ns
                ));
            }
        }
    }
    freshness
}

fn states(look: &Look) -> HashMap<&str, &str> {
    let states = look.states.iter();
    states.map(|(name, state)| (&**name, &**state)).collect()
}

//! The differences between two lists of machines.

use std::collections::HashMap;

use orbd_host::machine::{Machine, MachineId, MachineName};

/// One difference between two lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The machine is new.
    Appeared(Machine),
    /// The machine changed.
    Changed {
        /// The machine as it is now.
        machine: Machine,
        /// Its previous name if it was renamed.
        renamed_from: Option<MachineName>,
    },
    /// The machine, as last seen, no longer exists.
    Gone(Machine),
}

/// Returns the differences. Machines are matched by id, so a new machine with the name of a deleted one is reported as a deletion
/// and a new machine.
///
/// Deletions come first, so that a name is free before it is reused; the rest is in the order of `now`.
pub fn differences(before: &[Machine], now: &[Machine]) -> Vec<Difference> {
    let by_id = |machines: &[Machine]| -> HashMap<MachineId, usize> {
        let with_place = machines.iter().enumerate();
        with_place
            .map(|(place, machine)| (machine.id.clone(), place))
            .collect()
    };
    let (was, is) = (by_id(before), by_id(now));
    let gone = before
        .iter()
        .filter(|machine| !is.contains_key(&machine.id))
        .map(|machine| Difference::Gone(machine.clone()));
    let rest = now.iter().filter_map(
        |machine| match was.get(&machine.id).map(|place| &before[*place]) {
            None => Some(Difference::Appeared(machine.clone())),
            Some(before) if before == machine => None,
            Some(before) => Some(Difference::Changed {
                machine: machine.clone(),
                renamed_from: (before.name != machine.name).then(|| before.name.clone()),
            }),
        },
    );
    gone.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use orbd_host::machine::{Image, MachineConfig, MachineState};

    fn machine(id: char, name: &str, state: &str) -> Machine {
        Machine {
            id: format!("01M4HXHNTVZXRXR1F5PV7GC8R{id}").parse().expect("an id"),
            name: name.parse().expect("a name"),
            state: MachineState::from_word(state),
            image: Image::default(),
            config: MachineConfig::default(),
            builtin: false,
        }
    }

    /// Writes lists as `1 web running, 2 db stopped`, and differences as `+web`, `~web`, `db~web` and `-web`.
    fn check(before: &str, now: &str, expected: &str) {
        let list = |text: &str| -> Vec<Machine> {
            text.split(", ")
                .filter(|text| !text.is_empty())
                .map(|text| {
                    let mut words = text.split(' ');
                    let mut next = || words.next().expect("three words");
                    let id = next().chars().next().expect("a digit");
                    machine(id, next(), next())
                })
                .collect()
        };
        let found: Vec<String> = differences(&list(before), &list(now))
            .iter()
            .map(|difference| match difference {
                Difference::Appeared(machine) => format!("+{}", machine.name),
                Difference::Gone(machine) => format!("-{}", machine.name),
                Difference::Changed {
                    machine,
                    renamed_from,
                } => {
                    let before = renamed_from.as_ref().map(ToString::to_string);
                    format!("{}~{}", before.unwrap_or_default(), machine.name)
                }
            })
            .collect();
        assert_eq!(found.join(" "), expected, "from {before:?} to {now:?}");
    }

    #[test]
    fn machines_are_matched_by_id() {
        check("", "", "");
        check("1 web running", "1 web running", "");
        check("", "1 web running, 2 db stopped", "+web +db");
        check("1 web running, 2 db stopped", "2 db stopped", "-web");
        check("1 web running", "1 web stopped", "~web");
        check("1 web running", "1 www running", "web~www");
        // A new machine with the name of the old one.
        check("1 web running", "2 web running", "-web +web");
        // Two machines swap their names; then a machine takes the name of a deleted one.
        check("1 a running, 2 b running", "1 b running, 2 a running", "a~b b~a");
        check("1 a running, 2 b running", "2 a running", "-a b~a");
        // A different order is no difference.
        check("1 a running, 2 b running", "2 b running, 1 a running", "");
    }
}

//! The stand-in's ledger: which invocations there were, in which order, and which were there at the same time.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// One invocation. Its places are line numbers: the order of lines is the order of events.
#[derive(Debug, Clone)]
pub(crate) struct Invocation {
    pub(crate) command: String,
    pub(crate) machine: String,
    pub(crate) args: Vec<String>,
    pub(crate) start: usize,
    /// `None` when it was killed, or still runs.
    pub(crate) end: Option<usize>,
    pub(crate) exit: Option<i64>,
    pub(crate) pid: u32,
}

/// The ledger as it was when it was read.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) invocations: Vec<Invocation>,
}

impl Ledger {
    pub(super) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut invocations = Vec::new();
        let mut by_id: BTreeMap<String, usize> = BTreeMap::new();
        // A last line without its end is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for (at, line) in whole.lines().enumerate() {
            let line: Value = serde_json::from_str(line).expect("a line of JSON");
            let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            match line["event"].as_str() {
                Some("start") => {
                    by_id.insert(word("id"), invocations.len());
                    let args = line["args"].as_array().into_iter().flatten();
                    invocations.push(Invocation {
                        command: word("command"),
                        machine: word("machine"),
                        args: args
                            .map(|arg| arg.as_str().unwrap_or_default().to_owned())
                            .collect(),
                        start: at,
                        end: None,
                        exit: None,
                        pid: line["pid"]
                            .as_u64()
                            .and_then(|pid| u32::try_from(pid).ok())
                            .expect("a pid"),
                    });
                }
                Some("end") => {
                    if let Some(index) = by_id.get(&word("id")) {
                        invocations[*index].end = Some(at);
                        invocations[*index].exit = line["exit"].as_i64();
                    }
                }
                _ => {}
            }
        }
        Self { invocations }
    }

    /// Returns the invocations of a command, in the order of their starts.
    pub(crate) fn of(&self, command: &str) -> Vec<&Invocation> {
        self.invocations
            .iter()
            .filter(|invocation| invocation.command == command)
            .collect()
    }

    /// Counts the invocations of a command.
    pub(crate) fn spawns(&self, command: &str) -> usize {
        self.of(command).len()
    }

    /// Returns the changes and commands of one machine, in the order of their starts.
    pub(crate) fn order_on(&self, machine: &str) -> Vec<&str> {
        self.invocations
            .iter()
            .filter(|invocation| invocation.machine == machine && !is_read(&invocation.command))
            .map(|invocation| invocation.command.as_str())
            .collect()
    }

    /// Returns the most invocations that were there at the same time, of those that are wanted.
    pub(crate) fn most_at_once(&self, wanted: impl Fn(&Invocation) -> bool) -> usize {
        let mut events: Vec<(usize, isize)> = Vec::new();
        for invocation in self.invocations.iter().filter(|one| wanted(one)) {
            events.push((invocation.start, 1));
            events.extend(invocation.end.map(|end| (end, -1)));
        }
        events.sort_unstable();
        let (mut now, mut most) = (0, 0);
        for (_, step) in events {
            now += step;
            most = most.max(now);
        }
        usize::try_from(most).expect("never below nothing")
    }

    /// Fails when a change of a machine ran beside anything else on it. What was killed is not looked at: it has no end.
    #[track_caller]
    pub(crate) fn assert_no_overlap(&self) {
        let ended: Vec<_> = self
            .invocations
            .iter()
            .filter(|one| one.end.is_some() && !is_read(&one.command))
            .collect();
        for (at, one) in ended.iter().enumerate() {
            for other in &ended[at + 1..] {
                let both_share = one.command == "run" && other.command == "run";
                let same = one.lanes().iter().any(|lane| other.lanes().contains(lane));
                let apart = one.end.is_some_and(|end| end < other.start)
                    || other.end.is_some_and(|end| end < one.start);
                assert!(both_share || !same || apart, "together: {one:?} and {other:?}");
            }
        }
    }
}

impl Invocation {
    /// Returns the machines whose lanes it needs.
    fn lanes(&self) -> Vec<&str> {
        let mut lanes = vec![self.machine.as_str()];
        if matches!(self.command.as_str(), "rename" | "clone") {
            lanes.extend(self.args.last().map(String::as_str));
        }
        lanes
    }
}

/// Says whether a command takes no lane.
fn is_read(command: &str) -> bool {
    matches!(
        command,
        "list" | "info" | "status" | "version" | "default" | "ssh" | "logs" | "config"
    )
}

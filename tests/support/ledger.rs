//! The stand-in's ledger: which invocations there were, in which order, and which overlapped.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// One invocation. Its positions are line numbers: the order of lines is the order of events.
#[derive(Debug, Clone)]
pub(crate) struct Invocation {
    pub(crate) command: String,
    pub(crate) machine: String,
    pub(crate) args: Vec<String>,
    pub(crate) start: usize,
    /// Start time in nanoseconds since 1970.
    pub(crate) start_ns: i128,
    /// `None` if it was killed or still runs.
    pub(crate) end: Option<usize>,
    pub(crate) exit: Option<i64>,
    pub(crate) pid: u32,
    /// The service's work for it, by machine.
    pub(crate) works: Vec<Work>,
}

/// Work of the service on one machine.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) machine: String,
    /// End time in nanoseconds since 1970, and whether the work succeeded; `None` while it continues.
    pub(crate) end: Option<(i128, bool)>,
}

/// The ledger as of its last read.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) invocations: Vec<Invocation>,
    by_id: HashMap<String, usize>,
    path: PathBuf,
    /// Bytes and lines that were read so far.
    offset: u64,
    lines: usize,
}

impl Ledger {
    pub(super) fn read(path: &Path) -> Self {
        let mut ledger = Self {
            path: path.to_owned(),
            ..Self::default()
        };
        ledger.read_on();
        ledger
    }

    /// Reads what was written since the last time.
    pub(crate) fn read_on(&mut self) {
        let mut text = String::new();
        // The file does not exist before the first invocation.
        if let Ok(mut file) = File::open(&self.path) {
            file.seek(SeekFrom::Start(self.offset)).expect("a file");
            file.read_to_string(&mut text).expect("text");
        }
        // A last line without a line end is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        self.offset += whole.len() as u64;
        for line in whole.lines() {
            let line: Value = serde_json::from_str(line).expect("a line of JSON");
            self.take_in(&line);
            self.lines += 1;
        }
    }

    fn take_in(&mut self, line: &Value) {
        let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let ns = || i128::from(line["realtime_ns"].as_i64().expect("a time"));
        let event = word("event");
        if event == "start" {
            self.by_id.insert(word("id"), self.invocations.len());
            let args = line["args"].as_array().into_iter().flatten();
            self.invocations.push(Invocation {
                command: word("command"),
                machine: word("machine"),
                args: args
                    .map(|arg| arg.as_str().unwrap_or_default().to_owned())
                    .collect(),
                start: self.lines,
                start_ns: ns(),
                end: None,
                exit: None,
                pid: line["pid"]
                    .as_u64()
                    .and_then(|pid| u32::try_from(pid).ok())
                    .expect("a pid"),
                works: Vec::new(),
            });
            return;
        }
        let Some(&index) = self.by_id.get(&word("id")) else {
            return;
        };
        let invocation = &mut self.invocations[index];
        match event.as_str() {
            "end" => {
                invocation.end = Some(self.lines);
                invocation.exit = line["exit"].as_i64();
            }
            "work_start" => invocation.works.push(Work {
                machine: word("machine"),
                end: None,
            }),
            "work_end" => {
                let machine = word("machine");
                let mut works = invocation.works.iter_mut().rev();
                if let Some(work) = works.find(|work| work.machine == machine) {
                    work.end = Some((ns(), line["done"] == true));
                }
            }
            _ => {}
        }
    }

    /// Returns how many lines were read.
    pub(crate) fn lines(&self) -> usize {
        self.lines
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
            .filter(|invocation| invocation.machine == machine && !invocation.is_read())
            .map(|invocation| invocation.command.as_str())
            .collect()
    }

    /// Returns the most of the wanted invocations that ran at the same time.
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

    /// Fails if a change of a machine overlapped anything else on that machine.
    #[track_caller]
    pub(crate) fn assert_no_overlap(&self) {
        let overlaps = self.overlaps();
        assert!(overlaps.is_empty(), "overlapping: {overlaps:?}");
    }

    /// Returns the pairs that overlapped on a machine, at least one of them a change. Skips killed invocations, which
    /// have no end.
    pub(crate) fn overlaps(&self) -> Vec<[&Invocation; 2]> {
        let mut by_lane: BTreeMap<&str, Vec<(&Invocation, usize)>> = BTreeMap::new();
        for invocation in self.invocations.iter().filter(|one| !one.is_read()) {
            let Some(end) = invocation.end else { continue };
            for lane in invocation.lanes() {
                by_lane.entry(lane).or_default().push((invocation, end));
            }
        }
        let mut found = Vec::new();
        for (_, mut line) in by_lane {
            line.sort_unstable_by_key(|(one, _)| one.start);
            // Invocations that may still run when the next one starts.
            let mut there: Vec<(&Invocation, usize)> = Vec::new();
            for (one, end) in line {
                there.retain(|(_, end)| *end > one.start);
                let is_allowed = |other: &Invocation| one.is_command() && other.is_command();
                found.extend(
                    there
                        .iter()
                        .filter(|(other, _)| !is_allowed(other))
                        .map(|(other, _)| [*other, one]),
                );
                there.push((one, end));
            }
        }
        found
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

    /// Returns whether it takes no lane.
    fn is_read(&self) -> bool {
        matches!(
            self.command.as_str(),
            "list" | "info" | "status" | "version" | "default" | "ssh" | "logs" | "config"
        )
    }

    /// Returns whether it shares its machine with other commands.
    fn is_command(&self) -> bool {
        matches!(self.command.as_str(), "run" | "push" | "pull")
    }

    /// Returns whether it needs its machine alone.
    pub(crate) fn is_change(&self) -> bool {
        !self.is_read() && !self.is_command()
    }
}

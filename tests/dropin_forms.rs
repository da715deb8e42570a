//! Every form of `orbctl` and `orb` in `tests/data/dropin/forms.txt`, run bare and through the drop-in on equal
//! inventories.
//!
//! Stdout, stderr, exit code and the resulting inventory must equal the bare tool's. What orbd recorded (lanes, class,
//! invalidated scopes) must equal the table, which was written by hand.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests start programs as a shell would"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use orbd_proto::methods::{CacheInvalidate, JobList, MachineList, MetricsCounters};
use orbd_proto::types::{Job, JobLane, LaneKind};
use serde_json::{Value, json};

use crate::dropin::Way;
use crate::support::{Caller, Wire, World};

const TABLE: &str = include_str!("data/dropin/forms.txt");

/// Daemons that run at the same time.
const WORKERS: usize = 4;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Form {
    words: String,
    lanes: String,
    class: String,
    stale: String,
}

fn table() -> Vec<Form> {
    let is_form = |line: &&str| !line.is_empty() && !line.starts_with('#');
    TABLE
        .lines()
        .filter(is_form)
        .map(|line| {
            let columns: Vec<String> = line
                .split('|')
                .map(|column| column.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect();
            let [words, lanes, class, stale] = columns.try_into().expect(line);
            Form {
                words,
                lanes: sorted(&lanes),
                class,
                stale: sorted(&stale),
            }
        })
        .collect()
}

fn sorted(words: &str) -> String {
    let words: BTreeSet<&str> = words.split(' ').collect();
    words.into_iter().collect::<Vec<_>>().join(" ")
}

/// Two inventories that are made equal before each form: the bare tool's and the daemon's.
struct Pair {
    world: World,
    template: PathBuf,
    caller: Caller,
    wire: Wire,
}

impl Pair {
    fn new() -> Self {
        let world = World::new().machines(&["web", "db", "old"]);
        let home = world.path("home");
        for words in [&["stop", "old"][..], &["default", "web"]] {
            assert!(world.sim(words).status.success(), "{words:?}");
        }
        let archive = home.join("web.tar.zst").display().to_string();
        assert!(world.sim(&["export", "web", &archive]).status.success());
        fs::write(home.join("file"), "content\n").expect("a file");
        let template = world.path("template");
        fs::create_dir(&template).expect("a folder");
        copy([world.path("sim"), home], &template);
        let world = world.started();
        let caller = world.client();
        let mut wire = world.wire();
        let answer = wire.call(1, "events.subscribe", &json!({"kinds": ["cache_invalidated"]}));
        assert!(answer["result"].is_u64(), "{answer}");
        Self {
            world,
            template,
            caller,
            wire,
        }
    }

    /// Resets the inventory and the caller's folder to the template.
    fn reset(&self) {
        let folders = ["sim", "home"];
        for folder in folders {
            fs::remove_dir_all(self.world.path(folder)).expect("a folder");
        }
        copy(
            folders.map(|folder| self.template.join(folder)),
            &self.world.path(""),
        );
    }

    /// Runs a form; returns its output, its exit status and what it leaves.
    fn play(&self, way: Way, words: &[String]) -> Played {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = way
            .command(&self.world, &words)
            .output()
            .expect("the form starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Played {
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            status: output.status.to_string(),
            inventory: self.inventory(),
        }
    }

    /// Reads the stand-in's state, without values that differ in every run.
    fn inventory(&self) -> Value {
        let bytes = fs::read(self.world.path("sim/state.json")).expect("a state");
        let mut state: Value = serde_json::from_slice(&bytes).expect("JSON");
        for machine in state["machines"].as_array_mut().expect("machines") {
            // Values of a machine that the form created differ in every run; its name identifies it.
            let is_known = machine["name"]
                .as_str()
                .is_some_and(|name| ["web", "db", "old"].contains(&name));
            if !is_known {
                machine["id"] = Value::Null;
                machine["disk_size"] = Value::Null;
            }
        }
        state
    }

    /// Runs a form both ways and compares it with the table. Returns the differences.
    fn check(&mut self, form: &Form) -> Vec<String> {
        let words: Vec<String> = form
            .words
            .split(' ')
            .map(|word| self.with_ids(&word.replace("\\s", " ")))
            .collect();
        self.reset();
        let bare = self.play(Way::Bare, &words);
        self.reset();
        // Everything is stale now; then only the list is cached.
        self.stale();
        self.caller.ok::<MachineList>(json!({}));
        let last = self.last_job();
        let misses = self.misses();
        let ours = self.play(Way::DropIn, &words);
        let recorded = self.recorded(form, last, misses);
        let mut wrong = Vec::new();
        let mut compare = |what: &str, ours: &str, expected: &str| {
            if ours != expected {
                wrong.push(format!(
                    "{}: {what} is {ours:?}, expected {expected:?}",
                    form.words
                ));
            }
        };
        compare("stdout", &ours.stdout, &bare.stdout);
        compare("stderr", &ours.stderr, &bare.stderr);
        compare("the end", &ours.status, &bare.status);
        compare(
            "the inventory",
            &ours.inventory.to_string(),
            &bare.inventory.to_string(),
        );
        compare("the footprint", &recorded.lanes, &form.lanes);
        compare("the class", &recorded.class, &form.class);
        compare("what is stale", &recorded.stale, &form.stale);
        wrong
    }

    /// Replaces machine names in braces by the machines' ids.
    fn with_ids(&self, word: &str) -> String {
        let bytes = fs::read(self.template.join("sim/state.json")).expect("a state");
        let state: Value = serde_json::from_slice(&bytes).expect("JSON");
        let mut word = word.to_owned();
        for machine in state["machines"].as_array().expect("machines") {
            let text = |key: &str| machine[key].as_str().expect("text");
            word = word.replace(&format!("{{{}}}", text("name")), text("id"));
        }
        word
    }

    fn last_job(&mut self) -> u64 {
        let jobs = self.caller.ok::<JobList>(json!({"limit": 1})).jobs;
        jobs.last().map_or(0, |job| job.job_id)
    }

    fn misses(&mut self) -> u64 {
        self.caller.ok::<MetricsCounters>(json!({})).counters["cache_misses"]
    }

    /// Returns what orbd recorded of a call, given the last job id and the number of cache misses before it.
    fn recorded(&mut self, form: &Form, last: u64, misses: u64) -> Form {
        let jobs: Vec<Job> = self.caller.ok::<JobList>(json!({"limit": 20})).jobs;
        let ours: Vec<Job> = jobs
            .into_iter()
            .filter(|job| job.job_id > last && job.client.name == "orbctl")
            .collect();
        let job = match ours.as_slice() {
            [] => None,
            [job] => Some(job),
            several => panic!("{}: {several:?}", form.words),
        };
        // A read that has ended is not listed, but it is a cache miss.
        let without = if self.misses() > misses { "query" } else { "none" };
        // The job ended before the call returned, and so did all its invalidations.
        let stale = self.stale();
        Form {
            words: form.words.clone(),
            lanes: job.map_or("-".into(), |job| sorted(&lanes(&job.lanes))),
            class: job.map_or(without.into(), |job| job.job_class.clone()),
            stale: if stale.is_empty() { "-".into() } else { stale },
        }
    }

    /// Invalidates everything, and returns what was invalidated since the last time.
    fn stale(&mut self) -> String {
        let mark = self.caller.ok::<CacheInvalidate>(json!({})).generation;
        let mut stale = BTreeSet::new();
        loop {
            let message = self.wire.receive().expect("an event");
            let event = &message["params"]["result"];
            if event["type"] != "cache_invalidated" {
                continue;
            }
            if event["generation"] == mark {
                break;
            }
            stale.extend(scope(event));
        }
        stale.into_iter().collect::<Vec<_>>().join(" ")
    }
}

/// Result of one call of the tool.
struct Played {
    stdout: String,
    stderr: String,
    status: String,
    inventory: Value,
}

/// Copies folders into a folder.
fn copy(from: [PathBuf; 2], to: &Path) {
    let copied = Command::new("cp").arg("-a").args(from).arg(to).status();
    assert!(copied.expect("cp").success());
}

/// Formats lanes as the table has them.
fn lanes(lanes: &[JobLane]) -> String {
    let words: Vec<String> = lanes
        .iter()
        .map(|lane| {
            let name = match (lane.kind, &lane.machine) {
                (LaneKind::Machine, Some(machine)) => machine.as_str(),
                (LaneKind::Machine, None) => panic!("a machine lane names its machine"),
                (LaneKind::Configuration, _) => "config",
                (LaneKind::Fleet, _) => "*",
            };
            format!("{name}{}", if lane.exclusive { "!" } else { "" })
        })
        .collect();
    if words.is_empty() {
        "-".into()
    } else {
        words.join(" ")
    }
}

/// Formats a scope as the table has it.
fn scope(event: &Value) -> Vec<String> {
    match event["scope"].as_str() {
        Some("machines") => {
            let machines = event["machines"].as_array().expect("machines");
            let name = |machine: &Value| machine.as_str().expect("a name").to_owned();
            machines.iter().map(name).collect()
        }
        Some("configuration") => vec!["config".into()],
        Some("everything") => vec!["all".into()],
        _ => panic!("{event}"),
    }
}

#[test]
fn every_form_matches_the_bare_tool_and_the_table() {
    let forms = table();
    assert!(forms.len() >= 150, "{}", forms.len());
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let mine: Vec<&Form> = forms.iter().skip(worker).step_by(WORKERS).collect();
                scope.spawn(move || {
                    let mut pair = Pair::new();
                    mine.into_iter()
                        .flat_map(|form| pair.check(form))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let results = workers
            .into_iter()
            .flat_map(|worker| worker.join().expect("no panic"));
        results.collect()
    });
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

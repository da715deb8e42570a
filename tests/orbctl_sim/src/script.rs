//! The script: which trouble affects which invocation. `trouble` plays them.
//!
//! Counting makes a script repeatable: each rule counts the invocations that match it, in a file next to the state,
//! under a lock. Probability is a function of the seed, the rule and that count, so the same sequence of invocations
//! meets the same troubles again.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;

use crate::catalog;
use crate::refusal::{Outcome, Refusal};
use crate::settings::Settings;
use crate::state::Store;

/// A script file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Script {
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    trouble: Vec<Rule>,
    /// Name of the rules' counters; the same rules in another file have counters of their own.
    #[serde(skip)]
    name: String,
}

/// One `[[trouble]]` table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    command: Words,
    machine: Option<String>,
    /// Affects these matching invocations, counted from 1.
    #[serde(default)]
    nth: Numbers,
    /// Spares this many matching invocations first.
    #[serde(default)]
    skip: u64,
    /// Affects at most this many matching invocations after the skipped ones.
    times: Option<u64>,
    /// Affects only this share of those that are left, 0 to 1.
    probability: Option<f64>,
    #[serde(flatten)]
    trouble: Trouble,
}

/// A trouble and its parameters.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Trouble {
    pub(crate) kind: Kind,
    #[serde(default)]
    pub(crate) when: When,
    pub(crate) ms: Option<u64>,
    pub(crate) exit: Option<u8>,
    pub(crate) text: Option<String>,
    /// The machine whose record is altered in a list; all machines if `None`.
    pub(crate) record: Option<String>,
    #[serde(default)]
    pub(crate) ending: Ending,
    /// After how many forwarded bytes a `run` dies; never by itself if `None`.
    pub(crate) bytes: Option<u64>,
    /// The stream of which `bytes` are counted.
    #[serde(default)]
    pub(crate) stream: Stream,
}

/// The kinds of trouble; `docs/orbctl-sim.md` describes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Slow,
    Gate,
    Hang,
    HangHard,
    Panic,
    Killed,
    Garbage,
    Fail,
    MadeThoughClientDied,
    Banner,
    MissingOptionalKeys,
    UnknownKeys,
    UnknownState,
    Starting,
    StartTimesOut,
    EmptyList,
    ListHalf,
    RunDies,
    Grandchild,
}

/// Whether a trouble happens before anything is done, or when everything is done but nothing is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum When {
    #[default]
    Before,
    After,
}

/// A stream of `run`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stream {
    Stdin,
    #[default]
    Stdout,
    Stderr,
}

/// How the client of `made_though_client_died` dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ending {
    #[default]
    Hang,
    Killed,
}

/// One word, several, or none, which matches every word.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Words {
    #[default]
    Any,
    One(String),
    Several(Vec<String>),
}

impl Words {
    fn matches(&self, word: &str) -> bool {
        let is = |pattern: &String| matches_pattern(pattern, word);
        match self {
            Words::Any => true,
            Words::One(one) => is(one),
            Words::Several(several) => several.iter().any(is),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Numbers {
    #[default]
    Any,
    One(u64),
    Several(Vec<u64>),
}

impl Numbers {
    fn matches(&self, number: u64) -> bool {
        match self {
            Numbers::Any => true,
            Numbers::One(one) => *one == number,
            Numbers::Several(several) => several.contains(&number),
        }
    }
}

/// Returns whether `word` matches `pattern`, in which a `*` at the end matches any ending.
fn matches_pattern(pattern: &str, word: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => word.starts_with(beginning),
        None => word == pattern,
    }
}

impl Script {
    /// Reads the script that the environment names; without one there is no trouble.
    pub(crate) fn load(settings: &Settings) -> Outcome<Script> {
        let Some(path) = &settings.script else {
            return Ok(Script::default());
        };
        let bad = |error: &dyn std::fmt::Display| Refusal::own(format!("script {}: {error}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| bad(&error))?;
        let mut script: Script = toml::from_str(&text).map_err(|error| bad(&error))?;
        script.name = path.display().to_string();
        Ok(script)
    }

    /// Counts this invocation and returns the troubles that affect it, in the script's order.
    pub(crate) fn troubles(
        &self,
        store: &Store,
        command: &str,
        machine: Option<&str>,
    ) -> Outcome<Vec<Trouble>> {
        let matching: Vec<(usize, &Rule)> = self
            .trouble
            .iter()
            .enumerate()
            .filter(|(_, rule)| rule.concerns(command, machine))
            .collect();
        if matching.is_empty() {
            return Ok(Vec::new());
        }
        let _lock = store.lock("script")?;
        let mut counts: BTreeMap<String, u64> = fs::read(store.home().join(COUNTS))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let mut troubles = Vec::new();
        for (index, rule) in matching {
            let count = counts.entry(format!("{}#{index}", self.name)).or_default();
            *count += 1;
            if rule.strikes(*count, self.seed, index) {
                troubles.push(rule.trouble.clone());
            }
        }
        let bytes = serde_json::to_vec(&counts).map_err(|error| Refusal::Whole(error.to_string()))?;
        store.replace(COUNTS, &bytes)?;
        Ok(troubles)
    }
}

/// File of the rules' counters, in the state directory.
const COUNTS: &str = "script-counts.json";

impl Rule {
    fn concerns(&self, command: &str, machine: Option<&str>) -> bool {
        let machine_fits = match &self.machine {
            None => true,
            Some(pattern) => machine.is_some_and(|machine| matches_pattern(pattern, machine)),
        };
        machine_fits && self.command.matches(command)
    }

    fn strikes(&self, count: u64, seed: u64, index: usize) -> bool {
        let in_turn = count > self.skip
            && self.times.is_none_or(|times| count <= self.skip + times)
            && self.nth.matches(count);
        let chance = || f64::from(catalog::spread(&format!("{seed}/{index}/{count}"))) / f64::from(u32::MAX);
        in_turn && self.probability.is_none_or(|share| chance() < share)
    }
}

//! The stand-in's own commands, none of which `orbctl` has: clean-up, and its hidden processes. They write no line to
//! the ledger.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Sim;
use crate::answers;
use crate::guest;
use crate::ledger::Ledger;
use crate::refusal::{Outcome, Refusal};
use crate::reply::Reply;
use crate::service;
use crate::settings::Settings;
use crate::state::Store;

/// Runs one of the stand-in's own commands.
pub(crate) fn run(word: &str, words: &[OsString]) -> Reply {
    let result = match word {
        service::WORD => service::work(),
        guest::INIT_WORD => guest::init()
            .map(|()| Reply::silent())
            .map_err(|error| Refusal::Whole(format!("{error:#}"))),
        guest::GUARD_WORD => {
            guest::guard();
            Ok(Reply::silent())
        }
        "sim-answers" => Ok(Reply::text(answers::questions())),
        "sim-cleanup" => cleanup(),
        "sim-ledger" => Settings::from_environment().and_then(|settings| {
            let path = words.first().map_or(settings.ledger.as_path(), Path::new);
            summary(path)
        }),
        _ => Err(Refusal::own(format!("unknown command '{word}'"))),
    };
    Reply::from(result)
}

/// Stops all machines and removes the state directory and everything that belongs to it.
fn cleanup() -> Outcome<Reply> {
    let settings = Settings::from_environment()?;
    // A mistyped variable must not remove an unrelated folder.
    if !settings.home.join("locks").is_dir() {
        return if settings.home.exists() {
            let home = settings.home.display();
            Err(Refusal::own(format!(
                "{home} is not a state directory of orbctl-sim"
            )))
        } else {
            Ok(Reply::silent())
        };
    }
    let store = Store::open(&settings.home)?;
    let ledger = Ledger::join(&settings.ledger, String::new())?;
    let sim = Sim {
        settings,
        store,
        ledger: &ledger,
    };
    // Busy workers are waited for: they would write into what is removed.
    for machine in sim.store.read()?.machines {
        let _lock = sim.store.lock(&machine.id)?;
        let current = sim.store.read()?.find(&machine.id).cloned();
        let Some(machine) = current else { continue };
        let failed = |error| Refusal::service("sim-cleanup", &machine.name, error);
        guest::halt(&sim, &machine).map_err(failed)?;
        guest::remove(&sim, &machine).map_err(failed)?;
    }
    fs::remove_dir_all(sim.store.home())?;
    Ok(Reply::silent())
}

/// Counts what the ledger has: invocations by command, and the most that ran at one time, in total and on each machine.
fn summary(path: &Path) -> Outcome<Reply> {
    let text = fs::read_to_string(path)?;
    let mut spawns: BTreeMap<String, u64> = BTreeMap::new();
    let mut running: BTreeMap<String, String> = BTreeMap::new();
    let mut most: BTreeMap<String, usize> = BTreeMap::new();
    let mut most_in_all = 0;
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let word = |key: &str| {
            line.get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        match word("event").as_str() {
            "start" => {
                *spawns.entry(word("command")).or_default() += 1;
                let machine = word("machine");
                running.insert(word("id"), machine.clone());
                most_in_all = most_in_all.max(running.len());
                let now = running.values().filter(|other| **other == machine).count();
                let most = most.entry(machine).or_default();
                *most = now.max(*most);
            }
            "end" => {
                running.remove(&word("id"));
            }
            _ => {}
        }
    }
    let mut lines = vec![format!("invocations: {}", spawns.values().sum::<u64>())];
    lines.extend(
        spawns
            .iter()
            .map(|(command, count)| format!("  {command}: {count}")),
    );
    lines.push(format!("most at one time: {most_in_all}"));
    let named = most.iter().filter(|(machine, _)| !machine.is_empty());
    lines.extend(named.map(|(machine, count)| format!("  on {machine}: {count}")));
    lines.push(format!("without an end: {}\n", running.len()));
    Ok(Reply::text(lines.join("\n")))
}

//! Shell completion: verbs and flags, and the machine names and job ids that orbd knows.
//!
//! To complete a word, a shell runs this program with `COMPLETE` set. It then only prints candidates, from the clap definitions and
//! from a running daemon. Completion never starts a daemon or OrbStack, and never waits long.

use std::time::Duration;

use clap::CommandFactory;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::CompleteEnv;
use orbd_client::Client;
use orbd_proto::methods::{ConfigShow, JobList, MachineList, OrbstackStatus};
use orbd_proto::types::{Job, JobListParams, JobStateWord, ReadParams};

use crate::args::Global;
use crate::cli::Cli;
use crate::commands::{DISTROS, method_names};
use crate::environment::{Environment, variable};
use crate::link::{CLIENT_NAME, Link};

/// Environment variable that the completion script sets to the shell's name.
pub(crate) const VARIABLE: &str = "COMPLETE";

/// Maximum time to wait for the daemon's answer, because the user is waiting for the completion.
const ANSWER_MAX: Duration = Duration::from_millis(700);

/// Prints completions and exits if the shell asks for them; otherwise returns.
pub(crate) fn answer_shell() {
    if variable(VARIABLE).is_some_and(|shell| !shell.is_empty()) {
        CompleteEnv::with_factory(grammar).var(VARIABLE).complete();
    }
}

/// Returns the clap definitions, with completers for machine names and job ids.
fn grammar() -> clap::Command {
    let mut grammar = Cli::command();
    // The arguments of the verbs are deferred: `build` adds them.
    grammar.build();
    completed(grammar)
}

fn completed(command: clap::Command) -> clap::Command {
    // Of a verb and its visible aliases, completion would offer the first in the alphabet. clap stores only static names; this process
    // ends when it has printed the candidates.
    let aliases: Vec<&'static str> = command
        .get_visible_aliases()
        .map(|alias| &*alias.to_owned().leak())
        .collect();
    let is_cancel = command.get_name() == "cancel";
    command
        .visible_alias(None::<&'static str>)
        .aliases(aliases)
        .mut_args(|argument| match argument.get_id().as_str() {
            "machine" | "machines" | "named_machine" => argument.add(ArgValueCandidates::new(machines)),
            "ids" if is_cancel => argument.add(ArgValueCandidates::new(open_jobs)),
            "id" | "ids" => argument.add(ArgValueCandidates::new(jobs)),
            "image" => argument.add(ArgValueCandidates::new(|| words(&DISTROS))),
            "arch" => argument.add(ArgValueCandidates::new(|| words(&["arm64", "amd64"]))),
            "method" => argument.add(ArgValueCandidates::new(|| {
                method_names().map(CompletionCandidate::new).collect()
            })),
            "key" => argument.add(ArgValueCandidates::new(config_keys)),
            _ => argument,
        })
        .mut_subcommands(completed)
}

/// Connects to a running daemon.
fn daemon() -> Option<Client> {
    let link = Link::resolve(&Global::default(), Environment::read()).ok()?;
    let mut client = link.dial().ok()?;
    client.set_timeout(Some(ANSWER_MAX)).ok()?;
    client.hello(CLIENT_NAME).ok()?;
    Some(client)
}

fn machines() -> Vec<CompletionCandidate> {
    let names = || {
        let mut client = daemon()?;
        // Listing machines starts OrbStack; querying its status does not.
        let status = client.call::<OrbstackStatus>(&ReadParams::default()).ok()?;
        if status.status != "running" {
            return None;
        }
        let answer = client.call::<MachineList>(&ReadParams::default()).ok()?;
        Some(answer.machines)
    };
    names()
        .unwrap_or_default()
        .into_iter()
        .map(|machine| CompletionCandidate::new(machine.name).help(Some(machine.state.into())))
        .collect()
}

fn config_keys() -> Vec<CompletionCandidate> {
    let answer = daemon().and_then(|mut client| client.call::<ConfigShow>(&ReadParams::default()).ok());
    let values = answer.map(|answer| answer.values).unwrap_or_default();
    values
        .into_iter()
        .map(|(key, value)| CompletionCandidate::new(key).help(Some(value.into())))
        .collect()
}

fn words(words: &[&'static str]) -> Vec<CompletionCandidate> {
    words.iter().map(CompletionCandidate::new).collect()
}

/// Returns all jobs that orbd remembers, newest first, active jobs before ended ones.
fn jobs() -> Vec<CompletionCandidate> {
    let (ended, open): (Vec<_>, Vec<_>) = known_jobs()
        .into_iter()
        .rev()
        .partition(|job| job.state == JobStateWord::Ended);
    open.into_iter().chain(ended).map(candidate).collect()
}

/// Returns the jobs that have not ended, newest first.
fn open_jobs() -> Vec<CompletionCandidate> {
    let jobs = known_jobs().into_iter().rev();
    jobs.filter(|job| job.state != JobStateWord::Ended)
        .map(candidate)
        .collect()
}

fn known_jobs() -> Vec<Job> {
    let answer = daemon().and_then(|mut client| client.call::<JobList>(&JobListParams::default()).ok());
    answer.map(|answer| answer.jobs).unwrap_or_default()
}

fn candidate(job: Job) -> CompletionCandidate {
    let what = format!("{} {}", job.operation, job.machine.unwrap_or_default());
    CompletionCandidate::new(job.job_id.to_string()).help(Some(what.trim().to_owned().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Completers are attached by argument id. A machine argument with another id would be completed as a file name.
    #[test]
    fn every_machine_and_job_argument_is_completed() {
        fn check(command: &clap::Command, path: &str) {
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                let named = argument.get_value_names().into_iter().flatten();
                let names_one = named
                    .into_iter()
                    .any(|name| matches!(name.as_str(), "NAME" | "ID" | "SOURCE"));
                let is_new = help.to_lowercase().contains("new machine") || help.starts_with("Name of");
                if names_one && !is_new {
                    let completed = argument.get::<ArgValueCandidates>().is_some();
                    assert!(completed, "{path}: {} is not completed", argument.get_id());
                }
            }
            for verb in command.get_subcommands() {
                check(verb, &format!("{path} {}", verb.get_name()));
            }
        }
        check(&grammar(), "orbd-ctl");
    }

    #[test]
    fn verbs_are_completed_by_their_names_and_parsed_by_their_aliases() {
        let grammar = grammar();
        for (name, alias) in [("create", "add"), ("shell", "sh"), ("list", "ls")] {
            let verb = grammar.find_subcommand(alias).expect(alias);
            assert_eq!(verb.get_name(), name);
            assert_eq!(verb.get_visible_aliases().next(), None, "{name}");
        }
    }
}

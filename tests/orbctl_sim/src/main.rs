//! `orbctl-sim`: a stand-in for OrbStack's `orbctl`, for development, tests and the demo.
//!
//! It answers the same commands with the same shapes, exit codes and recorded texts, keeps its machines in a state
//! directory, and can be scripted to misbehave. It shares nothing with `orbd`: what the daemon builds and parses is
//! checked against a second, independent reading of the same recordings.
//!
//! The path of one invocation:
//!
//! ```text
//! words ─▶ commands::parse ─▶ script (which troubles?) ─▶ commands::execute ─▶ Reply ─▶ exit
//!              │                                              │
//!              └─ ledger: start                               ├─ queries read `state`
//!                                                             ├─ changes go to `service` (a detached
//!                                                             │  worker: killing us does not stop it)
//!                                                             └─ run, push, pull enter a `guest`
//! ```
//!
//! `docs/orbctl-sim.md` is the manual.
#![expect(
    clippy::disallowed_methods,
    reason = "the stand-in is a program of its own: it starts children, reads its environment and clocks"
)]

mod answers;
mod args;
mod catalog;
mod commands;
mod grammar;
mod guest;
mod housekeeping;
mod ledger;
mod refusal;
mod render;
mod reply;
mod script;
mod service;
mod settings;
mod state;
mod trouble;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use crate::answers::Banner;
use crate::args::Program;
use crate::commands::{Called, Command};
use crate::ledger::Ledger;
use crate::reply::Reply;
use crate::script::Script;
use crate::settings::Settings;
use crate::state::Store;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let called = words.next().unwrap_or_default();
    let words: Vec<OsString> = words.collect();
    let program = if Path::new(&called).file_name().is_some_and(|name| name == "orb") {
        Program::Orb
    } else {
        Program::Orbctl
    };
    // Without HOME the real tool panics before it parses its arguments, even for `version`.
    if std::env::var_os("HOME").is_none_or(|home| home.is_empty()) {
        return trouble::go_panic("$HOME is not defined").print();
    }
    match words.first().and_then(|word| word.to_str()) {
        Some(word) if word.starts_with("sim-") => housekeeping::run(word, &words[1..]).print(),
        _ => invoke(program, &words),
    }
}

/// Executes one `orbctl` invocation, from the ledger's first line to its last.
fn invoke(program: Program, words: &[OsString]) -> ExitCode {
    let settings = match Settings::from_environment() {
        Ok(settings) => settings,
        Err(refusal) => return Reply::from(refusal).print(),
    };
    let answers = settings.answers.everywhere();
    let parsed = commands::parse(Called { program, answers }, words);
    let (command, machine) = match &parsed {
        Ok(command) => (command.name().to_owned(), command.machine()),
        Err(_) => (commands::first_word(words), None),
    };
    let opened = Store::open(&settings.home).and_then(|store| {
        let ledger = Ledger::begin(&settings.ledger, words, &command, machine.as_deref())?;
        Ok((store, ledger))
    });
    let (store, ledger) = match opened {
        Ok(opened) => opened,
        Err(refusal) => return Reply::from(refusal).print(),
    };
    let script = match Script::load(&settings) {
        Ok(script) => script,
        Err(refusal) => return ledger.end(Reply::from(refusal)).print(),
    };
    let troubles = match script.troubles(&store, &command, machine.as_deref()) {
        Ok(troubles) => troubles,
        Err(refusal) => return ledger.end(Reply::from(refusal)).print(),
    };
    let reply = match parsed {
        Err(refusal) => Reply::from(refusal),
        Ok(command) => {
            let sim = Sim {
                settings,
                store,
                ledger: &ledger,
            };
            play(&sim, command, &troubles)
        }
    };
    // The line is written first: a test that has seen the end of the output also finds the `end` line in the ledger.
    let reply = ledger.end(reply);
    reply.print()
}

/// Plays the troubles around the command itself.
fn play(sim: &Sim<'_>, command: Command, troubles: &[script::Trouble]) -> Reply {
    if let Some(reply) = trouble::before(troubles) {
        return reply;
    }
    let announced = match sim.settings.answers.everywhere().banner {
        Banner::Absent => Ok(()),
        Banner::Stderr => std::io::stderr().write_all(trouble::BANNER.as_bytes()),
        Banner::Stdout => std::io::stdout().write_all(trouble::BANNER.as_bytes()),
    };
    if announced.and_then(|()| std::io::stdout().flush()).is_err() {
        return Reply::exit(1);
    }
    let reply = commands::execute(sim, command, troubles);
    trouble::after(troubles, reply)
}

/// Context of every command.
pub(crate) struct Sim<'a> {
    pub(crate) settings: Settings,
    pub(crate) store: Store,
    pub(crate) ledger: &'a Ledger,
}

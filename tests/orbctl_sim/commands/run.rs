//! `run`: a command in a machine.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::Sim;
use crate::args::{Order, Words, switch, value};
use crate::commands::change::Task;
use crate::commands::chosen;
use crate::guest::exec::{self, GuestCommand};
use crate::guest::is_alive;
use crate::refusal::{Outcome, Refusal};
use crate::reply::Reply;
use crate::service;
use crate::state::{Machine, MachineState};

/// What `run` is asked for.
pub(crate) struct RunCommand {
    pub(crate) machine: Option<String>,
    command: GuestCommand,
}

/// Reads the words behind `run`. Flags end at the first word that is none; what follows belongs
/// to the command, however it looks.
pub(crate) fn parse(words: &[OsString]) -> Outcome<RunCommand> {
    let known = [
        value("machine", Some(b'm')),
        value("user", Some(b'u')),
        value("workdir", Some(b'w')),
        switch("shell", Some(b's')),
        switch("path", Some(b'p')),
        value("env", Some(b'e')),
    ];
    let words = Words::sort("run", words, &known, Order::FlagsFirst)?;
    Ok(RunCommand {
        machine: words.text("machine"),
        command: GuestCommand {
            user: words.text("user"),
            workdir: words.text("workdir").map(PathBuf::from),
            profile: words.has("shell") || words.rest.is_empty(),
            pass: words.texts("env").into_iter().map(OsString::from).collect(),
            words: words.rest,
            ..GuestCommand::default()
        },
    })
}

/// Runs the command and gives its exit code.
pub(crate) fn execute(sim: &Sim<'_>, run: RunCommand) -> Outcome<Reply> {
    let machine = awake(sim, run.machine.as_deref(), "run")?;
    sim.settings.latency.pass("run");
    let exit = exec::run(sim, &machine, run.command);
    exit.map(Reply::exit)
        .map_err(|error| Refusal::service("run", &machine.name, error))
}

/// The machine that is meant, running; a stopped one is started, as on the real tool.
pub(crate) fn awake(sim: &Sim<'_>, named: Option<&str>, operation: &'static str) -> Outcome<Machine> {
    let machine = chosen(&sim.store.read()?, named, operation)?;
    if machine.state == MachineState::Running && is_alive(&machine) {
        return Ok(machine);
    }
    service::demand(
        sim,
        Task::Start {
            machines: vec![machine.id.clone()],
        },
    )?;
    let machine = sim.store.read()?.find(&machine.id).cloned();
    machine.ok_or_else(|| Refusal::MachineNotFound {
        operation: Some(operation),
        machine: named.unwrap_or_default().to_owned(),
    })
}

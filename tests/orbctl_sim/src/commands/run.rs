//! `run`: a command in a machine.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::Sim;
use crate::args::Words;
use crate::commands::change::Task;
use crate::commands::chosen;
use crate::guest::exec::{self, GuestCommand};
use crate::guest::is_alive;
use crate::refusal::{Outcome, Refusal};
use crate::reply::Reply;
use crate::script::{Kind, Trouble};
use crate::service;
use crate::state::{Machine, MachineState};

/// A parsed `run`.
pub(crate) struct RunCommand {
    pub(crate) machine: Option<String>,
    command: GuestCommand,
}

/// Parses the arguments of `run`. Flags end at the first operand; what follows belongs to the command, even if it
/// begins with `-`.
pub(crate) fn read(words: Words) -> RunCommand {
    RunCommand {
        machine: words.text("machine"),
        command: GuestCommand {
            user: words.text("user"),
            workdir: words.text("workdir").map(PathBuf::from),
            profile: words.has("shell") || words.rest.is_empty(),
            pass: words.texts("env").into_iter().map(OsString::from).collect(),
            words: words.rest,
            ..GuestCommand::default()
        },
    }
}

/// Runs the command and returns its exit code.
pub(crate) fn execute(sim: &Sim<'_>, mut run: RunCommand, troubles: &[Trouble]) -> Outcome<Reply> {
    let machine = awake(sim, run.machine.as_deref())?;
    sim.settings.latency.pass("run");
    run.command.answers = sim.settings.answers.in_machine(&machine.name);
    let death = troubles.iter().find(|trouble| trouble.kind == Kind::RunDies);
    run.command.death = death.cloned();
    let exit = exec::run(sim, &machine, run.command);
    exit.map(Reply::exit)
        .map_err(|error| Refusal::service("run", &machine.name, error))
}

/// Returns the machine that is meant, running; a stopped one is started, as by the real tool.
pub(crate) fn awake(sim: &Sim<'_>, named: Option<&str>) -> Outcome<Machine> {
    let machine = chosen(&sim.store.read()?, named)?;
    if machine.state == MachineState::Running && is_alive(&machine) {
        return Ok(machine);
    }
    service::demand(
        sim,
        Task::Start {
            machines: vec![machine.id.clone()],
        },
    )?;
    let started = sim.store.read()?.find(&machine.id).cloned();
    started.ok_or(Refusal::MachineNotFound(machine.name))
}

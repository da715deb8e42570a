//! The commands: from words to a `Command`, from a `Command` to a `Reply`.
//!
//! `query` answers from the state, `change` is carried out by the service, `run` and `transfer`
//! enter a machine, `config` reads and writes settings.

pub(crate) mod change;
mod config;
mod query;
mod run;
mod transfer;

use std::ffi::OsString;

use crate::Sim;
use crate::args::{Order, Words, switch, value};
use crate::refusal::{Outcome, Refusal};
use crate::reply::Reply;
use crate::script::Trouble;
use crate::service;
use crate::state::{Inventory, Machine, ServiceState};
use crate::trouble;
use change::Task;
use config::ConfigCommand;
use query::{Format, Listing};
use run::RunCommand;
use transfer::{Direction, Transfer};

/// Everything that can be asked.
pub(crate) enum Command {
    List(Listing),
    Info {
        machine: String,
        format: Format,
    },
    Status,
    Version,
    Default {
        machine: Option<String>,
    },
    Logs {
        machine: String,
        all: bool,
        follow: bool,
    },
    Ssh,
    Config(ConfigCommand),
    Change(Task),
    Run(RunCommand),
    Transfer(Transfer),
    Update {
        check: bool,
    },
    Help,
}

/// The first word, for the ledger of an invocation that makes no sense.
pub(crate) fn first_word(words: &[OsString]) -> String {
    words
        .first()
        .map(|word| word.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The words of `orbctl` for words of `orb`, which takes the same ones, opens a shell without any, and runs what it does not know
/// in the default machine, also behind flags of `run`.
pub(crate) fn of_orb(mut words: Vec<OsString>) -> Vec<OsString> {
    const KNOWN: [&str; 34] = [
        "list",
        "ls",
        "info",
        "status",
        "version",
        "--version",
        "ssh",
        "update",
        "help",
        "--help",
        "-h",
        "default",
        "logs",
        "config",
        "run",
        "shell",
        "push",
        "pull",
        "create",
        "add",
        "new",
        "start",
        "stop",
        "restart",
        "delete",
        "clone",
        "rename",
        "export",
        "import",
        "reset",
        "doctor",
        "top",
        "report",
        "login",
    ];
    let is_known = words
        .first()
        .and_then(|word| word.to_str())
        .is_some_and(|word| KNOWN.contains(&word) || word.starts_with("sim-"));
    if !is_known {
        words.insert(0, "run".into());
    }
    words
}

/// Reads the words of an invocation.
pub(crate) fn parse(words: &[OsString]) -> Outcome<Command> {
    let Some((name, words)) = words.split_first() else {
        return Ok(Command::Help);
    };
    let name = name.to_string_lossy();
    let mixed = |known: &[_]| Words::sort(&name, words, known, Order::Mixed);
    let format = value("format", Some(b'f'));
    match &*name {
        "list" | "ls" => {
            let words = mixed(&[format, switch("quiet", Some(b'q')), switch("running", Some(b'r'))])?;
            words.rest_between(&name, 0, 0)?;
            Ok(Command::List(Listing {
                format: Format::parse(words.text("format").as_deref())?,
                quiet: words.has("quiet"),
                running: words.has("running"),
            }))
        }
        "info" => {
            let words = mixed(&[format])?;
            let machine = words.rest_between(&name, 1, 1)?.remove(0);
            Ok(Command::Info {
                machine,
                format: Format::parse(words.text("format").as_deref())?,
            })
        }
        "status" => mixed(&[])?.rest_between(&name, 0, 0).map(|_| Command::Status),
        "version" | "--version" => mixed(&[])?.rest_between(&name, 0, 0).map(|_| Command::Version),
        "ssh" => mixed(&[])?.rest_between(&name, 0, 0).map(|_| Command::Ssh),
        "update" => Ok(Command::Update {
            check: mixed(&[switch("check", None)])?.has("check"),
        }),
        "help" | "--help" | "-h" => Ok(Command::Help),
        "default" => {
            let machine = mixed(&[])?.rest_between(&name, 0, 1)?.pop();
            Ok(Command::Default { machine })
        }
        "logs" => {
            let words = mixed(&[switch("all", Some(b'a')), switch("follow", Some(b'f'))])?;
            let machine = words.rest_between(&name, 1, 1)?.remove(0);
            Ok(Command::Logs {
                machine,
                all: words.has("all"),
                follow: words.has("follow"),
            })
        }
        "config" => config::parse(words).map(Command::Config),
        "run" | "shell" => run::parse(words).map(Command::Run),
        "push" => transfer::parse(Direction::Push, words).map(Command::Transfer),
        "pull" => transfer::parse(Direction::Pull, words).map(Command::Transfer),
        _ => change::parse(&name, words).map(Command::Change),
    }
}

impl Command {
    /// The name under which scripts, latencies and the ledger know this command.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Command::List(_) => "list",
            Command::Info { .. } => "info",
            Command::Status => "status",
            Command::Version => "version",
            Command::Default { .. } => "default",
            Command::Logs { .. } => "logs",
            Command::Ssh => "ssh",
            Command::Config(_) => "config",
            Command::Change(task) => task.name(),
            Command::Run(_) => "run",
            Command::Transfer(transfer) => transfer.direction.name(),
            Command::Update { .. } => "update",
            Command::Help => "help",
        }
    }

    /// The machine that the command names, as it is spelled there.
    pub(crate) fn machine(&self) -> Option<String> {
        match self {
            Command::Info { machine, .. } | Command::Logs { machine, .. } => Some(machine.clone()),
            Command::Default { machine } => machine.clone(),
            Command::Config(config) => config.machine(),
            Command::Change(task) => task.machine(),
            Command::Run(run) => run.machine.clone(),
            Command::Transfer(transfer) => transfer.machine.clone(),
            _ => None,
        }
    }

    /// Whether the real tool starts OrbStack for this command; only `status` is known not to.
    fn wakes_service(&self) -> bool {
        match self {
            Command::Status
            | Command::Version
            | Command::Help
            | Command::Update { .. }
            | Command::Config(_) => false,
            Command::Change(task) => task.needs_service(),
            _ => true,
        }
    }
}

/// Carries out a command.
pub(crate) fn execute(sim: &Sim<'_>, command: Command, troubles: &[Trouble]) -> Reply {
    let wakes = command.wakes_service();
    let result = wake(sim, wakes).and_then(|()| match command {
        Command::List(listing) => query::list(sim, &listing, troubles),
        Command::Info { machine, format } => query::info(sim, &machine, format, troubles),
        Command::Status => query::status(sim),
        Command::Version => Ok(query::version(sim)),
        Command::Default { machine } => query::default(sim, machine),
        Command::Logs { machine, all, follow } => query::logs(sim, &machine, all, follow),
        Command::Ssh => Ok(query::ssh(sim)),
        Command::Config(config) => config::execute(sim, &config),
        Command::Change(Task::Delete { machines, force }) => delete(sim, machines, force, troubles),
        Command::Change(task) => service::hand_over(sim, task, troubles),
        Command::Run(run) => run::execute(sim, run),
        Command::Transfer(transfer) => transfer::execute(sim, &transfer),
        Command::Update { check } => Ok(query::update(check)),
        Command::Help => Ok(Reply::text(HELP)),
    });
    Reply::from(result)
}

/// Starts OrbStack if it is stopped, and waits for a start that is under way.
fn wake(sim: &Sim<'_>, wanted: bool) -> Outcome<()> {
    if wanted && sim.store.read()?.service != ServiceState::Running {
        service::demand(sim, Task::StartOrbStack)?;
    }
    Ok(())
}

/// `delete` takes names only; given an id, version 2.2.3 crashes.
fn delete(sim: &Sim<'_>, machines: Vec<String>, force: bool, troubles: &[Trouble]) -> Outcome<Reply> {
    let inventory = sim.store.read()?;
    let by_id = |name: &String| {
        inventory
            .find(name)
            .is_some_and(|machine| machine.id == *name && machine.name != *name)
    };
    if machines.iter().any(by_id) {
        return Ok(trouble::nil_pointer());
    }
    service::hand_over(sim, Task::Delete { machines, force }, troubles)
}

/// The machine that a command in a machine goes to: the one named, else the default one.
fn chosen(inventory: &Inventory, named: Option<&str>, operation: &'static str) -> Outcome<Machine> {
    let name = match named.or(inventory.default.as_deref()) {
        Some(name) => name.to_owned(),
        None => match inventory.machines.first() {
            Some(machine) => machine.name.clone(),
            None => return Err(Refusal::NoMachines),
        },
    };
    let found = inventory.find(&name).cloned();
    found.ok_or(Refusal::MachineNotFound {
        operation: Some(operation),
        machine: name,
    })
}

const HELP: &str = "orbctl-sim stands in for OrbStack's orbctl; docs/orbctl-sim.md is its manual.

machines   list info create start stop restart delete clone rename export import default logs
inside     run push pull ssh
OrbStack   status version start stop config update
its own    sim-ledger sim-cleanup
";

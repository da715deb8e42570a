//! The commands: arguments are parsed into a `Command`, and executing that gives a `Reply`.
//!
//! `query` reads the state, `change` is executed by the service, `run` and `transfer` enter a machine, `config` reads
//! and writes settings.

pub(crate) mod change;
mod config;
mod held;
mod query;
mod run;
mod transfer;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

use crate::Sim;
use crate::answers::{
    Answers, ChangeOutput, DeleteQuestion, LeadingFlags, ListStopped, LogsFollow, RemoveVerb, RunDashes,
    ShutdownVerb,
};
use crate::args::{Program, Syntax};
use crate::catalog;
use crate::grammar::{self, RUN, RUN_WITH_DASHES};
use crate::refusal::{Outcome, Refusal};
use crate::reply::Reply;
use crate::script::{Kind, Trouble};
use crate::service;
use crate::state::{Inventory, Machine, ServiceState};
use crate::trouble;
use change::Task;
use config::ConfigCommand;
use query::{Format, Listing};
use run::RunCommand;
use transfer::{Direction, Transfer};

/// Every command of the stand-in.
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
    Delete {
        machines: Vec<String>,
        force: bool,
    },
    Reset {
        sure: bool,
    },
    Help(String),
}

/// Returns the first word, for the ledger line of an invalid invocation.
pub(crate) fn first_word(words: &[OsString]) -> String {
    words
        .first()
        .map(|word| word.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// How the program was called: its name, and the answers that decide what it accepts.
#[derive(Clone, Copy)]
pub(crate) struct Called {
    pub(crate) program: Program,
    pub(crate) answers: Answers,
}

impl Called {
    /// Finds a command by its name or alias.
    fn find(self, name: &str) -> Option<&'static Syntax> {
        let answers = self.answers;
        match name {
            "shutdown" if answers.shutdown_verb == ShutdownVerb::Unknown => None,
            "rm" | "remove" if answers.remove_verb == RemoveVerb::Delete => grammar::find("delete"),
            "run" | "shell" => Some(self.run()),
            name => grammar::find(name),
        }
    }

    fn run(self) -> &'static Syntax {
        match self.answers.run_dashes {
            RunDashes::Refused => &RUN,
            RunDashes::Accepted => &RUN_WITH_DASHES,
        }
    }
}

/// Parses the arguments of an invocation.
pub(crate) fn parse(called: Called, words: &[OsString]) -> Outcome<Command> {
    let program = called.program;
    let Some((first, rest)) = words.split_first() else {
        return match program {
            Program::Orb => parse_as(called, called.run(), words),
            Program::Orbctl => Ok(Command::Help(HELP.to_owned())),
        };
    };
    let name = first.to_string_lossy();
    match &*name {
        "--version" | "-V" => return Ok(Command::Version),
        "help" | "--help" | "-h" => return Ok(help(program, rest)),
        "config" => return config::parse(program, rest),
        // Flags of `run` may precede the command.
        flag if flag.starts_with('-') => return parse_leading_flags(called, words),
        _ => {}
    }
    match (called.find(&name), program) {
        (Some(syntax), _) => parse_as(called, syntax, rest),
        (None, _) if grammar::is_not_played(&name) => {
            Err(Refusal::own(format!("'{name}' is not played by the stand-in")))
        }
        (None, Program::Orb) => parse_as(called, called.run(), words),
        (None, Program::Orbctl) => Err(unknown(program, &name)),
    }
}

/// Parses flags of `run` that precede their command.
fn parse_leading_flags(called: Called, words: &[OsString]) -> Outcome<Command> {
    let program = called.program;
    if called.answers.leading_flags == LeadingFlags::Refused {
        let flag = first_word(words);
        return Err(Refusal::Usage(format!(
            "Error: unknown flag {flag}\nUsage:\n  {} [command]",
            program.name()
        )));
    }
    let behind = called.run().split(program, words)?.rest;
    let (flags, _) = words.split_at(words.len() - behind.len());
    let first = behind
        .first()
        .map(|word| word.to_string_lossy())
        .unwrap_or_default();
    let syntax = called
        .find(&first)
        .filter(|_| grammar::TAKES_LEADING_FLAGS.contains(&&*first));
    match (syntax, program) {
        (Some(syntax), _) => parse_as(called, syntax, &[flags, &behind[1..]].concat()),
        (None, Program::Orb) => parse_as(called, called.run(), words),
        (None, Program::Orbctl) => Err(unknown(program, &first)),
    }
}

fn parse_as(called: Called, syntax: &Syntax, words: &[OsString]) -> Outcome<Command> {
    let program = called.program;
    let words = syntax.read(program, words)?;
    if words.has("help") {
        return Ok(Command::Help(syntax.usage(program)));
    }
    let format = || {
        let word = words.text("format");
        Format::named(word.as_deref()).ok_or_else(|| {
            let word = word.clone().unwrap_or_default();
            syntax.refuse(program, &format!("unknown format '{word}'"))
        })
    };
    Ok(match syntax.name() {
        "list" => Command::List(Listing {
            format: format()?,
            quiet: words.has("quiet"),
            running: words.has("running"),
        }),
        "info" => Command::Info {
            machine: words.operand(0),
            format: format()?,
        },
        "status" => Command::Status,
        "version" => Command::Version,
        "ssh" => Command::Ssh,
        "update" => Command::Update {
            check: words.has("check"),
        },
        "default" => Command::Default {
            machine: words.operands().pop(),
        },
        "logs" if words.has("follow") && called.answers.logs_follow == LogsFollow::Unknown => {
            return Err(syntax.refuse(program, "unknown flag: --follow"));
        }
        "logs" => Command::Logs {
            machine: words.operand(0),
            all: words.has("all"),
            follow: words.has("follow"),
        },
        "run" => Command::Run(run::read(words)),
        "push" => Command::Transfer(transfer::read(Direction::Push, words)),
        "pull" => Command::Transfer(transfer::read(Direction::Pull, words)),
        "delete" => Command::Delete {
            machines: words.operands(),
            force: words.has("force"),
        },
        "reset" => Command::Reset {
            sure: words.has("yes"),
        },
        "create" => Command::Change(change::read_create(program, &words)?),
        "rename" => Command::Change(Task::Rename {
            machine: words.operand(0),
            name: words.operand(1),
        }),
        "clone" => Command::Change(Task::Clone {
            source: words.operand(0),
            name: words.operand(1),
        }),
        "export" => Command::Change(Task::Export {
            machine: words.operand(0),
            file: words.operand(1).into(),
        }),
        "import" => Command::Change(Task::Import {
            file: words.operand(0).into(),
            name: words.text("name"),
        }),
        "shutdown" => Command::Change(Task::StopOrbStack),
        power => Command::Change(change::read_power(power, &words)),
    })
}

/// Executes `help`, alone or with the name of a command.
fn help(program: Program, words: &[OsString]) -> Command {
    let name = words.first().map(|word| word.to_string_lossy());
    let syntax = name.and_then(|name| grammar::find(&name));
    Command::Help(syntax.map_or_else(|| HELP.to_owned(), |syntax| syntax.usage(program)))
}

fn unknown(program: Program, name: &str) -> Refusal {
    let program = program.name();
    Refusal::Usage(format!(
        "Error: unknown command \"{name}\" for \"{program}\"\nUsage:\n  {program} [command]\n\n\
         Flags:\n  -h, --help   help for {program}"
    ))
}

impl Command {
    /// Returns the name that scripts, latencies and the ledger use.
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
            Command::Delete { .. } => "delete",
            Command::Reset { .. } => "reset",
            Command::Help(_) => "help",
        }
    }

    /// Returns the machine that the command names, as it is spelled there.
    pub(crate) fn machine(&self) -> Option<String> {
        match self {
            Command::Info { machine, .. } | Command::Logs { machine, .. } => Some(machine.clone()),
            Command::Default { machine } => machine.clone(),
            Command::Config(config) => config.machine(),
            Command::Delete { machines, .. } => machines.first().cloned(),
            Command::Change(task) => task.machine(),
            Command::Run(run) => run.machine.clone(),
            Command::Transfer(transfer) => transfer.machine.clone(),
            _ => None,
        }
    }

    /// Returns whether the real tool starts OrbStack for this command; only `status` is known not to.
    fn wakes_service(&self) -> bool {
        match self {
            Command::Status
            | Command::Version
            | Command::Help(_)
            | Command::Reset { .. }
            | Command::Update { .. }
            | Command::Config(_) => false,
            Command::Change(task) => task.needs_service(),
            _ => true,
        }
    }
}

/// Executes a command.
pub(crate) fn execute(sim: &Sim<'_>, command: Command, troubles: &[Trouble]) -> Reply {
    let answers = sim.settings.answers.everywhere();
    let wakes = command.wakes_service();
    let is_read = matches!(command, Command::List(_) | Command::Info { .. });
    let is_plain = matches!(command, Command::Info { .. } | Command::Run(_));
    let is_change = matches!(command, Command::Change(_) | Command::Delete { .. });
    let name = command.name();
    let ready = match answers.list_stopped {
        ListStopped::Answers if is_read => Ok(()),
        ListStopped::Refuses if is_read => refuse_if_stopped(sim),
        _ => wake(sim, wakes, troubles),
    };
    let result = ready.and_then(|()| match command {
        Command::List(listing) => query::list(sim, &listing, troubles),
        Command::Info { machine, format } => query::info(sim, &machine, format, troubles),
        Command::Status => query::status(sim),
        Command::Version => Ok(query::version(sim)),
        Command::Default { machine } => query::default(sim, machine),
        Command::Logs { machine, all, follow } => query::logs(sim, &machine, all, follow),
        Command::Ssh => Ok(query::ssh(sim)),
        Command::Config(config) => config::execute(sim, &config),
        Command::Delete { machines, force } => delete(sim, machines, force, troubles),
        Command::Reset { sure } => reset(sim, sure, troubles),
        Command::Change(Task::StartOrbStack) if times_out(troubles) => {
            wake(sim, true, troubles).map(|()| Reply::silent())
        }
        Command::Change(task) => service::hand_over(sim, task, troubles),
        Command::Run(run) => run::execute(sim, run, troubles),
        Command::Transfer(transfer) => transfer::execute(sim, &transfer),
        Command::Update { check } => Ok(query::update(check)),
        Command::Help(text) => Ok(Reply::text(text + "\n")),
    });
    let mut reply = Reply::from(if is_plain {
        result
    } else {
        result.map_err(|refusal| refusal.of(name, answers))
    });
    if is_change && reply.exit == 0 {
        let line = format!("{name}: done\n").into_bytes();
        match answers.change_output {
            ChangeOutput::Nothing => {}
            ChangeOutput::Stdout => reply.stdout.extend(line),
            ChangeOutput::Stderr => reply.stderr.extend(line),
        }
    }
    reply
}

/// Refuses a command that would have to start OrbStack. The text is that of any Go program whose service is absent.
fn refuse_if_stopped(sim: &Sim<'_>) -> Outcome<()> {
    if sim.store.read()?.service == ServiceState::Running {
        return Ok(());
    }
    Err(Refusal::Whole(
        "dial unix vmcontrol.sock: connect: no such file or directory".to_owned(),
    ))
}

/// Starts OrbStack if it is stopped, and waits for a start in progress.
fn wake(sim: &Sim<'_>, wanted: bool, troubles: &[Trouble]) -> Outcome<()> {
    if wanted && sim.store.read()?.service != ServiceState::Running {
        service::demand(sim, Task::StartOrbStack)?;
        if times_out(troubles) {
            return Err(Refusal::StartTimedOut);
        }
    }
    Ok(())
}

fn times_out(troubles: &[Trouble]) -> bool {
    troubles.iter().any(|trouble| trouble.kind == Kind::StartTimesOut)
}

/// Executes `delete`. It accepts names only; given an id, version 2.2.3 crashes. It asks unless `force` is set.
fn delete(sim: &Sim<'_>, machines: Vec<String>, force: bool, troubles: &[Trouble]) -> Outcome<Reply> {
    let inventory = sim.store.read()?;
    for name in &machines {
        match inventory.find(name) {
            Some(machine) if machine.name != *name => return Ok(trouble::nil_pointer()),
            None if !catalog::is_builtin(name) => return Err(Refusal::MachineNotFound(name.clone())),
            _ => {}
        }
    }
    let names: String = machines.iter().map(|name| ["  ", name, "\n"].concat()).collect();
    let question = format!(
        "WARNING: This will PERMANENTLY DELETE ALL DATA in the following machines:\n\
         {names}You cannot undo this action.\n\nContinue [y/N]? "
    );
    let without_terminal = sim.settings.answers.everywhere().delete_question;
    let confirmed = force
        || match without_terminal {
            _ if io::stdin().is_terminal() => is_confirmed(&question)?,
            DeleteQuestion::Read => is_confirmed(&question)?,
            DeleteQuestion::Refused => {
                return Err(Refusal::Whole(
                    "delete needs a terminal to ask, or --force".to_owned(),
                ));
            }
            DeleteQuestion::Skipped => true,
        };
    if confirmed {
        service::hand_over(sim, Task::Delete { machines }, troubles)
    } else {
        Ok(Reply::exit(1))
    }
}

/// Executes `reset`. It asks unless `sure` is set. The question is recorded from 2.0.5.
fn reset(sim: &Sim<'_>, sure: bool, troubles: &[Trouble]) -> Outcome<Reply> {
    const QUESTION: &str = "WARNING: This will PERMANENTLY DELETE ALL DOCKER AND LINUX DATA!\n\
        This cannot be undone.\n\nAre you sure you want to continue [y/N]? ";
    if sure || is_confirmed(QUESTION)? {
        service::hand_over(sim, Task::Reset, troubles)
    } else {
        Ok(Reply::exit(1))
    }
}

/// Asks on stderr and reads a line of stdin, terminal or not.
fn is_confirmed(question: &str) -> Outcome<bool> {
    io::stderr().write_all(question.as_bytes())?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Returns the machine for a command in a machine: the named one, else the default one.
fn chosen(inventory: &Inventory, named: Option<&str>) -> Outcome<Machine> {
    let name = match named.or(inventory.default.as_deref()) {
        Some(name) => name.to_owned(),
        None => match inventory.machines.first() {
            Some(machine) => machine.name.clone(),
            None => return Err(Refusal::NoMachines),
        },
    };
    let found = inventory.find(&name).cloned();
    found.ok_or(Refusal::MachineNotFound(name))
}

const HELP: &str = "orbctl-sim stands in for OrbStack's orbctl; docs/orbctl-sim.md is its manual.

machines   list info create start stop restart delete clone rename export import default logs
inside     run push pull ssh
OrbStack   status version start stop restart shutdown reset config update
its own    sim-ledger sim-cleanup";

//! Read-only commands: list, info, status, version, default, logs, ssh.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use crate::Sim;
use crate::answers::{DefaultNone, EmptyList, StatusStarting};
use crate::catalog;
use crate::refusal::{Outcome, Refusal};
use crate::render::{self, Shape};
use crate::reply::Reply;
use crate::script::{Kind, Trouble};
use crate::state::{Machine, MachineState, ServiceState};

/// Output formats.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl Format {
    /// Returns the format with this name.
    pub(crate) fn named(word: Option<&str>) -> Option<Format> {
        match word {
            None | Some("text") => Some(Format::Text),
            Some("json") => Some(Format::Json),
            Some(_) => None,
        }
    }
}

/// Options of `list`.
pub(crate) struct Listing {
    pub(crate) format: Format,
    pub(crate) quiet: bool,
    pub(crate) running: bool,
}

/// Executes `list`.
pub(crate) fn list(sim: &Sim<'_>, listing: &Listing, troubles: &[Trouble]) -> Outcome<Reply> {
    sim.settings.latency.pass_half("list");
    let inventory = sim.store.read()?;
    sim.settings.latency.pass_half("list");
    let wanted = |machine: &&Machine| !listing.running || machine.state == MachineState::Running;
    let machines: Vec<&Machine> = inventory.machines.iter().filter(wanted).collect();
    let answers = sim.settings.answers.everywhere();
    let shape = Shape::new(troubles, answers);
    let empty = troubles.iter().find(|trouble| trouble.kind == Kind::EmptyList);
    if let Some(trouble) = empty.filter(|_| machines.is_empty() && listing.format == Format::Json) {
        return Ok(Reply::text(trouble.text.as_deref().unwrap_or("null\n")));
    }
    if machines.is_empty() && !listing.quiet && listing.format == Format::Json {
        match answers.empty_list {
            EmptyList::Brackets => {}
            EmptyList::Null => return Ok(Reply::text("null\n")),
            EmptyList::Nothing => return Ok(Reply::silent()),
        }
    }
    Ok(Reply::text(match (listing.quiet, listing.format) {
        (true, _) => machines
            .iter()
            .map(|machine| [&machine.name, "\n"].concat())
            .collect(),
        (false, Format::Text) => render::table(&machines, shape),
        (false, Format::Json) => {
            let records = machines.iter().map(|machine| render::record(machine, shape));
            render::json(&records.collect::<Vec<_>>(), answers.json_form)?
        }
    }))
}

/// Executes `info`.
pub(crate) fn info(sim: &Sim<'_>, target: &str, format: Format, troubles: &[Trouble]) -> Outcome<Reply> {
    sim.settings.latency.pass_half("info");
    let inventory = sim.store.read()?;
    sim.settings.latency.pass_half("info");
    let machine = inventory
        .find(target)
        .ok_or_else(|| Refusal::MachineNotFound(target.to_owned()))?;
    let answers = sim.settings.answers.everywhere();
    let shape = Shape::new(troubles, answers);
    Ok(Reply::text(match format {
        Format::Text => render::info_text(machine, shape),
        Format::Json => render::json(&render::info(machine, shape), answers.json_form)?,
    }))
}

/// Executes `status`, which reports whether OrbStack itself runs. This never starts it.
pub(crate) fn status(sim: &Sim<'_>) -> Outcome<Reply> {
    sim.settings.latency.pass_half("status");
    let service = sim.store.read()?.service;
    sim.settings.latency.pass_half("status");
    let (word, exit) = match service {
        ServiceState::Running => ("Running\n", 0),
        ServiceState::Starting => {
            let fails = sim.settings.answers.everywhere().status_starting == StatusStarting::Fails;
            ("Starting\n", u8::from(fails))
        }
        ServiceState::Stopped => ("Stopped\n", 1),
    };
    Ok(Reply {
        exit,
        ..Reply::text(word)
    })
}

/// Returns the two recorded lines; the second one names the stand-in.
pub(crate) fn version(sim: &Sim<'_>) -> Reply {
    sim.settings.latency.pass("version");
    Reply::text(
        "Version: 2.2.3 (2020300)\n\
         Commit: 0000000000000000000000000000000000000000 (orbctl-sim)\n",
    )
}

/// Prints, sets or clears the default machine.
pub(crate) fn default(sim: &Sim<'_>, machine: Option<String>) -> Outcome<Reply> {
    sim.settings.latency.pass("default");
    let Some(machine) = machine else {
        let default = sim.store.read()?.default;
        return Ok(match (default, sim.settings.answers.everywhere().default_none) {
            (Some(name), _) => Reply::text(name + "\n"),
            (None, DefaultNone::Word) => Reply::text("none\n"),
            (None, DefaultNone::Nothing) => Reply::silent(),
        });
    };
    sim.store.change(|inventory| {
        inventory.default = if machine == "none" {
            None
        } else {
            let found = inventory.find(&machine).map(|found| found.name.clone());
            Some(found.ok_or_else(|| Refusal::MachineNotFound(machine.clone()))?)
        };
        Ok(Reply::silent())
    })
}

/// Pause between two reads of a followed log.
const FOLLOW_PAUSE: Duration = Duration::from_millis(20);

/// Prints the console of a machine; with `all` also the service's own log. With `follow` it continues until it is
/// killed.
pub(crate) fn logs(sim: &Sim<'_>, target: &str, all: bool, follow: bool) -> Outcome<Reply> {
    sim.settings.latency.pass("logs");
    let inventory = sim.store.read()?;
    let machine = match inventory.find(target) {
        Some(machine) => machine,
        None if catalog::is_builtin(target) => {
            return Ok(Reply::text(format!("orbctl-sim: {target}: nothing runs here\n")));
        }
        None => return Err(Refusal::MachineNotFound(target.to_owned())),
    };
    let console = sim.store.machine_folder(&machine.id).join("console.log");
    let service = all.then(|| fs::read(sim.store.home().join("service.log")).unwrap_or_default());
    if follow {
        io::stdout().write_all(&service.unwrap_or_default())?;
        return Err(follow_file(&console).into());
    }
    let mut text = fs::read(console).unwrap_or_default();
    text.extend(service.unwrap_or_default());
    Ok(Reply {
        stdout: text,
        ..Reply::default()
    })
}

/// Prints how one would connect over ssh, in our own words. No ssh server runs there.
pub(crate) fn ssh(sim: &Sim<'_>) -> Reply {
    sim.settings.latency.pass("ssh");
    let home = sim.settings.user_home.display();
    Reply::text(format!(
        "From this computer: ssh orb, ssh MACHINE@orb, ssh USER@MACHINE@orb\n\
         \n\
         Elsewhere (orbctl-sim: nothing listens here):\n\
         Host localhost\n  Port 32222\n  User default\n  \
         IdentityFile {home}/.orbstack/ssh/id_ed25519\n",
    ))
}

/// Executes `update`. There is never an update for the stand-in.
pub(crate) fn update(check: bool) -> Reply {
    Reply::text(if check {
        "No update is waiting (orbctl-sim).\n"
    } else {
        "OrbStack updater will open in a new window.\n"
    })
}

/// Prints a file as it grows. Returns only when the reader is gone.
fn follow_file(path: &Path) -> io::Error {
    let mut file = None;
    loop {
        file = file.or_else(|| File::open(path).ok());
        if let Some(file) = &mut file
            && let Err(error) = io::copy(file, &mut io::stdout().lock()).and_then(|_| io::stdout().flush())
        {
            return error;
        }
        std::thread::sleep(FOLLOW_PAUSE);
    }
}

//! Changes: parsed from arguments by the client, executed by the service's worker.
//!
//! A worker locks the machine (see `held`), waits for the latency, does the work and sets the final state. A change
//! that fails leaves no half-made machine (gh#2653).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Sim;
use crate::answers::StopStopped;
use crate::args::{Program, Words};
use crate::catalog;
use crate::commands::held::{Held, vacant};
use crate::grammar::CREATE;
use crate::guest;
use crate::refusal::{Outcome, Refusal};
use crate::reply::Reply;
use crate::state::{MachineConfig, MachineState, ServiceState};

/// A change, as the client passes it to the worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    Create(Creation),
    Start { machines: Vec<String> },
    Stop { machines: Vec<String> },
    Restart { machines: Vec<String> },
    Delete { machines: Vec<String> },
    Rename { machine: String, name: String },
    Clone { source: String, name: String },
    Export { machine: String, file: PathBuf },
    Import { file: PathBuf, name: Option<String> },
    StartAll,
    StopAll,
    RestartAll,
    StartOrbStack,
    StopOrbStack,
    RestartOrbStack,
    Reset,
}

/// What a new machine is made from.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Creation {
    name: String,
    distro: String,
    version: Option<String>,
    arch: String,
    config: MachineConfig,
    user_data: Option<PathBuf>,
}

/// Parses the arguments of `start`, `stop` or `restart`. Without a name these act on OrbStack itself, and so on all
/// machines.
pub(crate) fn read_power(name: &str, words: &Words) -> Task {
    let machines = words.operands();
    match (name, words.has("all"), machines.is_empty()) {
        ("start", true, _) => Task::StartAll,
        ("stop", true, _) => Task::StopAll,
        (_, true, _) => Task::RestartAll,
        ("start", false, true) => Task::StartOrbStack,
        ("stop", false, true) => Task::StopOrbStack,
        (_, false, true) => Task::RestartOrbStack,
        ("start", false, false) => Task::Start { machines },
        ("stop", false, false) => Task::Stop { machines },
        (_, false, false) => Task::Restart { machines },
    }
}

/// Parses the arguments of `create`.
pub(crate) fn read_create(program: Program, words: &Words) -> Outcome<Task> {
    let refuse = |error: String| CREATE.refuse(program, &error);
    let image = words.operand(0);
    let (distro, version) = match image.split_once(':') {
        Some((distro, version)) => (distro.to_owned(), Some(version.to_owned())),
        None => (image, None),
    };
    let name = words.operands().into_iter().nth(1);
    let bytes = |flag| match words.text(flag) {
        None => Ok(0),
        Some(text) => size(&text).ok_or_else(|| refuse(format!("--{flag} takes 512M or 4G, not '{text}'"))),
    };
    let cpus = words
        .text("cpus")
        .map(|text| text.parse().map_err(|_| text))
        .transpose();
    let cpus = cpus.map_err(|text| refuse(format!("--cpus takes a number, not '{text}'")));
    let isolated = words.has("isolated");
    let mounts = words.texts("mount");
    if !mounts.is_empty() && !isolated {
        return Err(refuse("--mount needs --isolated".to_owned()));
    }
    Ok(Task::Create(Creation {
        name: name.unwrap_or_else(|| distro.clone()),
        distro,
        version,
        arch: words
            .text("arch")
            .unwrap_or_else(|| catalog::native_arch().to_owned()),
        config: MachineConfig {
            default_username: words.text("user").unwrap_or_default(),
            isolated,
            isolate_network: words.has("isolate-network"),
            forward_ssh_agent: words.has("forward-ssh-agent"),
            mounts,
            cpus: cpus?.unwrap_or_default(),
            memory_mib: bytes("memory")? >> 20,
            disk_bytes: bytes("disk")?,
            http_port: 0,
            https_port: 0,
        },
        user_data: words.text("user-data").map(PathBuf::from),
    }))
}

/// Parses `4G`, `2048M` or plain bytes, in powers of 1024.
fn size(text: &str) -> Option<u64> {
    let shift = match text.chars().last()? {
        'K' | 'k' => 10,
        'M' | 'm' => 20,
        'G' | 'g' => 30,
        'T' | 't' => 40,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

impl Task {
    /// Returns the name that scripts, latencies and the ledger use.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Task::Create(_) => "create",
            Task::Start { .. } | Task::StartAll => "start",
            Task::Stop { .. } | Task::StopAll => "stop",
            Task::Restart { .. } | Task::RestartAll => "restart",
            Task::Delete { .. } => "delete",
            Task::Rename { .. } => "rename",
            Task::Clone { .. } => "clone",
            Task::Export { .. } => "export",
            Task::Import { .. } => "import",
            Task::StartOrbStack => "start-orbstack",
            Task::StopOrbStack => "stop-orbstack",
            Task::RestartOrbStack => "restart-orbstack",
            Task::Reset => "reset",
        }
    }

    /// Returns the first machine named.
    pub(crate) fn machine(&self) -> Option<String> {
        match self {
            Task::Create(creation) => Some(creation.name.clone()),
            Task::Start { machines }
            | Task::Stop { machines }
            | Task::Restart { machines }
            | Task::Delete { machines } => machines.first().cloned(),
            Task::Rename { machine, .. } | Task::Export { machine, .. } => Some(machine.clone()),
            Task::Clone { source, .. } => Some(source.clone()),
            Task::Import { name, .. } => name.clone(),
            Task::StartAll
            | Task::StopAll
            | Task::RestartAll
            | Task::StartOrbStack
            | Task::StopOrbStack
            | Task::RestartOrbStack
            | Task::Reset => None,
        }
    }

    /// Returns whether OrbStack is started for it.
    pub(crate) fn needs_service(&self) -> bool {
        !matches!(
            self,
            Task::StartOrbStack | Task::StopOrbStack | Task::RestartOrbStack | Task::StopAll | Task::Reset
        )
    }
}

/// Executes a change. This runs in the worker.
pub(crate) fn carry_out(sim: &Sim<'_>, task: &Task) -> Outcome<Reply> {
    match task {
        Task::Create(creation) => create(sim, creation)?,
        Task::Start { machines } => each(sim, "start", machines, start)?,
        Task::Stop { machines } => each(sim, "stop", machines, stop)?,
        Task::Restart { machines } => each(sim, "restart", machines, restart)?,
        Task::Delete { machines } => each(sim, "delete", machines, delete)?,
        Task::Rename { machine, name } => rename(sim, machine, name)?,
        Task::Clone { source, name } => clone(sim, source, name)?,
        Task::Export { machine, file } => export(sim, machine, file)?,
        Task::Import { file, name } => import(sim, file, name.as_deref())?,
        Task::StartAll => each(sim, "start", &ids(sim, &[MachineState::Stopped])?, start)?,
        Task::StopAll => each(sim, "stop", &ids(sim, &[MachineState::Running])?, stop)?,
        Task::RestartAll => {
            let settled = [MachineState::Running, MachineState::Stopped];
            each(sim, "restart", &ids(sim, &settled)?, restart)?;
        }
        Task::StartOrbStack => start_orbstack(sim)?,
        Task::StopOrbStack => stop_orbstack(sim)?,
        Task::RestartOrbStack => {
            stop_orbstack(sim)?;
            start_orbstack(sim)?;
        }
        Task::Reset => reset(sim)?,
    }
    Ok(Reply::silent())
}

/// Runs an operation on each machine and returns the first refusal.
fn each(
    sim: &Sim<'_>,
    operation: &'static str,
    machines: &[String],
    act: impl Fn(&Sim<'_>, &str) -> Outcome<()>,
) -> Outcome<()> {
    let mut first = Ok(());
    for machine in machines {
        let result = if catalog::is_builtin(machine) {
            pretend(sim, operation, machine);
            Ok(())
        } else {
            act(sim, machine)
        };
        first = first.and(result);
    }
    first
}

/// Pretends to change `docker` or `k8s`, which only takes time.
fn pretend(sim: &Sim<'_>, operation: &'static str, name: &str) {
    sim.ledger.work_start(operation, name);
    sim.settings.latency.pass(operation);
    sim.ledger.work_end(operation, name, true);
}

/// Returns the ids of the machines in one of these states.
fn ids(sim: &Sim<'_>, states: &[MachineState]) -> Outcome<Vec<String>> {
    let machines = sim.store.read()?.machines.into_iter();
    let wanted = machines.filter(|machine| states.contains(&machine.state));
    Ok(wanted.map(|machine| machine.id).collect())
}

fn create(sim: &Sim<'_>, creation: &Creation) -> Outcome<()> {
    let name = &creation.name;
    let refuse = |cause: String| Refusal::service("create", name, cause);
    // A taken name is refused first, after 20-50 ms on the real tool, before anything else is checked.
    vacant(&sim.store.read()?, "create", name)?;
    let (distro, version) = catalog::image(&creation.distro, creation.version.as_deref()).map_err(refuse)?;
    if !catalog::is_arch(&creation.arch) {
        return Err(refuse(format!("unknown architecture: '{}'", creation.arch)));
    }
    if let Some(file) = &creation.user_data {
        std::fs::read(file).map_err(|error| refuse(format!("read user data: {error}")))?;
    }
    let isolation =
        guest::settle(sim.settings.isolation).map_err(|cause| refuse(format!("setup: {cause:#}")))?;
    let mut held = Held::make(sim, "create", name, MachineState::Creating, |machine| {
        machine.image.distro = distro;
        machine.image.version = version;
        machine.image.arch.clone_from(&creation.arch);
        if creation.user_data.is_some() {
            "cloud".clone_into(&mut machine.image.variant);
        }
        machine.config = creation.config.clone();
        if machine.config.default_username.is_empty() {
            machine.config.default_username = guest::host_user();
        }
        machine.isolation = isolation;
        machine.disk_size = catalog::first_size(&machine.image.distro, &machine.id);
        Ok(())
    })?;
    let made = guest::prepare(sim, &held.machine).map_err(|error| held.refuse(error));
    // If OrbStack stops now, the machine stays as it is: it can be neither started nor deleted (gh#2013).
    held.pass_time_in_service()?;
    if let Err(refusal) = made.and_then(|()| held.boot()) {
        held.remove()?;
        return Err(refusal);
    }
    held.set_up()?;
    sim.store.change(|inventory| {
        inventory.default.get_or_insert_with(|| name.clone());
        Ok(())
    })?;
    held.done = true;
    Ok(())
}

/// Starts a machine; a running one is left alone. `run` uses this for a stopped machine.
fn start(sim: &Sim<'_>, target: &str) -> Outcome<()> {
    let mut held = Held::take(sim, "start", target, Some(MachineState::Starting))?;
    if held.machine.state == MachineState::Starting {
        held.pass_time();
        held.boot()?;
    }
    held.done = true;
    Ok(())
}

fn stop(sim: &Sim<'_>, target: &str) -> Outcome<()> {
    let mut held = Held::take(sim, "stop", target, Some(MachineState::Stopping))?;
    if held.machine.state == MachineState::Stopping {
        held.pass_time();
        held.halt()?;
    } else if sim.settings.answers.everywhere().stop_stopped == StopStopped::Refused {
        return Err(held.refuse("machine is not running"));
    }
    held.done = true;
    Ok(())
}

fn restart(sim: &Sim<'_>, target: &str) -> Outcome<()> {
    let mut held = Held::take(sim, "restart", target, Some(MachineState::Stopping))?;
    held.halt()?;
    held.show(MachineState::Starting)?;
    held.pass_time();
    held.boot()?;
    held.done = true;
    Ok(())
}

fn delete(sim: &Sim<'_>, target: &str) -> Outcome<()> {
    let mut held = Held::take(sim, "delete", target, Some(MachineState::Deleting))?;
    held.pass_time();
    held.remove()?;
    held.done = true;
    Ok(())
}

fn rename(sim: &Sim<'_>, target: &str, name: &str) -> Outcome<()> {
    let mut held = Held::take(sim, "rename", target, None)?;
    if !catalog::is_machine_name(name) {
        return Err(held.refuse(format!("invalid machine name: '{name}'")));
    }
    held.pass_time();
    let old = held.machine.name.clone();
    sim.store.change(|inventory| {
        vacant(inventory, "rename", name)?;
        if inventory.default.as_deref() == Some(&old) {
            inventory.default = Some(name.to_owned());
        }
        if let Some(machine) = inventory.by_id_mut(&held.machine.id) {
            name.clone_into(&mut machine.name);
        }
        Ok(())
    })?;
    held.done = true;
    Ok(())
}

/// Clones a machine. The copy is stopped and keeps all settings except name, id and address. Clones of one source run
/// one after the other, because each locks the source. A copy that is not finished when OrbStack stops is deleted
/// (gh#1973).
fn clone(sim: &Sim<'_>, source: &str, name: &str) -> Outcome<()> {
    vacant(&sim.store.read()?, "clone", name)?;
    let mut source = Held::take(sim, "clone", source, None)?;
    let origin = source.machine.clone();
    let mut held = Held::make(sim, "clone", name, MachineState::Provisioning, |machine| {
        machine.image = origin.image.clone();
        machine.config = origin.config.clone();
        machine.isolation = origin.isolation;
        machine.disk_size = origin.disk_size;
        Ok(())
    })?;
    let copied = held
        .pass_time_in_service()
        .and_then(|()| guest::copy(sim, &origin, &held.machine).map_err(|error| held.refuse(error)));
    if let Err(refusal) = copied {
        held.remove()?;
        return Err(refusal);
    }
    held.show(MachineState::Stopped)?;
    held.done = true;
    source.done = true;
    Ok(())
}

fn export(sim: &Sim<'_>, target: &str, file: &Path) -> Outcome<()> {
    let mut held = Held::take(sim, "export", target, None)?;
    held.pass_time();
    guest::export(sim, &held.machine, file).map_err(|error| held.refuse(error))?;
    held.done = true;
    Ok(())
}

fn import(sim: &Sim<'_>, file: &Path, name: Option<&str>) -> Outcome<()> {
    let from_file = || {
        file.file_name()
            .and_then(|file| file.to_str())
            .unwrap_or_default()
    };
    let name = name.unwrap_or_else(|| from_file().split('.').next().unwrap_or_default());
    let refuse_import = |error: anyhow::Error| Refusal::service("import", name, error);
    vacant(&sim.store.read()?, "import", name)?;
    let origin = guest::read_export(file).map_err(refuse_import)?;
    let mut held = Held::make(sim, "import", name, MachineState::Provisioning, |machine| {
        machine.image = origin.image;
        machine.config = origin.config;
        machine.isolation = origin.isolation;
        machine.disk_size = origin.disk_size;
        Ok(())
    })?;
    let unpacked = held
        .pass_time_in_service()
        .and_then(|()| guest::import(sim, &held.machine, file).map_err(|error| held.refuse(error)));
    if let Err(refusal) = unpacked {
        held.remove()?;
        return Err(refusal);
    }
    held.show(MachineState::Stopped)?;
    held.done = true;
    Ok(())
}

/// Starts OrbStack and the machines that ran when it was stopped.
fn start_orbstack(sim: &Sim<'_>) -> Outcome<()> {
    let _lock = sim.store.lock("service")?;
    if sim.store.read()?.service == ServiceState::Running {
        return Ok(());
    }
    set_service(sim, ServiceState::Starting)?;
    sim.settings.latency.pass("start-orbstack");
    let inventory = sim.store.read()?;
    for machine in inventory
        .machines
        .iter()
        .filter(|machine| machine.starts_with_service)
    {
        let Some(mut held) = Held::wait(sim, "start", &machine.id)? else {
            continue;
        };
        if held.machine.state == MachineState::Stopped {
            held.boot()?;
        }
        held.done = true;
    }
    set_service(sim, ServiceState::Running)
}

/// Stops OrbStack with all machines. Creates and clones in progress are cut short.
fn stop_orbstack(sim: &Sim<'_>) -> Outcome<()> {
    let _lock = sim.store.lock("service")?;
    if sim.store.read()?.service == ServiceState::Stopped {
        return Ok(());
    }
    sim.store.change(|inventory| {
        inventory.stops += 1;
        Ok(())
    })?;
    sim.settings.latency.pass("stop-orbstack");
    for machine in sim.store.read()?.machines {
        let Some(mut held) = Held::wait(sim, "stop", &machine.id)? else {
            continue;
        };
        match held.machine.state {
            MachineState::Creating | MachineState::Stopped => {}
            MachineState::Provisioning => held.remove()?,
            MachineState::Running => {
                held.machine.starts_with_service = true;
                held.halt()?;
            }
            // Its worker has died.
            MachineState::Starting | MachineState::Stopping | MachineState::Deleting => held.halt()?,
        }
        held.done = true;
    }
    set_service(sim, ServiceState::Stopped)
}

/// Stops OrbStack and removes every machine and every setting.
fn reset(sim: &Sim<'_>) -> Outcome<()> {
    stop_orbstack(sim)?;
    sim.settings.latency.pass("reset");
    for machine in sim.store.read()?.machines {
        if let Some(mut held) = Held::wait(sim, "delete", &machine.id)? {
            held.remove()?;
            held.done = true;
        }
    }
    sim.store.change(|inventory| {
        inventory.config.clear();
        inventory.default = None;
        Ok(())
    })
}

fn set_service(sim: &Sim<'_>, service: ServiceState) -> Outcome<()> {
    sim.store.change(|inventory| {
        inventory.service = service;
        Ok(())
    })
}

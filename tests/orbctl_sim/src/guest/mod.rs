//! Machines from the inside: their files, and how a command enters them.
//!
//! ```text
//! <home>/machines/<id>/        for an isolated machine        for a plain directory
//!     console.log              what `logs` prints             the same
//!     upper/  work/  root/     overlay over the host's /      -
//!     home/                    -                              where commands run, and HOME
//!     bin/sudo                 -                              explains why there is no sudo
//! ```
//!
//! An isolated machine is mounted in a mount namespace of its own, never in the host's: when its last process ends, the
//! kernel removes the mounts, so nothing can be left behind.

mod accounts;
mod directory;
pub(crate) mod exec;
mod files;
mod guard;
#[cfg(target_os = "linux")]
mod namespaces;
#[cfg(not(target_os = "linux"))]
#[path = "namespaces_absent.rs"]
mod namespaces;
mod relay;
mod shells;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::Sim;
use crate::settings::Wanted;
pub(crate) use crate::state::Isolation;
use crate::state::{Machine, Resident};

pub(crate) use files::{copy, export, import, read_export};
pub(crate) use guard::{GUARD_WORD, guard};
pub(crate) use namespaces::{INIT_WORD, init};

/// Decides how a new machine is isolated on this host.
pub(crate) fn settle(wanted: Wanted) -> Result<Isolation> {
    let root = rustix::process::geteuid().is_root();
    match wanted {
        Wanted::Directory => Ok(Isolation::Dir),
        Wanted::Root if !root => bail!("isolated machines need root; ORBCTL_SIM_ISOLATION=root"),
        Wanted::Root => namespaces::check().map(|()| Isolation::Root),
        // In a user namespace, the kernel does not allow an overlay over a root that has anything mounted below it, and
        // could not copy up a file whose owner is not in the namespace.
        Wanted::UserNamespace => bail!(
            "a user namespace cannot lay an overlay over this host's root; \
             use ORBCTL_SIM_ISOLATION=root as root, or dir"
        ),
        Wanted::Auto if cfg!(not(target_os = "linux")) || !root => Ok(Isolation::Dir),
        // A directory does not contain root, so root gets one only on request.
        Wanted::Auto => namespaces::check().map(|()| Isolation::Root).context(
            "root without isolation would work on the host itself; \
             choose ORBCTL_SIM_ISOLATION=dir if that is meant",
        ),
    }
}

/// Returns the name of a machine's default user if none is requested: the caller's own.
pub(crate) fn host_user() -> String {
    let name = std::env::var("USER")
        .or_else(|_| std::env::var("LOGNAME"))
        .unwrap_or_default();
    if name.is_empty() || name == "root" {
        "dev".to_owned()
    } else {
        name
    }
}

/// Makes the files of a new machine.
pub(crate) fn prepare(sim: &Sim<'_>, machine: &Machine) -> Result<()> {
    let folder = sim.store.machine_folder(&machine.id);
    files::make_folder(&folder, machine.isolation)?;
    match machine.isolation {
        Isolation::Dir => directory::prepare(&folder),
        Isolation::Root => namespaces::prepare(&folder, machine),
    }
}

/// Boots a machine. Only an isolated one has a resident process.
pub(crate) fn boot(sim: &Sim<'_>, machine: &Machine) -> Result<Option<Resident>> {
    let folder = sim.store.machine_folder(&machine.id);
    let resident = match machine.isolation {
        Isolation::Dir => None,
        Isolation::Root => Some(namespaces::boot(&folder, sim.store.home(), machine)?),
    };
    note(&folder, &format!("{}: booted", machine.name));
    Ok(resident)
}

/// Ends every process of an isolated machine, and the commands that run in a directory machine.
pub(crate) fn halt(sim: &Sim<'_>, machine: &Machine) -> Result<()> {
    let folder = sim.store.machine_folder(&machine.id);
    match (machine.isolation, machine.resident) {
        (Isolation::Dir, _) => directory::halt(&folder)?,
        (Isolation::Root, None) => {}
        (Isolation::Root, Some(resident)) => {
            namespaces::halt(resident)?;
            note(&folder, &format!("{}: halted", machine.name));
        }
    }
    Ok(())
}

/// Returns whether a machine in the state `running` can be entered.
pub(crate) fn is_alive(machine: &Machine) -> bool {
    match machine.isolation {
        Isolation::Dir => true,
        Isolation::Root => machine.resident.is_some_and(namespaces::is_alive),
    }
}

/// Removes a machine's files.
pub(crate) fn remove(sim: &Sim<'_>, machine: &Machine) -> Result<()> {
    files::remove_folder(&sim.store.machine_folder(&machine.id))
}

/// Adds a line to a machine's console.
fn note(folder: &Path, line: &str) {
    let console = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("console.log"));
    if let Ok(mut console) = console {
        let _ = writeln!(console, "orbctl-sim: {line}");
    }
}

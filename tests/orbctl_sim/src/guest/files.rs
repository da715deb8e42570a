//! A machine's folder as a whole: made, copied, packed, unpacked, removed.
//!
//! `cp` and `tar` do the copying and packing: they handle holes, links, devices (overlay whiteouts) and extended
//! attributes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::Sim;
use crate::guest::{Isolation, namespaces};
use crate::state::{Image, Machine, MachineConfig};

/// What an export has about its machine in addition to the files.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Exported {
    pub(crate) name: String,
    pub(crate) image: Image,
    pub(crate) config: MachineConfig,
    pub(crate) isolation: Isolation,
    pub(crate) disk_size: u64,
}

/// The file with that data in the archive.
const MANIFEST: &str = "orbctl-sim.json";

/// Makes the folder of a machine. An overlay's upper layer cannot be on another overlay; if the state directory is on
/// one (in a container, mostly), the folder is a link to tmpfs.
pub(crate) fn make_folder(folder: &Path, isolation: Isolation) -> Result<()> {
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    let elsewhere = match isolation {
        Isolation::Dir => None,
        Isolation::Root => namespaces::other_place(folder)?,
    };
    match elsewhere {
        None => fs::create_dir(folder)?,
        Some(place) => {
            fs::create_dir_all(&place)?;
            std::os::unix::fs::symlink(&place, folder)?;
        }
    }
    Ok(())
}

/// Removes the folder of a machine, wherever it is.
pub(crate) fn remove_folder(folder: &Path) -> Result<()> {
    let Ok(real) = fs::canonicalize(folder) else {
        return Ok(());
    };
    fs::remove_dir_all(&real).with_context(|| format!("remove {}", real.display()))?;
    if fs::symlink_metadata(folder).is_ok_and(|metadata| metadata.is_symlink()) {
        fs::remove_file(folder)?;
        // The last machine also removes the folder on tmpfs.
        if let Some(place) = real.parent() {
            let _ = fs::remove_dir(place);
        }
    }
    Ok(())
}

/// Fills the folder of a clone. Its hostname is the new name; its machine-id is still that of the source, as on the
/// real tool.
pub(crate) fn copy(sim: &Sim<'_>, source: &Machine, target: &Machine) -> Result<()> {
    let from = sim.store.machine_folder(&source.id);
    let to = sim.store.machine_folder(&target.id);
    make_folder(&to, target.isolation)?;
    for part in parts(target.isolation) {
        let mut cp = Command::new("cp");
        cp.arg("-a");
        if cfg!(target_os = "linux") {
            cp.arg("--reflink=auto");
        }
        finish(cp.arg(from.join(part)).arg(to.join(part)))?;
    }
    Ok(())
}

/// Packs a machine into `file`: a zstd tar if `zstd` is installed, else a plain one.
pub(crate) fn export(sim: &Sim<'_>, machine: &Machine, file: &Path) -> Result<()> {
    let folder = sim.store.machine_folder(&machine.id);
    let manifest = Exported {
        name: machine.name.clone(),
        image: machine.image.clone(),
        config: machine.config.clone(),
        isolation: machine.isolation,
        disk_size: machine.disk_size,
    };
    fs::write(folder.join(MANIFEST), serde_json::to_vec_pretty(&manifest)?)?;
    let mut tar = Command::new("tar");
    if has_program("zstd") {
        tar.arg("--zstd");
    }
    tar.args(attributes()).arg("-cf").arg(std::path::absolute(file)?);
    finish(
        tar.arg("-C")
            .arg(folder)
            .arg(MANIFEST)
            .args(parts(machine.isolation)),
    )
}

/// Reads what an export has about its machine.
pub(crate) fn read_export(file: &Path) -> Result<Exported> {
    if !file.is_file() {
        bail!("open {}: no such file or directory", file.display());
    }
    let mut tar = Command::new("tar");
    tar.arg("-xOf")
        .arg(file)
        .arg(MANIFEST)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let output = tar.output().context("run tar")?;
    serde_json::from_slice(&output.stdout).context("not an export of a machine")
}

/// Unpacks an export into the folder of a new machine.
pub(crate) fn import(sim: &Sim<'_>, machine: &Machine, file: &Path) -> Result<()> {
    let folder = sim.store.machine_folder(&machine.id);
    make_folder(&folder, machine.isolation)?;
    let mut tar = Command::new("tar");
    tar.args(attributes()).arg("-xpf").arg(std::path::absolute(file)?);
    finish(tar.arg("-C").arg(folder))
}

/// Returns the folders that make up a machine's disk.
fn parts(isolation: Isolation) -> &'static [&'static str] {
    match isolation {
        Isolation::Dir => &["home", "bin"],
        Isolation::Root => &["upper"],
    }
}

/// Returns the flags of `tar` that keep the overlay's extended attributes.
fn attributes() -> &'static [&'static str] {
    if cfg!(target_os = "linux") {
        &["--xattrs", "--xattrs-include=*", "--numeric-owner"]
    } else {
        &[]
    }
}

fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder: PathBuf| folder.join(name))
        .any(|file| file.is_file())
}

/// Runs a program that should print nothing; what it prints becomes the error.
fn finish(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

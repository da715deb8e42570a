//! Machines that are plain directories: for hosts without namespaces, and for fast tests.
//!
//! There is no isolation. Commands run on the host as the caller, so running as another user is refused, above all as
//! root.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::guest::namespaces;
use crate::state::Resident;

/// Script for `sudo`, `su` and `doas`, first on PATH in a directory machine.
const SUDO: &str = "#!/bin/sh
echo \"sudo: orbctl-sim: this machine is a plain directory without isolation; running as root is refused\" >&2
exit 1
";

/// Makes the files of a directory machine.
pub(crate) fn prepare(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder.join("home"))?;
    fs::create_dir_all(folder.join("bin"))?;
    for name in ["sudo", "su", "doas"] {
        let path = folder.join("bin").join(name);
        fs::write(&path, SUDO.replace("sudo:", &format!("{name}:")))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Folder with one note for each command that runs in the machine.
const COMMANDS: &str = "commands";

/// A note of a running command, by which a stop of the machine finds it. It stays if the client is killed.
pub(super) struct Note(PathBuf);

impl Note {
    /// Returns `None` if the system cannot tell a process from a later one with the same number.
    pub(super) fn write(folder: &Path, pid: i32) -> Option<Note> {
        let process = namespaces::resident(pid)?;
        let commands = folder.join(COMMANDS);
        fs::create_dir_all(&commands).ok()?;
        let path = commands.join(pid.to_string());
        fs::write(&path, serde_json::to_vec(&process).ok()?).ok()?;
        Some(Note(path))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Ends the commands that run in the machine, each with its process group.
pub(super) fn halt(folder: &Path) -> Result<()> {
    let Ok(notes) = fs::read_dir(folder.join(COMMANDS)) else {
        return Ok(());
    };
    for note in notes {
        let path = note?.path();
        let process = fs::read(&path).ok();
        let process = process.and_then(|bytes| serde_json::from_slice::<Resident>(&bytes).ok());
        if let Some(process) = process.filter(|process| namespaces::is_alive(*process))
            && let Some(pid) = Pid::from_raw(process.pid)
        {
            // On a terminal the command has no process group of its own.
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = fs::remove_file(path);
    }
    Ok(())
}

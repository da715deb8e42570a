//! Isolated machines on Linux: an overlay over the host's root, in namespaces of its own.
//!
//! ```text
//! worker ─▶ unshare(1) ─▶ orbctl-sim sim-init     pid 1 of the machine
//!                           mounts the overlay, /proc, /dev, /run, /tmp; makes them its root;
//!                           prints "ready" and its pid on the host; then reaps zombies
//! run    ─▶ setns(pidfd)                          now sees the machine's files and processes
//! stop   ─▶ SIGKILL to pid 1                      the kernel ends all others, then the mounts
//! ```
//!
//! The network is the host's: packages must be installable, and a stand-in routes nothing.

mod first_process;
mod upper;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Gid, Pid, PidfdFlags, Signal, Uid, pidfd_open, pidfd_send_signal};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::guest::accounts::Account;
use crate::state::{Machine, Resident};
use first_process::Boot;

pub(crate) use first_process::init;
pub(crate) use upper::{other_place, prepare};

/// Hidden command that starts the first process of a machine.
pub(crate) const INIT_WORD: &str = "sim-init";

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--uts",
        "--ipc",
        "--pid",
        "--fork",
        "--propagation",
        "private",
    ]);
    command
}

/// Checks whether this host allows namespaces.
pub(crate) fn check() -> Result<()> {
    let output = unshare().arg("true").stdin(Stdio::null()).output();
    let output = output.context("run unshare (of util-linux)")?;
    if !output.status.success() {
        bail!("unshare: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Starts the first process of a machine and waits until the machine can be entered.
pub(crate) fn boot(folder: &Path, home: &Path, machine: &Machine) -> Result<Resident> {
    let folder = fs::canonicalize(folder)?;
    upper::write_names(&folder.join("upper"), &machine.name)?;
    // The work folder of an earlier overlay is of no use to the next one.
    let work = folder.join("work");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir(&work)?;
    fs::create_dir_all(folder.join("root"))?;
    let console = File::options()
        .create(true)
        .append(true)
        .open(folder.join("console.log"))?;
    let boot = Boot {
        folder,
        home: fs::canonicalize(home)?,
        hostname: machine.name.clone(),
    };
    let mut child = unshare()
        .arg(std::env::current_exe()?)
        .arg(INIT_WORD)
        .env_clear()
        .env("HOME", "/")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(console)
        .spawn()
        .context("run unshare")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&serde_json::to_vec(&boot)?)?;
    }
    let stdout = child.stdout.take().context("the first process has no voice")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let Some(("ready", pid)) = line.trim().split_once(' ') else {
        let _ = child.wait();
        let said = line.trim();
        bail!(
            "{}",
            if said.is_empty() {
                "the first process died; see logs"
            } else {
                said
            }
        );
    };
    let pid = pid.parse()?;
    resident(pid).context("the first process is gone")
}

/// Ends the first process, and with it every other process of the machine.
pub(crate) fn halt(resident: Resident) -> Result<()> {
    let Some(pidfd) = handle(resident) else {
        return Ok(());
    };
    // The waiting `unshare` is in the mount namespace as well: only once it has ended, too, are the mounts removed and
    // the overlay's layers free for the next boot or for removal.
    let parent = parent_in_namespace(resident.pid);
    pidfd_send_signal(&pidfd, Signal::KILL)?;
    wait_end(&pidfd)?;
    parent.map_or(Ok(()), |parent| wait_end(&parent))
}

/// Waits until a process has ended, which makes its pidfd readable. The first process of a namespace ends after all the
/// others.
fn wait_end(pidfd: &OwnedFd) -> Result<()> {
    let mut ended = [PollFd::new(pidfd, PollFlags::IN)];
    while let Err(error) = poll(&mut ended, None) {
        if error != rustix::io::Errno::INTR {
            return Err(error.into());
        }
    }
    Ok(())
}

/// Returns the parent of a first process, unless another reaper has adopted that process.
fn parent_in_namespace(pid: i32) -> Option<OwnedFd> {
    let parent = stat_fields(pid)?.get(1)?.parse().ok()?;
    let pidfd = pidfd_open(Pid::from_raw(parent)?, PidfdFlags::empty()).ok()?;
    let mounts = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    (mounts(parent)? == mounts(pid)?).then_some(pidfd)
}

/// Returns a living process with its start time, by which it is recognised later.
pub(crate) fn resident(pid: i32) -> Option<Resident> {
    let started = started(pid)?;
    Some(Resident { pid, started })
}

/// Returns whether the number still belongs to the same process.
pub(crate) fn is_alive(resident: Resident) -> bool {
    started(resident.pid) == Some(resident.started)
}

/// Moves this process into a machine. Its own pid does not change; its children are the machine's.
pub(crate) fn enter(resident: Resident) -> Result<()> {
    let pidfd = handle(resident).context("the machine is not running")?;
    let spaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
    move_into_thread_name_spaces(rustix::fd::AsFd::as_fd(&pidfd), spaces).context("enter the machine")
}

/// Another user, until dropped. Only this thread changes, not those that carry streams; the saved ids stay root's, so
/// that it can change back.
pub(crate) struct Identity;

impl Identity {
    /// Becomes that user.
    pub(crate) fn take(account: &Account, groups: &[u32]) -> Result<Identity> {
        let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
        set_thread_groups(&groups).context("set groups")?;
        set_thread_res_gid(gid, gid, Gid::ROOT).context("set gid")?;
        set_thread_res_uid(uid, uid, Uid::ROOT).context("set uid")?;
        Ok(Identity)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let _ = set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT);
        let _ = set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT);
    }
}

/// Returns a handle on the first process that can never refer to another process.
fn handle(resident: Resident) -> Option<OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(resident.pid)?, PidfdFlags::empty()).ok()?;
    // Checked after the handle was opened: if it is the right process now, it stays the right one.
    is_alive(resident).then_some(pidfd)
}

/// Returns when a living process was started, in clock ticks since the boot.
fn started(pid: i32) -> Option<u64> {
    let fields = stat_fields(pid)?;
    let dead = matches!(fields.first()?.as_str(), "Z" | "X");
    if dead { None } else { fields.get(19)?.parse().ok() }
}

/// Returns the fields of `/proc/<pid>/stat` from the state on. The one before is the program's name, which may contain
/// blanks and brackets.
fn stat_fields(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(
        stat.rsplit_once(')')?
            .1
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
    )
}

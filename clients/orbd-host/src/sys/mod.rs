//! Kernel interfaces that the standard library does not offer: identity, liveness and exit of any process, identity of a file,
//! process groups, resource limits.
//!
//! A pid alone does not identify a process for long, because pids are reused. A pid together with its start time identifies one
//! process permanently. Linux provides both through `/proc` and a pidfd, macOS through `proc_pidinfo`, a kqueue and `sysctl`.
//! `unsafe` is allowed only in the macOS file and in the small files about the account, descriptors, hang-ups, memory, stopping
//! and forking. The macOS file is type-checked on Linux and has not yet run on a Mac.
//!
//! This module does not depend on `orbctl` and starts no programs.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

mod account;
mod file_id;
mod fork;
#[cfg(target_os = "linux")]
mod linux;
mod stop;
#[cfg(target_os = "linux")]
use linux as platform;

#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as platform;

pub use account::{Account, account};
pub use file_id::FileId;
pub use fork::{Forked, fork};
pub use stop::stop_by;

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!("orbd runs on macOS, and on Linux for development");

/// The environment variable by which a later instance of the daemon recognises the children of an earlier one.
pub const MARKER: &str = "ORBD_JOB";

/// Start time of a process as the kernel reports it. Meaningful only for comparing for equality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StartTime {
    /// Linux: clock ticks since boot. macOS: microseconds since 1970.
    pub at: u64,
    /// Linux: the boot id. macOS: zero, its start times being wall-clock times.
    pub boot: u128,
}

/// Identifies one process, even after its pid is reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChildIdentity {
    /// Process id; for a child of orbd also the id of its process group.
    pub pid: u32,
    /// Start time, which distinguishes it from an earlier process with the same pid.
    pub started: StartTime,
}

/// Returns the start time of a process; `None` if there is no process with this pid that may be inspected.
///
/// On Linux a zombie still has a start time; on macOS it has none.
pub fn process_identity(pid: u32) -> Option<StartTime> {
    platform::process_info(pid).map(|info| info.started)
}

/// Returns the effective user of a process; `None` if there is no process with this pid that may be inspected.
pub fn process_owner(pid: u32) -> Option<u32> {
    platform::owner(pid)
}

/// Returns the process that listens at the other end of a connected Unix socket; `None` if the system does not report it, or if the
/// process is outside of our namespace of process ids.
pub fn listener_of(socket: impl AsFd) -> Option<u32> {
    platform::listener_of(socket.as_fd()).filter(|pid| *pid > 0)
}

/// Returns whether exactly this process still runs. A zombie does not count as running.
pub fn is_alive(identity: &ChildIdentity) -> bool {
    platform::process_info(identity.pid)
        .is_some_and(|info| info.started == identity.started && !info.is_zombie)
}

/// Returns the user's own folder for temporary files; `None` on systems without per-user folders.
pub fn temporary_folder() -> Option<OsString> {
    platform::temporary_folder()
}

/// Increases the capacity of a pipe if the system supports and permits it; otherwise does nothing.
pub fn widen_pipe(pipe: impl AsFd, bytes: usize) {
    platform::widen_pipe(pipe.as_fd(), bytes);
}

/// Returns a descriptor that becomes readable when a process exits. The process need not be a child, and its exit status is left to its
/// parent.
///
/// The descriptor belongs to the process that has the pid at this moment: check [`is_alive`] afterwards. Fails if there is no such process,
/// or if the kernel refuses to watch it (descriptors exhausted, a kernel before 5.3).
pub fn exit_descriptor(pid: u32) -> io::Result<OwnedFd> {
    platform::exit_descriptor(pid)
}

/// Sends SIGTERM to a process that need not be a child. Between the check of its identity and the signal only a few microseconds
/// pass, in which its pid could be reused.
pub fn terminate(identity: ChildIdentity) {
    send(identity, rustix::process::Signal::TERM);
}

/// Sends SIGKILL to a process that need not be a child.
pub fn kill(identity: ChildIdentity) {
    send(identity, rustix::process::Signal::KILL);
}

/// Sends SIGTERM to a process that need not be a child, and to its group if the process leads it. If it does not, only the
/// process is signalled, because its group belongs to another process.
pub fn terminate_group(identity: ChildIdentity) {
    send_to_group(identity, rustix::process::Signal::TERM);
}

/// Sends SIGKILL as [`terminate_group`] sends SIGTERM.
pub fn kill_group(identity: ChildIdentity) {
    send_to_group(identity, rustix::process::Signal::KILL);
}

/// Sends SIGKILL to the process group of a child that was started as its leader and has not been waited for, so that no other
/// group can have its id.
pub fn kill_process_group(leader: u32) {
    if let Some(pid) = i32::try_from(leader)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        // Fails if the group is already empty, which is the goal.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

fn send(identity: ChildIdentity, signal: rustix::process::Signal) {
    if let Some(pid) = alive_pid(&identity) {
        // Fails if the process has exited meanwhile, which is the goal.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn send_to_group(identity: ChildIdentity, signal: rustix::process::Signal) {
    let Some(pid) = alive_pid(&identity) else { return };
    // The group's id is not reused while its leader runs.
    let _ = if platform::leads_group(identity.pid) {
        rustix::process::kill_process_group(pid, signal)
    } else {
        rustix::process::kill_process(pid, signal)
    };
}

fn alive_pid(identity: &ChildIdentity) -> Option<rustix::process::Pid> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(identity.pid).ok()?)?;
    is_alive(identity).then_some(pid)
}

/// Returns whether this process is in the foreground process group of its terminal, which receives the terminal's signals.
pub fn is_in_foreground() -> bool {
    let Ok(terminal) = std::fs::File::open("/dev/tty") else {
        return false;
    };
    rustix::termios::tcgetpgrp(&terminal)
        .is_ok_and(|group| group.as_raw_nonzero().get().unsigned_abs() == platform::own_group())
}

/// A process with [`MARKER`] in its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedProcess {
    /// Identity of the process.
    pub identity: ChildIdentity,
    /// Value of [`MARKER`].
    pub marker: OsString,
    /// Arguments, beginning with the program's name.
    pub args: Vec<OsString>,
}

/// Returns the user's processes, except this one, that carry a marker: children of orbd and their descendants. Scans the process
/// table once.
///
/// A process is left out if it has moved to a session that another marked process created, because it has detached itself.
///
/// On macOS the kernel hides the environment of programs that system integrity protection covers; such processes are not found.
pub fn marked_processes() -> Vec<MarkedProcess> {
    let own = std::process::id();
    let marked: Vec<_> = platform::marked_processes()
        .into_iter()
        .filter(|process| process.identity.pid != own)
        .collect();
    let pids: std::collections::HashSet<u32> = marked.iter().map(|process| process.identity.pid).collect();
    marked
        .into_iter()
        .filter(|process| {
            !platform::session_of(process.identity.pid).is_some_and(|leader| pids.contains(&leader))
        })
        .collect()
}

/// What the platform reports about one process.
#[derive(Debug, Clone, Copy)]
struct ProcessInfo {
    started: StartTime,
    is_zombie: bool,
}

/// Finds the marker in an environment in the kernel's format: `NAME=value` entries, each terminated by NUL.
fn marker_of(environment: &[u8]) -> Option<OsString> {
    use std::os::unix::ffi::OsStringExt;
    environment.split(|byte| *byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(MARKER.as_bytes())?.strip_prefix(b"=")?;
        Some(OsString::from_vec(value.to_vec()))
    })
}

/// Splits arguments in the kernel's format, each terminated by NUL.
fn args_of(bytes: &[u8]) -> Vec<OsString> {
    use std::os::unix::ffi::OsStringExt;
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let args = bytes.split(|byte| *byte == 0);
    args.map(|arg| OsString::from_vec(arg.to_vec())).collect()
}

/// Splits the result of `KERN_PROCARGS2` on macOS into arguments and environment. Layout: an argument count, the program's path,
/// padding, the arguments, the environment. Defined here rather than in the macOS file so that tests on Linux cover it.
#[cfg(any(target_os = "macos", test))]
fn split_procargs(procargs: &[u8]) -> Option<(&[u8], &[u8])> {
    let (count, rest) = procargs.split_first_chunk::<4>()?;
    let count = usize::try_from(i32::from_ne_bytes(*count)).ok()?;
    let path_end = rest.iter().position(|byte| *byte == 0)?;
    let padded = rest.get(path_end..)?;
    let first = padded.iter().position(|byte| *byte != 0)?;
    let args = padded.get(first..)?;
    let mut end = 0;
    for _ in 0..count {
        end += args.get(end..)?.iter().position(|byte| *byte == 0)? + 1;
    }
    Some(args.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_another_start_time_is_not() {
        let pid = std::process::id();
        let started = process_identity(pid).expect("we run");
        assert!(is_alive(&ChildIdentity { pid, started }));
        let other = StartTime {
            at: started.at + 1,
            ..started
        };
        assert!(!is_alive(&ChildIdentity { pid, started: other }));
    }

    #[test]
    fn process_owner_is_the_effective_user() {
        let ours = rustix::process::geteuid().as_raw();
        assert_eq!(process_owner(std::process::id()), Some(ours));
        // Greater than any pid on Linux and macOS.
        assert_eq!(process_owner(0x7fff_fff0), None);
    }

    #[test]
    fn procargs_are_split_into_arguments_and_environment() {
        let mut procargs = 2_i32.to_ne_bytes().to_vec();
        procargs.extend_from_slice(b"/bin/orbctl\0\0\0\0orbctl\0list\0HOME=/x\0ORBD_JOB=life-7\0\0");
        let (args, environment) = split_procargs(&procargs).expect("well formed");
        assert_eq!(args_of(args), ["orbctl", "list"]);
        assert_eq!(marker_of(environment).expect("marked"), "life-7");
        for end in 0..procargs.len() {
            split_procargs(&procargs[..end]);
        }
        assert_eq!(marker_of(b"XORBD_JOB=a\0ORBD_JOBS=b\0"), None);
    }
}

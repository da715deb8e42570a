//! Questions to the kernel that the standard library does not answer: who is this process, does it still live, when is it gone; and
//! one that it answers in pieces: is this file still the one that it was.
//!
//! A process id alone names nobody for long, because ids are used again; an id with its start time names one process for ever.
//! Linux answers from `/proc` and with a pidfd, macOS with `proc_pidinfo`, a kqueue and `sysctl`. The macOS file and five small ones
//! about the user, descriptors, memory, stopping and forking are the only places with `unsafe`; the first is type-checked on Linux and has not run on a Mac yet.
//!
//! Nothing here knows `orbctl`, and nothing here starts a program.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

mod account;
mod descriptors;
mod file_id;
mod fork;
mod hang_up;
#[cfg(target_os = "linux")]
mod linux;
mod memory;
mod stop;
#[cfg(target_os = "linux")]
use linux as platform;

#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as platform;

pub use account::{Account, account};
pub use descriptors::{
    inherited, raise_descriptor_limit, reserve, restore_limits, seal_inherited_descriptors, take_variable,
};
pub use file_id::FileId;
pub use fork::{Forked, fork};
pub use hang_up::HangUp;
pub use memory::give_memory_back;
pub use stop::stop_by;

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!("orbd runs on macOS, and on Linux for development");

/// The environment variable by which a later life of the daemon knows the children of an earlier one.
pub const MARKER: &str = "ORBD_JOB";

/// When a process started, as the kernel tells it: comparable for equality only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StartTime {
    /// Linux: clock ticks since boot. macOS: microseconds since 1970.
    pub at: u64,
    /// Linux: the boot id. macOS: zero, its start times being wall-clock times.
    pub boot: u128,
}

/// One process, never to be confused with a later one of the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChildIdentity {
    /// Its process id; of a child of ours also the id of its process group.
    pub pid: u32,
    /// When it started.
    pub started: StartTime,
}

/// The other end of a local socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user when it connected.
    pub uid: u32,
    /// Its process, where the kernel tells.
    pub pid: Option<u32>,
}

/// Returns when a process started; `None` when there is none of this id that we may look at.
///
/// On Linux a zombie still has a start time; on macOS it has none.
pub fn process_identity(pid: u32) -> Option<StartTime> {
    platform::process_info(pid).map(|info| info.started)
}

/// Returns the effective user of a process; `None` when there is none of this id that we may look at.
pub fn process_owner(pid: u32) -> Option<u32> {
    platform::owner(pid)
}

/// Says whether this very process still runs. A zombie does not.
pub fn is_alive(identity: &ChildIdentity) -> bool {
    platform::process_info(identity.pid)
        .is_some_and(|info| info.started == identity.started && !info.is_zombie)
}

/// Returns this user's own folder for temporary files, where the system gives each user one.
pub fn temporary_folder() -> Option<OsString> {
    platform::temporary_folder()
}

/// Makes a pipe hold more where the system can and lets us; else it stays as it is.
pub fn widen_pipe(pipe: impl AsFd, bytes: usize) {
    platform::widen_pipe(pipe.as_fd(), bytes);
}

/// Waits until a process is gone, whoever its parent is. Its exit status stays its parent's.
///
/// Costs nothing while it waits, except where the kernel refuses to watch (descriptors used up, a kernel before 5.3): then it
/// looks again with pauses growing to a second, because to say "gone" of a process that lives would free its lane.
pub async fn gone(identity: ChildIdentity) {
    if platform::watch_exit(&identity).await.is_ok() && !is_alive(&identity) {
        return;
    }
    let mut pause = Duration::from_millis(20);
    while is_alive(&identity) {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Asks a process that is not our child to end. Between the look and the signal it could only be replaced by one of the same id
/// within microseconds.
pub fn terminate(identity: ChildIdentity) {
    send(identity, rustix::process::Signal::TERM);
}

/// Ends a process that is not our child.
pub fn kill(identity: ChildIdentity) {
    send(identity, rustix::process::Signal::KILL);
}

/// Asks a process that is not our child, and what it leads, to end. One that leads no group is asked alone: its group is somebody
/// else's.
pub fn terminate_group(identity: ChildIdentity) {
    send_to_group(identity, rustix::process::Signal::TERM);
}

/// Ends a process that is not our child, and what it leads.
pub fn kill_group(identity: ChildIdentity) {
    send_to_group(identity, rustix::process::Signal::KILL);
}

/// Ends the process group of a child of ours that was started as its leader and was not waited for, so that no other group has its number.
pub fn kill_process_group(leader: u32) {
    if let Some(pid) = i32::try_from(leader)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        // It fails if no process is left in the group, which is what is wanted.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

fn send(identity: ChildIdentity, signal: rustix::process::Signal) {
    if let Some(pid) = alive_pid(&identity) {
        // It may be gone by now, which is what is wanted.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn send_to_group(identity: ChildIdentity, signal: rustix::process::Signal) {
    let Some(pid) = alive_pid(&identity) else { return };
    // While its leader lives, the group's id is nobody else's.
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

/// Says whether our process group is the one that our terminal's keys send signals to.
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
    /// Which process.
    pub identity: ChildIdentity,
    /// The value of the variable.
    pub marker: OsString,
    /// Its arguments, the program's name first.
    pub args: Vec<OsString>,
}

/// Returns the processes of this user, other than this one, that carry a marker: the children of orbd, and what they started. One pass
/// over the process table.
///
/// A process that has moved to a session created by another marked process is left out, because it has detached itself.
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

/// Returns the processes that carry exactly this marker.
#[cfg(test)]
pub(crate) fn children_with_marker(marker: &str) -> Vec<ChildIdentity> {
    marked_processes()
        .into_iter()
        .filter(|process| process.marker.as_os_str() == std::ffi::OsStr::new(marker))
        .map(|process| process.identity)
        .collect()
}

/// Returns who is at the other end of a local socket, as the kernel noted it when they connected: `SO_PEERCRED` of `unix(7)` on Linux,
/// `getpeereid(3)` and `LOCAL_PEERPID` of `unix(4)` on macOS.
pub fn peer_cred(stream: &UnixStream) -> io::Result<Peer> {
    let cred = stream.peer_cred()?;
    Ok(Peer {
        uid: cred.uid(),
        pid: cred.pid().and_then(|pid| u32::try_from(pid).ok()),
    })
}

/// Waits until a descriptor of ours is readable.
async fn readable(descriptor: OwnedFd) -> io::Result<()> {
    #[expect(
        deprecated,
        reason = "unsound for types that may close their descriptor early; an OwnedFd cannot, and the new way is unsafe"
    )]
    let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE)?;
    descriptor.readable().await?.retain_ready();
    Ok(())
}

/// What a look at one process shows.
#[derive(Debug, Clone, Copy)]
struct ProcessInfo {
    started: StartTime,
    is_zombie: bool,
}

/// Finds the marker in an environment as the kernel returns it: `NAME=value`, each ended by NUL.
fn marker_of(environment: &[u8]) -> Option<OsString> {
    use std::os::unix::ffi::OsStringExt;
    environment.split(|byte| *byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(MARKER.as_bytes())?.strip_prefix(b"=")?;
        Some(OsString::from_vec(value.to_vec()))
    })
}

/// Splits arguments as the kernel returns them, each ended by NUL.
fn args_of(bytes: &[u8]) -> Vec<OsString> {
    use std::os::unix::ffi::OsStringExt;
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let args = bytes.split(|byte| *byte == 0);
    args.map(|arg| OsString::from_vec(arg.to_vec())).collect()
}

/// Splits what macOS returns for `KERN_PROCARGS2` into arguments and environment. Its layout: an argument count, the program's path,
/// padding, the arguments, the environment. Here rather than in the macOS file so that it is tested where the tests run.
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
    use std::process::Stdio;

    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "a stranger for the tests, not an orbctl"
    )]
    fn stranger(marker: &str) -> tokio::process::Child {
        tokio::process::Command::new("/bin/sh")
            .args(["-c", "read line"])
            .env(MARKER, marker)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("a shell")
    }

    fn identity_of(child: &tokio::process::Child) -> ChildIdentity {
        let pid = child.id().expect("not waited for");
        ChildIdentity {
            pid,
            started: process_identity(pid).expect("it runs"),
        }
    }

    #[test]
    fn we_are_alive_and_another_start_time_is_not_us() {
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
    fn a_process_has_an_owner() {
        let ours = rustix::process::geteuid().as_raw();
        assert_eq!(process_owner(std::process::id()), Some(ours));
        // Above what Linux gives out, and macOS too.
        assert_eq!(process_owner(0x7fff_fff0), None);
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_when_it_comes() {
        let mut child = stranger("gone");
        let identity = identity_of(&child);
        let mut waiting = tokio::spawn(gone(identity));
        assert!(
            tokio::time::timeout(Duration::from_millis(50), &mut waiting)
                .await
                .is_err()
        );
        drop(child.stdin.take());
        waiting.await.expect("no panic");
        // It is still a zombie here, and a zombie does not run.
        assert!(!is_alive(&identity));
        child.wait().await.expect("reaped");
        gone(identity).await;
    }

    #[tokio::test]
    async fn a_process_that_reuses_a_pid_is_never_signalled() {
        let mut child = stranger("reused");
        let real = identity_of(&child);
        let earlier = ChildIdentity {
            started: StartTime {
                at: real.started.at - 1,
                ..real.started
            },
            ..real
        };
        // The process that had the id before is gone, whatever has it now.
        gone(earlier).await;
        for signal in [terminate, kill, terminate_group, kill_group] {
            signal(earlier);
        }
        drop(child.stdin.take());
        let status = child.wait().await.expect("ours");
        assert_eq!(
            status.code(),
            Some(1),
            "a signal came before the end of its input"
        );
    }

    #[tokio::test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a stranger for the tests, not an orbctl"
    )]
    async fn what_leads_a_group_is_ended_with_it_and_what_does_not_alone() {
        use tokio::io::{AsyncBufReadExt, BufReader};
        for leads in [true, false] {
            let mut command = tokio::process::Command::new("/bin/sh");
            command
                .args(["-c", "sleep 600 & echo $!; wait"])
                .stdout(Stdio::piped());
            if leads {
                command.process_group(0);
            }
            let mut parent = command.kill_on_drop(true).spawn().expect("a shell");
            let mut line = String::new();
            let stdout = parent.stdout.take().expect("piped");
            BufReader::new(stdout).read_line(&mut line).await.expect("a pid");
            let pid = line.trim().parse().expect("a pid");
            let started = process_identity(pid).expect("it runs");
            let grandchild = ChildIdentity { pid, started };
            terminate_group(identity_of(&parent));
            parent.wait().await.expect("ours");
            if leads {
                gone(grandchild).await;
            } else {
                assert!(is_alive(&grandchild));
                kill(grandchild);
            }
        }
    }

    #[tokio::test]
    async fn a_marked_child_is_found_by_its_marker() {
        let marker = format!("sys-test-{}", std::process::id());
        let child = stranger(&marker);
        assert_eq!(children_with_marker(&marker), [identity_of(&child)]);
        assert_eq!(children_with_marker(&marker[1..]), []);
    }

    #[tokio::test]
    async fn a_peer_is_known() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        let peer = peer_cred(&one).expect("credentials");
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.pid, Some(std::process::id()));
    }

    #[test]
    fn arguments_and_environment_of_procargs_are_split() {
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

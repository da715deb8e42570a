//! Linux implementation with `/proc` and pidfds.

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags};

use super::{ChildIdentity, MarkedProcess, ProcessInfo, StartTime, args_of, marker_of};

pub(super) fn widen_pipe(pipe: BorrowedFd<'_>, bytes: usize) {
    // The total size of a user's pipes is limited as well; beyond that the call fails and the pipe keeps its size.
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, bytes);
}

/// The fields used from `/proc/PID/stat`.
struct Stat {
    state: char,
    /// Zero if the group's leader is outside the current pid namespace.
    group: u32,
    /// `None` if the session's leader is outside the current pid namespace, as in a container entered from the host. The kernel
    /// reports 0 then, on which rustix's `getsid` and `getpgid` panic.
    session: Option<u32>,
    started: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    use std::io::Read;
    // One read: the kernel generates the line for each read. It has at most 52 numbers and a name of 64 bytes.
    let mut line = [0; 2048];
    let mut file = std::fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let length = file.read(&mut line).ok()?;
    parse_stat(line.get(..length)?)
}

fn parse_stat(stat: &[u8]) -> Option<Stat> {
    // The second field is the program's name in parentheses and may itself contain blanks and parentheses.
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    // Field numbers as in proc_pid_stat(5), counted from 1.
    let mut fields = (3..).zip(
        std::str::from_utf8(stat.get(after_name..)?)
            .ok()?
            .split_ascii_whitespace(),
    );
    let mut field = |wanted: u32| fields.find_map(|(number, field)| (number == wanted).then_some(field));
    Some(Stat {
        state: field(3)?.chars().next()?,
        group: field(5)?.parse().ok()?,
        session: Some(field(6)?.parse().ok()?).filter(|leader| *leader != 0),
        started: field(22)?.parse().ok()?,
    })
}

/// Linux has no per-user temporary folder.
pub(super) fn temporary_folder() -> Option<OsString> {
    None
}

pub(super) fn process_info(pid: u32) -> Option<ProcessInfo> {
    let stat = stat(pid)?;
    Some(ProcessInfo {
        started: StartTime {
            at: stat.started,
            boot: boot_id(),
        },
        is_zombie: matches!(stat.state, 'Z' | 'X'),
    })
}

/// Returns a process's effective user; root for a process that may not be inspected.
pub(super) fn owner(pid: u32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    Some(std::fs::metadata(format!("/proc/{pid}")).ok()?.uid())
}

/// Returns the process that called `listen` (`SO_PEERCRED` in unix(7)).
pub(super) fn listener_of(socket: BorrowedFd<'_>) -> Option<u32> {
    let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
    u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
}

/// Returns whether a process leads its group.
pub(super) fn leads_group(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.group == pid)
}

/// Returns this process's group; zero if the group's leader is outside the current pid namespace.
pub(super) fn own_group() -> u32 {
    stat(std::process::id()).map_or(0, |stat| stat.group)
}

/// Returns the pid of the leader of a process's session.
pub(super) fn session_of(pid: u32) -> Option<u32> {
    stat(pid)?.session
}

/// Returns the boot id; zero if the kernel does not report it, which is also constant for the whole boot.
fn boot_id() -> u128 {
    static BOOT_ID: OnceLock<u128> = OnceLock::new();
    *BOOT_ID.get_or_init(|| {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()
            .and_then(|text| u128::from_str_radix(&text.trim().replace('-', ""), 16).ok())
            .unwrap_or_default()
    })
}

/// Opens a pidfd, which becomes readable when the process exits. Fails with `ESRCH` if there is no such process.
pub(super) fn exit_descriptor(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

pub(super) fn marked_processes() -> Vec<MarkedProcess> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            // Unreadable for other users, empty for zombies.
            let marker = marker_of(&std::fs::read(format!("/proc/{pid}/environ")).ok()?)?;
            let info = process_info(pid)?;
            let args = args_of(&std::fs::read(format!("/proc/{pid}/cmdline")).ok()?);
            let identity = ChildIdentity {
                pid,
                started: info.started,
            };
            (!info.is_zombie).then_some(MarkedProcess {
                identity,
                marker,
                args,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_led_from_outside_the_pid_namespace_is_none() {
        let line = |session: &str| {
            format!("42 (a) b (c) S 1 {session} {session} 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 99887 1 2")
        };
        let inside = parse_stat(line("7").as_bytes()).expect("well formed");
        assert_eq!(
            (inside.state, inside.session, inside.started),
            ('S', Some(7), 99_887)
        );
        let outside = parse_stat(line("0").as_bytes()).expect("well formed");
        assert_eq!((outside.group, outside.session), (0, None));
    }

    #[test]
    fn listener_of_a_socket_is_the_process_that_bound_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        let stream = std::os::unix::net::UnixStream::connect(&path).expect("connected");
        assert_eq!(crate::sys::listener_of(&stream), Some(std::process::id()));
    }
}

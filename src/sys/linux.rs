//! Linux: `/proc` and pidfds.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags};

use super::{ChildIdentity, MarkedProcess, ProcessInfo, StartTime, args_of, marker_of};

pub(super) fn widen_pipe(pipe: BorrowedFd<'_>, bytes: usize) {
    // A user's pipes together are bounded too, and beyond that it is refused.
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, bytes);
}

/// What we want of `/proc/PID/stat`.
struct Stat {
    state: char,
    /// Zero where its leader is outside of our namespace of process ids.
    group: u32,
    /// Absent where the leader is outside of our namespace of process ids, as in a container that was entered from without: the
    /// kernel says 0, which rustix's `getsid` and `getpgid` take for impossible.
    session: Option<u32>,
    started: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    use std::io::Read;
    // One read: the kernel makes the line anew for each. It has 52 numbers and a name of 64 bytes at most.
    let mut line = [0; 2048];
    let mut file = std::fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let length = file.read(&mut line).ok()?;
    parse_stat(line.get(..length)?)
}

fn parse_stat(stat: &[u8]) -> Option<Stat> {
    // The second field is the program's name in brackets and may itself hold blanks and brackets.
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    // The numbers are those of proc_pid_stat(5), which counts from 1.
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

/// There is no such folder: all users share one.
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

/// Returns a process's effective user; of one that may not be looked into, root.
pub(super) fn owner(pid: u32) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    Some(std::fs::metadata(format!("/proc/{pid}")).ok()?.uid())
}

/// Says whether a process leads its group.
pub(super) fn leads_group(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.group == pid)
}

/// Returns our own process group; zero where its leader is outside of our namespace of process ids.
pub(super) fn own_group() -> u32 {
    stat(std::process::id()).map_or(0, |stat| stat.group)
}

/// Returns the leader of a process's session.
pub(super) fn session_of(pid: u32) -> Option<u32> {
    stat(pid)?.session
}

/// Returns this boot's id; zero where the kernel does not tell, which is still the same for the whole boot.
fn boot_id() -> u128 {
    static BOOT_ID: OnceLock<u128> = OnceLock::new();
    *BOOT_ID.get_or_init(|| {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()
            .and_then(|text| u128::from_str_radix(&text.trim().replace('-', ""), 16).ok())
            .unwrap_or_default()
    })
}

/// Returns when the process is gone; an error says that it cannot be watched or was not there to begin with.
pub(super) async fn watch_exit(identity: &ChildIdentity) -> io::Result<()> {
    let pid = i32::try_from(identity.pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    // Looked at after it was opened: the descriptor is that of whoever had the id at that moment.
    if !super::is_alive(identity) {
        return Ok(());
    }
    super::readable(pidfd).await
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
    fn a_process_whose_session_began_outside_of_the_container_has_none() {
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
}

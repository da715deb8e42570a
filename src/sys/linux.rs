//! Linux: `/proc` and pidfds.

use std::ffi::OsString;
use std::io;
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags};

use super::{ChildIdentity, Seen, StartTime, marker_of};

pub(super) fn look(pid: u32) -> Option<Seen> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets and may itself hold blanks and brackets.
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = std::str::from_utf8(stat.get(after_name..)?).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    // Field 22 of the whole line; the state was field 3.
    let at = fields.nth(18)?.parse().ok()?;
    Some(Seen {
        started: StartTime { at, boot: boot_id() },
        is_zombie: matches!(state, "Z" | "X"),
    })
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

pub(super) fn marked_processes() -> Vec<(ChildIdentity, OsString)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            // Unreadable for other users, empty for zombies.
            let marker = marker_of(&std::fs::read(format!("/proc/{pid}/environ")).ok()?)?;
            let seen = look(pid)?;
            let identity = ChildIdentity {
                pid,
                started: seen.started,
            };
            (!seen.is_zombie).then_some((identity, marker))
        })
        .collect()
}

//! macOS: `proc_pidinfo`, a kqueue and `sysctl`.
#![expect(
    unsafe_code,
    reason = "no safe wrapper of these calls exists; this is the one file that may"
)]

use std::ffi::OsString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use super::{ChildIdentity, Seen, StartTime, environment_of_procargs, marker_of};

/// macOS widens a pipe by itself, as far as it goes.
pub(super) fn widen_pipe(_pipe: BorrowedFd<'_>, _bytes: usize) {}

pub(super) fn look(pid: u32) -> Option<Seen> {
    let info = info(pid)?;
    Some(Seen {
        started: StartTime {
            at: info
                .pbi_start_tvsec
                .saturating_mul(1_000_000)
                .saturating_add(info.pbi_start_tvusec),
            boot: 0,
        },
        is_zombie: info.pbi_status == libc::SZOMB,
    })
}

/// Returns a process's effective user.
pub(super) fn owner(pid: u32) -> Option<u32> {
    Some(info(pid)?.pbi_uid)
}

fn info(pid: u32) -> Option<libc::proc_bsdinfo> {
    let pid = libc::c_int::try_from(pid).ok()?;
    let size = libc::c_int::try_from(size_of::<libc::proc_bsdinfo>()).ok()?;
    // SAFETY: `proc_bsdinfo` is plain numbers and arrays of numbers, for which zeroes are valid.
    let mut info: libc::proc_bsdinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the buffer is ours, writable and of the size that is passed.
    let filled = unsafe { libc::proc_pidinfo(pid, libc::PROC_PIDTBSDINFO, 0, (&raw mut info).cast(), size) };
    (filled == size).then_some(info)
}

/// Returns our own process group.
pub(super) fn own_group() -> u32 {
    rustix::process::getpgrp().as_raw_nonzero().get().unsigned_abs()
}

/// Says whether a process leads its group.
#[expect(
    clippy::disallowed_methods,
    reason = "there are no namespaces of process ids here, so the group is always one"
)]
pub(super) fn leads_group(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::getpgid(Some(pid)) == Ok(pid))
}

/// Returns the leader of a process's session.
#[expect(
    clippy::disallowed_methods,
    reason = "there are no namespaces of process ids here, so the session is always one"
)]
pub(super) fn session_of(pid: u32) -> Option<u32> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
    let session = rustix::process::getsid(Some(pid)).ok()?;
    u32::try_from(session.as_raw_nonzero().get()).ok()
}

/// Returns when the process is gone; an error says that it cannot be watched or was not there to begin with.
pub(super) async fn watch_exit(identity: &ChildIdentity) -> io::Result<()> {
    let queue = exit_queue(identity.pid)?;
    // Looked at after the queue was armed: an end before that is seen here, one after it wakes the queue.
    if !super::is_alive(identity) {
        return Ok(());
    }
    super::readable(queue).await
}

/// Makes a kqueue that becomes readable when the process exits. `ESRCH` says that there is none.
fn exit_queue(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes nothing, returns a new descriptor or -1.
    let raw = unsafe { libc::kqueue() };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's. A kqueue is not inherited by children.
    let queue = unsafe { OwnedFd::from_raw_fd(raw) };
    let change = libc::kevent {
        ident: libc::uintptr_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: libc::EVFILT_PROC,
        flags: libc::EV_ADD | libc::EV_ONESHOT,
        fflags: libc::NOTE_EXIT,
        data: 0,
        udata: ptr::null_mut(),
    };
    // SAFETY: one change is passed by a valid pointer, no events are asked for.
    let result = unsafe {
        libc::kevent(
            queue.as_raw_fd(),
            &raw const change,
            1,
            ptr::null_mut(),
            0,
            ptr::null(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(queue)
}

pub(super) fn marked_processes() -> Vec<(ChildIdentity, OsString)> {
    pids()
        .into_iter()
        .filter_map(|pid| {
            let marker = marker_of(environment_of_procargs(&procargs(pid)?)?)?;
            let pid = u32::try_from(pid).ok()?;
            let seen = look(pid)?;
            let identity = ChildIdentity {
                pid,
                started: seen.started,
            };
            (!seen.is_zombie).then_some((identity, marker))
        })
        .collect()
}

/// Returns the ids of all processes; those of other users fail at the next question.
fn pids() -> Vec<libc::pid_t> {
    // SAFETY: a null buffer asks for the number of processes.
    let count = unsafe { libc::proc_listallpids(ptr::null_mut(), 0) };
    // Some more, for those that start between the two calls.
    let mut pids: Vec<libc::pid_t> = vec![0; usize::try_from(count).unwrap_or(0) + 64];
    let Ok(size) = libc::c_int::try_from(pids.len() * size_of::<libc::pid_t>()) else {
        return Vec::new();
    };
    // SAFETY: the buffer is ours, writable and of the size that is passed.
    let filled = unsafe { libc::proc_listallpids(pids.as_mut_ptr().cast(), size) };
    pids.truncate(usize::try_from(filled).unwrap_or(0));
    pids
}

/// Returns a process's arguments and environment in the kernel's own form.
fn procargs(pid: libc::pid_t) -> Option<Vec<u8>> {
    let mut name = [libc::CTL_KERN, libc::KERN_PROCARGS2, pid];
    let names = libc::c_uint::try_from(name.len()).ok()?;
    let mut size: libc::size_t = 0;
    // SAFETY: the name is ours; a null buffer asks for the size.
    let asked = unsafe {
        libc::sysctl(
            name.as_mut_ptr(),
            names,
            ptr::null_mut(),
            &raw mut size,
            ptr::null_mut(),
            0,
        )
    };
    if asked != 0 {
        return None;
    }
    let mut buffer = vec![0_u8; size];
    // SAFETY: the buffer is ours, writable and of the size that is passed.
    let got = unsafe {
        libc::sysctl(
            name.as_mut_ptr(),
            names,
            buffer.as_mut_ptr().cast(),
            &raw mut size,
            ptr::null_mut(),
            0,
        )
    };
    if got != 0 {
        return None;
    }
    buffer.truncate(size);
    Some(buffer)
}

//! macOS: `proc_pidinfo`, a kqueue and `sysctl`.
//!
//! What each call promises is in Apple's manual pages and headers, named beside it. `libproc` has no manual page: its contract is the
//! comments of `libproc.h` and `sys/proc_info.h`. Where neither says something, it is said here that it is assumed, and
//! `docs/macos-checklist.md` has a step that looks.
#![expect(
    unsafe_code,
    reason = "no safe wrapper of these calls exists; this is the one file that may"
)]

use std::ffi::OsString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::ptr;

use super::{ChildIdentity, MarkedProcess, ProcessInfo, StartTime, args_of, marker_of, split_procargs};

/// macOS widens a pipe by itself, as far as it goes; `fcntl(2)` has no word for it.
pub(super) fn widen_pipe(_pipe: BorrowedFd<'_>, _bytes: usize) {}

/// Asks for `DARWIN_USER_TEMP_DIR`, to which launchd sets `TMPDIR` in every session.
pub(super) fn temporary_folder() -> Option<OsString> {
    let mut room = vec![0_u8; 1024];
    // SAFETY: it writes at most the length of `room`, with a NUL at the end.
    let length = unsafe {
        libc::confstr(
            libc::_CS_DARWIN_USER_TEMP_DIR,
            room.as_mut_ptr().cast(),
            room.len(),
        )
    };
    room.truncate(length.checked_sub(1).filter(|length| *length < 1024)?);
    Some(OsString::from_vec(room))
}

/// Looks at one process. Without a wish for zombies (the call's argument is 0) one that has ended and was not waited for is none, as
/// is one of another user.
pub(super) fn process_info(pid: u32) -> Option<ProcessInfo> {
    let info = info(pid)?;
    Some(ProcessInfo {
        started: StartTime {
            at: info
                .pbi_start_tvsec
                .saturating_mul(1_000_000)
                .saturating_add(info.pbi_start_tvusec),
            boot: 0,
        },
        // Assumed never to be seen; if it is, such a process does not run.
        is_zombie: info.pbi_status == libc::SZOMB,
    })
}

/// Returns a process's effective user; `pbi_ruid` would be the real one (`sys/proc_info.h`).
pub(super) fn owner(pid: u32) -> Option<u32> {
    Some(info(pid)?.pbi_uid)
}

/// Asks `proc_pidinfo` for `PROC_PIDTBSDINFO` (`libproc.h`): it returns how many bytes it has filled, which is all of them or none.
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
///
/// `kqueue(2)`: `EVFILT_PROC` watches any process that the caller may see, not only its children; `NOTE_EXIT` is its end. A kqueue is itself
/// a descriptor that can be waited for. The event is never fetched, so the queue stays readable for good.
fn exit_queue(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes nothing, returns a new descriptor or -1.
    let raw = unsafe { libc::kqueue() };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let queue = unsafe { OwnedFd::from_raw_fd(raw) };
    // `kqueue(2)`: a child made by fork does not inherit it. What we become when we execute another program would.
    rustix::io::fcntl_setfd(&queue, rustix::io::FdFlags::CLOEXEC)?;
    let change = libc::kevent {
        ident: libc::uintptr_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: libc::EVFILT_PROC,
        flags: libc::EV_ADD | libc::EV_ONESHOT,
        fflags: libc::NOTE_EXIT,
        data: 0,
        udata: ptr::null_mut(),
    };
    // `kevent(2)`: with no room for events it returns at once, and what is wrong with the change is its own error.
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

pub(super) fn marked_processes() -> Vec<MarkedProcess> {
    let mut room = vec![0_u8; arguments_max()];
    pids()
        .into_iter()
        .filter_map(|pid| {
            let (args, environment) = split_procargs(procargs(pid, &mut room)?)?;
            let marker = marker_of(environment)?;
            let args = args_of(args);
            let pid = u32::try_from(pid).ok()?;
            let info = process_info(pid)?;
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

/// Returns the ids of all processes; those of other users fail at the next question.
///
/// `proc_listallpids` (`libproc.h`) returns how many ids it has filled in, and with no buffer how many there are, about. Who is left out
/// is a child that nobody waits for, so a full buffer is asked for again, larger.
fn pids() -> Vec<libc::pid_t> {
    const TRIES: usize = 8;
    // SAFETY: a null buffer asks for the number of processes.
    let count = unsafe { libc::proc_listallpids(ptr::null_mut(), 0) };
    // Some more, for those that start between the calls.
    let mut pids: Vec<libc::pid_t> = vec![0; usize::try_from(count).unwrap_or(0) + 64];
    for _ in 0..TRIES {
        let Ok(size) = libc::c_int::try_from(pids.len() * size_of::<libc::pid_t>()) else {
            return Vec::new();
        };
        // SAFETY: the buffer is ours, writable and of the size that is passed.
        let filled = unsafe { libc::proc_listallpids(pids.as_mut_ptr().cast(), size) };
        let filled = usize::try_from(filled).unwrap_or(0);
        if filled < pids.len() {
            pids.truncate(filled);
            break;
        }
        pids.resize(pids.len() * 2, 0);
    }
    // Zero, where there is one, is the kernel.
    pids.retain(|pid| *pid > 0);
    pids
}

/// Returns how long arguments and environment of a process can be: `KERN_ARGMAX` of `sysctl(3)`.
fn arguments_max() -> usize {
    /// What it has been for many years.
    const USUAL: usize = 1 << 20;
    let mut name = [libc::CTL_KERN, libc::KERN_ARGMAX];
    let mut longest: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>();
    // SAFETY: name and result are ours, and their sizes are passed.
    let asked = unsafe {
        libc::sysctl(
            name.as_mut_ptr(),
            2,
            (&raw mut longest).cast(),
            &raw mut size,
            ptr::null_mut(),
            0,
        )
    };
    match usize::try_from(longest) {
        Ok(longest) if asked == 0 && longest > 0 => longest,
        _ => USUAL,
    }
}

/// Returns a process's arguments and environment in the kernel's own form: `KERN_PROCARGS2` of `sysctl(3)`, whose layout
/// `sys/sysctl.h` leaves to whoever knows it, `ps(1)` above all. Into a buffer that is long enough for any process: in one that is too short
/// the beginning would be missing.
fn procargs(pid: libc::pid_t, room: &mut [u8]) -> Option<&[u8]> {
    let mut name = [libc::CTL_KERN, libc::KERN_PROCARGS2, pid];
    let names = libc::c_uint::try_from(name.len()).ok()?;
    let mut size: libc::size_t = room.len();
    // SAFETY: the buffer is ours, writable and of the size that is passed.
    let got = unsafe {
        libc::sysctl(
            name.as_mut_ptr(),
            names,
            room.as_mut_ptr().cast(),
            &raw mut size,
            ptr::null_mut(),
            0,
        )
    };
    if got != 0 {
        return None;
    }
    room.get(..size)
}

//! macOS implementation with `proc_pidinfo`, a kqueue and `sysctl`.
//!
//! The guarantees of each call come from Apple's manual pages and headers, which are named at the call. `libproc` has no manual
//! page: its contract is the comments in `libproc.h` and `sys/proc_info.h`. Assumptions that neither documents are marked as
//! assumed here, and `docs/macos-checklist.md` has a step that checks them.
#![expect(
    unsafe_code,
    reason = "these calls have no safe wrapper; only this file uses them"
)]

use std::ffi::OsString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::ptr;

use super::{ChildIdentity, MarkedProcess, ProcessInfo, StartTime, args_of, marker_of, split_procargs};

/// Does nothing: macOS enlarges pipes automatically, and `fcntl(2)` has no command for it.
pub(super) fn widen_pipe(_pipe: BorrowedFd<'_>, _bytes: usize) {}

/// Returns `DARWIN_USER_TEMP_DIR`, the value of `TMPDIR` that launchd sets in every session.
pub(super) fn temporary_folder() -> Option<OsString> {
    let mut room = vec![0_u8; 1024];
    // SAFETY: `confstr` writes at most `room.len()` bytes, including the terminating NUL.
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

/// Returns information about one process. With argument 0 the call does not report zombies: a process that has exited and was not
/// waited for yields `None`, as does one of another user.
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
        // Assumed never to occur. Such a process would not be running.
        is_zombie: info.pbi_status == libc::SZOMB,
    })
}

/// Returns a process's effective user; `pbi_ruid` is the real one (`sys/proc_info.h`).
pub(super) fn owner(pid: u32) -> Option<u32> {
    Some(info(pid)?.pbi_uid)
}

/// Returns the process at the other end of a socket (`LOCAL_PEERPID` in `sys/un.h`). That it is the one that listens, also if it has not
/// accepted the connection yet, is assumed.
pub(super) fn listener_of(socket: BorrowedFd<'_>) -> Option<u32> {
    let mut pid: libc::pid_t = 0;
    let mut length = libc::socklen_t::try_from(size_of::<libc::pid_t>()).ok()?;
    // SAFETY: `getsockopt` writes at most `length` bytes to `pid`, which has that size.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_LOCAL,
            libc::LOCAL_PEERPID,
            ptr::from_mut(&mut pid).cast(),
            &raw mut length,
        )
    };
    if status == 0 {
        u32::try_from(pid).ok()
    } else {
        None
    }
}

/// Calls `proc_pidinfo` with `PROC_PIDTBSDINFO` (`libproc.h`): it returns the number of bytes filled in, which is all or none.
fn info(pid: u32) -> Option<libc::proc_bsdinfo> {
    let pid = libc::c_int::try_from(pid).ok()?;
    let size = libc::c_int::try_from(size_of::<libc::proc_bsdinfo>()).ok()?;
    // SAFETY: `proc_bsdinfo` consists of numbers and arrays of numbers, for which zeroes are valid.
    let mut info: libc::proc_bsdinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the buffer is owned, writable and of the size that is passed.
    let filled = unsafe { libc::proc_pidinfo(pid, libc::PROC_PIDTBSDINFO, 0, (&raw mut info).cast(), size) };
    (filled == size).then_some(info)
}

/// Returns this process's group.
pub(super) fn own_group() -> u32 {
    rustix::process::getpgrp().as_raw_nonzero().get().unsigned_abs()
}

/// Returns whether a process leads its group.
#[expect(
    clippy::disallowed_methods,
    reason = "macOS has no PID namespaces, so a process always has a visible group"
)]
pub(super) fn leads_group(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::getpgid(Some(pid)) == Ok(pid))
}

/// Returns the pid of the leader of a process's session.
#[expect(
    clippy::disallowed_methods,
    reason = "macOS has no PID namespaces, so a process always has a visible session"
)]
pub(super) fn session_of(pid: u32) -> Option<u32> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
    let session = rustix::process::getsid(Some(pid)).ok()?;
    u32::try_from(session.as_raw_nonzero().get()).ok()
}

/// Creates a kqueue that becomes readable when the process exits. Fails with `ESRCH` if there is no such process.
///
/// `kqueue(2)`: `EVFILT_PROC` watches any process that the caller may see, not only its children; `NOTE_EXIT` is its exit. A
/// kqueue is itself a descriptor that can be waited for. The event is never fetched, so the queue stays readable.
pub(super) fn exit_descriptor(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes no arguments, returns a new descriptor or -1.
    let raw = unsafe { libc::kqueue() };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    let queue = unsafe { OwnedFd::from_raw_fd(raw) };
    // `kqueue(2)`: a child created by fork does not inherit the queue. A program that replaces this
    // process by `exec` would.
    rustix::io::fcntl_setfd(&queue, rustix::io::FdFlags::CLOEXEC)?;
    let change = libc::kevent {
        ident: libc::uintptr_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: libc::EVFILT_PROC,
        flags: libc::EV_ADD | libc::EV_ONESHOT,
        fflags: libc::NOTE_EXIT,
        data: 0,
        udata: ptr::null_mut(),
    };
    // `kevent(2)`: if the event list is empty, the call returns immediately, and it fails if the change is invalid.
    // SAFETY: one change is passed by a valid pointer, and no events are requested.
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

/// Returns the pids of all processes, including those of other users, which the caller cannot inspect.
///
/// `proc_listallpids` (`libproc.h`) returns the number of pids filled in and, without a buffer, the approximate number of
/// processes. A pid that is missed is a child that orbd does not wait for, so a full buffer is enlarged and the call repeated.
fn pids() -> Vec<libc::pid_t> {
    const TRIES: usize = 8;
    // SAFETY: a null buffer requests the number of processes.
    let count = unsafe { libc::proc_listallpids(ptr::null_mut(), 0) };
    // With spare room for processes that start between the calls.
    let mut pids: Vec<libc::pid_t> = vec![0; usize::try_from(count).unwrap_or(0) + 64];
    for _ in 0..TRIES {
        let Ok(size) = libc::c_int::try_from(pids.len() * size_of::<libc::pid_t>()) else {
            return Vec::new();
        };
        // SAFETY: the buffer is owned, writable and of the size that is passed.
        let filled = unsafe { libc::proc_listallpids(pids.as_mut_ptr().cast(), size) };
        let filled = usize::try_from(filled).unwrap_or(0);
        if filled < pids.len() {
            pids.truncate(filled);
            break;
        }
        pids.resize(pids.len() * 2, 0);
    }
    // Pid 0, if listed, is the kernel.
    pids.retain(|pid| *pid > 0);
    pids
}

/// Returns the maximum total length of a process's arguments and environment: `KERN_ARGMAX` of `sysctl(3)`.
fn arguments_max() -> usize {
    /// The value on all macOS versions of the last years, used if the call fails.
    const USUAL: usize = 1 << 20;
    let mut name = [libc::CTL_KERN, libc::KERN_ARGMAX];
    let mut longest: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>();
    // SAFETY: name and result are owned, and their sizes are passed.
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

/// Returns a process's arguments and environment in the kernel's format: `KERN_PROCARGS2` of `sysctl(3)`. `sys/sysctl.h` does not
/// document the layout; `ps(1)` is the reference. `room` must be long enough for any process: in a shorter buffer the beginning
/// would be missing.
fn procargs(pid: libc::pid_t, room: &mut [u8]) -> Option<&[u8]> {
    let mut name = [libc::CTL_KERN, libc::KERN_PROCARGS2, pid];
    let names = libc::c_uint::try_from(name.len()).ok()?;
    let mut size: libc::size_t = room.len();
    // SAFETY: the buffer is owned, writable and of the size that is passed.
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

//! Process state inherited from the parent: file descriptors, resource limits and environment variables. Inherited descriptors
//! are marked close-on-exec, or taken over from an earlier instance; the descriptor limit is raised.
#![expect(
    unsafe_code,
    reason = "a descriptor known only by its number cannot be owned safely, and the environment cannot be changed safely"
)]

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use rustix::process::{Resource, getrlimit, setrlimit};

/// More than orbd ever needs. macOS rejects larger values whatever limit it reports: `OPEN_MAX`, see `setrlimit(2)`.
const DESCRIPTORS_MAX: u64 = 10_240;

/// Raises the limit on open descriptors as far as the system allows. launchd starts agents with 256, which a hundred commands
/// with their pipes exhaust.
pub fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit
        .maximum
        .map_or(DESCRIPTORS_MAX, |most| most.min(DESCRIPTORS_MAX));
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        // On failure the old limit stays; a child that cannot be started then reports why.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Restores resource limits that the parent process lowered, as far as the system allows. Children inherit them.
///
/// The stack is raised only to the usual size, because Linux uses a different memory layout without a stack limit. Core dumps are
/// disabled: a core dump of a command's process would write its environment to disk.
pub fn restore_limits() {
    const STACK: u64 = 8 << 20;
    let raise = |resource, wanted: Option<u64>| {
        let mut limit = getrlimit(resource);
        let most = [limit.maximum, wanted].into_iter().flatten().min();
        if limit
            .current
            .is_some_and(|current| most.is_none_or(|most| current < most))
        {
            limit.current = most;
            // If a limit cannot be raised, keep it. A child that exceeds it reports the error.
            let _ = setrlimit(resource, limit);
        }
    };
    for resource in [
        Resource::Cpu,
        Resource::Fsize,
        Resource::Data,
        Resource::As,
        Resource::Nproc,
    ] {
        raise(resource, None);
    }
    raise(Resource::Stack, Some(STACK));
    let mut core = getrlimit(Resource::Core);
    core.current = Some(0);
    let _ = setrlimit(Resource::Core, core);
}

/// Marks all inherited descriptors except the three standard streams as close-on-exec.
///
/// Descriptors that orbd opens itself are close-on-exec from the start. Inherited ones may not be, and an `orbctl` that starts
/// OrbStack's service would pass them on permanently: a lock, or the pipe that a build waits for. Call it once, when the process
/// starts.
pub fn seal_inherited_descriptors() {
    let Ok(entries) = std::fs::read_dir("/dev/fd") else {
        return;
    };
    // Collect the numbers first, because the list contains the descriptor that lists them.
    let numbers: Vec<RawFd> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        // SAFETY: only the flags are read and set; nothing is read, written or closed. If the number is no longer open, both
        // calls fail; if it has been reused by a descriptor of ours, that is close-on-exec already.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        if let Ok(flags) = fcntl_getfd(descriptor) {
            let _ = fcntl_setfd(descriptor, flags | FdFlags::CLOEXEC);
        }
    }
}

/// Takes over a descriptor that an earlier instance left open; `None` if the number is not open. Call it once per number, when
/// the process starts, before anything is opened that could get the number.
pub fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: only the flags are read. If the number is not open, the call fails.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(descriptor).ok()?;
    // SAFETY: the descriptor is open and has no owner in this process: it was inherited, and the caller has opened nothing yet.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Occupies a descriptor number for the lifetime of the process, so that no other file gets it. Call it when the process starts,
/// before anything is opened.
pub fn reserve(number: RawFd) -> io::Result<OwnedFd> {
    // The parent process left it open. orbd does not use it.
    if let Some(open) = inherited(number) {
        return Ok(open);
    }
    let nothing = OwnedFd::from(File::open("/dev/null")?);
    if nothing.as_raw_fd() == number {
        return Ok(nothing);
    }
    // Returns the lowest free number that is at least `number`, which is `number` itself.
    Ok(fcntl_dupfd_cloexec(&nothing, number)?)
}

/// Removes a variable from the environment, so that no child inherits it, and returns its value. Call it when the process starts,
/// before it starts a thread.
pub fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::vars_os().find_map(|(other, value)| (other == name).then_some(value))?;
    // SAFETY: no other thread runs that could read the environment at the same time.
    unsafe { std::env::remove_var(name) };
    Some(value)
}

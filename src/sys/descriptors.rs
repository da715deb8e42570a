//! What we were started with: descriptors are kept from our children, or taken over from an earlier life; we may have as many as we
//! need.
#![expect(
    unsafe_code,
    reason = "a descriptor that is only known by its number cannot be borrowed or owned safely, nor the environment changed"
)]

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
use rustix::process::{Resource, getrlimit, setrlimit};

/// More than we ever need. macOS takes no number beyond this, whatever it says of its limit: `OPEN_MAX`, see `setrlimit(2)`.
const DESCRIPTORS_MAX: u64 = 10_240;

/// Raises the number of descriptors that we may have to what the system allows. launchd starts agents with 256, which a hundred
/// commands with their pipes use up.
pub fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit
        .maximum
        .map_or(DESCRIPTORS_MAX, |most| most.min(DESCRIPTORS_MAX));
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        // Without it we do with what there is; a child that cannot be started says why.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Restores limits on resources that the process which started us lowered, as far as the system lets us: our children have the same.
///
/// The stack gets the usual size instead of all that is allowed, because Linux lays out memory differently without a limit. Core
/// dumps are turned off: one of a command's process would put its environment on the disk.
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
            // A limit that cannot be raised stays: what it stops says so.
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

/// Marks everything beyond the three standard streams that whoever started us left open as not to be inherited.
///
/// Everything that we open ourselves has the mark from the beginning. What we inherit may not, and an `orbctl` that starts
/// OrbStack's service would hand it on for good: a lock, or the pipe that a build waits on. Called once, when the process starts.
pub fn seal_inherited_descriptors() {
    let Ok(entries) = std::fs::read_dir("/dev/fd") else {
        return;
    };
    // Collected first: the descriptor that lists is among those listed.
    let numbers: Vec<RawFd> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        // SAFETY: only its flags are read and set, nothing is read from it, written to it or closed. If the number is not open
        // any more, both calls fail; if it has become another one of ours, that has the mark already.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        if let Ok(flags) = fcntl_getfd(descriptor) {
            let _ = fcntl_setfd(descriptor, flags | FdFlags::CLOEXEC);
        }
    }
}

/// Takes over a descriptor that an earlier life of this process left open; `None` when the number is not open. Called once for each
/// number, when the process starts, before anything is opened that could have it.
pub fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: only its flags are read. If the number is not open, the call fails.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(descriptor).ok()?;
    // SAFETY: it is open, and nobody else in this process knows of it: it was there before anything was opened here.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes a descriptor number for the life of this process, so that nothing else gets it. Called when the process starts, before anything
/// is opened.
pub fn reserve(number: RawFd) -> io::Result<OwnedFd> {
    // Left open by whoever started us, and used by nothing here.
    if let Some(open) = inherited(number) {
        return Ok(open);
    }
    let nothing = OwnedFd::from(File::open("/dev/null")?);
    if nothing.as_raw_fd() == number {
        return Ok(nothing);
    }
    // The lowest free number from there on, which is this one.
    Ok(fcntl_dupfd_cloexec(&nothing, number)?)
}

/// Takes a variable out of the environment, so that no child gets it. Called when the process starts, before any thread does.
pub fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::vars_os().find_map(|(other, value)| (other == name).then_some(value))?;
    // SAFETY: no other thread runs that could read the environment meanwhile.
    unsafe { std::env::remove_var(name) };
    Some(value)
}

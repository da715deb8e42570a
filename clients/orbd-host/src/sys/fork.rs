//! Forks this process. Starting the same program again instead would cost more than everything else that the caller does.

use std::io;

use rustix::process::Pid;

/// Which of the two processes `fork` returned in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The original process; holds the child's pid.
    Parent(Pid),
    /// The new process. It has a copy of everything; values that must end with the parent are to be dropped first.
    Child,
}

/// Creates a child process that is a copy of this one. Write buffers must be flushed before, or both processes write their
/// contents.
///
/// # Safety
///
/// The process must have exactly one thread: other threads do not exist in the child, but the locks that they held stay locked.
#[expect(unsafe_code, reason = "there is no safe interface")]
pub unsafe fn fork() -> io::Result<Forked> {
    // SAFETY: no arguments. With a single thread, as required of the caller, the child is in the same state as the parent.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(Forked::Child),
        pid => Pid::from_raw(pid)
            .filter(|_| pid > 0)
            .map(Forked::Parent)
            .ok_or_else(io::Error::last_os_error),
    }
}

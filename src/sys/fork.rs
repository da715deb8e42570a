//! A second process of the same program, without starting it anew: that would cost more than all else that its caller does.

use std::io;

use rustix::process::Pid;

/// Which of the two processes goes on here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The one that was there, and the id of the other.
    Parent(Pid),
    /// The new one, with a copy of everything: what must end with the parent is dropped first.
    Child,
}

/// Makes a child that is a copy of this process. Nothing that was written may wait in a buffer, or both write it.
///
/// # Safety
///
/// This process has one thread: of other threads a child has nothing but the locks that they held.
#[expect(unsafe_code, reason = "there is no safe interface")]
pub unsafe fn fork() -> io::Result<Forked> {
    // SAFETY: nothing is passed. With one thread, as is asked of the caller, the child is in the same state as the parent.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(Forked::Child),
        pid => Pid::from_raw(pid)
            .filter(|_| pid > 0)
            .map(Forked::Parent)
            .ok_or_else(io::Error::last_os_error),
    }
}

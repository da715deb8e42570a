//! A forked child that waits until its parent has acquired a lease, and then execs the real tool.
//!
//! The child is forked before the lease is requested, because a lease is granted to a process, and before the parent changes any signal
//! handler, so that the tool ignores the signals that our caller ignores. It is a fork that reads from a pipe: starting this program a
//! second time, as [`crate::waiting_child`] does for slower verbs, would double the run time. The child inherits the descriptors that our
//! caller left open. If the parent dies before the grant, the child reads the end of the pipe and exits without having done anything.

use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use orbd_host::sys::{Forked, MARKER, fork};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

use super::{Invocation, NOT_EXECUTABLE, REFUSED, refuse};

/// The parent's handle of the child.
pub(super) struct RealTool {
    pid: Pid,
    grant: PipeWriter,
}

/// The child's end of the pipe, on which the grant arrives.
pub(super) struct Granted(PipeReader);

/// Result of the fork.
pub(super) enum Start {
    /// This process is the parent.
    Parent(RealTool),
    /// This process is the child.
    Child(Granted),
}

impl RealTool {
    /// Forks the child. Must be called before this process has written any output, which would otherwise be buffered in both.
    #[expect(
        unsafe_code,
        reason = "starting this program a second time would double the drop-in's run time"
    )]
    pub(super) fn start() -> io::Result<Start> {
        let (granted, grant) = io::pipe()?;
        // SAFETY: the drop-in has a single thread and starts no others.
        let forked = unsafe { fork() }?;
        Ok(match forked {
            Forked::Parent(pid) => Start::Parent(Self { pid, grant }),
            Forked::Child => Start::Child(Granted(granted)),
        })
    }

    /// Returns the child's process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Makes the child exit, and waits for it.
    pub(super) fn dismiss(self) {
        drop(self.grant);
        while waitpid(Some(self.pid), WaitOptions::empty()).is_err_and(|error| error == Errno::INTR) {}
    }

    /// Makes the child exec the real tool, with `marker` in its environment.
    pub(super) fn grant(mut self, program: &Path, marker: &str) -> Pid {
        let words = [program.as_os_str().as_bytes(), b"\0", marker.as_bytes(), b"\0"];
        // Fails if the child was killed meanwhile; its exit status reports that.
        let _ = self.grant.write_all(&words.concat());
        self.pid
    }
}

impl Granted {
    /// Waits for the grant, then execs the tool.
    pub(super) fn wait(self, invocation: &Invocation) -> ExitCode {
        let Some((program, marker)) = read(self.0) else {
            // The lease was refused or cancelled; the parent reports why.
            return ExitCode::from(REFUSED);
        };
        let variables = vec![(MARKER.into(), marker)];
        let error = invocation.tool(&program, variables).become_it();
        refuse(
            &format!("cannot run {}: {error}", program.display()),
            NOT_EXECUTABLE,
        )
    }
}

/// Reads the grant. `None` if the parent closed the pipe without a complete grant.
fn read(mut granted: impl Read) -> Option<(PathBuf, OsString)> {
    let mut message = Vec::new();
    granted.read_to_end(&mut message).ok()?;
    let mut words = message.strip_suffix(&[0])?.split(|byte| *byte == 0);
    let program = PathBuf::from(OsStr::from_bytes(words.next()?));
    let marker = OsString::from_vec(words.next()?.to_vec());
    Some((program, marker))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_grant_is_rejected() {
        let whole = b"/usr/local/bin/orbctl\x001-a:7\0";
        let granted = read(&whole[..]).expect("granted");
        assert_eq!(granted, ("/usr/local/bin/orbctl".into(), "1-a:7".into()));
        for end in 0..whole.len() {
            assert_eq!(read(&whole[..end]), None, "{end}");
        }
    }
}

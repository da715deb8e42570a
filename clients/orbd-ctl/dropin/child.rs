//! The child that waits for a place in the queue and then becomes the real tool.
//!
//! It exists before the place is asked for, because the place is given to a process; and before we change what any signal does to us, so
//! that what our caller ignores the tool ignores too. It is a copy of us that reads from a pipe: starting this program a second time, as
//! [`crate::waiting_child`] does for the slower verbs, would take as long as everything else. Whatever our caller opened is open in it.
//! A child whose parent dies before the grant reads the end of the pipe and goes away without having done anything.

use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use orbd::sys::{Forked, MARKER, fork};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

use super::{Invocation, NOT_EXECUTABLE, REFUSED, refuse};

/// The child, as its parent has it.
pub(super) struct RealTool {
    pid: Pid,
    grant: PipeWriter,
}

/// What the child waits for.
pub(super) struct Granted(PipeReader);

/// Which of the two goes on.
pub(super) enum Start {
    /// We, with a child that waits.
    Parent(RealTool),
    /// The child.
    Child(Granted),
}

impl RealTool {
    /// Starts it. This process has written nothing yet.
    #[expect(
        unsafe_code,
        reason = "a second start of this program would take as long as all else"
    )]
    pub(super) fn start() -> io::Result<Start> {
        let (granted, grant) = io::pipe()?;
        // SAFETY: the drop-in has one thread, and starts no other.
        let forked = unsafe { fork() }?;
        Ok(match forked {
            Forked::Parent(pid) => Start::Parent(Self { pid, grant }),
            Forked::Child => Start::Child(Granted(granted)),
        })
    }

    /// Returns its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Lets it go away, and waits until it has.
    pub(super) fn dismiss(self) {
        drop(self.grant);
        while waitpid(Some(self.pid), WaitOptions::empty()).is_err_and(|error| error == Errno::INTR) {}
    }

    /// Lets it become the real tool, in the place that `marker` names.
    pub(super) fn grant(mut self, program: &Path, marker: &str) -> Pid {
        let words = [program.as_os_str().as_bytes(), b"\0", marker.as_bytes(), b"\0"];
        // A child that was killed meanwhile is told by its status.
        let _ = self.grant.write_all(&words.concat());
        self.pid
    }
}

impl Granted {
    /// Waits for the place, and becomes the tool.
    pub(super) fn wait(self, invocation: &Invocation) -> ExitCode {
        let Some((program, marker)) = read(self.0) else {
            // Refused, or withdrawn: our parent says why.
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

/// Reads the grant. `None` when there will be none, or when the parent died over it.
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
    fn a_grant_that_was_cut_short_is_none() {
        let whole = b"/usr/local/bin/orbctl\x001-a:7\0";
        let granted = read(&whole[..]).expect("granted");
        assert_eq!(granted, ("/usr/local/bin/orbctl".into(), "1-a:7".into()));
        for end in 0..whole.len() {
            assert_eq!(read(&whole[..end]), None, "{end}");
        }
    }
}

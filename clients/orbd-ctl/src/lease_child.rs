//! A forked child that waits until its parent has acquired a lease, and then execs the real tool.
//!
//! The child is forked before the lease is requested, because a lease is granted to a process, and before the parent changes any signal
//! handler, so that the tool ignores the signals that our caller ignores. It is a fork that reads from a pipe, because starting this
//! program a second time would double the run time of a drop-in. The child inherits the standard streams and the descriptors that our
//! caller left open. If the parent dies before the grant, the child reads the end of the pipe and exits without having done anything.

use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use orbd_host::sys::{Forked, fork};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::error::exit;

/// Exit code of a shell if a program cannot be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;

/// The real tool, ready to exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tool {
    /// Path of the real tool.
    pub(crate) program: OsString,
    /// `argv[0]`.
    pub(crate) name: OsString,
    /// Additional environment variables.
    pub(crate) variables: Vec<(OsString, OsString)>,
    /// Arguments after `argv[0]`.
    pub(crate) arguments: Vec<OsString>,
}

/// The parent's handle of the child, which waits for the grant.
pub(crate) struct LeaseChild {
    pid: Pid,
    grant: PipeWriter,
}

/// The child's end of the pipe, on which the grant arrives.
pub(crate) struct Granted(PipeReader);

/// Result of the fork.
pub(crate) enum Start {
    /// This process is the parent.
    Parent(LeaseChild),
    /// This process is the child. It must drop its copies of the parent's connections, then call [`Granted::exec`].
    Child(Granted),
}

impl LeaseChild {
    /// Forks the child. Must be called before this process has written any output, which would otherwise be buffered in both.
    #[expect(
        unsafe_code,
        reason = "starting this program a second time would double the drop-in's run time"
    )]
    pub(crate) fn start() -> io::Result<Start> {
        let (granted, grant) = io::pipe()?;
        // SAFETY: this program has a single thread when it acquires a lease, and starts no others.
        let forked = unsafe { fork() }?;
        Ok(match forked {
            Forked::Parent(pid) => Start::Parent(Self { pid, grant }),
            Forked::Child => Start::Child(Granted(granted)),
        })
    }

    /// Returns the child's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Makes the child exit, and waits for it.
    pub(crate) fn dismiss(self) {
        drop(self.grant);
        let _ = wait(self.pid);
    }

    /// Makes the child exec the real tool. Returns the child's process id.
    pub(crate) fn grant(mut self, tool: &Tool) -> Pid {
        // Fails if the child was killed meanwhile; its exit status reports that.
        let _ = self.grant.write_all(&tool.encode());
        self.pid
    }
}

/// Waits until a child has exited.
pub(crate) fn wait(child: Pid) -> io::Result<ExitStatus> {
    loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Err(Errno::INTR) | Ok(None) => {}
            Ok(Some((_, status))) => return Ok(ExitStatus::from_raw(status.as_raw())),
            Err(error) => return Err(error.into()),
        }
    }
}

impl Granted {
    /// Waits for the grant, then execs the tool. Returns the child's exit code if the lease was not acquired, which the parent reports, or
    /// if the tool cannot be executed, which is passed to `report`.
    pub(crate) fn exec(self, report: impl FnOnce(&str)) -> u8 {
        let Some(tool) = read(self.0) else {
            return exit::RUN_FAILED;
        };
        let error = tool.become_it();
        report(&format!("cannot run {}: {error}", tool.program.to_string_lossy()));
        NOT_EXECUTABLE
    }
}

/// Reads the grant. `None` if the parent closed the pipe without a complete grant.
fn read(mut granted: impl Read) -> Option<Tool> {
    let mut message = Vec::new();
    granted.read_to_end(&mut message).ok()?;
    Tool::decode(&message)
}

impl Tool {
    /// Execs the tool. Returns only if that fails.
    #[expect(
        clippy::disallowed_methods,
        reason = "this process becomes orbctl: nothing is spawned"
    )]
    pub(crate) fn become_it(&self) -> io::Error {
        Command::new(&self.program)
            .arg0(&self.name)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .args(&self.arguments)
            .exec()
    }

    /// Encodes the tool as words that each end in NUL: path, `argv[0]`, number of variables, their names and values, arguments, and the
    /// end mark.
    fn encode(&self) -> Vec<u8> {
        let count = OsString::from(self.variables.len().to_string());
        let variables = self.variables.iter().flat_map(|(name, value)| [name, value]);
        let words = [&self.program, &self.name, &count]
            .into_iter()
            .chain(variables)
            .chain(&self.arguments);
        let mut message = Vec::new();
        for word in words.map(OsString::as_os_str).chain([OsStr::new(END)]) {
            message.extend_from_slice(word.as_bytes());
            message.push(0);
        }
        message
    }

    /// Decodes what [`Tool::encode`] encoded. `None` if it is incomplete, because the parent died while sending it.
    fn decode(message: &[u8]) -> Option<Self> {
        let mut words = message
            .strip_suffix(&[0])?
            .split(|byte| *byte == 0)
            .map(|word| OsString::from_vec(word.to_vec()));
        let (program, name) = (words.next()?, words.next()?);
        let count = words.next()?.to_str()?.parse().ok()?;
        let mut variables = Vec::new();
        for _ in 0..count {
            variables.push((words.next()?, words.next()?));
        }
        let mut arguments: Vec<OsString> = words.collect();
        let end = arguments.pop()?;
        (end == END).then_some(Self {
            program,
            name,
            variables,
            arguments,
        })
    }
}

/// Last word of a grant. Without it, a grant that was cut after any argument would look complete.
const END: &str = "end of grant";

#[cfg(test)]
mod tests {
    use super::*;

    fn tool() -> Tool {
        Tool {
            program: "/usr/local/bin/orbctl".into(),
            name: "orb".into(),
            variables: vec![("A".into(), "b=c\n".into()), ("B".into(), "".into())],
            arguments: ["push", "", "end of grant", &"x".repeat(1000)]
                .map(Into::into)
                .to_vec(),
        }
    }

    #[test]
    fn a_grant_arrives_complete() {
        let (granted, mut grant) = io::pipe().expect("a pipe");
        let sender = std::thread::spawn(move || grant.write_all(&tool().encode()).expect("written"));
        assert_eq!(read(granted), Some(tool()));
        sender.join().expect("no panic");
    }

    #[test]
    fn an_incomplete_grant_is_rejected() {
        let whole = Tool {
            arguments: vec!["push".into(), "-m".into()],
            ..tool()
        }
        .encode();
        assert!(Tool::decode(&whole).is_some());
        for end in 0..whole.len() {
            assert_eq!(Tool::decode(&whole[..end]), None, "{end}");
        }
    }
}

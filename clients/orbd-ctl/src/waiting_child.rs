//! A child process that waits until its parent has acquired a lease, and then execs the real tool.
//!
//! The child is started before the lease is requested, because a lease is granted to a process. Its standard input is a socket. The
//! grant arrives on that socket, together with the descriptor of the parent's standard input, which replaces the socket. So the tool
//! has the three standard streams and the descriptors that our caller left open, and none of ours. If the parent dies before the
//! grant, the child reads the end of the socket and exits without having done anything.
//!
//! The child is started before the parent changes any signal handler, so that the tool ignores the signals that our caller ignores.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use orbd_host::run_command::Call;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::console::Console;
use crate::environment::Environment;
use crate::error::exit;

/// Hidden verb that runs the child.
pub(crate) const VERB: &str = "lease-exec";

/// `argv[0]` of the child. With the name that this process has, which may be `orbctl`, the child could run as the drop-in.
const OWN_NAME: &str = "orbd-ctl";

/// The child while it waits for the grant.
pub(crate) struct WaitingChild {
    child: Child,
    socket: UnixStream,
}

/// The real tool, ready to exec.
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

impl WaitingChild {
    /// Starts the child.
    #[expect(
        clippy::disallowed_methods,
        reason = "in a lease, a process of the client runs orbctl"
    )]
    pub(crate) fn start() -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let child = Command::new(std::env::current_exe()?)
            .arg0(OWN_NAME)
            .arg(VERB)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()?;
        Ok(Self { child, socket })
    }

    /// Returns the child's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes the child exit, and waits for it.
    pub(crate) fn dismiss(mut self) {
        drop(self.socket);
        let _ = self.child.wait();
    }

    /// Makes the child exec the real tool, with our own standard input.
    pub(crate) fn grant(self, program: &OsStr, call: &Call) -> Child {
        // Fails if the child was killed meanwhile; its exit status reports that.
        let _ = send(&self.socket, io::stdin().as_fd(), &words_of(program, call));
        self.child
    }
}

/// Encodes the grant as words: the tool's path, the number of variables, their names and values, and the arguments.
fn words_of(program: &OsStr, call: &Call) -> Vec<OsString> {
    let mut words = vec![program.to_owned(), call.env.len().to_string().into()];
    words.extend(
        call.env
            .iter()
            .flat_map(|(name, value)| [name.clone(), value.clone()]),
    );
    words.extend(call.args.iter().cloned());
    words
}

/// Decodes the words that [`words_of`] encoded; `None` if they are malformed.
fn tool_of(words: Vec<OsString>) -> Option<Tool> {
    let mut words = words.into_iter();
    let program = words.next()?;
    let count = words.next()?.to_str()?.parse().ok()?;
    let mut variables = Vec::new();
    for _ in 0..count {
        variables.push((words.next()?, words.next()?));
    }
    Some(Tool {
        name: program.clone(),
        program,
        variables,
        arguments: words.collect(),
    })
}

/// Sends the grant and the input's descriptor to the child, then closes the socket for writing to mark the end.
fn send(socket: &UnixStream, input: impl AsFd, words: &[OsString]) -> io::Result<()> {
    let mut message = Vec::new();
    for word in words {
        message.extend_from_slice(word.as_bytes());
        message.push(0);
    }
    let descriptors = [input.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    // The descriptor is sent with the first bytes. `sendmsg` may send only part of a long message.
    let sent = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&message)],
        &mut control,
        SendFlags::empty(),
    )?;
    io::Write::write_all(&mut { socket }, &message[sent..])?;
    socket.shutdown(Shutdown::Write)
}

/// Waits for the grant. `None` if the parent closed the socket without a complete grant.
fn receive(socket: impl AsFd, mut rest: impl Read) -> io::Result<Option<(OwnedFd, Vec<OsString>)>> {
    let mut message = vec![0; 16 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut message)],
            &mut control,
            RecvFlags::empty(),
        ) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?.bytes,
        }
    };
    message.truncate(received);
    let input = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    rest.read_to_end(&mut message)?;
    // A message without the final NUL is incomplete: the parent died while sending it.
    let (Some(input), Some(words)) = (input, message.strip_suffix(&[0])) else {
        return Ok(None);
    };
    let words = words
        .split(|byte| *byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()));
    Ok(Some((input, words.collect())))
}

/// Runs the child: waits for the grant, then execs the real tool.
pub(crate) fn exec() -> ExitCode {
    let stdin = io::stdin();
    let granted = receive(&stdin, stdin.lock()).ok().flatten();
    let Some((input, tool)) = granted.and_then(|(input, words)| Some((input, tool_of(words)?))) else {
        // The lease was refused or cancelled; the parent reports why.
        return ExitCode::from(exit::RUN_FAILED);
    };
    let error = match rustix::stdio::dup2_stdin(&input) {
        Ok(()) => {
            drop(input);
            tool.become_it()
        }
        Err(error) => error.into(),
    };
    let mut console = Console::of_process(&Environment::default(), false);
    console.eprint(&format!("cannot run {}: {error}", tool.program.to_string_lossy()));
    ExitCode::from(126)
}

impl Tool {
    /// Execs the tool. Returns only if that fails.
    #[expect(
        clippy::disallowed_methods,
        reason = "this process becomes orbctl: nothing is spawned"
    )]
    pub(crate) fn become_it(&self) -> io::Error {
        let program: &OsStr = &self.program;
        Command::new(program)
            .arg0(&self.name)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .args(&self.arguments)
            .exec()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_grant_arrives_complete_with_the_input() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (input, mut writer) = io::pipe().unwrap();
        writer.write_all(b"typed").unwrap();
        drop(writer);
        let long = "x".repeat(100_000);
        let call = Call {
            args: ["push", "", &long].map(Into::into).to_vec(),
            env: vec![("A".into(), "b=c\n".into()), ("B".into(), "".into())],
        };
        let sent = words_of("/usr/local/bin/orbctl".as_ref(), &call);
        let told = sent.clone();
        let parent = std::thread::spawn(move || send(&ours, &input, &told).unwrap());
        let (input, received) = receive(&theirs, &theirs).unwrap().expect("granted");
        parent.join().unwrap();
        assert!(received == sent);
        let tool = tool_of(received).expect("a call");
        assert_eq!(tool.program, "/usr/local/bin/orbctl");
        assert!(tool.variables == call.env && tool.arguments == call.args);
        let mut text = String::new();
        std::fs::File::from(input).read_to_string(&mut text).unwrap();
        assert_eq!(text, "typed");
    }

    #[test]
    fn a_parent_that_dies_before_or_during_the_grant_grants_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert!(receive(&theirs, &theirs).unwrap().is_none());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"/usr/local/bin/orb").unwrap();
        drop(ours);
        assert!(receive(&theirs, &theirs).unwrap().is_none());
    }
}

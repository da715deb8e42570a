//! A child of ours that waits for a place in the queue and then becomes the real tool.
//!
//! It exists before the place is asked for, because the place is given to a process. Its input is a socket until the grant arrives
//! on it, and with it our own input, which then takes its place. So the tool has the three standard streams and whatever our caller
//! left open for it, nothing of ours; and a child whose parent dies before the grant reads the end of the socket and goes away
//! without having done anything.
//!
//! It is started before we change what any signal does to us: what our caller ignores, the tool ignores too.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use orbd::orbctl::argv::Call;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::console::Console;
use crate::environment::Environment;
use crate::error::exit;

/// The hidden verb of the child.
pub(crate) const VERB: &str = "lease-exec";

/// Our own name. Under another one we would be the drop-in.
const OWN_NAME: &str = "orbd-ctl";

/// The child, as long as it waits.
pub(crate) struct WaitingChild {
    child: Child,
    socket: UnixStream,
}

/// The real tool, as a process is to become it.
pub(crate) struct Tool {
    /// The real tool.
    pub(crate) program: OsString,
    /// The name that it finds as its own.
    pub(crate) name: OsString,
    /// Additional environment.
    pub(crate) variables: Vec<(OsString, OsString)>,
    /// Its arguments.
    pub(crate) arguments: Vec<OsString>,
}

impl WaitingChild {
    /// Starts it.
    #[expect(
        clippy::disallowed_methods,
        reason = "the real tool is run by a process of the client, in a place that the daemon grants"
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

    /// Returns its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it go away, and waits until it has.
    pub(crate) fn dismiss(mut self) {
        drop(self.socket);
        let _ = self.child.wait();
    }

    /// Lets it become the real tool, with our own input.
    pub(crate) fn grant(self, program: &OsStr, call: &Call) -> Child {
        // A child that was killed meanwhile is told by its status.
        let _ = send(&self.socket, io::stdin().as_fd(), &words_of(program, call));
        self.child
    }
}

/// Returns what the child is told: the tool's path, the number of variables, their names and values, and the arguments.
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

/// Reads what [`words_of`] wrote; `None` when it did not.
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

/// Sends the grant and the input to the child; then its end, so that it knows that this was all.
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
    // The descriptor travels with the first bytes; a long message goes on after them.
    let sent = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&message)],
        &mut control,
        SendFlags::empty(),
    )?;
    io::Write::write_all(&mut { socket }, &message[sent..])?;
    socket.shutdown(Shutdown::Write)
}

/// Waits for the grant. `None` when there will be none.
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
    // Without its last NUL the message was cut short: the parent died over it.
    let (Some(input), Some(words)) = (input, message.strip_suffix(&[0])) else {
        return Ok(None);
    };
    let words = words
        .split(|byte| *byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()));
    Ok(Some((input, words.collect())))
}

/// What the child does: waits for its place, then becomes the real tool.
pub(crate) fn exec() -> ExitCode {
    let stdin = io::stdin();
    let granted = receive(&stdin, stdin.lock()).ok().flatten();
    let Some((input, tool)) = granted.and_then(|(input, words)| Some((input, tool_of(words)?))) else {
        // Refused, or withdrawn: our parent says why.
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
    /// Turns this process into it. Returns only when that cannot be.
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
    fn everything_arrives_together() {
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
    fn a_parent_that_dies_grants_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert!(receive(&theirs, &theirs).unwrap().is_none());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"/usr/local/bin/orb").unwrap();
        drop(ours);
        assert!(receive(&theirs, &theirs).unwrap().is_none());
    }
}

//! Work that the real `orbctl` does for us on the Mac's files, in a place of the queue.
//!
//! The daemon never opens the Mac's files: it lacks the privacy rights that a terminal has. So the client runs the real
//! tool itself, but only while it holds a place in the queue, and that place belongs to the process that does the work:
//!
//! ```text
//! orbd-ctl push            orbd-ctl lease-exec (child)      orbd
//!   |-- starts --------------->| waits on its input           |
//!   |-- session.lease {pid of the child} -------------------->| waits in the queue,
//!   |<------------------------------- path of orbctl ---------| remembers pid and start time
//!   |-- path, arguments, our input -->| becomes orbctl        |
//!   |<------------------- exit code --|                       |
//!   |-- session.release {exit code} ------------------------->| the place is free
//! ```
//!
//! The child's input is a socket until the grant arrives on it, and with it our own input, which then takes its place. So no
//! descriptor but the three standard ones reaches `orbctl`, and a child whose parent dies before the grant reads the end of
//! the socket and goes away without having done anything.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use orbd::client::Client;
use orbd::rpc::api::{SessionLease, SessionRelease};
use orbd::rpc::types::{LeaseOperation, ReleaseParams};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::console::Console;
use crate::context::{Context, JobWishes, attend, request};
use crate::interrupt::Interrupt;
use crate::narrate::{Narrator, Watch};
use crate::trouble::{Trouble, exit};

/// The hidden verb of the child.
const VERB: &str = "lease-exec";

/// A place in the queue that is wanted.
pub(super) struct Place {
    /// What for.
    pub(super) operation: LeaseOperation,
    /// Its verb in job lists.
    pub(super) verb: &'static str,
    /// Name or id of the machine.
    pub(super) machine: String,
    /// Whose the terminal is meanwhile.
    pub(super) terminal: Terminal,
}

/// Whose the terminal is while the real tool runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Terminal {
    /// Ours: Ctrl-C interrupts the tool, and a second one ends us too.
    Ours,
    /// The tool's: whatever is typed is for what runs in it.
    Its,
}

/// Runs the real `orbctl` with `arguments` in a place of the queue; the exit code is its own. `arguments` is told the
/// machine's name, in case an id was typed where `orbctl` takes only names.
pub(super) fn carry_out(
    context: &mut Context,
    place: Place,
    wishes: &JobWishes,
    arguments: impl FnOnce(&str) -> Vec<OsString>,
) -> Result<ExitCode, Trouble> {
    let Place {
        operation,
        verb,
        machine,
        terminal,
    } = place;
    let interrupt = Interrupt::watch()?;
    let mut client = context.connect()?;
    let (ours, theirs) = UnixStream::pair()?;
    let mut child = spawn(theirs).map_err(|source| Trouble::Local {
        what: "cannot start ourselves a second time".into(),
        source,
    })?;
    let params = request!(
        wishes,
        LeaseParams {
            operation,
            pid: child.id(),
            machine: Some(machine.clone()),
            machines: Vec::new(),
            new_name: None,
            force: false,
            read: None,
        }
    );
    let mut narrator = Narrator::new(&context.link, Watch::Ours(verb, format!("{verb} {machine}")));
    let granted = client
        .start::<SessionLease>(&params)
        .map_err(Trouble::from)
        .and_then(|mut pending| attend(&mut pending, &interrupt, &mut narrator, &mut context.console));
    drop(narrator);
    let lease = match granted {
        Ok(lease) => lease,
        Err(trouble) => {
            // The child reads the end of its input and goes away.
            drop(ours);
            let _ = child.wait();
            return Err(trouble);
        }
    };
    if terminal == Terminal::Its {
        interrupt.let_pass()?;
    }
    let mut words = vec![OsString::from(lease.orbctl)];
    words.extend(arguments(lease.machines.first().unwrap_or(&machine)));
    // A child that was killed meanwhile is told by its status.
    let _ = grant(&ours, io::stdin().as_fd(), &words);
    let status = child.wait().map_err(|source| Trouble::Local {
        what: "cannot wait for orbctl".into(),
        source,
    })?;
    release(context, client, lease.job_id, status, terminal)?;
    if interrupt.came() && terminal == Terminal::Ours {
        context.console.say("orbctl was interrupted");
    }
    Ok(ExitCode::from(code_of(status)))
}

/// Starts the child that waits.
#[expect(
    clippy::disallowed_methods,
    reason = "files of the Mac are handled by a process of the client, in a place that the daemon grants"
)]
fn spawn(input: UnixStream) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .arg(VERB)
        .stdin(Stdio::from(OwnedFd::from(input)))
        .spawn()
}

/// Sends path, arguments and input to the child; then its end, so that it knows that this was all.
fn grant(socket: &UnixStream, input: impl AsFd, words: &[OsString]) -> io::Result<()> {
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

/// Waits for the grant: input, path and arguments. `None` when there will be none.
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
#[expect(
    clippy::disallowed_methods,
    reason = "this process becomes orbctl: nothing is spawned"
)]
pub(super) fn exec() -> ExitCode {
    let mut console = Console::of_process(&crate::environment::Environment::default(), false);
    let stdin = io::stdin();
    let Ok(Some((input, words))) = receive(&stdin, stdin.lock()) else {
        // Refused, or withdrawn: whoever started us says why.
        return ExitCode::from(exit::RUN_FAILED);
    };
    let program = words.first().map_or_else(|| OsStr::new(""), OsString::as_os_str);
    let error = match rustix::stdio::dup2_stdin(&input) {
        Ok(()) => {
            drop(input);
            Command::new(program).args(&words[1..]).exec()
        }
        Err(error) => error.into(),
    };
    console.say(&format!("cannot run {}: {error}", program.to_string_lossy()));
    ExitCode::from(126)
}

/// Gives the place back. That the child is gone is enough for the daemon, so nothing here is a reason to fail.
fn release(
    context: &mut Context,
    mut client: Client,
    job_id: u64,
    status: ExitStatus,
    terminal: Terminal,
) -> Result<(), Trouble> {
    let params = ReleaseParams {
        job_id,
        exit_code: status.code(),
        signal: status.signal(),
    };
    let answer = client.call::<SessionRelease>(&params).or_else(|error| {
        // It was idle for as long as the copy took, and may have been closed for that.
        let mut client = context.link.aside().ok_or(error)?;
        client.call::<SessionRelease>(&params)
    });
    match answer {
        // What ran had our stdout, and whoever reads it did not ask for a job in it.
        Ok(answer) if context.console.json && terminal == Terminal::Ours => {
            context.console.answer(&answer, |_, _| String::new())
        }
        _ => Ok(()),
    }
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(exit::FAILED)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn path_arguments_and_input_arrive_together() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (input, mut writer) = io::pipe().unwrap();
        writer.write_all(b"typed").unwrap();
        drop(writer);
        let long = "x".repeat(100_000);
        let sent: Vec<OsString> = ["/usr/local/bin/orbctl", "push", "", &long]
            .map(Into::into)
            .to_vec();
        let words = sent.clone();
        let parent = std::thread::spawn(move || grant(&ours, &input, &words).unwrap());
        let (input, received) = receive(&theirs, &theirs).unwrap().expect("granted");
        parent.join().unwrap();
        assert!(received == sent);
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

    #[test]
    fn a_signal_is_told_as_shells_tell_it() {
        assert_eq!(code_of(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code_of(ExitStatus::from_raw(9)), 137);
    }
}

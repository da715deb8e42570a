//! The streams between the caller and a command in a machine.
//!
//! The command of a real machine is in a virtual machine and cannot hold the caller's pipes: only the client holds
//! them, and copies the bytes. This does the same. When the client is killed, the caller's pipes end although the
//! command may keep running, and a process that a command leaves behind does not keep them open. A terminal is passed
//! to the command directly.
//!
//! The carriers are threads that start before this process enters a machine: afterwards its children belong to another
//! pid namespace, and the kernel creates no more threads.

use std::io::{IsTerminal, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::guest::exec::GuestCommand;

/// How long a client that was asked to end waits for its caller to read what the command has written.
const PATIENCE: Duration = Duration::from_secs(1);

/// The carriers of one command's streams.
pub(super) struct Relay {
    /// Dropped when the command has ended: then the carriers copy what is in their pipes, and stop.
    running: PipeWriter,
    /// Nothing is sent on it; it closes when the last carrier has ended.
    carriers: Receiver<()>,
}

impl Relay {
    /// Gives the command pipes instead of the caller's streams, and starts the carriers. If stdin is a terminal,
    /// everything is inherited, and the command has a session of its own on the terminal.
    pub(super) fn start(command: &mut GuestCommand) -> Result<Relay> {
        let (ended, running) = std::io::pipe()?;
        let (alive, carriers) = channel();
        if command.stdin.is_none() && std::io::stdin().is_terminal() {
            return Ok(Relay { running, carriers });
        }
        let ended = Arc::new(OwnedFd::from(ended));
        if command.stdin.is_none() {
            let (theirs, ours) = std::io::pipe()?;
            command.stdin = Some(Stdio::from(theirs));
            let source = std::io::stdin().as_fd().try_clone_to_owned()?;
            // This thread is not waited for: the caller may never end the stream.
            thread::spawn(move || carry_in(&source, &ours));
        }
        if command.stdout.is_none() && !std::io::stdout().is_terminal() {
            let target = std::io::stdout().as_fd().try_clone_to_owned()?;
            command.stdout = Some(carry_out(target, &ended, &alive)?);
        }
        if !std::io::stderr().is_terminal() {
            let target = std::io::stderr().as_fd().try_clone_to_owned()?;
            command.stderr = Some(carry_out(target, &ended, &alive)?);
        }
        Ok(Relay { running, carriers })
    }

    /// Copies the rest of what the command has written. The command has ended.
    pub(super) fn finish(self, is_asked_to_end: bool) {
        drop(self.running);
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.carriers.recv_timeout(left) {
                Err(RecvTimeoutError::Timeout) if is_asked_to_end => return,
                Err(RecvTimeoutError::Disconnected) => return,
                _ => {}
            }
        }
    }
}

/// Starts a carrier from a new pipe to `target` and returns the pipe's other end.
fn carry_out(target: OwnedFd, ended: &Arc<OwnedFd>, alive: &Sender<()>) -> Result<Stdio> {
    let (ours, theirs) = std::io::pipe()?;
    let (ended, alive) = (Arc::clone(ended), alive.clone());
    thread::spawn(move || {
        carry(&ours, &ended, &target);
        drop(alive);
    });
    Ok(Stdio::from(theirs))
}

/// Copies from the caller until one side ends.
fn carry_in(source: &OwnedFd, target: &PipeWriter) {
    let mut buffer = vec![0; 65536];
    while let Some(read) = read(source.as_fd(), &mut buffer)
        && write(target.as_fd(), &buffer[..read]).is_some()
    {}
}

/// Copies to the caller until one side ends, or until the command has ended and all that it wrote is copied.
fn carry(source: &PipeReader, ended: &OwnedFd, target: &OwnedFd) {
    let mut buffer = vec![0; 65536];
    let mut left = u64::MAX;
    while left > 0 {
        let mut ready = [
            PollFd::new(source, PollFlags::IN),
            PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        let [can_read, is_over] = [0, 1].map(|at| !ready[at].revents().is_empty());
        if is_over && left == u64::MAX {
            left = rustix::io::ioctl_fionread(source).unwrap_or(0);
        } else if can_read {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let Some(read) = read(source.as_fd(), &mut buffer[..most]) else {
                return;
            };
            if write(target.as_fd(), &buffer[..read]).is_none() {
                return;
            }
            if left != u64::MAX {
                left = left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
            }
        }
    }
}

/// Reads some bytes. Returns `None` at the end, or if nothing more can be read.
fn read(source: BorrowedFd<'_>, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match rustix::io::read(source, &mut *buffer) {
            Ok(0) => return None,
            Ok(read) => return Some(read),
            Err(Errno::INTR) => {}
            // The caller may share a non-blocking descriptor.
            Err(Errno::AGAIN) => wait(source, PollFlags::IN)?,
            Err(_) => return None,
        }
    }
}

/// Writes all bytes. Returns `None` if the other side is closed.
fn write(target: BorrowedFd<'_>, mut bytes: &[u8]) -> Option<()> {
    while !bytes.is_empty() {
        match rustix::io::write(target, bytes) {
            Ok(written) => bytes = bytes.get(written..)?,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(target, PollFlags::OUT)?,
            Err(_) => return None,
        }
    }
    Some(())
}

fn wait(descriptor: BorrowedFd<'_>, wanted: PollFlags) -> Option<()> {
    match poll(&mut [PollFd::from_borrowed_fd(descriptor, wanted)], None) {
        Ok(_) | Err(Errno::INTR) => Some(()),
        Err(_) => None,
    }
}

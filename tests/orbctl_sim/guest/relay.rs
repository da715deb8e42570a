//! The streams between the caller and a command in a machine.
//!
//! The command of a real machine lives in a virtual machine, where nobody can hold the caller's pipes: only the client can, and it carries
//! the bytes. The same here. When the client is killed, the caller's pipes are at their end although the command may live on; what a
//! command leaves running does not keep them open. A terminal is handed to the command as it is.
//!
//! The carriers are threads that start before this process enters a machine: afterwards its children belong to another pid namespace, and
//! the kernel makes no more threads.

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

/// How long a client that was asked to end still waits for its caller to take what the command has written.
const PATIENCE: Duration = Duration::from_secs(1);

/// What carries the bytes of one command.
pub(super) struct Relay {
    /// Dropped when the command has ended: then the carriers take what is in their pipes, and no more.
    running: PipeWriter,
    /// Nothing is ever sent; it is closed when the last carrier has ended.
    carriers: Receiver<()>,
}

impl Relay {
    /// Gives the command pipes in place of the caller's streams, and starts to carry. With a terminal as stdin everything is inherited:
    /// the command then has a session of its own on it.
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
            // Nobody waits for it: its caller may never end the stream.
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

    /// The command has ended: carries to the end what it has written.
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

/// Starts a carrier from a new pipe to `target` and gives the pipe's other end.
fn carry_out(target: OwnedFd, ended: &Arc<OwnedFd>, alive: &Sender<()>) -> Result<Stdio> {
    let (ours, theirs) = std::io::pipe()?;
    let (ended, alive) = (Arc::clone(ended), alive.clone());
    thread::spawn(move || {
        carry(&ours, &ended, &target);
        drop(alive);
    });
    Ok(Stdio::from(theirs))
}

/// Carries from the caller until one side ends.
fn carry_in(source: &OwnedFd, target: &PipeWriter) {
    let mut buffer = vec![0; 65536];
    while let Some(read) = read(source.as_fd(), &mut buffer)
        && write(target.as_fd(), &buffer[..read]).is_some()
    {}
}

/// Carries to the caller until one side ends, or until the command has ended and what it had written is carried.
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

/// Reads some bytes. None at the end, or when nothing can be read any more.
fn read(source: BorrowedFd<'_>, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match rustix::io::read(source, &mut *buffer) {
            Ok(0) => return None,
            Ok(read) => return Some(read),
            Err(Errno::INTR) => {}
            // The caller may share a descriptor that does not block.
            Err(Errno::AGAIN) => wait(source, PollFlags::IN)?,
            Err(_) => return None,
        }
    }
}

/// Writes all bytes. None when the other side is gone.
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

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
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::answers::{RunOutput, RunStdin};
use crate::guest::exec::GuestCommand;
use crate::script::{Ending, Stream, Trouble};
use crate::trouble;

/// The carriers of one command's streams.
pub(super) struct Relay {
    /// Set when the command has started and can be found by a stop of its machine; the carriers wait for it. So what
    /// a caller sees of a command comes after that.
    started: Arc<OnceLock<()>>,
    /// Dropped when the command has ended: then the carriers copy what is in their pipes, and stop.
    running: Option<PipeWriter>,
    /// Nothing is sent on it; it closes when the last carrier has ended.
    carriers: Receiver<()>,
}

/// How one stream is carried.
#[derive(Clone)]
struct Manner {
    /// The most bytes in one write.
    most: usize,
    /// Whether everything is collected before the first byte is written.
    at_end: bool,
    /// After how many bytes the client dies, and how.
    death: Option<(u64, Death)>,
}

/// The most bytes that one write of a stream in chunks has.
const CHUNK: usize = 16;

impl Manner {
    fn new(in_chunks: bool, at_end: bool, stream: Stream, death: Option<&Trouble>) -> Manner {
        let death = death.filter(|trouble| trouble.stream == stream);
        Manner {
            most: if in_chunks { CHUNK } else { usize::MAX },
            at_end,
            death: death.and_then(|trouble| Some((trouble.bytes?, Death::of(trouble)))),
        }
    }

    /// Writes all bytes. Returns `None` if the other side is closed.
    fn write(&mut self, target: BorrowedFd<'_>, mut bytes: &[u8]) -> Option<()> {
        if let Some((left, death)) = &mut self.death {
            let most = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            *left -= u64::try_from(most).unwrap_or(*left);
            if *left == 0 {
                let _ = write_in_chunks(target, &bytes[..most], self.most);
                death.die();
            }
            bytes = &bytes[..most];
        }
        write_in_chunks(target, bytes, self.most)
    }
}

/// How the client of a command dies.
#[derive(Clone, Copy)]
struct Death {
    /// The exit code; SIGKILL if `None`.
    exit: Option<u8>,
}

impl Death {
    fn of(trouble: &Trouble) -> Death {
        Death { exit: trouble.exit }
    }

    fn die(self) -> ! {
        match self.exit {
            Some(exit) => std::process::exit(exit.into()),
            None => trouble::die(Ending::Killed),
        }
    }
}

impl Relay {
    /// Gives the command pipes instead of the caller's streams, and starts the carriers. If stdin is a terminal,
    /// everything is inherited, and the command has a session of its own on the terminal.
    pub(super) fn start(command: &mut GuestCommand) -> Result<Relay> {
        let (ended, running) = std::io::pipe()?;
        let (alive, carriers) = channel(1);
        let death = command.death.as_ref();
        if let Some(trouble) = death
            && let Some(pipe) = trouble.text.clone()
        {
            let death = Death::of(trouble);
            thread::spawn(move || {
                let _ = trouble::wait_at_gate(&pipe);
                death.die();
            });
        }
        let started = Arc::new(OnceLock::new());
        let running = Some(running);
        if command.stdin.is_none() && std::io::stdin().is_terminal() {
            return Ok(Relay {
                started,
                running,
                carriers,
            });
        }
        let links = Links {
            started: Arc::clone(&started),
            ended: Arc::new(OwnedFd::from(ended)),
            alive,
        };
        let answers = command.answers;
        let in_chunks = answers.run_output == RunOutput::Chunks;
        let output = |stream| Manner::new(in_chunks, false, stream, death);
        let input = Manner::new(
            answers.run_stdin == RunStdin::Chunks,
            answers.run_stdin == RunStdin::AtEnd,
            Stream::Stdin,
            death,
        );
        let [stdout, stderr] = [Stream::Stdout, Stream::Stderr].map(output);
        if command.stdin.is_none() {
            let (theirs, ours) = std::io::pipe()?;
            command.stdin = Some(Stdio::from(theirs));
            let source = std::io::stdin().as_fd().try_clone_to_owned()?;
            // This thread is not waited for: the caller may never end the stream.
            let started = Arc::clone(&started);
            thread::spawn(move || {
                started.wait();
                carry_in(&source, &ours, input);
            });
        }
        if command.stdout.is_none() && !std::io::stdout().is_terminal() {
            let target = std::io::stdout().as_fd().try_clone_to_owned()?;
            command.stdout = Some(carry_out(target, &links, stdout)?);
        }
        if !std::io::stderr().is_terminal() {
            let target = std::io::stderr().as_fd().try_clone_to_owned()?;
            command.stderr = Some(carry_out(target, &links, stderr)?);
        }
        Ok(Relay {
            started,
            running,
            carriers,
        })
    }

    /// Lets the carriers begin.
    pub(super) fn begin(&self) {
        let _ = self.started.set(());
    }

    /// Makes the carriers stop when they have copied what the command has written so far. Without this they stop when
    /// no process has the command's streams any more.
    pub(super) fn stop(&mut self) {
        self.running = None;
    }

    /// Waits until all carriers have ended.
    pub(super) async fn ended(&mut self) {
        while self.carriers.recv().await.is_some() {}
    }
}

/// What a carrier shares with its relay.
struct Links {
    started: Arc<OnceLock<()>>,
    ended: Arc<OwnedFd>,
    alive: Sender<()>,
}

/// Starts a carrier from a new pipe to `target` and returns the pipe's other end.
fn carry_out(target: OwnedFd, links: &Links, manner: Manner) -> Result<Stdio> {
    let (ours, theirs) = std::io::pipe()?;
    let (started, ended) = (Arc::clone(&links.started), Arc::clone(&links.ended));
    let alive = links.alive.clone();
    thread::spawn(move || {
        started.wait();
        carry(&ours, &ended, &target, manner);
        drop(alive);
    });
    Ok(Stdio::from(theirs))
}

/// Copies from the caller until one side ends.
fn carry_in(source: &OwnedFd, target: &PipeWriter, mut manner: Manner) {
    let mut buffer = vec![0; 65536];
    let mut collected = Vec::new();
    while let Some(read) = read(source.as_fd(), &mut buffer) {
        if manner.at_end {
            collected.extend_from_slice(&buffer[..read]);
        } else if manner.write(target.as_fd(), &buffer[..read]).is_none() {
            return;
        }
    }
    let _ = manner.write(target.as_fd(), &collected);
}

/// Copies to the caller until one side ends, or until the command has ended and all that it wrote is copied.
fn carry(source: &PipeReader, ended: &OwnedFd, target: &OwnedFd, mut manner: Manner) {
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
            if manner.write(target.as_fd(), &buffer[..read]).is_none() {
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

/// Writes all bytes, at most `most` in one write. Returns `None` if the other side is closed.
fn write_in_chunks(target: BorrowedFd<'_>, mut bytes: &[u8], most: usize) -> Option<()> {
    while !bytes.is_empty() {
        match rustix::io::write(target, &bytes[..most.min(bytes.len())]) {
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

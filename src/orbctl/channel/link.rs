//! One open channel: a running `orbctl run` with the guest's program, and the streams that lead to it.
//!
//! A command is sent in lock-step. It may run another way only as long as it is certain that it has not started:
//!
//! ```text
//!   check: no bytes, no end of file, `orbctl` runs; after a pause, a probe      otherwise: not started
//!   frame  --not fully written-->                                                not started
//!     |
//!   A (started), N (declined: not started), E without A (not started)            otherwise: it may have run
//!     |
//!   output, signals, W if there is input
//!     |
//!   E (exit status), O and Z on both streams                                     otherwise: it may have run
//! ```
//!
//! A stream without Z is held open by a process that the command left behind. Then the channel is closed, and that process goes on.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::pin::pin;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::frame;
use super::guest::{self, Token};
use super::marks::{Item, Mark, Scanner};
use super::pool::Obstacle;
use crate::clock::{Moment, sleep_until};
use crate::job::Ending;
use crate::orbctl::SpawnError;
use crate::orbctl::process::{Group, Installed, PipeReader, Streams, put};
use crate::orbctl::supervise::{DRAIN_LIMIT, Limits, Progress, Run, supervise};
use crate::spool::{self, Stream};
use crate::sys::ChildIdentity;
use orbd_host::run_command::Call;

/// How long the guest's program may take to report that it runs, from the start of `orbctl`.
const HELLO_LIMIT: Duration = Duration::from_secs(2);
/// How long the start or the refusal of a command may take.
const START_LIMIT: Duration = Duration::from_secs(5);
/// How long the answer to a probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// Idle time after which a probe precedes the next command.
const PROBE_AFTER: Duration = Duration::from_secs(1);
/// A difference between the clocks from which on the computer is taken to have slept since the last command.
const JUMP: Duration = Duration::from_secs(1);
/// How long the test of a channel may take.
const TEST_LIMIT: Duration = Duration::from_secs(2);
/// When a guest that does not end a killed command is given up, from SIGKILL on: the input is closed, `orbctl` gets SIGTERM, and
/// SIGKILL.
const GIVE_UP: [Duration; 3] = [
    Duration::from_secs(2),
    Duration::from_secs(3),
    Duration::from_secs(4),
];
/// How long each step of closing a channel may take: the end of its input, SIGTERM.
const CLOSE_STEP: Duration = Duration::from_secs(1);
/// How long output that the command has written may take to arrive after its end, beyond what a silent pipe is given.
const OUTPUT_LIMIT: Duration = Duration::from_secs(10);

pub(super) const CLOSED: &str = "the channel is closed";
const OUT_OF_STEP: &str = "the channel is out of step";
pub(super) const UNCONFIRMED: &str = "it ended before the command was confirmed";

/// An open channel.
pub(super) struct Link {
    token: Token,
    child: Child,
    group: Group,
    identity: Option<ChildIdentity>,
    /// `None` once it was closed.
    input: Option<ChildStdin>,
    stdout: Side<ChildStdout>,
    stderr: Side<ChildStderr>,
    probes: u64,
    idle_since: Moment,
}

/// Why no channel was opened. The command has not started.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// `orbctl` could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
    /// The guest's program did not report in time, for example because `orbctl` forwards input only at its end.
    #[error("the guest's program did not answer within {} s", HELLO_LIMIT.as_secs())]
    NoHello,
    /// `orbctl` exited before the guest's program reported.
    #[error("{0}")]
    Broken(&'static str),
    /// The machine lacks what a channel needs.
    #[error("{0}")]
    Machine(String),
    /// What was sent did not arrive as it was, or what came back was not what the machine had written.
    #[error("input and output do not pass unchanged")]
    Altered,
}

impl From<OpenError> for Obstacle {
    fn from(error: OpenError) -> Self {
        let text = error.to_string();
        match error {
            OpenError::Spawn(_) | OpenError::Stopped | OpenError::Broken(_) => Self::Passing(text),
            OpenError::NoHello => Self::NoAnswer(text),
            OpenError::Machine(_) => Self::Machine(text),
            OpenError::Altered => Self::Altered(text),
        }
    }
}

/// A command for a channel.
pub(super) struct Command {
    /// What the guest evaluates; see [`frame::program`].
    pub(super) program: Bytes,
    /// Its standard input.
    pub(super) input: Bytes,
}

/// How a command ended that was given to a channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// It ran.
    Ended {
        /// How it ended.
        ending: Ending,
        /// Bytes of its output.
        bytes_out: u64,
    },
    /// The channel broke, for this reason: the command may have run.
    MayHaveRun(&'static str),
}

/// The command was not started: run it another way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotStarted {
    pub(super) reason: String,
    /// Whether a new channel is needed: a fresh `orbctl run` would see the machine otherwise than this one.
    pub(super) is_stale: bool,
}

impl NotStarted {
    pub(super) fn because(reason: &str) -> Self {
        Self {
            reason: reason.to_owned(),
            is_stale: false,
        }
    }

    fn stale(reason: String) -> Self {
        Self {
            reason,
            is_stale: true,
        }
    }
}

impl Link {
    /// Opens a channel. The call must run [`guest::COMMAND`] in the machine.
    pub(super) async fn open(
        program: &Installed,
        call: &Call,
        marker: &str,
        token: Token,
        needs_test: bool,
        stop: &CancellationToken,
    ) -> Result<Self, OpenError> {
        let streams = Streams {
            stdin: Stdio::piped(),
            stdout: Stdio::piped(),
            stderr: Stdio::piped(),
        };
        let Some(mut child) = program.spawn(call, marker, streams, stop).await? else {
            return Err(OpenError::Stopped);
        };
        let group = Group::of(&child);
        let (Some(input), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(OpenError::Broken("orbctl has no pipes"));
        };
        let mut link = Self {
            identity: group.identity(),
            group,
            child,
            input: Some(input),
            stdout: Side::new(stdout, &token),
            stderr: Side::new(stderr, &token),
            token,
            probes: 0,
            idle_since: Moment::now(),
        };
        let opening = async {
            tokio::time::timeout(HELLO_LIMIT, link.hello())
                .await
                .unwrap_or(Err(OpenError::NoHello))?;
            if needs_test {
                tokio::time::timeout(TEST_LIMIT, link.test())
                    .await
                    .unwrap_or(Err(OpenError::Broken("its test took too long")))?;
            }
            Ok(())
        };
        let result = stop.run_until_cancelled(opening).await;
        match result.unwrap_or(Err(OpenError::Stopped)) {
            Ok(()) => Ok(link),
            Err(error) => {
                link.close().await;
                Err(error)
            }
        }
    }

    async fn hello(&mut self) -> Result<(), OpenError> {
        let program = guest::program(&self.token);
        if !self.send(program.as_bytes()).await {
            return Err(OpenError::Broken("orbctl does not read its input"));
        }
        match self.stdout.item().await {
            Some(Item::Mark(Mark::Hello { missing })) if missing.is_empty() => {}
            Some(Item::Mark(Mark::Hello { missing })) => {
                return Err(OpenError::Machine(format!("the machine has no usable {missing}")));
            }
            // One-shots have it in every answer, so commands must keep running as one-shots.
            Some(Item::Output(_)) => {
                return Err(OpenError::Machine(
                    "a profile of the machine writes to stdout".into(),
                ));
            }
            Some(Item::Mark(_)) => return Err(OpenError::Altered),
            None => return Err(OpenError::Broken("orbctl exited")),
        }
        loop {
            match self.stderr.item().await {
                Some(Item::Mark(Mark::Hello { .. })) => return Ok(()),
                // What a profile writes to stderr is in one-shots only.
                Some(Item::Output(_)) => {}
                Some(Item::Mark(_)) => return Err(OpenError::Altered),
                None => return Err(OpenError::Broken("orbctl exited")),
            }
        }
    }

    /// Checks with a command of its own that every byte passes, in both directions and as an argument.
    async fn test(&mut self) -> Result<(), OpenError> {
        let all: Vec<u8> = (0..=u8::MAX).collect();
        let words = [
            b"sh",
            b"-c".as_slice(),
            br#"cat; printf %s "$1" >&2"#,
            b"orbd",
            &all[1..],
        ];
        let words = words.map(|word| OsString::from_vec(word.to_vec()));
        let (input, _) = frame::input(&all);
        let program = frame::program(&[], &words).unwrap_or_default();
        let command = frame::command(&self.token, &program);
        if !self.send(&[input, command].concat()).await {
            return Err(OpenError::Broken("orbctl does not read its input"));
        }
        let end = Mark::StreamEnded { status: 0 };
        let expected = [Mark::Started, Mark::Ended(0), Mark::OutputWhole, end];
        self.stdout.expect(&all, &expected).await?;
        self.stderr.expect(&all[1..], &expected[2..]).await?;
        if self.send(frame::DONE).await {
            Ok(())
        } else {
            Err(OpenError::Broken("orbctl does not read its input"))
        }
    }

    /// Returns the process of `orbctl`.
    pub(super) fn identity(&self) -> Option<ChildIdentity> {
        self.identity
    }

    /// Runs a command, and calls `on_start` when its start is confirmed. Unless it ends with its whole output, the channel must be
    /// closed afterwards.
    pub(super) async fn run(
        &mut self,
        command: &Command,
        writer: &spool::Writer,
        limits: &Limits<'_>,
        on_start: impl FnOnce(),
    ) -> Result<Served, NotStarted> {
        let deadline = limits.run_timeout.map(|limit| Moment::now().instant + limit);
        let interrupted = async {
            tokio::select! {
                () = limits.stop.cancelled() => Ending::Stopped,
                () = sleep_until(deadline) => Ending::TimedOut,
            }
        };
        let mut interrupted = pin!(interrupted);
        let sent = tokio::select! {
            biased;
            _ = interrupted.as_mut() => Err(NotStarted::because("it was interrupted before it was sent")),
            sent = self.send_command(command) => sent,
        };
        if let Err(not_started) = sent {
            // The frame may be on its way in part; the guest executes only a whole one.
            self.input = None;
            return Err(not_started);
        }
        let confirmed = tokio::select! {
            biased;
            ending = interrupted.as_mut() => {
                // Ends the command if it has started.
                self.input = None;
                return Ok(Served::Ended { ending, bytes_out: 0 });
            }
            confirmed = tokio::time::timeout(START_LIMIT, self.stdout.item()) => confirmed,
        };
        match confirmed {
            Ok(Some(Item::Mark(Mark::Started))) => {
                on_start();
                let limits = Limits {
                    run_timeout: deadline.map(|at| at.saturating_duration_since(Moment::now().instant)),
                    ..*limits
                };
                Ok(self.supervise(writer, &limits, !command.input.is_empty()).await)
            }
            Ok(Some(Item::Mark(Mark::Declined(why)))) => Err(NotStarted::stale(format!("{why} has changed"))),
            Ok(Some(Item::Mark(Mark::Ended(_)))) => {
                Err(NotStarted::because("the guest could not start a process"))
            }
            Ok(_) => Ok(Served::MayHaveRun(UNCONFIRMED)),
            Err(_) => Ok(Served::MayHaveRun(
                "the start of the command was not confirmed in time",
            )),
        }
    }

    /// Sends a command once it is certain that the guest's program waits for one.
    async fn send_command(&mut self, command: &Command) -> Result<(), NotStarted> {
        self.check().await?;
        self.stdout.is_input_forwarded = false;
        let mut frame = frame::command(&self.token, &command.program);
        if !command.input.is_empty() {
            let (input, must_wait) = frame::input(&command.input);
            if must_wait {
                self.send_input(&input).await?;
            } else {
                frame = [input, frame].concat().into();
            }
        }
        if self.send(&frame).await {
            Ok(())
        } else {
            // The frame is not whole: it ends with the token.
            Err(NotStarted::because(CLOSED))
        }
    }

    /// Sends input that must be confirmed before the command follows.
    async fn send_input(&mut self, frame: &[u8]) -> Result<(), NotStarted> {
        if !self.send(frame).await {
            return Err(NotStarted::because(CLOSED));
        }
        match tokio::time::timeout(START_LIMIT, self.stdout.item()).await {
            Ok(Some(Item::Mark(Mark::InputRead))) => Ok(()),
            _ => Err(NotStarted::because("the guest's program did not take the input")),
        }
    }

    /// Checks that the guest's program waits for a command.
    async fn check(&mut self) -> Result<(), NotStarted> {
        if self.input.is_none() || !matches!(self.child.try_wait(), Ok(None)) {
            return Err(NotStarted::because("orbctl exited"));
        }
        if self.stdout.item().now_or_never().is_some() || self.stderr.item().now_or_never().is_some() {
            return Err(NotStarted::because(OUT_OF_STEP));
        }
        let now = Moment::now();
        if now.jump_since(&self.idle_since) >= JUMP {
            return Err(NotStarted::stale(
                "the computer slept, or its clock was set".into(),
            ));
        }
        if now.age_of(&self.idle_since) < PROBE_AFTER {
            return Ok(());
        }
        self.probes += 1;
        let number = self.probes;
        if !self.send(&frame::probe(number)).await {
            return Err(NotStarted::because(CLOSED));
        }
        match tokio::time::timeout(PROBE_LIMIT, self.stdout.item()).await {
            Ok(Some(Item::Mark(Mark::Probe(answered)))) if answered == number => Ok(()),
            Ok(_) => Err(NotStarted::because(OUT_OF_STEP)),
            Err(_) => Err(NotStarted::because("the guest's program does not answer")),
        }
    }

    /// Waits for the end of a command that has started.
    async fn supervise(&mut self, writer: &spool::Writer, limits: &Limits<'_>, has_input: bool) -> Served {
        let (report, ended) = watch::channel(None);
        let (whole, mut is_whole) = watch::channel(0);
        let progress = Progress::default();
        let (stdout, stderr) = (&mut self.stdout, &mut self.stderr);
        let mut copied = (None, None);
        let mut given_up = false;
        let supervised = {
            let (out, err) = &mut copied;
            let draining = async {
                tokio::join!(
                    async {
                        *out = stdout
                            .copy(Stream::Stdout, writer, &progress, &report, &whole)
                            .await;
                    },
                    async {
                        *err = stderr
                            .copy(Stream::Stderr, writer, &progress, &report, &whole)
                            .await;
                    },
                );
            };
            let mut draining = pin!(draining);
            let run = ChannelRun {
                ended,
                input: &mut self.input,
                child: &mut self.child,
                group: &self.group,
                killed_at: None,
                steps: 0,
                exited_at: None,
                given_up: &mut given_up,
            };
            let supervised = supervise(run, limits, &progress, draining.as_mut(), async {}).await;
            if let Ok((Ending::Exited(_), true)) = supervised {
                // A stream without an end is no reason to lose what the command itself wrote.
                let is_whole = is_whole.wait_for(|streams| *streams == 2);
                let _ = tokio::time::timeout(OUTPUT_LIMIT, async {
                    tokio::select! {
                        _ = is_whole => {}
                        () = draining => {}
                    }
                })
                .await;
            }
            supervised
        };
        let Ok((ending, output_cut)) = supervised else {
            self.input = None;
            return Served::MayHaveRun("it broke while the command ran");
        };
        let was_ended_by_us = !matches!(ending, Ending::Exited(_));
        let is_complete = !output_cut && !given_up && copied == (Some(0), Some(0));
        // Also if a process holds a stream open: without it, the end of the input would end that process.
        let is_done = !given_up && self.send(frame::DONE).await;
        if is_complete && is_done {
            self.idle_since = Moment::now();
        } else {
            self.input = None;
        }
        if !was_ended_by_us {
            if has_input && !self.stdout.is_input_forwarded {
                return Served::MayHaveRun("the machine could not start a process that writes the input");
            }
            if *whole.borrow() < 2 || matches!(copied, (Some(1..), _) | (_, Some(1..))) {
                return Served::MayHaveRun("output did not arrive");
            }
        }
        let bytes_out = progress.read.load(std::sync::atomic::Ordering::Relaxed);
        Served::Ended { ending, bytes_out }
    }

    /// Returns whether the channel can take another command.
    pub(super) fn is_usable(&self) -> bool {
        self.input.is_some()
    }

    /// Waits until an idle channel ends by itself, or becomes unusable because it sends something.
    pub(super) async fn broken(&mut self) {
        tokio::select! {
            _ = self.child.wait() => {}
            _ = self.stdout.item() => {}
            _ = self.stderr.item() => {}
        }
    }

    /// Ends the guest's program and `orbctl`: closes the input, then sends SIGTERM, then SIGKILL. Returns whether the first was enough.
    pub(super) async fn close(mut self) -> bool {
        self.input = None;
        for signal in [Signal::TERM, Signal::KILL] {
            if tokio::time::timeout(CLOSE_STEP, self.child.wait()).await.is_ok() {
                return signal == Signal::TERM;
            }
            self.group.signal(signal);
        }
        // Nothing can keep a process after SIGKILL but the kernel, and then waiting longer does not help.
        let _ = tokio::time::timeout(CLOSE_STEP, self.child.wait()).await;
        false
    }

    /// Writes everything. Returns false if the channel is closed.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        let Some(input) = &mut self.input else {
            return false;
        };
        let is_written = matches!(
            tokio::time::timeout(START_LIMIT, input.write_all(bytes)).await,
            Ok(Ok(()))
        );
        if !is_written {
            self.input = None;
        }
        is_written
    }
}

/// One stream of a channel.
struct Side<P> {
    pipe: PipeReader<P>,
    scanner: Scanner,
    items: VecDeque<Item>,
    found: Vec<Item>,
    is_input_forwarded: bool,
}

impl<P: AsyncRead + std::os::fd::AsFd + Unpin> Side<P> {
    fn new(pipe: P, token: &Token) -> Self {
        Self {
            pipe: PipeReader::new(pipe),
            scanner: Scanner::new(token),
            items: VecDeque::new(),
            found: Vec::new(),
            is_input_forwarded: false,
        }
    }

    /// Returns the next item; `None` at the end of the stream and after an invalid mark. Cancel-safe.
    async fn item(&mut self) -> Option<Item> {
        loop {
            match self.items.pop_front() {
                // It comes at any time between the start and the end of a command.
                Some(Item::Mark(Mark::InputForwarded)) => self.is_input_forwarded = true,
                Some(item) => return Some(item),
                None => {
                    let bytes = self.pipe.read().await?;
                    self.scanner.push(bytes, &mut self.found).ok()?;
                    self.items.extend(self.found.drain(..));
                }
            }
        }
    }

    /// Reads as many marks as expected. Fails unless they and the output between them are the expected ones.
    async fn expect(&mut self, output: &[u8], marks: &[Mark]) -> Result<(), OpenError> {
        let (mut seen_output, mut seen_marks) = (Vec::new(), Vec::new());
        while seen_marks.len() < marks.len() && seen_output.len() <= output.len() {
            match self.item().await {
                Some(Item::Output(bytes)) => seen_output.extend_from_slice(&bytes),
                Some(Item::Mark(mark)) => seen_marks.push(mark),
                None => return Err(OpenError::Broken("orbctl exited")),
            }
        }
        if seen_output == output && seen_marks == marks {
            Ok(())
        } else {
            Err(OpenError::Altered)
        }
    }

    /// Copies a command's output until the guest reports the end of the stream. Returns the status of that report; `None` if the
    /// channel broke.
    async fn copy(
        &mut self,
        stream: Stream,
        writer: &spool::Writer,
        progress: &Progress,
        report: &watch::Sender<Option<Result<i32, ()>>>,
        whole: &watch::Sender<u8>,
    ) -> Option<i32> {
        loop {
            match self.item().await {
                Some(Item::Output(bytes)) => {
                    progress
                        .read
                        .fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
                    put(writer, stream, bytes, progress).await;
                }
                Some(Item::Mark(Mark::Ended(status))) => {
                    report.send_replace(Some(Ok(status)));
                }
                Some(Item::Mark(Mark::OutputWhole)) => whole.send_modify(|streams| *streams += 1),
                Some(Item::Mark(Mark::StreamEnded { status })) => {
                    // The exit status precedes it on the same stream, unless the shell that waits for the command was killed.
                    if stream == Stream::Stdout {
                        report_broken(report);
                    }
                    return Some(status);
                }
                Some(Item::Mark(_)) | None => {
                    report_broken(report);
                    return None;
                }
            }
        }
    }
}

/// Reports that the exit status will not arrive, if it has not.
fn report_broken(report: &watch::Sender<Option<Result<i32, ()>>>) {
    report.send_if_modified(|end| {
        let is_first = end.is_none();
        end.get_or_insert(Err(()));
        is_first
    });
}

/// A command that runs in a channel.
struct ChannelRun<'a> {
    /// The exit status, or that the channel broke.
    ended: watch::Receiver<Option<Result<i32, ()>>>,
    input: &'a mut Option<ChildStdin>,
    child: &'a mut Child,
    group: &'a Group,
    killed_at: Option<Instant>,
    /// How many of the steps of [`GIVE_UP`] were taken.
    steps: usize,
    /// When `orbctl` exited.
    exited_at: Option<Instant>,
    given_up: &'a mut bool,
}

impl ChannelRun<'_> {
    fn give_up_step(&mut self) {
        *self.given_up = true;
        match self.steps {
            0 => *self.input = None,
            1 => self.group.signal(Signal::TERM),
            _ => self.group.signal(Signal::KILL),
        }
        self.steps += 1;
    }
}

/// What a waiting [`ChannelRun`] observes.
enum Observed {
    Status(i32),
    Broken,
    Exited,
    StepDue,
}

impl Run for ChannelRun<'_> {
    async fn ended(&mut self) -> io::Result<Ending> {
        loop {
            let step_at = self.killed_at.and_then(|at| Some(at + *GIVE_UP.get(self.steps)?));
            // What `orbctl` passed on before it exited may still be in the pipes.
            let read_until = self.exited_at.map(|at| at + DRAIN_LIMIT);
            let observed = tokio::select! {
                biased;
                end = self.ended.wait_for(Option::is_some) => match end.map(|end| *end) {
                    Ok(Some(Ok(status))) => Observed::Status(status),
                    Ok(_) | Err(_) => Observed::Broken,
                },
                () = sleep_until(step_at) => Observed::StepDue,
                () = sleep_until(read_until) => Observed::Broken,
                _ = self.child.wait(), if self.exited_at.is_none() => Observed::Exited,
            };
            match observed {
                Observed::Status(status) => return Ok(Ending::Exited(status)),
                Observed::StepDue => self.give_up_step(),
                // The input stays open while the rest is read: its end would end the command, and that would look like an end of
                // its own.
                Observed::Exited => self.exited_at = Some(Moment::now().instant),
                Observed::Broken if self.killed_at.is_some() => {
                    *self.given_up = true;
                    return Ok(Ending::Signalled(Signal::KILL.as_raw()));
                }
                Observed::Broken => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    fn signal(&mut self, signal: Signal) {
        if let Some(input) = self.input.as_ref() {
            // A few bytes fit into the pipe of a program that reads it. If not, the guest is given up after SIGKILL.
            let _ = rustix::io::write(input, frame::signal(signal));
        }
        if signal == Signal::KILL {
            self.killed_at.get_or_insert(Moment::now().instant);
        }
    }
}

//! Runs the installed `orbctl`: one process group per invocation; both output streams are drained; SIGTERM before SIGKILL.
//!
//! ```text
//!   spawn -> running ---- exits by itself ----------------------> drain the rest -> Exited, Signalled
//!               |                                                       ^
//!               | stop, time limit                                      |
//!               v                                                       |
//!            SIGTERM to the group -> exits, or grace -> SIGKILL to the group -> Stopped, TimedOut
//! ```
//!
//! One invocation is one future that spawns no tasks of its own. Draining continues in every state, so a child never blocks on a
//! full pipe, except when its spool applies backpressure.
//!
//! **Children that outlive orbd.** Every child may: it has its own process group and is not killed when the future is dropped.
//! But its pipes break when orbd exits, and most children die on their next write. A child that must keep running uses
//! [`Sink::Files`]: nothing is drained, and the files are read after the child has exited, even if other processes still have
//! them open.
//!
//! **Environment.** A child gets what [`super::environment`] computes, the variables of its call, and the marker. Its working
//! directory is the user's home, never a folder that macOS protects.
//!
//! **Descriptors.** Everything that std and tokio open is close-on-exec. On macOS this holds only because a single thread [starts
//! children](super::spawner).

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;

use super::environment;
use super::files::Files;
use super::spawner::Spawner;
use super::supervise::{Limits, Progress, Run, supervise};
use super::{
    Captured, Completion, Input, Invocation, OPENING_MAX, Runner, Sink, SpawnError, Started, TAIL_MAX,
};
use crate::clock::Moment;
use crate::job::Ending;
use crate::spool::{self, Stream};
use crate::sys::{self, ChildIdentity};
use orbd_host::locate::{LocateError, OrbctlLocator};
use orbd_host::run_command::Call;

/// Capacity that a pipe gets once a child has filled it, on systems where the capacity can be set: the child keeps writing while
/// orbd processes what it has read, and fewer context switches move the same amount.
const PIPE_WIDE: usize = 1024 * 1024;

/// Default capacity of a pipe. A read of this size means that the pipe was full.
const PIPE_FULL: usize = 64 * 1024;

/// Read buffers start small, because most commands print little, and grow while reads fill them. A pipe with much data then needs
/// fewer reads.
const READ_MIN: usize = 8 * 1024;
const READ_MAX: usize = 256 * 1024;

/// Reads up to this size are copied out of the buffer, so that a few retained bytes do not keep a whole buffer alive.
const COPY_MAX: usize = 2 * 1024;

/// The installed `orbctl`.
pub struct Installed {
    /// A blocking mutex: it is held only for a few calls of `stat`.
    locator: Mutex<OrbctlLocator>,
    home: PathBuf,
    environment: Vec<(OsString, OsString)>,
    spawner: Spawner,
    on_spawn: Box<dyn Fn() + Send + Sync>,
}

impl Installed {
    /// Creates the runner. `home` is the user's home, `environment` that of the daemon.
    pub fn new(
        locator: OrbctlLocator,
        home: PathBuf,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        Self {
            locator: Mutex::new(locator),
            environment: environment::of_children(&home, environment),
            home,
            spawner: Spawner::default(),
            on_spawn: Box::new(|| {}),
        }
    }

    /// Calls `hook` once for each child that is started, before the child's end can be observed.
    #[must_use]
    pub fn on_spawn(self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            on_spawn: Box::new(hook),
            ..self
        }
    }

    /// Returns the program's path. If `orbctl` was not found before, searches again, so that orbd need not be restarted after
    /// OrbStack is installed.
    pub fn program(&self) -> Result<PathBuf, LocateError> {
        let mut locator = self.locator();
        let rediscovered = locator.rediscovered();
        let path = locator.path().map_err(LocateError::clone)?;
        if rediscovered {
            tracing::info!(orbctl = %path.display(), "found orbctl");
        }
        Ok(path.to_owned())
    }

    fn locator(&self) -> MutexGuard<'_, OrbctlLocator> {
        self.locator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child. Returns `None`, without starting one, if `stop` was cancelled before.
    #[expect(clippy::disallowed_methods, reason = "only this module starts orbctl")]
    pub(super) async fn spawn(
        &self,
        call: &Call,
        marker: &str,
        streams: Streams,
        stop: &CancellationToken,
    ) -> Result<Option<Child>, SpawnError> {
        let program = self.program()?;
        let mut command = Command::new(&program);
        command
            .args(&call.args)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .envs(call.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.home)
            // No `pre_exec`: it would make the standard library use fork instead of posix_spawn.
            .process_group(0)
            .stdin(streams.stdin)
            .stdout(streams.stdout)
            .stderr(streams.stderr);
        if !marker.is_empty() {
            command.env(sys::MARKER, marker);
        }
        let spawned = self.spawner.spawn(command, stop).await;
        let child = spawned.map_err(|error| explain(program, error))?;
        if child.is_some() {
            (self.on_spawn)();
        }
        Ok(child)
    }
}

/// Converts the error of a failed spawn.
fn explain(program: PathBuf, source: io::Error) -> SpawnError {
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::NOTDIR) if !program.exists() => SpawnError::NotFound { program },
        Some(Errno::ACCESS | Errno::PERM | Errno::NOEXEC | Errno::ISDIR) => {
            SpawnError::NotExecutable { program, source }
        }
        Some(Errno::TOOBIG) => SpawnError::Arguments { source },
        Some(Errno::AGAIN | Errno::MFILE | Errno::NFILE | Errno::NOMEM) => SpawnError::Exhausted { source },
        None if source.kind() == io::ErrorKind::InvalidInput => SpawnError::Arguments { source },
        _ => SpawnError::Other { program, source },
    }
}

/// A child's three standard streams.
pub(super) struct Streams {
    pub(super) stdin: Stdio,
    pub(super) stdout: Stdio,
    pub(super) stderr: Stdio,
}

/// Creates the output files for a [`Sink::Files`]. Returns `None` for other sinks, and if the files cannot be created: the output
/// then goes to pipes.
async fn files_for(sink: &Sink) -> Option<(Files, (Stdio, Stdio))> {
    let Sink::Files { dir, .. } = sink else {
        return None;
    };
    let made = Files::make(dir.clone()).await.and_then(|files| {
        let for_child = files.for_child()?;
        Ok((files, for_child))
    });
    made.inspect_err(|error| {
        tracing::warn!(folder = %dir.display(), %error, "cannot create files for orbctl's output, using pipes: the command may fail if orbd exits before it");
    })
    .ok()
}

impl Runner for Installed {
    fn is_replaced(&self) -> bool {
        let mut locator = self.locator();
        let is_replaced = locator.is_replaced();
        if is_replaced && let Ok(path) = locator.path() {
            tracing::info!(orbctl = %path.display(), "orbctl was replaced: discarding cached answers");
        }
        is_replaced
    }

    async fn run(&self, invocation: Invocation, stop: CancellationToken) -> Result<Completion, SpawnError> {
        let began = Moment::now().instant;
        if stop.is_cancelled() {
            return Ok(never_started());
        }
        let Invocation {
            call,
            stdin,
            output,
            run_timeout,
            grace,
            marker,
            started,
        } = invocation;
        // A disk that does not respond must not delay a stop.
        let Some(files) = stop.run_until_cancelled(files_for(&output)).await else {
            return Ok(never_started());
        };
        let (files, (to_stdout, to_stderr)) = match files {
            Some((files, for_child)) => (Some(files), for_child),
            None => (None, (Stdio::piped(), Stdio::piped())),
        };
        let streams = Streams {
            stdin: match &stdin {
                Input::Empty => Stdio::null(),
                Input::Bytes(_) | Input::Stream(_) => Stdio::piped(),
            },
            stdout: to_stdout,
            stderr: to_stderr,
        };
        let Some(mut child) = self.spawn(&call, &marker, streams, &stop).await? else {
            return Ok(never_started());
        };
        drop(call);
        if let Some(started) = started
            && let Some(child) = Group::of(&child).identity()
        {
            // Fails if the receiver was dropped, which is harmless.
            let _ = started.send(Started {
                child,
                in_channel: false,
            });
        }

        let progress = Progress::default();
        let fed = AtomicU64::new(0);
        let pipes = (child.stdout.take(), child.stderr.take());
        let (mut out, mut err) = match &output {
            Sink::Capture { max } | Sink::Files { max, .. } => (Kept::beginning(*max), Kept::end(*max)),
            Sink::Spool(_) => (Kept::end(TAIL_MAX), Kept::end(TAIL_MAX)),
        };
        let draining = async {
            // With files there are no pipes to drain.
            let (Some(out_pipe), Some(err_pipe)) = pipes else {
                return;
            };
            tokio::join!(
                drain(out_pipe, Stream::Stdout, &output, &mut out, &progress),
                drain(err_pipe, Stream::Stderr, &output, &mut err, &progress),
            );
        };
        let feeding = feed(child.stdin.take(), stdin, &fed);
        let limits = Limits {
            stop: &stop,
            run_timeout,
            grace,
        };
        let run = ChildRun {
            group: Group::of(&child),
            child,
        };
        let (ending, mut output_cut) = supervise(run, &limits, &progress, draining, feeding)
            .await
            .map_err(|source| SpawnError::Lost { source })?;
        let (mut stdout, mut stderr) = (out.into_captured(), err.into_captured());
        let mut bytes_out = progress.read.load(Ordering::Relaxed);
        if let (Some(files), Sink::Files { max, .. }) = (files, &output) {
            match files.read(*max).await {
                Ok(read) => (stdout, stderr) = read,
                Err(error) => {
                    // The ending is still known, and it is the most important part of the result.
                    tracing::warn!(%error, "cannot read back orbctl's output");
                    output_cut = true;
                }
            }
            bytes_out = stdout.total + stderr.total;
        }
        // Dropping the sink ends the spool before the completion is returned.
        drop(output);
        Ok(Completion {
            ending,
            stdout,
            stderr,
            took: since(began),
            bytes_in: fed.load(Ordering::Relaxed),
            bytes_out,
            output_cut,
        })
    }
}

/// Returns the completion of an invocation that was stopped before it started.
fn never_started() -> Completion {
    Completion {
        ending: Ending::Stopped,
        stdout: Captured::default(),
        stderr: Captured::default(),
        took: Duration::ZERO,
        bytes_in: 0,
        bytes_out: 0,
        output_cut: false,
    }
}

fn since(began: Instant) -> Duration {
    Moment::now().instant.saturating_duration_since(began)
}

fn ending_of(status: ExitStatus) -> Ending {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Exited(code),
        (None, signal) => Ending::Signalled(signal.unwrap_or_default()),
    }
}

/// A child and its process group.
struct ChildRun {
    child: Child,
    group: Group,
}

impl Run for ChildRun {
    async fn ended(&mut self) -> io::Result<Ending> {
        self.child.wait().await.map(ending_of)
    }

    fn signal(&mut self, signal: Signal) {
        self.group.signal(signal);
    }
}

/// The child's process group; its id equals the child's pid.
pub(super) struct Group(Pid);

impl Group {
    pub(super) fn of(child: &Child) -> Self {
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        Self(
            pid.and_then(Pid::from_raw)
                .expect("a child that was not waited for has an id"),
        )
    }

    pub(super) fn identity(&self) -> Option<ChildIdentity> {
        let pid = u32::try_from(self.0.as_raw_nonzero().get()).ok()?;
        let started = sys::process_identity(pid)?;
        Some(ChildIdentity { pid, started })
    }

    pub(super) fn signal(&self, signal: Signal) {
        // Fails if the group is already empty, which is the goal.
        let _ = kill_process_group(self.0, signal);
    }
}

/// Reads one stream to its end.
async fn drain(
    pipe: impl AsyncRead + AsFd + Unpin,
    stream: Stream,
    sink: &Sink,
    kept: &mut Kept,
    progress: &Progress,
) {
    let mut pipe = PipeReader::new(pipe);
    while let Some(bytes) = pipe.read().await {
        progress.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        kept.push(&bytes);
        if let Sink::Spool(writer) = sink {
            put(writer, stream, bytes, progress).await;
        }
    }
}

/// Writes output to the spool, and lets the supervisor know while the spool has no room.
pub(super) async fn put(writer: &spool::Writer, stream: Stream, bytes: Bytes, progress: &Progress) {
    if let Some(rest) = writer.put(stream, bytes) {
        progress.waits.fetch_add(1, Ordering::Relaxed);
        progress.waiting.fetch_add(1, Ordering::Relaxed);
        writer.write(stream, rest).await;
        progress.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads a child's pipe in few system calls, whatever its rate.
pub(super) struct PipeReader<P> {
    pipe: P,
    buffer: BytesMut,
    size: usize,
    is_wide: bool,
}

impl<P: AsyncRead + AsFd + Unpin> PipeReader<P> {
    pub(super) fn new(pipe: P) -> Self {
        Self {
            pipe,
            buffer: BytesMut::new(),
            size: READ_MIN,
            is_wide: false,
        }
    }

    /// Reads what is there, or waits for the next bytes. Returns `None` at the end of the stream, and after an error. Cancel-safe.
    pub(super) async fn read(&mut self) -> Option<Bytes> {
        if self.buffer.capacity() - self.buffer.len() < READ_MIN {
            self.buffer.reserve(self.size);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        let read = match self.pipe.read_buf(&mut self.buffer).await {
            // A read error is treated as end of file.
            Ok(0) | Err(_) => return None,
            Ok(read) => read,
        };
        if read == room {
            self.size = (self.size * 4).min(READ_MAX);
        }
        if read >= PIPE_FULL && !self.is_wide {
            self.is_wide = true;
            sys::widen_pipe(&self.pipe, PIPE_WIDE);
        }
        Some(if read <= COPY_MAX {
            let bytes = Bytes::copy_from_slice(&self.buffer);
            self.buffer.clear();
            bytes
        } else {
            self.buffer.split().freeze()
        })
    }
}

/// Writes the child's input and closes it. A child that stops reading is not an error; the rest is dropped.
async fn feed(pipe: Option<ChildStdin>, input: Input, fed: &AtomicU64) {
    let Some(mut pipe) = pipe else { return };
    match input {
        Input::Empty => {}
        Input::Bytes(bytes) => {
            feed_bytes(&mut pipe, &bytes, fed).await;
        }
        Input::Stream(mut pieces) => {
            while let Some(bytes) = pieces.recv().await {
                if !feed_bytes(&mut pipe, &bytes, fed).await {
                    return;
                }
            }
        }
    }
}

/// Writes all bytes. Returns whether the child still reads its input.
async fn feed_bytes(pipe: &mut ChildStdin, mut bytes: &[u8], fed: &AtomicU64) -> bool {
    while !bytes.is_empty() {
        match pipe.write(bytes).await {
            Ok(0) | Err(_) => return false,
            Ok(written) => {
                fed.fetch_add(written as u64, Ordering::Relaxed);
                bytes = &bytes[written..];
            }
        }
    }
    true
}

/// The part of one stream that goes into the completion.
struct Kept {
    end: End,
    max: usize,
    bytes: Vec<u8>,
    opening: Vec<u8>,
    total: u64,
}

enum End {
    Beginning,
    End,
}

impl Kept {
    fn beginning(max: usize) -> Self {
        Self::new(End::Beginning, max)
    }

    fn end(max: usize) -> Self {
        Self::new(End::End, max)
    }

    fn new(end: End, max: usize) -> Self {
        Self {
            end,
            max,
            bytes: Vec::new(),
            opening: Vec::new(),
            total: 0,
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let opening = bytes.len().min(OPENING_MAX - self.opening.len());
        self.opening.extend_from_slice(&bytes[..opening]);
        match self.end {
            End::Beginning => {
                let room = self.max - self.bytes.len();
                self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            End::End => {
                let last = &bytes[bytes.len().saturating_sub(self.max)..];
                // Trimmed only at twice the limit, so that many short lines do not each move the whole buffer.
                if self.bytes.len() + last.len() > self.max * 2 {
                    let excess = (self.bytes.len() + last.len()).saturating_sub(self.max);
                    self.bytes.drain(..excess.min(self.bytes.len()));
                }
                self.bytes.extend_from_slice(last);
            }
        }
    }

    fn into_captured(mut self) -> Captured {
        if let End::End = self.end {
            let excess = self.bytes.len().saturating_sub(self.max);
            self.bytes.drain(..excess);
        }
        Captured {
            bytes: self.bytes.into(),
            opening: self.opening.into(),
            total: self.total,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::sync::{mpsc, oneshot};

    use super::super::supervise::DRAIN_LIMIT;
    use super::*;
    use crate::spool::{Batch, Budget, Keep, Settings};

    /// A shell in place of `orbctl`.
    fn shell() -> Installed {
        let path = ("PATH".into(), "/usr/bin:/bin".into());
        Installed::new(OrbctlLocator::at("/bin/sh".into()), "/".into(), [path])
    }

    fn script(script: &str) -> Invocation {
        Invocation::new(
            vec!["-c".into(), script.into()],
            Sink::Capture { max: 1024 * 1024 },
        )
    }

    async fn run(invocation: Invocation) -> Completion {
        shell()
            .run(invocation, CancellationToken::new())
            .await
            .expect("a shell")
    }

    async fn check(text: &str, ending: Ending, stdout: &[u8], stderr: &[u8]) {
        let completion = run(script(text)).await;
        assert_eq!(completion.ending, ending, "{text}");
        assert_eq!(completion.stdout, Captured::whole(stdout.to_vec()), "{text}");
        assert_eq!(completion.stderr, Captured::whole(stderr.to_vec()), "{text}");
        assert_eq!(completion.bytes_out, (stdout.len() + stderr.len()) as u64);
        assert!(!completion.output_cut);
    }

    #[tokio::test]
    async fn exit_code_or_signal_of_a_child_is_reported() {
        check("true", Ending::Exited(0), b"", b"").await;
        check("exit 7", Ending::Exited(7), b"", b"").await;
        check(
            "echo out; echo err >&2; exit 255",
            Ending::Exited(255),
            b"out\n",
            b"err\n",
        )
        .await;
        check("kill -9 $$", Ending::Signalled(9), b"", b"").await;
        check("kill -TERM $$", Ending::Signalled(15), b"", b"").await;
    }

    #[tokio::test]
    async fn output_is_captured_byte_for_byte() {
        check(
            "printf '\\000\\377\\r\\n\\200'",
            Ending::Exited(0),
            b"\0\xff\r\n\x80",
            b"",
        )
        .await;
    }

    #[tokio::test]
    async fn input_is_empty_by_default() {
        check("cat; echo end", Ending::Exited(0), b"end\n", b"").await;
        let mut invocation = script("cat");
        invocation.stdin = Input::Bytes(Bytes::from_static(b"a\0b"));
        let completion = run(invocation).await;
        assert_eq!(&completion.stdout.bytes[..], b"a\0b");
        assert_eq!(completion.bytes_in, 3);
    }

    #[tokio::test]
    async fn streamed_input_ends_when_its_sender_is_dropped() {
        let (send, receive) = mpsc::channel(1);
        let mut invocation = script("cat");
        invocation.stdin = Input::Stream(receive);
        let running = tokio::spawn(run(invocation));
        for piece in [&b"one "[..], b"two"] {
            send.send(Bytes::from_static(piece)).await.expect("it reads");
        }
        drop(send);
        assert_eq!(&running.await.expect("no panic").stdout.bytes[..], b"one two");
    }

    #[tokio::test]
    async fn input_that_the_child_does_not_read_is_dropped() {
        let mut invocation = script("exit 3");
        invocation.stdin = Input::Bytes(vec![b'x'; 8 * 1024 * 1024].into());
        assert_eq!(run(invocation).await.ending, Ending::Exited(3));
        // The child closes its input but keeps running: it ends when a stop follows the send error.
        let (send, receive) = mpsc::channel(1);
        let mut invocation = script("exec <&-; echo closed; sleep 60");
        invocation.stdin = Input::Stream(receive);
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let stop = stop.clone();
            async move { shell().run(invocation, stop).await }
        });
        while send.send(vec![b'x'; 256 * 1024].into()).await.is_ok() {}
        stop.cancel();
        let completion = running.await.expect("no panic").expect("a shell");
        assert_eq!(completion.ending, Ending::Stopped);
    }

    /// Starts a script that prints `ready`, and stops it once that has arrived.
    async fn stopped_when_ready(mut invocation: Invocation) -> Completion {
        let dir = tempfile::tempdir().expect("a folder");
        let settings = Settings {
            dir: dir.path().into(),
            max: spool::MAX_MIN,
            keep: Keep::All,
        };
        let (writer, spool) = spool::spool(&settings, &Budget::new(u64::MAX));
        invocation.output = Sink::Spool(writer);
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let stop = stop.clone();
            async move { shell().run(invocation, stop).await }
        });
        assert!(matches!(spool.follow(0).next(1024).await, Ok(Batch::Chunks(_))));
        stop.cancel();
        running.await.expect("no panic").expect("a shell")
    }

    #[tokio::test]
    async fn stopped_child_gets_sigterm_first() {
        let completion = stopped_when_ready(script(
            "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done",
        ))
        .await;
        assert_eq!(completion.ending, Ending::Stopped);
        assert_eq!(&completion.stdout.bytes[..], b"ready\nbye\n");
        assert!(!completion.output_cut);
    }

    #[tokio::test]
    async fn child_that_ignores_sigterm_is_killed_after_the_grace_period() {
        let mut invocation = script("trap '' TERM; echo ready; while :; do sleep 0.01; done");
        invocation.grace = Duration::from_millis(50);
        let completion = stopped_when_ready(invocation).await;
        assert_eq!(completion.ending, Ending::Stopped);
        assert!(completion.took >= Duration::from_millis(50));
        assert!(!completion.output_cut, "its own children were killed with it");
    }

    #[tokio::test]
    async fn stopping_a_child_also_ends_its_grandchildren() {
        // The shell exits on SIGTERM; its background child ignores the signal and holds the stream.
        let mut invocation = script(
            "(trap '' TERM; while :; do sleep 0.01; done) & trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done",
        );
        invocation.marker = format!("grandchild-{}", std::process::id());
        let marker = invocation.marker.clone();
        let completion = stopped_when_ready(invocation).await;
        assert_eq!(completion.ending, Ending::Stopped);
        for left in sys::children_with_marker(&marker) {
            sys::gone(left).await;
        }
    }

    #[tokio::test]
    async fn child_that_exceeds_its_time_limit_times_out() {
        let mut invocation = script("sleep 60");
        invocation.run_timeout = Some(Duration::from_millis(20));
        assert_eq!(run(invocation).await.ending, Ending::TimedOut);
    }

    #[tokio::test]
    async fn grandchild_that_holds_a_stream_does_not_delay_the_completion() {
        let mut invocation = script("sleep 60 & echo mine; exit 4");
        invocation.marker = format!("holder-{}", std::process::id());
        let marker = invocation.marker.clone();
        let completion = run(invocation).await;
        assert_eq!(completion.ending, Ending::Exited(4));
        assert_eq!(&completion.stdout.bytes[..], b"mine\n");
        assert!(completion.output_cut);
        assert!(completion.took >= DRAIN_LIMIT && completion.took < DRAIN_LIMIT * 10);
        // orbd must not end it: OrbStack's own service may be started this way.
        let left = sys::children_with_marker(&marker);
        assert_eq!(left.len(), 1);
        for process in left {
            let pid = Pid::from_raw(i32::try_from(process.pid).expect("an id")).expect("not zero");
            rustix::process::kill_process(pid, Signal::KILL).expect("it lives");
        }
    }

    #[tokio::test]
    async fn sixteen_megabytes_arrive_on_both_streams_at_once() {
        let text = "head -c 16777216 /dev/zero >&2 & head -c 16777216 /dev/zero; wait";
        let completion = run(script(text)).await;
        assert_eq!(completion.ending, Ending::Exited(0));
        assert_eq!(completion.bytes_out, 2 * 16 * 1024 * 1024);
        for kept in [&completion.stdout, &completion.stderr] {
            assert_eq!(kept.total, 16 * 1024 * 1024);
            assert_eq!(kept.bytes.len(), 1024 * 1024);
        }
    }

    #[tokio::test]
    async fn child_that_does_not_read_its_input_can_be_stopped() {
        let mut invocation = script("echo ready; sleep 60");
        invocation.stdin = Input::Bytes(vec![b'x'; 8 * 1024 * 1024].into());
        let completion = stopped_when_ready(invocation).await;
        assert_eq!(completion.ending, Ending::Stopped);
        assert!(completion.bytes_in < 8 * 1024 * 1024);
    }

    #[tokio::test]
    async fn child_whose_output_cannot_be_written_runs_to_its_end() {
        let settings = Settings {
            dir: "/dev/null/spool".into(),
            max: 1 << 30,
            keep: Keep::All,
        };
        let (writer, spool) = spool::spool(&settings, &Budget::new(u64::MAX));
        let mut invocation = script("head -c 4194304 /dev/zero; echo last; exit 5");
        invocation.output = Sink::Spool(writer);
        let completion = run(invocation).await;
        assert_eq!(completion.ending, Ending::Exited(5));
        assert_eq!(completion.bytes_out, 4_194_309);
        assert!(!completion.output_cut);
        let mut reader = spool.reader(0);
        let Ok(Batch::Gap { from: 0, to }) = reader.next(1024).await else {
            panic!("no gap");
        };
        // The newest mebibyte, or less after the last write has failed.
        assert!(to >= 4_194_309 - (1 << 20));
        reader.seek(4_194_304);
        let batch = reader.next(1024).await;
        let Ok(Batch::Chunks(chunks)) = batch else {
            panic!("no output: {batch:?}");
        };
        assert_eq!(chunks[0].bytes, "last\n");
    }

    #[tokio::test]
    async fn slow_follower_does_not_cut_output_after_the_child_exits() {
        let dir = tempfile::tempdir().expect("a folder");
        let settings = Settings {
            dir: dir.path().into(),
            max: spool::MAX_MIN,
            keep: Keep::All,
        };
        let (writer, spool) = spool::spool(&settings, &Budget::new(u64::MAX));
        let mut follower = spool.follow(0);
        let (started, identity) = oneshot::channel();
        let mut invocation = script("exec head -c 300000 /dev/zero");
        invocation.output = Sink::Spool(writer);
        invocation.started = Some(started);
        let mut running = tokio::spawn(run(invocation));
        sys::gone(identity.await.expect("told").child).await;
        // The rest stays in the pipe until the follower reads.
        let early = tokio::time::timeout(DRAIN_LIMIT * 3, &mut running).await;
        assert!(early.is_err());
        let mut read = 0;
        while let Batch::Chunks(chunks) = follower.next(4096).await.expect("readable") {
            read += chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>();
        }
        assert_eq!(read, 300_000);
        assert!(!running.await.expect("no panic").output_cut);
    }

    #[tokio::test]
    async fn child_keeps_running_when_the_future_is_dropped() {
        let (started, identity) = oneshot::channel();
        let mut invocation = script("exec sleep 60");
        invocation.started = Some(started);
        let running = tokio::spawn(run(invocation));
        let identity = identity.await.expect("told").child;
        running.abort();
        assert!(running.await.expect_err("aborted").is_cancelled());
        assert!(sys::is_alive(&identity));
        let pid = Pid::from_raw(i32::try_from(identity.pid).expect("an id")).expect("not zero");
        rustix::process::kill_process(pid, Signal::KILL).expect("it lives");
        sys::gone(identity).await;
    }

    #[tokio::test]
    async fn child_that_writes_without_pause_can_be_stopped() {
        let mut invocation = script("exec cat /dev/zero");
        invocation.run_timeout = Some(Duration::from_millis(50));
        assert_eq!(run(invocation).await.ending, Ending::TimedOut);
    }

    /// Returns an invocation of a script whose output goes to files in `dir`.
    fn into_files(dir: &Path, text: &str) -> Invocation {
        let mut invocation = script(text);
        invocation.output = Sink::Files {
            dir: dir.into(),
            max: 1024 * 1024,
        };
        invocation
    }

    #[tokio::test]
    async fn files_and_pipes_give_the_same_completion() {
        let dir = tempfile::tempdir().expect("a folder");
        for text in [
            "true",
            "exit 7",
            "echo out; echo err >&2; exit 255",
            "printf '\\000\\377\\r\\n\\200'; kill -9 $$",
            "echo one >&2; echo two >&2; exec sh -c 'echo three >&2; echo four'",
            "i=0; while [ $i -lt 300 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done",
        ] {
            let (piped, filed) = (run(script(text)).await, run(into_files(dir.path(), text)).await);
            assert_eq!(filed.ending, piped.ending, "{text}");
            assert_eq!(filed.stdout, piped.stdout, "{text}");
            assert_eq!(filed.stderr, piped.stderr, "{text}");
            assert_eq!(filed.bytes_out, piped.bytes_out, "{text}");
            assert!(!filed.output_cut, "{text}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0);
    }

    #[tokio::test]
    async fn files_keep_the_beginning_of_stdout_and_the_end_of_stderr() {
        let dir = tempfile::tempdir().expect("a folder");
        let text = "say() { echo first; head -c 16777216 /dev/zero; echo last; }; say >&2 & say; wait";
        let completion = run(into_files(dir.path(), text)).await;
        let (out, err) = (&completion.stdout, &completion.stderr);
        let total = 16 * 1024 * 1024 + 11;
        assert_eq!((out.total, err.total), (total, total));
        assert_eq!((out.bytes.len(), err.bytes.len()), (1024 * 1024, 1024 * 1024));
        assert!(out.bytes.starts_with(b"first\n\0") && err.bytes.ends_with(b"\0last\n"));
        assert!(out.opening.starts_with(b"first\n") && err.opening.starts_with(b"first\n"));
        assert_eq!(completion.bytes_out, total * 2);
    }

    #[tokio::test]
    async fn child_with_files_can_be_stopped_killed_and_timed_out() {
        let dir = tempfile::tempdir().expect("a folder");
        let ready = dir.path().join("ready");
        let after = format!(
            "echo out; : > '{}'; while :; do sleep 0.01; done",
            ready.display()
        );
        for (trap, stdout) in [
            ("trap 'echo bye; exit 0' TERM", "out\nbye\n"),
            ("trap '' TERM", "out\n"),
        ] {
            let mut invocation = into_files(dir.path(), &format!("{trap}; {after}"));
            invocation.grace = Duration::from_millis(if stdout == "out\n" { 50 } else { 5000 });
            let stop = CancellationToken::new();
            let running = tokio::spawn({
                let stop = stop.clone();
                async move { shell().run(invocation, stop).await }
            });
            while !ready.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            std::fs::remove_file(&ready).expect("there");
            stop.cancel();
            let completion = running.await.expect("no panic").expect("a shell");
            assert_eq!(completion.ending, Ending::Stopped);
            assert_eq!(&completion.stdout.bytes[..], stdout.as_bytes());
        }
        let mut invocation = into_files(dir.path(), "echo out; exec sleep 60");
        invocation.run_timeout = Some(Duration::from_millis(20));
        assert_eq!(run(invocation).await.ending, Ending::TimedOut);
    }

    #[tokio::test]
    async fn grandchild_that_holds_a_file_does_not_delay_the_completion() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut invocation = into_files(dir.path(), "sleep 60 & echo mine; exit 4");
        invocation.marker = format!("file-holder-{}", std::process::id());
        let marker = invocation.marker.clone();
        let completion = run(invocation).await;
        assert_eq!(completion.ending, Ending::Exited(4));
        assert_eq!(&completion.stdout.bytes[..], b"mine\n");
        assert!(!completion.output_cut);
        for process in sys::children_with_marker(&marker) {
            sys::kill(process);
        }
    }

    #[tokio::test]
    async fn missing_folder_for_files_falls_back_to_pipes() {
        let completion = run(into_files(
            Path::new("/dev/null/spool"),
            "echo out; echo err >&2; exit 3",
        ))
        .await;
        assert_eq!(completion.ending, Ending::Exited(3));
        assert_eq!(completion.stdout, Captured::whole(&b"out\n"[..]));
        assert_eq!(completion.stderr, Captured::whole(&b"err\n"[..]));
        assert_eq!(completion.bytes_out, 8);
    }

    #[tokio::test]
    async fn child_with_files_keeps_writing_after_the_future_is_dropped() {
        let dir = tempfile::tempdir().expect("a folder");
        let (go, marker) = (dir.path().join("go"), dir.path().join("marker"));
        let (go_text, marker_text) = (go.display(), marker.display());
        let text = format!(
            "while [ ! -e '{go_text}' ]; do echo out; echo err >&2; sleep 0.01; done; \
             echo out; echo err >&2; : > '{marker_text}'"
        );
        let (started, identity) = oneshot::channel();
        let mut invocation = into_files(dir.path(), &text);
        invocation.started = Some(started);
        let running = tokio::spawn(run(invocation));
        let identity = identity.await.expect("told").child;
        running.abort();
        assert!(running.await.expect_err("aborted").is_cancelled());
        std::fs::write(&go, "").expect("written");
        sys::gone(identity).await;
        assert!(marker.exists(), "the script ran to its end");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_hundred_children_run_at_once() {
        let shell = std::sync::Arc::new(shell());
        let children: Vec<_> = (0..200)
            .map(|number| {
                let shell = std::sync::Arc::clone(&shell);
                tokio::spawn(async move {
                    let invocation = script(&format!("echo {number}; exit {}", number % 8));
                    shell.run(invocation, CancellationToken::new()).await
                })
            })
            .collect();
        for (number, child) in children.into_iter().enumerate() {
            let completion = child.await.expect("no panic").expect("a shell");
            assert_eq!(completion.stdout.bytes, format!("{number}\n"));
            assert_eq!(
                completion.ending,
                Ending::Exited(i32::try_from(number % 8).expect("small"))
            );
        }
    }

    #[tokio::test]
    async fn invocation_cancelled_before_its_start_never_starts() {
        let stop = CancellationToken::new();
        stop.cancel();
        let (started, identity) = oneshot::channel();
        let mut invocation = script("true");
        invocation.started = Some(started);
        let completion = shell().run(invocation, stop).await.expect("no child");
        assert_eq!(completion.ending, Ending::Stopped);
        assert!(identity.await.is_err());
    }

    #[tokio::test]
    async fn started_child_reports_its_identity_and_leads_its_own_group() {
        let (started, identity) = oneshot::channel();
        let mut invocation = script("echo $$; ps -o pgid= -p $$ 2>/dev/null || cut -d' ' -f5 /proc/$$/stat");
        invocation.started = Some(started);
        let completion = run(invocation).await;
        let identity = identity.await.expect("told").child;
        let text = String::from_utf8_lossy(&completion.stdout.bytes).into_owned();
        let ids: Vec<u32> = text
            .split_whitespace()
            .map(|id| id.parse().expect("an id"))
            .collect();
        assert_eq!(ids, [identity.pid, identity.pid]);
        assert!(!sys::is_alive(&identity));
    }

    #[tokio::test]
    async fn child_gets_the_computed_environment_its_call_variables_and_the_marker() {
        let given = [("HOME", "/missing"), ("SECRET", "x"), ("ORBCTL_SIM_HOME", "/sim")];
        let given = given.map(|(name, value)| (name.into(), value.into()));
        let call = Call {
            args: Vec::new(),
            env: vec![("ORBD_E0".into(), "value".into())],
        };
        let mut invocation = Invocation::new(call, Sink::Capture { max: 4096 });
        invocation.marker = "life-1".into();
        let installed = Installed::new(
            OrbctlLocator::at("/usr/bin/env".into()),
            "/".into(),
            given.clone(),
        );
        let completion = installed
            .run(invocation, CancellationToken::new())
            .await
            .expect("env");
        let text = String::from_utf8_lossy(&completion.stdout.bytes).into_owned();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        let mut expected: Vec<String> = environment::of_children("/".as_ref(), given)
            .into_iter()
            .map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect();
        expected.extend(["ORBD_E0=value".to_owned(), "ORBD_JOB=life-1".to_owned()]);
        expected.sort_unstable();
        assert_eq!(lines, expected);
    }

    #[tokio::test]
    async fn child_inherits_only_its_three_streams() {
        // Descriptors that the test runner left open are not part of this test.
        sys::seal_inherited_descriptors();
        let _ours = std::os::unix::net::UnixStream::pair().expect("a pair");
        let _tokios = tokio::net::UnixStream::pair().expect("a pair");
        let _pipe = tokio::net::unix::pipe::pipe().expect("a pipe");
        let completion = run(script("ls /proc/self/fd 2>/dev/null || ls /dev/fd")).await;
        // The fourth is the folder that `ls` reads.
        assert_eq!(&completion.stdout.bytes[..], b"0\n1\n2\n3\n");
        let dir = tempfile::tempdir().expect("a folder");
        let completion = run(into_files(
            dir.path(),
            "ls /proc/self/fd 2>/dev/null || ls /dev/fd",
        ))
        .await;
        assert_eq!(&completion.stdout.bytes[..], b"0\n1\n2\n3\n");
    }

    #[tokio::test]
    async fn failed_spawn_reports_the_cause() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("orbctl");
        let spawn = async |args: Vec<OsString>, program: &Path| {
            Installed::new(OrbctlLocator::at(program.into()), "/".into(), [])
                .run(
                    Invocation::new(args, Sink::Capture { max: 0 }),
                    CancellationToken::new(),
                )
                .await
                .expect_err("nothing to start")
        };
        assert!(matches!(spawn(vec![], &file).await, SpawnError::NotFound { .. }));
        std::fs::write(&file, "not a program").expect("written");
        assert!(matches!(
            spawn(vec![], &file).await,
            SpawnError::NotExecutable { .. }
        ));
        assert!(matches!(
            spawn(vec![], dir.path()).await,
            SpawnError::NotExecutable { .. }
        ));
        let long = "x".repeat(4 * 1024 * 1024).into();
        assert!(matches!(
            spawn(vec![long], Path::new("/bin/sh")).await,
            SpawnError::Arguments { .. }
        ));
        let nul = "a\0b".into();
        assert!(matches!(
            spawn(vec![nul], Path::new("/bin/sh")).await,
            SpawnError::Arguments { .. }
        ));
    }

    #[test]
    fn kept_holds_the_beginning_or_the_end_of_a_stream() {
        for size in [1, 3, 7, 100] {
            let all: Vec<u8> = (0..200).collect();
            let (mut beginning, mut end) = (Kept::beginning(10), Kept::end(10));
            for piece in all.chunks(size) {
                beginning.push(piece);
                end.push(piece);
            }
            let (beginning, end) = (beginning.into_captured(), end.into_captured());
            assert_eq!((&beginning.bytes[..], &end.bytes[..]), (&all[..10], &all[190..]));
            assert_eq!((beginning.total, &end.opening[..]), (200, &all[..]));
            assert!(!end.is_whole());
        }
    }

    /// Measurements, run by hand: `cargo test --release --lib -- --ignored --nocapture --test-threads 1 measure`.
    mod measure {
        use std::io::Read;

        use super::*;

        #[expect(clippy::disallowed_methods, reason = "the baseline of the comparison")]
        fn direct(program: &str) -> std::process::Command {
            std::process::Command::new(program)
        }

        fn median(mut times: Vec<Duration>) -> Duration {
            times.sort_unstable();
            times[times.len() / 2]
        }

        fn runtime() -> tokio::runtime::Runtime {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(2).enable_all().build().expect("a runtime")
        }

        #[test]
        #[ignore = "a measurement"]
        fn measure_overhead_of_an_invocation_over_a_spawn() {
            let runtime = runtime();
            let program = "/bin/true";
            let installed = std::sync::Arc::new(Installed::new(
                OrbctlLocator::at(program.into()),
                "/".into(),
                std::env::vars_os(),
            ));
            let dir = tempfile::tempdir().expect("a folder");
            let settings = Settings {
                dir: dir.path().into(),
                max: 1 << 30,
                keep: Keep::All,
            };
            let budget = Budget::new(1 << 30);
            let (mut plain, mut piped, mut ours, mut spooled) = (vec![], vec![], vec![], vec![]);
            for _ in 0..1000 {
                let began = Moment::now().instant;
                direct(program).spawn().expect("spawned").wait().expect("waited");
                plain.push(since(began));
                let began = Moment::now().instant;
                direct(program).output().expect("spawned");
                piped.push(since(began));
                for (is_spooled, times) in [(false, &mut ours), (true, &mut spooled)] {
                    let installed = std::sync::Arc::clone(&installed);
                    let (settings, budget) = (settings.clone(), budget.clone());
                    let job = async move {
                        let began = Moment::now().instant;
                        let (writer, _spool) = spool::spool(&settings, &budget);
                        let sink = if is_spooled {
                            Sink::Spool(writer)
                        } else {
                            Sink::Capture { max: 4096 }
                        };
                        let (started, _identity) = oneshot::channel();
                        let mut invocation = Invocation::new(vec![], sink);
                        invocation.marker = "life-1-1".into();
                        invocation.run_timeout = Some(Duration::from_secs(60));
                        invocation.started = is_spooled.then_some(started);
                        installed
                            .run(invocation, CancellationToken::new())
                            .await
                            .expect("ran");
                        since(began)
                    };
                    times.push(runtime.block_on(runtime.spawn(job)).expect("no panic"));
                }
            }
            println!(
                "p50 of 1000, spawn and wait of {program}: std {:?}, std with output {:?}",
                median(plain),
                median(piped)
            );
            println!(
                "  captured {:?}, spooled and identified {:?}",
                median(ours),
                median(spooled)
            );
        }

        const SIZE: usize = 1 << 30;
        const PRODUCER: &str = "exec dd if=/dev/zero bs=64k count=16384 2>/dev/null";

        fn say(what: &str, took: Duration) {
            let megabytes = SIZE as u128 / 1_000_000;
            println!("{what}: {} MB/s", megabytes * 1_000_000 / took.as_micros());
        }

        fn raw() -> Duration {
            let began = Moment::now().instant;
            let mut child = direct("/bin/sh")
                .args(["-c", PRODUCER])
                .stdout(Stdio::piped())
                .spawn()
                .expect("spawned");
            let mut pipe = child.stdout.take().expect("piped");
            let mut buffer = vec![0; 64 * 1024];
            let mut total = 0;
            loop {
                match pipe.read(&mut buffer).expect("read") {
                    0 => break,
                    read => total += read,
                }
            }
            child.wait().expect("waited");
            assert_eq!(total, SIZE);
            since(began)
        }

        /// Sends one gibibyte through a spool, either to one client over a socket that a separate thread reads, or without a
        /// client.
        async fn through(has_client: bool, keep: Keep) -> Duration {
            let dir = tempfile::tempdir().expect("a folder");
            let settings = Settings {
                dir: dir.path().into(),
                max: 2 << 30,
                keep,
            };
            let (writer, spool) = spool::spool(&settings, &Budget::new(2 << 30));
            let began = Moment::now().instant;
            let client = has_client.then(|| {
                let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
                ours.set_nonblocking(true).expect("set");
                let mut ours = tokio::net::UnixStream::from_std(ours).expect("registered");
                let mut reader = spool.follow(0);
                let thread = std::thread::spawn(move || {
                    let mut theirs = theirs;
                    let mut buffer = vec![0; 256 * 1024];
                    let mut total = 0;
                    loop {
                        match theirs.read(&mut buffer).expect("read") {
                            0 => return total,
                            read => total += read,
                        }
                    }
                });
                let sending = tokio::spawn(async move {
                    while let Batch::Chunks(chunks) = reader.next(256 * 1024).await.expect("readable") {
                        for chunk in chunks {
                            ours.write_all(&chunk.bytes).await.expect("sent");
                        }
                    }
                });
                (thread, sending)
            });
            let mut invocation = script(PRODUCER);
            invocation.output = Sink::Spool(writer);
            let running =
                tokio::spawn(async move { shell().run(invocation, CancellationToken::new()).await });
            let completion = running.await.expect("no panic").expect("ran");
            assert_eq!(completion.bytes_out, SIZE as u64);
            if let Some((thread, sending)) = client {
                sending.await.expect("no panic");
                let read = tokio::task::spawn_blocking(|| thread.join().expect("no panic"));
                assert_eq!(read.await.expect("no panic"), SIZE);
            }
            since(began)
        }

        fn thrice(what: &str, run: impl Fn() -> Duration) {
            for _ in 0..3 {
                say(what, run());
            }
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            println!(
                "{}",
                status
                    .lines()
                    .find(|line| line.starts_with("VmHWM"))
                    .unwrap_or_default()
            );
        }

        #[test]
        #[ignore = "a measurement"]
        fn measure_a_raw_pipe() {
            thrice("raw pipe", raw);
        }

        #[test]
        #[ignore = "a measurement"]
        fn measure_a_spool_without_a_client() {
            let runtime = runtime();
            thrice("no client", || runtime.block_on(through(false, Keep::All)));
        }

        #[test]
        #[ignore = "a measurement"]
        fn measure_a_spool_with_a_client() {
            let runtime = runtime();
            thrice("one client, all kept", || {
                runtime.block_on(through(true, Keep::All))
            });
        }

        #[test]
        #[ignore = "a measurement"]
        fn measure_a_spool_with_pass_through() {
            let runtime = runtime();
            thrice("one client, passed through", || {
                runtime.block_on(through(true, Keep::Unread))
            });
        }
    }
}

//! The helper: the process that has the store open, and the protocol between it and the daemon.
//!
//! The daemon never opens sled itself. When there are records to write or queries to answer, it starts its own binary with the hidden flag
//! `--metrics-store`, communicates with it over a socket pair (the helper's standard input), and ends it after a period without work. So a
//! store that panics, aborts, hangs or uses too much memory only costs a child process, and an idle daemon has none of sled's threads.
//!
//! Requests and responses alternate. Each is postcard with a u32le length prefix. The helper begins with its protocol version, so that the
//! daemon detects a replaced binary with another version before it opens the store. When the daemon dies, the helper reads end of file,
//! flushes and exits: a killed daemon loses only the records that it has not sent to the helper.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::query::{HistoryRequest, Summary, SummaryRequest};
use super::rollup::SummaryRow;
use super::store::{Bounds, Database, Limit, StoredPage, Trouble};

/// Version of the protocol. Increment it with every change of [`Request`], [`Response`] or the types in them.
const PROTOCOL: u32 = 1;

/// Maximum length of a received frame, in bytes. The longest frames are batches of records.
const FRAME_MAX: usize = 64 << 20;

/// Time limit for the helper's first message.
const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// Time that the helper has to exit after it has closed the store. orbd then kills it.
const END_LIMIT: Duration = Duration::from_secs(2);

/// How the helper is started.
#[derive(Debug, Clone)]
pub enum Launch {
    /// As a process that runs this program with these arguments. With them, the program must call [`serve_store`].
    Process {
        /// Absolute path of the program.
        program: PathBuf,
        /// Arguments of the program.
        args: Vec<OsString>,
    },
    /// As a thread of this process. Only for tests: failures of sled are not isolated, and sled's threads never end.
    Thread,
}

impl Launch {
    /// Returns how the running orbd binary starts itself as the helper.
    pub fn of_this_binary() -> io::Result<Self> {
        // On Linux this link leads to the running binary even after an upgrade has replaced the file.
        let program = if cfg!(target_os = "linux") {
            PathBuf::from("/proc/self/exe")
        } else {
            std::env::current_exe()?
        };
        Ok(Self::Process {
            program,
            args: vec!["--metrics-store".into()],
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Always the first request.
    Open {
        folder: Vec<u8>,
        bounds: Bounds,
        /// The least sequence number that an existing store must have reached; `None` for a new store.
        least_seq: Option<u64>,
        /// Whether to verify the store, because it was not closed in order.
        verify: bool,
        now_ms: u64,
    },
    Apply {
        first_seq: u64,
        records: Vec<Vec<u8>>,
        now_ms: u64,
    },
    Flush,
    Summary {
        request: SummaryRequest,
        now_ms: u64,
        limit: Duration,
    },
    Totals {
        limit: Duration,
    },
    History {
        request: HistoryRequest,
        limit: Duration,
    },
    /// Flush and exit.
    Close,
    #[cfg(test)]
    Misbehave(Misbehaviour),
}

#[cfg(test)]
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Misbehaviour {
    Panic,
    Abort,
    Hang,
}

impl Request {
    pub(super) fn open(
        folder: &Path,
        bounds: Bounds,
        least_seq: Option<u64>,
        verify: bool,
        now_ms: u64,
    ) -> Self {
        Self::Open {
            folder: folder.as_os_str().as_bytes().to_vec(),
            bounds,
            least_seq,
            verify,
            now_ms,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Response {
    Hello { protocol: u32 },
    Opened { next_seq: u64 },
    Done,
    Summary(Summary),
    Totals(Vec<SummaryRow>),
    History(StoredPage),
    Failed(Trouble),
}

/// Why a call to the helper failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("the store's helper did not answer in time")]
    TimedOut,
    #[error("the store's helper ended without an answer")]
    Gone(#[source] io::Error),
    #[error("{0}")]
    Trouble(Trouble),
}

/// A running helper. Dropping it kills it.
pub(super) struct Helper {
    stream: UnixStream,
    child: Option<Child>,
}

impl Helper {
    /// Starts a helper and waits for its first message.
    pub(super) fn start(launch: &Launch) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = match launch {
            Launch::Process { program, args } => {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "this runs orbd's own binary, not orbctl"
                )]
                let mut command = std::process::Command::new(program);
                command
                    .args(args)
                    // The helper needs no variables, and the daemon's environment may contain secrets.
                    .env_clear()
                    .stdin(Stdio::from(OwnedFd::from(theirs)))
                    .stdout(Stdio::null())
                    // The helper reports panics of sled as a response, so their text on stderr is not needed.
                    .stderr(Stdio::null())
                    .current_dir("/")
                    // Keeps Ctrl-C in the terminal of a foreground daemon from ending the helper.
                    .process_group(0);
                Some(command.spawn()?)
            }
            Launch::Thread => {
                std::thread::Builder::new()
                    .name("metrics-store".into())
                    .spawn(move || {
                        // Drops the stream and the database. The worker reads end of file, and the store is unlocked.
                        drop(serve(theirs));
                    })?;
                None
            }
        };
        let mut helper = Self { stream: ours, child };
        match helper.read(GREETING_LIMIT)? {
            Response::Hello { protocol: PROTOCOL } => Ok(helper),
            _ => Err(io::Error::other("the store's helper has another version")),
        }
    }

    /// Sends a request and waits for the response. After any error but [`CallError::Trouble`], the helper must not be used again.
    pub(super) fn call(&mut self, request: &Request, limit: Duration) -> Result<Response, CallError> {
        let answer = self
            .stream
            .set_write_timeout(Some(limit))
            .and_then(|()| write_frame(&mut self.stream, request))
            .and_then(|()| self.read(limit));
        match answer {
            Ok(Response::Failed(trouble)) => Err(CallError::Trouble(trouble)),
            Ok(response) => Ok(response),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(CallError::TimedOut)
            }
            Err(error) => Err(CallError::Gone(error)),
        }
    }

    fn read(&mut self, limit: Duration) -> io::Result<Response> {
        self.stream.set_read_timeout(Some(limit))?;
        read_frame(&mut self.stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Waits until the helper has exited after [`Request::Close`], and kills it after a timeout. Returns whether it exited by itself.
    pub(super) fn wait_for_end(mut self) -> bool {
        let ended = self.stream.set_read_timeout(Some(END_LIMIT)).is_ok()
            && matches!(self.stream.read(&mut [0]), Ok(0) | Err(_) if self.ended());
        if ended {
            self.child = None;
        }
        ended
    }

    fn ended(&mut self) -> bool {
        match &mut self.child {
            None => true,
            // If the helper has closed its socket, it is about to exit, so poll for a short time.
            Some(child) => {
                for _ in 0..50 {
                    if matches!(child.try_wait(), Ok(Some(_))) {
                        return true;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                false
            }
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // A helper thread reads end of file and ends, unless it hangs.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Serves a store over standard input until the daemon closes it or dies. This is all that the hidden flag `--metrics-store` does. Must be
/// called before the process starts another thread.
pub fn serve_store() -> io::Result<()> {
    let (served, database) = serve(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?));
    // The database is flushed. Dropping it can hang, and the end of the process releases it anyway.
    std::mem::forget(database);
    served
}

fn serve(mut stream: UnixStream) -> (io::Result<()>, Option<Database>) {
    let mut database = None;
    let served = serve_requests(&mut stream, &mut database);
    (served, database)
}

fn serve_requests(stream: &mut UnixStream, database: &mut Option<Database>) -> io::Result<()> {
    write_frame(stream, &Response::Hello { protocol: PROTOCOL })?;
    // Treats a read error like end of file: the daemon has died.
    while let Some(request) = read_frame::<Request>(stream).unwrap_or_default() {
        let closing = matches!(request, Request::Close);
        // `AssertUnwindSafe` is correct here: after a panic the database is not used again.
        match catch_unwind(AssertUnwindSafe(|| answer(database, request))) {
            Ok(response) => write_frame(stream, &response)?,
            Err(panic) => {
                std::mem::forget(database.take());
                let trouble = Trouble::Damaged(format!("the store panicked: {}", panic_message(&*panic)));
                return write_frame(stream, &Response::Failed(trouble));
            }
        }
        if closing {
            return Ok(());
        }
    }
    if let Some(open) = database {
        // The daemon has died, so the result cannot be reported.
        let _ = catch_unwind(AssertUnwindSafe(|| open.flush()));
    }
    Ok(())
}

fn answer(database: &mut Option<Database>, request: Request) -> Response {
    let done = |result: Result<(), Trouble>| result.map(|()| Response::Done);
    let result = match (request, database) {
        (
            Request::Open {
                folder,
                bounds,
                least_seq,
                verify,
                now_ms,
            },
            database,
        ) => Database::open(
            &PathBuf::from(OsString::from_vec(folder)),
            bounds,
            least_seq,
            now_ms,
        )
        .and_then(|opened| {
            if verify {
                opened.verify().map(|()| opened)
            } else {
                Ok(opened)
            }
        })
        .map(|opened| Response::Opened {
            next_seq: database.insert(opened).next_seq(),
        }),
        #[cfg(test)]
        (Request::Misbehave(how), _) => match how {
            Misbehaviour::Panic => panic!("requested by a test"),
            Misbehaviour::Abort => std::process::abort(),
            Misbehaviour::Hang => loop {
                std::thread::park();
            },
        },
        (_, None) => Err(Trouble::Unavailable("the store is not open".into())),
        (
            Request::Apply {
                first_seq,
                records,
                now_ms,
            },
            Some(database),
        ) => done(database.apply(first_seq, &records, now_ms)),
        (Request::Flush | Request::Close, Some(database)) => done(database.flush()),
        (
            Request::Summary {
                request,
                now_ms,
                limit,
            },
            Some(database),
        ) => database
            .summary(&request, now_ms, Limit::new(limit))
            .map(Response::Summary),
        (Request::Totals { limit }, Some(database)) => {
            database.totals(Limit::new(limit)).map(Response::Totals)
        }
        (Request::History { request, limit }, Some(database)) => database
            .history(&request, Limit::new(limit))
            .map(Response::History),
    };
    result.unwrap_or_else(Response::Failed)
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

fn write_frame<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let mut frame = postcard::to_extend(message, vec![0; 4]).map_err(io::Error::other)?;
    let length = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    stream.write_all(&frame)
}

/// Reads one message; `None` at end of file.
fn read_frame<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_MAX {
        return Err(io::Error::other("the frame is too long"));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame)?;
    postcard::from_bytes(&frame).map(Some).map_err(io::Error::other)
}

//! The state that survives a crash: job ids, accepted detached changes, and children in flight. One small append-only file.
//!
//! ```text
//! header: "orbd-journal 1\n\0", salt u32le, crc32 u32le (of the name and the salt)
//! entry:  crc32 u32le (of the name, the salt, the length and the body), salt u32le, length u32le, body (postcard of `StoredV1`)
//! ```
//!
//! **Writing.** [`Journal::append`] encodes the entry and calls `write` on the caller's thread, under a mutex held only for that.
//! This takes 1.5 us; handing the entry to another thread and back would take 30 to 60 us, and an exec may add 300 us in total.
//! When `append` returns, the kernel has the entry, which survives the death of this process. Only slow work, `fsync` and
//! compaction, runs on the journal's own thread.
//!
//! **Syncing.** `fsync` only matters for a loss of power, after which no child runs. So [`Entry::Starting`], [`Entry::Started`]
//! and [`Entry::Ended`] are appended without it, with one exception: the next instance starts an acknowledged [`AcceptedJob`]
//! again unless the journal shows that it has started, and a change must never be carried out twice. Hence both its `Accepted`
//! and its `Starting` use [`Journal::append_durable`].
//!
//! **Torn or damaged.** An incomplete last entry is a torn tail and is cut off. Anything else that cannot be parsed is damage:
//! the file is set aside under a new name, never deleted, and every intact entry is kept, whichever part of the file is damaged.
//! Accepted jobs from before the damage are [`Recovered::uncertain`], because the entry that records their start may be lost.
//!
//! **Not writable.** On a full or read-only disk [`Journal::append`] fails, and orbd runs on without it. Entries that could not
//! be written are kept in memory, and the thread tries to rewrite the whole journal every [`RETRY_PAUSE`]; [`Journal::problem`]
//! returns why it is incomplete.
//!
//! **Compaction.** When more than a mebibyte belongs to ended jobs, the thread writes the rest to a new file, syncs it, adds the
//! entries appended meanwhile, and renames it over the old file.

mod entry;
mod file;
mod replay;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use entry::{ENTRY_MAX, StoredV1, frame};
use file::{Located, Opened, header, name_aside, open_locked, replace, with_suffix, write_new};

use crate::clock::{Moment, unix_ms};
use crate::error_chain::error_chain;
use crate::job::JobId;
use crate::machine::MachineName;
use crate::operation::{Access, Class, Lane};

const MAGIC: &[u8; 16] = b"orbd-journal 1\n\0";
const HEADER: usize = MAGIC.len() + 8;
/// Number of ids that one entry reserves; a crash skips at most twice as many.
const ID_BLOCK: u64 = 1_000;
/// The file is compacted when it holds more than this many bytes about ended jobs, and more than three times as many as about
/// other jobs.
const GARBAGE_MAX: u64 = 1 << 20;
/// Pause between attempts to write the journal after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Maximum number of callers that wait for an fsync.
const WAITERS_MAX: usize = 4_096;

/// An event that must be known after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A detached change was accepted. Append it durably, then acknowledge it.
    Accepted(AcceptedJob),
    /// A child is about to be spawned. Append it before the spawn; durably if the job was `Accepted`.
    Starting(Starting),
    /// The child runs.
    Started {
        /// The job that the child belongs to.
        job: JobId,
        /// The child.
        process: Process,
        /// For a lease: the client's process; when it exits, the child is ended.
        owner: Option<Process>,
    },
    /// The job has ended; its earlier entries are no longer needed.
    Ended {
        /// The ended job.
        job: JobId,
    },
}

/// An accepted detached change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedJob {
    /// The job's id.
    pub job: JobId,
    /// The operation, in the caller's own versioned encoding.
    pub operation: Vec<u8>,
    /// Name of the client that submitted the job.
    pub client: String,
    /// Time of acceptance, Unix time in milliseconds.
    pub accepted_ms: u64,
    /// Limit on the time in the queue; `None` for the configured default.
    pub queue_timeout: Option<Duration>,
    /// Limit on the run time; `None` for no limit.
    pub run_timeout: Option<Duration>,
}

/// A job about to spawn its child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Starting {
    /// The job's id.
    pub job: JobId,
    /// Marker in the child's environment, by which it is found if orbd dies before [`Entry::Started`] is written.
    pub marker: String,
    /// Lanes that the job holds.
    pub lanes: Vec<(Lane, Access)>,
    /// Verb of the operation.
    pub verb: String,
    /// Main machine of the operation, if it has one.
    pub machine: Option<MachineName>,
    /// Class of the operation.
    pub class: Class,
    /// Whether the job continues when its client disconnects.
    pub detached: bool,
}

/// Identifies one process, even after its pid is reused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Start time, in a platform-specific encoding; compared for equality only.
    pub start_time: Vec<u8>,
}

/// A job whose child may still be alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// The job's state before the spawn.
    pub starting: Starting,
    /// The child; `None` if the previous instance died before it had journalled the child, which may or may not have been
    /// spawned.
    pub process: Option<Process>,
    /// For a lease whose child is known: the client's process that acquired it.
    pub owner: Option<Process>,
    /// The accepted job, if it is a detached change.
    pub accepted: Option<AcceptedJob>,
}

/// What the journal of the previous instance contains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// The next job id, greater than all ids used so far.
    pub next_id: u64,
    /// Accepted jobs that never started, ordered by id. The dispatcher queues them again.
    pub waiting: Vec<AcceptedJob>,
    /// Accepted jobs that may have started, because the file was damaged. They end with outcome unknown.
    pub uncertain: Vec<AcceptedJob>,
    /// Jobs whose child may be alive, ordered by id. Each stays in the journal until [`Entry::Ended`].
    pub in_flight: Vec<InFlight>,
    /// Whether the previous instance stopped in order with a complete journal. Otherwise children may be running that the journal
    /// does not name.
    pub clean: bool,
    /// Size in bytes of an incomplete last entry, which was removed.
    pub torn_bytes: u64,
    /// Where a damaged or foreign file was moved.
    pub set_aside: Option<PathBuf>,
}

impl Recovered {
    /// Returns whether every child that may be running is named here.
    pub fn names_every_child(&self) -> bool {
        self.clean && self.in_flight.iter().all(|found| found.process.is_some())
    }
}

/// An error of the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has locked the journal.
    #[error("{path} is in use by another orbd")]
    Locked {
        /// Path of the journal.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {doing} the journal {path}")]
    Io {
        /// The failed operation: a verb phrase that completes "cannot ... the journal".
        doing: &'static str,
        /// Path of the journal.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The entry exceeds the size limit.
    #[error("journal entry of {bytes} bytes exceeds the limit of {ENTRY_MAX}")]
    TooLarge {
        /// Length of the entry's body.
        bytes: usize,
    },
    /// Earlier entries could not be written and still cannot be.
    #[error("cannot write the journal {path}: {cause}")]
    Unwritable {
        /// Path of the journal.
        path: PathBuf,
        /// Error of the last attempt.
        cause: Arc<str>,
    },
    /// Too many callers are waiting for an fsync.
    #[error("too many entries are waiting for the disk")]
    Busy,
    /// The journal's thread has exited.
    #[error("the journal is closed")]
    Closed,
}

impl Entry {
    fn job(&self) -> JobId {
        match self {
            Self::Accepted(accepted) => accepted.job,
            Self::Starting(starting) => starting.job,
            Self::Started { job, .. } | Self::Ended { job } => *job,
        }
    }
}

/// The open journal. Dropping it leaves the file as after a crash; see [`Journal::close`] for an orderly end.
pub struct Journal {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("path", &self.shared.path)
            .finish_non_exhaustive()
    }
}

struct Shared {
    path: PathBuf,
    salt: u32,
    garbage_max: u64,
    writer: Mutex<Writer>,
    pending_work: Mutex<PendingWork>,
    woken: Condvar,
}

/// The file and the state of its contents.
struct Writer {
    /// `None` until the file can be created.
    file: Option<Arc<File>>,
    length: u64,
    /// Why the file is incomplete; `None` if it is complete.
    problem: Option<Arc<str>>,
    /// Jobs that have at least one entry that could not be written.
    unwritten: BTreeSet<JobId>,
    /// Name to keep the current file under when it is replaced; `None` if it need not be kept.
    aside: Option<PathBuf>,
    /// The frames of each job that has not ended.
    live: BTreeMap<JobId, Vec<u8>>,
    live_bytes: u64,
    next_id: u64,
    reserved_to: u64,
    /// No compaction before the file has this length; raised when a compaction fails.
    compact_at: u64,
    /// Entries appended since the running compaction copied the contents; `None` if none is running.
    during_compaction: Option<DuringCompaction>,
}

#[derive(Default)]
struct DuringCompaction {
    frames: Vec<u8>,
    durable: bool,
    /// Whether an entry could not be written and is therefore missing in the new file as well.
    incomplete: bool,
}

/// Work for the journal's thread.
#[derive(Default)]
struct PendingWork {
    /// Callers that wait for an fsync.
    waiters: Vec<oneshot::Sender<Result<(), Arc<io::Error>>>>,
    compact: bool,
    /// Time of the next attempt to write an incomplete journal.
    retry_at: Option<Instant>,
    closing: bool,
    closed: bool,
}

/// Whether an entry must survive a loss of power.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durability {
    Durable,
    Process,
}

impl Journal {
    /// Opens or creates the journal. Returns it with what the previous instance left in it. If the file was damaged, new ids
    /// start no lower than `now` in Unix seconds.
    pub fn open(path: &Path, now: SystemTime) -> Result<(Self, Recovered), JournalError> {
        Self::open_with(path, now, GARBAGE_MAX)
    }

    fn open_with(path: &Path, now: SystemTime, garbage_max: u64) -> Result<(Self, Recovered), JournalError> {
        if let Some(folder) = path.parent() {
            use std::os::unix::fs::DirBuilderExt;
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|source| JournalError::Io {
                    doing: "create the folder of",
                    path: path.to_owned(),
                    source,
                })?;
        }
        let located = open_locked(path)?;
        Self::open_located(path, located, now, garbage_max)
    }

    fn open_located(
        path: &Path,
        located: Located,
        now: SystemTime,
        garbage_max: u64,
    ) -> Result<(Self, Recovered), JournalError> {
        let io = |doing| {
            move |source| JournalError::Io {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        let unix_seconds = unix_ms(now) / 1000;
        let Opened {
            file,
            salt,
            replay,
            mut recovered,
            problem,
        } = Opened::read(path, located, unix_seconds).map_err(io("read"))?;
        // After damage, ids start above any count that can have been reached; without a file, at one.
        if replay.damaged {
            recovered.next_id = recovered.next_id.max(unix_seconds);
        }
        recovered.next_id = recovered.next_id.max(1);
        let next_id = recovered.next_id;
        let length = match &file {
            Some(file) => file.metadata().map_err(io("read"))?.len(),
            None => 0,
        };
        let live: BTreeMap<JobId, Vec<u8>> = replay
            .jobs
            .into_iter()
            .map(|(id, job)| (id, job.frames))
            .collect();
        let aside = problem
            .as_ref()
            .filter(|problem| problem.keeps_old)
            .map(|_| name_aside(path, unix_seconds));
        let problem: Option<Arc<str>> = problem.map(|problem| problem.error.to_string().into());
        let retry_at = problem.is_some().then(retry_time);
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            salt,
            garbage_max,
            writer: Mutex::new(Writer {
                file: file.map(Arc::new),
                length,
                problem,
                unwritten: BTreeSet::new(),
                aside,
                live_bytes: live.values().map(|frames| frames.len() as u64).sum(),
                live,
                next_id,
                reserved_to: next_id,
                compact_at: 0,
                during_compaction: None,
            }),
            pending_work: Mutex::new(PendingWork {
                retry_at,
                ..PendingWork::default()
            }),
            woken: Condvar::new(),
        });
        let thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || thread.run())
            .map_err(io("start the thread of"))?;
        Ok((Self { shared }, recovered))
    }

    /// Returns the next job id. Ids are reserved in blocks, ahead of need, so this rarely writes. It never fails: a write error
    /// is logged, and after a crash ids still start above every journalled id.
    pub fn next_id(&self) -> JobId {
        let mut writer = self.shared.writer();
        let id = writer.next_id;
        writer.next_id += 1;
        if writer.next_id + ID_BLOCK / 2 > writer.reserved_to {
            let up_to = writer.next_id + ID_BLOCK;
            let written = frame(self.shared.salt, &StoredV1::IdsReserved { up_to })
                .and_then(|frame| self.shared.write(&mut writer, &frame, Durability::Process));
            match written {
                Ok(()) => writer.reserved_to = up_to,
                Err(error) => self.shared.note_problem(&mut writer, &error_chain(&error)),
            }
            drop(writer);
            // The sync completes long before the first id of the block is used.
            drop(self.shared.synced());
        }
        JobId(id)
    }

    /// Writes an entry. On return it survives the death of this process, but not a loss of power.
    pub fn append(&self, entry: &Entry) -> Result<(), JournalError> {
        self.shared.append(entry, Durability::Process)
    }

    /// Writes an entry immediately, in the order of calls. The future completes once the entry survives a loss of power.
    pub fn append_durable(
        &self,
        entry: &Entry,
    ) -> Result<impl Future<Output = Result<(), JournalError>> + Send + use<>, JournalError> {
        self.shared.append(entry, Durability::Durable)?;
        let written = self.shared.synced();
        let path = self.shared.path.clone();
        Ok(async move { wait_for(written?, path).await })
    }

    /// Makes all later ids greater than this one.
    pub fn skip_past(&self, id: JobId) {
        let mut writer = self.shared.writer();
        writer.next_id = writer.next_id.max(id.0 + 1);
    }

    /// Returns why the journal is incomplete; `None` if it is complete.
    pub fn problem(&self) -> Option<Arc<str>> {
        self.shared.writer().problem.clone()
    }

    /// Returns whether entries of a job could not be written: after a crash the journal would not show that the job was running.
    pub fn is_unwritten(&self, job: JobId) -> bool {
        self.shared.writer().unwritten.contains(&job)
    }

    /// Records that this instance stops in order, and waits until that survives a loss of power, for at most `limit`.
    pub async fn close(self, limit: Duration) -> Result<(), JournalError> {
        // The process may exit even on a timeout: the entry is already written.
        tokio::time::timeout(limit, self.write_end())
            .await
            .unwrap_or(Ok(()))
    }

    async fn write_end(&self) -> Result<(), JournalError> {
        let path = || self.shared.path.clone();
        if self.problem().is_some() {
            self.shared.pending_work().compact = true;
            wait_for(self.shared.synced()?, path()).await?;
        }
        if let Some(cause) = self.problem() {
            return Err(JournalError::Unwritable { path: path(), cause });
        }
        let answer = {
            let mut writer = self.shared.writer();
            let next_id = writer.next_id;
            let frame = frame(self.shared.salt, &StoredV1::Closed { next_id })?;
            self.shared.write(&mut writer, &frame, Durability::Durable)?;
            drop(writer);
            self.shared.synced()?
        };
        wait_for(answer, path()).await
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.pending_work().closing = true;
        self.shared.woken.notify_one();
    }
}

async fn wait_for(
    answer: oneshot::Receiver<Result<(), Arc<io::Error>>>,
    path: PathBuf,
) -> Result<(), JournalError> {
    match answer.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(JournalError::Io {
            doing: "sync",
            path,
            source: io::Error::new(error.kind(), error),
        }),
        Err(_) => Err(JournalError::Closed),
    }
}

impl Shared {
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending_work(&self) -> MutexGuard<'_, PendingWork> {
        self.pending_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, entry: &Entry, durability: Durability) -> Result<(), JournalError> {
        let frame = frame(self.salt, &StoredV1::from(entry))?;
        let id = entry.job();
        let mut writer = self.writer();
        let written = self.write(&mut writer, &frame, durability);
        if let Err(error) = &written {
            if matches!(entry, Entry::Accepted(_)) {
                // The job is refused, so there is nothing to keep.
                return written;
            }
            if !matches!(entry, Entry::Ended { .. }) {
                writer.unwritten.insert(id);
            }
            self.note_problem(&mut writer, &error_chain(error));
        }
        match entry {
            Entry::Accepted(_) | Entry::Starting(_) => {
                writer.live_bytes += frame.len() as u64;
                writer.live.entry(id).or_default().extend_from_slice(&frame);
            }
            Entry::Started { .. } => {
                if let Some(frames) = writer.live.get_mut(&id) {
                    frames.extend_from_slice(&frame);
                    writer.live_bytes += frame.len() as u64;
                }
            }
            Entry::Ended { .. } => {
                writer.unwritten.remove(&id);
                if let Some(frames) = writer.live.remove(&id) {
                    writer.live_bytes -= frames.len() as u64;
                }
            }
        }
        let garbage = writer.length.saturating_sub(writer.live_bytes);
        let compact = garbage > self.garbage_max
            && garbage > 3 * writer.live_bytes
            && writer.length > writer.compact_at
            && writer.during_compaction.is_none();
        drop(writer);
        if compact {
            let mut pending_work = self.pending_work();
            if !pending_work.compact {
                pending_work.compact = true;
                self.woken.notify_one();
            }
        }
        written
    }

    /// Writes one frame completely or not at all.
    fn write(&self, writer: &mut Writer, frame: &[u8], durability: Durability) -> Result<(), JournalError> {
        let io = |source| JournalError::Io {
            doing: "write",
            path: self.path.clone(),
            source,
        };
        let Some(file) = &writer.file else {
            return Err(io(io::ErrorKind::NotFound.into()));
        };
        if let Err(source) = (&**file).write_all(frame) {
            // Part of the frame may have been written, and no entry may follow an incomplete one.
            if file.metadata().is_ok_and(|file| file.len() > writer.length)
                && let Err(error) = file.set_len(writer.length)
            {
                tracing::error!(path = %self.path.display(), %error, "cannot remove an incomplete journal entry");
            }
            return Err(io(source));
        }
        writer.length += frame.len() as u64;
        if let Some(during_compaction) = &mut writer.during_compaction {
            during_compaction.frames.extend_from_slice(frame);
            during_compaction.durable |= durability == Durability::Durable;
        }
        Ok(())
    }

    /// Records that an entry is missing in the file, and has the thread rewrite the journal. Only the first problem is logged.
    fn note_problem(&self, writer: &mut Writer, cause: &str) {
        if writer.problem.is_none() {
            tracing::error!(
                path = %self.path.display(),
                cause,
                "cannot write the journal: new detached changes are refused, other jobs run without an entry"
            );
            self.pending_work().retry_at = Some(retry_time());
            self.woken.notify_one();
        }
        if let Some(during_compaction) = &mut writer.during_compaction {
            during_compaction.incomplete = true;
        }
        writer.problem = Some(cause.into());
    }

    /// Requests an fsync, by the thread, of everything written so far.
    fn synced(&self) -> Result<oneshot::Receiver<Result<(), Arc<io::Error>>>, JournalError> {
        let (done, answer) = oneshot::channel();
        let mut pending_work = self.pending_work();
        if pending_work.closed {
            return Err(JournalError::Closed);
        }
        if pending_work.waiters.len() >= WAITERS_MAX {
            return Err(JournalError::Busy);
        }
        pending_work.waiters.push(done);
        drop(pending_work);
        self.woken.notify_one();
        Ok(answer)
    }

    /// Main loop of the thread: does pending work until the journal is dropped. All waiting callers share one fsync.
    fn run(&self) {
        loop {
            let mut pending_work = self.pending_work();
            while pending_work.waiters.is_empty() && !pending_work.compact && !pending_work.closing {
                let now = Moment::now().instant;
                pending_work = match pending_work.retry_at {
                    None => self
                        .woken
                        .wait(pending_work)
                        .unwrap_or_else(PoisonError::into_inner),
                    Some(at) if at <= now => {
                        pending_work.compact = true;
                        pending_work
                    }
                    Some(at) => {
                        self.woken
                            .wait_timeout(pending_work, at - now)
                            .unwrap_or_else(PoisonError::into_inner)
                            .0
                    }
                };
            }
            let retry_at = pending_work.retry_at;
            let todo = std::mem::take(&mut *pending_work);
            pending_work.retry_at = retry_at;
            pending_work.closed = todo.closing;
            drop(pending_work);
            if todo.compact {
                self.compact_or_retry();
            }
            if !todo.waiters.is_empty() {
                let file = self.writer().file.clone();
                let synced = match &file {
                    Some(file) => file.sync_data(),
                    None => Err(io::ErrorKind::NotFound.into()),
                };
                let result = synced.map_err(Arc::new);
                if let Err(error) = &result {
                    self.note_problem(&mut self.writer(), &error.to_string());
                }
                for waiter in todo.waiters {
                    // Fails if the caller no longer waits, which is harmless.
                    let _ = waiter.send(result.clone());
                }
            }
            if todo.closing {
                return;
            }
        }
    }

    /// Compacts the file. If that fails, the file stays as it is; if the journal is incomplete, another attempt is scheduled.
    fn compact_or_retry(&self) {
        let had_problem = self.writer().problem.is_some();
        let result = self.compact();
        let mut writer = self.writer();
        let is_complete = writer.problem.is_none();
        if result.is_err() {
            writer.during_compaction = None;
            writer.compact_at = writer.length * 2;
        }
        self.pending_work().retry_at = (!is_complete).then(retry_time);
        drop(writer);
        match result {
            Ok(()) if had_problem && is_complete => {
                tracing::info!(path = %self.path.display(), "the journal is writable and complete again");
            }
            Ok(()) => {}
            Err(error) => {
                let _ = fs::remove_file(self.new_path());
                if is_complete {
                    tracing::error!(path = %self.path.display(), %error, "cannot compact the journal");
                }
            }
        }
    }

    fn new_path(&self) -> PathBuf {
        with_suffix(&self.path, ".new")
    }

    fn compact(&self) -> io::Result<()> {
        let mut contents = header(self.salt);
        let reserved_to = {
            let mut writer = self.writer();
            let up_to = writer.reserved_to.max(writer.next_id + ID_BLOCK);
            contents.extend(frame(self.salt, &StoredV1::IdsReserved { up_to }).map_err(io::Error::other)?);
            contents.extend(writer.live.values().flatten());
            writer.during_compaction = Some(DuringCompaction::default());
            up_to
        };
        let mut file = write_new(&self.new_path(), &contents)?;
        let mut length = contents.len() as u64;
        let mut incomplete = false;
        // Durable entries are rare. One that was appended meanwhile must be on disk before the old file is replaced.
        let mut rounds = 0;
        loop {
            let mut writer = self.writer();
            let during_compaction = writer
                .during_compaction
                .replace(DuringCompaction::default())
                .unwrap_or_default();
            incomplete |= during_compaction.incomplete;
            if during_compaction.durable && rounds < 3 {
                drop(writer);
                file.write_all(&during_compaction.frames)?;
                file.sync_data()?;
                length += during_compaction.frames.len() as u64;
                rounds += 1;
                continue;
            }
            file.write_all(&during_compaction.frames)?;
            if during_compaction.durable {
                file.sync_data()?;
            }
            length += during_compaction.frames.len() as u64;
            replace(&self.path, writer.aside.as_deref())?;
            writer.aside = None;
            writer.file = Some(Arc::new(file));
            writer.length = length;
            writer.during_compaction = None;
            writer.compact_at = 0;
            writer.reserved_to = writer.reserved_to.max(reserved_to);
            if !incomplete {
                writer.problem = None;
                writer.unwritten.clear();
            }
            return Ok(());
        }
    }
}

/// Returns the time of the next attempt to write an incomplete journal.
fn retry_time() -> Instant {
    Moment::now().instant + RETRY_PAUSE
}

#[cfg(test)]
mod tests;

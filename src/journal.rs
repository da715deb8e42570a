//! What must survive a crash: job ids, accepted detached changes, and the children in flight. One small append-only file.
//!
//! ```text
//! header: "orbd-journal 1\n\0", salt u32le
//! entry:  crc32 u32le (of salt, length and body), length u32le, body (postcard of `StoredV1`)
//! ```
//!
//! **Who writes.** [`Journal::append`] encodes and calls `write` in the caller's thread, under a mutex that is held for just
//! that: it takes 1.5 us here, where a hop to a thread and back takes 30 to 60, and an exec has 300 to spend in all. When it
//! returns, the entry is in the kernel's hands and survives the death of this process. Only what takes long, `fsync` and
//! compaction, is done by the journal's own thread.
//!
//! **What is synced.** `fsync` matters for a loss of power alone, after which no child lives. So [`Entry::Starting`], [`Entry::Started`] and
//! [`Entry::Ended`] are appended without, with one exception: an [`AcceptedJob`] that was acknowledged is started again by the next
//! life unless it is known to have started, and a change is never carried out twice. Hence both its `Accepted` and its `Starting` go
//! through [`Journal::append_durable`].
//!
//! **Torn or damaged.** A last entry that ends too early is a torn tail and is cut off. Anything else
//! that cannot be read is damage: the file is set aside under a new name, never deleted; what can still be read is kept, and accepted jobs from before
//! the damage are [`Recovered::doubtful`], because the entry that says they ran may be what is missing.
//!
//! **Compaction.** When more than a mebibyte is about ended jobs, the thread writes the rest to a new file, syncs it, adds
//! what was appended meanwhile, and renames it over the old one.

mod entry;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use tokio::sync::oneshot;

use entry::{ENTRY_MAX, FRAME_HEADER, Said, StoredV1, frame, read_frame};

use crate::clock::unix_ms;
use crate::job::JobId;
use crate::machine::MachineName;
use crate::operation::{Access, Class, Lane};

const MAGIC: &[u8; 16] = b"orbd-journal 1\n\0";
const HEADER: usize = MAGIC.len() + 4;
/// So many ids are reserved with one entry; a crash skips at most twice as many.
const ID_BLOCK: u64 = 1_000;
/// The file is compacted when it holds so many bytes that nobody needs, and three times as many as somebody does.
const GARBAGE_MAX: u64 = 1 << 20;
/// At most so many callers wait for an fsync.
const WAITERS_MAX: usize = 4_096;

/// Something that must be known after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A detached change was accepted. Append it durably, then acknowledge it.
    Accepted(AcceptedJob),
    /// A child is about to be spawned. Append it before the spawn; durably if the job was `Accepted`.
    Starting(Starting),
    /// The child is there.
    Started {
        /// Whose child.
        job: JobId,
        /// Which one.
        process: Process,
        /// For a lease: the client's process, whose exit ends the child.
        owner: Option<Process>,
    },
    /// The job is over and nothing of it needs to be known any more.
    Ended {
        /// Which job.
        job: JobId,
    },
}

/// An accepted detached change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedJob {
    /// Its id.
    pub job: JobId,
    /// The operation, in versioned bytes of the caller's.
    pub operation: Vec<u8>,
    /// The name of the client that asked.
    pub client: String,
    /// When it was accepted, wall clock, milliseconds since 1970.
    pub accepted_ms: u64,
    /// How long it may wait.
    pub queue_timeout: Option<Duration>,
    /// How long it may run.
    pub run_timeout: Option<Duration>,
}

/// A job about to spawn its child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Starting {
    /// Its id.
    pub job: JobId,
    /// What the child can be told by if we die before [`Entry::Started`].
    pub marker: String,
    /// The lanes that it holds.
    pub lanes: Vec<(Lane, Access)>,
    /// The operation's verb.
    pub verb: String,
    /// The machine that it is chiefly about.
    pub machine: Option<MachineName>,
    /// The operation's class.
    pub class: Class,
    /// Whether it outlives its client.
    pub detached: bool,
}

/// One process, told from a later one with the same pid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id, also that of its group.
    pub pid: u32,
    /// When it started, in whatever bytes the platform's way of asking gives.
    pub start_time: Vec<u8>,
}

/// A job whose child may still be alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// What was known before the spawn.
    pub starting: Starting,
    /// The child; `None` when we died between the spawn and its entry, or before the spawn.
    pub process: Option<Process>,
    /// For a lease whose child is known: the client's process that asked for it.
    pub owner: Option<Process>,
    /// What was accepted, if it was a detached change.
    pub accepted: Option<AcceptedJob>,
}

/// What the previous life left behind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// The next job id, greater than any ever used.
    pub next_id: u64,
    /// Accepted jobs that never started, in order of id: to be queued again.
    pub waiting: Vec<AcceptedJob>,
    /// Accepted jobs that may have started, because the file was damaged: to be ended as unknown.
    pub doubtful: Vec<AcceptedJob>,
    /// Jobs whose child may be alive, in order of id. Each stays on record until [`Entry::Ended`].
    pub in_flight: Vec<InFlight>,
    /// Whether the previous life ended in order, or there was none.
    pub clean: bool,
    /// Bytes of an entry that was cut short, now gone.
    pub torn_bytes: u64,
    /// Where a damaged or foreign file was put.
    pub set_aside: Option<PathBuf>,
}

/// Why the journal could not do something.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it.
    #[error("{path} is in use by another orbd")]
    Locked {
        /// The journal.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {doing} the journal {path}")]
    Io {
        /// What.
        doing: &'static str,
        /// The journal.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The entry is longer than any can be.
    #[error("a journal entry of {bytes} bytes is longer than {ENTRY_MAX}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Too many callers wait for the disk.
    #[error("too many entries wait for the disk")]
    Busy,
    /// The journal's thread is gone.
    #[error("the journal is closed")]
    Closed,
}

/// Says whether what is unreadable up to the end of the file is an entry that was being written when the process or the power went: it
/// ends too early, or in the zeros of a block that never reached the disk.
fn is_torn(tail: &[u8]) -> bool {
    let complete = tail
        .get(4..8)
        .and_then(|length| length.try_into().ok())
        .is_some_and(|length| u32::from_le_bytes(length) as usize <= tail.len() - FRAME_HEADER);
    !complete || tail.ends_with(&[0; 8])
}

/// What the entries so far come to.
#[derive(Default)]
struct Replay {
    jobs: BTreeMap<JobId, Job>,
    /// Ids below this are used or reserved.
    next_id: u64,
    closed: bool,
    damaged: bool,
    valid: u64,
}

#[derive(Default)]
struct Job {
    accepted: Option<AcceptedJob>,
    starting: Option<Starting>,
    process: Option<Process>,
    owner: Option<Process>,
    before_damage: bool,
    frames: Vec<u8>,
}

impl Replay {
    /// Reads the entries of a file without its header.
    fn read(salt: u32, bytes: &[u8]) -> Self {
        let mut replay = Self::default();
        let mut at = 0;
        while at < bytes.len() {
            if let Some((said, length)) = read_frame(salt, &bytes[at..]) {
                replay.take(said, &bytes[at..at + length]);
                at += length;
                replay.valid = at as u64;
                continue;
            }
            let next = (at + 1..bytes.len()).find(|next| read_frame(salt, &bytes[*next..]).is_some());
            if next.is_none() && is_torn(&bytes[at..]) {
                break;
            }
            replay.damaged = true;
            for job in replay.jobs.values_mut() {
                job.before_damage = true;
            }
            let Some(next) = next else { break };
            at = next;
        }
        replay
    }

    fn take(&mut self, said: Said, frame: &[u8]) {
        self.closed = false;
        let entry = match said {
            Said::IdsReserved(up_to) => {
                self.next_id = self.next_id.max(up_to);
                return;
            }
            Said::Closed(next_id) => {
                self.closed = true;
                // What was reserved and not used.
                self.next_id = next_id;
                return;
            }
            Said::Doubtful(id) => {
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.before_damage = true;
                    job.frames.extend_from_slice(frame);
                }
                return;
            }
            Said::Entry(entry) => entry,
        };
        let id = entry.job();
        self.next_id = self.next_id.max(id.0 + 1);
        let job = match entry {
            Entry::Ended { .. } => {
                self.jobs.remove(&id);
                return;
            }
            Entry::Accepted(accepted) => {
                let job = self.jobs.entry(id).or_default();
                job.accepted = Some(accepted);
                job
            }
            Entry::Starting(starting) => {
                let job = self.jobs.entry(id).or_default();
                job.starting = Some(starting);
                job
            }
            Entry::Started { process, owner, .. } => {
                let Some(job) = self.jobs.get_mut(&id) else { return };
                job.process = Some(process);
                job.owner = owner;
                job
            }
        };
        job.frames.extend_from_slice(frame);
    }

    /// Notes the doubts of this reading in the entries that are kept, for the next.
    fn write_doubts(&mut self, salt: u32) {
        for (id, job) in &mut self.jobs {
            if job.before_damage && job.starting.is_none() {
                let doubt = frame(salt, &StoredV1::Doubtful { job: id.0 }).expect("it is short");
                job.frames.extend(doubt);
            }
        }
    }

    fn recovered(&self, length: u64) -> Recovered {
        let mut recovered = Recovered {
            next_id: self.next_id,
            clean: self.closed && !self.damaged && self.valid == length,
            torn_bytes: length - self.valid,
            ..Recovered::default()
        };
        for job in self.jobs.values() {
            match (&job.starting, &job.accepted) {
                (Some(starting), accepted) => recovered.in_flight.push(InFlight {
                    starting: starting.clone(),
                    process: job.process.clone(),
                    owner: job.owner.clone(),
                    accepted: accepted.clone(),
                }),
                (None, Some(accepted)) if job.before_damage => recovered.doubtful.push(accepted.clone()),
                (None, Some(accepted)) => recovered.waiting.push(accepted.clone()),
                (None, None) => {}
            }
        }
        recovered
    }
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

/// A journal's file, read and mended.
struct Opened {
    file: File,
    salt: u32,
    replay: Replay,
    recovered: Recovered,
}

impl Opened {
    fn read(path: &Path, mut file: File, unix_seconds: u64) -> io::Result<Self> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let salt = match read_header(&bytes) {
            Header::Ours(salt) => salt,
            Header::Foreign => {
                let salt = new_salt();
                let (file, aside) = replace(path, &header(salt), unix_seconds)?;
                tracing::error!(
                    path = %path.display(),
                    set_aside = %aside.display(),
                    "the journal is not of this version: it was set aside and a new one is begun"
                );
                return Ok(Self {
                    file,
                    salt,
                    replay: Replay::default(),
                    recovered: Recovered {
                        set_aside: Some(aside),
                        ..Recovered::default()
                    },
                });
            }
            Header::Torn => {
                let salt = new_salt();
                file.set_len(0)?;
                file.write_all(&header(salt))?;
                return Ok(Self {
                    file,
                    salt,
                    replay: Replay::default(),
                    recovered: Recovered {
                        clean: bytes.is_empty(),
                        torn_bytes: bytes.len() as u64,
                        ..Recovered::default()
                    },
                });
            }
        };
        let entries = &bytes[HEADER..];
        let mut replay = Replay::read(salt, entries);
        let mut recovered = replay.recovered(entries.len() as u64);
        if replay.damaged {
            replay.write_doubts(salt);
            let mut rest = header(salt);
            rest.extend(replay.jobs.values().flat_map(|job| &job.frames));
            let (mended, aside) = replace(path, &rest, unix_seconds)?;
            tracing::error!(
                path = %path.display(),
                set_aside = %aside.display(),
                "the journal is damaged: it was set aside and what can be read is kept"
            );
            file = mended;
            recovered.set_aside = Some(aside);
        } else if recovered.torn_bytes > 0 {
            tracing::warn!(
                path = %path.display(),
                bytes = recovered.torn_bytes,
                "the journal's last entry was cut short: it is removed"
            );
            file.set_len(HEADER as u64 + replay.valid)?;
        }
        Ok(Self {
            file,
            salt,
            replay,
            recovered,
        })
    }
}

/// The open journal. Dropping it leaves the file as after a crash; see [`Journal::close`].
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
    errands: Mutex<Errands>,
    woken: Condvar,
}

/// The file and what is in it.
struct Writer {
    file: Arc<File>,
    length: u64,
    /// The frames of each job that is not over.
    live: BTreeMap<JobId, Vec<u8>>,
    live_bytes: u64,
    next_id: u64,
    reserved_to: u64,
    /// No compaction before the file is this long; grows when one fails.
    compact_at: u64,
    /// What was appended since a compaction took its picture.
    meanwhile: Option<Meanwhile>,
}

#[derive(Default)]
struct Meanwhile {
    frames: Vec<u8>,
    durable: bool,
}

/// What the thread is to do.
#[derive(Default)]
struct Errands {
    /// Callers who wait for an fsync.
    waiters: Vec<oneshot::Sender<Result<(), Arc<io::Error>>>>,
    compact: bool,
    closing: bool,
    closed: bool,
}

/// Whether an entry must survive a loss of power.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    Durable,
    Process,
}

impl Journal {
    /// Opens or makes the journal, and tells what the previous life left behind. `now` starts the ids when there was none.
    pub fn open(path: &Path, now: SystemTime) -> Result<(Self, Recovered), JournalError> {
        Self::open_with(path, now, GARBAGE_MAX)
    }

    fn open_with(path: &Path, now: SystemTime, garbage_max: u64) -> Result<(Self, Recovered), JournalError> {
        let io = |doing| {
            move |source| JournalError::Io {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        if let Some(folder) = path.parent() {
            use std::os::unix::fs::DirBuilderExt;
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(io("make the folder of"))?;
        }
        let unix_seconds = unix_ms(now) / 1000;
        let file = open_locked(path)?;
        let Opened {
            file,
            salt,
            replay,
            mut recovered,
        } = Opened::read(path, file, unix_seconds).map_err(io("read or mend"))?;
        // Without a trustworthy past, ids start above any count that can have been reached; without any past, at one.
        if recovered.set_aside.is_some() {
            recovered.next_id = recovered.next_id.max(unix_seconds);
        }
        recovered.next_id = recovered.next_id.max(1);
        let next_id = recovered.next_id;
        let length = file.metadata().map_err(io("read"))?.len();
        let live: BTreeMap<JobId, Vec<u8>> = replay
            .jobs
            .into_iter()
            .map(|(id, job)| (id, job.frames))
            .collect();
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            salt,
            garbage_max,
            writer: Mutex::new(Writer {
                file: Arc::new(file),
                length,
                live_bytes: live.values().map(|frames| frames.len() as u64).sum(),
                live,
                next_id,
                reserved_to: next_id,
                compact_at: 0,
                meanwhile: None,
            }),
            errands: Mutex::default(),
            woken: Condvar::new(),
        });
        let thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || thread.run())
            .map_err(io("start the thread of"))?;
        Ok((Self { shared }, recovered))
    }

    /// Returns the next job id. Ids are reserved in blocks, ahead of need, so this rarely writes and never fails: a
    /// disk that takes nothing is logged, and the ids after a crash still start above every id that was journalled.
    pub fn next_id(&self) -> JobId {
        let mut writer = self.shared.writer();
        let id = writer.next_id;
        writer.next_id += 1;
        if writer.next_id + ID_BLOCK / 2 > writer.reserved_to {
            let up_to = writer.next_id + ID_BLOCK;
            let written = frame(self.shared.salt, &StoredV1::IdsReserved { up_to })
                .and_then(|frame| self.shared.write(&mut writer, &frame, Care::Process));
            match written {
                Ok(()) => writer.reserved_to = up_to,
                Err(error) => tracing::error!(%error, "job ids cannot be reserved"),
            }
            drop(writer);
            // On disk long before the first id of the block is used.
            drop(self.shared.synced());
        }
        JobId(id)
    }

    /// Writes an entry. When this returns, it survives the death of this process, but not a loss of power.
    pub fn append(&self, entry: &Entry) -> Result<(), JournalError> {
        self.shared.append(entry, Care::Process)
    }

    /// Writes an entry at once, in the order of calls; the future ends when it would survive a loss of power.
    pub fn append_durable(
        &self,
        entry: &Entry,
    ) -> impl Future<Output = Result<(), JournalError>> + Send + use<> {
        let written = self
            .shared
            .append(entry, Care::Durable)
            .and_then(|()| self.shared.synced());
        let path = self.shared.path.clone();
        async move { wait_for(written?, path).await }
    }

    /// Notes that this life ends in order, and waits until that would survive a loss of power, at most `limit`.
    pub async fn close(self, limit: Duration) -> Result<(), JournalError> {
        let answer = {
            let mut writer = self.shared.writer();
            let next_id = writer.next_id;
            let frame = frame(self.shared.salt, &StoredV1::Closed { next_id })?;
            self.shared.write(&mut writer, &frame, Care::Durable)?;
            drop(writer);
            self.shared.synced()?
        };
        let path = self.shared.path.clone();
        // The process may go in any case: what was written is written.
        tokio::time::timeout(limit, wait_for(answer, path))
            .await
            .unwrap_or(Ok(()))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.errands().closing = true;
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

    fn errands(&self) -> MutexGuard<'_, Errands> {
        self.errands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, entry: &Entry, care: Care) -> Result<(), JournalError> {
        let frame = frame(self.salt, &StoredV1::from(entry))?;
        let id = entry.job();
        let mut writer = self.writer();
        self.write(&mut writer, &frame, care)?;
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
                if let Some(frames) = writer.live.remove(&id) {
                    writer.live_bytes -= frames.len() as u64;
                }
            }
        }
        let garbage = writer.length - writer.live_bytes;
        let compact = garbage > self.garbage_max
            && garbage > 3 * writer.live_bytes
            && writer.length > writer.compact_at
            && writer.meanwhile.is_none();
        drop(writer);
        if compact {
            let mut errands = self.errands();
            if !errands.compact {
                errands.compact = true;
                self.woken.notify_one();
            }
        }
        Ok(())
    }

    /// Writes one frame, all or nothing.
    fn write(&self, writer: &mut Writer, frame: &[u8], care: Care) -> Result<(), JournalError> {
        if let Err(source) = (&*writer.file).write_all(frame) {
            // Part of it may be there, and nothing may follow half an entry.
            if let Err(error) = writer.file.set_len(writer.length) {
                tracing::error!(path = %self.path.display(), %error, "half a journal entry cannot be removed");
            }
            return Err(JournalError::Io {
                doing: "write",
                path: self.path.clone(),
                source,
            });
        }
        writer.length += frame.len() as u64;
        if let Some(meanwhile) = &mut writer.meanwhile {
            meanwhile.frames.extend_from_slice(frame);
            meanwhile.durable |= care == Care::Durable;
        }
        Ok(())
    }

    /// Asks the thread for an fsync of everything written so far.
    fn synced(&self) -> Result<oneshot::Receiver<Result<(), Arc<io::Error>>>, JournalError> {
        let (done, answer) = oneshot::channel();
        let mut errands = self.errands();
        if errands.closed {
            return Err(JournalError::Closed);
        }
        if errands.waiters.len() >= WAITERS_MAX {
            return Err(JournalError::Busy);
        }
        errands.waiters.push(done);
        drop(errands);
        self.woken.notify_one();
        Ok(answer)
    }

    /// The thread: does errands until the journal is dropped. All who wait share one fsync.
    fn run(&self) {
        loop {
            let mut errands = self.errands();
            while errands.waiters.is_empty() && !errands.compact && !errands.closing {
                errands = self.woken.wait(errands).unwrap_or_else(PoisonError::into_inner);
            }
            let todo = std::mem::take(&mut *errands);
            errands.closed = todo.closing;
            drop(errands);
            if todo.compact
                && let Err(error) = self.compact()
            {
                tracing::error!(path = %self.path.display(), %error, "the journal cannot be compacted");
                let mut writer = self.writer();
                writer.meanwhile = None;
                writer.compact_at = writer.length * 2;
                let _ = fs::remove_file(self.new_path());
            }
            if !todo.waiters.is_empty() {
                let file = Arc::clone(&self.writer().file);
                let result = file.sync_data().map_err(Arc::new);
                if let Err(error) = &result {
                    tracing::error!(path = %self.path.display(), %error, "the journal cannot be synced");
                }
                for waiter in todo.waiters {
                    // Whoever gave up does not mind.
                    let _ = waiter.send(result.clone());
                }
            }
            if todo.closing {
                return;
            }
        }
    }

    fn new_path(&self) -> PathBuf {
        with_suffix(&self.path, ".new")
    }

    fn compact(&self) -> io::Result<()> {
        let mut rest = header(self.salt);
        {
            let mut writer = self.writer();
            let up_to = writer.reserved_to.max(writer.next_id);
            rest.extend(frame(self.salt, &StoredV1::IdsReserved { up_to }).map_err(io::Error::other)?);
            rest.extend(writer.live.values().flatten());
            writer.meanwhile = Some(Meanwhile::default());
        }
        let path = self.new_path();
        let mut file = write_new(&path, &rest)?;
        let mut length = rest.len() as u64;
        // Few entries are durable; whenever one came meanwhile, it must be on disk before the old file goes.
        let mut rounds = 0;
        loop {
            let mut writer = self.writer();
            let meanwhile = writer.meanwhile.replace(Meanwhile::default()).unwrap_or_default();
            if meanwhile.durable && rounds < 3 {
                drop(writer);
                file.write_all(&meanwhile.frames)?;
                file.sync_data()?;
                length += meanwhile.frames.len() as u64;
                rounds += 1;
                continue;
            }
            file.write_all(&meanwhile.frames)?;
            if meanwhile.durable {
                file.sync_data()?;
            }
            length += meanwhile.frames.len() as u64;
            fs::rename(&path, &self.path)?;
            writer.file = Arc::new(file);
            writer.length = length;
            writer.meanwhile = None;
            writer.compact_at = 0;
            break;
        }
        sync_folder_of(&self.path)
    }
}

enum Header {
    /// The file ends within it, or is empty.
    Torn,
    Ours(u32),
    Foreign,
}

fn read_header(bytes: &[u8]) -> Header {
    if !MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) {
        return Header::Foreign;
    }
    match bytes
        .get(MAGIC.len()..HEADER)
        .and_then(|salt| salt.try_into().ok())
    {
        Some(salt) => Header::Ours(u32::from_le_bytes(salt)),
        None => Header::Torn,
    }
}

fn header(salt: u32) -> Vec<u8> {
    [MAGIC.as_slice(), &salt.to_le_bytes()].concat()
}

fn new_salt() -> u32 {
    // The keys of a fresh hasher are random; so is the hash of nothing.
    let hash = RandomState::new().build_hasher().finish();
    u32::try_from(hash >> 32).expect("half of it is left")
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    options
}

/// Opens the file and locks it; a rename may come in between, so it looks again.
fn open_locked(path: &Path) -> Result<File, JournalError> {
    let io = |source| JournalError::Io {
        doing: "open",
        path: path.to_owned(),
        source,
    };
    let mut tries = 20;
    loop {
        let file = options().open(path).map_err(io)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            // A child that a dying predecessor was just spawning holds the lock until it executes.
            Err(rustix::io::Errno::WOULDBLOCK) if tries > 0 => {
                tries -= 1;
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(JournalError::Locked {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Err(io(error.into())),
        }
        let ours = file.metadata().map_err(io)?;
        if fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes a new file beside the journal, locked, with these contents, on disk.
fn write_new(path: &Path, contents: &[u8]) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = options().create_new(true).open(path)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    file.write_all(contents)?;
    file.sync_all()?;
    Ok(file)
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Puts new contents in the journal's place and keeps the old file under a new name; there is a journal at any moment.
fn replace(path: &Path, contents: &[u8], unix_seconds: u64) -> io::Result<(File, PathBuf)> {
    let mut aside = with_suffix(path, &format!(".set-aside-{unix_seconds}"));
    while aside.exists() {
        aside = with_suffix(&aside, "x");
    }
    let new = with_suffix(path, ".new");
    let file = write_new(&new, contents)?;
    fs::hard_link(path, &aside)?;
    fs::rename(&new, path)?;
    sync_folder_of(path)?;
    Ok((file, aside))
}

#[cfg(test)]
mod tests;

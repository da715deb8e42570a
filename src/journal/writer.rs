//! Writes, syncs and compacts the file. Slow work runs on the journal's own thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::contents::{Entry, JournalError};
use super::entry::{StoredV1, frame};
use super::file::{header, replace, with_suffix, write_new};
use crate::clock::Moment;
use crate::job::JobId;
use orbd_host::error_chain::error_chain;

/// Number of ids that one entry reserves; a crash skips at most twice as many.
pub(super) const ID_BLOCK: u64 = 1_000;

/// Pause between attempts to write the journal after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Maximum number of callers that wait for an fsync.
const WAITERS_MAX: usize = 4_096;

pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) salt: u32,
    pub(super) garbage_max: u64,
    pub(super) writer: Mutex<Writer>,
    pub(super) pending_work: Mutex<PendingWork>,
    pub(super) woken: Condvar,
}

/// The file and the state of its contents.
pub(super) struct Writer {
    /// `None` until the file can be created.
    pub(super) file: Option<Arc<File>>,
    pub(super) length: u64,
    /// Why the file is incomplete; `None` if it is complete.
    pub(super) problem: Option<Arc<str>>,
    /// Jobs that have at least one entry that could not be written.
    pub(super) unwritten: BTreeSet<JobId>,
    /// Name to keep the current file under when it is replaced; `None` if it need not be kept.
    pub(super) aside: Option<PathBuf>,
    /// The frames of each job that has not ended.
    pub(super) live: BTreeMap<JobId, Vec<u8>>,
    pub(super) live_bytes: u64,
    pub(super) next_id: u64,
    pub(super) reserved_to: u64,
    /// No compaction before the file has this length; raised when a compaction fails.
    pub(super) compact_at: u64,
    /// Entries appended since the running compaction copied the contents; `None` if none is running.
    pub(super) during_compaction: Option<DuringCompaction>,
}

#[derive(Default)]
pub(super) struct DuringCompaction {
    pub(super) frames: Vec<u8>,
    pub(super) durable: bool,
    /// Whether an entry could not be written and is therefore missing in the new file as well.
    pub(super) incomplete: bool,
}

/// Work for the journal's thread.
#[derive(Default)]
pub(super) struct PendingWork {
    /// Callers that wait for an fsync.
    pub(super) waiters: Vec<oneshot::Sender<Result<(), Arc<io::Error>>>>,
    pub(super) compact: bool,
    /// Time of the next attempt to write an incomplete journal.
    pub(super) retry_at: Option<Instant>,
    pub(super) closing: bool,
    pub(super) closed: bool,
}

/// Whether an entry must survive a loss of power.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    Durable,
    Process,
}

impl Shared {
    pub(super) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pending_work(&self) -> MutexGuard<'_, PendingWork> {
        self.pending_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn append(&self, entry: &Entry, durability: Durability) -> Result<(), JournalError> {
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
    pub(super) fn write(
        &self,
        writer: &mut Writer,
        frame: &[u8],
        durability: Durability,
    ) -> Result<(), JournalError> {
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
    pub(super) fn note_problem(&self, writer: &mut Writer, cause: &str) {
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
    pub(super) fn synced(&self) -> Result<oneshot::Receiver<Result<(), Arc<io::Error>>>, JournalError> {
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
    pub(super) fn run(&self) {
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
pub(super) fn retry_time() -> Instant {
    Moment::now().instant + RETRY_PAUSE
}

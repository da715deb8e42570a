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
//! **Newer.** An intact entry of a kind that this version does not know, or a later format, is no damage: opening fails with
//! [`JournalError::Newer`] and changes nothing, so that the newer version finds everything again.
//!
//! **Not writable.** On a full or read-only disk [`Journal::append`] fails, and orbd runs on without it. Entries that could not
//! be written are kept in memory, and the thread tries to rewrite the whole journal every `RETRY_PAUSE`; [`Journal::problem`]
//! returns why it is incomplete.
//!
//! **Compaction.** When more than a mebibyte belongs to ended jobs, the thread writes the rest to a new file, syncs it, adds the
//! entries appended meanwhile, and renames it over the old file.

mod contents;
mod entry;
mod file;
mod replay;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

pub use contents::{AcceptedJob, Entry, InFlight, JournalError, Process, Recovered, Starting};

use crate::clock::unix_ms;
use crate::job::JobId;
use entry::{StoredV1, frame};
use file::{Located, Opened, name_aside, open_locked};
use orbd_host::error_chain::error_chain;
use writer::{Durability, ID_BLOCK, PendingWork, Shared, Writer, retry_time};

/// The file is compacted when it holds more than this many bytes about ended jobs, and more than three times as many as about
/// other jobs.
const GARBAGE_MAX: u64 = 1 << 20;

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

    /// Reads the journal of a daemon that may be running, without changing it.
    pub fn peek(path: &Path) -> Result<Recovered, JournalError> {
        let recovered = file::peek(path).map_err(|source| JournalError::Io {
            doing: "read",
            path: path.to_owned(),
            source,
        })?;
        recovered.ok_or_else(|| JournalError::Newer {
            path: path.to_owned(),
        })
    }

    /// Renames the journal, so that the next start begins with an empty one. Fails while a daemon uses it. Returns its new path; `None`
    /// if there is no journal.
    pub fn set_aside(path: &Path, now: SystemTime) -> Result<Option<PathBuf>, JournalError> {
        let io = |source| JournalError::Io {
            doing: "set aside",
            path: path.to_owned(),
            source,
        };
        if !path.exists() {
            return Ok(None);
        }
        // Held until the file is renamed.
        let _locked = open_locked(path)?;
        file::move_aside(path, unix_ms(now) / 1000).map_err(io)
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
        } = Opened::read(path, located, unix_seconds)
            .map_err(io("read"))?
            .ok_or_else(|| JournalError::Newer {
                path: path.to_owned(),
            })?;
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

#[cfg(test)]
mod tests;

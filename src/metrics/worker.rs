//! The thread between the handle and the helper process: when to write, when to flush, when to let go, and what to do
//! when the store is not well.
//!
//! ```text
//!            first record, question                  damaged, hung: set aside, next folder
//!   closed ───────────────────────> open ──────────────────────────────┐
//!     ^ ^                            │ │  quiet                         │
//!     │ └────────────────────────────┼─┘                                v
//!     └──── after a pause ─── failed <── disk full, no helper ────── opening
//! ```
//!
//! Stores are folders `store-1`, `store-2`, ... The newest that no other process holds is used. Beside each lie two small files:
//! `store-1.count` says how many records it had taken when it was last flushed, so that what sled forgets without a word is
//! noticed; `store-1.in-use` says that it was not closed in order, so that it is read through before it is trusted. A damaged one is renamed to `store-1.set-aside-<seconds>`; the newest three of those are kept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::helper::{CallError, Helper, Request, Response};
use super::store::{Bounds, Trouble, is_of_the_disk};
use super::{
    BUFFER_HIGH, OperationRecord, QUESTION_LIMIT, Question, Settings, Shared, StoreError, StoreState,
};
use crate::clock::Moment;
use crate::sys;

/// Records are handed over this long after the first of them.
const HAND_OVER_AFTER: Duration = Duration::from_secs(2);
/// What was handed over is flushed this long after the first of it. The sum of both, and the time for it, stay below five seconds.
const FLUSH_AFTER: Duration = Duration::from_millis(2_500);
/// A store that does not open within this hangs. A million records open in 0.2 s, and are read through in 1.5 s.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// A store that does not take a batch or a flush within this hangs. A flush on a busy disk can take seconds.
const WRITE_LIMIT: Duration = Duration::from_secs(20);
/// After a failure that another folder would not mend, the store is left alone for so long.
const PAUSE: Duration = Duration::from_secs(30);
/// A store that another process holds is waited for so long: that process may be our predecessor's helper, flushing.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// At most so many stores that others hold are passed over.
const HELD_MAX: usize = 8;
/// So many stores that were set aside are kept; older ones are removed.
const SET_ASIDE_MAX: usize = 3;
/// At most so many records go into one batch.
const BATCH_MAX: usize = 1_024;

/// Starts the thread.
pub(super) fn start(settings: Settings, shared: Arc<Shared>) -> io::Result<()> {
    std::thread::Builder::new()
        .name("metrics".into())
        .spawn(move || {
            let mut worker = Worker {
                settings,
                shared,
                open: None,
                last_use: Moment::now().instant,
                first_waiting: None,
                unflushed_since: None,
                paused_until: None,
                held: Vec::new(),
            };
            worker.run();
        })?;
    Ok(())
}

/// A store in use.
struct Open {
    helper: Helper,
    folder: PathBuf,
    next_seq: u64,
}

struct Worker {
    settings: Settings,
    shared: Arc<Shared>,
    open: Option<Open>,
    last_use: Instant,
    /// When the oldest record that waits was seen.
    first_waiting: Option<Instant>,
    /// When the first record since the last flush was handed over.
    unflushed_since: Option<Instant>,
    paused_until: Option<Instant>,
    /// Records that could not be handed over yet.
    held: Vec<OperationRecord>,
}

impl Worker {
    fn run(&mut self) {
        loop {
            let (question, closing) = self.wait();
            let now = Moment::now().instant;
            if question.is_some() || closing || is_due(self.hand_over_at(), now) || self.is_crowded() {
                self.hand_over();
            }
            if is_due(self.unflushed_since.map(|since| since + FLUSH_AFTER), now) {
                self.flush();
            }
            match question {
                Some(Question {
                    request: Request::Close,
                    reply,
                }) => {
                    self.close();
                    let _ = reply.send(Ok(Response::Done));
                }
                Some(question) => self.answer(question),
                None if closing => break,
                None => {
                    if is_due(self.close_at(), Moment::now().instant) {
                        self.close();
                        // Nothing has happened for a while: what a burst took and freed need not stay ours. It is awake for the
                        // helper now, and only for this it would not wake.
                        sys::give_memory_back();
                    }
                }
            }
        }
        self.close();
        let mut inbox = self.shared.inbox();
        inbox.closed = true;
        // Whoever still waits learns by the dropped sender.
        inbox.questions.clear();
    }

    fn is_crowded(&self) -> bool {
        self.paused_until.is_none() && self.shared.inbox().records.len() >= BUFFER_HIGH
    }

    fn hand_over_at(&self) -> Option<Instant> {
        let first = self.first_waiting?;
        Some((first + HAND_OVER_AFTER).max(self.paused_until.unwrap_or(first)))
    }

    fn close_at(&self) -> Option<Instant> {
        let open = self.open.is_some() && self.unflushed_since.is_none();
        open.then(|| self.last_use + self.settings.quiet)
    }

    /// Waits until there is something to do; returns the next question, and whether this is the end.
    fn wait(&mut self) -> (Option<Question>, bool) {
        let shared = Arc::clone(&self.shared);
        let mut inbox = shared.inbox();
        loop {
            if let Some(question) = inbox.questions.pop_front() {
                return (Some(question), false);
            }
            if inbox.closing {
                return (None, true);
            }
            let now = Moment::now().instant;
            if self.first_waiting.is_none() && !(inbox.records.is_empty() && self.held.is_empty()) {
                self.first_waiting = Some(now);
            }
            if self.paused_until.is_none() && inbox.records.len() >= BUFFER_HIGH {
                return (None, false);
            }
            let flush_at = self.unflushed_since.map(|since| since + FLUSH_AFTER);
            let next = [self.hand_over_at(), flush_at, self.close_at()]
                .into_iter()
                .flatten()
                .min();
            inbox = match next {
                None => shared.woken.wait(inbox).unwrap_or_else(PoisonError::into_inner),
                Some(at) if at <= now => return (None, false),
                Some(at) => {
                    shared
                        .woken
                        .wait_timeout(inbox, at - now)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// Hands all records that wait to the store.
    fn hand_over(&mut self) {
        self.take_records();
        self.first_waiting = None;
        if self.held.is_empty() {
            return;
        }
        let mut attempts = 0;
        while !self.held.is_empty() {
            if self.open().is_err() {
                break;
            }
            let Some(open) = &mut self.open else { break };
            // Encoded batch by batch: a burst leaves no trace in the daemon's memory.
            let records: Vec<_> = self
                .held
                .iter()
                .take(BATCH_MAX)
                .map(OperationRecord::encode)
                .collect();
            let count = records.len();
            let first_seq = open.next_seq;
            let request = Request::Apply {
                first_seq,
                records,
                now_ms: Moment::now().unix_ms(),
            };
            self.last_use = Moment::now().instant;
            let folder = open.folder.clone();
            match open.helper.call(&request, WRITE_LIMIT) {
                Ok(_) => {
                    open.next_seq += count as u64;
                    self.held.drain(..count);
                    self.unflushed_since.get_or_insert(self.last_use);
                    attempts = 0;
                }
                Err(error) => {
                    attempts += 1;
                    self.failed(&error);
                    // The store may have taken the batch and then lost its voice.
                    if self.open().is_ok()
                        && let Some(open) = &self.open
                        && open.folder == folder
                    {
                        let taken = open.next_seq.saturating_sub(first_seq);
                        let taken = usize::try_from(taken).unwrap_or(usize::MAX).min(count);
                        self.held.drain(..taken);
                    }
                    if attempts >= 3 {
                        let lost = self.held.len().min(count);
                        self.held.drain(..lost);
                        self.shared
                            .dropped
                            .fetch_add(lost as u64, std::sync::atomic::Ordering::Relaxed);
                        tracing::error!(
                            records = lost,
                            "the metrics store fails on a batch: it is dropped"
                        );
                        attempts = 0;
                    }
                }
            }
        }
        if self.held.is_empty() {
            self.held = Vec::new();
        }
        self.shared.inbox().held = self.held.len();
    }

    fn take_records(&mut self) {
        let records = {
            let mut inbox = self.shared.inbox();
            inbox.held = self.held.len() + inbox.records.len();
            // A new buffer, grown as needed: an idle daemon keeps none.
            std::mem::take(&mut inbox.records)
        };
        if self.held.is_empty() {
            self.held = records;
        } else {
            self.held.extend(records);
        }
    }

    fn flush(&mut self) {
        self.unflushed_since = None;
        let Some(open) = &mut self.open else { return };
        match open.helper.call(&Request::Flush, WRITE_LIMIT) {
            Ok(_) => write_count(&open.folder, open.next_seq),
            Err(error) => self.failed(&error),
        }
    }

    fn answer(&mut self, question: Question) {
        // The one who asked may have given up while others were ahead.
        if question.reply.is_closed() {
            return;
        }
        let answer = self.open().and_then(|()| {
            self.last_use = Moment::now().instant;
            let Some(open) = &mut self.open else {
                return Err(StoreError::Closed);
            };
            // The helper keeps to its own limit; one that does not hangs.
            match open
                .helper
                .call(&question.request, QUESTION_LIMIT + Duration::from_secs(1))
            {
                Ok(response) => Ok(response),
                Err(error) => {
                    let answer = match &error {
                        CallError::TimedOut | CallError::Trouble(Trouble::TimedOut) => StoreError::TimedOut,
                        other => StoreError::Unavailable {
                            reason: other.to_string(),
                        },
                    };
                    self.failed(&error);
                    Err(answer)
                }
            }
        });
        let _ = question.reply.send(answer);
    }

    /// Flushes and lets the helper go.
    fn close(&mut self) {
        self.unflushed_since = None;
        let Some(mut open) = self.open.take() else { return };
        match open.helper.call(&Request::Close, WRITE_LIMIT) {
            Ok(_) => {
                if !open.helper.wait_for_end() {
                    tracing::warn!(folder = %open.folder.display(), "the metrics store's helper did not end and was killed");
                }
                // Everything was flushed before the answer, however the process ended.
                write_count(&open.folder, open.next_seq);
                let _ = fs::remove_file(mark(&open.folder, "in-use"));
                self.set_state(StoreState::Closed);
            }
            Err(error) => self.report(&open.folder, &error),
        }
    }

    fn set_state(&self, state: StoreState) {
        self.shared.status().state = state;
    }

    fn report(&self, folder: &Path, error: &CallError) {
        tracing::error!(folder = %folder.display(), %error, "the metrics store failed");
        self.set_state(StoreState::Failed {
            reason: error.to_string(),
        });
    }

    /// Deals with a call that failed. The store is read through when it is next opened, and set aside if that shows damage.
    fn failed(&mut self, error: &CallError) {
        if matches!(error, CallError::Trouble(Trouble::TimedOut)) {
            return;
        }
        let Some(open) = self.open.take() else { return };
        self.report(&open.folder, error);
        self.unflushed_since = None;
        if matches!(error, CallError::Trouble(Trouble::Unavailable(_))) {
            self.pause();
        }
    }

    fn pause(&mut self) {
        self.paused_until = Some(Moment::now().instant + PAUSE);
    }

    /// Opens a store if none is open.
    fn open(&mut self) -> Result<(), StoreError> {
        if self.open.is_some() {
            return Ok(());
        }
        if let Some(until) = self.paused_until {
            if until > Moment::now().instant {
                let StoreState::Failed { reason } = self.shared.status().state.clone() else {
                    return Err(StoreError::Closed);
                };
                return Err(StoreError::Unavailable { reason });
            }
            self.paused_until = None;
        }
        match self.open_some_folder() {
            Ok(open) => {
                self.last_use = Moment::now().instant;
                let mut status = self.shared.status();
                status.state = StoreState::Open;
                status.folder = Some(open.folder.clone());
                drop(status);
                self.open = Some(open);
                Ok(())
            }
            Err(reason) => {
                tracing::error!(
                    folder = %self.settings.folder.display(),
                    %reason,
                    retry_in_s = PAUSE.as_secs(),
                    "the metrics store cannot be opened; records wait"
                );
                self.pause();
                self.set_state(StoreState::Failed {
                    reason: reason.clone(),
                });
                Err(StoreError::Unavailable { reason })
            }
        }
    }

    fn open_some_folder(&self) -> Result<Open, String> {
        let root = &self.settings.folder;
        make_private_folder(root).map_err(|error| format!("{}: {error}", root.display()))?;
        let mut numbers = store_numbers(root).map_err(|error| format!("{}: {error}", root.display()))?;
        let mut held = 0;
        // Damaged ones are set aside and make room for a fresh one; a fresh one that fails is a reason to stop.
        loop {
            let (number, fresh) = match numbers.pop() {
                Some(number) if held < HELD_MAX => (number, false),
                _ => (
                    store_numbers(root)
                        .ok()
                        .and_then(|all| all.last().copied())
                        .unwrap_or(0)
                        + 1,
                    true,
                ),
            };
            let folder = root.join(format!("store-{number}"));
            match self.open_folder(&folder) {
                Ok(open) => {
                    if fresh && held > 0 {
                        tracing::error!(
                            folder = %folder.display(),
                            "another process has the metrics store open: a new one is begun beside it"
                        );
                    }
                    return Ok(open);
                }
                Err(Failed::Locked) => {
                    held += 1;
                    tracing::warn!(folder = %folder.display(), "another process has this metrics store open");
                    if fresh {
                        return Err("every store is held by another process".into());
                    }
                }
                Err(Failed::Elsewhere(reason)) => return Err(reason),
                Err(Failed::Damaged(reason)) if fresh => {
                    return Err(format!("a fresh store fails: {reason}"));
                }
                Err(Failed::Damaged(reason)) => {
                    self.set_aside(&folder, &reason)
                        .map_err(|error| format!("{reason}; it cannot be set aside: {error}"))?;
                    if numbers.is_empty() || held == 0 {
                        // Older ones are what another process once left over; a fresh start is clearer.
                        numbers.clear();
                    }
                }
            }
        }
    }

    fn open_folder(&self, folder: &Path) -> Result<Open, Failed> {
        let (count, in_use) = (mark(folder, "count"), mark(folder, "in-use"));
        // One that was cut short counts less: that errs on the side of trust.
        let least_seq = fs::read_to_string(&count)
            .ok()
            .map(|text| text.trim().parse().unwrap_or(0));
        let mut verify = in_use.exists();
        let elsewhere = |error: io::Error| Failed::Elsewhere(format!("{}: {error}", folder.display()));
        write_private(&in_use, b"").map_err(elsewhere)?;
        let patience = Moment::now().instant + LOCK_PATIENCE;
        let mut gone = 0;
        loop {
            let mut helper = Helper::start(&self.settings.launch)
                .map_err(|error| Failed::Elsewhere(format!("the helper cannot be started: {error}")))?;
            let bounds = Bounds {
                records_max: self.settings.history_max,
                age_max_ms: u64::try_from(self.settings.history_max_age.as_millis()).unwrap_or(u64::MAX),
            };
            let request = Request::open(folder, bounds, least_seq, verify, Moment::now().unix_ms());
            match helper.call(&request, OPEN_LIMIT) {
                Ok(Response::Opened { next_seq }) => {
                    write_private(&count, next_seq.to_string().as_bytes()).map_err(elsewhere)?;
                    return Ok(Open {
                        helper,
                        folder: folder.to_owned(),
                        next_seq,
                    });
                }
                Ok(_) => return Err(Failed::Elsewhere("the helper gave an unexpected answer".into())),
                Err(CallError::Trouble(Trouble::Locked)) if Moment::now().instant < patience => {
                    drop(helper);
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(CallError::Trouble(Trouble::Locked)) => return Err(Failed::Locked),
                Err(CallError::Trouble(Trouble::Unavailable(reason))) => {
                    return Err(Failed::Elsewhere(reason));
                }
                // Somebody may have killed it, or memory was short: once is no proof.
                Err(CallError::Gone(_)) if gone == 0 => {
                    gone += 1;
                    verify = true;
                }
                Err(error) => {
                    // sled says little when a disk is full; a store is not set aside for that.
                    probe_disk(&self.settings.folder).map_err(elsewhere)?;
                    return Err(Failed::Damaged(error.to_string()));
                }
            }
        }
    }

    fn set_aside(&self, folder: &Path, reason: &str) -> io::Result<()> {
        let mut name = folder.as_os_str().to_owned();
        name.push(format!(".set-aside-{}", Moment::now().unix_ms() / 1000));
        let mut aside = PathBuf::from(name);
        while aside.exists() {
            aside.as_mut_os_string().push("x");
        }
        fs::rename(folder, &aside)?;
        for kind in ["count", "in-use"] {
            let _ = fs::remove_file(mark(folder, kind));
        }
        tracing::error!(
            folder = %folder.display(),
            set_aside = %aside.display(),
            reason,
            "the metrics store is damaged: it was set aside and a fresh one is begun"
        );
        self.shared.status().set_aside = Some(aside);
        remove_oldest_set_aside(&self.settings.folder);
        Ok(())
    }
}

fn is_due(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| at <= now)
}

/// Why a folder could not be opened.
enum Failed {
    Locked,
    /// Another folder would fail as well.
    Elsewhere(String),
    Damaged(String),
}

fn mark(folder: &Path, kind: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(".");
    name.push(kind);
    name.into()
}

fn write_count(folder: &Path, next_seq: u64) {
    // Without it less damage is noticed, no more.
    let _ = write_private(&mark(folder, "count"), next_seq.to_string().as_bytes());
}

/// Writes a file that only its owner may read, whatever the umask.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(bytes)
}

fn make_private_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Lists the numbers of the stores, ascending.
fn store_numbers(root: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("store-"))
            .and_then(|rest| rest.parse().ok());
        if let Some(number) = number
            && entry.path().is_dir()
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Fails when the disk takes nothing.
fn probe_disk(root: &Path) -> io::Result<()> {
    let path = root.join(".probe");
    let result = write_private(&path, &vec![0; 1 << 20]);
    let _ = fs::remove_file(&path);
    match result {
        Err(error) if is_of_the_disk(&error) => Err(error),
        _ => Ok(()),
    }
}

fn remove_oldest_set_aside(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    let mut all: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains(".set-aside-"))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    all.sort();
    let surplus = all.len().saturating_sub(SET_ASIDE_MAX);
    for (_, path) in all.drain(..surplus) {
        tracing::warn!(folder = %path.display(), "an old damaged metrics store is removed");
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(folder = %path.display(), %error, "it cannot be removed");
        }
    }
}

//! The worker thread between the handles and the helper process. It decides when to write, flush and close the store, and recovers from
//! failures of the store.
//!
//! ```text
//!            first record or query               call failed: kill the helper, open again
//!   closed ───────────────────────> open ──────────────────────────────┐
//!     ^ ^                            │ │  idle                          │
//!     │ └────────────────────────────┼─┘                                v
//!     └──── after a pause ─── failed <── disk full, no helper ────── opening (a damaged store is set aside)
//! ```
//!
//! Stores are directories `store-1`, `store-2`, and so on. The worker uses the newest one that no other process has locked. Next to each
//! store are two small files:
//!
//! - `store-1.count` holds the next sequence number at the last flush. It reveals records that sled has lost without an error.
//! - `store-1.in-use` exists while the store is open. If it is there on opening, the store was not closed in order and is verified first.
//!
//! A damaged store is renamed to `store-1.set-aside-<seconds>`. The newest three of those are kept.

mod folders;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::Settings;
use super::counters::StoreState;
use super::helper::{CallError, Helper, Request, Response};
use super::inbox::{BUFFER_HIGH, QUESTION_LIMIT, Question, Shared};
use super::query::StoreError;
use super::record::OperationRecord;
use super::store::{Bounds, Trouble};
use crate::clock::Moment;
use crate::sys;
use folders::{
    make_private_folder, mark, probe_disk, remove_oldest_set_aside, store_numbers, write_count, write_private,
};

/// Time from the first waiting record until the worker sends the waiting records to the helper.
const HAND_OVER_AFTER: Duration = Duration::from_secs(2);
/// Time from the first unflushed batch until the flush. Both intervals and the flush together take less than five seconds.
const FLUSH_AFTER: Duration = Duration::from_millis(2_500);
/// Time limit for opening a store. A store with a million records opens in 0.2 s and is verified in 1.5 s.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// Time limit for a batch or a flush. A flush on a busy disk can take seconds.
const WRITE_LIMIT: Duration = Duration::from_secs(20);
/// Pause before the next attempt after a failure that another store would have, too, such as a full disk.
const PAUSE: Duration = Duration::from_secs(30);
/// How long to wait for a store that another process has locked, which may be the previous daemon's helper that is still flushing.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Maximum number of locked stores that are skipped before a new one is created.
const HELD_MAX: usize = 8;
/// Maximum number of records in one batch.
const BATCH_MAX: usize = 1_024;

/// Starts the worker thread.
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
    /// When the worker first saw a waiting record; `None` if no record waits.
    first_waiting: Option<Instant>,
    /// When the first batch since the last flush was sent; `None` if everything is flushed.
    unflushed_since: Option<Instant>,
    paused_until: Option<Instant>,
    /// Records that were taken from the inbox but not sent to the helper yet.
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
                        // The daemon is idle, so return memory that a burst has allocated and freed. This happens here because the
                        // thread is awake anyway; it costs no extra wakeup.
                        sys::give_memory_back();
                    }
                }
            }
        }
        self.close();
        let mut inbox = self.shared.inbox();
        inbox.closed = true;
        // Drops the senders, so that waiting callers get an error.
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

    /// Waits until there is work. Returns the next query, if there is one, and whether the worker must end.
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

    /// Sends all waiting records to the helper.
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
            // Encoded batch by batch, which limits the memory that a burst of records needs.
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
                    // The helper may have stored the batch before it failed to answer.
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
                            "dropped a batch of records that the metrics store failed to write"
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
            // Leaves an empty vector without capacity, so that an idle daemon holds no buffer.
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
        // The caller may have given up while the query waited.
        if question.reply.is_closed() {
            return;
        }
        let answer = self.open().and_then(|()| {
            self.last_use = Moment::now().instant;
            let Some(open) = &mut self.open else {
                return Err(StoreError::Closed);
            };
            // The helper enforces `QUESTION_LIMIT` itself. If it takes longer, it hangs.
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

    /// Flushes and closes the store, and waits for the helper to end.
    fn close(&mut self) {
        self.unflushed_since = None;
        let Some(mut open) = self.open.take() else { return };
        match open.helper.call(&Request::Close, WRITE_LIMIT) {
            Ok(_) => {
                if !open.helper.wait_for_end() {
                    tracing::warn!(folder = %open.folder.display(), "killed the metrics store's helper, which did not end in time");
                }
                // The helper flushed before it answered, so the store is complete even if the helper was killed.
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

    /// Handles a failed call: kills the helper, unless only a query timed out. The file `in-use` remains, so the store is verified when
    /// it is next opened, and set aside if it is damaged.
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
                    "cannot open the metrics store; records wait in memory"
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
        // Tries the newest store first. A damaged store is set aside. If a newly created store fails too, another one would not help.
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
                            "created a new metrics store because other processes have the existing ones open"
                        );
                    }
                    return Ok(open);
                }
                Err(Failed::Locked) => {
                    held += 1;
                    tracing::warn!(folder = %folder.display(), "another process has this metrics store open");
                    if fresh {
                        return Err("every metrics store is open in another process".into());
                    }
                }
                Err(Failed::Elsewhere(reason)) => return Err(reason),
                Err(Failed::Damaged(reason)) if fresh => {
                    return Err(format!("a new store failed: {reason}"));
                }
                Err(Failed::Damaged(reason)) => {
                    self.set_aside(&folder, &reason)
                        .map_err(|error| format!("{reason}; cannot set the store aside: {error}"))?;
                    if numbers.is_empty() || held == 0 {
                        // Older stores are left over from a time when another process had this one open. Create a new store instead.
                        numbers.clear();
                    }
                }
            }
        }
    }

    fn open_folder(&self, folder: &Path) -> Result<Open, Failed> {
        let (count, in_use) = (mark(folder, "count"), mark(folder, "in-use"));
        // A truncated file yields a smaller number or 0. Then less loss is detected, but a good store is never set aside.
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
                .map_err(|error| Failed::Elsewhere(format!("cannot start the store's helper: {error}")))?;
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
                Ok(_) => {
                    return Err(Failed::Elsewhere(
                        "unexpected answer from the store's helper".into(),
                    ));
                }
                Err(CallError::Trouble(Trouble::Locked)) if Moment::now().instant < patience => {
                    drop(helper);
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(CallError::Trouble(Trouble::Locked)) => return Err(Failed::Locked),
                Err(CallError::Trouble(Trouble::Unavailable(reason))) => {
                    return Err(Failed::Elsewhere(reason));
                }
                // The helper may have been killed, for example for lack of memory. Only a second failure counts as damage.
                Err(CallError::Gone(_)) if gone == 0 => {
                    gone += 1;
                    verify = true;
                }
                Err(error) => {
                    // sled's errors do not always show that the disk is full, and a store must not be set aside for that.
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
            "the metrics store is damaged; set it aside and created a new one"
        );
        self.shared.status().set_aside = Some(aside);
        remove_oldest_set_aside(&self.settings.folder);
        Ok(())
    }
}

fn is_due(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| at <= now)
}

/// Why a store could not be opened.
enum Failed {
    Locked,
    /// The cause is not the store: another store would fail as well.
    Elsewhere(String),
    Damaged(String),
}

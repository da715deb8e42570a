//! The records and roll-ups in sled. The only file that names sled.
//!
//! A [`Database`] lives in the helper process (see [`super::helper`]), never in the daemon: sled 0.34 may panic, hang or abort on a
//! damaged folder, and once it was opened its seven threads wake every second until the process ends, also after the
//! database was closed.
//!
//! One tree, so that one batch changes all of it or nothing:
//!
//! | key | value |
//! |---|---|
//! | `m` | [`Meta`]: birth, next sequence number, how much is kept |
//! | `o`, u64be ended ms, u32be sequence | version byte, postcard [`OperationRecord`] |
//! | `r`, resolution, u32be bucket, series | version byte, postcard [`Cell`] |
//!
//! Resolutions: `h` hours since 1970, `d` days, `m` spans of 32 days, `t` all time (one bucket, sums only, which keeps Prometheus'
//! counters growing over rotation). A batch adds to hours and to all time; a day is summed up of its hours when it is over, a span of
//! its days likewise, so a batch stays small and a question about a year reads few rows. Everything is bounded by age and by
//! number: see the constants.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::record::OperationRecord;
use super::rollup::{Cell, MachineLabel, Rows, SERIES_MAX, Series, SummaryRow};
use super::{Cursor, HistoryRequest, Order, Summary, SummaryRequest, WindowResolution};
use crate::clock::Moment;

/// sled's cache. It lives in the helper, and only while there is something to do.
const CACHE_BYTES: u64 = 8 << 20;
/// Hourly cells are kept so long; older windows are answered by whole days.
const HOURS_AGE: u32 = 90 * 24;
/// At most so many hourly cells are kept.
const HOURS_MAX: u64 = 40_000;
/// Daily cells are kept so long: five years.
const DAYS_AGE: u32 = 5 * 366;
/// At most so many daily cells are kept.
const DAYS_MAX: u64 = 60_000;
/// At most so many cells of 32 days are kept, as long as days.
const SPANS_MAX: u64 = 20_000;
/// A series of the all-time cells that was not seen so long gives its place to a new name.
const TOTAL_UNSEEN_MS: u64 = 7 * 24 * HOUR_MS;
/// At most so many old keys are removed with one batch, so that a lowered limit does not stall it.
const REMOVED_MAX: u64 = 20_000;
/// A question looks at the clock once in so many rows.
const ROWS_PER_LOOK: usize = 256;

const HOUR_MS: u64 = 3_600_000;
const DAY_HOURS: u32 = 24;
const SPAN_DAYS: u32 = 32;

const META_KEY: &[u8] = b"m";
const META_VERSION: u8 = 1;

/// Why the database could not do something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(super) enum Trouble {
    /// Another process has it open.
    #[error("another process has the store open")]
    Locked,
    /// Nothing is wrong with it, but the disk or its permissions do not let us.
    #[error("{0}")]
    Unavailable(String),
    /// It cannot be trusted any more.
    #[error("{0}")]
    Damaged(String),
    /// The question took too long.
    #[error("the question took too long")]
    TimedOut,
}

impl From<sled::Error> for Trouble {
    fn from(error: sled::Error) -> Self {
        match &error {
            // sled has no variant for a held lock; this is the text of its only use of `Other`.
            sled::Error::Io(cause) if cause.to_string().contains("could not acquire lock") => Self::Locked,
            sled::Error::Io(cause) if is_of_the_disk(cause) => Self::Unavailable(error.to_string()),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

/// Says whether an error tells of the disk's state, not of the store's: setting the store aside would not help.
pub(super) fn is_of_the_disk(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(
        error.kind(),
        PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull
    )
}

/// How much is kept of what the caller may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bounds {
    pub(super) records_max: u64,
    pub(super) age_max_ms: u64,
}

/// What the database knows about itself; changed with every batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Meta {
    /// When it was made.
    born_ms: u64,
    next_seq: u64,
    records: u64,
    /// No record that ended before this is missing from `records_from_ms` on.
    records_from_ms: u64,
    hours: u64,
    /// Hourly cells from this hour on are complete.
    hours_from: u32,
    days: u64,
    /// Days before this one are summed up; a record that comes late is added to its day as well.
    days_to: u32,
    spans: u64,
    /// Spans before this one are summed up.
    spans_to: u32,
}

/// An open store.
pub(super) struct Database {
    db: sled::Db,
    meta: Meta,
    bounds: Bounds,
}

/// How a stretch of time is summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Resolution {
    Hour,
    Day,
    Span,
    Total,
}

impl Resolution {
    fn byte(self) -> u8 {
        match self {
            Self::Hour => b'h',
            Self::Day => b'd',
            Self::Span => b'm',
            Self::Total => b't',
        }
    }

    fn bucket(self, ms: u64) -> u32 {
        let hour = hour_of(ms);
        match self {
            Self::Hour => hour,
            Self::Day => hour / DAY_HOURS,
            Self::Span => hour / DAY_HOURS / SPAN_DAYS,
            Self::Total => 0,
        }
    }

    fn prefix(self, bucket: u32) -> Vec<u8> {
        let mut key = vec![b'r', self.byte()];
        key.extend_from_slice(&bucket.to_be_bytes());
        key
    }
}

fn hour_of(ms: u64) -> u32 {
    u32::try_from(ms / HOUR_MS).unwrap_or(u32::MAX)
}

fn record_key(ended_ms: u64, seq: u32) -> [u8; 13] {
    let mut key = [b'o'; 13];
    key[1..9].copy_from_slice(&ended_ms.to_be_bytes());
    key[9..].copy_from_slice(&seq.to_be_bytes());
    key
}

fn read_record_key(key: &[u8]) -> Result<Cursor, Trouble> {
    let damaged = || Trouble::Damaged("a record's key has the wrong length".into());
    let rest = key.get(1..13).filter(|_| key.len() == 13).ok_or_else(damaged)?;
    let (ms, seq) = rest.split_at(8);
    Ok(Cursor {
        ended_ms: u64::from_be_bytes(ms.try_into().map_err(|_| damaged())?),
        seq: u32::from_be_bytes(seq.try_into().map_err(|_| damaged())?),
    })
}

/// Ends a question that takes too long.
pub(super) struct Limit {
    until: Instant,
    rows: usize,
}

impl Limit {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            until: Moment::now().instant + limit,
            rows: 0,
        }
    }

    /// Lets everything be read: for what must be done.
    fn none() -> Self {
        Self::new(Duration::from_secs(3600))
    }

    fn row(&mut self) -> Result<(), Trouble> {
        self.rows += 1;
        if self.rows.is_multiple_of(ROWS_PER_LOOK) && Moment::now().instant >= self.until {
            return Err(Trouble::TimedOut);
        }
        Ok(())
    }
}

/// One page of history, still encoded.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredPage {
    pub(super) records: Vec<(Cursor, Vec<u8>)>,
    pub(super) next: Option<Cursor>,
}

impl Database {
    /// Opens or makes the store in `folder`. `least_seq` is known of one that was there before: sled was seen to open a file that
    /// was cut short as an earlier, even an empty state, without a word.
    pub(super) fn open(
        folder: &Path,
        bounds: Bounds,
        least_seq: Option<u64>,
        now_ms: u64,
    ) -> Result<Self, Trouble> {
        #[expect(clippy::disallowed_methods, reason = "this is the one module that may")]
        let db = sled::Config::new()
            .path(folder)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .open()?;
        let meta = match db.get(META_KEY)? {
            Some(bytes) => read_meta(&bytes)?,
            None if least_seq.is_some() => {
                return Err(Trouble::Damaged("it is empty and should not be".into()));
            }
            None => {
                let meta = Meta {
                    born_ms: now_ms,
                    next_seq: 0,
                    records: 0,
                    records_from_ms: 0,
                    hours: 0,
                    hours_from: 0,
                    days: 0,
                    days_to: Resolution::Day.bucket(now_ms),
                    spans: 0,
                    spans_to: Resolution::Span.bucket(now_ms),
                };
                db.insert(META_KEY, write_meta(&meta))?;
                db.flush()?;
                meta
            }
        };
        if let Some(least) = least_seq.filter(|least| meta.next_seq < *least) {
            return Err(Trouble::Damaged(format!(
                "it lost records: it counts to {} and should count to {least}",
                meta.next_seq
            )));
        }
        Ok(Self { db, meta, bounds })
    }

    /// Reads everything once, to find damage that opening does not.
    pub(super) fn verify(&self) -> Result<(), Trouble> {
        let mut records = 0;
        for row in self.db.iter() {
            let (key, value) = row?;
            match key.first() {
                Some(b'o') => {
                    read_record_key(&key)?;
                    records += 1;
                    OperationRecord::decode(&value).map_err(|error| Trouble::Damaged(error.to_string()))?;
                }
                Some(b'r') if !Cell::default().add_stored(&value) => {
                    return Err(Trouble::Damaged("a roll-up cannot be read".into()));
                }
                _ => {}
            }
        }
        if records == self.meta.records {
            Ok(())
        } else {
            Err(Trouble::Damaged(format!(
                "it has {records} records and should have {}",
                self.meta.records
            )))
        }
    }

    /// Returns the number that the next record gets.
    pub(super) fn next_seq(&self) -> u64 {
        self.meta.next_seq
    }

    /// Adds records in their stored form, rolls them up and removes what is beyond the bounds, all or nothing. Those
    /// numbered below [`Self::next_seq`] were added before an answer got lost, and are skipped.
    pub(super) fn apply(&mut self, first_seq: u64, records: &[Vec<u8>], now_ms: u64) -> Result<(), Trouble> {
        self.sum_up_past(now_ms)?;
        let skipped = usize::try_from(self.meta.next_seq.saturating_sub(first_seq)).unwrap_or(usize::MAX);
        let mut meta = self.meta.clone();
        let mut batch = sled::Batch::default();
        let mut cells: BTreeMap<(Resolution, u32, Series), Cell> = BTreeMap::new();
        for stored in records.iter().skip(skipped) {
            // Only ourselves encoded it, a moment ago.
            let record =
                OperationRecord::decode(stored).map_err(|error| Trouble::Damaged(error.to_string()))?;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "it tells records of one millisecond apart"
            )]
            batch.insert(&record_key(record.ended_ms, meta.next_seq as u32), &**stored);
            meta.next_seq += 1;
            meta.records += 1;
            let series = Series::of(&record);
            for resolution in [
                Resolution::Hour,
                Resolution::Day,
                Resolution::Span,
                Resolution::Total,
            ] {
                let bucket = resolution.bucket(record.ended_ms);
                let now = match resolution {
                    Resolution::Hour | Resolution::Total => true,
                    Resolution::Day => bucket < meta.days_to,
                    Resolution::Span => bucket < meta.spans_to,
                };
                if now {
                    cells
                        .entry((resolution, bucket, series.clone()))
                        .or_default()
                        .add(&record);
                }
            }
        }
        self.roll_up(cells, &mut meta, &mut batch, now_ms)?;
        self.rotate(&mut meta, &mut batch, now_ms)?;
        batch.insert(META_KEY, write_meta(&meta));
        self.db.apply_batch(batch)?;
        self.meta = meta;
        Ok(())
    }

    /// Sums up the days that are over, and the spans.
    fn sum_up_past(&mut self, now_ms: u64) -> Result<(), Trouble> {
        let today = Resolution::Day.bucket(now_ms);
        for day in self.meta.days_to.max(today.saturating_sub(DAYS_AGE))..today {
            let cells = self.gather(Resolution::Hour, day * DAY_HOURS..(day + 1) * DAY_HOURS)?;
            self.meta.days_to = day + 1;
            self.write_sums(Resolution::Day, day, cells)?;
        }
        let span = today / SPAN_DAYS;
        for span in self.meta.spans_to.max(span.saturating_sub(DAYS_AGE / SPAN_DAYS))..span {
            let cells = self.gather(Resolution::Day, span * SPAN_DAYS..(span + 1) * SPAN_DAYS)?;
            self.meta.spans_to = span + 1;
            self.write_sums(Resolution::Span, span, cells)?;
        }
        Ok(())
    }

    fn gather(&self, of: Resolution, buckets: Range<u32>) -> Result<Vec<(Series, Cell)>, Trouble> {
        let mut rows = Rows::new(super::GroupBy::OperationAndMachine);
        self.add_cells(
            of,
            &buckets,
            &SummaryRequest::default(),
            &mut rows,
            &mut Limit::none(),
        )?;
        Ok(rows.into_cells())
    }

    /// Writes the cells of one bucket, together with the note that it is summed up.
    fn write_sums(
        &mut self,
        resolution: Resolution,
        bucket: u32,
        cells: Vec<(Series, Cell)>,
    ) -> Result<(), Trouble> {
        if cells.is_empty() {
            return Ok(());
        }
        let mut batch = sled::Batch::default();
        match resolution {
            Resolution::Day => self.meta.days += cells.len() as u64,
            _ => self.meta.spans += cells.len() as u64,
        }
        let prefix = resolution.prefix(bucket);
        for (series, cell) in cells {
            batch.insert([prefix.as_slice(), &series.key()].concat(), cell.encode());
        }
        batch.insert(META_KEY, write_meta(&self.meta));
        self.db.apply_batch(batch)?;
        Ok(())
    }

    fn roll_up(
        &self,
        cells: BTreeMap<(Resolution, u32, Series), Cell>,
        meta: &mut Meta,
        batch: &mut sled::Batch,
        now_ms: u64,
    ) -> Result<(), Trouble> {
        // Cells as they will be stored; several series may fold into one.
        let mut written: BTreeMap<Vec<u8>, Cell> = BTreeMap::new();
        let mut folded: BTreeSet<Vec<u8>> = BTreeSet::new();
        let mut names: HashMap<(Resolution, u32), usize> = HashMap::new();
        for ((resolution, bucket, series), cell) in cells {
            let prefix = resolution.prefix(bucket);
            let key_of = |series: &Series| [prefix.as_slice(), &series.key()].concat();
            let mut key = key_of(&series);
            if !written.contains_key(&key) && (folded.contains(&key) || !self.db.contains_key(&key)?) {
                let names = match names.entry((resolution, bucket)) {
                    std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::hash_map::Entry::Vacant(entry) => {
                        entry.insert(self.db.scan_prefix(&prefix).count())
                    }
                };
                if *names >= SERIES_MAX && matches!(series.machine, MachineLabel::Named(_)) {
                    if resolution == Resolution::Total
                        && let Some(gone) = self.fold_oldest(&prefix, &mut written, &folded, now_ms)?
                    {
                        batch.remove(&*gone);
                        folded.insert(gone);
                    } else {
                        key = key_of(&series.folded());
                    }
                } else {
                    *names += 1;
                }
            }
            if !written.contains_key(&key) {
                let mut stored = Cell::default();
                match self.db.get(&key)? {
                    Some(_) if folded.contains(&key) => {}
                    Some(bytes) if stored.add_stored(&bytes) => {}
                    Some(_) => return Err(Trouble::Damaged("a roll-up cannot be read".into())),
                    None => match resolution {
                        Resolution::Hour => meta.hours += 1,
                        Resolution::Day => meta.days += 1,
                        Resolution::Span => meta.spans += 1,
                        Resolution::Total => {}
                    },
                }
                written.insert(key.clone(), stored);
            }
            if let Some(stored) = written.get_mut(&key) {
                stored.merge(&cell);
            }
        }
        for (key, cell) in written {
            let sums_only = key.get(1) == Some(&Resolution::Total.byte());
            let stored = if sums_only {
                cell.encode_sums()
            } else {
                cell.encode()
            };
            batch.insert(key, stored);
        }
        Ok(())
    }

    /// Adds the all-time cell that was not seen for longest to `other`, if it was not seen for long, and returns its key.
    fn fold_oldest(
        &self,
        prefix: &[u8],
        written: &mut BTreeMap<Vec<u8>, Cell>,
        folded: &BTreeSet<Vec<u8>>,
        now_ms: u64,
    ) -> Result<Option<Vec<u8>>, Trouble> {
        let mut oldest: Option<(Series, Vec<u8>, Cell)> = None;
        for row in self.db.scan_prefix(prefix) {
            let (key, value) = row?;
            let (_, series) = read_cell_key(&key)?;
            if !matches!(series.machine, MachineLabel::Named(_))
                || written.contains_key(&*key)
                || folded.contains(&*key)
            {
                continue;
            }
            let mut cell = Cell::default();
            if cell.add_stored(&value)
                && cell.last_ms.saturating_add(TOTAL_UNSEEN_MS) < now_ms
                && oldest
                    .as_ref()
                    .is_none_or(|(_, _, other)| cell.last_ms < other.last_ms)
            {
                oldest = Some((series, key.to_vec(), cell));
            }
        }
        let Some((series, key, cell)) = oldest else {
            return Ok(None);
        };
        let other = [prefix, &series.folded().key()].concat();
        if !written.contains_key(&other) {
            let mut stored = Cell::default();
            if let Some(bytes) = self.db.get(&other)?
                && !stored.add_stored(&bytes)
            {
                return Err(Trouble::Damaged("a roll-up cannot be read".into()));
            }
            written.insert(other.clone(), stored);
        }
        if let Some(stored) = written.get_mut(&other) {
            stored.merge(&cell);
        }
        Ok(Some(key))
    }

    fn rotate(&self, meta: &mut Meta, batch: &mut sled::Batch, now_ms: u64) -> Result<(), Trouble> {
        let oldest_ms = now_ms.saturating_sub(self.bounds.age_max_ms);
        let mut left = REMOVED_MAX;
        for row in self.db.scan_prefix(b"o").keys() {
            let key = row?;
            let at = read_record_key(&key)?;
            if left == 0 || (meta.records <= self.bounds.records_max && at.ended_ms >= oldest_ms) {
                break;
            }
            batch.remove(key);
            meta.records -= 1;
            meta.records_from_ms = meta.records_from_ms.max(at.ended_ms + 1);
            left -= 1;
        }
        let hour = hour_of(now_ms);
        let (hours_from, mut hours) = (hour.saturating_sub(HOURS_AGE), meta.hours);
        for (bucket, key) in self.cells_to_rotate(Resolution::Hour, hours_from, &mut hours, HOURS_MAX)? {
            batch.remove(key);
            meta.hours_from = meta.hours_from.max(bucket + 1);
        }
        meta.hours = hours;
        let days_from = (hour / DAY_HOURS).saturating_sub(DAYS_AGE);
        for (_, key) in self.cells_to_rotate(Resolution::Day, days_from, &mut meta.days, DAYS_MAX)? {
            batch.remove(key);
        }
        let spans_from = days_from / SPAN_DAYS;
        for (_, key) in self.cells_to_rotate(Resolution::Span, spans_from, &mut meta.spans, SPANS_MAX)? {
            batch.remove(key);
        }
        Ok(())
    }

    /// Lists the oldest cells that are too old or too many. A cell that this batch writes again is never among them, unless
    /// the clock was years wrong: it then comes back and is removed with the next.
    fn cells_to_rotate(
        &self,
        resolution: Resolution,
        from: u32,
        kept: &mut u64,
        kept_max: u64,
    ) -> Result<Vec<(u32, sled::IVec)>, Trouble> {
        let mut old = Vec::new();
        for row in self.db.scan_prefix([b'r', resolution.byte()]).keys() {
            let key = row?;
            let bucket = read_cell_key(&key)?.0;
            if old.len() as u64 >= REMOVED_MAX || (*kept <= kept_max && bucket >= from) {
                break;
            }
            *kept = kept.saturating_sub(1);
            old.push((bucket, key));
        }
        Ok(old)
    }

    /// Makes everything applied so far survive a power loss.
    pub(super) fn flush(&self) -> Result<(), Trouble> {
        self.db.flush()?;
        Ok(())
    }

    /// Sums up the operations that ended within a window.
    ///
    /// Whole days and hours come from the roll-ups; the hours cut by the window's edges from the records themselves, or, where those
    /// were rotated away, the window is widened to what is known and says so.
    pub(super) fn summary(
        &self,
        request: &SummaryRequest,
        now_ms: u64,
        mut limit: Limit,
    ) -> Result<Summary, Trouble> {
        let mut rows = Rows::new(request.group_by);
        let mut since_ms = request.since_ms;
        // Nothing ended after now, unless the clock was set back: then it belongs to the window too.
        let mut until_ms = if request.until_ms >= now_ms {
            u64::MAX
        } else {
            request.until_ms
        };
        if since_ms >= until_ms {
            return Ok(Summary {
                since_ms,
                until_ms,
                resolution: WindowResolution::Record,
                rows: Vec::new(),
            });
        }
        let resolution;
        (since_ms, until_ms, resolution) = self.widened(since_ms, until_ms);
        for part in parts(since_ms, until_ms, self.meta.days_to, self.meta.spans_to) {
            match part {
                Part::Records(window) => self.add_records(&window, request, &mut rows, &mut limit)?,
                Part::Cells(resolution, buckets) => {
                    self.add_cells(resolution, &buckets, request, &mut rows, &mut limit)?;
                }
            }
        }
        Ok(Summary {
            since_ms,
            until_ms: until_ms.min(now_ms.max(request.until_ms)),
            resolution,
            rows: rows.finish(),
        })
    }

    /// Widens a window, to hours or days, to where its edges can be answered from what is still there.
    fn widened(&self, since_ms: u64, until_ms: u64) -> (u64, u64, WindowResolution) {
        use WindowResolution::{Day, Hour, Record};
        let hours_from_ms = u64::from(self.meta.hours_from) * HOUR_MS;
        let step = |resolution| match resolution {
            Record => 1,
            Hour => HOUR_MS,
            Day => HOUR_MS * u64::from(DAY_HOURS),
        };
        let floor = |ms: u64, resolution| ms - ms % step(resolution);
        let since_by = if since_ms < hours_from_ms {
            Day
        } else if since_ms < self.meta.records_from_ms {
            Hour
        } else {
            Record
        };
        let since = floor(since_ms, since_by);
        let until_by = if until_ms == u64::MAX {
            Record
        } else if floor(until_ms, Day).max(since) < hours_from_ms {
            Day
        } else if floor(until_ms, Hour).max(since) < self.meta.records_from_ms {
            Hour
        } else {
            Record
        };
        let until = if until_by == Record {
            until_ms
        } else {
            until_ms.next_multiple_of(step(until_by))
        };
        // An edge that lies on a whole hour or day anyway was cut where it was asked for.
        let since_by = if since == since_ms { Record } else { since_by };
        let until_by = if until == until_ms { Record } else { until_by };
        (since, until, since_by.max(until_by))
    }

    fn add_records(
        &self,
        window: &Range<u64>,
        request: &SummaryRequest,
        rows: &mut Rows,
        limit: &mut Limit,
    ) -> Result<(), Trouble> {
        for row in self
            .db
            .range(record_key(window.start, 0)..record_key(window.end, 0))
        {
            let (_, value) = row?;
            limit.row()?;
            let record =
                OperationRecord::decode(&value).map_err(|error| Trouble::Damaged(error.to_string()))?;
            let series = Series::of(&record);
            if request.matches(&series) {
                rows.cell(&series).add(&record);
            }
        }
        Ok(())
    }

    fn add_cells(
        &self,
        resolution: Resolution,
        buckets: &Range<u32>,
        request: &SummaryRequest,
        rows: &mut Rows,
        limit: &mut Limit,
    ) -> Result<(), Trouble> {
        // Most rows are of a series that was met before: it is not read again.
        let mut places: HashMap<Vec<u8>, Option<usize>> = HashMap::new();
        let range = self
            .db
            .range(resolution.prefix(buckets.start)..resolution.prefix(buckets.end));
        for row in range {
            let (key, value) = row?;
            limit.row()?;
            let known = key.get(6..).and_then(|series| places.get(series).copied());
            let place = if let Some(place) = known {
                place
            } else {
                let (_, series) = read_cell_key(&key)?;
                let place = request.matches(&series).then(|| rows.place(&series));
                places.insert(key[6..].to_vec(), place);
                place
            };
            if let Some(place) = place
                && !rows.at(place).add_stored(&value)
            {
                return Err(Trouble::Damaged("a roll-up cannot be read".into()));
            }
        }
        Ok(())
    }

    /// Returns the sums over all time, which never shrink while the store lives.
    pub(super) fn totals(&self, mut limit: Limit) -> Result<Vec<SummaryRow>, Trouble> {
        let mut rows = Rows::new(super::GroupBy::OperationAndMachine);
        let all = SummaryRequest::default();
        self.add_cells(Resolution::Total, &(0..1), &all, &mut rows, &mut limit)?;
        Ok(rows
            .finish()
            .into_iter()
            .filter(|row| row.counts.count > 0)
            .collect())
    }

    /// Returns one page of records. A page that took too long to fill is returned as far as it came.
    pub(super) fn history(&self, request: &HistoryRequest, mut limit: Limit) -> Result<StoredPage, Trouble> {
        let mut page = StoredPage {
            records: Vec::new(),
            next: None,
        };
        let after = |cursor: Cursor| match cursor.seq.checked_add(1) {
            Some(seq) => record_key(cursor.ended_ms, seq),
            None => record_key(cursor.ended_ms + 1, 0),
        };
        let mut low = record_key(request.filter.since_ms.unwrap_or(0), 0);
        if let Some(cursor) = request.after {
            low = low.max(after(cursor));
        }
        let mut high = request
            .filter
            .until_ms
            .map_or([b'p'; 13], |until| record_key(until, 0));
        if let Some(cursor) = request.before {
            high = high.min(record_key(cursor.ended_ms, cursor.seq));
        }
        if low >= high {
            return Ok(page);
        }
        let mut range = self.db.range(low..high);
        let mut last = None;
        loop {
            let row = match request.order {
                Order::NewestFirst => range.next_back(),
                Order::OldestFirst => range.next(),
            };
            let Some(row) = row else { return Ok(page) };
            if page.records.len() >= request.limit.max(1) || limit.row().is_err() {
                page.next = last;
                return Ok(page);
            }
            let (key, value) = row?;
            let cursor = read_record_key(&key)?;
            last = Some(cursor);
            if request.filter.reads_records() {
                let record =
                    OperationRecord::decode(&value).map_err(|error| Trouble::Damaged(error.to_string()))?;
                if !request.filter.matches(&record) {
                    continue;
                }
            }
            page.records.push((cursor, value.to_vec()));
        }
    }
}

fn read_cell_key(key: &[u8]) -> Result<(u32, Series), Trouble> {
    let damaged = || Trouble::Damaged("a roll-up's key cannot be read".into());
    let bucket = key
        .get(2..6)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(damaged)?;
    let series = Series::from_key(&key[6..]).ok_or_else(damaged)?;
    Ok((u32::from_be_bytes(bucket), series))
}

fn read_meta(bytes: &[u8]) -> Result<Meta, Trouble> {
    match bytes {
        [META_VERSION, body @ ..] => postcard::from_bytes(body)
            .map_err(|_| Trouble::Damaged("its own description cannot be read".into())),
        [version, ..] => Err(Trouble::Damaged(format!("it has the unknown version {version}"))),
        [] => Err(Trouble::Damaged("its own description is empty".into())),
    }
}

fn write_meta(meta: &Meta) -> Vec<u8> {
    postcard::to_extend(meta, vec![META_VERSION]).expect("it always encodes into memory")
}

/// Where a stretch of a window is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Records(Range<u64>),
    Cells(Resolution, Range<u32>),
}

/// Cuts a window into spans and days that are summed up, the whole hours around them, and what is left at the edges.
fn parts(since_ms: u64, until_ms: u64, days_to: u32, spans_to: u32) -> Vec<Part> {
    let open_end = until_ms == u64::MAX;
    let first_hour = since_ms.div_ceil(HOUR_MS);
    let end_hour = if open_end {
        u64::from(u32::MAX)
    } else {
        until_ms / HOUR_MS
    };
    if first_hour >= end_hour {
        // Within one hour, or over the edge between two.
        return vec![Part::Records(since_ms..until_ms)];
    }
    let as_hour = |hour: u64| u32::try_from(hour).unwrap_or(u32::MAX);
    let hours = as_hour(first_hour)..as_hour(end_hour);
    let (hours_before, days, hours_after) = split(hours, DAY_HOURS, days_to);
    let (days_before, spans, days_after) = split(days, SPAN_DAYS, spans_to);
    let mut parts = vec![
        Part::Records(since_ms..first_hour * HOUR_MS),
        Part::Cells(Resolution::Hour, hours_before),
        Part::Cells(Resolution::Day, days_before),
        Part::Cells(Resolution::Span, spans),
        Part::Cells(Resolution::Day, days_after),
        Part::Cells(Resolution::Hour, hours_after),
    ];
    if !open_end {
        parts.push(Part::Records(end_hour * HOUR_MS..until_ms));
    }
    parts.retain(|part| match part {
        Part::Records(window) => !window.is_empty(),
        Part::Cells(_, buckets) => !buckets.is_empty(),
    });
    parts
}

/// Splits a range into what comes before whole groups of `factor`, those groups up to `built_to`, and what comes after.
fn split(range: Range<u32>, factor: u32, built_to: u32) -> (Range<u32>, Range<u32>, Range<u32>) {
    let first = range.start.div_ceil(factor);
    let end = (range.end / factor).min(built_to);
    if first >= end {
        return (range, 0..0, 0..0);
    }
    (range.start..first * factor, first..end, end * factor..range.end)
}

//! Stores records and roll-ups in sled. This is the only file that uses sled.
//!
//! A [`Database`] exists in the helper process (see [`super::helper`]), never in the daemon: sled 0.34 can panic, hang or abort on damaged
//! files, and its seven threads wake every second from the first open until the process ends, even after the database was closed.
//!
//! Everything is in one sled tree, so that a batch is atomic:
//!
//! | key | value |
//! |---|---|
//! | `m` | [`Meta`]: creation time, next sequence number, numbers of records and cells |
//! | `o`, u64be ended ms, u32be sequence | version byte, postcard [`OperationRecord`] |
//! | `r`, resolution, u32be bucket, series | version byte, postcard [`Cell`] |
//!
//! The resolution is `h` for hours since 1970, `d` for days, `m` for spans of 32 days, or `t` for all time. All time is one bucket with
//! sums only; it ensures that the Prometheus counters never decrease when records and cells are removed. A batch updates the cells of its
//! hours and of all time. The cells of a day are computed from its hours when the day is over, and those of a span from its days. So a
//! batch stays small, and a query over a year reads few rows. Everything is limited by age and by number: see the constants.

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

/// Size of sled's cache. The helper holds it only while it runs.
const CACHE_BYTES: u64 = 8 << 20;
/// Age at which hourly cells are removed, in hours. Queries about older times are answered in whole days.
const HOURS_AGE: u32 = 90 * 24;
/// Maximum number of hourly cells.
const HOURS_MAX: u64 = 40_000;
/// Age at which daily cells and cells of spans are removed, in days: five years.
const DAYS_AGE: u32 = 5 * 366;
/// Maximum number of daily cells.
const DAYS_MAX: u64 = 60_000;
/// Maximum number of cells of 32-day spans.
const SPANS_MAX: u64 = 20_000;
/// Time without operations after which an all-time series can be folded into `other` to make room for a new name.
const TOTAL_UNSEEN_MS: u64 = 7 * 24 * HOUR_MS;
/// Maximum number of old keys of each kind that one batch removes, so that a lowered limit does not stall it.
const REMOVED_MAX: u64 = 20_000;
/// Number of rows that a query reads between two checks of its time limit.
const ROWS_PER_LOOK: usize = 256;

const HOUR_MS: u64 = 3_600_000;
const DAY_HOURS: u32 = 24;
const SPAN_DAYS: u32 = 32;

const META_KEY: &[u8] = b"m";
const META_VERSION: u8 = 1;

/// Why an operation of the database failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(super) enum Trouble {
    /// Another process has the store open.
    #[error("another process has the store open")]
    Locked,
    /// The cause is the disk or its permissions, not the store.
    #[error("{0}")]
    Unavailable(String),
    /// The store's contents cannot be trusted.
    #[error("{0}")]
    Damaged(String),
    /// The query exceeded its time limit.
    #[error("the query took too long")]
    TimedOut,
}

impl From<sled::Error> for Trouble {
    fn from(error: sled::Error) -> Self {
        match &error {
            // sled has no error variant for a held lock, only this text in an I/O error.
            sled::Error::Io(cause) if cause.to_string().contains("could not acquire lock") => Self::Locked,
            sled::Error::Io(cause) if is_of_the_disk(cause) => Self::Unavailable(error.to_string()),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

/// Returns whether the cause of an error is the disk, so that setting the store aside would not help.
pub(super) fn is_of_the_disk(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(
        error.kind(),
        PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull
    )
}

/// The configurable limits of the stored records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bounds {
    pub(super) records_max: u64,
    pub(super) age_max_ms: u64,
}

/// Metadata of the store, updated with every batch. `records`, `hours`, `days` and `spans` are numbers of rows.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Meta {
    /// When the store was created, in Unix milliseconds.
    born_ms: u64,
    next_seq: u64,
    records: u64,
    /// All records that ended at this time or later are still there, in Unix milliseconds.
    records_from_ms: u64,
    hours: u64,
    /// The cells of this hour and all later ones are still there.
    hours_from: u32,
    days: u64,
    /// The cells of all days before this one were computed. A record that arrives later for such a day is added to its cell directly.
    days_to: u32,
    spans: u64,
    /// The cells of all spans before this one were computed.
    spans_to: u32,
}

/// An open store.
pub(super) struct Database {
    db: sled::Db,
    meta: Meta,
    bounds: Bounds,
}

/// Length of the periods that cells aggregate.
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

/// Time limit of a query.
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

    /// Returns a limit of an hour, in effect none, for work that must be completed.
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
    /// Opens the store in `folder`, or creates it. For an existing store, `least_seq` is the least sequence number that it must have
    /// reached: sled can open a truncated file as an earlier or even empty state without an error.
    pub(super) fn open(
        folder: &Path,
        bounds: Bounds,
        least_seq: Option<u64>,
        now_ms: u64,
    ) -> Result<Self, Trouble> {
        #[expect(clippy::disallowed_methods, reason = "this module wraps the unsafe calls")]
        let db = sled::Config::new()
            .path(folder)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .open()?;
        let meta = match db.get(META_KEY)? {
            Some(bytes) => read_meta(&bytes)?,
            None if least_seq.is_some() => {
                return Err(Trouble::Damaged("the store is empty, but should not be".into()));
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
                "the store lost records: its next number is {}, but should be at least {least}",
                meta.next_seq
            )));
        }
        Ok(Self { db, meta, bounds })
    }

    /// Reads and decodes everything once, to find damage that opening the store does not find.
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
                "the store has {records} records, but should have {}",
                self.meta.records
            )))
        }
    }

    /// Returns the sequence number of the next record.
    pub(super) fn next_seq(&self) -> u64 {
        self.meta.next_seq
    }

    /// Adds encoded records, updates the roll-ups and removes rows beyond the limits, in one atomic batch. `first_seq` is the sequence
    /// number of the first record. Records with numbers below [`Self::next_seq`] are skipped: an earlier call has added them, but its
    /// answer was lost.
    pub(super) fn apply(&mut self, first_seq: u64, records: &[Vec<u8>], now_ms: u64) -> Result<(), Trouble> {
        self.sum_up_past(now_ms)?;
        let skipped = usize::try_from(self.meta.next_seq.saturating_sub(first_seq)).unwrap_or(usize::MAX);
        let mut meta = self.meta.clone();
        let mut batch = sled::Batch::default();
        let mut cells: BTreeMap<(Resolution, u32, Series), Cell> = BTreeMap::new();
        for stored in records.iter().skip(skipped) {
            // Cannot fail in practice: the daemon has just encoded the record.
            let record =
                OperationRecord::decode(stored).map_err(|error| Trouble::Damaged(error.to_string()))?;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "the number only distinguishes records that ended in the same millisecond"
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

    /// Computes the cells of the days and spans that have ended since the last call.
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

    /// Writes the cells of one bucket, and the metadata that marks it as computed.
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
        // The new values of all changed cells, by key. Several series can be folded into one.
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

    /// Folds the all-time cell with the oldest last operation into `other`, if that is older than [`TOTAL_UNSEEN_MS`]. Returns its key.
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

    /// Returns buckets and keys of the cells to remove, the oldest first: those before `from`, and those beyond `kept_max`. A cell that the
    /// same batch writes is not among them unless the clock was wrong by years; then the cell reappears and the next batch removes it.
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

    /// Flushes all applied batches to disk, so that they survive a power loss.
    pub(super) fn flush(&self) -> Result<(), Trouble> {
        self.db.flush()?;
        Ok(())
    }

    /// Returns a summary of the operations that ended within a window.
    ///
    /// Whole hours, days and spans are read from the roll-ups. The partial hours at the edges of the window are computed from the records.
    /// If those were removed, the window is widened to whole hours or days, and the summary contains the actual window.
    pub(super) fn summary(
        &self,
        request: &SummaryRequest,
        now_ms: u64,
        mut limit: Limit,
    ) -> Result<Summary, Trouble> {
        let mut rows = Rows::new(request.group_by);
        let mut since_ms = request.since_ms;
        // Without an upper limit, the window includes records from the future, which exist if the clock was set back.
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

    /// Widens the edges of a window to whole hours or days, as far as necessary to answer it from the rows that are still there.
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
        // An edge that did not move is exact, because the request had it at a whole hour or day.
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
        // Caches the row of each series by its encoded form, because most cells belong to a series that was decoded before.
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

    /// Returns the totals of all time. They never decrease during the lifetime of the store.
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

    /// Returns one page of records. At the time limit it returns the records found so far, which may be none.
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
            .map_err(|_| Trouble::Damaged("the store's metadata cannot be read".into())),
        [version, ..] => Err(Trouble::Damaged(format!(
            "the store has the unknown version {version}"
        ))),
        [] => Err(Trouble::Damaged("the store's metadata is empty".into())),
    }
}

fn write_meta(meta: &Meta) -> Vec<u8> {
    postcard::to_extend(meta, vec![META_VERSION]).expect("encoding metadata in memory succeeds")
}

/// A part of a window, by the kind of rows that it is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Records(Range<u64>),
    Cells(Resolution, Range<u32>),
}

/// Splits a window into computed spans and days, the whole hours around them, and the partial hours at the edges.
fn parts(since_ms: u64, until_ms: u64, days_to: u32, spans_to: u32) -> Vec<Part> {
    let open_end = until_ms == u64::MAX;
    let first_hour = since_ms.div_ceil(HOUR_MS);
    let end_hour = if open_end {
        u64::from(u32::MAX)
    } else {
        until_ms / HOUR_MS
    };
    if first_hour >= end_hour {
        // The window contains no whole hour.
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

/// Splits a range of buckets into the part before the first whole group of `factor` buckets, the whole groups below `built_to` (in units of
/// groups), and the part after them.
fn split(range: Range<u32>, factor: u32, built_to: u32) -> (Range<u32>, Range<u32>, Range<u32>) {
    let first = range.start.div_ceil(factor);
    let end = (range.end / factor).min(built_to);
    if first >= end {
        return (range, 0..0, 0..0);
    }
    (range.start..first * factor, first..end, end * factor..range.end)
}

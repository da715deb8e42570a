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

mod buckets;
mod error;
mod layout;
mod queries;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub(super) use error::{Trouble, is_of_the_disk};

use super::query::{Cursor, SummaryRequest};
use super::record::OperationRecord;
use super::rollup::{Cell, GroupBy, MachineLabel, Rows, SERIES_MAX, Series};
use crate::clock::Moment;
use buckets::{DAY_HOURS, HOUR_MS, Resolution, SPAN_DAYS, hour_of};
use layout::{META_KEY, Meta, read_cell_key, read_meta, read_record_key, record_key, write_meta};

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

/// The configurable limits of the stored records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bounds {
    pub(super) records_max: u64,
    pub(super) age_max_ms: u64,
}

pub(super) struct Database {
    db: sled::Db,
    meta: Meta,
    bounds: Bounds,
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
        let mut rows = Rows::new(GroupBy::OperationAndMachine);
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
}

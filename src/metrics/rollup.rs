//! Roll-ups: counts and histograms of many operations. Pure: no clock, no storage.
//!
//! A [`Cell`] aggregates the operations of one [`Series`] (verb and machine) over one hour, one day, 32 days or all time. Wait times and
//! run times are HDR histograms with two significant digits: a percentile is within 1 % of the exact value.
//!
//! The stored form of a histogram is the sorted list of its non-empty buckets, delta-encoded as varints. It is not HDR's V2 format, because
//! V2 has a header of 40 bytes and must be unpacked into a full array before merging. This form is half as long for the ten samples of a
//! typical hour, merges without allocating, and needs three crates fewer.

use std::collections::HashMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::record::{OperationRecord, OutcomeWord};

/// Maximum number of series with a machine's name per hour, day, 32 days, all time, or summary. Further series are folded into
/// [`MachineLabel::Other`] of the same verb.
pub const SERIES_MAX: usize = 256;

/// The combination of verb and machine that a cell or row aggregates.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Series {
    /// The operation's verb; empty in a summary that is not grouped by operation.
    pub operation: String,
    /// The machine's label.
    pub machine: MachineLabel,
}

/// The machine of a series.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MachineLabel {
    /// The operations concern no machine, or the summary is not grouped by machine.
    None,
    /// The machine of this name.
    Named(String),
    /// All machines without a series of their own, because [`SERIES_MAX`] was reached.
    Other,
}

impl MachineLabel {
    /// Returns the machine's name; `None` unless the label is [`Self::Named`].
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::None | Self::Other => None,
            Self::Named(name) => Some(name),
        }
    }
}

impl Series {
    /// Returns the series that a record belongs to.
    pub fn of(record: &OperationRecord) -> Self {
        Self {
            operation: record.operation.clone().into_owned(),
            machine: record.machine.as_ref().map_or(MachineLabel::None, |name| {
                MachineLabel::Named(name.as_str().to_owned())
            }),
        }
    }

    /// Returns the series that aggregates this one if [`SERIES_MAX`] is reached.
    #[must_use]
    pub fn folded(&self) -> Self {
        Self {
            operation: self.operation.clone(),
            machine: MachineLabel::Other,
        }
    }

    /// Encodes the series as part of a stored key. The separator is NUL, which neither verbs nor machine names contain.
    pub(super) fn key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.operation.len() + 24);
        key.extend_from_slice(self.operation.as_bytes());
        key.push(0);
        match &self.machine {
            MachineLabel::None => {}
            MachineLabel::Named(name) => {
                key.push(b'=');
                key.extend_from_slice(name.as_bytes());
            }
            MachineLabel::Other => key.push(b'*'),
        }
        key
    }

    /// Decodes the output of [`Self::key`].
    pub(super) fn from_key(key: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(key).ok()?;
        let (operation, machine) = text.split_once('\0')?;
        let machine = match machine.as_bytes() {
            [] => MachineLabel::None,
            [b'*'] => MachineLabel::Other,
            [b'=', ..] => MachineLabel::Named(machine[1..].to_owned()),
            _ => return None,
        };
        Some(Self {
            operation: operation.to_owned(),
            machine,
        })
    }
}

/// A distribution of durations in microseconds.
#[derive(Debug, Clone)]
pub(super) struct Durations {
    histogram: Histogram<u64>,
    sum: u64,
    min: u64,
    max: u64,
}

impl Default for Durations {
    fn default() -> Self {
        Self {
            histogram: Histogram::new(2).expect("2 significant digits are valid"),
            sum: 0,
            min: u64::MAX,
            max: 0,
        }
    }
}

/// Maximum recorded duration, thirteen days. Longer durations count as this one, which limits a histogram to 20 KB.
const DURATION_MAX_US: u64 = 1 << 40;

impl Durations {
    pub(super) fn add(&mut self, us: u64) {
        let us = us.min(DURATION_MAX_US);
        self.add_many(us, 1);
        self.sum = self.sum.saturating_add(us);
        self.min = self.min.min(us);
        self.max = self.max.max(us);
    }

    fn add_many(&mut self, us: u64, count: u64) {
        // Zero counts in the first bucket. `Histogram::new` enables automatic resizing, so no value is out of range.
        self.histogram
            .record_n(us.min(DURATION_MAX_US), count)
            .expect("the histogram grows");
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("the histogram grows");
        self.sum = self.sum.saturating_add(other.sum);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Returns the number of durations.
    pub(super) fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Returns the statistics of the durations; all zero if there are none.
    pub(super) fn spread(&self) -> Spread {
        if self.count() == 0 {
            return Spread::default();
        }
        let at = |quantile: f64| {
            let value = self.histogram.value_at_quantile(quantile);
            // The middle of a bucket, which is at most half the bucket's width from each sample in it.
            self.histogram.median_equivalent(value).clamp(self.min, self.max)
        };
        Spread {
            count: self.count(),
            sum_us: self.sum,
            min_us: self.min,
            p50_us: at(0.50),
            p90_us: at(0.90),
            p99_us: at(0.99),
            max_us: self.max,
        }
    }

    fn store(&self) -> StoredDurations {
        let mut buckets = Vec::new();
        let mut before = 0;
        for step in self.histogram.iter_recorded() {
            let low = self.histogram.lowest_equivalent(step.value_iterated_to());
            buckets.push((low - before, step.count_since_last_iteration()));
            before = low;
        }
        StoredDurations {
            sum: self.sum,
            min: self.min,
            max: self.max,
            buckets,
        }
    }

    fn store_sums(&self) -> StoredDurations {
        let buckets = if self.count() == 0 {
            Vec::new()
        } else {
            vec![(self.min, self.count())]
        };
        StoredDurations {
            sum: self.sum,
            min: self.min,
            max: self.max,
            buckets,
        }
    }

    /// Decodes a [`StoredDurations`] from the front of `bytes` and adds it; returns the remaining bytes. It does not allocate, because the
    /// summary of a year reads tens of thousands of them.
    fn add_stored<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let ((sum, min, max, buckets), mut bytes) = take::<(u64, u64, u64, u64)>(bytes)?;
        let mut at = 0_u64;
        for _ in 0..buckets {
            let ((step, count), rest) = take::<(u64, u64)>(bytes)?;
            at = at.saturating_add(step);
            self.add_many(at, count);
            bytes = rest;
        }
        self.sum = self.sum.saturating_add(sum);
        self.min = self.min.min(min);
        self.max = self.max.max(max);
        Some(bytes)
    }
}

/// Decodes one value from the front of postcard bytes; returns it and the remaining bytes.
fn take<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<(T, &'a [u8])> {
    postcard::take_from_bytes(bytes).ok()
}

/// Statistics of a set of durations, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Spread {
    /// Number of durations.
    pub count: u64,
    /// Sum of the durations.
    pub sum_us: u64,
    /// Shortest duration, exact.
    pub min_us: u64,
    /// Median, within 1 %.
    pub p50_us: u64,
    /// 90th percentile, within 1 %.
    pub p90_us: u64,
    /// 99th percentile, within 1 %.
    pub p99_us: u64,
    /// Longest duration, exact up to thirteen days.
    pub max_us: u64,
}

/// Aggregate of the operations of one series over one period.
#[derive(Debug, Clone, Default)]
pub(super) struct Cell {
    pub counts: Counts,
    /// Wait times of all operations.
    pub wait: Durations,
    /// Run times of the operations that started.
    pub run: Durations,
    /// When the last operation ended, in Unix milliseconds.
    pub last_ms: u64,
}

/// Sums over operations. Part of the stored format: any change of the fields requires a new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Number of operations.
    pub count: u64,
    /// Number of operations that failed, expired, were interrupted, or whose outcome is unknown.
    pub errors: u64,
    /// Number of cancelled operations.
    pub cancelled: u64,
    /// Number of operations that joined another job's invocation.
    pub joined: u64,
    /// Bytes of input.
    pub bytes_in: u64,
    /// Bytes of output.
    pub bytes_out: u64,
}

impl Counts {
    fn merge(&mut self, other: &Self) {
        let add = |into: &mut u64, more: u64| *into = into.saturating_add(more);
        add(&mut self.count, other.count);
        add(&mut self.errors, other.errors);
        add(&mut self.cancelled, other.cancelled);
        add(&mut self.joined, other.joined);
        add(&mut self.bytes_in, other.bytes_in);
        add(&mut self.bytes_out, other.bytes_out);
    }
}

/// The body that follows the byte [`CELL_VERSION`]. [`Cell::add_stored`] decodes it field by field.
#[derive(Serialize)]
struct StoredCell {
    counts: Counts,
    wait: StoredDurations,
    run: StoredDurations,
    last_ms: u64,
}

/// A histogram. Buckets are in ascending order, each as (difference to the previous lower bound, count).
#[derive(Serialize)]
struct StoredDurations {
    sum: u64,
    min: u64,
    max: u64,
    buckets: Vec<(u64, u64)>,
}

const CELL_VERSION: u8 = 1;

impl Cell {
    pub(super) fn add(&mut self, record: &OperationRecord) {
        self.counts.merge(&Counts {
            count: 1,
            errors: u64::from(record.outcome.is_error()),
            cancelled: u64::from(record.outcome == OutcomeWord::Cancelled),
            joined: u64::from(record.joined),
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
        });
        self.wait.add(record.wait_us);
        if record.started_ms.is_some() {
            self.run.add(record.run_us);
        }
        self.last_ms = self.last_ms.max(record.ended_ms);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.counts.merge(&other.counts);
        self.wait.merge(&other.wait);
        self.run.merge(&other.run);
        self.last_ms = self.last_ms.max(other.last_ms);
    }

    /// Encodes the cell in its stored format.
    pub(super) fn encode(&self) -> Vec<u8> {
        self.encode_with(self.wait.store(), self.run.store())
    }

    /// Encodes the cell with its sums, but with each histogram reduced to one bucket. That is a tenth as long, but has no percentiles.
    pub(super) fn encode_sums(&self) -> Vec<u8> {
        self.encode_with(self.wait.store_sums(), self.run.store_sums())
    }

    fn encode_with(&self, wait: StoredDurations, run: StoredDurations) -> Vec<u8> {
        let stored = StoredCell {
            counts: self.counts,
            wait,
            run,
            last_ms: self.last_ms,
        };
        postcard::to_extend(&stored, vec![CELL_VERSION]).expect("encoding a cell in memory succeeds")
    }

    /// Decodes the output of [`Self::encode`] and adds it. Returns false if the bytes are invalid.
    #[must_use]
    pub(super) fn add_stored(&mut self, bytes: &[u8]) -> bool {
        match bytes {
            [CELL_VERSION, body @ ..] => self.add_body(body).is_some_and(<[u8]>::is_empty),
            _ => false,
        }
    }

    fn add_body<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let (counts, bytes) = take::<Counts>(bytes)?;
        let bytes = self.wait.add_stored(bytes)?;
        let bytes = self.run.add_stored(bytes)?;
        let (last_ms, bytes) = take::<u64>(bytes)?;
        self.counts.merge(&counts);
        self.last_ms = self.last_ms.max(last_ms);
        Some(bytes)
    }
}

/// How a summary groups operations into rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum GroupBy {
    /// One row for all operations.
    Nothing,
    /// One row per operation.
    Operation,
    /// One row per machine.
    Machine,
    /// One row per operation and machine.
    #[default]
    OperationAndMachine,
}

impl GroupBy {
    /// Returns the row that a series belongs to.
    pub fn row(self, series: &Series) -> Series {
        Series {
            operation: match self {
                Self::Operation | Self::OperationAndMachine => series.operation.clone(),
                Self::Nothing | Self::Machine => String::new(),
            },
            machine: match self {
                Self::Machine | Self::OperationAndMachine => series.machine.clone(),
                Self::Nothing | Self::Operation => MachineLabel::None,
            },
        }
    }
}

/// Collects the rows of a summary. At most [`SERIES_MAX`] of them have a machine's name.
#[derive(Debug)]
pub(super) struct Rows {
    group_by: GroupBy,
    places: HashMap<Series, usize>,
    cells: Vec<(Series, Cell)>,
    /// Number of rows with a machine's name.
    named: usize,
}

impl Rows {
    pub(super) fn new(group_by: GroupBy) -> Self {
        Self {
            group_by,
            places: HashMap::new(),
            cells: Vec::new(),
            named: 0,
        }
    }

    /// Returns the index of the row that aggregates `series`, for [`Self::at`]. Creates the row if necessary.
    pub(super) fn place(&mut self, series: &Series) -> usize {
        let mut row = self.group_by.row(series);
        // Only rows with a machine's name can grow without limit. There are at most as many others as there are verbs, twice.
        if matches!(row.machine, MachineLabel::Named(_)) && !self.places.contains_key(&row) {
            if self.named < SERIES_MAX {
                self.named += 1;
            } else {
                row = row.folded();
            }
        }
        *self.places.entry(row).or_insert_with_key(|row| {
            self.cells.push((row.clone(), Cell::default()));
            self.cells.len() - 1
        })
    }

    /// Returns the cell of the row with this index.
    pub(super) fn at(&mut self, place: usize) -> &mut Cell {
        &mut self.cells[place].1
    }

    /// Returns the cell of the row that aggregates `series`.
    pub(super) fn cell(&mut self, series: &Series) -> &mut Cell {
        let place = self.place(series);
        self.at(place)
    }

    /// Returns the rows in the order of their creation.
    pub(super) fn into_cells(self) -> Vec<(Series, Cell)> {
        self.cells
    }

    /// Returns the rows with their statistics, by number of operations in descending order.
    pub(super) fn finish(self) -> Vec<SummaryRow> {
        let mut rows: Vec<SummaryRow> = self
            .cells
            .into_iter()
            .map(|(series, cell)| SummaryRow {
                operation: Some(series.operation).filter(|verb| !verb.is_empty()),
                machine: series.machine,
                counts: cell.counts,
                wait: cell.wait.spread(),
                run: cell.run.spread(),
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.counts.count));
        rows
    }
}

/// One row of a summary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SummaryRow {
    /// Verb of the operations; `None` if the summary is not grouped by operation.
    pub operation: Option<String>,
    /// Machine of the operations.
    pub machine: MachineLabel,
    /// Sums over the operations.
    pub counts: Counts,
    /// Wait times of all operations.
    pub wait: Spread,
    /// Run times of the operations that started.
    pub run: Spread,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record::tests::sample;
    use super::*;

    /// Returns the exact percentile by the nearest-rank method.
    fn exact(sorted: &[u64], quantile: f64) -> u64 {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "tests use few samples"
        )]
        let rank = (quantile * sorted.len() as f64).ceil() as usize;
        sorted[rank.max(1) - 1]
    }

    fn check_spread(mut samples: Vec<u64>, spread: Spread) {
        samples.sort_unstable();
        assert_eq!(spread.count, samples.len() as u64);
        assert_eq!(
            (spread.min_us, spread.max_us),
            (samples[0], samples[samples.len() - 1])
        );
        for (quantile, found) in [(0.5, spread.p50_us), (0.9, spread.p90_us), (0.99, spread.p99_us)] {
            let exact = exact(&samples, quantile);
            let off = found.abs_diff(exact);
            assert!(
                off * 100 <= exact,
                "p{quantile}: {found} is not within 1 % of {exact}"
            );
        }
    }

    proptest! {
        #[test]
        fn percentiles_are_within_one_percent_after_storing_and_merging(
            parts in prop::collection::vec(prop::collection::vec(0_u64..20_000_000_000, 1..60), 1..6)
        ) {
            let mut whole = Cell::default();
            for part in &parts {
                let mut cell = Cell::default();
                for us in part {
                    let mut record = sample(1);
                    record.run_us = *us;
                    cell.add(&record);
                }
                prop_assert!(whole.add_stored(&cell.encode()));
            }
            check_spread(parts.concat(), whole.run.spread());
        }

        #[test]
        fn merging_in_memory_equals_merging_stored_cells(
            left in prop::collection::vec(0_u64..5_000_000, 0..40),
            right in prop::collection::vec(0_u64..5_000_000, 0..40),
        ) {
            let cell = |samples: &[u64]| {
                let mut cell = Cell::default();
                for us in samples {
                    let mut record = sample(1);
                    record.wait_us = *us;
                    cell.add(&record);
                }
                cell
            };
            let (left, right) = (cell(&left), cell(&right));
            let mut merged = left.clone();
            merged.merge(&right);
            let mut stored = Cell::default();
            prop_assert!(stored.add_stored(&left.encode()) && stored.add_stored(&right.encode()));
            prop_assert_eq!(merged.encode(), stored.encode());
        }

        #[test]
        fn series_reads_back_from_its_key(verb in "[a-z_]{1,12}", name in "[a-z*=][a-z0-9.*=-]{0,20}") {
            for machine in [MachineLabel::None, MachineLabel::Named(name.clone()), MachineLabel::Other] {
                let series = Series { operation: verb.clone(), machine };
                prop_assert_eq!(Series::from_key(&series.key()), Some(series));
            }
        }
    }

    #[test]
    fn job_that_never_started_has_a_wait_time_but_no_run_time() {
        let mut record = sample(1);
        record.started_ms = None;
        record.outcome = OutcomeWord::Cancelled;
        let mut cell = Cell::default();
        cell.add(&record);
        assert_eq!((cell.wait.count(), cell.run.count()), (1, 0));
        assert_eq!((cell.counts.errors, cell.counts.cancelled), (0, 1));
        assert_eq!(cell.run.spread(), Spread::default());
    }

    #[test]
    fn operations_without_a_machine_keep_their_row_when_machines_are_folded() {
        for group_by in [GroupBy::Machine, GroupBy::OperationAndMachine] {
            let mut rows = Rows::new(group_by);
            for id in 0..1000 {
                let mut record = sample(id);
                record.machine = Some(format!("ci-{id}").parse().expect("valid"));
                rows.cell(&Series::of(&record)).add(&record);
            }
            let mut record = sample(1000);
            record.machine = None;
            rows.cell(&Series::of(&record)).add(&record);
            let rows = rows.finish();
            let count = |label: &MachineLabel| -> u64 {
                let matching = rows.iter().filter(|row| row.machine == *label);
                matching.map(|row| row.counts.count).sum()
            };
            assert_eq!(count(&MachineLabel::None), 1);
            assert_eq!(count(&MachineLabel::Other), 1000 - SERIES_MAX as u64);
        }
    }

    #[test]
    fn machines_beyond_the_limit_are_folded_into_one_row() {
        let mut rows = Rows::new(GroupBy::OperationAndMachine);
        for id in 0..1000 {
            let mut record = sample(id);
            record.machine = Some(format!("ci-{id}").parse().expect("valid"));
            rows.cell(&Series::of(&record)).add(&record);
        }
        let rows = rows.finish();
        assert_eq!(rows.len(), SERIES_MAX + 1);
        assert_eq!(rows[0].machine, MachineLabel::Other);
        assert_eq!(rows.iter().map(|row| row.counts.count).sum::<u64>(), 1000);
    }

    /// A cell with one `sample(7)`, in its stored format.
    const SAMPLE: &[u8] = include_bytes!("../../tests/data/metrics/cell-v1.bin");

    #[test]
    fn sample_cell_encodes_to_and_decodes_from_the_committed_bytes() {
        let mut cell = Cell::default();
        cell.add(&sample(7));
        assert_eq!(cell.encode(), SAMPLE);
        let mut read = Cell::default();
        assert!(read.add_stored(SAMPLE));
        assert_eq!(read.encode(), SAMPLE);
    }

    #[test]
    fn invalid_bytes_are_not_added() {
        assert!(!Cell::default().add_stored(&[9, 1]));
        assert!(!Cell::default().add_stored(&SAMPLE[..SAMPLE.len() - 1]));
    }
}

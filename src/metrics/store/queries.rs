//! Reads summaries and pages of history from the store.

use std::collections::HashMap;
use std::ops::Range;

use super::buckets::{DAY_HOURS, HOUR_MS, Part, Resolution, parts};
use super::error::Trouble;
use super::layout::{read_cell_key, read_record_key, record_key};
use super::{Database, Limit, StoredPage};
use crate::metrics::query::{Cursor, HistoryRequest, Order, Summary, SummaryRequest, WindowResolution};
use crate::metrics::record::OperationRecord;
use crate::metrics::rollup::{GroupBy, Rows, Series, SummaryRow};

impl Database {
    /// Returns a summary of the operations that ended within a window.
    ///
    /// Whole hours, days and spans are read from the roll-ups. The partial hours at the edges of the window are computed from the records.
    /// If those were removed, the window is widened to whole hours or days, and the summary contains the actual window.
    pub(in crate::metrics) fn summary(
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

    pub(super) fn add_cells(
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
    pub(in crate::metrics) fn totals(&self, mut limit: Limit) -> Result<Vec<SummaryRow>, Trouble> {
        let mut rows = Rows::new(GroupBy::OperationAndMachine);
        let all = SummaryRequest::default();
        self.add_cells(Resolution::Total, &(0..1), &all, &mut rows, &mut limit)?;
        Ok(rows
            .finish()
            .into_iter()
            .filter(|row| row.counts.count > 0)
            .collect())
    }

    /// Returns one page of records. At the time limit it returns the records found so far, which may be none.
    pub(in crate::metrics) fn history(
        &self,
        request: &HistoryRequest,
        mut limit: Limit,
    ) -> Result<StoredPage, Trouble> {
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

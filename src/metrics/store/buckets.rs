//! Periods of time: the buckets of cells, and which of them answer a query.

use std::ops::Range;

pub(super) const HOUR_MS: u64 = 3_600_000;

pub(super) const DAY_HOURS: u32 = 24;

pub(super) const SPAN_DAYS: u32 = 32;

/// Length of the periods that cells aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Resolution {
    Hour,
    Day,
    Span,
    Total,
}

impl Resolution {
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Hour => b'h',
            Self::Day => b'd',
            Self::Span => b'm',
            Self::Total => b't',
        }
    }

    pub(super) fn bucket(self, ms: u64) -> u32 {
        let hour = hour_of(ms);
        match self {
            Self::Hour => hour,
            Self::Day => hour / DAY_HOURS,
            Self::Span => hour / DAY_HOURS / SPAN_DAYS,
            Self::Total => 0,
        }
    }

    pub(super) fn prefix(self, bucket: u32) -> Vec<u8> {
        let mut key = vec![b'r', self.byte()];
        key.extend_from_slice(&bucket.to_be_bytes());
        key
    }
}

pub(super) fn hour_of(ms: u64) -> u32 {
    u32::try_from(ms / HOUR_MS).unwrap_or(u32::MAX)
}

/// A part of a window, by the kind of rows that it is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Records(Range<u64>),
    Cells(Resolution, Range<u32>),
}

/// Splits a window into computed spans and days, the whole hours around them, and the partial hours at the edges.
pub(super) fn parts(since_ms: u64, until_ms: u64, days_to: u32, spans_to: u32) -> Vec<Part> {
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

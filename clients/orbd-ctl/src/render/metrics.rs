//! Metrics: summaries, history and counters.

use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::Cell;
use orbd_proto::types::{CountersAnswer, MetricsHistoryAnswer, MetricsSummaryAnswer, WindowResolution};

use super::{BAD, HINT, cell, duration, duration_us};
use crate::layout::Look;

/// Formats a metrics summary: the window that it covers, then counts and percentiles. If the terminal is too narrow, omits the p90
/// columns and prints a note.
pub(crate) fn metrics(answer: &MetricsSummaryAnswer, asked: Option<Duration>, look: Look) -> String {
    let anywhere = Look { width: None, ..look };
    let window = look.paragraph(&window(answer, asked), 0);
    let whole = percentiles(answer, anywhere, true);
    if look.fits(&whole) {
        return window + &whole;
    }
    let note = "p90 columns omitted: the terminal is too narrow; --json has them\n";
    window + &percentiles(answer, look, false) + &look.paragraph(note, 0)
}

/// Formats the window that a summary covers, and why it is longer than the requested one.
pub(super) fn window(answer: &MetricsSummaryAnswer, asked: Option<Duration>) -> String {
    let (Some(since), Some(asked)) = (&answer.since, asked) else {
        return "all recorded operations\n".into();
    };
    let asked = duration(asked);
    let sums = match answer.resolution {
        WindowResolution::Record => return format!("last {asked}\n"),
        WindowResolution::Hour => "hourly",
        WindowResolution::Day => "daily",
    };
    format!(
        "last {}, since {}, instead of the last {asked}: older records are kept only as {sums} sums\n",
        between(since, &answer.until),
        short_time(since)
    )
}

/// Formats the time between two RFC 3339 timestamps.
fn between(earlier: &str, later: &str) -> String {
    let parsed = |text: &str| text.parse::<jiff::Timestamp>().ok();
    match (parsed(earlier), parsed(later)) {
        (Some(earlier), Some(later)) => duration(later.duration_since(earlier).unsigned_abs()),
        _ => "unknown time".into(),
    }
}

fn percentiles(answer: &MetricsSummaryAnswer, look: Look, with_p90: bool) -> String {
    let by_operation = answer.rows.iter().any(|row| row.operation.is_some()) || answer.rows.is_empty();
    let by_machine = answer
        .rows
        .iter()
        .any(|row| row.machine.is_some() || row.other_machines);
    let p90 = |name| with_p90.then_some(name);
    let header: Vec<&str> = [
        by_operation.then_some("\nOPERATION"),
        by_machine.then_some("\nMACHINE"),
        Some("\nCOUNT"),
        Some("\nERR"),
        Some("WAIT\np50"),
        p90("\np90"),
        Some("\np99"),
        Some("RUN\np50"),
        p90("\np90"),
        Some("\np99"),
        Some("\nmax"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let names = usize::from(by_operation) + usize::from(by_machine);
    let right: Vec<usize> = (names..header.len()).collect();
    let wide: Vec<usize> = (0..names).collect();
    let rows = answer.rows.iter().map(|row| {
        let name = |name: &Option<String>| Cell::new(name.as_deref().unwrap_or("-"));
        let machine = || {
            if row.other_machines {
                // Parentheses are not allowed in a machine's name, so this cannot be one.
                return Cell::new("(others)");
            }
            name(&row.machine)
        };
        let time = |us: u64| Some(Cell::new(duration_us(us)));
        [
            by_operation.then(|| name(&row.operation)),
            by_machine.then(machine),
            Some(Cell::new(row.count)),
            Some(match row.errors {
                0 => Cell::new(0),
                errors => Cell::new(errors).fg(BAD),
            }),
            time(row.wait.p50_us),
            time(row.wait.p90_us).filter(|_| with_p90),
            time(row.wait.p99_us),
            time(row.run.p50_us),
            time(row.run.p90_us).filter(|_| with_p90),
            time(row.run.p99_us),
            time(row.run.max_us),
        ]
        .into_iter()
        .flatten()
        .collect()
    });
    look.table(&header, &right, &wide, rows)
}

/// Formats recorded operations as a table.
pub(crate) fn history(answer: &MetricsHistoryAnswer, look: Look) -> String {
    let mut header = vec![
        "JOB",
        "ENDED",
        "OPERATION",
        "MACHINE",
        "CLIENT",
        "WAIT",
        "RUN",
        "OUTCOME",
    ];
    let has_labels = answer.records.iter().any(|record| record.label.is_some());
    if has_labels {
        header.push("LABEL");
    }
    look.table(
        &header,
        &[0, 5, 6],
        &[3, 4, 7, 8],
        answer.records.iter().map(|record| {
            let outcome = match (record.outcome.as_str(), record.exit_code) {
                ("succeeded", None | Some(0)) => Cell::new("succeeded"),
                ("succeeded", Some(code)) => Cell::new(format!("exit {code}")).fg(HINT),
                (outcome, _) => Cell::new(outcome).fg(BAD),
            };
            let mut row = vec![
                Cell::new(record.job_id),
                Cell::new(short_time(&record.ended_at)),
                cell(&record.operation),
                cell(record.machine.as_deref().unwrap_or("-")),
                cell(&record.client.name),
                Cell::new(duration_us(record.wait_us)),
                Cell::new(duration_us(record.run_us)),
                outcome,
            ];
            if has_labels {
                row.push(cell(record.label.as_deref().unwrap_or("-")));
            }
            row
        }),
    )
}

/// Shortens `2026-11-20T16:04:05.123Z` to `11-20 16:04:05Z`, still in UTC.
fn short_time(rfc3339: &str) -> String {
    match (rfc3339.get(5..10), rfc3339.get(11..19)) {
        (Some(date), Some(time)) => format!("{date} {time}Z"),
        _ => rfc3339.to_owned(),
    }
}

/// Formats counters and the state of the metrics store.
pub(crate) fn counters(answer: &CountersAnswer, look: Look) -> String {
    let mut text = look.pairs(
        answer
            .counters
            .iter()
            .map(|(name, count)| (name.as_str(), count.to_string())),
    );
    let _ = writeln!(text, "metrics store: {}", answer.store);
    text
}

//! Export formats of the metrics: JSON lines, CSV, and the Prometheus text exposition format.

use std::fmt::Write;
use std::mem;

use serde_json::json;

use super::counters::{Counter, Counters, StoreState};
use super::handle::Metrics;
use super::query::{Cursor, HistoryFilter, HistoryRequest, Order, StoreError, SummaryRequest};
use super::record::OperationRecord;
use super::rollup::{GroupBy, MachineLabel, Spread, SummaryRow};
use crate::clock::Moment;
use crate::job::Ending;

/// Maximum number of records in one chunk of an export: about 100 KB of text, which limits the memory of an export.
const CHUNK_RECORDS: usize = 256;

/// Format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordFormat {
    /// One JSON object per line.
    JsonLines,
    /// CSV with a header line, according to RFC 4180.
    Csv,
}

/// An export of records in chunks. It requests one page at a time from the store, so a slow reader does not block other queries.
#[derive(Debug)]
pub struct Export {
    metrics: Metrics,
    format: RecordFormat,
    filter: HistoryFilter,
    /// Text before the first record; empty after the first chunk.
    header: String,
    next: Next,
}

/// Position at which an export continues.
#[derive(Debug, Clone, Copy)]
enum Next {
    Start,
    After(Cursor),
    End,
}

impl Metrics {
    /// Starts an export of all matching records, oldest first. No resources of the store are held between chunks.
    pub fn export(&self, format: RecordFormat, filter: HistoryFilter) -> Export {
        Export::new(self.clone(), format, filter)
    }

    /// Returns counters and summaries in the Prometheus text exposition format 0.0.4.
    pub async fn prometheus_page(&self) -> String {
        prometheus_page(self).await
    }
}

impl Export {
    pub(super) fn new(metrics: Metrics, format: RecordFormat, filter: HistoryFilter) -> Self {
        Self {
            metrics,
            format,
            filter,
            header: match format {
                RecordFormat::JsonLines => String::new(),
                RecordFormat::Csv => COLUMNS.join(",") + "\r\n",
            },
            next: Next::Start,
        }
    }

    /// Returns the next chunk of text; `None` after the last one.
    pub async fn next_chunk(&mut self) -> Result<Option<String>, StoreError> {
        loop {
            let after = match self.next {
                Next::Start => None,
                Next::After(cursor) => Some(cursor),
                Next::End => return Ok(None),
            };
            let page = self
                .metrics
                .history(HistoryRequest {
                    filter: self.filter.clone(),
                    limit: CHUNK_RECORDS,
                    before: None,
                    after,
                    order: Order::OldestFirst,
                })
                .await?;
            self.next = page.next.map_or(Next::End, Next::After);
            let mut chunk = mem::take(&mut self.header);
            for (_, record) in &page.records {
                match self.format {
                    RecordFormat::JsonLines => json_line(&mut chunk, record),
                    RecordFormat::Csv => csv_line(&mut chunk, record),
                }
            }
            // A page can be empty although there is a next one: if no record matched within the time limit.
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }
}

fn ending_word(ending: Option<Ending>) -> Option<&'static str> {
    ending.map(|ending| match ending {
        Ending::Exited(_) => "exited",
        Ending::Signalled(_) => "signalled",
        Ending::TimedOut => "timed_out",
        Ending::Stopped => "stopped",
    })
}

fn signal(ending: Option<Ending>) -> Option<i32> {
    match ending {
        Some(Ending::Signalled(signal)) => Some(signal),
        _ => None,
    }
}

fn json_line(out: &mut String, record: &OperationRecord) {
    let line = json!({
        "job_id": record.id,
        "operation": record.operation,
        "machine": record.machine.as_ref().map(orbd_host::machine::MachineName::as_str),
        "job_class": record.class.as_str(),
        "client": &*record.client.name,
        "client_pid": record.client.pid,
        "client_uid": record.client.uid,
        "accepted_ms": record.accepted_ms,
        "started_ms": record.started_ms,
        "ended_ms": record.ended_ms,
        "wait_us": record.wait_us,
        "run_us": record.run_us,
        "ending": ending_word(record.ending),
        "signal": signal(record.ending),
        "outcome": record.outcome.as_str(),
        "exit_code": record.exit_code,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "joined": record.joined,
        "changed": record.changed,
        "in_channel": record.in_channel,
        "label": record.label.as_deref(),
    });
    let _ = writeln!(out, "{line}");
}

const COLUMNS: [&str; 22] = [
    "job_id",
    "operation",
    "machine",
    "job_class",
    "client",
    "client_pid",
    "client_uid",
    "accepted_ms",
    "started_ms",
    "ended_ms",
    "wait_us",
    "run_us",
    "ending",
    "signal",
    "outcome",
    "exit_code",
    "bytes_in",
    "bytes_out",
    "joined",
    "changed",
    "in_channel",
    "label",
];

fn csv_line(out: &mut String, record: &OperationRecord) {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(String::new, |value| value.to_string())
    }
    let fields: [String; COLUMNS.len()] = [
        record.id.to_string(),
        record.operation.to_string(),
        text(record.machine.as_ref()),
        record.class.as_str().to_owned(),
        record.client.name.to_string(),
        text(record.client.pid),
        record.client.uid.to_string(),
        record.accepted_ms.to_string(),
        text(record.started_ms),
        record.ended_ms.to_string(),
        record.wait_us.to_string(),
        record.run_us.to_string(),
        text(ending_word(record.ending)),
        text(signal(record.ending)),
        record.outcome.as_str().to_owned(),
        text(record.exit_code),
        record.bytes_in.to_string(),
        record.bytes_out.to_string(),
        record.joined.to_string(),
        text(record.changed),
        record.in_channel.to_string(),
        text(record.label.as_deref()),
    ];
    for (at, field) in fields.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        csv_field(out, field);
    }
    out.push_str("\r\n");
}

/// Writes one field, quoted if necessary. Clients choose their names, so a field that a spreadsheet would evaluate as a formula gets a
/// leading apostrophe.
fn csv_field(out: &mut String, field: &str) {
    let formula = field.starts_with(['=', '+', '@', '\t', '\r'])
        || (field.starts_with('-') && field.parse::<f64>().is_err());
    if !formula && !field.contains(['"', ',', '\r', '\n']) {
        out.push_str(field);
        return;
    }
    out.push('"');
    if formula {
        out.push('\'');
    }
    out.push_str(&field.replace('"', "\"\""));
    out.push('"');
}

/// Time span of the quantiles on the Prometheus page.
const PROMETHEUS_WINDOW_MS: u64 = 24 * 3_600_000;

async fn prometheus_page(metrics: &Metrics) -> String {
    let mut page = String::new();
    // If the store fails, the page still has the counters, and `orbd_store_up` reports the failure.
    let totals = metrics.totals().await;
    let recent = metrics
        .summary(SummaryRequest {
            since_ms: Moment::now().unix_ms().saturating_sub(PROMETHEUS_WINDOW_MS),
            group_by: GroupBy::OperationAndMachine,
            ..SummaryRequest::default()
        })
        .await;
    prometheus_counters(&mut page, &metrics.counters());
    if let (Ok(totals), Ok(recent)) = (totals, recent) {
        prometheus_operations(&mut page, &totals, &recent.rows);
    }
    page
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(
        page,
        "# HELP {name} {}",
        help.replace('\\', "\\\\").replace('\n', "\\n")
    );
    let _ = writeln!(page, "# TYPE {name} {kind}");
}

fn prometheus_counters(page: &mut String, counters: &Counters) {
    for counter in Counter::ALL {
        let name = format!("orbd_{}_total", counter.as_str());
        head(page, &name, "counter", counter.help());
        let _ = writeln!(page, "{name} {}", counters.get(counter));
    }
    head(
        page,
        "orbd_records_dropped_total",
        "counter",
        "Records lost because the metrics store was away.",
    );
    let _ = writeln!(page, "orbd_records_dropped_total {}", counters.dropped);
    head(
        page,
        "orbd_records_buffered",
        "gauge",
        "Records waiting for the metrics store.",
    );
    let _ = writeln!(page, "orbd_records_buffered {}", counters.buffered);
    head(
        page,
        "orbd_store_up",
        "gauge",
        "Whether the metrics store can be used.",
    );
    let up = u8::from(!matches!(counters.store, StoreState::Failed { .. }));
    let _ = writeln!(page, "orbd_store_up {up}");
}

fn labels(row: &SummaryRow) -> String {
    let mut labels = format!(
        "operation=\"{}\"",
        label(row.operation.as_deref().unwrap_or_default())
    );
    let machine = row.machine.name().unwrap_or_default();
    let _ = write!(labels, ",machine=\"{}\"", label(machine));
    // Distinguishes this row from operations without a machine. Equal label sets would make the page invalid.
    if row.machine == MachineLabel::Other {
        labels.push_str(",other_machines=\"true\"");
    }
    labels
}

fn label(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn seconds(us: u64) -> String {
    let (whole, part) = (us / 1_000_000, us % 1_000_000);
    if part == 0 {
        return whole.to_string();
    }
    format!("{whole}.{part:06}").trim_end_matches('0').to_owned()
}

fn prometheus_operations(page: &mut String, totals: &[SummaryRow], recent: &[SummaryRow]) {
    type Value = fn(&SummaryRow) -> u64;
    type Of = fn(&SummaryRow) -> Spread;
    let counters: [(&str, &str, Value); 6] = [
        ("operations", "Operations ended.", |row| row.counts.count),
        (
            "operation_errors",
            "Operations failed, expired, interrupted or of unknown outcome.",
            |row| row.counts.errors,
        ),
        ("operations_cancelled", "Operations cancelled.", |row| {
            row.counts.cancelled
        }),
        (
            "operations_joined",
            "Operations that shared another's invocation.",
            |row| row.counts.joined,
        ),
        ("operation_input_bytes", "Bytes of input.", |row| {
            row.counts.bytes_in
        }),
        ("operation_output_bytes", "Bytes of output.", |row| {
            row.counts.bytes_out
        }),
    ];
    for (name, help, value) in counters {
        let name = format!("orbd_{name}_total");
        head(page, &name, "counter", help);
        for row in totals {
            let _ = writeln!(page, "{name}{{{}}} {}", labels(row), value(row));
        }
    }
    let summaries: [(&str, &str, Of); 2] = [
        (
            "orbd_operation_wait_seconds",
            "Time between acceptance and start; quantiles of the last day.",
            |row| row.wait,
        ),
        (
            "orbd_operation_run_seconds",
            "Time between start and end; quantiles of the last day.",
            |row| row.run,
        ),
    ];
    for (name, help, spread) in summaries {
        head(page, name, "summary", help);
        for row in totals {
            let labels = labels(row);
            let lately = recent
                .iter()
                .find(|other| other.operation == row.operation && other.machine == row.machine)
                .map(spread)
                .filter(|spread| spread.count > 0);
            for (quantile, value) in [
                ("0.5", lately.map(|spread| spread.p50_us)),
                ("0.9", lately.map(|spread| spread.p90_us)),
                ("0.99", lately.map(|spread| spread.p99_us)),
            ] {
                let value = value.map_or_else(|| "NaN".to_owned(), seconds);
                let _ = writeln!(page, "{name}{{{labels},quantile=\"{quantile}\"}} {value}");
            }
            let all = spread(row);
            let _ = writeln!(page, "{name}_sum{{{labels}}} {}", seconds(all.sum_us));
            let _ = writeln!(page, "{name}_count{{{labels}}} {}", all.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::sample;
    use super::super::rollup::{Rows, Series};
    use super::*;

    #[test]
    fn csv_field_is_quoted_if_necessary() {
        fn check(field: &str, expected: &str) {
            let mut out = String::new();
            csv_field(&mut out, field);
            assert_eq!(out, expected);
        }
        check("plain", "plain");
        check("", "");
        check("a,b", "\"a,b\"");
        check("say \"hi\"\n", "\"say \"\"hi\"\"\n\"");
        check("-12", "-12");
        check("=cmd()", "\"'=cmd()\"");
        check("-cmd", "\"'-cmd\"");
    }

    #[test]
    fn csv_line_has_one_field_per_column() {
        let mut out = String::new();
        csv_line(&mut out, &sample(7));
        assert_eq!(
            out,
            "7,start,web,change,deploy,4711,501,1763650000000,1763650000020,1763650001250,20123,1230456,exited,,\
             succeeded,0,12,34567,false,true,true,\r\n"
        );
        assert_eq!(out.matches(',').count() + 1, COLUMNS.len());
    }

    #[test]
    fn json_line_is_one_object_with_the_names_of_the_csv_columns() {
        let mut out = String::new();
        json_line(&mut out, &sample(7));
        assert!(out.ends_with('\n') && out.matches('\n').count() == 1);
        let value: serde_json::Value = serde_json::from_str(&out).expect("valid JSON");
        let object = value.as_object().expect("an object");
        assert_eq!(object.len(), COLUMNS.len());
        assert!(COLUMNS.iter().all(|column| object.contains_key(*column)));
        assert_eq!(object["machine"], "web");
    }

    #[test]
    fn prometheus_page_has_the_text_exposition_format() {
        let mut rows = Rows::new(GroupBy::OperationAndMachine);
        let record = sample(1);
        rows.cell(&Series::of(&record)).add(&record);
        rows.cell(&Series {
            operation: "start".into(),
            machine: MachineLabel::Other,
        })
        .add(&record);
        let rows = rows.finish();
        let mut page = String::new();
        prometheus_operations(&mut page, &rows, &rows[..1]);
        assert!(page.contains("# TYPE orbd_operation_run_seconds summary\n"));
        assert!(page.contains("orbd_operations_total{operation=\"start\",machine=\"web\"} 1\n"));
        assert!(
            page.contains(
                "orbd_operations_total{operation=\"start\",machine=\"\",other_machines=\"true\"} 1\n"
            )
        );
        assert!(
            page.contains("orbd_operation_run_seconds_sum{operation=\"start\",machine=\"web\"} 1.230456\n")
        );
        assert!(page.contains("machine=\"\",other_machines=\"true\",quantile=\"0.5\"} NaN\n"));
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let (_, value) = line.rsplit_once(' ').expect("a name and a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }

    #[test]
    fn labels_are_escaped_and_seconds_are_exact() {
        assert_eq!(label("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
        assert_eq!(seconds(0), "0");
        assert_eq!(seconds(1_500_000), "1.5");
        assert_eq!(seconds(7), "0.000007");
    }
}

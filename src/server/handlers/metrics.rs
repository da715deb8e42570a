//! `metrics.*`: counts and durations of past operations.

use crate::clock::Moment;
use crate::metrics::{
    Counter, GroupBy, HistoryFilter, HistoryRequest, MachineLabel, OperationRecord, OutcomeWord, Spread,
    StoreError, StoreState, SummaryRequest, SummaryRow, WindowResolution,
};
use crate::server::convert::{parse, time_ms};
use crate::server::registry::Registry;
use orbd_proto::errors::{ErrorKind, invalid};
use orbd_proto::methods::{MetricsCounters, MetricsHistory, MetricsSummary};
use orbd_proto::types::{
    self, CountersAnswer, Distribution, ErrorObject, MetricsHistoryAnswer, MetricsRecord, MetricsRow,
    MetricsSummaryAnswer,
};

/// Retry delay after a store error.
const RETRY_AFTER_MS: u64 = 1000;
/// Default of `limit` in `metrics.history`.
const HISTORY_DEFAULT: usize = 100;

fn summary_row(row: &SummaryRow) -> MetricsRow {
    MetricsRow {
        operation: row.operation.clone(),
        machine: row.machine.name().map(str::to_owned),
        other_machines: row.machine == MachineLabel::Other,
        count: row.counts.count,
        errors: row.counts.errors,
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 53 bits")]
        error_rate: row.counts.errors as f64 / row.counts.count.max(1) as f64,
        wait: distribution(&row.wait),
        run: distribution(&row.run),
    }
}

pub(super) fn register(registry: &mut Registry) {
    registry.method::<MetricsSummary, _, _>(async |call, params| {
        let now = Moment::now().unix_ms();
        let request = SummaryRequest {
            since_ms: params.window_ms.map_or(0, |window| now.saturating_sub(window)),
            until_ms: u64::MAX,
            operation: params.operation,
            machine: params.machine,
            group_by: match params.group_by.unwrap_or_default() {
                types::GroupBy::Operation => GroupBy::Operation,
                types::GroupBy::Machine => GroupBy::Machine,
                types::GroupBy::Both => GroupBy::OperationAndMachine,
            },
        };
        let summary = call
            .server
            .metrics
            .summary(request)
            .await
            .map_err(|error| store_error(&error))?;
        let rows = summary.rows.iter().map(summary_row).collect();
        Ok(MetricsSummaryAnswer {
            since: (summary.since_ms > 0).then(|| time_ms(summary.since_ms)),
            until: time_ms(now),
            resolution: match summary.resolution {
                WindowResolution::Record => types::WindowResolution::Record,
                WindowResolution::Hour => types::WindowResolution::Hour,
                WindowResolution::Day => types::WindowResolution::Day,
            },
            rows,
        })
    });
    registry.method::<MetricsHistory, _, _>(async |call, params| {
        let limit = params.limit.unwrap_or(HISTORY_DEFAULT);
        if limit == 0 || limit > crate::metrics::HISTORY_PAGE_MAX {
            return Err(invalid(
                "limit",
                format!("must be from 1 to {}", crate::metrics::HISTORY_PAGE_MAX),
            ));
        }
        let outcome = match &params.outcome {
            Some(word) => Some(OutcomeWord::from_word(word).ok_or_else(|| {
                invalid(
                    "outcome",
                    "must be succeeded, failed, cancelled, expired, interrupted or unknown",
                )
            })?),
            None => None,
        };
        let request = HistoryRequest {
            filter: HistoryFilter {
                operation: params.operation,
                machine: params.machine,
                outcome,
                ..HistoryFilter::default()
            },
            limit,
            before: params.cursor.map(|cursor| parse("cursor", &cursor)).transpose()?,
            ..HistoryRequest::default()
        };
        let page = call
            .server
            .metrics
            .history(request)
            .await
            .map_err(|error| store_error(&error))?;
        let records = page.records.iter().map(|(_, record)| written(record)).collect();
        Ok(MetricsHistoryAnswer {
            records,
            cursor: page.next.map(|cursor| cursor.to_string()),
        })
    });
    registry.method::<MetricsCounters, _, _>(async |call, _params| {
        let counters = call.server.metrics.counters();
        let mut values: std::collections::BTreeMap<String, u64> = Counter::ALL
            .into_iter()
            .map(|counter| (counter.as_str().to_owned(), counters.get(counter)))
            .collect();
        values.insert("records_dropped".into(), counters.dropped);
        values.insert("records_accepted".into(), counters.recorded);
        let store = match counters.store {
            StoreState::Open => "open".to_owned(),
            StoreState::Closed => "closed".to_owned(),
            StoreState::Failed { reason } => reason,
        };
        Ok(CountersAnswer {
            counters: values,
            store,
        })
    });
}

fn distribution(spread: &Spread) -> Distribution {
    Distribution {
        min_us: spread.min_us,
        p50_us: spread.p50_us,
        p90_us: spread.p90_us,
        p99_us: spread.p99_us,
        max_us: spread.max_us,
    }
}

fn written(record: &OperationRecord) -> MetricsRecord {
    MetricsRecord {
        job_id: record.id,
        operation: record.operation.to_string(),
        machine: record.machine.as_ref().map(ToString::to_string),
        job_class: record.class.as_str().into(),
        client: types::Client {
            name: record.client.name.to_string(),
            pid: record.client.pid,
            uid: record.client.uid,
        },
        accepted_at: time_ms(record.accepted_ms),
        started_at: record.started_ms.map(time_ms),
        ended_at: time_ms(record.ended_ms),
        wait_us: record.wait_us,
        run_us: record.run_us,
        outcome: record.outcome.as_str().into(),
        exit_code: record.exit_code,
        bytes_in: record.bytes_in,
        bytes_out: record.bytes_out,
        joined: record.joined,
        in_channel: record.in_channel,
        label: record.label.as_deref().map(str::to_owned),
    }
}

fn store_error(error: &StoreError) -> ErrorObject {
    let mut data = ErrorKind::StoreUnavailable.data();
    data.retry_after_ms = Some(RETRY_AFTER_MS);
    ErrorKind::StoreUnavailable.with(error.to_string(), data)
}

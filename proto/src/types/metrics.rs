//! Metrics.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::job::{JobClass, OutcomeWord};
use super::{Client, is_false};

/// Parameters of `metrics.summary`.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsSummaryParams {
    /// Length of the time window, which ends now, in milliseconds. Default: everything stored.
    pub window_ms: Option<u64>,
    /// Only this operation, such as `start`.
    pub operation: Option<String>,
    /// Only the machine with this name.
    pub machine: Option<String>,
    /// One row per operation (`operation`), per machine (`machine`) or per pair (`both`). Default `operation`.
    pub group_by: Option<GroupBy>,
}

/// How the rows of a summary are grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupBy {
    /// One row per operation.
    #[default]
    Operation,
    /// One row per machine.
    Machine,
    /// One row per operation and machine.
    Both,
}

/// Distribution of durations, in microseconds. Percentiles are accurate to 1 %.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Distribution {
    /// Minimum.
    pub min_us: u64,
    /// Median.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Maximum.
    pub max_us: u64,
}

/// A row of a summary.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricsRow {
    /// Operation; absent if rows are grouped by machine only.
    pub operation: Option<String>,
    /// Machine; absent if rows are not grouped by machine, for operations without a machine, and if `other_machines` is true.
    pub machine: Option<String>,
    /// Whether the row is the sum of all machines beyond the 256 that have their own row.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("default" = false))]
    pub other_machines: bool,
    /// Number of jobs that ended.
    pub count: u64,
    /// Number of these jobs that did not succeed.
    pub errors: u64,
    /// `errors / count`, from 0 to 1.
    pub error_rate: f64,
    /// Time from acceptance to start.
    pub wait: Distribution,
    /// Time from start to end.
    pub run: Distribution,
}

/// Precision of the window of a summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WindowResolution {
    /// Exact: the window is the requested one.
    Record,
    /// Whole hours: individual records of that age are no longer stored, so the window was widened to a whole hour.
    Hour,
    /// Whole days: hourly sums of that age are no longer stored, so the window was widened to a whole day.
    Day,
}

/// Answer of `metrics.summary`.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MetricsSummaryAnswer {
    /// Start of the window that the rows cover, never later than requested; absent if they cover everything stored.
    #[schemars(extend("format" = "date-time"))]
    pub since: Option<String>,
    /// End of the window: the time of the answer.
    #[schemars(extend("format" = "date-time"))]
    pub until: String,
    /// Precision of `since`.
    pub resolution: WindowResolution,
    /// The rows, those with the most jobs first.
    pub rows: Vec<MetricsRow>,
}

/// Parameters of `metrics.history`.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsHistoryParams {
    /// Only this operation, such as `start`.
    pub operation: Option<String>,
    /// Only the machine with this name.
    pub machine: Option<String>,
    /// Only this outcome.
    #[schemars(with = "Option<OutcomeWord>")]
    pub outcome: Option<String>,
    /// Maximum number of records. Default 100.
    #[schemars(range(min = 1, max = 1_000))]
    pub limit: Option<usize>,
    /// The `cursor` of the previous answer, to get the next page. Default: start with the newest record.
    pub cursor: Option<String>,
}

/// The record of an ended job.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricsRecord {
    /// Id of the job.
    pub job_id: u64,
    /// Operation, such as `start`.
    pub operation: String,
    /// Machine that the job was about; absent if there was none, or more than one.
    pub machine: Option<String>,
    /// Class of the operation.
    #[schemars(with = "JobClass")]
    pub job_class: String,
    /// The client that submitted the job.
    pub client: Client,
    /// Time of acceptance.
    #[schemars(extend("format" = "date-time"))]
    pub accepted_at: String,
    /// Time of the start; absent if the job never started.
    #[schemars(extend("format" = "date-time"))]
    pub started_at: Option<String>,
    /// Time of the end.
    #[schemars(extend("format" = "date-time"))]
    pub ended_at: String,
    /// Microseconds from acceptance to start, or to the end if it never started.
    pub wait_us: u64,
    /// Microseconds from start to end; 0 if it never started.
    pub run_us: u64,
    /// How the job ended; see `Outcome`.
    #[schemars(with = "OutcomeWord")]
    pub outcome: String,
    /// Exit code; absent if there was none.
    pub exit_code: Option<i32>,
    /// Bytes of input that the job got.
    pub bytes_in: u64,
    /// Bytes of output that the job wrote.
    pub bytes_out: u64,
    /// Whether several callers shared the job.
    pub joined: bool,
    /// Whether a resident channel carried out the command, instead of an `orbctl run` of its own.
    #[serde(default, skip_serializing_if = "is_false")]
    #[schemars(extend("default" = false))]
    pub in_channel: bool,
    /// Label that the client gave the job; absent if it gave none.
    pub label: Option<String>,
}

/// Answer of `metrics.history`.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MetricsHistoryAnswer {
    /// The records, newest first.
    pub records: Vec<MetricsRecord>,
    /// Pass it as `cursor` to get the next page; absent on the last page.
    pub cursor: Option<String>,
}

/// Answer of `metrics.counters`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CountersAnswer {
    /// Counters since the daemon started, by name.
    pub counters: BTreeMap<String, u64>,
    /// `open`, `closed` (orbd opens the store when needed), or why the store failed.
    pub store: String,
}

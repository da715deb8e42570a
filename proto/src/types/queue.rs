//! The queue, and outages of `orbctl`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

/// Answer of `queue.status`, `queue.pause`, `queue.resume` and `queue.drain`.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct QueueStatusAnswer {
    /// Number of waiting jobs.
    pub waiting: usize,
    /// Number of running jobs.
    pub running: usize,
    /// Maximum number of waiting jobs (`queue_max`).
    pub queue_max: usize,
    /// Whether the whole queue is paused: no job starts.
    pub paused: bool,
    /// Machines whose lane is paused.
    pub paused_machines: Vec<String>,
    /// Whether the whole queue is draining: new jobs are refused.
    pub draining: bool,
    /// Machines whose lane is draining.
    pub draining_machines: Vec<String>,
    /// Why `orbctl` is unhealthy, and since when; absent while it is healthy.
    pub unhealthy: Option<Outage>,
}

/// An outage of `orbctl`. Meanwhile reads return the last known state, and only forced operations and sessions start.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Outage {
    /// Time at which orbd detected the outage.
    #[schemars(extend("format" = "date-time"))]
    pub since: String,
    /// What is wrong with `orbctl`.
    pub reason: String,
    /// Milliseconds to wait before the next attempt: until orbd has probed `orbctl` again.
    pub retry_after_ms: u64,
}

/// Parameters of `queue.pause`, `queue.resume` and `queue.drain`.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueTargetParams {
    /// Name of the machine whose lane is meant. Default: the whole queue.
    pub machine: Option<String>,
}

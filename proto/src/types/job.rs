//! Jobs: what they are, what they wait for, how they ended, their output.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::{Chunk, ErrorObject, Gap, is_false};

/// State of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobStateWord {
    /// Accepted, not started yet.
    Waiting,
    /// Started, not ended yet.
    Running,
    /// Ended; `outcome` has the result.
    Ended,
}

/// The client that submitted a job.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Client {
    /// Name given with `daemon.hello`, else `unnamed`.
    pub name: String,
    /// Process id of the client; absent if the system does not report it.
    pub pid: Option<u32>,
    /// User id of the client.
    pub uid: u32,
}

/// What a job waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WaitingFor {
    /// Phrase for display, such as `job 12 (create web) of pyinfra, accepted 3 s ago`.
    pub description: String,
    /// The reason, as data.
    #[serde(flatten)]
    pub reason: WaitReason,
}

impl WaitingFor {
    /// Returns the id of the blocking job, if a job is the reason.
    pub fn job_id(&self) -> Option<u64> {
        match self.reason {
            WaitReason::Job { job_id, .. } => Some(job_id),
            _ => None,
        }
    }
}

/// Why a job waits; `kind` selects the alternative.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WaitReason {
    /// Another job in the same lane.
    Job {
        /// Id of the blocking job.
        job_id: u64,
        /// Operation of the blocking job, such as `start`.
        operation: String,
        /// Machine of the blocking job; absent if it has none.
        machine: Option<String>,
        /// Name of the client that submitted the blocking job.
        client: String,
        /// Milliseconds since the blocking job was accepted.
        age_ms: u64,
    },
    /// A concurrency limit is reached.
    Limit {
        /// Name of the limit, such as `exec_per_machine`.
        limit: String,
    },
    /// The queue or a machine's lane is paused.
    Paused {
        /// The machine whose lane is paused; absent if the whole queue is.
        machine: Option<String>,
    },
    /// `orbctl` is unhealthy.
    Unhealthy {
        /// Why.
        reason: String,
    },
    /// A reason that a later daemon added.
    #[serde(other)]
    #[schemars(skip)]
    Other,
}

words! {
    /// How a job ended. `succeeded`; `failed`; `cancelled`; `expired`: a time limit passed; `interrupted`: orbd did not see the end of a job
    /// that changes nothing; `unknown`: a change was interrupted and may have taken effect.
    OutcomeWord ["succeeded", "failed", "cancelled", "expired", "interrupted", "unknown"];
    /// Class of an operation, which selects its limits.
    JobClass ["query", "exec", "change", "creation", "configuration", "fleet", "session"];
}

/// Result of a job.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    /// `succeeded`; `failed`; `cancelled`; `expired`: a time limit passed; `interrupted`: orbd did not see the end of a job that changes
    /// nothing; `unknown`: a change was interrupted and may have taken effect.
    #[schemars(with = "OutcomeWord")]
    pub kind: String,
    /// Exit code of the guest's command; absent for other operations.
    pub exit_code: Option<i32>,
    /// Whether the change had to do anything: false if the requested state was already there. Absent for other operations, for changes that
    /// did not succeed, and if the state before an interrupted change is not known.
    pub changed: Option<bool>,
    /// Present if the change was interrupted but was then observed to be done: why it was interrupted, and what was observed.
    pub warning: Option<String>,
    /// The error that an attached caller gets; absent if `kind` is `succeeded`.
    pub error: Option<ErrorObject>,
}

/// A job.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Id of the job. Ids increase and are never reused.
    pub job_id: u64,
    /// Operation, such as `start`.
    pub operation: String,
    /// Machine that the job is about; absent if there is none, or more than one.
    pub machine: Option<String>,
    /// Class of the operation, which selects its limits: `query`, `exec`, `change`, `creation`, `configuration`, `fleet` or `session`.
    #[schemars(with = "JobClass")]
    pub job_class: String,
    /// The client that submitted the job.
    pub client: Client,
    /// Label that the client gave the job; absent if it gave none.
    pub label: Option<String>,
    /// The lanes that the job holds or waits for; absent if it takes none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lanes: Vec<JobLane>,
    /// Whether the job continues after its client disconnects.
    pub detached: bool,
    /// State of the job.
    pub state: JobStateWord,
    /// Time of acceptance.
    #[schemars(extend("format" = "date-time"))]
    pub accepted_at: String,
    /// Time of the start; absent until the job has started.
    #[schemars(extend("format" = "date-time"))]
    pub started_at: Option<String>,
    /// Time of the end; absent until the job has ended.
    #[schemars(extend("format" = "date-time"))]
    pub ended_at: Option<String>,
    /// Microseconds from acceptance to start, or to now or to the end if it has not started.
    pub wait_us: u64,
    /// Microseconds from start to end, or to now; absent until the job has started.
    pub run_us: Option<u64>,
    /// What the job waits for; absent unless it waits.
    pub waiting_for: Option<WaitingFor>,
    /// Result of the job; absent until it has ended.
    pub outcome: Option<Outcome>,
    /// Bytes of output that the job has written so far.
    pub output_bytes: u64,
    /// Number of further callers that share the job's `orbctl` run.
    pub joined_callers: u32,
    /// Whether a resident channel carries out the command, instead of an `orbctl run` of its own.
    #[serde(default, skip_serializing_if = "is_false")]
    #[schemars(extend("default" = false))]
    pub in_channel: bool,
    /// Whether the job runs without an entry in the journal, because the journal cannot be written. If orbd crashes, the next instance can
    /// find the job only by the environment of its process.
    #[serde(default, skip_serializing_if = "is_false")]
    #[schemars(extend("default" = false))]
    pub not_durable: bool,
}

/// A lane that a job holds or waits for.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct JobLane {
    /// Kind of the lane.
    pub kind: LaneKind,
    /// Name of the machine; absent unless `kind` is `machine`.
    pub machine: Option<String>,
    /// Whether the job excludes all other jobs from the lane.
    pub exclusive: bool,
}

/// The kinds of lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LaneKind {
    /// The lane of one machine.
    Machine,
    /// The lane of OrbStack's configuration and the default machine.
    Configuration,
    /// The lane of all machines and OrbStack itself.
    Fleet,
}

/// Parameters of a method about one job.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobParams {
    /// Id of the job.
    pub job_id: u64,
}

/// Parameters of `job.wait`.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobWaitParams {
    /// Id of the job.
    pub job_id: u64,
    /// Longest time to wait for the job's end, in milliseconds, at most a year. After it, the answer is the job in its current state.
    /// Default: no limit.
    pub timeout_ms: Option<u64>,
}

/// Parameters of `job.list`. A job must match all filters.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobListParams {
    /// Only jobs in this state.
    pub state: Option<JobStateWord>,
    /// Only jobs about the machine with this name.
    pub machine: Option<String>,
    /// Only jobs with this operation, such as `start`.
    pub operation: Option<String>,
    /// Maximum number of jobs: the newest that match. Default 100.
    #[schemars(range(min = 1, max = 10_000))]
    pub limit: Option<usize>,
}

/// Answer of `job.list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct JobListAnswer {
    /// The jobs, oldest first.
    pub jobs: Vec<Job>,
    /// Whether older jobs were left out because of `limit`.
    pub more: bool,
}

/// Answer of `job.get` and `job.wait`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct JobAnswer {
    /// The job.
    pub job: Job,
}

words! {
    /// `never_started`: the job was waiting and will not start. `stopping`: the job is running and is being ended. `already_ended`: there was
    /// nothing to cancel.
    CancelResult ["never_started", "stopping", "already_ended"];
}

/// Answer of `job.cancel`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct JobCancelAnswer {
    /// `never_started`: the job was waiting and will not start. `stopping`: the job is running and is being ended. `already_ended`: there
    /// was nothing to cancel.
    #[schemars(with = "CancelResult")]
    pub result: String,
}

/// Parameters of `job.output`.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobOutputParams {
    /// Id of the job.
    pub job_id: u64,
    /// First byte to return, counted over both streams. Default 0. An offset beyond the end is an error.
    #[serde(default)]
    pub offset: u64,
    /// Maximum number of bytes to return. Default: 1 MiB, which is also the maximum.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub bytes_max: Option<u64>,
    /// If there is no output at `offset` yet, wait up to this time for some, in milliseconds, at most an hour. Default 0.
    #[serde(default)]
    pub wait_ms: u64,
}

/// Answer of `job.output`.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct JobOutputAnswer {
    /// Output in order of arrival.
    pub output: Vec<Chunk>,
    /// Offset for the next call.
    pub next_offset: u64,
    /// Requested output that is no longer stored; absent if nothing is missing.
    pub gap: Option<Gap>,
    /// Whether the job has ended and all of its output has been returned.
    pub eof: bool,
}

/// Parameters of `job.input`.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobInputParams {
    /// Id of a job that was started with `stdin_stream`.
    pub job_id: u64,
    /// Input as text. At most one of `text` and `base64`.
    pub text: Option<String>,
    /// Input as base64.
    pub base64: Option<String>,
    /// Close the command's input after these bytes, so that the command reads end of file.
    #[serde(default, skip_serializing_if = "is_false")]
    pub eof: bool,
}

/// Answer of `job.input`. It arrives when the command's input has accepted the bytes, which slows the client to the command's speed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct JobInputAnswer {
    /// Whether the command's input was still open. If false, the bytes were discarded.
    pub open: bool,
}

/// Parameters of `job.follow`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobFollowParams {
    /// Id of the job.
    pub job_id: u64,
    /// First byte of output to send, counted over both streams. Default 0.
    #[serde(default)]
    pub offset: u64,
}

/// An event of a job. The order is: `accepted`, any number of `waiting`, `started`, any number of `output` and `gap`, `ended`. A job that
/// ends before it starts has no `started`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum JobEvent {
    /// The job was accepted.
    Accepted {
        /// Id of the job.
        job_id: u64,
    },
    /// The job has waited for a second or longer, or now waits for something else.
    Waiting {
        /// What the job waits for.
        waiting_for: WaitingFor,
    },
    /// The job has started.
    Started {},
    /// The job has written output.
    Output(Chunk),
    /// Output was lost because a limit was reached.
    Gap(Gap),
    /// The job has ended. This is the last event.
    Ended {
        /// The job with its outcome.
        job: Box<Job>,
    },
}

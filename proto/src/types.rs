//! The types of the wire protocol. They are written by hand; no internal type is serialised.
//!
//! Parameters reject unknown fields by name. Clients must ignore result fields that they do not know. Times are RFC 3339 in UTC with
//! milliseconds; durations have their unit in the field's name. `proto/openrpc.json` is generated from these types, so their doc comments
//! are the published reference.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

/// Declares the parameters of a method that creates a job: its own fields, then those common to all jobs.
macro_rules! job_params {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[skip_serializing_none]
        #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
            /// Answer at once with the job's id instead of waiting for its end. The job continues after the client disconnects; a detached
            /// change also survives a restart of the daemon.
            #[serde(default, skip_serializing_if = "is_false")]
            pub detach: bool,
            /// Longest time from acceptance to start, in milliseconds, at most a year. Default: the daemon's `queue_timeout`.
            pub queue_timeout_ms: Option<u64>,
            /// Longest time from start to end, in milliseconds, at most a year. The default depends on the job's class; commands have none.
            pub run_timeout_ms: Option<u64>,
            /// Text that job lists, events and records show with the job, such as the name of a deploy's step; at most 128 bytes, without
            /// control characters. It is not kept over a restart of the daemon.
            pub label: Option<String>,
        }

        impl $name {
            /// Returns the fields common to all jobs.
            pub fn options(&self) -> JobOptions {
                JobOptions {
                    detach: self.detach,
                    queue_timeout_ms: self.queue_timeout_ms,
                    run_timeout_ms: self.run_timeout_ms,
                    label: self.label.clone(),
                }
            }
        }
    };
}

/// Declares a set of words for string fields. It exists only as a schema.
///
/// These fields are `String` in Rust, so that a client of this version can read a word that a later daemon adds. In the published schema
/// each set is an enumeration with a name, which generators of other languages turn into one type.
macro_rules! words {
    ($($(#[doc = $doc:literal])* $name:ident [$($word:literal),* $(,)?];)*) => {$(
        $(#[doc = $doc])*
        pub(super) enum $name {}

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "description": concat!($($doc, "\n"),*).trim(),
                    "type": "string",
                    "enum": [$($word),*],
                })
            }
        }
    )*};
}

// After the macros, which they use.
mod cache;
mod config;
mod daemon;
mod error;
mod events;
mod job;
mod lease;
mod machine;
mod metrics;
mod orbstack;
mod queue;
mod run;

pub use cache::{CacheEntry, CacheInvalidateAnswer, CacheInvalidateParams, CacheStatusAnswer};
pub use config::{ConfigAnswer, ConfigEntryParams, ConfigGetAnswer, ConfigGetParams, ConfigSetParams};
pub use daemon::{
    AppliedKey, Channel, ChannelsOff, Closing, DaemonInfoAnswer, HelloAnswer, HelloParams, ReloadAnswer,
    RestartRequiredKey, Upgrade,
};
pub use error::{ErrorData, ErrorObject, ReconcileReport};
pub use events::{Event, EventDetails, EventJob, EventKind, EventState, EventsSubscribeParams, GapReason};
pub use job::{
    Client, Job, JobAnswer, JobCancelAnswer, JobEvent, JobFollowParams, JobInputAnswer, JobInputParams,
    JobLane, JobListAnswer, JobListParams, JobOutputAnswer, JobOutputParams, JobParams, JobStateWord,
    JobWaitParams, LaneKind, Outcome, WaitReason, WaitingFor,
};
pub use lease::{
    LeaseAnswer, LeaseOperation, LeaseParams, LeaseReadParams, RawOutputAnswer, RawRead, RawStream,
    ReadCommand, ReadFormat, ReleaseAnswer, ReleaseParams, UnknownForm,
};
pub use machine::{
    DefaultAnswer, Image, LogsParams, Machine, MachineCloneParams, MachineConfig, MachineCreateParams,
    MachineForceParams, MachineInfoAnswer, MachineInfoParams, MachineListAnswer, MachineParams,
    MachineRenameParams, SetDefaultParams, TextAnswer,
};
pub use metrics::{
    CountersAnswer, Distribution, GroupBy, MetricsHistoryAnswer, MetricsHistoryParams, MetricsRecord,
    MetricsRow, MetricsSummaryAnswer, MetricsSummaryParams, WindowResolution,
};
pub use orbstack::{ForceParams, StatusAnswer, VersionAnswer};
pub use queue::{Outage, QueueStatusAnswer, QueueTargetParams};
pub use run::{Chunk, Gap, RunAnswer, RunParams, Stream};

/// Deserializes a field that is required but may be null. A missing field is an error, not null.
fn nullable<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(deserializer)
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_false(value: &bool) -> bool {
    !value
}

/// Parameters common to all methods that create a job.
#[derive(Debug, Clone, Default)]
pub struct JobOptions {
    /// Answer at once with the job's id instead of waiting for its end.
    pub detach: bool,
    /// Longest time from acceptance to start, in milliseconds; `None` for the daemon's `queue_timeout`.
    pub queue_timeout_ms: Option<u64>,
    /// Longest time from start to end, in milliseconds; `None` for the default of the job's class.
    pub run_timeout_ms: Option<u64>,
    /// Text that job lists, events and records show with the job; `None` for none.
    pub label: Option<String>,
}

/// The method takes no parameters.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// Empty answer: the call succeeded.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// Parameters of a read without operands.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadParams {
    /// Maximum age of a cached observation, in milliseconds; 0 reads from `orbctl` now. Default and upper limit: the daemon's
    /// `cache_max_age`.
    pub max_age_ms: Option<u64>,
}

/// When and how the answer was read from `orbctl`. Part of every answer that comes from the cache.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Observed {
    /// Counter that every invalidation raises. Equal generations mean that nothing has changed through orbd in between.
    pub generation: u64,
    /// Time at which the read began.
    #[schemars(extend("format" = "date-time"))]
    pub observed_at: String,
    /// The `orbctl` command that was read: `list`, `info`, `status`, `version`, `config_show` or `default`; `raw` for `lease.read`; `poll`
    /// for a read that orbd made on its own, for subscribers or to reconcile a change.
    pub source: String,
    /// Whether the answer is possibly out of date. In the answer of a read it is true only while `orbctl` is unhealthy. In the `state`
    /// event of `events.subscribe` it is also true until a poll has run after the last change.
    pub stale: bool,
    /// Why the answer is stale; absent unless `stale` is true.
    pub stale_reason: Option<String>,
    /// Milliseconds since `observed_at`.
    pub age_ms: u64,
}

job_params! {
    /// Parameters of a change without operands.
    ChangeParams {}
}

/// Answer of a change.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChangeAnswer {
    /// Id of the job.
    pub job_id: u64,
    /// `ended`; for a detached job `waiting` or `running`.
    pub state: JobStateWord,
    /// Whether the change had to do anything: false if the requested state was already there. Absent until the job has ended, and for an
    /// interrupted change if the state before it is not known.
    pub changed: Option<bool>,
    /// Present if the change was interrupted but was then observed to be done: why it was interrupted, and what was observed.
    pub warning: Option<String>,
    /// Microseconds from acceptance to start; absent while the job waits.
    pub wait_us: Option<u64>,
    /// Microseconds from start to end, or to now; absent until the job has started.
    pub run_us: Option<u64>,
}

//! The types of the wire protocol. They are written by hand; no internal type is serialised.
//!
//! Parameters reject unknown fields by name. Clients must ignore result fields that they do not know. Times are RFC 3339 in UTC with
//! milliseconds; durations have their unit in the field's name. `proto/openrpc.json` is generated from these types, so their doc comments
//! are the published reference.

mod events;
mod words;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use events::{Event, EventDetails, EventJob, EventKind, EventState, EventsSubscribeParams, GapReason};

/// Declares the parameters of a method that creates a job: its own fields, then those common to all jobs.
macro_rules! job_params {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
            /// Answer at once with the job's id instead of waiting for its end. The job continues after the client disconnects; a detached
            /// change also survives a restart of the daemon.
            #[serde(default, skip_serializing_if = "is_false")]
            pub detach: bool,
            /// Longest time from acceptance to start, in milliseconds, at most a year. Default: the daemon's `queue_timeout`.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub queue_timeout_ms: Option<u64>,
            /// Longest time from start to end, in milliseconds, at most a year. The default depends on the job's class; commands have none.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub run_timeout_ms: Option<u64>,
        }

        impl $name {
            /// Returns the fields common to all jobs.
            pub fn options(&self) -> JobOptions {
                JobOptions {
                    detach: self.detach,
                    queue_timeout_ms: self.queue_timeout_ms,
                    run_timeout_ms: self.run_timeout_ms,
                }
            }
        }
    };
}

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
#[derive(Debug, Clone, Copy, Default)]
pub struct JobOptions {
    /// Answer at once with the job's id instead of waiting for its end.
    pub detach: bool,
    /// Longest time from acceptance to start, in milliseconds; `None` for the daemon's `queue_timeout`.
    pub queue_timeout_ms: Option<u64>,
    /// Longest time from start to end, in milliseconds; `None` for the default of the job's class.
    pub run_timeout_ms: Option<u64>,
}

/// The method takes no parameters.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// Empty answer: the call succeeded.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// Parameters of a read without operands.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadParams {
    /// Maximum age of a cached observation, in milliseconds; 0 reads from `orbctl` now. Default and upper limit: the daemon's
    /// `cache_max_age`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

/// When and how the answer was read from `orbctl`. Part of every answer that comes from the cache.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_reason: Option<String>,
    /// Milliseconds since `observed_at`.
    pub age_ms: u64,
}

/// The image that a machine was created from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// Distribution, such as `ubuntu`.
    pub distro: String,
    /// Version or codename, such as `noble`.
    pub version: String,
    /// CPU architecture: `arm64` or `amd64`.
    pub arch: String,
    /// Image variant, such as `default`; absent if OrbStack does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Settings of a machine. A field is absent if the installed OrbStack does not report it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MachineConfig {
    /// Guest user that commands run as by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_username: Option<String>,
    /// Whether the machine has no access to the Mac.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolated: Option<bool>,
    /// Whether the machine has no access to the Mac's network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolate_network: Option<bool>,
    /// Whether the Mac's SSH agent is forwarded to the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_ssh_agent: Option<bool>,
    /// Port of the machine's HTTP domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_port: Option<u16>,
    /// Port of the machine's HTTPS domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https_port: Option<u16>,
    /// CPU limit, in cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<u64>,
    /// Memory limit in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_mib: Option<u64>,
    /// Disk limit in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_limit_bytes: Option<u64>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// Stable id (ULID). It survives a rename.
    pub id: String,
    /// Name of the machine, unique among all machines.
    pub name: String,
    /// `running`, `stopped`, or another state as `orbctl` reports it, such as `starting`; the machine is then changing state.
    pub state: String,
    /// The image that it was created from.
    pub image: Image,
    /// Its settings.
    pub config: MachineConfig,
    /// Whether OrbStack created the machine for its own use.
    pub builtin: bool,
}

/// Answer of `machine.list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MachineListAnswer {
    /// All machines, in `orbctl`'s order.
    pub machines: Vec<Machine>,
    /// When and how the list was read.
    #[serde(flatten)]
    pub observed: Observed,
}

/// Parameters of `machine.info`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineInfoParams {
    /// Name or id of the machine.
    pub machine: String,
    /// Maximum age of a cached observation, in milliseconds; 0 reads from `orbctl` now. Default and upper limit: the daemon's
    /// `cache_max_age`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

/// Answer of `machine.info`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MachineInfoAnswer {
    /// The machine, as `machine.list` returns it.
    pub machine: Machine,
    /// Disk space that the machine uses, in bytes; absent if OrbStack does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<u64>,
    /// IPv4 address; absent while the machine is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip4: Option<String>,
    /// IPv6 address; absent while the machine is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<String>,
    /// When and how this was read.
    #[serde(flatten)]
    pub observed: Observed,
}

job_params! {
    /// Parameters of `machine.create`.
    MachineCreateParams {
        /// Name of the new machine.
        name: String,
        /// Distribution, such as `ubuntu`.
        distro: String,
        /// Version or codename. Default: the distribution's newest version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
        /// CPU architecture: `arm64` or `amd64`. Default: that of the Mac.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        arch: Option<String>,
        /// Default guest user. Default: the name of the Mac user.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// CPU limit, in cores (OrbStack 2.2 and later).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(range(min = 1))]
        cpus: Option<u32>,
        /// Memory limit, such as `4G` (OrbStack 2.2 and later).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory: Option<String>,
        /// Disk limit, such as `40G` (OrbStack 2.2 and later).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk: Option<String>,
        /// Create the machine without access to the Mac (OrbStack 2.1 and later).
        #[serde(default, skip_serializing_if = "is_false")]
        isolated: bool,
        /// Create the machine without access to the Mac's network (OrbStack 2.1 and later).
        #[serde(default, skip_serializing_if = "is_false")]
        isolate_network: bool,
        /// Folders of the Mac to share with an isolated machine, each as `SRC[:DEST]` (OrbStack 2.1 and later).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        mounts: Vec<String>,
        /// Forward the Mac's SSH agent to the machine (OrbStack 2.1 and later).
        #[serde(default, skip_serializing_if = "is_false")]
        forward_ssh_agent: bool,
    }
}

job_params! {
    /// Parameters of a change of one machine.
    MachineParams {
        /// Name or id of the machine.
        machine: String,
    }
}

job_params! {
    /// Parameters of a change of one machine that can be forced.
    MachineForceParams {
        /// Name or id of the machine.
        machine: String,
        /// End the jobs that run on the machine and cancel those that wait for it, instead of queueing behind them.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
    }
}

job_params! {
    /// Parameters of `machine.rename`.
    MachineRenameParams {
        /// Name or id of the machine to rename.
        machine: String,
        /// New name of the machine.
        new_name: String,
    }
}

job_params! {
    /// Parameters of `machine.clone`.
    MachineCloneParams {
        /// Name or id of the machine to copy.
        machine: String,
        /// Name of the new machine.
        new_name: String,
    }
}

job_params! {
    /// Parameters of `machine.set_default`.
    SetDefaultParams {
        /// Name or id of the new default machine; null clears the default.
        #[serde(deserialize_with = "nullable")]
        #[schemars(required, extend("type" = ["string", "null"]))]
        machine: Option<String>,
    }
}

job_params! {
    /// Parameters of a change without operands.
    ChangeParams {}
}

job_params! {
    /// Parameters of a change of all machines or of OrbStack that can be forced.
    ForceParams {
        /// End all running jobs and cancel all waiting jobs, instead of queueing behind them.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
    }
}

/// Answer of a change.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChangeAnswer {
    /// Id of the job.
    pub job_id: u64,
    /// `ended`; for a detached job `waiting` or `running`.
    pub state: JobStateWord,
    /// Whether the change had to do anything: false if the requested state was already there. Absent until the job has ended, and for an
    /// interrupted change if the state before it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<bool>,
    /// Present if the change was interrupted but was then observed to be done: why it was interrupted, and what was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Microseconds from acceptance to start; absent while the job waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_us: Option<u64>,
    /// Microseconds from start to end, or to now; absent until the job has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_us: Option<u64>,
}

job_params! {
    /// Parameters of `machine.run` and `machine.run_follow`.
    RunParams {
        /// Name or id of the machine.
        machine: String,
        /// Program and its arguments; no shell interprets them. The program cannot start with `-`.
        #[schemars(length(min = 1))]
        command: Vec<String>,
        /// Guest user. Default: the machine's default user.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// Guest directory to run in. Default: the guest user's home.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        workdir: Option<String>,
        /// Guest directory to run in if it exists, else the guest user's home. Not together with `workdir`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        try_workdir: Option<String>,
        /// Environment variables to set for the command.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        env: BTreeMap<String, String>,
        /// Variables of the caller's own environment that `orbctl run` would have passed to the guest: `ORBENV`, the variables that it
        /// lists, `TERM`, `DISPLAY` and the proxy variables. Others are rejected.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        caller_env: BTreeMap<String, String>,
        /// Input of the command, as text. At most one of `stdin_text`, `stdin_base64` and `stdin_stream`; without any, the input is empty.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdin_text: Option<String>,
        /// Input of the command, as base64.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdin_base64: Option<String>,
        /// Send the input with `job.input` while the command runs.
        #[serde(default, skip_serializing_if = "is_false")]
        stdin_stream: bool,
        /// Store only the output that followers have not read yet, and the last 512 KiB. Use it for large output that a client reads as it
        /// arrives: orbd then writes no file. While no client follows the job, all output is stored.
        #[serde(default, skip_serializing_if = "is_false")]
        pass_through: bool,
    }
}

/// An output stream of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of a command's output: `text` if it is UTF-8, else `base64`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Chunk {
    /// The stream that it was written to.
    pub stream: Stream,
    /// Offset of the first byte, counted over both streams in order of arrival.
    pub offset: u64,
    /// Microseconds from the job's start to the arrival of this piece.
    pub at_us: u64,
    /// The bytes, if they are UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The bytes in base64, if they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

/// Answer of `machine.run`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RunAnswer {
    /// Id of the job.
    pub job_id: u64,
    /// `ended`; for a detached job `waiting` or `running`.
    pub state: JobStateWord,
    /// Exit code of the command; absent until the job has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Output in order of arrival: at most 1 MiB, less if the connection holds many bytes, empty for a detached job. Read the rest with
    /// `job.output`.
    pub output: Vec<Chunk>,
    /// Offset after the last byte in `output`. If it is below `output_bytes`, read on from it with `job.output`.
    pub next_offset: u64,
    /// Bytes written to both streams so far; 0 for a detached job.
    pub output_bytes: u64,
    /// Microseconds from acceptance to start; absent while the job waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_us: Option<u64>,
    /// Microseconds from start to end, or to now; absent until the job has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_us: Option<u64>,
}

/// Parameters of `machine.logs`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogsParams {
    /// Name or id of the machine.
    pub machine: String,
    /// Return the whole log, as `orbctl logs --all` does.
    #[serde(default, skip_serializing_if = "is_false")]
    pub all: bool,
}

/// Answer of a read that returns text.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TextAnswer {
    /// Output of `orbctl`. Bytes that are not UTF-8 are replaced by U+FFFD.
    pub text: String,
}

/// Answer of `machine.default`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DefaultAnswer {
    /// Name of the default machine; null if there is none.
    pub machine: Option<String>,
    /// When and how this was read.
    #[serde(flatten)]
    pub observed: Observed,
}

/// Answer of `orbstack.status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct StatusAnswer {
    /// `running`, `stopped`, or another status as `orbctl` reports it.
    pub status: String,
    /// When and how this was read.
    #[serde(flatten)]
    pub observed: Observed,
}

/// Answer of `orbstack.version`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct VersionAnswer {
    /// Version number, such as `2.1.3`.
    pub version: String,
    /// Build number; absent if `orbctl` does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<u64>,
    /// Commit of the build; absent if `orbctl` does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// When and how this was read.
    #[serde(flatten)]
    pub observed: Observed,
}

/// Answer of `config.show`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ConfigAnswer {
    /// Values by key, as `orbctl` prints them.
    pub values: BTreeMap<String, String>,
    /// When and how this was read.
    #[serde(flatten)]
    pub observed: Observed,
}

/// Parameters of `config.get`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigGetParams {
    /// Configuration key, such as `machine.web.username`.
    pub key: String,
    /// Maximum age of a cached observation, in milliseconds; 0 reads from `orbctl` now. Default and upper limit: the daemon's
    /// `cache_max_age`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

/// Answer of `config.get`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ConfigGetAnswer {
    /// Value of the key; null if the key is not set.
    pub value: Option<String>,
    /// When and how this was read.
    #[serde(flatten)]
    pub observed: Observed,
}

job_params! {
    /// Parameters of `config.set`.
    ConfigSetParams {
        /// Configuration key, such as `machine.web.username`.
        key: String,
        /// New value, in the form that `orbctl config set` accepts.
        value: String,
    }
}

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Client {
    /// Name given with `daemon.hello`, else `unnamed`.
    pub name: String,
    /// Process id of the client; absent if the system does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
        #[serde(default, skip_serializing_if = "Option::is_none")]
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
        #[serde(default, skip_serializing_if = "Option::is_none")]
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

/// Result of a job.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    /// `succeeded`; `failed`; `cancelled`; `expired`: a time limit passed; `interrupted`: orbd did not see the end of a job that changes
    /// nothing; `unknown`: a change was interrupted and may have taken effect.
    #[schemars(with = "words::OutcomeWord")]
    pub kind: String,
    /// Exit code of the guest's command; absent for other operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether the change had to do anything: false if the requested state was already there. Absent for other operations, for changes that
    /// did not succeed, and if the state before an interrupted change is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<bool>,
    /// Present if the change was interrupted but was then observed to be done: why it was interrupted, and what was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// The error that an attached caller gets; absent if `kind` is `succeeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorObject>,
}

/// A JSON-RPC error.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ErrorObject {
    /// Number of the error's kind; see `components.errors`.
    pub code: i32,
    /// Description for display.
    pub message: String,
    /// Details for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<ErrorData>>,
}

/// Details of an error, for programs. Fields other than `kind` and `retryable` are absent if they do not apply.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorData {
    /// Stable name of the error's kind; see `components.errors`.
    #[schemars(with = "words::ErrorWord")]
    pub kind: String,
    /// Whether the same call may succeed later without any fix.
    pub retryable: bool,
    /// The invalid parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The job that the error is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<u64>,
    /// The machine that the error is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// State of the machine, if that state does not allow the operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_state: Option<String>,
    /// When the job was stopped: `queued` if it had not started, else `running`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<words::StopPhase>")]
    pub phase: Option<String>,
    /// Exit code of `orbctl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended `orbctl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Last part of what `orbctl` wrote to stderr.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_tail: Option<String>,
    /// Milliseconds to wait before the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// What the job waited for when its time limit passed, or the forced change that cancelled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<WaitingFor>,
    /// What orbd observed after the change was interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<ReconcileReport>,
    /// Identifier of the error's line in the daemon's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<String>,
}

/// What orbd observed after a change was interrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReconcileReport {
    /// Whether the observed state is final. If false, the change may still be under way.
    pub stable: bool,
    /// Whether the observed state is the requested one; absent if orbd could not determine it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub satisfied: Option<bool>,
    /// State of the machine; absent if the machine was not found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_state: Option<String>,
}

/// A job.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Id of the job. Ids increase and are never reused.
    pub job_id: u64,
    /// Operation, such as `start`.
    pub operation: String,
    /// Machine that the job is about; absent if there is none, or more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Class of the operation, which selects its limits: `query`, `exec`, `change`, `creation`, `configuration`, `fleet` or `session`.
    #[schemars(with = "words::JobClass")]
    pub job_class: String,
    /// The client that submitted the job.
    pub client: Client,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub started_at: Option<String>,
    /// Time of the end; absent until the job has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub ended_at: Option<String>,
    /// Microseconds from acceptance to start, or to now or to the end if it has not started.
    pub wait_us: u64,
    /// Microseconds from start to end, or to now; absent until the job has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_us: Option<u64>,
    /// What the job waits for; absent unless it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<WaitingFor>,
    /// Result of the job; absent until it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Bytes of output that the job has written so far.
    pub output_bytes: u64,
    /// Number of further callers that share the job's `orbctl` run.
    pub joined_callers: u32,
    /// Whether the job runs without an entry in the journal, because the journal cannot be written. If orbd crashes, the next instance can
    /// find the job only by the environment of its process.
    #[serde(default, skip_serializing_if = "is_false")]
    pub not_durable: bool,
}

/// A lane that a job holds or waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct JobLane {
    /// Kind of the lane.
    pub kind: LaneKind,
    /// Name of the machine; absent unless `kind` is `machine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobWaitParams {
    /// Id of the job.
    pub job_id: u64,
    /// Longest time to wait for the job's end, in milliseconds, at most a year. After it, the answer is the job in its current state.
    /// Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Parameters of `job.list`. A job must match all filters.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobListParams {
    /// Only jobs in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobStateWord>,
    /// Only jobs about the machine with this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Only jobs with this operation, such as `start`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Maximum number of jobs: the newest that match. Default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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

/// Answer of `job.cancel`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct JobCancelAnswer {
    /// `never_started`: the job was waiting and will not start. `stopping`: the job is running and is being ended. `already_ended`: there
    /// was nothing to cancel.
    #[schemars(with = "words::CancelResult")]
    pub result: String,
}

/// Parameters of `job.output`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobOutputParams {
    /// Id of the job.
    pub job_id: u64,
    /// First byte to return, counted over both streams. Default 0. An offset beyond the end is an error.
    #[serde(default)]
    pub offset: u64,
    /// Maximum number of bytes to return. Default: 1 MiB, which is also the maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub bytes_max: Option<u64>,
    /// If there is no output at `offset` yet, wait up to this time for some, in milliseconds, at most an hour. Default 0.
    #[serde(default)]
    pub wait_ms: u64,
}

/// Answer of `job.output`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct JobOutputAnswer {
    /// Output in order of arrival.
    pub output: Vec<Chunk>,
    /// Offset for the next call.
    pub next_offset: u64,
    /// Requested output that is no longer stored; absent if nothing is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
    /// Whether the job has ended and all of its output has been returned.
    pub eof: bool,
}

/// Output that is no longer stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// First missing byte.
    pub offset: u64,
    /// First byte after the gap.
    pub next_offset: u64,
}

/// Parameters of `job.input`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobInputParams {
    /// Id of a job that was started with `stdin_stream`.
    pub job_id: u64,
    /// Input as text. At most one of `text` and `base64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Input as base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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

/// Answer of `queue.status`, `queue.pause`, `queue.resume` and `queue.drain`.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueTargetParams {
    /// Name of the machine whose lane is meant. Default: the whole queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
}

/// Parameters of `cache.invalidate`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheInvalidateParams {
    /// Name of the machine whose observations to discard. Default: discard all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
}

/// Answer of `cache.invalidate`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CacheInvalidateAnswer {
    /// The new generation.
    pub generation: u64,
}

/// Answer of `cache.status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CacheStatusAnswer {
    /// The current generation.
    pub generation: u64,
    /// The cached observations.
    pub entries: Vec<CacheEntry>,
    /// Reads answered from the cache since the daemon started.
    pub hits: u64,
    /// Reads that had to run `orbctl` since the daemon started.
    pub misses: u64,
}

/// A cached observation.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CacheEntry {
    /// What was observed: `machines`, `info`, `status`, `version`, `config`, `default`, `ssh`, or `raw` for a `lease.read`.
    pub key: String,
    /// Name of the machine; absent unless the observation is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Generation in which the read began.
    pub generation: u64,
    /// Milliseconds since the read began.
    pub age_ms: u64,
    /// Whether the observation may answer reads. False after an invalidation.
    pub valid: bool,
}

/// Parameters of `metrics.summary`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsSummaryParams {
    /// Length of the time window, which ends now, in milliseconds. Default: everything stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u64>,
    /// Only this operation, such as `start`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Only the machine with this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// One row per operation (`operation`), per machine (`machine`) or per pair (`both`). Default `operation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricsRow {
    /// Operation; absent if rows are grouped by machine only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Machine; absent if rows are not grouped by machine, for operations without a machine, and if `other_machines` is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Whether the row is the sum of all machines beyond the 256 that have their own row.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
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
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MetricsSummaryAnswer {
    /// Start of the window that the rows cover, never later than requested; absent if they cover everything stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsHistoryParams {
    /// Only this operation, such as `start`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Only the machine with this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Only this outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<words::OutcomeWord>")]
    pub outcome: Option<String>,
    /// Maximum number of records. Default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000))]
    pub limit: Option<usize>,
    /// The `cursor` of the previous answer, to get the next page. Default: start with the newest record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// The record of an ended job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricsRecord {
    /// Id of the job.
    pub job_id: u64,
    /// Operation, such as `start`.
    pub operation: String,
    /// Machine that the job was about; absent if there was none, or more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Class of the operation.
    #[schemars(with = "words::JobClass")]
    pub job_class: String,
    /// The client that submitted the job.
    pub client: Client,
    /// Time of acceptance.
    #[schemars(extend("format" = "date-time"))]
    pub accepted_at: String,
    /// Time of the start; absent if the job never started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    #[schemars(with = "words::OutcomeWord")]
    pub outcome: String,
    /// Exit code; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Bytes of input that the job got.
    pub bytes_in: u64,
    /// Bytes of output that the job wrote.
    pub bytes_out: u64,
    /// Whether several callers shared the job.
    pub joined: bool,
}

/// Answer of `metrics.history`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MetricsHistoryAnswer {
    /// The records, newest first.
    pub records: Vec<MetricsRecord>,
    /// Pass it as `cursor` to get the next page; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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

/// Parameters of `daemon.hello`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HelloParams {
    /// Name of the client, such as `pyinfra`: 1 to 64 letters, digits, `-`, `_` and `.`.
    #[schemars(regex(pattern = "^[A-Za-z0-9._-]{1,64}$"))]
    pub client: String,
    /// Protocol version that the client speaks.
    pub protocol: u32,
}

/// Answer of `daemon.hello`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct HelloAnswer {
    /// Protocol version that the daemon speaks.
    pub protocol: u32,
    /// Version of the daemon.
    pub version: String,
    /// Id of this run of the daemon; each start has a new one.
    pub instance: String,
}

/// Answer of `daemon.info`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DaemonInfoAnswer {
    /// Version of the daemon.
    pub version: String,
    /// Protocol version that the daemon speaks.
    pub protocol: u32,
    /// Id of this run of the daemon; each start has a new one.
    pub instance: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Time at which the daemon started.
    #[schemars(extend("format" = "date-time"))]
    pub started_at: String,
    /// Milliseconds since `started_at`.
    pub uptime_ms: u64,
    /// Path of the socket that the daemon listens on.
    pub socket: String,
    /// Path of `orbctl`; null if it was not found.
    pub orbctl: Option<String>,
    /// Path of the configuration file that the daemon has read; null if there is none.
    pub config_file: Option<String>,
    /// Folder of the journal, the metrics and stored output.
    pub state_dir: String,
    /// Limits in force, by configuration key.
    pub limits: BTreeMap<String, u64>,
    /// Whether `strict` is set: one job runs at a time, sessions excepted.
    pub strict: bool,
    /// Why `orbctl` is unhealthy, and since when; absent while it is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<Outage>,
    /// A replaced daemon binary that is not running yet; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Upgrade>,
}

/// A new binary at the daemon's own path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Upgrade {
    /// `pending`: the daemon executes it at the next idle moment. `refused`: it failed the preflight, and the old daemon keeps running.
    #[schemars(with = "words::UpgradeStatus")]
    pub state: String,
    /// Time at which the daemon detected the new binary.
    #[schemars(extend("format" = "date-time"))]
    pub noticed_at: String,
    /// Version of the new binary; absent if it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What delays the upgrade, such as a running job; absent if the binary was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Why the binary was refused; absent while it is pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The last message on a connection of JSON lines that the daemon closes for an upgrade. The next instance accepts connections on the same
/// socket. All requests up to `requests_read` have been answered. A later request without an answer was not begun: reconnect and send it
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Closing {
    /// Number of requests of this connection that the daemon read and answered; a batch counts as one.
    pub requests_read: u64,
}

impl Closing {
    /// Method of the notification.
    pub const NOTIFICATION: &str = "daemon.closing";
}

/// A configuration key of orbd that a reload has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppliedKey {
    /// Name of the key.
    pub key: String,
    /// The previous value, in the form that `--set` accepts; null if the key was not set.
    pub old_value: Option<String>,
    /// The new value; null if the key is not set.
    pub new_value: Option<String>,
}

/// A configuration key of orbd whose new value needs a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestartRequiredKey {
    /// Name of the key.
    pub key: String,
    /// Value in force, in the form that `--set` accepts; null if the key is not set.
    pub running: Option<String>,
    /// Value after a restart; null if the key is not set.
    pub configured: Option<String>,
}

/// Answer of `daemon.reload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReloadAnswer {
    /// Path of the configuration file that was read; null if there is none.
    pub config_file: Option<String>,
    /// Keys whose new value is now in force.
    pub applied: Vec<AppliedKey>,
    /// Keys that keep their old value until the daemon is restarted.
    pub needs_restart: Vec<RestartRequiredKey>,
}

/// Operation that a client carries out itself in a lease. The job is listed and recorded under this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeaseOperation {
    /// Copy files from the Mac into a machine.
    #[default]
    Push,
    /// Copy files from a machine to the Mac.
    Pull,
    /// Write a machine to an archive.
    Export,
    /// Create a machine from an archive.
    Import,
    /// Run a command in a machine, without a terminal.
    Run,
    /// Run a shell or a command in a machine, on a terminal. A session: it takes no lane.
    Shell,
    /// Follow a machine's log. A session: it takes no lane.
    Logs,
    /// Create a machine.
    Create,
    /// Start machines.
    Start,
    /// Stop machines.
    Stop,
    /// Restart machines.
    Restart,
    /// Delete machines with all their data.
    Delete,
    /// Rename a machine.
    Rename,
    /// Copy a machine.
    Clone,
    /// Set or clear the default machine.
    SetDefault,
    /// Set a key of OrbStack's configuration.
    ConfigSet,
    /// Reset OrbStack's configuration to its defaults.
    ConfigReset,
    /// Start every machine.
    StartAll,
    /// Stop every machine.
    StopAll,
    /// Restart every machine.
    RestartAll,
    /// Start OrbStack.
    StartOrbstack,
    /// Stop OrbStack.
    StopOrbstack,
    /// Restart OrbStack.
    RestartOrbstack,
    /// Update OrbStack.
    UpdateOrbstack,
    /// Delete all machines and data of OrbStack.
    ResetOrbstack,
    /// A read whose output `orbctl` itself prints; `read` has the command. A session: it takes no lane.
    Read,
    /// Either a command in the default machine, or a change of the machines in `unknown_form`: the client cannot determine which. It takes
    /// the lanes of both.
    RunOrChange,
    /// Any other command. It takes the lanes of `machine` and of the existing machines in `unknown_form` exclusively; without any it is a
    /// session and takes no lane. It invalidates the whole cache when it starts and when it ends.
    Other,
}

job_params! {
    /// Parameters of `lease.acquire`. The description of each of `machine`, `machine_names`, `new_name`, `force`, `read` and `unknown_form`
    /// lists the operations that accept it; for others it is rejected.
    LeaseParams {
        /// Operation that the client will carry out.
        operation: LeaseOperation,
        /// Process id of the child that waits for the answer before it executes `orbctl`. It must run as the caller's user.
        pid: u32,
        /// Name or id of the machine; for `create` and `import`, the name of the new machine. If absent, `push`, `pull`, `run` and `shell`
        /// use the default machine, and `set_default` clears the default. Not accepted by operations on all machines, on OrbStack or on its
        /// configuration, nor by `read` and `run_or_change`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        machine: Option<String>,
        /// Names or ids of several machines, instead of `machine`. For `start`, `stop`, `restart` and `delete`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schemars(length(max = 256))]
        machine_names: Vec<String>,
        /// New name. For `rename` and `clone`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        new_name: Option<String>,
        /// End the jobs that run in the operation's lanes and cancel those that wait for them, instead of queueing behind them. For `stop`,
        /// `stop_all`, `start_orbstack` and `stop_orbstack`.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
        /// The read command. For `read`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        read: Option<RawRead>,
        /// A command line that the client cannot interpret completely, instead of `machine_names` and `new_name`. For `create`, `start`,
        /// `stop`, `restart`, `delete`, `rename`, `clone`, `export`, `import`, `set_default`, `run`, `push`, `pull`, `run_or_change` and
        /// `other`. With it, only `import`, `run`, `push`, `pull` and `other` accept `machine`, and only without `whole_fleet`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unknown_form: Option<UnknownForm>,
    }
}

/// A command line of `orbctl` that the client cannot interpret completely, such as one with a flag of a newer version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnknownForm {
    /// Arguments that may be names or ids of machines. The lease takes the lanes of those that exist; for `create`, `rename` and `clone`,
    /// the lanes of all of them. A change takes the fleet lane if none is left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub operands: Vec<String>,
    /// The command may change every machine, so the lease takes the fleet lane. Not for `run`, `push` and `pull`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub whole_fleet: bool,
}

/// A read command of `orbctl` with its flags. The description of each field lists the commands that accept it; for others it is rejected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRead {
    /// The command.
    pub command: ReadCommand,
    /// Name or id of the machine. For `info` and `logs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Configuration key. For `config_get`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The flag `--format`. For `list` and `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ReadFormat>,
    /// The flag `--quiet`. For `list`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub quiet: bool,
    /// The flag `--running`. For `list`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub running: bool,
    /// The flag `--all`. For `logs`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub all: bool,
}

/// A command of `orbctl` that only reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadCommand {
    /// `orbctl list`.
    #[default]
    List,
    /// `orbctl info`.
    Info,
    /// `orbctl status`.
    Status,
    /// `orbctl version`.
    Version,
    /// `orbctl config show`.
    ConfigShow,
    /// `orbctl config get`.
    ConfigGet,
    /// `orbctl default` without a name.
    Default,
    /// `orbctl ssh`.
    Ssh,
    /// `orbctl logs`.
    Logs,
}

/// Output format of `orbctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadFormat {
    /// Text, for people.
    Text,
    /// JSON, for programs.
    Json,
}

/// Parameters of `lease.read`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseReadParams {
    /// The read command.
    pub read: RawRead,
    /// Maximum age of a cached observation, in milliseconds; 0 reads from `orbctl` now. Default and upper limit: the daemon's
    /// `cache_max_age`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

/// Answer of `lease.read`: the output of `orbctl` and how it ended, even if it failed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RawOutputAnswer {
    /// Output on stdout.
    pub stdout: Printed,
    /// Output on stderr.
    pub stderr: Printed,
    /// Exit code of `orbctl`; absent if a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended `orbctl`; absent if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// When and how this was read.
    #[serde(flatten)]
    pub observed: Observed,
}

/// Output of `orbctl`: `text` if it is UTF-8, else `base64`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Printed {
    /// The bytes, if they are UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The bytes in base64, if they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

/// Answer of `lease.acquire`: the child may run. The lease holds its lanes until the child has exited.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct LeaseAnswer {
    /// Id of the lease's job; pass it to `lease.release`.
    pub job_id: u64,
    /// Path of `orbctl`.
    pub orbctl: String,
    /// Value that the child must set as `ORBD_JOB` in its environment before it executes `orbctl`. A later instance of orbd finds the child
    /// by it if the journal is lost.
    pub marker: String,
    /// Names of the machines, in the order of the parameters; absent if there are none. Pass these names to `orbctl`, not the parameters:
    /// the lease holds the lanes of these names, and an id may have been resolved to one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub machine_names: Vec<String>,
}

/// Parameters of `lease.release`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseParams {
    /// Id of the lease's job.
    pub job_id: u64,
    /// Exit code of the child, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended the child, if one did. Without `exit_code` and `signal`, the ending is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 127))]
    pub signal: Option<i32>,
}

/// Answer of `lease.release`. It arrives when the child has exited.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseAnswer {
    /// The job. It is still `running` if a change was interrupted: orbd polls until the result is stable, and `job.wait` returns it.
    pub job: Job,
    /// Why orbd signalled the child: `deadline_exceeded`, or `job_cancelled`, with `waiting_for` if a forced change cancelled it. Absent if
    /// orbd did not signal the child, or if the child succeeded nevertheless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signalled: Option<ErrorObject>,
}

//! The shapes that go over the wire, chosen by hand: no inner type is serialised.
//!
//! Parameters refuse unknown fields by name; clients must ignore result fields that they do not know. Times are RFC 3339 in
//! UTC with milliseconds; durations carry their unit in the name. `proto/openrpc.json` is generated from these types.

mod events;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use events::{Event, EventDetails, EventJob, EventKind, EventState, EventsSubscribeParams, GapReason};

/// Declares parameters of a method that makes a job: its own fields and the ones every job has.
macro_rules! job_params {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
            /// Answer at once with the job's id; the job outlives its client, and a change a restart of the daemon.
            #[serde(default, skip_serializing_if = "is_false")]
            pub detach: bool,
            /// Longest time to wait for a place, from acceptance; the daemon's `queue_timeout` where absent.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub queue_timeout_ms: Option<u64>,
            /// Longest time to run, from the start; the class's default where absent.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub run_timeout_ms: Option<u64>,
        }

        impl $name {
            /// Returns what every job has.
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

/// Reads a field that must be there but may be null, so that leaving it out by mistake is not taken for null.
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

/// What the parameters of every job-making method have in common.
#[derive(Debug, Clone, Copy, Default)]
pub struct JobOptions {
    /// Answer at once.
    pub detach: bool,
    /// Longest wait.
    pub queue_timeout_ms: Option<u64>,
    /// Longest run.
    pub run_timeout_ms: Option<u64>,
}

/// No parameters.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// Nothing to say beyond success.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// How old a fact may be.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadParams {
    /// Oldest observation to accept, in milliseconds; 0 asks `orbctl` now. The daemon's `cache_max_age` bounds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

/// When and how a fact was seen. Part of every answer that tells facts.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Observed {
    /// Grows with every change that makes facts stale; equal generations mean that nothing changed through orbd between.
    pub generation: u64,
    /// When the look began.
    #[schemars(extend("format" = "date-time"))]
    pub observed_at: String,
    /// Which read of `orbctl` told it: `list`, `info`, `status`, `version`, `config_show`, `default`, `raw` of `lease.read`; or
    /// `poll`, which orbd made by itself for its subscribers.
    pub source: String,
    /// Whether the fact is known to be out of date, or may be. Answers of reads say so only while `orbctl` cannot be asked; the
    /// `state` of `events.subscribe` also while the look after something that changed has not ended.
    pub stale: bool,
    /// Why it is stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_reason: Option<String>,
    /// How long ago the look began.
    pub age_ms: u64,
}

/// Image that a machine was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// Distribution, as in `ubuntu`.
    pub distro: String,
    /// Version or codename, as in `noble`.
    pub version: String,
    /// `arm64` or `amd64`.
    pub arch: String,
    /// Image variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A machine's settings; each is absent where the installed OrbStack does not report it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MachineConfig {
    /// User that commands run as unless told otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_username: Option<String>,
    /// Isolated from the Mac.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolated: Option<bool>,
    /// Cut off from the Mac's network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolate_network: Option<bool>,
    /// The Mac's SSH agent is forwarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_ssh_agent: Option<bool>,
    /// Port of its HTTP domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_port: Option<u16>,
    /// Port of its HTTPS domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub https_port: Option<u16>,
    /// Processor limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<u64>,
    /// Memory limit in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_mib: Option<u64>,
    /// Disk limit in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_limit_bytes: Option<u64>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// Stable id (ULID).
    pub id: String,
    /// Name.
    pub name: String,
    /// `running`, `stopped`, or another word of `orbctl`'s: busy.
    pub state: String,
    /// What it was made from.
    pub image: Image,
    /// Settings.
    pub config: MachineConfig,
    /// OrbStack itself made it.
    pub builtin: bool,
}

/// Answer of `machine.list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MachineListAnswer {
    /// Every machine, in `orbctl`'s order.
    pub machines: Vec<Machine>,
    /// When and how this was seen.
    #[serde(flatten)]
    pub observed: Observed,
}

/// Parameters of `machine.info`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineInfoParams {
    /// Name or id.
    pub machine: String,
    /// Oldest observation to accept, in milliseconds; 0 asks `orbctl` now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

/// Answer of `machine.info`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MachineInfoAnswer {
    /// What the list says too.
    pub machine: Machine,
    /// Bytes on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<u64>,
    /// IPv4 address; absent while stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip4: Option<String>,
    /// IPv6 address; absent while stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<String>,
    /// When and how this was seen.
    #[serde(flatten)]
    pub observed: Observed,
}

job_params! {
    /// Parameters of `machine.create`.
    MachineCreateParams {
        /// Name of the new machine.
        name: String,
        /// Distribution, as in `ubuntu`.
        distro: String,
        /// Version or codename; the distribution's newest where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
        /// `arm64` or `amd64`; the Mac's own where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        arch: Option<String>,
        /// Default user; the Mac user's name where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// Processor limit (OrbStack 2.2 and later).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(range(min = 1))]
        cpus: Option<u32>,
        /// Memory limit, as in `4G` (OrbStack 2.2 and later).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory: Option<String>,
        /// Disk limit, as in `40G` (OrbStack 2.2 and later).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk: Option<String>,
        /// No access to the Mac (OrbStack 2.1 and later).
        #[serde(default, skip_serializing_if = "is_false")]
        isolated: bool,
        /// No access to the Mac's network (OrbStack 2.1 and later).
        #[serde(default, skip_serializing_if = "is_false")]
        isolate_network: bool,
        /// Shared folders of an isolated machine, `SRC[:DEST]` (OrbStack 2.1 and later).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        mounts: Vec<String>,
        /// Forward the Mac's SSH agent (OrbStack 2.1 and later).
        #[serde(default, skip_serializing_if = "is_false")]
        forward_ssh_agent: bool,
    }
}

job_params! {
    /// Parameters of changes of one machine that need no more than its name.
    MachineParams {
        /// Name or id.
        machine: String,
    }
}

job_params! {
    /// Parameters of changes of one machine that can be forced.
    MachineForceParams {
        /// Name or id.
        machine: String,
        /// End what runs on the machine and cancel what waits there, instead of queueing behind it.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
    }
}

job_params! {
    /// Parameters of `machine.rename`.
    MachineRenameParams {
        /// Name or id now.
        machine: String,
        /// Name then.
        new_name: String,
    }
}

job_params! {
    /// Parameters of `machine.clone`.
    MachineCloneParams {
        /// Name or id of the machine to copy.
        machine: String,
        /// Name of the copy.
        new_name: String,
    }
}

job_params! {
    /// Parameters of `machine.set_default`.
    SetDefaultParams {
        /// Name or id; null clears the default.
        #[serde(deserialize_with = "nullable")]
        #[schemars(required, extend("type" = ["string", "null"]))]
        machine: Option<String>,
    }
}

job_params! {
    /// Parameters of changes without operands.
    ChangeParams {}
}

job_params! {
    /// Parameters of changes of everything that can be forced.
    ForceParams {
        /// End what runs and cancel what waits, instead of queueing behind it.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
    }
}

/// Answer of every change.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChangeAnswer {
    /// The job.
    pub job_id: u64,
    /// `ended`, or `waiting` or `running` when detached.
    pub state: JobStateWord,
    /// Whether anything had to be done; absent until the job ended, and where a change was cut short and nobody had looked before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<bool>,
    /// The change was cut short and was then observed to be done: why, and what was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Microseconds from acceptance to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_us: Option<u64>,
    /// Microseconds from start to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_us: Option<u64>,
}

job_params! {
    /// Parameters of `machine.run` and `machine.run_follow`.
    RunParams {
        /// Name or id.
        machine: String,
        /// Program and arguments, kept as words. The first cannot start with `-`.
        #[schemars(length(min = 1))]
        command: Vec<String>,
        /// Guest user; the machine's default user where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// Guest directory; the guest user's home where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        workdir: Option<String>,
        /// Guest directory to start in if it exists; the guest user's home otherwise. Not with `workdir`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        try_workdir: Option<String>,
        /// Additional environment.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        env: BTreeMap<String, String>,
        /// What the caller's own environment gives the guest, as if it had started `orbctl run` itself: `ORBENV`, the variables that
        /// it lists, `TERM`, `DISPLAY` and proxy variables. Others are refused.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        caller_env: BTreeMap<String, String>,
        /// Input as text. At most one of the three kinds of input.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdin_text: Option<String>,
        /// Input as base64.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdin_base64: Option<String>,
        /// Input follows by `job.input`.
        #[serde(default, skip_serializing_if = "is_false")]
        stdin_stream: bool,
        /// Keep no more than what followers have not read yet and the last 512 KiB: for large output that a client reads as it comes,
        /// which then costs no file. While nobody follows, everything is kept.
        #[serde(default, skip_serializing_if = "is_false")]
        pass_through: bool,
    }
}

/// Which stream of a command wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Bytes that a command wrote, as `text` where they are UTF-8, else as `base64`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Chunk {
    /// Who wrote.
    pub stream: Stream,
    /// Offset of the first byte, counted over both streams in order of arrival.
    pub offset: u64,
    /// Microseconds since the job's start.
    pub at_us: u64,
    /// The bytes, where they are UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The bytes, where they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

/// Answer of `machine.run`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RunAnswer {
    /// The job.
    pub job_id: u64,
    /// `ended`, or `waiting` or `running` when detached.
    pub state: JobStateWord,
    /// The command's exit code; absent until the job ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Output in order of arrival, at most 1 MiB.
    pub output: Vec<Chunk>,
    /// Where `output` ends; more is to be had from `job.output` at this offset when it is below `output_bytes`.
    pub next_offset: u64,
    /// Bytes written so far by both streams.
    pub output_bytes: u64,
    /// Microseconds from acceptance to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_us: Option<u64>,
    /// Microseconds from start to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_us: Option<u64>,
}

/// Parameters of `machine.logs`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogsParams {
    /// Name or id.
    pub machine: String,
    /// Everything that is kept.
    #[serde(default, skip_serializing_if = "is_false")]
    pub all: bool,
}

/// Answer of reads that give text.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TextAnswer {
    /// What `orbctl` printed; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Answer of `machine.default`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DefaultAnswer {
    /// The default machine; null where there is none.
    pub machine: Option<String>,
    /// When and how this was seen.
    #[serde(flatten)]
    pub observed: Observed,
}

/// Answer of `orbstack.status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct StatusAnswer {
    /// `running`, `stopped`, or another word of `orbctl`'s.
    pub status: String,
    /// When and how this was seen.
    #[serde(flatten)]
    pub observed: Observed,
}

/// Answer of `orbstack.version`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct VersionAnswer {
    /// Dotted version.
    pub version: String,
    /// Build number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<u64>,
    /// Commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// When and how this was seen.
    #[serde(flatten)]
    pub observed: Observed,
}

/// Answer of `config.show`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ConfigAnswer {
    /// Keys and values as `orbctl` prints them.
    pub values: BTreeMap<String, String>,
    /// When and how this was seen.
    #[serde(flatten)]
    pub observed: Observed,
}

/// Parameters of `config.get`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigGetParams {
    /// Key, as in `machine.web.username`.
    pub key: String,
    /// Oldest observation to accept, in milliseconds; 0 asks `orbctl` now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

/// Answer of `config.get`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ConfigGetAnswer {
    /// Value; null where the key is not set.
    pub value: Option<String>,
    /// When and how this was seen.
    #[serde(flatten)]
    pub observed: Observed,
}

job_params! {
    /// Parameters of `config.set`.
    ConfigSetParams {
        /// Key, as in `machine.web.username`.
        key: String,
        /// Value, as `orbctl config set` takes it.
        value: String,
    }
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobStateWord {
    /// Accepted, not started.
    Waiting,
    /// Started.
    Running,
    /// Over.
    Ended,
}

/// Who asked for a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Client {
    /// Name given by `daemon.hello`, else `unnamed`.
    pub name: String,
    /// Process id, where the system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// User id.
    pub uid: u32,
}

/// Why a job waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WaitingFor {
    /// `job`, `limit`, `paused` or `unhealthy`.
    #[schemars(extend("enum" = ["job", "limit", "paused", "unhealthy"]))]
    pub kind: String,
    /// One phrase for a person, as in `job 12 (create web) of pyinfra, accepted 3 s ago`.
    pub description: String,
    /// The job in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<u64>,
    /// What that job does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// To which machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// For whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// How long ago it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// The limit that is reached, as in `exec_per_machine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// Why `orbctl` is unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a job ended.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    /// `succeeded`, `failed`, `cancelled`, `expired`, `interrupted` or `unknown`.
    #[schemars(extend("enum" = ["succeeded", "failed", "cancelled", "expired", "interrupted", "unknown"]))]
    pub kind: String,
    /// Exit code of the guest's command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether a change was needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<bool>,
    /// The change was cut short and was then observed to be done: why, and what was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// The error that an attached caller was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorObject>,
}

/// A JSON-RPC error.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ErrorObject {
    /// Number of the kind.
    pub code: i32,
    /// One sentence for a person.
    pub message: String,
    /// For programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<ErrorData>>,
}

/// What an error says to a program.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorData {
    /// Stable word for the kind of error.
    pub kind: String,
    /// Whether the same call may succeed later without anybody mending anything.
    pub retryable: bool,
    /// The parameter that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<u64>,
    /// The machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// State of the machine that does not allow this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_state: Option<String>,
    /// `queued` or `running`: where a job was cut short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["queued", "running"]))]
    pub phase: Option<String>,
    /// Exit code of `orbctl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended `orbctl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// End of what `orbctl` wrote to stderr.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_tail: Option<String>,
    /// When a retry makes sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// What the job waited for when it gave up, or the forced change that cancelled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<WaitingFor>,
    /// What was seen after a change was cut short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<ReconcileReport>,
    /// Finds the line in the daemon's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<String>,
}

/// What the inventory said after a change was cut short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReconcileReport {
    /// Whether what is there is what will be there.
    pub stable: bool,
    /// Whether what was asked for now holds; absent where it cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub satisfied: Option<bool>,
    /// State of the machine; absent when it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_state: Option<String>,
}

/// One job.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Its id: numbers grow and are never reused.
    pub job_id: u64,
    /// Verb, as in `start`.
    pub operation: String,
    /// Machine that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Which limits apply: `query`, `exec`, `change`, `creation`, `configuration`, `fleet` or `session`.
    #[schemars(extend("enum" = ["query", "exec", "change", "creation", "configuration", "fleet", "session"]))]
    pub job_class: String,
    /// Who asked.
    pub client: Client,
    /// The lanes that it holds or waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lanes: Vec<JobLane>,
    /// Whether it outlives its client.
    pub detached: bool,
    /// Where it is.
    pub state: JobStateWord,
    /// When it was accepted.
    #[schemars(extend("format" = "date-time"))]
    pub accepted_at: String,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub ended_at: Option<String>,
    /// Microseconds from acceptance to start, so far.
    pub wait_us: u64,
    /// Microseconds from start to end, so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_us: Option<u64>,
    /// Why it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<WaitingFor>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Bytes that it wrote so far.
    pub output_bytes: u64,
    /// How many callers share it beside the first.
    pub joined_callers: u32,
    /// Whether it runs without an entry in the journal, because that cannot be written. If orbd died now, only the environment of the
    /// job's process would show the next instance that the job runs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub not_durable: bool,
}

/// A lane that a job holds or waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct JobLane {
    /// Which kind of lane.
    pub kind: LaneKind,
    /// The machine, for `machine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Whether no other job may be in the lane at the same time.
    pub exclusive: bool,
}

/// Kinds of lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LaneKind {
    /// One machine.
    Machine,
    /// OrbStack's configuration and the default machine.
    Configuration,
    /// All of OrbStack.
    Fleet,
}

/// Parameters of methods about one job.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobParams {
    /// The job.
    pub job_id: u64,
}

/// Parameters of `job.wait`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobWaitParams {
    /// The job.
    pub job_id: u64,
    /// Longest time to wait for its end; then it is answered as it is. No limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Parameters of `job.list`. Filters are joined by "and".
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobListParams {
    /// Only jobs in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobStateWord>,
    /// Only jobs about this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Only jobs with this verb.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// At most so many, the newest; 100 where absent, at most 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub limit: Option<usize>,
}

/// Answer of `job.list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct JobListAnswer {
    /// Oldest first.
    pub jobs: Vec<Job>,
    /// Whether older ones were left out.
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
    /// `never_started`, `stopping` or `already_ended`.
    #[schemars(extend("enum" = ["never_started", "stopping", "already_ended"]))]
    pub result: String,
}

/// Parameters of `job.output`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobOutputParams {
    /// The job.
    pub job_id: u64,
    /// First byte wanted, counted over both streams; 0 where absent.
    #[serde(default)]
    pub offset: u64,
    /// At most so many bytes, and never more than 1 MiB, which is what is meant where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub bytes_max: Option<u64>,
    /// When there is nothing yet, wait so long for something; 0 where absent.
    #[serde(default)]
    pub wait_ms: u64,
}

/// Answer of `job.output`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct JobOutputAnswer {
    /// Bytes in order of arrival.
    pub output: Vec<Chunk>,
    /// Where the next call goes on.
    pub next_offset: u64,
    /// Bytes at the front of what was asked that are no longer kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
    /// Whether the job is over and everything was told.
    pub eof: bool,
}

/// Output that is no longer kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// First byte missing.
    pub offset: u64,
    /// First byte there again.
    pub next_offset: u64,
}

/// Parameters of `job.input`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobInputParams {
    /// A job that was started with `stdin_stream`.
    pub job_id: u64,
    /// Bytes as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Bytes as base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// Nothing follows: the command reads end of file.
    #[serde(default, skip_serializing_if = "is_false")]
    pub eof: bool,
}

/// Answer of `job.input`, given when the bytes were taken, so that a caller is held back by a slow reader.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct JobInputAnswer {
    /// Whether the command still reads.
    pub open: bool,
}

/// Parameters of `job.follow`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobFollowParams {
    /// The job.
    pub job_id: u64,
    /// First byte of output wanted.
    #[serde(default)]
    pub offset: u64,
}

/// What a follower of a job is told, in this order: `accepted`, any number of `waiting`, `started`, any number of `output` and
/// `gap`, `ended`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum JobEvent {
    /// The job exists.
    Accepted {
        /// Its id.
        job_id: u64,
    },
    /// It has waited for a second or longer, or waits for something else than before.
    Waiting {
        /// What for.
        waiting_for: WaitingFor,
    },
    /// It runs.
    Started {},
    /// It wrote.
    Output(Chunk),
    /// Output was lost to a bound.
    Gap(Gap),
    /// It is over; nothing follows.
    Ended {
        /// How.
        job: Box<Job>,
    },
}

/// Answer of `queue.status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct QueueStatusAnswer {
    /// Jobs waiting.
    pub waiting: usize,
    /// Jobs running.
    pub running: usize,
    /// Most jobs that may wait.
    pub queue_max: usize,
    /// Whether nothing starts.
    pub paused: bool,
    /// Machines whose lane is paused.
    pub paused_machines: Vec<String>,
    /// Whether new work is refused.
    pub draining: bool,
    /// Machines for which new work is refused.
    pub draining_machines: Vec<String>,
    /// What ails `orbctl`; absent while it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<Outage>,
}

/// What ails `orbctl`: reads are answered from what was last known, and nothing is begun that is not forced.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Outage {
    /// When it was noticed.
    #[schemars(extend("format" = "date-time"))]
    pub since: String,
    /// Why.
    pub reason: String,
    /// When it will have been looked at again.
    pub retry_after_ms: u64,
}

/// Parameters of `queue.pause`, `queue.resume` and `queue.drain`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueTargetParams {
    /// One machine's lane; the whole queue where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
}

/// Parameters of `cache.invalidate`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheInvalidateParams {
    /// What is known of one machine; everything where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
}

/// Answer of `cache.invalidate`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CacheInvalidateAnswer {
    /// The generation now.
    pub generation: u64,
}

/// Answer of `cache.status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CacheStatusAnswer {
    /// The generation now.
    pub generation: u64,
    /// What is known.
    pub entries: Vec<CacheEntry>,
    /// Answers given from the cache.
    pub hits: u64,
    /// Answers that needed `orbctl`.
    pub misses: u64,
}

/// One kept observation.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CacheEntry {
    /// `machines`, `info`, `status`, `version`, `config`, `default` or `ssh`.
    pub key: String,
    /// The machine, for `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Generation that it belongs to.
    pub generation: u64,
    /// How old it is.
    pub age_ms: u64,
    /// Whether it may still be answered.
    pub valid: bool,
}

/// Parameters of `metrics.summary`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsSummaryParams {
    /// Length of the window that ends now; everything kept where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u64>,
    /// Only this verb.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Only this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// A row for each verb (`operation`), each machine (`machine`) or each pair (`both`); `operation` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_by: Option<GroupBy>,
}

/// What rows of a summary stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupBy {
    /// A row for each verb.
    #[default]
    Operation,
    /// A row for each machine.
    Machine,
    /// A row for each verb and machine.
    Both,
}

/// A distribution of durations in microseconds; percentiles are within 1 %.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Distribution {
    /// Smallest.
    pub min_us: u64,
    /// Median.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Largest.
    pub max_us: u64,
}

/// One row of a summary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricsRow {
    /// Verb.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Machine; absent where rows are not grouped by machine, and for operations that are about none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The row sums up machines beyond the 256 that have a row of their own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub other_machines: bool,
    /// Jobs ended.
    pub count: u64,
    /// Of them, those that did not succeed.
    pub errors: u64,
    /// `errors / count`.
    pub error_rate: f64,
    /// From acceptance to start.
    pub wait: Distribution,
    /// From start to end.
    pub run: Distribution,
}

/// How finely the window of a summary could be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WindowResolution {
    /// At single records: the window is the one that was asked for.
    Record,
    /// At whole hours: single records that old are no longer kept, so the window was widened.
    Hour,
    /// At whole days, likewise.
    Day,
}

/// Answer of `metrics.summary`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MetricsSummaryAnswer {
    /// Where the window that the rows cover begins; absent when it covers everything kept. Never later than was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub since: Option<String>,
    /// Where it ends: the time of the answer.
    #[schemars(extend("format" = "date-time"))]
    pub until: String,
    /// How finely `since` could be chosen.
    pub resolution: WindowResolution,
    /// Those with the most operations first.
    pub rows: Vec<MetricsRow>,
}

/// Parameters of `metrics.history`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsHistoryParams {
    /// Only this verb.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Only this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Only this outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["succeeded", "failed", "cancelled", "expired", "interrupted", "unknown"]))]
    pub outcome: Option<String>,
    /// At most so many; 100 where absent, at most 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000))]
    pub limit: Option<usize>,
    /// `cursor` of the answer before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// One recorded operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricsRecord {
    /// The job's id.
    pub job_id: u64,
    /// Verb.
    pub operation: String,
    /// Machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Class.
    #[schemars(extend("enum" = ["query", "exec", "change", "creation", "configuration", "fleet", "session"]))]
    pub job_class: String,
    /// Who asked.
    pub client: Client,
    /// When it was accepted.
    #[schemars(extend("format" = "date-time"))]
    pub accepted_at: String,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub started_at: Option<String>,
    /// When it ended.
    #[schemars(extend("format" = "date-time"))]
    pub ended_at: String,
    /// Microseconds from acceptance to start.
    pub wait_us: u64,
    /// Microseconds from start to end.
    pub run_us: u64,
    /// How it ended.
    #[schemars(extend("enum" = ["succeeded", "failed", "cancelled", "expired", "interrupted", "unknown"]))]
    pub outcome: String,
    /// Exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Bytes given to it.
    pub bytes_in: u64,
    /// Bytes that it wrote.
    pub bytes_out: u64,
    /// Whether several callers shared it.
    pub joined: bool,
}

/// Answer of `metrics.history`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MetricsHistoryAnswer {
    /// Newest first.
    pub records: Vec<MetricsRecord>,
    /// Goes on where this answer ends; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Answer of `metrics.counters`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CountersAnswer {
    /// Counters since the daemon's start, by name.
    pub counters: BTreeMap<String, u64>,
    /// `open`, `closed`, or what is wrong with the store.
    pub store: String,
}

/// Parameters of `daemon.hello`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HelloParams {
    /// Name of the client, as in `pyinfra`: letters, digits, `-`, `_`, `.`, at most 64.
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
    /// New at every start of the daemon.
    pub instance: String,
}

/// Answer of `daemon.info`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DaemonInfoAnswer {
    /// Version of the daemon.
    pub version: String,
    /// Protocol version.
    pub protocol: u32,
    /// New at every start of the daemon.
    pub instance: String,
    /// Process id.
    pub pid: u32,
    /// When it started.
    #[schemars(extend("format" = "date-time"))]
    pub started_at: String,
    /// How long ago.
    pub uptime_ms: u64,
    /// Socket that it listens on.
    pub socket: String,
    /// Where `orbctl` is; null where none was found.
    pub orbctl: Option<String>,
    /// Configuration file that was read; null where there is none.
    pub config_file: Option<String>,
    /// Folder of the journal, the metrics and spooled output.
    pub state_dir: String,
    /// Bounds in force.
    pub limits: BTreeMap<String, u64>,
    /// Whether one invocation at a time is run.
    pub strict: bool,
    /// What ails `orbctl`; absent while it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<Outage>,
    /// Another program of the daemon's lies on disk; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Upgrade>,
}

/// A program at the daemon's own path that is not the one that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Upgrade {
    /// `pending`: it takes over as soon as the daemon is idle. `refused`: it failed its preflight, and the running daemon goes on.
    #[schemars(extend("enum" = ["pending", "refused"]))]
    pub state: String,
    /// When it was noticed.
    #[schemars(extend("format" = "date-time"))]
    pub noticed_at: String,
    /// Its version, while it is pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What it waits for, while it is pending: the job that runs, for example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The last message on a connection of JSON lines that an upgrading daemon closes. The next instance takes connections on the same
/// socket. It answered all requests that it carried out; one beyond `requests_read` without an answer was not begun, and can be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Closing {
    /// How many requests of this connection were read and answered, a batch counting as one.
    pub requests_read: u64,
}

impl Closing {
    /// The method of the notification.
    pub const NOTIFICATION: &str = "daemon.closing";
}

/// A key of orbd's own configuration that has a new value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppliedKey {
    /// Key.
    pub key: String,
    /// Its value before, as a flag would give it; null where nothing was set.
    pub old_value: Option<String>,
    /// Its value now; null where nothing is set.
    pub new_value: Option<String>,
}

/// A key of orbd's own configuration whose new value needs a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestartRequiredKey {
    /// Key.
    pub key: String,
    /// Value in force, as a flag would give it; null where nothing is set.
    pub running: Option<String>,
    /// Value that a restart puts in force; null where nothing is set.
    pub configured: Option<String>,
}

/// Answer of `daemon.reload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReloadAnswer {
    /// Configuration file that was read; null where there is none.
    pub config_file: Option<String>,
    /// Keys that have new values.
    pub applied: Vec<AppliedKey>,
    /// Keys that keep their values until the daemon is restarted.
    pub needs_restart: Vec<RestartRequiredKey>,
}

/// What a client is about to carry out itself: the verb under which the job is listed and recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeaseOperation {
    /// Copy files of the Mac into a machine.
    #[default]
    Push,
    /// Copy files out of a machine to the Mac.
    Pull,
    /// Write a machine to an archive.
    Export,
    /// Make a machine of an archive.
    Import,
    /// Run a command in a machine, without a terminal.
    Run,
    /// A shell or a command in a machine, on a terminal: a session, in nobody's way.
    Shell,
    /// Follow a machine's log: a session, in nobody's way.
    Logs,
    /// Make a machine.
    Create,
    /// Boot machines.
    Start,
    /// Shut machines down.
    Stop,
    /// Shut machines down and boot them.
    Restart,
    /// Destroy machines.
    Delete,
    /// Give a machine another name.
    Rename,
    /// Copy a machine.
    Clone,
    /// Set the default machine, or clear it.
    SetDefault,
    /// Set a key of OrbStack's configuration.
    ConfigSet,
    /// Put the configuration back to its defaults.
    ConfigReset,
    /// Start every machine.
    StartAll,
    /// Stop every machine.
    StopAll,
    /// Restart every machine.
    RestartAll,
    /// Start OrbStack itself.
    StartOrbstack,
    /// Stop OrbStack itself.
    StopOrbstack,
    /// Restart OrbStack itself.
    RestartOrbstack,
    /// Update OrbStack itself.
    UpdateOrbstack,
    /// Wipe everything that OrbStack has.
    ResetOrbstack,
    /// A read whose answer the tool itself is to print: a session, in nobody's way. `read` says which.
    Read,
    /// A command in the default machine, or a change of the machines that `unknown_form` names: only the real tool knows which. It
    /// takes the lanes of both.
    RunOrChange,
    /// Anything else. It takes `machine`, and the machines of `unknown_form` that exist, exclusively; without them it is a session that
    /// takes no lane. Everything is stale when it starts and when it ends.
    Other,
}

job_params! {
    /// Parameters of `lease.acquire`. Which of `machine`, `machine_names`, `new_name`, `force`, `read` and `unknown_form` an operation takes is
    /// said at each; the others are refused.
    LeaseParams {
        /// What the client is about to do.
        operation: LeaseOperation,
        /// Process that waits for the answer before it runs the real tool. It is the caller's own user's.
        pid: u32,
        /// Name or id, or the new machine's name for `create` and `import`. Absent: the default machine for `push`, `pull`, `run`
        /// and `shell`; no default machine any more for `set_default`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        machine: Option<String>,
        /// Names or ids, instead of `machine`, for `start`, `stop`, `restart` and `delete`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schemars(length(max = 256))]
        machine_names: Vec<String>,
        /// New name, for `rename` and `clone`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        new_name: Option<String>,
        /// End what runs in the way and cancel what waits there, instead of queueing behind it: for `stop`, `stop_all`,
        /// `start_orbstack` and `stop_orbstack`.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
        /// Which read, for `read`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        read: Option<RawRead>,
        /// What the client knows of a form that it does not know in full, instead of `machine_names` and `new_name`: for `create`, `start`,
        /// `stop`, `restart`, `delete`, `rename`, `clone`, `export`, `import`, `set_default`, `run`, `push`, `pull`, `run_or_change`
        /// and `other`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unknown_form: Option<UnknownForm>,
    }
}

/// What a client knows of a form of `orbctl` that it does not know in full: a flag or a verb of a newer version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnknownForm {
    /// Words that may name machines, by name or id. The lease takes the lanes of those that exist, and for `create`, `rename` and
    /// `clone` of all of them; a change takes the whole fleet if that leaves none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub operands: Vec<String>,
    /// The form may mean every machine, so the lease takes the whole fleet. For changes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub whole_fleet: bool,
}

/// A read in `orbctl`'s own words. Which of its fields a `command` takes is said at each; the others are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRead {
    /// What is asked.
    pub command: ReadCommand,
    /// Name or id, for `info` and `logs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Key, for `config_get`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `--format`, for `list` and `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ReadFormat>,
    /// `--quiet`, for `list`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub quiet: bool,
    /// `--running`, for `list`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub running: bool,
    /// `--all`, for `logs`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub all: bool,
}

/// A command of `orbctl` that only reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadCommand {
    /// `list`.
    #[default]
    List,
    /// `info`.
    Info,
    /// `status`.
    Status,
    /// `version`.
    Version,
    /// `config show`.
    ConfigShow,
    /// `config get`.
    ConfigGet,
    /// `default` without a name.
    Default,
    /// `ssh`.
    Ssh,
    /// `logs`.
    Logs,
}

/// A form in which `orbctl` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Parameters of `lease.read`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseReadParams {
    /// Which read.
    pub read: RawRead,
    /// Oldest observation to accept, in milliseconds; 0 asks `orbctl` now. The daemon's `cache_max_age` bounds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

/// Answer of `lease.read`: what the tool printed, and how it ended. A read that failed is answered too, with what it said.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RawOutputAnswer {
    /// Its stdout.
    pub stdout: Printed,
    /// Its stderr.
    pub stderr: Printed,
    /// Its exit code, where it exited by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended it, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// When and how this was seen.
    #[serde(flatten)]
    pub observed: Observed,
}

/// What was printed, as `text` where it is UTF-8, else as `base64`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Printed {
    /// The bytes, where they are UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The bytes, where they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

/// Answer of `lease.acquire`: the place is the caller's until the named process is gone.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct LeaseAnswer {
    /// The job.
    pub job_id: u64,
    /// The real tool.
    pub orbctl: String,
    /// What the environment of the process must have as `ORBD_JOB` when it becomes the tool. A later instance of orbd finds the process by
    /// it if the journal is lost.
    pub marker: String,
    /// Names of the machines that it is about, in the order in which they were given: what the tool is to be told, because what was
    /// resolved to a name may be another machine's when the tool looks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub machine_names: Vec<String>,
}

/// Parameters of `lease.release`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseParams {
    /// The job of the lease.
    pub job_id: u64,
    /// Exit code of the process, where it exited by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended it, where one did. Neither: it is not known how it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 127))]
    pub signal: Option<i32>,
}

/// Answer of `lease.release`, given once the process is gone.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseAnswer {
    /// The job. Still `running` when a change was cut short: orbd looks what came of it, and `job.wait` tells.
    pub job: Job,
    /// Why orbd signalled the process: `deadline_exceeded`, or `job_cancelled` with `waiting_for` where a forced change did it. Absent where
    /// orbd did not signal it, or where it succeeded all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signalled: Option<ErrorObject>,
}

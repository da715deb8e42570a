//! Leases, in which a client runs `orbctl` itself, and raw reads.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::{ErrorObject, Job, JobOptions, Observed, is_false};

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
        machine: Option<String>,
        /// Names or ids of several machines, instead of `machine`. For `start`, `stop`, `restart` and `delete`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schemars(length(max = 256))]
        machine_names: Vec<String>,
        /// New name. For `rename` and `clone`.
        new_name: Option<String>,
        /// End the jobs that run in the operation's lanes and cancel those that wait for them, instead of queueing behind them. For `stop`,
        /// `stop_all`, `start_orbstack` and `stop_orbstack`.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
        /// The read command. For `read`.
        read: Option<RawRead>,
        /// A command line that the client cannot interpret completely, instead of `machine_names` and `new_name`. For `create`, `start`,
        /// `stop`, `restart`, `delete`, `rename`, `clone`, `export`, `import`, `set_default`, `run`, `push`, `pull`, `run_or_change` and
        /// `other`. With it, only `import`, `run`, `push`, `pull` and `other` accept `machine`, and only without `whole_fleet`.
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
#[skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRead {
    /// The command.
    pub command: ReadCommand,
    /// Name or id of the machine. For `info` and `logs`.
    pub machine: Option<String>,
    /// Configuration key. For `config_get`.
    pub key: Option<String>,
    /// The flag `--format`. For `list` and `info`.
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
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseReadParams {
    /// The read command.
    pub read: RawRead,
    /// Maximum age of a cached observation, in milliseconds; 0 reads from `orbctl` now. Default and upper limit: the daemon's
    /// `cache_max_age`.
    pub max_age_ms: Option<u64>,
}

/// Answer of `lease.read`: the output of `orbctl` and how it ended, even if it failed.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RawOutputAnswer {
    /// Output on stdout.
    pub stdout: RawStream,
    /// Output on stderr.
    pub stderr: RawStream,
    /// Exit code of `orbctl`; absent if a signal ended it.
    pub exit_code: Option<i32>,
    /// Signal that ended `orbctl`; absent if it exited.
    pub signal: Option<i32>,
    /// When and how this was read.
    #[serde(flatten)]
    pub observed: Observed,
}

/// Output of `orbctl`: `text` if it is UTF-8, else `base64`.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RawStream {
    /// The bytes, if they are UTF-8.
    pub text: Option<String>,
    /// The bytes in base64, if they are not UTF-8.
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
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseParams {
    /// Id of the lease's job.
    pub job_id: u64,
    /// Exit code of the child, if it exited.
    pub exit_code: Option<i32>,
    /// Signal that ended the child, if one did. Without `exit_code` and `signal`, the ending is not known.
    #[schemars(range(min = 1, max = 127))]
    pub signal: Option<i32>,
}

/// Answer of `lease.release`. It arrives when the child has exited.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseAnswer {
    /// The job. It is still `running` if a change was interrupted: orbd polls until the result is stable, and `job.wait` returns it.
    pub job: Job,
    /// Why orbd signalled the child: `deadline_exceeded`, or `job_cancelled`, with `waiting_for` if a forced change cancelled it. Absent if
    /// orbd did not signal the child, or if the child succeeded nevertheless.
    pub signalled: Option<ErrorObject>,
}

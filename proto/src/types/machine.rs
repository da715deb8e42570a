//! Machines: their list, details, changes and logs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::{JobOptions, Observed, is_false, nullable};

/// The image that a machine was created from.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// Distribution, such as `ubuntu`.
    pub distro: String,
    /// Version or codename, such as `noble`.
    pub version: String,
    /// CPU architecture: `arm64` or `amd64`.
    pub arch: String,
    /// Image variant, such as `default`; absent if OrbStack does not report it.
    pub variant: Option<String>,
}

/// Settings of a machine. A field is absent if the installed OrbStack does not report it.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MachineConfig {
    /// Guest user that commands run as by default.
    pub default_username: Option<String>,
    /// Whether the machine has no access to the Mac.
    pub isolated: Option<bool>,
    /// Whether the machine has no access to the Mac's network.
    pub isolate_network: Option<bool>,
    /// Whether the Mac's SSH agent is forwarded to the machine.
    pub forward_ssh_agent: Option<bool>,
    /// Port of the machine's HTTP domain.
    pub http_port: Option<u16>,
    /// Port of the machine's HTTPS domain.
    pub https_port: Option<u16>,
    /// CPU limit, in cores.
    pub cpu_limit: Option<u64>,
    /// Memory limit in MiB.
    pub memory_limit_mib: Option<u64>,
    /// Disk limit in bytes.
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
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineInfoParams {
    /// Name or id of the machine.
    pub machine: String,
    /// Maximum age of a cached observation, in milliseconds; 0 reads from `orbctl` now. Default and upper limit: the daemon's
    /// `cache_max_age`.
    pub max_age_ms: Option<u64>,
}

/// Answer of `machine.info`.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MachineInfoAnswer {
    /// The machine, as `machine.list` returns it.
    pub machine: Machine,
    /// Disk space that the machine uses, in bytes; absent if OrbStack does not report it.
    pub disk_size: Option<u64>,
    /// IPv4 address; absent while the machine is stopped.
    pub ip4: Option<String>,
    /// IPv6 address; absent while the machine is stopped.
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
        version: Option<String>,
        /// CPU architecture: `arm64` or `amd64`. Default: that of the Mac.
        arch: Option<String>,
        /// Default guest user. Default: the name of the Mac user.
        user: Option<String>,
        /// CPU limit, in cores (OrbStack 2.2 and later).
        #[schemars(range(min = 1))]
        cpus: Option<u32>,
        /// Memory limit, such as `4G` (OrbStack 2.2 and later).
        memory: Option<String>,
        /// Disk limit, such as `40G` (OrbStack 2.2 and later).
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
        #[serialize_always]
        #[serde(deserialize_with = "nullable")]
        #[schemars(required, extend("type" = ["string", "null"]))]
        machine: Option<String>,
    }
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

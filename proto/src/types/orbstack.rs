//! OrbStack itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::{JobOptions, Observed, is_false};

job_params! {
    /// Parameters of a change of all machines or of OrbStack that can be forced.
    ForceParams {
        /// End all running jobs and cancel all waiting jobs, instead of queueing behind them.
        #[serde(default, skip_serializing_if = "is_false")]
        force: bool,
    }
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
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct VersionAnswer {
    /// Version number, such as `2.1.3`.
    pub version: String,
    /// Build number; absent if `orbctl` does not report it.
    pub build: Option<u64>,
    /// Commit of the build; absent if `orbctl` does not report it.
    pub commit: Option<String>,
    /// When and how this was read.
    #[serde(flatten)]
    pub observed: Observed,
}

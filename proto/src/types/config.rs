//! OrbStack's configuration.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::{JobOptions, Observed, is_false};

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
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigGetParams {
    /// Configuration key, such as `machine.web.username`.
    pub key: String,
    /// Maximum age of a cached observation, in milliseconds; 0 reads from `orbctl` now. Default and upper limit: the daemon's
    /// `cache_max_age`.
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

job_params! {
    /// Parameters of `config.add` and `config.remove`.
    ConfigEntryParams {
        /// Configuration key that holds a list, such as `machine.web.mounts`.
        key: String,
        /// The entry, in the form that `orbctl config add` accepts.
        value: String,
    }
}

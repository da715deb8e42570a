//! The cache.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

/// Parameters of `cache.invalidate`.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheInvalidateParams {
    /// Name of the machine whose observations to discard. Default: discard all.
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
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CacheEntry {
    /// What was observed: `machines`, `info`, `status`, `version`, `config`, `default`, `ssh`, or `raw` for a `lease.read`.
    pub key: String,
    /// Name of the machine; absent unless the observation is about one.
    pub machine: Option<String>,
    /// Generation in which the read began.
    pub generation: u64,
    /// Milliseconds since the read began.
    pub age_ms: u64,
    /// Whether the observation may answer reads. False after an invalidation.
    pub valid: bool,
}

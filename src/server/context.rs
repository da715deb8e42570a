//! The state that all handlers share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::dispatcher::Dispatcher;
use crate::metrics::Metrics;
use crate::upgrade::BinaryWatcher;
use orbd_proto::types::{Channel, ChannelsOff, ReloadAnswer};

/// State shared by all handlers.
pub struct Server {
    /// Schedules and runs jobs.
    pub dispatcher: Dispatcher,
    /// Records operations and counters.
    pub metrics: Metrics,
    /// The part of `daemon.info` that never changes.
    pub info: InstanceInfo,
    /// The part of `daemon.info` that a reload may change.
    pub in_force: watch::Receiver<EffectiveConfig>,
    /// Returns the path of `orbctl`.
    pub orbctl: WhereOrbctl,
    /// Lists the resident channels.
    pub channels: ListChannels,
    /// Re-reads the configuration, for `daemon.reload`.
    pub reload: Reload,
    /// Checks whether the daemon's binary was replaced.
    pub binary_watcher: Arc<BinaryWatcher>,
    /// The new binary on disk; `None` if there is none.
    pub upgrade: watch::Receiver<Option<Upgrade>>,
    /// Number of open connections.
    pub open_connections: Arc<AtomicUsize>,
    /// Cancelled to stop the daemon.
    pub stop: CancellationToken,
}

/// A new binary on disk that is not running.
#[derive(Debug, Clone)]
pub struct Upgrade {
    /// When it was detected.
    pub noticed: Moment,
    /// Version of the new binary, or why its preflight failed.
    pub preflight: Result<String, String>,
}

/// Returns the path of `orbctl`, or `None` if it is not found. It may be installed while the daemon runs.
pub type WhereOrbctl = Box<dyn Fn() -> Option<PathBuf> + Send + Sync>;

/// Lists the resident channels, and says why the installed `orbctl` gets none.
pub type ListChannels = Box<dyn Fn() -> (Vec<Channel>, Option<ChannelsOff>) + Send + Sync>;

/// Re-reads the configuration. Returns what changed, or what is wrong with the configuration.
pub type Reload = Box<dyn Fn() -> BoxFuture<'static, Result<ReloadAnswer, String>> + Send + Sync>;

/// The part of `daemon.info` that a reload may change.
#[derive(Debug, Clone)]
pub struct EffectiveConfig {
    /// The configuration file that was read; `None` if there is none.
    pub config_file: Option<PathBuf>,
    /// Limits by configuration key.
    pub limits: BTreeMap<String, u64>,
    /// Whether `strict` is set: one job runs at a time, sessions excepted.
    pub strict: bool,
    /// Why the configuration allows no resident channels; `None` if it does.
    pub channels_off: Option<&'static str>,
}

/// The part of `daemon.info` that never changes.
#[derive(Debug, Clone)]
pub struct InstanceInfo {
    /// Id of this run of the daemon.
    pub instance: String,
    /// When the daemon started.
    pub started: Moment,
    /// Path of the socket.
    pub socket: PathBuf,
    /// Folder of the journal, the metrics and stored output.
    pub state_dir: PathBuf,
    /// Path that the program was started from, where an upgrade is expected; `None` if unknown.
    pub program: Option<PathBuf>,
}

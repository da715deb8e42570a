//! The daemon: hello, info, reload, closing.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::Outage;

/// Parameters of `daemon.hello`.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HelloParams {
    /// Name of the client, such as `pyinfra`: 1 to 64 letters, digits, `-`, `_` and `.`.
    #[schemars(regex(pattern = "^[A-Za-z0-9._-]{1,64}$"))]
    pub client: String,
    /// Newest protocol version that the client speaks.
    pub protocol: u32,
    /// Oldest protocol version that the client speaks; default: `protocol`.
    pub protocol_min: Option<u32>,
}

/// Answer of `daemon.hello`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct HelloAnswer {
    /// Protocol version of this connection: the newest that both speak.
    pub protocol: u32,
    /// Version of the daemon.
    pub version: String,
    /// Id of this run of the daemon; each start has a new one.
    pub instance: String,
}

/// Answer of `daemon.info`.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DaemonInfoAnswer {
    /// Version of the daemon.
    pub version: String,
    /// Newest protocol version that the daemon speaks.
    pub protocol: u32,
    /// Oldest protocol version that the daemon speaks.
    pub protocol_min: u32,
    /// Id of this run of the daemon; each start has a new one.
    pub instance: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Time at which the daemon started.
    #[schemars(extend("format" = "date-time"))]
    pub started_at: String,
    /// Milliseconds since `started_at`.
    pub uptime_ms: u64,
    /// Path of the program that the daemon was started from; only the file there replaces it. Null if unknown.
    #[serialize_always]
    pub program: Option<String>,
    /// Path of the socket that the daemon listens on.
    pub socket: String,
    /// Path of `orbctl`; null if it was not found.
    #[serialize_always]
    pub orbctl: Option<String>,
    /// Path of the configuration file that the daemon has read; null if there is none.
    #[serialize_always]
    pub config_file: Option<String>,
    /// Folder of the journal, the metrics and stored output.
    pub state_dir: String,
    /// Limits in force, by configuration key.
    pub limits: BTreeMap<String, u64>,
    /// Whether `strict` is set: one job runs at a time, sessions excepted.
    pub strict: bool,
    /// Why `orbctl` is unhealthy, and since when; absent while it is healthy.
    pub unhealthy: Option<Outage>,
    /// A replaced daemon binary that is not running yet; absent if there is none.
    pub upgrade: Option<Upgrade>,
    /// Resident channels, and machines that have none for a reason; absent if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<Channel>,
    /// Why no machine gets a resident channel; absent if machines can have one.
    pub channels_off: Option<ChannelsOff>,
}

words! {
    /// `configured`: orbd's configuration says so. `unnecessary`: `orbctl run` is fast. `unsuitable`: the installed `orbctl` cannot serve one.
    ChannelsOffCause ["configured", "unnecessary", "unsuitable"];
}

/// Why no machine gets a resident channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChannelsOff {
    /// Kind of the reason.
    #[schemars(with = "ChannelsOffCause")]
    pub cause: String,
    /// The reason.
    pub message: String,
}

words! {
    /// `closed`: there is none, for the reason in `problem`. `opening`: it was started and has not answered yet. `idle`: it waits for a
    /// command. `busy`: a command runs in it.
    ChannelState ["closed", "opening", "idle", "busy"];
}

/// The resident channel of a machine and user: one `orbctl run` that serves many commands.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Channel {
    /// Name of the machine.
    pub machine: String,
    /// User of the commands; absent if it is the machine's default user.
    pub user: Option<String>,
    /// State of the channel.
    #[schemars(with = "ChannelState")]
    pub state: String,
    /// Milliseconds since it was opened; absent unless it is open.
    pub age_ms: Option<u64>,
    /// Number of commands that it has begun; absent unless it is open.
    pub commands: Option<u64>,
    /// Why there is none, or why the last one ended early; absent if there was no problem.
    pub problem: Option<String>,
}

words! {
    /// `checking`: the preflight of the new program runs. `pending`: the daemon executes the new program at the next idle moment. `refused`:
    /// the program failed the preflight or is older, and the old daemon keeps running.
    UpgradeStatus ["checking", "pending", "refused"];
}

/// A new binary at the daemon's own path.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Upgrade {
    /// `checking`: its preflight runs. `pending`: the daemon executes it at the next idle moment. `refused`: it failed the preflight or is
    /// older, and the old daemon keeps running.
    #[schemars(with = "UpgradeStatus")]
    pub state: String,
    /// Time at which the daemon detected the new binary.
    #[schemars(extend("format" = "date-time"))]
    pub noticed_at: String,
    /// Version of the new binary; absent unless it is pending.
    pub version: Option<String>,
    /// What delays the upgrade, such as a running job; absent if the binary was refused.
    pub waits_for: Option<String>,
    /// Why the binary was refused; absent otherwise.
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

//! The keys of the configuration: name, type, default, bounds and description.
//!
//! The macro `keys!` generates the struct, the parser, the environment variable names (`ORBD_` and the key in capitals), the check for
//! misspelt keys and the documented sample from the table at the end of this file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::value::{Bytes, LogFormat, MachineNames, RawValue, Value, check_bounds};
use super::{ConfigError, Origin, UserDirs};
use crate::nearest::nearest;
use crate::run_command::{ExecChannel, GuestEnv};

/// Name and description of a configuration key.
#[derive(Debug)]
pub struct Key {
    /// Name in the configuration file.
    pub name: &'static str,
    /// Description, as the sample prints it; may have several lines.
    pub help: &'static str,
}

impl Key {
    /// Returns the name of the environment variable that sets this key; `None` for `strict`, which no variable sets.
    pub fn variable(&self) -> Option<String> {
        // `ORBD_STRICT` belongs to the drop-in. A user who exports it must not slow down a daemon that is started from that shell.
        (self.name != "strict").then(|| format!("ORBD_{}", self.name.to_ascii_uppercase()))
    }

    /// Returns whether a change of this key takes effect only after a restart of orbd.
    pub fn needs_restart(&self) -> bool {
        AT_START.contains(&self.name)
    }
}

/// Keys that are read only at startup: they configure resources that are opened, bound or started then and cannot change while in use.
pub(super) const AT_START: [&str; 17] = [
    "socket",
    "orbctl",
    "state_dir",
    "allow_root",
    "history_max",
    "history_max_age",
    "requests_max",
    "batch_max",
    "connection_bytes_max",
    "bytes_max",
    "frame_max",
    "request_timeout",
    "log_format",
    "log_dir",
    "log_max_files",
    "log_max_size",
    "log_max_age",
];

/// A key whose value differs between two configurations. A value is `None` if an optional key is not set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Name of the key.
    pub key: &'static str,
    /// Value in the running configuration.
    pub from: Option<String>,
    /// Value in the newly loaded configuration.
    pub to: Option<String>,
}

/// Result of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reloaded {
    /// Keys whose new values are in force.
    pub applied: Vec<Difference>,
    /// Keys that keep their old values until orbd restarts.
    pub needs_restart: Vec<Difference>,
}

pub(super) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
pub(super) const fn minutes(minutes: u64) -> Duration {
    seconds(minutes * 60)
}
const fn hours(hours: u64) -> Duration {
    minutes(hours * 60)
}
const fn days(days: u64) -> Duration {
    hours(days * 24)
}

/// Finds a key by name. The error is the existing key with the most similar name, if one is similar.
pub fn find_key(name: &str) -> Result<&'static Key, Option<&'static str>> {
    KEYS.iter()
        .find(|key| key.name == name)
        .ok_or_else(|| nearest_key(name))
}

/// Returns the key that a misspelt one probably means.
fn nearest_key(name: &str) -> Option<&'static str> {
    nearest(&name.replace('-', "_"), KEYS.iter().map(|key| key.name))
}

macro_rules! keys {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr $(, $least:expr => $most:expr)?;)+) => {
        /// The validated configuration. Each field is a key of the configuration file.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Config {
            $($(#[doc = $doc])+ pub $name: $type,)+
            pub(super) origins: BTreeMap<&'static str, Origin>,
            pub(super) file: Option<PathBuf>,
        }

        /// All keys, in the order of the sample.
        pub const KEYS: &[Key] = &[$(Key { name: stringify!($name), help: concat!($($doc, "\n"),+) },)+];

        impl Config {
            /// Returns the default configuration of a user with these directories.
            pub fn defaults(places: &UserDirs) -> Self {
                // A default is a closure because some defaults depend on the user's directories.
                $(let $name = { let make: fn(&UserDirs) -> $type = $default; make(places) };)+
                Self { $($name,)+ origins: BTreeMap::new(), file: None }
            }

            pub(super) fn set(&mut self, key: &str, given: &RawValue<'_>, origin: Origin) -> Result<(), ConfigError> {
                match key {
                    $(stringify!($name) => {
                        let key = stringify!($name);
                        let bad = |problem| ConfigError::BadValue { origin: origin.clone(), key, problem };
                        let value: $type = given.read().map_err(bad)?;
                        $(check_bounds::<$type>(&value, &$least, &$most).map_err(bad)?;)?
                        self.$name = value;
                        self.origins.insert(key, origin);
                        Ok(())
                    })+
                    _ => Err(ConfigError::UnknownKey {
                        origin,
                        key: key.to_owned(),
                        nearest: nearest_key(key),
                    }),
                }
            }

            /// Returns each key and its value as TOML, in the order of the sample.
            pub fn values(&self) -> Vec<(&'static str, String)> {
                vec![$((stringify!($name), self.$name.to_toml()),)+]
            }

            /// Returns each key and its value as text that a flag or variable accepts, in the order of the sample; `None` for an
            /// optional key that is not set.
            pub fn texts(&self) -> Vec<(&'static str, Option<String>)> {
                vec![$((stringify!($name), self.$name.to_text()),)+]
            }

            /// Applies the keys of `configured` that can change while orbd runs. Returns which keys were applied and which need a restart.
            pub fn adopt(&mut self, configured: Self) -> Reloaded {
                let mut reloaded = Reloaded::default();
                $(if self.$name != configured.$name {
                    let key = stringify!($name);
                    let difference = Difference { key, from: self.$name.to_text(), to: configured.$name.to_text() };
                    if AT_START.contains(&key) {
                        reloaded.needs_restart.push(difference);
                    } else {
                        self.$name = configured.$name;
                        reloaded.applied.push(difference);
                    }
                })+
                self.origins = configured.origins;
                self.file = configured.file;
                reloaded
            }
        }
    };
}

keys! {
    /// Path of the socket that clients connect to, at most 103 bytes.
    socket: PathBuf = |places| places.home.join(".orbd/orbd.sock");
    /// Path of orbctl. If not set, orbd searches PATH and the usual install locations.
    orbctl: Option<PathBuf> = |_| None;
    /// Directory for the journal, metrics and spooled output.
    state_dir: PathBuf = |places| places.state.clone();
    /// Allow orbd to run as root.
    allow_root: bool = |_| false;

    /// Run one orbctl invocation at a time; sessions are exempt. No environment variable sets this key: `ORBD_STRICT` belongs to
    /// the drop-in.
    strict: bool = |_| false;
    /// Maximum number of reads that run at once.
    queries_max: usize = |_| 4, 1 => 64;
    /// Maximum number of commands and file transfers that run at once in one machine.
    exec_per_machine: usize = |_| 4, 1 => 256;
    /// Maximum number of commands and file transfers that run at once in all machines together.
    exec_max: usize = |_| 128, 1 => 4096;
    /// Maximum number of machine changes that run at once.
    changes_max: usize = |_| 8, 1 => 256;
    /// Maximum number of machine changes that create or import a machine and run at once.
    creates_max: usize = |_| 2, 1 => 64;
    /// Maximum number of queued jobs; further jobs are refused.
    queue_max: usize = |_| 1024, 1 => 1_000_000;
    /// Maximum number of queued jobs per client; further jobs are refused.
    queue_max_per_client: usize = |_| 512, 1 => 1_000_000;
    /// Time limit for a job's wait in the queue, unless its caller sets another.
    queue_timeout: Duration = |_| minutes(10), seconds(1) => days(1);
    /// Time limit for a read.
    query_timeout: Duration = |_| seconds(30), seconds(1) => hours(1);
    /// Time limit for a machine change.
    change_timeout: Duration = |_| minutes(10), seconds(1) => days(1);
    /// Time limit for creating or importing a machine.
    create_timeout: Duration = |_| minutes(30), seconds(1) => days(1);
    /// Time limit for an operation that affects all of OrbStack, such as starting or stopping it.
    fleet_timeout: Duration = |_| minutes(5), seconds(1) => days(1);
    /// Time limit for a change of OrbStack's settings.
    config_timeout: Duration = |_| minutes(1), seconds(1) => hours(1);
    /// Time between SIGTERM and SIGKILL when orbd ends a child process.
    grace: Duration = |_| seconds(10), Duration::from_millis(100) => minutes(10);

    /// How environment variables of a command are passed to the guest. "orbenv" passes the values in orbctl's environment and lists
    /// their names in ORBENV. "argv" passes them as arguments, which every user of this computer can read.
    guest_env: GuestEnv = |_| GuestEnv::Orbenv;
    /// Whether commands may run through a resident channel, which is one orbctl run that serves many commands of a machine and user.
    /// "auto" opens one when commands follow each other and an orbctl run takes at least 20 ms. "off" runs orbctl for each command, as
    /// `strict` does.
    exec_channel: ExecChannel = |_| ExecChannel::Auto;
    /// Machines in which orbd runs orbctl for each command, whatever `exec_channel` says. In an environment variable, names are separated
    /// by commas.
    exec_channel_except: MachineNames = |_| MachineNames::default();

    /// Maximum age of a cached state that orbd returns. If the cached state is older, orbd runs orbctl to read it again.
    cache_max_age: Duration = |_| seconds(30), Duration::ZERO => days(1);
    /// Interval at which orbd polls OrbStack while a client subscribes to machine events. It grows to ten seconds while nothing
    /// changes. Without a subscriber, orbd does not poll.
    watch_interval: Duration = |_| seconds(2), Duration::from_millis(100) => hours(1);

    /// Maximum output kept per job.
    spool_max: Bytes = |_| Bytes(1 << 30), Bytes(1 << 16) => Bytes(1 << 40);
    /// Maximum output kept for all jobs together.
    spool_total_max: Bytes = |_| Bytes(4 << 30), Bytes(1 << 16) => Bytes(1 << 43);
    /// How long ended jobs and their output are kept.
    jobs_keep: Duration = |_| minutes(15), seconds(1) => days(30);
    /// Maximum number of ended jobs kept. With 0, only clients that already wait for a job or follow it receive its result.
    jobs_keep_max: usize = |_| 1000, 0 => 1_000_000;

    /// Maximum number of operation records kept.
    history_max: u64 = |_| 100_000, 0 => 10_000_000;
    /// How long operation records are kept. Hourly totals are kept for 90 days, daily totals for five years.
    history_max_age: Duration = |_| days(90), minutes(1) => days(3660);

    /// Maximum number of open connections. One in 64 of them, at most 8, is reserved for `daemon.*` calls.
    connections_max: usize = |_| 512, 1 => 65_536;
    /// Maximum number of open connections per client process.
    connections_max_per_process: usize = |_| 128, 1 => 65_536;
    /// At a connection limit, orbd makes room for a new connection: it closes the one that has been idle for longest, if that is at
    /// least this long. A connection without a call, subscription, job or lease is idle. One second is enough for a connection that
    /// never sent a request or whose process has more than 16 connections. Below the limits, orbd closes no idle connection.
    connection_idle_max: Duration = |_| minutes(1), Duration::from_millis(100) => days(30);
    /// Maximum number of requests per connection that are handled at once.
    requests_max: usize = |_| 128, 1 => 65_536;
    /// Maximum number of requests in one batch.
    batch_max: usize = |_| 100, 1 => 10_000;
    /// Maximum memory held per connection: requests being read or handled, input that a command has not read yet, and answers that
    /// the client has not read yet. At the limit, orbd stops reading from the connection and refuses requests that cannot wait. One
    /// request of `frame_max` always fits.
    connection_bytes_max: Bytes = |_| Bytes(8 << 20), Bytes(1 << 16) => Bytes(1 << 34);
    /// The same limit for all connections together. Each connection's first 96 KiB do not count.
    bytes_max: Bytes = |_| Bytes(64 << 20), Bytes(1 << 16) => Bytes(1 << 36);
    /// Maximum size of a request.
    frame_max: Bytes = |_| Bytes(4 << 20), Bytes(1 << 12) => Bytes(1 << 30);
    /// Time limit for a client to complete a request that it has begun, and to begin its first one. An HTTP connection on which no
    /// request begins for this long is closed.
    request_timeout: Duration = |_| seconds(30), Duration::from_millis(100) => hours(1);

    /// Whether clients start orbd if it is not running. `ORBD_AUTOSTART=0` turns this off for one client.
    autostart: bool = |_| true;

    /// Log level: error, warn, info, debug or trace. A module can have its own level, as in `info,orbd::server=debug`.
    log_level: String = |_| "info".into();
    /// Log format: "text" or "json".
    log_format: LogFormat = |_| LogFormat::Text;
    /// Directory for log files when orbd runs in the background. If not set, `log` in `state_dir`.
    log_dir: Option<PathBuf> = |_| None;
    /// Maximum number of log files kept, including the current one.
    log_max_files: usize = |_| 5, 1 => 1000;
    /// Size at which a log file is rotated.
    log_max_size: Bytes = |_| Bytes(10 << 20), Bytes(1 << 12) => Bytes(1 << 30);
    /// Age at which a log file is rotated.
    log_max_age: Duration = |_| days(1), minutes(1) => days(365);
}

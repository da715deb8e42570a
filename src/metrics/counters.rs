//! Counters since the daemon started, and the state of the store.

use std::path::PathBuf;

/// An event that is counted since the daemon started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counter {
    /// A read answered from the cache.
    CacheHits,
    /// A read that the cache could not answer.
    CacheMisses,
    /// A job that joined another job's invocation.
    Joins,
    /// A change that was skipped because the machine already had the desired state.
    ChangesSkipped,
    /// A request refused before acceptance.
    Refusals,
    /// An `orbctl` process started, by the daemon or by a client that holds a lease.
    Spawns,
    /// A child process that the cache, a join, a channel or a skipped change made unnecessary.
    SpawnsSaved,
    /// A connection accepted; refused ones are not counted.
    Connections,
    /// A resident channel opened.
    ChannelsOpened,
    /// An attempt to open a channel that failed.
    ChannelsFailed,
    /// A command that ran in a channel which was open before.
    ChannelCommands,
    /// A command that a channel declined, because the machine had changed since it was opened.
    ChannelsDeclined,
    /// A channel that became unusable.
    ChannelsBroken,
    /// A command whose end is unknown, because its channel broke while it ran.
    ChannelsUnknown,
}

impl Counter {
    /// Every counter, in the order of declaration.
    pub const ALL: [Self; 14] = [
        Self::CacheHits,
        Self::CacheMisses,
        Self::Joins,
        Self::ChangesSkipped,
        Self::Refusals,
        Self::Spawns,
        Self::SpawnsSaved,
        Self::Connections,
        Self::ChannelsOpened,
        Self::ChannelsFailed,
        Self::ChannelCommands,
        Self::ChannelsDeclined,
        Self::ChannelsBroken,
        Self::ChannelsUnknown,
    ];

    /// Returns the name used on the wire and in exports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CacheHits => "cache_hits",
            Self::CacheMisses => "cache_misses",
            Self::Joins => "joins",
            Self::ChangesSkipped => "changes_skipped",
            Self::Refusals => "refusals",
            Self::Spawns => "spawns",
            Self::SpawnsSaved => "spawns_saved",
            Self::Connections => "connections",
            Self::ChannelsOpened => "channels_opened",
            Self::ChannelsFailed => "channels_failed",
            Self::ChannelCommands => "channel_commands",
            Self::ChannelsDeclined => "channels_declined",
            Self::ChannelsBroken => "channels_broken",
            Self::ChannelsUnknown => "channels_unknown",
        }
    }

    /// Returns a one-sentence description for the Prometheus page.
    pub fn help(self) -> &'static str {
        match self {
            Self::CacheHits => "Reads answered from the cache.",
            Self::CacheMisses => "Reads that the cache could not answer.",
            Self::Joins => "Jobs that shared another's invocation.",
            Self::ChangesSkipped => "Changes that already held and were not carried out.",
            Self::Refusals => "Requests refused before acceptance.",
            Self::Spawns => "Child processes started.",
            Self::SpawnsSaved => {
                "Child processes avoided by the cache, by joins, by channels and by changes that already held."
            }
            Self::Connections => "Connections accepted.",
            Self::ChannelsOpened => "Resident channels opened.",
            Self::ChannelsFailed => "Attempts to open a resident channel that failed.",
            Self::ChannelCommands => "Commands that ran in a resident channel which was open before.",
            Self::ChannelsDeclined => {
                "Commands that a resident channel declined because the machine had changed."
            }
            Self::ChannelsBroken => "Resident channels that became unusable.",
            Self::ChannelsUnknown => "Commands whose end is unknown because their channel broke.",
        }
    }
}

/// State of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreState {
    /// Closed, because it is idle or was not needed yet.
    Closed,
    /// Open in the helper process.
    Open,
    /// Unavailable for now. Records stay in the buffer while there is room, and the worker retries.
    Failed {
        /// Why the store is unavailable.
        reason: String,
    },
}

/// Values of all counters since the daemon started, and the state of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    pub(super) values: [u64; Counter::ALL.len()],
    /// Number of calls of [`Metrics::record`](super::Metrics::record).
    pub recorded: u64,
    /// Number of records lost because the buffer was full or the store refused them.
    pub dropped: u64,
    /// Number of records that wait for the store.
    pub buffered: u64,
    /// State of the store.
    pub store: StoreState,
    /// Directory of the last opened store; `None` until one was opened.
    pub store_folder: Option<PathBuf>,
    /// Path to which the last damaged store was renamed; `None` if this instance found none.
    pub set_aside: Option<PathBuf>,
}

impl Counters {
    /// Returns the value of one counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }
}

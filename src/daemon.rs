//! Builds the parts, wires them, and takes them apart again in order.
//!
//! ```text
//! start: journal, orbctl, metrics (opens later, by itself), dispatcher, then the first connection is accepted
//! stop:  no new connections -> new jobs refused, waiting ones cancelled, commands ended -> answers -> journal -> metrics
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use crate::dispatcher::LEAVE_CHANGES_AFTER;

use crate::clock::Moment;
use crate::config::Config;
use crate::dispatcher::{self, RunTimeouts};
use crate::journal::{Journal, JournalError};
use crate::metrics::Metrics;
use crate::orbctl::locate::{LocateError, Located, Search, locate};
use crate::orbctl::process::Installed;
use crate::rpc::lines::Bounds;
use crate::rpc::listen;
use crate::rpc::server::{About, Server};
use crate::scheduler::Limits;
use crate::spool;

/// Longest time that looks go on after a change was cut short.
const SETTLE_MAX: Duration = Duration::from_secs(120);
/// Most output of ended jobs kept in memory.
const KEEP_BYTES: u64 = 16 << 20;
/// Subscriptions of one connection.
const SUBSCRIPTIONS_MAX: u32 = 64;
/// How long the journal and the metrics have to write what is left.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A folder of ours cannot be made.
    #[error("cannot make the folder {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The task that decides everything failed. A fault of ours; whoever watches us starts another.
    #[error("the dispatcher failed")]
    Dispatcher(#[source] tokio::task::JoinError),
    /// The metrics cannot be kept.
    #[error("cannot keep metrics")]
    Metrics(#[source] io::Error),
    /// The listener cannot be used.
    #[error("cannot listen")]
    Listen(#[source] io::Error),
}

/// What the process was given.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The user's home; `orbctl` runs there.
    pub home: PathBuf,
    /// The environment, handed on to `orbctl` without what is ours.
    pub environment: Vec<(OsString, OsString)>,
    /// The configuration file that was read.
    pub config_file: Option<PathBuf>,
}

/// Serves until `shutdown`, and then until what must end has ended.
pub async fn run(
    config: Config,
    listener: UnixListener,
    surroundings: Surroundings,
    shutdown: CancellationToken,
) -> Result<(), SetupError> {
    for folder in [&config.state_dir, &config.spool_dir()] {
        make_folder(folder)?;
    }
    let started = Moment::now();
    let instance = instance(&started);
    let found = find_orbctl(&config, &surroundings);
    let program = match &found {
        Ok(located) => located.path().to_owned(),
        Err(_) => config
            .orbctl
            .clone()
            .unwrap_or_else(|| PathBuf::from("/nonexistent/orbctl")),
    };
    let config_file = surroundings.config_file.as_deref();
    // The first line of every life.
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        instance,
        pid = std::process::id(),
        orbctl = %program.display(),
        found = found.is_ok(),
        socket = %config.socket.display(),
        config_file = %config_file.unwrap_or(Path::new("none")).display(),
        state_dir = %config.state_dir.display(),
        "orbd"
    );
    if let Err(error) = &found {
        // It serves all the same: every job says what is missing, and the journal is kept.
        tracing::error!(%error, "orbctl was not found; set `orbctl` in the configuration");
    }
    let (journal, recovered) = Journal::open(&config.journal_path(), started.wall)?;
    let metrics = Metrics::start(config.metrics().map_err(SetupError::Metrics)?);
    let installed = Installed::new(program.clone(), surroundings.home, surroundings.environment);
    let parts = dispatcher::Parts {
        orbctl: Arc::new(installed),
        journal,
        recovered,
        metrics: metrics.clone(),
    };
    // Ends the daemon; a caller's `daemon.stop` and a signal are the same.
    let stop = shutdown.child_token();
    let (dispatcher, dispatching) = dispatcher::start(settings(&config, &instance), parts, stop.clone());
    let server = Arc::new(Server {
        dispatcher,
        metrics: metrics.clone(),
        about: About {
            instance,
            started,
            socket: config.socket.clone(),
            orbctl: found.is_ok().then_some(program),
            config_file: surroundings.config_file,
            state_dir: config.state_dir.clone(),
            limits: limits(&config),
            strict: config.strict,
        },
        cache_max_age: config.cache_max_age,
        stop: stop.clone(),
    });
    let listener = tokio::net::UnixListener::from_std(listener).map_err(SetupError::Listen)?;
    let answered = CancellationToken::new();
    let settings = listen::Settings {
        connections_max: config.connections_max,
        connection_idle_max: config.connection_idle_max,
        bounds: Bounds {
            frame_max: usize::try_from(config.frame_max.0).unwrap_or(usize::MAX),
            in_flight_max: config.requests_max,
            batch_max: config.batch_max,
            subscriptions_max: SUBSCRIPTIONS_MAX,
        },
    };
    let serving = tokio::spawn(listen::serve(
        listener,
        server,
        settings,
        stop.clone(),
        answered.clone(),
    ));
    let journal = dispatching.await;
    // However it ended: without it nothing can be done any more.
    stop.cancel();
    answered.cancel();
    if let Err(error) = serving.await {
        tracing::error!(%error, "the listener failed");
    }
    let ended = match journal {
        Ok(journal) => {
            if let Err(error) = journal.close(CLOSE_LIMIT).await {
                tracing::error!(%error, "the journal could not be closed");
            }
            Ok(())
        }
        Err(error) => {
            tracing::error!(%error, "the dispatcher failed");
            Err(SetupError::Dispatcher(error))
        }
    };
    metrics.shutdown(CLOSE_LIMIT).await;
    tracing::info!("stopped");
    ended
}

fn make_folder(path: &Path) -> Result<(), SetupError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| SetupError::Folder {
            path: path.to_owned(),
            source,
        })
}

/// Names this life of the daemon: when it began and which process it is tell it from every other.
fn instance(started: &Moment) -> String {
    format!("{:x}-{:x}", started.unix_ms(), std::process::id())
}

/// Finds `orbctl`.
fn find_orbctl(config: &Config, surroundings: &Surroundings) -> Result<Located, LocateError> {
    let path = surroundings
        .environment
        .iter()
        .find(|(name, _)| name == "PATH")
        .map(|(_, value)| value.as_os_str());
    let own = std::env::current_exe().ok();
    let beside = own
        .as_deref()
        .and_then(Path::parent)
        .map(|folder| folder.join("orbd-ctl"));
    let ours: Vec<PathBuf> = own.iter().cloned().chain(beside).collect();
    locate(&Search {
        configured: config.orbctl.as_deref(),
        path,
        home: Some(&surroundings.home),
        ours: &ours,
    })
}

fn settings(config: &Config, instance: &str) -> dispatcher::Settings {
    dispatcher::Settings {
        limits: Limits {
            queries_max: config.queries_max,
            exec_per_machine: config.exec_per_machine,
            exec_max: config.exec_max,
            changes_max: config.changes_max,
            creates_max: config.creates_max,
            queue_max: config.queue_max,
            queue_max_per_client: config.queue_max_per_client,
            strict: config.strict,
        },
        cache_max_age: config.cache_max_age,
        watch_interval: config.watch_interval,
        queue_timeout: config.queue_timeout,
        run_timeouts: RunTimeouts {
            query: config.query_timeout,
            change: config.change_timeout,
            creation: config.create_timeout,
            configuration: config.config_timeout,
            fleet: config.fleet_timeout,
        },
        grace: config.grace,
        settle: SETTLE_MAX,
        keep: config.jobs_keep,
        keep_max: config.jobs_keep_max,
        keep_bytes: KEEP_BYTES,
        spool: spool::Settings {
            dir: config.spool_dir(),
            max: config.spool_max.0,
            keep: spool::Keep::All,
        },
        spool_total_max: config.spool_total_max.0,
        instance: instance.to_owned(),
    }
}

/// The bounds that `daemon.info` tells.
fn limits(config: &Config) -> BTreeMap<String, u64> {
    let number = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    BTreeMap::from(
        [
            ("queries_max", number(config.queries_max)),
            ("exec_per_machine", number(config.exec_per_machine)),
            ("exec_max", number(config.exec_max)),
            ("changes_max", number(config.changes_max)),
            ("creates_max", number(config.creates_max)),
            ("queue_max", number(config.queue_max)),
            ("queue_max_per_client", number(config.queue_max_per_client)),
            ("connections_max", number(config.connections_max)),
            ("connection_idle_max_ms", ms(config.connection_idle_max)),
            ("requests_max", number(config.requests_max)),
            ("batch_max", number(config.batch_max)),
            ("frame_max_bytes", config.frame_max.0),
            ("spool_max_bytes", config.spool_max.0),
            ("cache_max_age_ms", ms(config.cache_max_age)),
            ("watch_interval_ms", ms(config.watch_interval)),
            ("queue_timeout_ms", ms(config.queue_timeout)),
            ("grace_ms", ms(config.grace)),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}

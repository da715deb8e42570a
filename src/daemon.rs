//! Builds the parts, wires them, and takes them apart again in order.
//!
//! ```text
//! start: journal, orbctl, metrics (opens later, by itself), dispatcher, then the first connection is accepted
//! stop:  no new connections -> new jobs refused, waiting ones cancelled, commands ended -> answers -> journal -> metrics
//! ```
//!
//! An upgrade is a stop while no job runs. Connections are answered and closed first, and the listener stays open for the new program.

mod reload;
mod upgrade;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

pub use crate::dispatcher::LEAVE_CHANGES_AFTER;

use crate::clock::Moment;
use crate::config::{Config, Sources};
use crate::dispatcher::{self, Dispatcher, Markers, RunTimeouts};
use crate::journal::{Journal, JournalError};
use crate::logging::Level;
use crate::metrics::{Counter, Metrics};
use crate::orbctl::locate::{LocateError, OrbctlLocator, Search};
use crate::orbctl::process::Installed;
use crate::rpc::listen;
use crate::rpc::request::Bounds;
use crate::rpc::server::{EffectiveConfig, InstanceInfo, Server};
use crate::scheduler::Limits;
use crate::spool;
use crate::sys;
use crate::upgrade::{BinaryWatcher, Program};
use reload::{Reloader, Running};
use upgrade::UpgradeSupervisor;

/// Longest time that looks go on after a change was cut short.
const RECONCILE_MAX: Duration = Duration::from_secs(120);
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
    Dispatcher(#[source] JoinError),
    /// The metrics cannot be kept.
    #[error("cannot keep metrics")]
    Metrics(#[source] io::Error),
    /// The listener cannot be used.
    #[error("cannot listen")]
    Listen(#[source] io::Error),
}

/// What the process was given.
#[derive(Debug, Clone)]
pub struct ProcessContext {
    /// The environment. Of it only `PATH` is used, to find `orbctl`, and what [`orbctl::environment`](crate::orbctl::environment) keeps.
    pub environment: Vec<(OsString, OsString)>,
    /// Where the configuration came from, and comes from again.
    pub sources: Sources,
    /// What is logged.
    pub log_level: Level,
    /// What people say to the process.
    pub signals: Signals,
    /// The program that runs; without it no upgrade is noticed.
    pub program: Option<Program>,
}

/// How serving ended.
#[derive(Debug)]
pub enum Ended {
    /// For good.
    Stopped,
    /// So that the new program serves on with this listener.
    Upgrading(UnixListener),
}

/// What people say to the process. A `daemon.stop` and a `daemon.reload` are the same.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// To stop in order.
    pub stop: CancellationToken,
    /// To read the configuration again; several before that are one.
    pub reload: Arc<Notify>,
}

/// Serves until it is told to stop, and then until what must end has ended.
pub async fn run(
    config: Config,
    listener: UnixListener,
    context: ProcessContext,
) -> Result<Ended, SetupError> {
    for folder in [&config.state_dir, &config.spool_dir()] {
        make_folder(folder)?;
    }
    let started = Moment::now();
    let instance = instance(&started);
    let orbctl = Installed::new(
        find_orbctl(&config, &context),
        context.sources.places.home.clone(),
        context.environment.clone(),
    );
    announce(&config, &instance, &orbctl.program());
    let (journal, recovered) = Journal::open(&config.journal_path(), started.wall)?;
    let settings = settings(&config, &instance);
    let survivors = if recovered.names_every_child() {
        Vec::new()
    } else {
        let program = orbctl.program().ok();
        settings
            .markers
            .survivors(sys::marked_processes(), program.as_deref())
    };
    let metrics = Metrics::start(config.metrics().map_err(SetupError::Metrics)?);
    let spawns = metrics.clone();
    let orbctl = Arc::new(orbctl.on_spawn(move || spawns.count(Counter::Spawns)));
    let signals = context.signals.clone();
    let parts = dispatcher::Parts {
        orbctl: orbctl.clone(),
        journal,
        recovered,
        survivors,
        metrics: metrics.clone(),
    };
    let stop = signals.stop.child_token();
    let (dispatcher, dispatching) = dispatcher::start(settings, parts, stop.clone());
    let info = InstanceInfo {
        instance,
        started,
        socket: config.socket.clone(),
        state_dir: config.state_dir.clone(),
    };
    let Parts {
        server,
        reloader,
        supervisor,
        settings,
    } = assemble(config, info, orbctl, dispatcher, metrics.clone(), context);
    let listener = tokio::net::UnixListener::from_std(listener).map_err(SetupError::Listen)?;
    let answered = CancellationToken::new();
    let serving = tokio::spawn(listen::serve(
        listener,
        server,
        settings,
        stop.clone(),
        answered.clone(),
    ));
    let reloading = tokio::spawn(reload_when_told(reloader, signals.reload));
    let supervising = tokio::spawn(async {
        match supervisor {
            Some(supervisor) => supervisor.run().await,
            None => false,
        }
    });
    let (journal, listener) = ended(dispatching, serving, supervising, &stop, &answered).await;
    reloading.abort();
    let closed = match journal {
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
    closed?;
    // Whoever asked for a stop meanwhile wants one.
    let listener = listener.filter(|_| !signals.stop.is_cancelled());
    tracing::info!(upgrading = listener.is_some(), "stopped");
    Ok(listener.map_or(Ended::Stopped, Ended::Upgrading))
}

/// Waits until the dispatcher and the connections have ended; returns the journal, and the listener if an upgrade is the reason.
///
/// For a stop the dispatcher ends first, because calls wait for its jobs. For an upgrade the connections end first: no job runs, and what
/// they still ask is answered.
async fn ended(
    mut dispatching: JoinHandle<Journal>,
    serving: JoinHandle<Option<tokio::net::UnixListener>>,
    supervising: JoinHandle<bool>,
    stop: &CancellationToken,
    answered: &CancellationToken,
) -> (Result<Journal, JoinError>, Option<UnixListener>) {
    let supervisor = supervising.abort_handle();
    let into_std = |ended: Result<Option<tokio::net::UnixListener>, JoinError>| {
        let listener = ended.unwrap_or_else(|error| {
            tracing::error!(%error, "the listener failed");
            None
        });
        listener.and_then(|listener| listener.into_std().ok())
    };
    tokio::select! {
        journal = &mut dispatching => {
            supervisor.abort();
            // However it ended: without it nothing can be done any more.
            stop.cancel();
            answered.cancel();
            (journal, into_std(serving.await))
        }
        Ok(true) = supervising => {
            let listener = into_std(serving.await);
            stop.cancel();
            answered.cancel();
            (dispatching.await, listener)
        }
    }
}

/// Writes the first line of every life.
fn announce(config: &Config, instance: &str, orbctl: &Result<PathBuf, LocateError>) {
    let path = orbctl.as_ref().ok().or(config.orbctl.as_ref());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        instance,
        pid = std::process::id(),
        orbctl = %path.map_or(Path::new("none"), PathBuf::as_path).display(),
        found = orbctl.is_ok(),
        socket = %config.socket.display(),
        config_file = %config.file().unwrap_or(Path::new("none")).display(),
        state_dir = %config.state_dir.display(),
        "orbd"
    );
    if let Err(error) = orbctl {
        // It serves all the same: every job looks again and says what is missing, and the journal is kept.
        tracing::error!(%error, "orbctl was not found; install OrbStack, or set `orbctl` in the configuration");
    }
}

/// What serves, beside the dispatcher.
struct Parts {
    server: Arc<Server>,
    reloader: Reloader,
    supervisor: Option<UpgradeSupervisor>,
    settings: watch::Receiver<listen::Settings>,
}

/// Makes the parts, and the channels by which they tell each other of what changes while they serve.
fn assemble(
    config: Config,
    info: InstanceInfo,
    orbctl: Arc<Installed>,
    dispatcher: Dispatcher,
    metrics: Metrics,
    context: ProcessContext,
) -> Parts {
    let (listening, settings) = watch::channel(listening(&config));
    let (told, in_force) = watch::channel(in_force(&config));
    let (report, upgrade) = watch::channel(None);
    let binary_watcher = Arc::new(BinaryWatcher::new(context.program.as_ref()));
    let on_reload = Arc::new(Notify::new());
    let reloader = Reloader::new(
        context.sources,
        Running {
            config,
            instance: info.instance.clone(),
            dispatcher: dispatcher.clone(),
            listening,
            in_force: told,
            log_level: context.log_level,
            reloaded: on_reload.clone(),
        },
    );
    let supervisor = context.program.map(|program| UpgradeSupervisor {
        program,
        watcher: binary_watcher.clone(),
        reloaded: on_reload,
        dispatcher: dispatcher.clone(),
        report,
    });
    let reload = reloader.clone();
    let server = Server {
        dispatcher,
        metrics,
        info,
        in_force,
        orbctl: Box::new(move || orbctl.program().ok()),
        reload: Box::new(move || {
            let reload = reload.clone();
            async move { reload.reload().await }.boxed()
        }),
        binary_watcher,
        upgrade,
        // The same as a signal's, so that it holds also when another program is about to take over.
        stop: context.signals.stop,
    };
    Parts {
        server: Arc::new(server),
        reloader,
        supervisor,
        settings,
    }
}

/// Reads the configuration again whenever a signal says so.
async fn reload_when_told(reloader: Reloader, told: Arc<Notify>) {
    loop {
        told.notified().await;
        // What is wrong with it stands in the log.
        let _ = reloader.reload().await;
    }
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

/// Looks for `orbctl`.
fn find_orbctl(config: &Config, context: &ProcessContext) -> OrbctlLocator {
    let path = context
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
    OrbctlLocator::new(&Search {
        configured: config.orbctl.as_deref(),
        path,
        home: Some(&context.sources.places.home),
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
        reconcile: RECONCILE_MAX,
        keep: config.jobs_keep,
        keep_max: config.jobs_keep_max,
        keep_bytes: KEEP_BYTES,
        spool: spool::Settings {
            dir: config.spool_dir(),
            max: config.spool_max.0,
            keep: spool::Keep::All,
        },
        spool_total_max: config.spool_total_max.0,
        guest_env: config.guest_env,
        markers: Markers::new(instance, &config.socket),
    }
}

fn listening(config: &Config) -> listen::Settings {
    listen::Settings {
        connections_max: config.connections_max,
        connections_max_per_process: config.connections_max_per_process,
        connection_idle_max: config.connection_idle_max,
        bounds: Bounds {
            connection_bytes_max: usize::try_from(config.connection_bytes_max.0).unwrap_or(usize::MAX),
            bytes_max: usize::try_from(config.bytes_max.0).unwrap_or(usize::MAX),
            request_timeout: config.request_timeout,
            frame_max: usize::try_from(config.frame_max.0).unwrap_or(usize::MAX),
            in_flight_max: config.requests_max,
            batch_max: config.batch_max,
            subscriptions_max: SUBSCRIPTIONS_MAX,
        },
    }
}

fn in_force(config: &Config) -> EffectiveConfig {
    EffectiveConfig {
        config_file: config.file().map(Path::to_owned),
        limits: limits(config),
        strict: config.strict,
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
            (
                "connections_max_per_process",
                number(config.connections_max_per_process),
            ),
            ("connection_idle_max_ms", ms(config.connection_idle_max)),
            ("requests_max", number(config.requests_max)),
            ("batch_max", number(config.batch_max)),
            ("connection_bytes_max", config.connection_bytes_max.0),
            ("bytes_max", config.bytes_max.0),
            ("frame_max_bytes", config.frame_max.0),
            ("request_timeout_ms", ms(config.request_timeout)),
            ("spool_max_bytes", config.spool_max.0),
            ("cache_max_age_ms", ms(config.cache_max_age)),
            ("watch_interval_ms", ms(config.watch_interval)),
            ("queue_timeout_ms", ms(config.queue_timeout)),
            ("grace_ms", ms(config.grace)),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}

//! Starts the parts of the daemon, connects them, and shuts them down in order.
//!
//! ```text
//! start: orbctl -> journal -> metrics (opens its store on first use) -> dispatcher -> accept connections
//! stop:  refuse connections -> refuse new jobs, cancel queued ones, end commands -> answer clients -> close journal -> close metrics
//! ```
//!
//! An upgrade is a stop while no job runs. It answers and closes the connections first, and keeps the listener open for the new program.

mod channels;
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
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::dispatcher::{self, ChannelRules, Dispatcher, Markers, RunTimeouts, Survivor, take_channels};
use crate::journal::{Journal, JournalError, Recovered};
use crate::logging::{self, Level};
use crate::metrics::{self, Counter, Metrics};
use crate::orbctl::{Channels, Installed};
use crate::scheduler::Limits;
use crate::server::context::{EffectiveConfig, InstanceInfo, Server};
use crate::server::listener;
use crate::server::request::Bounds;
use crate::spool;
use crate::sys;
use crate::upgrade::{BinaryWatcher, Program};
use channels::{ChannelObserver, end_channels, listed, off};
use orbd_host::config::{Config, Sources};
use orbd_host::last_program::LastProgram;
use orbd_host::locate::{LocateError, OrbctlLocator, Search};
use orbd_host::run_command::ExecChannel;
use reload::{Reloader, Running};
use upgrade::UpgradeSupervisor;

/// Maximum duration of reconciliation after a change was cut short.
const RECONCILE_MAX: Duration = Duration::from_secs(120);
/// Maximum output of ended jobs kept in memory, in bytes.
const KEEP_BYTES: u64 = 16 << 20;
/// Maximum number of subscriptions per connection.
const SUBSCRIPTIONS_MAX: u32 = 64;
/// Time limit for the journal and for the metrics to write their remaining data at shutdown, each.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Why the daemon could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The state directory or the spool directory could not be created.
    #[error("cannot create the directory {}", path.display())]
    Folder {
        /// Path of the directory.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The journal could not be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A newer version has written journal entries that this one cannot read.
    #[error(
        "the journal {} has entries that this orbd {version} cannot read: run {}; `orbd-ctl daemon start --force` sets the journal \
         aside and loses the changes that wait in it",
        path.display(),
        last.as_ref().map_or_else(|| "the newer orbd that wrote them".to_owned(), ToString::to_string),
        version = env!("CARGO_PKG_VERSION")
    )]
    NewerJournal {
        /// Path of the journal.
        path: PathBuf,
        /// The program that served the state folder last.
        last: Option<LastProgram>,
    },
    /// The dispatcher's task panicked, which is a bug. The service manager restarts the daemon.
    #[error("the dispatcher failed")]
    Dispatcher(#[source] JoinError),
    /// The settings of the metrics could not be determined.
    #[error("cannot set up metrics")]
    Metrics(#[source] io::Error),
    /// The listening socket could not be registered with the async runtime.
    #[error("cannot listen on the socket")]
    Listen(#[source] io::Error),
}

/// Inputs of the process that the daemon needs.
#[derive(Debug, Clone)]
pub struct ProcessContext {
    /// The process's environment. The daemon uses `PATH`, to find `orbctl`, and the variables that
    /// `orbctl::environment` keeps.
    pub environment: Vec<(OsString, OsString)>,
    /// Sources of the configuration, for reloads.
    pub sources: Sources,
    /// Changes the log level on a reload.
    pub log_level: Level,
    /// Requests to stop and to reload, set by signal handlers.
    pub signals: Signals,
    /// The running program; if `None`, upgrades are not detected.
    pub program: Option<Program>,
}

/// Why [`run`] returned.
#[derive(Debug)]
pub enum Ended {
    /// The daemon was asked to stop.
    Stopped,
    /// The process must now execute the new program, which continues to serve on this listener.
    Upgrading(UnixListener),
}

/// Requests to the process from its signal handlers. The method `daemon.stop` cancels the same token.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Cancelled to request an orderly stop.
    pub stop: CancellationToken,
    /// Notified to request a reload; several requests before the reload begins cause only one.
    pub reload: Arc<Notify>,
}

/// Runs the daemon until it is asked to stop or to upgrade, and returns when all parts have shut down.
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
    announce(&config, &instance, context.program.as_ref(), &orbctl.program());
    let (journal, recovered) = open_journal(&config, started.wall)?;
    record_program(&config, context.program.as_ref());
    let settings = settings(&config, &instance);
    let survivors = survivors(&settings, &orbctl, &recovered).await;
    let metrics = Metrics::start(metrics_settings(&config).map_err(SetupError::Metrics)?);
    let spawns = metrics.clone();
    let orbctl = Arc::new(orbctl.on_spawn(move || spawns.count(Counter::Spawns)));
    let signals = context.signals.clone();
    let open_connections = Arc::new(AtomicUsize::new(0));
    let channels = Arc::new(Channels::new(
        orbctl,
        Arc::new(ChannelObserver {
            metrics: metrics.clone(),
            connections: open_connections.clone(),
        }),
    ));
    let parts = dispatcher::Parts {
        orbctl: channels.clone(),
        journal,
        recovered,
        survivors,
        metrics: metrics.clone(),
    };
    let stop = signals.stop.child_token();
    let (dispatcher, dispatching) = dispatcher::start(&settings, parts, stop.clone());
    let info = InstanceInfo {
        instance,
        started,
        socket: config.socket.clone(),
        state_dir: config.state_dir.clone(),
        program: context.program.as_ref().map(|program| program.path.clone()),
    };
    let Parts {
        server,
        reloader,
        supervisor,
        settings,
    } = assemble(
        config,
        info,
        channels,
        open_connections,
        dispatcher,
        metrics.clone(),
        context,
    );
    let listener = tokio::net::UnixListener::from_std(listener).map_err(SetupError::Listen)?;
    let answered = CancellationToken::new();
    let serving = tokio::spawn(listener::serve(
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
                tracing::error!(%error, "could not close the journal");
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
    // A stop requested during the upgrade takes precedence over it.
    let listener = listener.filter(|_| !signals.stop.is_cancelled());
    tracing::info!(upgrading = listener.is_some(), "stopped");
    Ok(listener.map_or(Ended::Stopped, Ended::Upgrading))
}

/// Returns the processes of the previous instance that the journal may not name. Ends its idle channels.
async fn survivors(
    settings: &dispatcher::Settings,
    orbctl: &Installed,
    recovered: &Recovered,
) -> Vec<Survivor> {
    let program = orbctl.program().ok();
    let mut survivors = settings
        .markers
        .survivors(sys::marked_processes(), program.as_deref());
    end_channels(take_channels(&mut survivors, recovered), settings.grace).await;
    if recovered.names_every_child() {
        survivors.clear();
    }
    survivors
}

/// Waits until the dispatcher and the connections have ended. Returns the journal, and the listener if the reason is an upgrade.
///
/// For a stop, the dispatcher ends first, because calls wait for its jobs. For an upgrade, the connections end first: no job runs, and the
/// dispatcher still answers their remaining requests.
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
            // Also if the dispatcher panicked: without it no request can be handled.
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

/// Logs the first line of each instance of the daemon.
fn announce(
    config: &Config,
    instance: &str,
    program: Option<&Program>,
    orbctl: &Result<PathBuf, LocateError>,
) {
    let path = orbctl.as_ref().ok().or(config.orbctl.as_ref());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        instance,
        pid = std::process::id(),
        program = %program.map_or(Path::new("unknown"), |program| &program.path).display(),
        orbctl = %path.map_or(Path::new("none"), PathBuf::as_path).display(),
        found = orbctl.is_ok(),
        socket = %config.socket.display(),
        config_file = %config.file().unwrap_or(Path::new("none")).display(),
        state_dir = %config.state_dir.display(),
        "orbd"
    );
    if let Err(error) = orbctl {
        // The daemon serves anyway: each job searches for orbctl again and reports if it is missing, and the journal is kept.
        tracing::error!(%error, "orbctl not found; install OrbStack, or set `orbctl` in the configuration");
    }
}

/// The parts of the daemon other than the dispatcher.
struct Parts {
    server: Arc<Server>,
    reloader: Reloader,
    supervisor: Option<UpgradeSupervisor>,
    settings: watch::Receiver<listener::Settings>,
}

/// Creates the parts, and the channels that carry configuration changes and upgrade reports between them.
fn assemble(
    config: Config,
    info: InstanceInfo,
    channels: Arc<Channels>,
    open_connections: Arc<AtomicUsize>,
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
        connections: open_connections.clone(),
        stop: context.signals.stop.clone(),
    });
    let reload = reloader.clone();
    let orbctl = channels.clone();
    let server = Server {
        dispatcher,
        metrics,
        info,
        in_force,
        orbctl: Box::new(move || orbctl.program().ok()),
        channels: Box::new(move || {
            let listed = channels.view().iter().map(listed).collect();
            (listed, channels.unused().as_ref().map(off))
        }),
        reload: Box::new(move || {
            let reload = reload.clone();
            async move { reload.reload().await }.boxed()
        }),
        binary_watcher,
        upgrade,
        open_connections,
        // The token of the signal handlers, so that `run` sees a `daemon.stop` that arrives during an upgrade.
        stop: context.signals.stop,
    };
    Parts {
        server: Arc::new(server),
        reloader,
        supervisor,
        settings,
    }
}

/// Reloads the configuration on each notification.
async fn reload_when_told(reloader: Reloader, told: Arc<Notify>) {
    loop {
        told.notified().await;
        // `reload` logs its error.
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

/// Opens the journal. If a newer version has written entries that this one cannot read, fails and changes nothing.
fn open_journal(config: &Config, now: SystemTime) -> Result<(Journal, Recovered), SetupError> {
    let opened = Journal::open(&config.journal_path(), now).map_err(|error| name_writer(error, config))?;
    if dispatcher::understands(&opened.1) {
        Ok(opened)
    } else {
        Err(newer_journal(config))
    }
}

/// Checks whether this version can read the journal, without changing it. A daemon may be using it.
pub fn check_journal(config: &Config) -> Result<(), SetupError> {
    let recovered = Journal::peek(&config.journal_path()).map_err(|error| name_writer(error, config))?;
    if dispatcher::understands(&recovered) {
        Ok(())
    } else {
        Err(newer_journal(config))
    }
}

/// If this version cannot read the journal, renames it, so that the daemon starts with an empty one. Returns the new path.
pub fn set_aside_newer_journal(config: &Config) -> Result<Option<PathBuf>, SetupError> {
    match check_journal(config) {
        Err(SetupError::NewerJournal { path, .. }) => Ok(Journal::set_aside(&path, Moment::now().wall)?),
        other => other.map(|()| None),
    }
}

fn name_writer(error: JournalError, config: &Config) -> SetupError {
    match error {
        JournalError::Newer { .. } => newer_journal(config),
        other => other.into(),
    }
}

fn newer_journal(config: &Config) -> SetupError {
    SetupError::NewerJournal {
        path: config.journal_path(),
        last: LastProgram::read(&config.state_dir),
    }
}

/// Records which program serves the state folder, for a later one that cannot read the journal.
fn record_program(config: &Config, program: Option<&Program>) {
    let Some(program) = program else { return };
    let record = LastProgram {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        path: program.path.clone(),
    };
    if let Err(error) = record.write(&config.state_dir) {
        tracing::warn!(%error, "cannot record the running program in the state folder");
    }
}

/// Returns the id of this instance of the daemon, unique by its start time and process id.
fn instance(started: &Moment) -> String {
    format!("{:x}-{:x}", started.unix_ms(), std::process::id())
}

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
        channels: ChannelRules {
            enabled: config.exec_channel == ExecChannel::Auto && !config.strict,
            except: Arc::new(config.exec_channel_except.0.clone()),
        },
        markers: Markers::new(instance, &config.socket),
    }
}

fn listening(config: &Config) -> listener::Settings {
    listener::Settings {
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
        channels_off: match config.exec_channel {
            _ if config.strict => Some("`strict` is set"),
            ExecChannel::Off => Some("`exec_channel` is \"off\""),
            ExecChannel::Auto => None,
        },
    }
}

/// Returns the limits that `daemon.info` reports.
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

/// Returns the settings of the metrics.
fn metrics_settings(config: &Config) -> io::Result<metrics::Settings> {
    let mut settings = metrics::Settings::new(config.metrics_dir())?;
    settings.history_max = config.history_max;
    settings.history_max_age = config.history_max_age;
    Ok(settings)
}

/// Returns the settings of the logging.
pub fn log_settings(config: &Config, to: logging::Destination) -> logging::Settings {
    logging::Settings {
        level: config.log_level.clone(),
        format: config.log_format,
        to,
        folder: config.log_folder(),
        files_max: config.log_max_files,
        file_size_max: config.log_max_size.0,
        file_age_max: config.log_max_age,
    }
}

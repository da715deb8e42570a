//! orbd: the daemon. Arguments, configuration, logging, the socket, signals, and an exit code.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use orbd::config::{Config, Environment, Flags, Sources, UserDirs};
use orbd::daemon::{self, Ended, ProcessContext, Signals};
use orbd::logging::{self, Destination};
use orbd::metrics;
use orbd::rpc::api::PROTOCOL_VERSION;
use orbd::rpc::socket::{Socket, SocketError};
use orbd::sys;
use orbd::upgrade::{self, Handoff, HandoffError, HandoffSlots, Program, ReceivedHandoff};
use rustix::fs::Mode;
use rustix::process::umask;
use tokio::signal::unix::{SignalKind, signal};

/// Worker threads: one to serve, one for when that is busy with a stream. More cost memory and wakeups for nothing.
const WORKERS: usize = 2;

/// One daemon per user through which every orbctl invocation goes: queued, joined, cached and recorded.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Usually launchd, systemd or `orbd-ctl daemon start` runs this. A daemon that finds another one \
                  serving its socket exits with code 0.\n\nThe configuration is one TOML file; `orbd --sample-config` prints it \
                  with every key explained. ORBD_<KEY> in the environment goes before the file, --set before both."
)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch on the command line"
)]
struct Arguments {
    /// Configuration file to read instead of the usual one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set a configuration key for this run; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    values: Vec<(String, String)>,
    /// Write logs to stderr instead of the log folder
    #[arg(long)]
    foreground: bool,
    /// Read the configuration, say what is wrong with it, and exit
    #[arg(long)]
    check_config: bool,
    /// Print a configuration file with every key explained, and exit
    #[arg(long)]
    sample_config: bool,
    /// Read the configuration, print the version, and exit; the daemon checks a new version of itself this way
    #[arg(long, hide = true)]
    preflight: bool,
    /// Serve the metrics store over standard input; the daemon starts itself this way
    #[arg(long, hide = true)]
    metrics_store: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("give KEY=VALUE, as in --set strict=true")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("orbd: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.metrics_store {
        // The store makes its files without a mode of their own.
        umask(Mode::RWXG | Mode::RWXO);
        return metrics::serve_store().context("the metrics store");
    }
    let received = ReceivedHandoff::receive();
    let slots = HandoffSlots::reserve().context("/dev/null")?;
    sys::seal_inherited_descriptors();
    sys::raise_descriptor_limit();
    sys::restore_limits();
    // The usual one, for the children: what we make ourselves has a mode that says more.
    umask(Mode::WGRP | Mode::WOTH);
    let places = UserDirs::of_this_user()?;
    if arguments.sample_config {
        return print(&Config::sample(&places));
    }
    let sources = Sources {
        places,
        flags: Flags {
            file: arguments.config,
            values: arguments.values,
        },
        environment: Environment::of_process(),
    };
    let config = sources.load()?;
    if arguments.check_config {
        return print("the configuration is valid\n");
    }
    anyhow::ensure!(
        config.allow_root || !rustix::process::getuid().is_root(),
        "orbd runs as a user, not as root; set allow_root if you really mean it"
    );

    if arguments.preflight {
        return print(&upgrade::greeting(PROTOCOL_VERSION));
    }

    let to = if arguments.foreground {
        Destination::Stderr
    } else {
        Destination::Files
    };
    let logs_to = config.logging(to);
    let logs = logging::init(&logs_to).context("logging")?;
    let (socket, listener) = match take_over(&config, received) {
        Some(taken_over) => taken_over,
        None => match Socket::bind(&config.socket) {
            Ok(bound) => bound,
            // Whoever wanted a daemon has one.
            Err(SocketError::Taken(path)) => {
                tracing::info!(socket = %path.display(), "another orbd serves this socket");
                return Ok(());
            }
            Err(error) => return Err(error).context("the socket"),
        },
    };
    let program = Program::of_this_process();
    let signals = Signals::default();
    let context = ProcessContext {
        environment: std::env::vars_os().collect(),
        sources,
        log_level: logs.level(),
        signals: signals.clone(),
        program: program.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("the runtime")?;
    let machine_list_cache = runtime.block_on(async {
        heed_signals(&signals).context("signals")?;
        daemon::run(config, listener, context)
            .await
            .context("orbd cannot start")
    });
    // Tasks that are still there wait for things that no longer matter.
    runtime.shutdown_background();
    match (machine_list_cache?, program) {
        (Ended::Upgrading(listener), Some(program)) => {
            // What was logged is written before the program is another one.
            drop(logs);
            let handoff = socket.pass_on().map(|(lock, is_bound)| Handoff {
                listener: listener.into(),
                lock,
                is_bound,
            });
            let error = upgrade::execute(&program, handoff.as_ref(), slots);
            drop(socket);
            // Nothing serves any more: the service manager, or the next client, starts another.
            let failed = anyhow::Error::new(error).context(format!(
                "{} was to take over and could not be executed",
                program.path.display()
            ));
            logging::last_words(&logs_to, &format!("{failed:#}"));
            Err(failed)
        }
        _ => Ok(()),
    }
}

/// Takes over the socket that was passed to this process, if one was and it fits.
fn take_over(
    config: &Config,
    received: Result<Option<ReceivedHandoff>, HandoffError>,
) -> Option<(Socket, UnixListener)> {
    let received = match received {
        Ok(received) => received?,
        Err(error) => {
            tracing::warn!(%error, "the socket that was passed to this process is not used");
            return None;
        }
    };
    match Socket::inherit(
        &config.socket,
        received.listener,
        received.lock,
        received.is_bound,
    ) {
        Ok(taken_over) => Some(taken_over),
        Err(error) => {
            tracing::warn!(%error, "the socket that was passed to this process is not used");
            None
        }
    }
}

/// Turns SIGTERM and SIGINT into an orderly stop, and SIGHUP into a reload. A terminal that closes sends it too, and does no harm.
fn heed_signals(signals: &Signals) -> std::io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut came = signal(kind)?;
        let stop = signals.stop.clone();
        tokio::spawn(async move {
            if came.recv().await.is_some() {
                stop.cancel();
            }
        });
    }
    let mut hang_up = signal(SignalKind::hangup())?;
    let reload = signals.reload.clone();
    tokio::spawn(async move {
        while hang_up.recv().await.is_some() {
            reload.notify_one();
        }
    });
    Ok(())
}

#[expect(
    clippy::print_stderr,
    reason = "before and after logging there is nothing else to tell it to"
)]
fn say(text: &str) {
    eprintln!("{text}");
}

fn print(text: &str) -> Result<()> {
    use std::io::Write;
    std::io::stdout().write_all(text.as_bytes()).context("stdout")
}

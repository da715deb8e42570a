//! The daemon's executable: parses arguments, loads the configuration, sets up logging, socket and signals, and returns an exit code.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use orbd::daemon::{self, Ended, ProcessContext, Signals};
use orbd::logging::{self, Destination};
use orbd::metrics;
use orbd::server::socket::{Socket, SocketError};
use orbd::sys;
use orbd::upgrade::{self, Handoff, HandoffError, HandoffSlots, Program, ReceivedHandoff};
use orbd_host::config::{Config, Environment, Flags, Sources, UserDirs};
use orbd_proto::methods::PROTOCOL_VERSION;
use rustix::fs::Mode;
use rustix::process::umask;
use tokio::signal::unix::{SignalKind, signal};

/// Number of tokio worker threads: one to serve, one for while the first is busy with a stream. More would only cost memory and wakeups.
const WORKERS: usize = 2;

/// Per-user daemon that queues, joins, caches and records every orbctl invocation.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Normally launchd, systemd or `orbd-ctl daemon start` starts orbd. If another orbd already serves the socket, \
                  orbd exits with code 0.\n\nThe configuration is one TOML file; `orbd --sample-config` prints a sample that \
                  explains every key. An environment variable ORBD_<KEY> overrides the file, and --set overrides both."
)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each field is an independent command-line flag"
)]
struct Arguments {
    /// Configuration file to read instead of the default one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set a configuration key for this run; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    values: Vec<(String, String)>,
    /// Write logs to stderr instead of log files
    #[arg(long)]
    foreground: bool,
    /// Check the configuration, print what is wrong with it, and exit
    #[arg(long)]
    check_config: bool,
    /// Print a sample configuration file that explains every key, and exit
    #[arg(long)]
    sample_config: bool,
    /// If this version cannot read the journal, rename it and exit; changes that wait in it are lost
    #[arg(long)]
    set_aside_newer_journal: bool,
    /// Check the configuration and the journal, print the version, and exit; a running daemon uses this to check a new binary before an upgrade
    #[arg(long, hide = true)]
    preflight: bool,
    /// Serve the metrics store over standard input; the daemon uses this to start its helper process
    #[arg(long, hide = true)]
    metrics_store: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("expected KEY=VALUE, as in --set strict=true")?;
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
        // sled creates its files with the default mode, so the umask keeps other users out.
        umask(Mode::RWXG | Mode::RWXO);
        return metrics::serve_store().context("cannot serve the metrics store");
    }
    let received = ReceivedHandoff::receive();
    let slots = HandoffSlots::reserve().context("cannot open /dev/null")?;
    sys::seal_inherited_descriptors();
    sys::raise_descriptor_limit();
    sys::restore_limits();
    // The common default, for child processes. Files that orbd creates itself get an explicit, stricter mode.
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
        "refusing to run as root; run orbd as your own user, or set `allow_root = true`"
    );

    if arguments.set_aside_newer_journal {
        return match daemon::set_aside_newer_journal(&config)? {
            Some(aside) => print(&format!("set the journal aside: {}\n", aside.display())),
            None => print("this version can read the journal; nothing was changed\n"),
        };
    }
    if arguments.preflight {
        daemon::check_journal(&config)?;
        return print(&upgrade::greeting(PROTOCOL_VERSION));
    }

    let to = if arguments.foreground {
        Destination::Stderr
    } else {
        Destination::Files
    };
    let logs_to = daemon::log_settings(&config, to);
    let logs = logging::init(&logs_to).context("cannot set up logging")?;
    let (socket, listener) = match take_over(&config, received) {
        Some(taken_over) => taken_over,
        None => match Socket::bind(&config.socket) {
            Ok(bound) => bound,
            // Not an error: the caller wanted a running daemon, and there is one.
            Err(SocketError::Taken(path)) => {
                tracing::info!(socket = %path.display(), "another orbd already serves this socket; exiting");
                return Ok(());
            }
            Err(error) => return Err(error).context("cannot bind the socket"),
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
        .context("cannot start the async runtime")?;
    let machine_list_cache = runtime.block_on(async {
        heed_signals(&signals).context("cannot handle signals")?;
        daemon::run(config, listener, context)
            .await
            .context("the daemon failed")
    });
    // The daemon has stopped in order; any task left waits for something that no longer matters.
    runtime.shutdown_background();
    match (machine_list_cache?, program) {
        (Ended::Upgrading(listener), Some(program)) => {
            // Writes the buffered log lines before the process executes the new program.
            drop(logs);
            let handoff = socket.pass_on().map(|(lock, is_bound)| Handoff {
                listener: listener.into(),
                lock,
                is_bound,
            });
            let error = upgrade::execute(&program, handoff.as_ref(), slots);
            drop(socket);
            // This process can no longer serve, so it exits. The service manager or the next client starts a new one.
            let failed = anyhow::Error::new(error).context(format!(
                "upgrade failed: {} could not be executed",
                program.path.display()
            ));
            logging::last_words(&logs_to, &format!("{failed:#}"));
            Err(failed)
        }
        _ => Ok(()),
    }
}

/// Takes over the socket that was passed to this process. `None` if none was passed or if it cannot be used, which is logged.
fn take_over(
    config: &Config,
    received: Result<Option<ReceivedHandoff>, HandoffError>,
) -> Option<(Socket, UnixListener)> {
    let received = match received {
        Ok(received) => received?,
        Err(error) => {
            tracing::warn!(%error, "ignored the socket passed to this process");
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
            tracing::warn!(%error, "ignored the socket passed to this process");
            None
        }
    }
}

/// Maps SIGTERM and SIGINT to an orderly stop, and SIGHUP to a reload. A closing terminal sends SIGHUP too; the extra reload is harmless.
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
    reason = "before logging is set up and after it has ended, stderr is the only output"
)]
fn say(text: &str) {
    eprintln!("{text}");
}

fn print(text: &str) -> Result<()> {
    use std::io::Write;
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write to stdout")
}

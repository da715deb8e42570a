//! `daemon`.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use orbd_client::Client;
use orbd_host::config::LEAVE_CHANGES_AFTER;
use orbd_host::release::is_older;
use orbd_host::sys::{self, ChildIdentity, StartTime};
use orbd_proto::methods::{DaemonInfo, DaemonReload, DaemonStop};
use orbd_proto::types::{DaemonInfoAnswer, NoParams};

use super::daemon_config;
use super::daemon_config::DaemonConfigCommand;
use super::daemon_log::LogArgs;
use crate::console::{Console, now};
use crate::context::Context;
use crate::daemon_binary;
use crate::error::CliError;
use crate::launch::{self, Launcher};
use crate::link::{Link, mute};
use crate::progress::{Progress, Wait};
use crate::render;

/// `daemon`.
#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    #[command(subcommand)]
    pub(crate) command: DaemonCommand,
}

/// `daemon ...`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum DaemonCommand {
    /// Start orbd and wait until it answers; does nothing if it is running
    Start {
        /// Fail if `autostart` or `ORBD_AUTOSTART` is off, as starting the daemon on demand does
        #[arg(long, hide = true)]
        on_demand: bool,
        /// If a newer version wrote the journal, set it aside; changes that wait in it are lost
        #[arg(long)]
        force: bool,
    },
    /// Stop orbd gracefully and wait until it has exited; running changes may finish
    Stop {
        /// If it does not answer, kill its process; the next start finds out what became of running changes
        #[arg(long)]
        force: bool,
    },
    /// Stop orbd and start the program at the same path again, or the service's
    Restart {
        /// Also start an older version; a journal that it cannot read is set aside, and changes that wait in it are lost
        #[arg(long)]
        force: bool,
    },
    /// Show orbd's version, its program, since when it runs, its limits and the path of orbctl; exits with 3 if orbd is not running
    Status,
    /// Show the last lines of orbd's log file
    Logs(LogArgs),
    /// Reload orbd's configuration, and show which keys took effect and which need a restart
    Reload,
    /// Show orbd's own configuration (`orbd-ctl config` is OrbStack's)
    #[command(
        subcommand,
        after_help = "Examples:
  orbd-ctl daemon config path            path of the configuration file
  orbd-ctl daemon config show            every key, its value and source
  orbd-ctl daemon config check           exits with 1 if the file is invalid

To change a key, edit the file and run `orbd-ctl daemon reload`. A variable ORBD_<KEY> overrides the file. `orbd --sample-config` explains every key."
    )]
    Config(DaemonConfigCommand),
}

/// Upper bound for the rest of the daemon's shutdown, after running changes: 2 s each for connections, journal and metrics.
const FAREWELLS_MAX: Duration = Duration::from_secs(10);

/// Maximum time for the daemon's process to exit after it has released its lock.
const EXIT_MAX: Duration = Duration::from_secs(1);

/// Timeout of the calls `daemon.info` and `daemon.reload`.
const INFO_MAX: Duration = Duration::from_secs(5);

/// Starts, stops and inspects the daemon. None of these commands greets it first, so they work with a daemon of another version.
pub(super) fn daemon(context: &mut Context, command: DaemonCommand) -> Result<ExitCode, CliError> {
    match command {
        DaemonCommand::Start { on_demand, force } => {
            if on_demand && !(context.link.autostart && launch::is_wanted()) {
                ask(context).map_err(unwanted)?;
            }
            start(context, force)?;
        }
        DaemonCommand::Stop { force } => {
            let stopped = match stop(context) {
                Err(CliError::Mute { pid: Some(pid), .. }) if force => kill(context, pid)?,
                other => other?,
            };
            if context.console.json {
                context.console.print(b"{}\n")?;
            } else {
                let said = match stopped {
                    Stopped::Process(pid) => format!("orbd stopped (pid {pid})\n"),
                    Stopped::Unnamed => "orbd stopped\n".into(),
                    Stopped::NotRunning => "orbd is not running\n".into(),
                };
                context.console.print(said.as_bytes())?;
            }
        }
        DaemonCommand::Restart { force } => restart(context, force)?,
        DaemonCommand::Status => {
            let (_, answer) = ask(context)?;
            context.console.answer(&answer, render::daemon)?;
        }
        DaemonCommand::Logs(args) => super::daemon_log::logs(context, args)?,
        DaemonCommand::Reload => {
            let mut client = context.link.dial()?;
            let mut pending = client.start::<DaemonReload>(&NoParams {})?;
            let answer = pending.wait(INFO_MAX)?;
            let answer = answer.ok_or_else(|| mute(&client, &context.link.socket))?;
            context.console.answer(&answer, render::reload)?;
        }
        DaemonCommand::Config(command) => return daemon_config::daemon_config(context, command),
    }
    Ok(ExitCode::SUCCESS)
}

/// Calls `daemon.info`. The returned connection stays with the daemon that answered, even if another one listens later.
fn ask(context: &Context) -> Result<(Client, DaemonInfoAnswer), CliError> {
    let mut client = context.link.dial()?;
    let answer = client.start::<DaemonInfo>(&NoParams {})?.wait(INFO_MAX)?;
    match answer {
        Some(info) => Ok((client, info)),
        None => Err(mute(&client, &context.link.socket)),
    }
}

/// Replaces the error that the daemon is not running by one that it must not be started on demand.
fn unwanted(error: CliError) -> CliError {
    match error {
        CliError::NotRunning { .. } => CliError::NotStarted {
            reason: "`autostart` is off, so it is not started on demand".into(),
            hint: "start it with `orbd-ctl daemon start`".into(),
        },
        other => other,
    }
}

fn start(context: &mut Context, force: bool) -> Result<(), CliError> {
    let running = match ask(context) {
        Err(CliError::NotRunning { .. } | CliError::Lost(_)) => {
            let launcher = Launcher::choose(&context.link, None, &mut context.console);
            launch(context, launcher, force)?;
            None
        }
        other => Some(other?.1),
    };
    print_started(context, running)
}

/// Stops the daemon and starts its program again. An older version is refused before anything is stopped.
fn restart(context: &mut Context, force: bool) -> Result<(), CliError> {
    let running = match ask(context) {
        Err(CliError::NotRunning { .. } | CliError::Lost(_)) => None,
        other => Some(other?.1),
    };
    let path = running
        .as_ref()
        .and_then(|info| info.program.as_deref())
        .map(Path::new);
    let launcher = Launcher::choose(&context.link, path, &mut context.console);
    if let (Some(running), Ok(program)) = (&running, launcher.program()) {
        let version = daemon_binary::version_of(&program)?;
        if !force && is_older(&version, &running.version) {
            return Err(CliError::Usage {
                message: format!(
                    "{} is orbd {version}, older than the running {}; nothing was stopped",
                    program.display(),
                    running.version
                ),
                hint: "`orbd-ctl daemon restart --force` starts the older version".into(),
            });
        }
    }
    stop(context)?;
    launch(context, launcher, force)?;
    print_started(context, None)
}

fn launch(context: &mut Context, launcher: Launcher, force: bool) -> Result<(), CliError> {
    if force && let Ok(program) = launcher.program() {
        launch::set_aside_newer_journal(&program, &mut context.console)?;
    }
    launcher.launch(&context.link, &mut context.console).map(drop)
}

/// Prints that the daemon was started or, if `running` is given, that it was running already.
fn print_started(context: &mut Context, running: Option<DaemonInfoAnswer>) -> Result<(), CliError> {
    let word = if running.is_some() {
        "is already running"
    } else {
        "started"
    };
    let info = match running {
        Some(info) => info,
        None => ask(context)?.1,
    };
    context.console.answer(&info, |info, _| {
        format!("orbd {word} (pid {}, socket {})\n", info.pid, info.socket)
    })?;
    Ok(())
}

/// Stops the running daemon, if any, without output to stdout.
pub(super) fn stop_quietly(context: &mut Context) -> Result<(), CliError> {
    stop(context).map(drop)
}

/// Result of stopping the daemon.
enum Stopped {
    /// No daemon was running.
    NotRunning,
    /// The daemon with this process id exited.
    Process(u32),
    /// A daemon exited that was already shutting down. It accepted no connections, so its process id is unknown.
    Unnamed,
}

/// Stops the daemon and waits until it has exited.
fn stop(context: &mut Context) -> Result<Stopped, CliError> {
    let (mut client, info) = match ask(context) {
        // A daemon that is shutting down accepts no connections, but holds its lock until it exits.
        Err(CliError::NotRunning { .. } | CliError::Lost(_)) if context.link.is_held() => {
            let leaving = Leaving {
                process: None,
                at_most: LEAVE_CHANGES_AFTER + FAREWELLS_MAX,
            };
            let mut progress = Progress::new(&context.link, Wait::Shutdown);
            leaving.see_off(&context.link, &mut context.console, &mut progress)?;
            return Ok(Stopped::Unnamed);
        }
        Err(CliError::NotRunning { .. } | CliError::Lost(_)) => return Ok(Stopped::NotRunning),
        other => other?,
    };
    let grace = Duration::from_millis(info.limits.get("grace_ms").copied().unwrap_or(0));
    let leaving = Leaving {
        process: Some(Process {
            pid: info.pid,
            started: sys::process_identity(info.pid),
        }),
        at_most: LEAVE_CHANGES_AFTER.max(grace) + FAREWELLS_MAX,
    };
    match client.call::<DaemonStop>(&NoParams {}).map_err(CliError::from) {
        // The daemon may exit before it has sent its answer.
        Ok(_) | Err(CliError::Lost(_)) => {}
        Err(error) => return Err(error),
    }
    let mut progress = Progress::of_farewell(&context.link, client);
    leaving.see_off(&context.link, &mut context.console, &mut progress)?;
    Ok(Stopped::Process(info.pid))
}

/// Kills a daemon that does not answer, and waits until it has exited. The next instance treats its jobs as after a crash.
fn kill(context: &mut Context, pid: u32) -> Result<Stopped, CliError> {
    let process = Process {
        pid,
        started: sys::process_identity(pid),
    };
    if let Some(started) = process.started {
        sys::kill(ChildIdentity { pid, started });
    }
    let leaving = Leaving {
        process: Some(process),
        at_most: FAREWELLS_MAX,
    };
    let mut progress = Progress::new(&context.link, Wait::Shutdown);
    leaving.see_off(&context.link, &mut context.console, &mut progress)?;
    Ok(Stopped::Process(pid))
}

/// A daemon that was asked to stop.
struct Leaving {
    /// `None` if the process id is unknown.
    process: Option<Process>,
    /// Maximum time to wait.
    at_most: Duration,
}

/// A process, identified by id and start time.
struct Process {
    pid: u32,
    /// `None` if the process had already exited, or cannot be inspected.
    started: Option<StartTime>,
}

impl Leaving {
    /// Waits until the daemon has exited, and reports the jobs that it is waiting for.
    fn see_off(
        &self,
        link: &Link,
        console: &mut Console,
        progress: &mut Progress<'_>,
    ) -> Result<(), CliError> {
        let asked = now();
        let mut free = None;
        let mut pause = Duration::from_millis(1);
        while !self.is_gone(link, &mut free) {
            if now() - asked > self.at_most {
                progress.clear();
                let who = self
                    .process
                    .as_ref()
                    .map_or_else(|| "orbd".into(), |process| format!("orbd (pid {})", process.pid));
                let keeps = render::job_names(&progress.open_jobs())
                    .map_or_else(String::new, |names| format!("; still running: {names}"));
                return Err(CliError::Local {
                    what: format!(
                        "{who} was asked to stop and has not exited for {}{keeps}",
                        render::duration(self.at_most)
                    ),
                    source: std::io::ErrorKind::TimedOut.into(),
                });
            }
            progress.tick(console);
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Returns whether the daemon has exited: its process is gone or, if the process cannot be inspected, its lock is free. A closed
    /// socket proves nothing. `free` stores the time at which the lock was first seen free.
    fn is_gone(&self, link: &Link, free: &mut Option<Instant>) -> bool {
        let process = self.process.as_ref();
        let identity = process.and_then(|process| {
            Some(ChildIdentity {
                pid: process.pid,
                started: process.started?,
            })
        });
        match (identity, *free) {
            (Some(identity), _) if !sys::is_alive(&identity) => true,
            // The daemon releases the lock just before it exits. If the process exists longer than that, it is another one: the
            // daemon's process ids differ from ours, as in a container.
            (Some(_), Some(free)) => now() - free > EXIT_MAX,
            (Some(_), None) => {
                *free = (!link.is_held()).then(now);
                false
            }
            // A daemon that accepts connections is another one, started by a service manager.
            (None, _) => link.dial().is_ok() || !link.is_held(),
        }
    }
}

//! `daemon`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use orbd::client::Client;
use orbd::daemon::LEAVE_CHANGES_AFTER;
use orbd::rpc::api::{DaemonInfo, DaemonReload, DaemonStop};
use orbd::rpc::types::{DaemonInfoAnswer, NoParams};
use orbd::sys::{self, ChildIdentity, StartTime};

use super::daemon_config;
use crate::args::DaemonCommand;
use crate::console::{Console, now};
use crate::context::Context;
use crate::error::CliError;
use crate::launch;
use crate::link::Link;
use crate::progress::{Progress, Wait};
use crate::render;

/// What it takes after that, generously: 2 s for connections, for the journal and for the metrics each.
const FAREWELLS_MAX: Duration = Duration::from_secs(10);

/// How long a process takes to exit once it has given its lock back.
const EXIT_MAX: Duration = Duration::from_secs(1);

/// How long it may take to tell about itself.
const INFO_MAX: Duration = Duration::from_secs(5);

/// Starts, stops and inspects the daemon. None of these says hello first: they have to work with a daemon of another version.
pub(super) fn daemon(context: &mut Context, command: DaemonCommand) -> Result<ExitCode, CliError> {
    match command {
        DaemonCommand::Start { on_demand } => {
            if on_demand && !(context.link.autostart && launch::is_wanted()) {
                ask(context).map_err(unwanted)?;
            }
            start(context)?;
        }
        DaemonCommand::Stop => {
            let stopped = stop(context)?;
            if context.console.json {
                context.console.print(b"{}\n")?;
            } else {
                let said = match stopped {
                    Stopped::Process(pid) => format!("orbd stopped (pid {pid})\n"),
                    Stopped::Unnamed => "orbd stopped\n".into(),
                    Stopped::Nobody => "orbd is not running\n".into(),
                };
                context.console.print(said.as_bytes())?;
            }
        }
        DaemonCommand::Restart => {
            stop(context)?;
            start(context)?;
        }
        DaemonCommand::Status => {
            let (_, answer) = ask(context)?;
            context.console.answer(&answer, render::daemon)?;
        }
        DaemonCommand::Logs(args) => super::daemon_log::logs(context, args)?,
        DaemonCommand::Reload => {
            let mut client = context.link.dial()?;
            let mut pending = client.start::<DaemonReload>(&NoParams {})?;
            let answer = pending.wait(INFO_MAX)?.ok_or_else(|| CliError::Mute {
                socket: context.link.socket.clone(),
            })?;
            context.console.answer(&answer, render::reload)?;
        }
        DaemonCommand::Config(command) => return daemon_config::daemon_config(context, command),
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks a daemon that runs about itself. The connection leads to the one that answered, whoever listens later.
fn ask(context: &Context) -> Result<(Client, DaemonInfoAnswer), CliError> {
    let mut client = context.link.dial()?;
    let mut pending = client.start::<DaemonInfo>(&NoParams {})?;
    match pending.wait(INFO_MAX)? {
        Some(info) => Ok((client, info)),
        None => Err(CliError::Mute {
            socket: context.link.socket.clone(),
        }),
    }
}

/// Says of a daemon that does not run that it is not to be started on demand.
fn unwanted(error: CliError) -> CliError {
    match error {
        CliError::NotRunning { .. } => CliError::NotStarted {
            reason: "`autostart` is off, so it is not started on demand".into(),
            hint: "`orbd-ctl daemon start` starts it all the same".into(),
        },
        other => other,
    }
}

fn start(context: &mut Context) -> Result<(), CliError> {
    let running = match ask(context) {
        Err(CliError::NotRunning { .. } | CliError::Lost(_)) => {
            drop(launch::launch(&context.link, &mut context.console)?);
            None
        }
        other => Some(other?.1),
    };
    let word = if running.is_some() {
        "is running already"
    } else {
        "started"
    };
    let info = match running {
        Some(info) => info,
        None => ask(context)?.1,
    };
    context.console.answer(&info, |info, _| {
        format!("orbd {word} (pid {}, socket {})\n", info.pid, info.socket)
    })
}

/// Stops a daemon that runs, whoever it is, without an answer on stdout.
pub(super) fn stop_quietly(context: &mut Context) -> Result<(), CliError> {
    stop(context).map(drop)
}

/// What was stopped.
enum Stopped {
    /// Nobody ran.
    Nobody,
    /// This process.
    Process(u32),
    /// One that had been asked before and took no connections any more, so that it could not say who it is.
    Unnamed,
}

/// Stops the daemon and waits until it is gone.
fn stop(context: &mut Context) -> Result<Stopped, CliError> {
    let (mut client, info) = match ask(context) {
        // It takes no connections while it ends what runs, but holds its lock to the end.
        Err(CliError::NotRunning { .. } | CliError::Lost(_)) if context.link.is_held() => {
            let leaving = Leaving {
                process: None,
                at_most: LEAVE_CHANGES_AFTER + FAREWELLS_MAX,
            };
            let mut progress = Progress::new(&context.link, Wait::Shutdown);
            leaving.see_off(&context.link, &mut context.console, &mut progress)?;
            return Ok(Stopped::Unnamed);
        }
        Err(CliError::NotRunning { .. } | CliError::Lost(_)) => return Ok(Stopped::Nobody),
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
        // It may be gone before its answer is out.
        Ok(_) | Err(CliError::Lost(_)) => {}
        Err(error) => return Err(error),
    }
    let mut progress = Progress::of_farewell(&context.link, client);
    leaving.see_off(&context.link, &mut context.console, &mut progress)?;
    Ok(Stopped::Process(info.pid))
}

/// A daemon that was asked to stop.
struct Leaving {
    process: Option<Process>,
    at_most: Duration,
}

/// Which process it is.
struct Process {
    pid: u32,
    /// `None` when it was gone already, or where we may not look.
    started: Option<StartTime>,
}

impl Leaving {
    /// Waits until it is gone, and says what keeps it.
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
                        "{who} has been asked to stop and has not gone for {}{keeps}",
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

    /// Says whether it is gone: its process is, or, where we cannot see that, nobody holds its lock. That nobody listens says
    /// nothing. `free` is when its lock was first seen free.
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
            // Giving the lock back is the last that it does before it exits. A process that stays longer is a stranger: where the
            // daemon's ids are others than ours, as in a container.
            (Some(_), Some(free)) => now() - free > EXIT_MAX,
            (Some(_), None) => {
                *free = (!link.is_held()).then(now);
                false
            }
            // Somebody who listens is another one, which a service manager started.
            (None, _) => link.dial().is_ok() || !link.is_held(),
        }
    }
}

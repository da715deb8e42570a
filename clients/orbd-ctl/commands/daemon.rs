//! `daemon`.

use std::process::ExitCode;
use std::time::Duration;

use orbd::rpc::api::{DaemonInfo, DaemonStop};
use orbd::rpc::types::{DaemonInfoAnswer, NoParams};

use crate::args::DaemonCommand;
use crate::console::now;
use crate::context::Context;
use crate::launch;
use crate::link;
use crate::render;
use crate::trouble::Trouble;

/// How long a daemon may take to go. It ends commands within its grace; changes it leaves behind.
const STOP_MAX: Duration = Duration::from_secs(60);

/// How long it may take to tell about itself.
const INFO_MAX: Duration = Duration::from_secs(5);

/// Starts, stops and inspects the daemon. None of these says hello first: they have to work with a daemon of another version.
pub(super) fn daemon(context: &mut Context, command: DaemonCommand) -> Result<ExitCode, Trouble> {
    match command {
        DaemonCommand::Start => start(context)?,
        DaemonCommand::Stop => {
            let stopped = stop(context)?;
            if context.console.json {
                context.console.print(b"{}\n")?;
            } else {
                let said = match stopped {
                    Some(pid) => format!("orbd stopped (pid {pid})\n"),
                    None => "orbd is not running\n".into(),
                };
                context.console.print(said.as_bytes())?;
            }
        }
        DaemonCommand::Restart => {
            stop(context)?;
            start(context)?;
        }
        DaemonCommand::Status => {
            let answer = ask(context)?;
            context.console.answer(&answer, render::daemon)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks a daemon that runs about itself.
fn ask(context: &Context) -> Result<DaemonInfoAnswer, Trouble> {
    let mut client = context.link.dial()?;
    let mut pending = client.start::<DaemonInfo>(&NoParams {})?;
    pending.wait(INFO_MAX)?.ok_or_else(|| Trouble::Mute {
        socket: context.link.socket.clone(),
    })
}

fn start(context: &mut Context) -> Result<(), Trouble> {
    let running = match ask(context) {
        Err(Trouble::NotRunning { .. } | Trouble::Lost(_)) => {
            drop(launch::launch(&context.link, &mut context.console)?);
            None
        }
        other => Some(other?),
    };
    let word = if running.is_some() {
        "is running already"
    } else {
        "started"
    };
    let info = match running {
        Some(info) => info,
        None => ask(context)?,
    };
    context.console.answer(&info, |info, _| {
        format!("orbd {word} (pid {}, socket {})\n", info.pid, info.socket)
    })
}

/// Stops the daemon and waits until it is gone. Returns its process id, or nothing when it did not run.
fn stop(context: &mut Context) -> Result<Option<u32>, Trouble> {
    let info = match ask(context) {
        Err(Trouble::NotRunning { .. }) => return Ok(None),
        other => other?,
    };
    let mut client = context.link.dial()?;
    match client.call::<DaemonStop>(&NoParams {}).map_err(Trouble::from) {
        // It may be gone before its answer is out.
        Ok(_) | Err(Trouble::Lost(_)) => {}
        Err(trouble) => return Err(trouble),
    }
    let asked = now();
    let mut pause = Duration::from_millis(1);
    let mut said = false;
    while !is_gone(context, &info.instance) {
        let waited = now() - asked;
        if waited > STOP_MAX {
            return Err(Trouble::Local {
                what: format!(
                    "orbd (pid {}) has not gone for {}",
                    info.pid,
                    render::duration(waited)
                ),
                source: std::io::ErrorKind::TimedOut.into(),
            });
        }
        if waited > Duration::from_secs(1) && !said {
            context.console.say("waiting for orbd to end what runs");
            said = true;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(Some(info.pid))
}

/// Says whether the daemon of that life is gone: nobody answers, or somebody else does.
fn is_gone(context: &Context, instance: &str) -> bool {
    let Ok(mut client) = context.link.dial() else {
        return true;
    };
    matches!(link::greet(&mut client, &context.link.socket), Ok(hello) if hello.instance != instance)
}

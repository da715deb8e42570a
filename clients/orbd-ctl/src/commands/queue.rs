//! `queue`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use orbd_host::machine::MachineName;
use orbd_proto::methods::{QueueDrain, QueuePause, QueueResume, QueueStatus};
use orbd_proto::types::{NoParams, QueueTargetParams};

use super::targets;
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;
use crate::render;

/// `queue`.
#[derive(Debug, Args)]
pub(crate) struct QueueArgs {
    /// The subcommand; `None` is `status`.
    #[command(subcommand)]
    pub(crate) command: Option<QueueCommand>,
}

/// `queue ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Show how many jobs wait and run, and what is paused
    Status,
    /// Stop starting jobs; waiting jobs keep waiting
    Pause(QueueTarget),
    /// End a pause or a drain
    Resume(QueueTarget),
    /// Refuse new jobs and wait until all accepted jobs have ended
    Drain(QueueTarget),
}

/// Target of a pause, resume or drain.
#[derive(Debug, Args)]
pub(crate) struct QueueTarget {
    /// Only this machine [default: the whole queue]
    #[arg(value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Also if there is no such machine, e.g. before it is created
    #[arg(long, requires = "machine")]
    pub(crate) force: bool,
}

/// Shows, pauses, resumes or drains the queue.
pub(super) fn queue(context: &mut Context, command: Option<QueueCommand>) -> Result<ExitCode, CliError> {
    let answer = match command {
        None | Some(QueueCommand::Status) => context.look::<QueueStatus>(Wait::Queue, &NoParams {})?,
        Some(QueueCommand::Pause(target)) => {
            let params = checked(context, target)?;
            context.ask::<QueuePause>(Wait::Queue, &params)?
        }
        Some(QueueCommand::Resume(target)) => {
            let params = checked(context, target)?;
            context.ask::<QueueResume>(Wait::Queue, &params)?
        }
        Some(QueueCommand::Drain(target)) => {
            let params = checked(context, target)?;
            context.ask::<QueueDrain>(Wait::Queue, &params)?
        }
    };
    context.console.answer(&answer, render::queue)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the parameters for a target. A lane of a machine that does not exist can be paused, and a misspelt name would stay paused
/// unnoticed; so the machine must exist, or be paused or draining already.
fn checked(context: &mut Context, target: QueueTarget) -> Result<QueueTargetParams, CliError> {
    let QueueTarget { machine, force } = target;
    if let Some(name) = machine.as_ref().filter(|_| !force) {
        let queue = context.look::<QueueStatus>(Wait::Queue, &NoParams {})?;
        let is_held = queue.paused_machines.contains(name) || queue.draining_machines.contains(name);
        // The list is a job too: it would wait until the queue is resumed.
        let can_list = !queue.paused && !queue.draining && queue.unhealthy.is_none();
        // The daemon refuses what is no name at all.
        let is_name = name.parse::<MachineName>().is_ok();
        if !is_held && can_list && is_name {
            targets::check_exists(context, name)?;
        }
    }
    Ok(QueueTargetParams { machine })
}

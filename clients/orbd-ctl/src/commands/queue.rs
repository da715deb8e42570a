//! `queue`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use orbd_proto::methods::{QueueDrain, QueuePause, QueueResume, QueueStatus};
use orbd_proto::types::{NoParams, QueueTargetParams};

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
}

/// Shows, pauses, resumes or drains the queue.
pub(super) fn queue(context: &mut Context, command: Option<QueueCommand>) -> Result<ExitCode, CliError> {
    let params = |target: QueueTarget| QueueTargetParams {
        machine: target.machine,
    };
    let answer = match command {
        None | Some(QueueCommand::Status) => context.look::<QueueStatus>(Wait::Queue, &NoParams {})?,
        Some(QueueCommand::Pause(target)) => context.ask::<QueuePause>(Wait::Queue, &params(target))?,
        Some(QueueCommand::Resume(target)) => context.ask::<QueueResume>(Wait::Queue, &params(target))?,
        Some(QueueCommand::Drain(target)) => context.ask::<QueueDrain>(Wait::Queue, &params(target))?,
    };
    context.console.answer(&answer, render::queue)?;
    Ok(ExitCode::SUCCESS)
}

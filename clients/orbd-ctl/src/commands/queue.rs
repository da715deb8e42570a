//! `queue`.

use std::process::ExitCode;

use orbd_proto::methods::{QueueDrain, QueuePause, QueueResume, QueueStatus};
use orbd_proto::types::{NoParams, QueueTargetParams};

use crate::args::{QueueCommand, QueueTarget};
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;
use crate::render;

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

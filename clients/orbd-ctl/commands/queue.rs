//! `queue`.

use std::process::ExitCode;

use orbd::rpc::api::{QueueDrain, QueuePause, QueueResume, QueueStatus};
use orbd::rpc::types::{NoParams, QueueTargetParams};

use crate::args::{QueueCommand, QueueTarget};
use crate::context::Context;
use crate::narrate::Watch;
use crate::render;
use crate::trouble::Trouble;

/// Shows, pauses, resumes or drains the queue.
pub(super) fn queue(context: &mut Context, command: Option<QueueCommand>) -> Result<ExitCode, Trouble> {
    let params = |target: QueueTarget| QueueTargetParams {
        machine: target.machine,
    };
    let answer = match command {
        None | Some(QueueCommand::Status) => context.look::<QueueStatus>(Watch::Queue, &NoParams {})?,
        Some(QueueCommand::Pause(target)) => context.ask::<QueuePause>(Watch::Queue, &params(target))?,
        Some(QueueCommand::Resume(target)) => context.ask::<QueueResume>(Watch::Queue, &params(target))?,
        Some(QueueCommand::Drain(target)) => context.ask::<QueueDrain>(Watch::Queue, &params(target))?,
    };
    context.console.answer(&answer, render::queue)?;
    Ok(ExitCode::SUCCESS)
}

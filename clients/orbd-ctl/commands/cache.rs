//! `cache`.

use std::process::ExitCode;

use orbd::rpc::api::{CacheInvalidate, CacheStatus};
use orbd::rpc::types::{CacheInvalidateParams, NoParams};

use crate::args::CacheCommand;
use crate::context::Context;
use crate::narrate::Watch;
use crate::render;
use crate::trouble::Trouble;

/// Shows or forgets what is remembered.
pub(super) fn cache(context: &mut Context, command: Option<CacheCommand>) -> Result<ExitCode, Trouble> {
    match command {
        None | Some(CacheCommand::Status) => {
            let answer = context.look::<CacheStatus>(Watch::Queue, &NoParams {})?;
            context.console.answer(&answer, render::cache)?;
        }
        Some(CacheCommand::Invalidate { machine }) => {
            let what = machine.clone().unwrap_or_else(|| "everything".into());
            let answer = context.ask::<CacheInvalidate>(Watch::Queue, &CacheInvalidateParams { machine })?;
            context.console.answer(&answer, |answer, _| {
                format!("{what} is forgotten; generation {}\n", answer.generation)
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

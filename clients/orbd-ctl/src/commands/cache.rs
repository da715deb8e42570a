//! `cache`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use orbd_proto::methods::{CacheInvalidate, CacheStatus};
use orbd_proto::types::{CacheInvalidateParams, NoParams};

use super::targets;
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;
use crate::render;

/// `cache`.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// The subcommand; `None` is `status`.
    #[command(subcommand)]
    pub(crate) command: Option<CacheCommand>,
}

/// `cache ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Show the cached answers and their age
    Status,
    /// Invalidate cached answers, so that the next reads ask orbctl
    #[command(visible_alias = "clear")]
    Invalidate {
        /// Only answers about this machine [default: all answers]
        #[arg(value_name = "NAME")]
        machine: Option<String>,
    },
}

/// Shows or invalidates the cache.
pub(super) fn cache(context: &mut Context, command: Option<CacheCommand>) -> Result<ExitCode, CliError> {
    match command {
        None | Some(CacheCommand::Status) => {
            let answer = context.look::<CacheStatus>(Wait::Queue, &NoParams {})?;
            context.console.answer(&answer, render::cache)?;
        }
        Some(CacheCommand::Invalidate { machine }) => {
            let what = machine.clone().unwrap_or_else(|| "all answers".into());
            let params = CacheInvalidateParams {
                machine: machine.clone(),
            };
            let answer = context.ask::<CacheInvalidate>(Wait::Queue, &params)?;
            // After the invalidation, so that it does not depend on the answer: the cache may be what is wrong.
            if let Some(machine) = machine {
                targets::check_exists(context, &machine)?;
            }
            context.console.answer(&answer, |answer, _| {
                format!("invalidated {what} (generation {})\n", answer.generation)
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

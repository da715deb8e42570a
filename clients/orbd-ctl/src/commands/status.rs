//! `status`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::OrbstackStatus;
use orbd_proto::types::ReadParams;

use crate::args::AgeArgs;
use crate::context::Context;
use crate::error::{CliError, exit};
use crate::progress::Wait;
use crate::render;

/// `status` and `config show`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Maximum age of the answer.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
}

/// Shows whether OrbStack is running; exits with 1 if it is not, as `orbctl status` does.
pub(super) fn status(context: &mut Context, args: &StatusArgs) -> Result<ExitCode, CliError> {
    let params = ReadParams {
        max_age_ms: args.age.max_age_ms(),
    };
    let answer = context.look::<OrbstackStatus>(Wait::Ours("status", "status".into()), &params)?;
    context.console.answer(&answer, |answer, look| {
        let style = if answer.status == "running" {
            render::GOOD
        } else {
            render::HINT
        };
        format!("{}\n", render::paint(look, style, &answer.status))
    })?;
    if let Some(note) = render::staleness(&answer.observed) {
        context.console.eprint(&note);
    }
    Ok(ExitCode::from(if answer.status == "running" {
        0
    } else {
        exit::FAILED
    }))
}

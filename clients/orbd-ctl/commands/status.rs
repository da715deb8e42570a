//! `status`.

use std::process::ExitCode;

use orbd::rpc::api::OrbstackStatus;
use orbd::rpc::types::ReadParams;

use crate::args::Status;
use crate::context::Context;
use crate::narrate::Watch;
use crate::render;
use crate::trouble::{Trouble, exit};

/// Says whether OrbStack runs; exits with 1 when it does not, as `orbctl status` does.
pub(super) fn status(context: &mut Context, args: &Status) -> Result<ExitCode, Trouble> {
    let params = ReadParams {
        max_age_ms: args.age.max_age_ms(),
    };
    let answer = context.look::<OrbstackStatus>(Watch::Ours("status", "status".into()), &params)?;
    context.console.answer(&answer, |answer, look| {
        let style = if answer.status == "running" {
            render::GOOD
        } else {
            render::HINT
        };
        format!("{}\n", render::paint(look, style, &answer.status))
    })?;
    if let Some(note) = render::staleness(&answer.observed) {
        context.console.say(&note);
    }
    Ok(ExitCode::from(if answer.status == "running" {
        0
    } else {
        exit::FAILED
    }))
}

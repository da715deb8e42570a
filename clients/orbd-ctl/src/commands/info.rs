//! `info`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::MachineInfo;
use orbd_proto::types::MachineInfoParams;

use crate::args::{AgeArgs, FormatArgs};
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;
use crate::render;

/// `info`.
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// Name or id
    #[arg(value_name = "NAME")]
    pub(crate) machine: String,
    #[command(flatten)]
    pub(crate) form: FormatArgs,
    /// Maximum age of the answer.
    #[command(flatten)]
    pub(crate) age: AgeArgs,
}

/// Shows one machine.
pub(super) fn info(context: &mut Context, args: InfoArgs) -> Result<ExitCode, CliError> {
    let watch = Wait::Ours("info", format!("info {}", args.machine));
    let params = MachineInfoParams {
        max_age_ms: args.age.max_age_ms(),
        machine: args.machine,
    };
    let answer = context.look::<MachineInfo>(watch, &params)?;
    context.console.answer(&answer, render::info)?;
    if let Some(note) = render::staleness(&answer.observed) {
        context.console.eprint(&note);
    }
    Ok(ExitCode::SUCCESS)
}

//! `info`.

use std::process::ExitCode;

use orbd_proto::methods::MachineInfo;
use orbd_proto::types::MachineInfoParams;

use crate::args::Info;
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;
use crate::render;

/// Shows one machine.
pub(super) fn info(context: &mut Context, args: Info) -> Result<ExitCode, CliError> {
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

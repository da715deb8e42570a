//! `logs`.

use std::process::ExitCode;

use orbd::rpc::api::MachineLogs;
use orbd::rpc::types::LogsParams;

use crate::args::Logs;
use crate::context::Context;
use crate::narrate::Watch;
use crate::trouble::Trouble;

/// Shows a machine's log so far.
pub(super) fn logs(context: &mut Context, args: Logs) -> Result<ExitCode, Trouble> {
    let watch = Watch::Ours("logs", format!("logs {}", args.machine));
    let params = LogsParams {
        machine: args.machine,
        all: args.all,
    };
    let answer = context.ask::<MachineLogs>(watch, &params)?;
    context.console.answer(&answer, |answer, _| answer.text.clone())?;
    Ok(ExitCode::SUCCESS)
}

//! `cancel`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::JobCancel;
use orbd_proto::types::JobParams;

use crate::args::job_id;
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;

/// `cancel`.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Job ids
    #[arg(value_name = "ID", required = true, value_parser = job_id, allow_hyphen_values = true)]
    pub(crate) ids: Vec<u64>,
}

/// Cancels jobs. The exit code is that of the first failure.
pub(super) fn cancel(context: &mut Context, args: &CancelArgs) -> Result<ExitCode, CliError> {
    let mut code = ExitCode::SUCCESS;
    let mut failed = false;
    for &job_id in &args.ids {
        match context.ask::<JobCancel>(Wait::Job(job_id), &JobParams { job_id }) {
            Ok(answer) => context.console.answer(&answer, |answer, _| {
                let result = match answer.result.as_str() {
                    "never_started" => "cancelled before it started",
                    "stopping" => "is being stopped",
                    "already_ended" => "had already ended",
                    other => other,
                };
                format!("job {job_id} {result}\n")
            })?,
            Err(error @ CliError::Refused(_)) => {
                let this = error.end(&mut context.console);
                if !failed {
                    (code, failed) = (this, true);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(code)
}

//! `cancel`.

use std::process::ExitCode;

use orbd::rpc::api::JobCancel;
use orbd::rpc::types::JobParams;

use crate::args::Cancel;
use crate::context::Context;
use crate::narrate::Watch;
use crate::trouble::Trouble;

/// Cancels jobs; the exit code is that of the first that could not be.
pub(super) fn cancel(context: &mut Context, args: &Cancel) -> Result<ExitCode, Trouble> {
    let mut code = ExitCode::SUCCESS;
    let mut failed = false;
    for &job_id in &args.ids {
        match context.ask::<JobCancel>(Watch::Job(job_id), &JobParams { job_id }) {
            Ok(answer) => context.console.answer(&answer, |answer, _| {
                let result = match answer.result.as_str() {
                    "never_started" => "cancelled before it started",
                    "stopping" => "is being stopped",
                    "already_ended" => "had ended already",
                    other => other,
                };
                format!("job {job_id} {result}\n")
            })?,
            Err(trouble @ Trouble::Refused(_)) => {
                let this = trouble.end(&mut context.console);
                if !failed {
                    (code, failed) = (this, true);
                }
            }
            Err(trouble) => return Err(trouble),
        }
    }
    Ok(code)
}

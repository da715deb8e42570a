//! `cancel`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::{JobCancel, JobList};
use orbd_proto::types::{JobListParams, JobParams, JobStateWord};

use crate::args::job_id;
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;

/// `cancel`.
#[derive(Debug, Args)]
#[group(id = "targets", required = true, multiple = false, args = ["ids", "machine", "all"])]
pub(crate) struct CancelArgs {
    /// Job ids
    #[arg(value_name = "ID", value_parser = job_id, allow_negative_numbers = true)]
    pub(crate) ids: Vec<u64>,
    /// All waiting and running jobs of this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// All waiting and running jobs of all clients
    #[arg(long)]
    pub(crate) all: bool,
}

/// Most jobs that are cancelled by one command.
const JOBS_MAX: usize = 10_000;

/// Cancels jobs. The exit code is that of the first failure.
pub(super) fn cancel(context: &mut Context, args: &CancelArgs) -> Result<ExitCode, CliError> {
    let ids = if args.ids.is_empty() {
        open_jobs(context, args.machine.as_ref())?
    } else {
        args.ids.clone()
    };
    if ids.is_empty() {
        context.console.eprint("no waiting or running jobs to cancel");
    }
    let mut code = ExitCode::SUCCESS;
    let mut failed = false;
    for job_id in ids {
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

/// Lists the jobs that have not ended: waiting ones first, so that none starts because a running one was cancelled.
fn open_jobs(context: &mut Context, machine: Option<&String>) -> Result<Vec<u64>, CliError> {
    let mut ids = Vec::new();
    for state in [JobStateWord::Waiting, JobStateWord::Running] {
        let query = JobListParams {
            state: Some(state),
            machine: machine.cloned(),
            limit: Some(JOBS_MAX),
            ..JobListParams::default()
        };
        let answer = context.look::<JobList>(Wait::Queue, &query)?;
        for job in answer.jobs {
            if !ids.contains(&job.job_id) {
                ids.push(job.job_id);
            }
        }
    }
    Ok(ids)
}

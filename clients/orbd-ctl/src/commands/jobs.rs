//! `jobs`.

use std::process::ExitCode;

use orbd_proto::methods::JobList;
use orbd_proto::types::{JobListAnswer, JobListParams, JobStateWord};

use crate::args::Jobs;
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;
use crate::render;

/// Lists jobs; without options, the waiting and running ones.
pub(super) fn jobs(context: &mut Context, args: Jobs) -> Result<ExitCode, CliError> {
    let mut query = JobListParams {
        state: args.state,
        machine: args.machine,
        operation: args.operation,
        limit: args.limit,
    };
    let active_only = !args.all && args.state.is_none();
    let answer = if active_only {
        query.state = Some(JobStateWord::Running);
        let running = list(context, &query)?;
        query.state = Some(JobStateWord::Waiting);
        merge(running, list(context, &query)?)
    } else {
        list(context, &query)?
    };
    let nothing = answer.jobs.is_empty();
    if context.console.json || !nothing {
        context.console.answer(&answer, render::jobs)?;
    }
    if nothing {
        context.console.eprint(if active_only {
            "no waiting or running jobs; `orbd-ctl jobs --all` includes ended jobs"
        } else {
            "no matching jobs; `orbd-ctl metrics history` shows older ones"
        });
    } else if answer.more {
        context
            .console
            .eprint("there are more jobs; `-n N` raises the limit");
    }
    Ok(ExitCode::SUCCESS)
}

fn list(context: &mut Context, query: &JobListParams) -> Result<JobListAnswer, CliError> {
    context.look::<JobList>(Wait::Queue, query)
}

/// Merges two lists, oldest job first. A job that started between the two calls is in both; the entry of the later call is used.
fn merge(earlier: JobListAnswer, later: JobListAnswer) -> JobListAnswer {
    let mut jobs = later.jobs;
    for job in earlier.jobs {
        if jobs.iter().all(|other| other.job_id != job.job_id) {
            jobs.push(job);
        }
    }
    jobs.sort_by_key(|job| job.job_id);
    JobListAnswer {
        jobs,
        more: earlier.more || later.more,
    }
}

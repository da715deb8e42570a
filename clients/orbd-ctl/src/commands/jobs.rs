//! `jobs`.

use std::process::ExitCode;

use clap::Args;
use orbd_proto::methods::JobList;
use orbd_proto::types::{JobListAnswer, JobListParams, JobStateWord};

use crate::args::whole;
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;
use crate::render;

/// `jobs`.
#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// Include ended jobs
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only jobs in this state: waiting, running or ended
    #[arg(long, value_name = "STATE", value_parser = job_state, conflicts_with = "all")]
    pub(crate) state: Option<JobStateWord>,
    /// Only jobs of this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Only jobs of this operation
    #[arg(long, value_name = "VERB")]
    pub(crate) operation: Option<String>,
    /// Show at most N jobs, the newest [default: 100]
    #[arg(short = 'n', long, value_name = "N", value_parser = whole::<usize>, allow_hyphen_values = true)]
    pub(crate) limit: Option<usize>,
}

fn job_state(text: &str) -> Result<JobStateWord, String> {
    match text {
        "waiting" => Ok(JobStateWord::Waiting),
        "running" => Ok(JobStateWord::Running),
        "ended" => Ok(JobStateWord::Ended),
        _ => Err("expected waiting, running or ended".into()),
    }
}

/// Lists jobs; without options, the waiting and running ones.
pub(super) fn jobs(context: &mut Context, args: JobsArgs) -> Result<ExitCode, CliError> {
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

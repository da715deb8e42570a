//! `jobs`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use orbd_proto::methods::JobList;
use orbd_proto::types::{EventKind, Job, JobListAnswer, JobListParams, JobStateWord};

use super::watch::{View, watch};
use crate::args::whole;
use crate::context::Context;
use crate::error::CliError;
use crate::progress::Wait;
use crate::render;

/// `jobs`.
#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// Print job ids only, one per line
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Include ended jobs
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only jobs in this state: waiting, running, ended, or how they ended: succeeded, failed, cancelled, expired, interrupted, unknown
    #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(STATES), hide_possible_values = true, conflicts_with = "all")]
    pub(crate) state: Option<String>,
    /// Only jobs of this machine
    #[arg(short, long, value_name = "NAME")]
    pub(crate) machine: Option<String>,
    /// Only jobs of this operation
    #[arg(long, value_name = "VERB")]
    pub(crate) operation: Option<String>,
    /// Only jobs of clients with this name, e.g. pyinfra
    #[arg(long, value_name = "CLIENT")]
    pub(crate) client: Option<String>,
    /// Show at most N jobs, the newest [default: 100]
    #[arg(short = 'n', long, value_name = "N", value_parser = whole::<usize>, allow_hyphen_values = true)]
    pub(crate) limit: Option<usize>,
    /// Print the list again whenever it changes, until Ctrl-C
    #[arg(short, long)]
    pub(crate) watch: bool,
}

/// Values of `--state`: the states of a job, then the kinds of outcomes.
const STATES: &[&str] = &[
    "waiting",
    "running",
    "ended",
    "succeeded",
    "failed",
    "cancelled",
    "expired",
    "interrupted",
    "unknown",
];

/// Default of `-n`, which is also the daemon's.
const LIMIT: usize = 100;

/// Most jobs that the daemon returns.
const LIMIT_MAX: usize = 10_000;

/// How often `--watch` updates the times of jobs on a terminal.
const WATCH_TICK: Duration = Duration::from_secs(1);

/// Lists jobs; without options, the waiting and running ones.
pub(super) fn jobs(context: &mut Context, args: &JobsArgs) -> Result<ExitCode, CliError> {
    if args.watch {
        let kinds = [EventKind::JobQueued, EventKind::JobStarted, EventKind::JobEnded];
        return watch(context, &kinds, Some(WATCH_TICK), &mut |context| {
            jobs_once(context, args)
        });
    }
    jobs_once(context, args)?.print(&mut context.console)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns what `jobs` prints.
fn jobs_once(context: &mut Context, args: &JobsArgs) -> Result<View, CliError> {
    let active_only = !args.all && args.state.is_none();
    let answer = find(context, args, active_only)?;
    let nothing = answer.jobs.is_empty();
    let text = if args.quiet && !context.console.json {
        let ids = answer.jobs.iter().map(|job| format!("{}\n", job.job_id));
        ids.collect()
    } else if context.console.json || !nothing {
        context.console.format(&answer, render::jobs)?
    } else {
        String::new()
    };
    let note = match nothing {
        true if args.quiet => None,
        true if active_only => Some("no waiting or running jobs; `orbd-ctl jobs --all` includes ended jobs"),
        true => Some("no matching jobs; `orbd-ctl metrics history` shows older ones"),
        false if answer.more => Some("there are more jobs; `-n N` raises the limit"),
        false => None,
    };
    Ok(View {
        text,
        notes: note.map(String::from).into_iter().collect(),
    })
}

/// Finds the jobs that match the options.
fn find(context: &mut Context, args: &JobsArgs, active_only: bool) -> Result<JobListAnswer, CliError> {
    let (state, outcome) = match args.state.as_deref() {
        None => (None, None),
        Some("waiting") => (Some(JobStateWord::Waiting), None),
        Some("running") => (Some(JobStateWord::Running), None),
        Some("ended") => (Some(JobStateWord::Ended), None),
        Some(outcome) => (Some(JobStateWord::Ended), Some(outcome)),
    };
    // The daemon has no filter for these, so the limit applies to what is left.
    let filters_here = outcome.is_some() || args.client.is_some();
    let mut query = JobListParams {
        state,
        machine: args.machine.clone(),
        operation: args.operation.clone(),
        limit: if filters_here { Some(LIMIT_MAX) } else { args.limit },
    };
    let mut answer = if active_only {
        query.state = Some(JobStateWord::Running);
        let running = list(context, &query)?;
        query.state = Some(JobStateWord::Waiting);
        merge(running, list(context, &query)?)
    } else {
        list(context, &query)?
    };
    if filters_here {
        let matches = |job: &Job| {
            let kind = job.outcome.as_ref().map(|outcome| outcome.kind.as_str());
            outcome.is_none_or(|outcome| kind == Some(outcome))
                && args
                    .client
                    .as_ref()
                    .is_none_or(|client| job.client.name == *client)
        };
        answer.jobs.retain(matches);
        let surplus = answer.jobs.len().saturating_sub(args.limit.unwrap_or(LIMIT));
        answer.jobs.drain(..surplus);
        answer.more |= surplus > 0;
    }
    Ok(answer)
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

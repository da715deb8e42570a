//! `job show`, `job why`, `job wait`, `job output`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use orbd_proto::errors::ErrorKind;
use orbd_proto::methods::{JobFollow, JobGet, JobOutput, JobWait};
use orbd_proto::types::{
    Job, JobFollowParams, JobOutputParams, JobParams, JobStateWord, JobWaitParams, WaitingFor,
};
use serde::Serialize;

use super::follow::{self, Sink};
use crate::args::{duration, job_id, millis, whole};
use crate::context::Context;
use crate::error::{CliError, exit};
use crate::interrupt::Interrupt;
use crate::progress::{Progress, Wait};
use crate::render;

/// `job`.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    #[command(subcommand)]
    pub(crate) command: JobCommand,
}

/// `job ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Show a job
    Show {
        /// Job id
        #[arg(value_parser = job_id, allow_negative_numbers = true)]
        id: u64,
    },
    /// Show what a job waits for, what that job waits for, and so on
    Why {
        /// Job id
        #[arg(value_parser = job_id, allow_negative_numbers = true)]
        id: u64,
    },
    /// Wait until a job has ended; exits with the job's exit code
    Wait {
        /// Job id
        #[arg(value_parser = job_id, allow_negative_numbers = true)]
        id: u64,
        /// Give up after TIME, with exit code 5; the job keeps running
        #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
        timeout: Option<Duration>,
    },
    /// Print a job's output, its stdout to stdout and its stderr to stderr
    Output {
        /// Job id
        #[arg(value_parser = job_id, allow_negative_numbers = true)]
        id: u64,
        /// Follow the output until the job ends, then exit with its exit code
        #[arg(short, long)]
        follow: bool,
        /// Offset of the first byte, counted over both streams
        #[arg(
            long = "from",
            visible_alias = "offset",
            value_name = "BYTE",
            default_value_t = 0,
            value_parser = whole::<u64>,
            allow_hyphen_values = true
        )]
        offset: u64,
    },
}

/// Maximum number of jobs in the answer of `job why`.
const CHAIN_MAX: usize = 100;

/// Answer of `job why --json`: the job, the job that it waits for, the job that this one waits for, and so on.
#[derive(Debug, Serialize)]
struct Chain {
    jobs: Vec<Job>,
}

/// Shows a job, shows why it waits, waits for it, or prints its output.
pub(super) fn job(context: &mut Context, command: &JobCommand) -> Result<ExitCode, CliError> {
    match *command {
        JobCommand::Show { id } => {
            let answer = context.look::<JobGet>(Wait::Queue, &JobParams { job_id: id })?;
            context
                .console
                .answer(&answer, |answer, look| render::job(&answer.job, look))?;
            Ok(ExitCode::SUCCESS)
        }
        JobCommand::Why { id } => {
            let chain = chain(context, id)?;
            context
                .console
                .answer(&chain, |chain, look| render::why(&chain.jobs, look))?;
            Ok(ExitCode::SUCCESS)
        }
        JobCommand::Wait { id, timeout } => {
            let params = JobWaitParams {
                job_id: id,
                timeout_ms: timeout.map(millis),
            };
            let answer = context.ask::<JobWait>(Wait::Job(id), &params)?;
            context
                .console
                .answer(&answer, |answer, look| render::job(&answer.job, look))?;
            if answer.job.state != JobStateWord::Ended {
                context
                    .console
                    .eprint(&format!("job {id} has not ended yet; it keeps running"));
                return Ok(ExitCode::from(exit::REFUSED));
            }
            match follow::exit_of(&answer.job) {
                Ok(code) => Ok(ExitCode::from(code)),
                Err(error) => Ok(ExitCode::from(error.exit())),
            }
        }
        JobCommand::Output { id, follow, offset } if follow => follow_output(context, id, offset),
        JobCommand::Output { id, offset, .. } => output(context, id, offset),
    }
}

/// Collects the chain of jobs that a job waits for. Each is fetched with its own call, so the queue may change meanwhile.
fn chain(context: &mut Context, id: u64) -> Result<Chain, CliError> {
    let mut jobs: Vec<Job> = Vec::new();
    let mut next = Some(id);
    while let Some(id) = next.take() {
        let job = match context.look::<JobGet>(Wait::Queue, &JobParams { job_id: id }) {
            Ok(answer) => answer.job,
            // The blocking job has ended and is no longer in the history.
            Err(error) if !jobs.is_empty() && error.kind() == Some(ErrorKind::JobNotFound) => break,
            Err(error) => return Err(error),
        };
        next = job
            .waiting_for
            .as_ref()
            .and_then(WaitingFor::job_id)
            .filter(|next| jobs.len() < CHAIN_MAX && jobs.iter().all(|job| job.job_id != *next));
        jobs.push(job);
    }
    Ok(Chain { jobs })
}

/// Prints the output that exists now.
fn output(context: &mut Context, job_id: u64, mut offset: u64) -> Result<ExitCode, CliError> {
    let mut code = ExitCode::SUCCESS;
    loop {
        let params = JobOutputParams {
            job_id,
            offset,
            ..JobOutputParams::default()
        };
        let answer = context.ask::<JobOutput>(Wait::Queue, &params)?;
        if let Some(gap) = &answer.gap {
            follow::say_gap(&mut context.console, gap);
            code = ExitCode::from(exit::FAILED);
        }
        if context.console.json {
            context.console.answer(&answer, |_, _| String::new())?;
        } else {
            for chunk in &answer.output {
                follow::write(&mut context.console, chunk)?;
            }
        }
        if answer.eof || answer.next_offset <= offset {
            return Ok(code);
        }
        offset = answer.next_offset;
    }
}

/// Prints the output until the job ends. Ctrl-C exits this client, and does not cancel the job.
fn follow_output(context: &mut Context, job_id: u64, offset: u64) -> Result<ExitCode, CliError> {
    let mut client = context.connect()?;
    let mut events = client.subscribe::<JobFollow>(&JobFollowParams { job_id, offset })?;
    let mut progress = Progress::new(&context.link, Wait::Job(job_id));
    let mut sink = if context.console.json {
        Sink::Events
    } else {
        Sink::Streams
    };
    let followed = follow::follow(
        &mut events,
        offset,
        &mut sink,
        &Interrupt::default(),
        &mut progress,
        &mut context.console,
        &mut |_| Ok(()),
    )?;
    Ok(ExitCode::from(match follow::exit_of(&followed.job)? {
        0 if followed.lost => exit::FAILED,
        code => code,
    }))
}

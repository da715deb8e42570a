//! `job show`, `job wait`, `job output`.

use std::process::ExitCode;

use orbd::rpc::api::{JobFollow, JobGet, JobOutput, JobWait};
use orbd::rpc::types::{JobFollowParams, JobOutputParams, JobParams, JobStateWord, JobWaitParams};

use super::follow::{self, Sink};
use crate::args::{JobCommand, millis};
use crate::context::Context;
use crate::interrupt::Interrupt;
use crate::narrate::{Narrator, Watch};
use crate::render;
use crate::trouble::{Trouble, exit};

/// Shows one job, waits for it, or reads what it wrote.
pub(super) fn job(context: &mut Context, command: &JobCommand) -> Result<ExitCode, Trouble> {
    match *command {
        JobCommand::Show { id } => {
            let answer = context.ask::<JobGet>(Watch::Queue, &JobParams { job_id: id })?;
            context
                .console
                .answer(&answer, |answer, colour| render::job(&answer.job, colour))?;
            Ok(ExitCode::SUCCESS)
        }
        JobCommand::Wait { id, timeout } => {
            let params = JobWaitParams {
                job_id: id,
                timeout_ms: timeout.map(millis),
            };
            let answer = context.ask::<JobWait>(Watch::Job(id), &params)?;
            context
                .console
                .answer(&answer, |answer, colour| render::job(&answer.job, colour))?;
            if answer.job.state != JobStateWord::Ended {
                context.console.say("it goes on");
                return Ok(ExitCode::from(exit::REFUSED));
            }
            match follow::exit_of(&answer.job) {
                Ok(code) => Ok(ExitCode::from(code)),
                Err(trouble) => Ok(ExitCode::from(trouble.exit())),
            }
        }
        JobCommand::Output { id, follow, offset } if follow => follow_output(context, id, offset),
        JobCommand::Output { id, offset, .. } => output(context, id, offset),
    }
}

/// Writes what there is.
fn output(context: &mut Context, job_id: u64, mut offset: u64) -> Result<ExitCode, Trouble> {
    let mut code = ExitCode::SUCCESS;
    loop {
        let params = JobOutputParams {
            job_id,
            offset,
            ..JobOutputParams::default()
        };
        let answer = context.ask::<JobOutput>(Watch::Queue, &params)?;
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
        if answer.end || answer.next_offset <= offset {
            return Ok(code);
        }
        offset = answer.next_offset;
    }
}

/// Writes what there is and what comes, until the job ends. Ctrl-C ends us, not the job.
fn follow_output(context: &mut Context, job_id: u64, offset: u64) -> Result<ExitCode, Trouble> {
    let mut client = context.connect()?;
    let mut events = client.subscribe::<JobFollow>(&JobFollowParams { job_id, offset })?;
    let mut narrator = Narrator::new(&context.link, Watch::Job(job_id));
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
        &mut narrator,
        &mut context.console,
        &mut |_| Ok(()),
    )?;
    Ok(ExitCode::from(match follow::exit_of(&followed.job)? {
        0 if followed.lost => exit::FAILED,
        code => code,
    }))
}

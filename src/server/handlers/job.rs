//! `job.*`: jobs by id.

use std::time::Duration;

use super::run::{INLINE_SMALL, follow, room_for_output};
use crate::dispatcher::{Cancelled, JobFilter, StateFilter};
use crate::job::JobId;
use crate::server::call::{end, no_such_job};
use crate::server::convert::{parse, timeout};
use crate::server::encoding::{self, bytes_of};
use crate::server::registry::Registry;
use crate::server::{errors, jobs};
use crate::spool::Batch;
use orbd_proto::errors::invalid;
use orbd_proto::methods::{JobCancel, JobFollow, JobGet, JobInput, JobList, JobOutput, JobWait};
use orbd_proto::types::{
    Gap, JobAnswer, JobCancelAnswer, JobInputAnswer, JobListAnswer, JobOutputAnswer, JobStateWord,
};

/// Default of `limit` in `job.list`.
const LIST_DEFAULT: usize = 100;
/// Maximum of `limit` in `job.list`.
const LIST_MAX: usize = 10_000;
/// Maximum and default number of bytes of output in one answer. An answer is built and encoded in memory, which takes several times as
/// much. For large output clients follow the job or read an HTTP body.
const OUTPUT_MAX: u64 = 1 << 20;
/// Longest wait of one `job.output`.
const OUTPUT_WAIT_MAX: Duration = Duration::from_secs(3600);

pub(super) fn register(registry: &mut Registry) {
    jobs(registry);
    streams(registry);
}

fn jobs(registry: &mut Registry) {
    registry.method::<JobGet, _, _>(async |call, params| {
        let id = JobId(params.job_id);
        let view = call
            .server
            .dispatcher
            .view(id)
            .await
            .ok_or_else(|| no_such_job(id))?;
        Ok(JobAnswer {
            job: jobs::job(&view),
        })
    });
    registry.method::<JobList, _, _>(async |call, params| {
        let limit = params.limit.unwrap_or(LIST_DEFAULT);
        if limit == 0 || limit > LIST_MAX {
            return Err(invalid("limit", format!("must be from 1 to {LIST_MAX}")));
        }
        let filter = JobFilter {
            state: params.state.map(|state| match state {
                JobStateWord::Waiting => StateFilter::Waiting,
                JobStateWord::Running => StateFilter::Running,
                JobStateWord::Ended => StateFilter::Ended,
            }),
            machine: params
                .machine
                .map(|machine| parse("machine", &machine))
                .transpose()?,
            verb: params.operation,
            limit,
        };
        let (jobs, more) = call.server.dispatcher.list(filter).await;
        Ok(JobListAnswer {
            jobs: jobs.iter().map(jobs::job).collect(),
            more,
        })
    });
    registry.method::<JobWait, _, _>(async |call, params| {
        let id = JobId(params.job_id);
        let mut job = call.job(id).await?;
        match timeout("timeout_ms", params.timeout_ms)? {
            // The view below shows whether the job ended or the time passed.
            Some(limit) => drop(tokio::time::timeout(limit, end(&mut job)).await),
            None => drop(end(&mut job).await?),
        }
        let view = call.view(&job).await;
        Ok(JobAnswer {
            job: jobs::job(&view),
        })
    });
    registry.method::<JobCancel, _, _>(async |call, params| {
        let id = JobId(params.job_id);
        let result = match call.server.dispatcher.cancel(id).await {
            Cancelled::NeverStarted => "never_started",
            Cancelled::Stopping => "stopping",
            Cancelled::AlreadyEnded => "already_ended",
            Cancelled::NoSuchJob => return Err(no_such_job(id)),
        };
        Ok(JobCancelAnswer {
            result: result.into(),
        })
    });
}

fn streams(registry: &mut Registry) {
    registry.method::<JobOutput, _, _>(async |call, params| {
        let id = JobId(params.job_id);
        let most = params.bytes_max.unwrap_or(OUTPUT_MAX);
        if most == 0 || most > OUTPUT_MAX {
            return Err(invalid("bytes_max", format!("must be from 1 to {OUTPUT_MAX}")));
        }
        let wait = Duration::from_millis(params.wait_ms).min(OUTPUT_WAIT_MAX);
        let mut job = call.job(id).await?;
        let mut answer = JobOutputAnswer {
            output: Vec::new(),
            next_offset: params.offset,
            gap: None,
            eof: true,
        };
        let Some(spool) = &job.spool else {
            if job.output_gone > params.offset {
                answer.gap = Some(Gap {
                    offset: params.offset,
                    next_offset: job.output_gone,
                });
                answer.next_offset = job.output_gone;
                return Ok(answer);
            }
            // There will be no output, so a caller that waits for some waits for the job's end.
            answer.eof = matches!(tokio::time::timeout(wait, end(&mut job)).await, Ok(Ok(_)));
            return Ok(answer);
        };
        if params.offset > spool.end() {
            return Err(invalid(
                "offset",
                format!("must be at most {}, the end of the job's output", spool.end()),
            ));
        }
        let mut reader = spool.reader(params.offset);
        // `wait_ms` does not limit the reading of output that exists. It only applies while there is none at this offset. That wait holds
        // no budget permit, because other calls need the budget meanwhile, so the first piece must be small.
        let is_there = params.offset < spool.end() || spool.is_ended();
        let most = most.min(if is_there {
            spool.end() - params.offset
        } else {
            INLINE_SMALL as u64
        });
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let (most, _permit) = room_for_output(call.connection.budget(), most);
        let batch = if is_there {
            Ok(reader.next(most).await)
        } else {
            tokio::time::timeout(wait, reader.next(most)).await
        };
        let Ok(batch) = batch else {
            answer.eof = false;
            return Ok(answer);
        };
        let batch = batch.map_err(|error| errors::internal(&error.to_string()))?;
        match batch {
            Batch::Chunks(chunks) => {
                answer.output = chunks.iter().map(encoding::chunk).collect();
            }
            Batch::Gap { from, to } => {
                answer.gap = Some(Gap {
                    offset: from,
                    next_offset: to,
                });
            }
            Batch::End => {}
        }
        answer.next_offset = reader.position();
        answer.eof = spool.is_ended() && answer.next_offset == spool.end();
        Ok(answer)
    });
    input(registry);
    registry.subscription::<JobFollow, _, _>(async |call, params, subscriber| {
        let id = JobId(params.job_id);
        match call.job(id).await {
            Ok(job) => {
                let _ = follow(&call.server, job, params.offset, subscriber).await;
            }
            Err(error) => subscriber.reject(error).await,
        }
    });
}

fn input(registry: &mut Registry) {
    registry.method::<JobInput, _, _>(async |call, params| {
        let id = JobId(params.job_id);
        let bytes = match (params.text, params.base64) {
            (Some(text), None) => text.into(),
            (None, Some(base64)) => bytes_of("base64", &base64)?,
            (None, None) => bytes::Bytes::new(),
            (Some(_), Some(_)) => return Err(invalid("text", "give at most one of text and base64")),
        };
        // Counts the bytes against the connection's budget until the child has read them.
        let bytes = call.connection.hold(bytes)?;
        let job = call.job(id).await?;
        let Some(input) = call.server.dispatcher.input(id).await else {
            // The job has ended or its input is closed. As with a closed pipe, that is an answer and not an error.
            return if job.spec.streams_input {
                Ok(JobInputAnswer { open: false })
            } else {
                Err(invalid(
                    "job_id",
                    format!("job {id} was not started with stdin_stream"),
                ))
            };
        };
        let open = bytes.is_empty() || input.send(bytes).await.is_ok();
        drop(input);
        if params.eof {
            call.server.dispatcher.end_input(id).await;
        }
        Ok(JobInputAnswer { open })
    });
}

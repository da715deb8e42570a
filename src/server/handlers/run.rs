//! `machine.run`, `machine.run_follow`, and following jobs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Moment;
use crate::dispatcher::{Job, JobState};
use crate::job::{JobId, Outcome, Success};
use crate::operation::{Action, CallerEnv, ChannelUse, ExecRequest, OutputKept, Stdin};
use crate::server::budget::{Budget, Permit};
use crate::server::call::{Call, end, ended_well};
use crate::server::context::Server;
use crate::server::convert::{self, parse, parse_optional};
use crate::server::encoding::{self, bytes_of};
use crate::server::jobs::{self, Progress, progress};
use crate::server::notifier::{Notifier, Subscriber};
use crate::server::registry::Registry;
use crate::server::{errors, line_notifications};
use crate::spool::{self, Batch, Spool};
use orbd_proto::errors::invalid;
use orbd_proto::methods::{MachineRun, MachineRunFollow};
use orbd_proto::types::{self, Chunk, ErrorObject, Gap, JobEvent, RunParams, WaitReason};

/// Maximum number of bytes of output in the answer of `machine.run`. Clients read the rest with `job.output`.
const INLINE_MAX: usize = 1 << 20;
/// Bytes of output that an answer may carry even if the connection's budget is used up.
pub(super) const INLINE_SMALL: usize = 4 << 10;
/// Maximum number of bytes on the wire per byte of output: JSON encodes a control character in six.
const ENCODED_MAX: usize = 6;
/// Maximum number of bytes of output in one event.
const EVENT_BYTES_MAX: usize = 256 << 10;
/// Bytes of output that are sent as they arrive, without a budget permit.
const EVENT_BYTES_SMALL: usize = 2 << 10;
/// Time after which a follower is sent what its job waits for, and interval at which that is checked again.
const WAITING_TOLD_AFTER: Duration = Duration::from_secs(1);

pub(super) fn register(registry: &mut Registry) {
    registry.method::<MachineRun, _, _>(async |call, params| {
        let detach = params.detach;
        let mut job = begin(&call, params).await?;
        let state = if detach {
            job.state.borrow().clone()
        } else {
            end(&mut job).await?
        };
        if !detach {
            ended_well(&job, &state)?;
        }
        let mut answer = run_answer(job.spec.id, &job.spec.accepted, &state);
        if let Some(spool) = job.spool.as_ref().filter(|_| !detach) {
            answer.output = inline(spool, call.connection.budget()).await?;
            answer.next_offset = answer
                .output
                .iter()
                .map(|chunk| chunk.offset + length(chunk))
                .max()
                .unwrap_or(0);
            answer.output_bytes = spool.end();
        }
        Ok(answer)
    });
    registry.subscription::<MachineRunFollow, _, _>(async |call, params, subscriber| {
        if params.detach {
            let error = invalid(
                "detach",
                "not accepted by machine.run_follow; use machine.run and job.follow",
            );
            return subscriber.reject(error).await;
        }
        match begin(&call, params).await {
            Ok(job) => {
                let id = job.spec.id;
                // The end of the subscription cancels the command.
                if follow(&call.server, job, 0, subscriber).await.is_none() {
                    call.server.dispatcher.cancel(id).await;
                }
            }
            Err(error) => subscriber.reject(error).await,
        }
    });
}

async fn begin(call: &Call, params: RunParams) -> Result<Job, ErrorObject> {
    let options = params.options();
    let machine = call.resolve("machine", &params.machine).await?;
    let mut request = exec_request(params)?;
    if let Stdin::Bytes(bytes) = &mut request.stdin {
        *bytes = call.connection.hold(std::mem::take(bytes))?;
    }
    let action = Action::Exec(machine.name, request);
    call.submit(action, machine.id, options).await
}

/// Returns how many bytes of output an answer may carry, and the budget permit to hold until the answer is encoded. No answer is built that
/// exceeds the budget.
pub(super) fn room_for_output(budget: &Arc<Budget>, most: usize) -> (usize, Option<Permit>) {
    if most <= INLINE_SMALL {
        return (most, None);
    }
    let permit = budget.try_take_some(ENCODED_MAX * INLINE_SMALL, ENCODED_MAX * most);
    let room = permit
        .as_ref()
        .map_or(INLINE_SMALL, |permit| permit.bytes() / ENCODED_MAX);
    (room, permit)
}

/// Reads the beginning of an ended job's output.
async fn inline(spool: &Spool, budget: &Arc<Budget>) -> Result<Vec<Chunk>, ErrorObject> {
    let mut reader = spool.reader(0);
    let mut output = Vec::new();
    let most = usize::try_from(spool.end()).map_or(INLINE_MAX, |end| end.min(INLINE_MAX));
    // Clients read the rest with `job.output`.
    let (mut room, _permit) = room_for_output(budget, most);
    while room > 0 {
        match reader
            .next(room)
            .await
            .map_err(|error| errors::internal(&error.to_string()))?
        {
            Batch::Chunks(chunks) => {
                room = room.saturating_sub(chunks.iter().map(|chunk| chunk.bytes.len()).sum());
                output.extend(chunks.iter().map(encoding::chunk));
            }
            // The offsets of the next chunks show what is missing.
            Batch::Gap { .. } => {}
            Batch::End => break,
        }
    }
    Ok(output)
}

fn length(chunk: &Chunk) -> u64 {
    let text = chunk.text.as_ref().map_or(0, String::len);
    // Four characters of base64 encode three bytes, less one for each trailing '='.
    let base64 = chunk.base64.as_ref().map_or(0, |coded| {
        let padding = coded.bytes().rev().take_while(|byte| *byte == b'=').count();
        coded.len() / 4 * 3 - padding
    });
    (text + base64) as u64
}

/// Sends a job's events to a follower until the job has ended. Returns `None` if the follower disconnects before that.
pub(super) async fn follow(server: &Server, job: Job, offset: u64, subscriber: Subscriber) -> Option<()> {
    let follower = Follower(subscriber.accept().await?);
    follower
        .tell(&JobEvent::Accepted {
            job_id: job.spec.id.0,
        })
        .await?;
    follower.wait_for_start(server, &job).await?;
    if let Some(spool) = &job.spool {
        follower.output(&job, spool, offset).await?;
    } else if job.output_gone > offset {
        let gap = Gap {
            offset,
            next_offset: job.output_gone,
        };
        follower.tell(&JobEvent::Gap(gap)).await?;
    }
    let mut state = job.state.clone();
    tokio::select! {
        ended = state.wait_for(JobState::is_ended) => { ended.ok()?; }
        () = follower.0.closed() => return None,
    }
    // A slow follower may get here long after the end, when the job has expired from history.
    let view = server.dispatcher.view(job.spec.id).await;
    follower
        .tell(&JobEvent::Ended {
            job: Box::new(jobs::job(&view.unwrap_or_else(|| job.view()))),
        })
        .await
}

struct Follower(Notifier);

impl Follower {
    /// Sends one event, waiting for room. Returns `None` if the follower has disconnected.
    async fn tell(&self, event: &JobEvent) -> Option<()> {
        self.0.send(event).await
    }

    async fn tell_output(&self, chunk: &spool::Chunk, room: Option<Permit>) -> Option<()> {
        let line = line_notifications::output_line(self.0.envelope(), chunk)?;
        self.0.send_line(line, room).await
    }

    /// Waits for the start of the job, and sends what it waits for if that takes long.
    async fn wait_for_start(&self, server: &Server, job: &Job) -> Option<()> {
        let mut state = job.state.clone();
        let mut told = None;
        loop {
            let started = async {
                let state = state
                    .wait_for(|state| !matches!(state, JobState::Waiting))
                    .await
                    .ok()?;
                Some(matches!(
                    *state,
                    JobState::Running { .. } | JobState::Ended { since: Some(_), .. }
                ))
            };
            tokio::select! {
                biased;
                started = started => {
                    return if started? { self.tell(&JobEvent::Started {}).await } else { Some(()) };
                }
                () = self.0.closed() => return None,
                () = tokio::time::sleep(WAITING_TOLD_AFTER) => {}
            }
            if let Some(waiting) = server.dispatcher.view(job.spec.id).await?.waiting_for {
                let waiting_for = convert::waiting_for(&waiting);
                let mut now = waiting_for.reason.clone();
                // The age alone is not news.
                if let WaitReason::Job { age_ms, .. } = &mut now {
                    *age_ms = 0;
                }
                if told.as_ref() != Some(&now) {
                    told = Some(now);
                    self.tell(&JobEvent::Waiting { waiting_for }).await?;
                }
            }
        }
    }

    /// Sends output as it arrives, until there is no more.
    async fn output(&self, job: &Job, spool: &Spool, offset: u64) -> Option<()> {
        let mut reader = spool.follow(offset);
        loop {
            // Existing output is sent in pieces as large as the budget allows, counted twice for their size on the wire.
            let mut room = None;
            if reader.position() < spool.end() {
                let budget = self.0.budget();
                tokio::select! {
                    taken = budget.take_some(2 * EVENT_BYTES_SMALL, 2 * EVENT_BYTES_MAX) => room = Some(taken),
                    () = self.0.closed() => return None,
                }
            }
            let most = room.as_ref().map_or(EVENT_BYTES_SMALL, |room| room.bytes() / 2);
            let batch = tokio::select! {
                batch = reader.next(most) => batch,
                () = self.0.closed() => return None,
            };
            match batch {
                Ok(Batch::Chunks(chunks)) => {
                    for chunk in &chunks {
                        let part = room.as_mut().and_then(|room| room.split(2 * chunk.bytes.len()));
                        self.tell_output(chunk, part).await?;
                    }
                }
                Ok(Batch::Gap { from, to }) => {
                    self.tell(&JobEvent::Gap(Gap {
                        offset: from,
                        next_offset: to,
                    }))
                    .await?;
                }
                Ok(Batch::End) => return Some(()),
                Err(error) => {
                    tracing::error!(
                        job_id = job.spec.id.0,
                        operation = job.spec.info.verb.as_str(),
                        client = %job.spec.client.name,
                        %error,
                        "cannot read stored output"
                    );
                    let (from, to) = (reader.position(), spool.end());
                    return self
                        .tell(&JobEvent::Gap(Gap {
                            offset: from,
                            next_offset: to,
                        }))
                        .await;
                }
            }
        }
    }
}

/// Parses a command to run.
fn exec_request(params: RunParams) -> Result<ExecRequest, ErrorObject> {
    let stdin = match (params.stdin_text, params.stdin_base64, params.stdin_stream) {
        (None, None, false) => Stdin::Empty,
        (Some(text), None, false) => Stdin::Bytes(Bytes::from(text)),
        (None, Some(base64), false) => Stdin::Bytes(bytes_of("stdin_base64", &base64)?),
        (None, None, true) => Stdin::Stream,
        _ => {
            return Err(invalid(
                "stdin_text",
                "give at most one of stdin_text, stdin_base64 and stdin_stream",
            ));
        }
    };
    let mut request = ExecRequest::new(params.command).map_err(|error| invalid("command", error))?;
    request.user = parse_optional("user", params.user.as_ref())?;
    if params.workdir.is_some() && params.try_workdir.is_some() {
        return Err(invalid("try_workdir", "cannot be given together with workdir"));
    }
    request.workdir = guest_folder("workdir", params.workdir)?;
    request.try_workdir = guest_folder("try_workdir", params.try_workdir)?;
    for (name, value) in params.env {
        if value.contains('\0') {
            return Err(invalid("env", format!("the value of {name} contains a NUL byte")));
        }
        request.env.push((parse("env", &name)?, value));
    }
    request.caller_env = CallerEnv::new(params.caller_env).map_err(|error| invalid("caller_env", error))?;
    request.stdin = stdin;
    if params.pass_through {
        request.output = OutputKept::Unread;
    }
    request.channel = match params.channel.as_deref() {
        None | Some("auto") => ChannelUse::Auto,
        Some("open") => ChannelUse::MoreFollow,
        Some("off") => ChannelUse::Off,
        Some(_) => return Err(invalid("channel", "must be `auto`, `open` or `off`")),
    };
    Ok(request)
}

fn guest_folder(field: &str, folder: Option<String>) -> Result<Option<String>, ErrorObject> {
    match folder {
        Some(folder) if folder.is_empty() || folder.contains('\0') => {
            Err(invalid(field, "must be a directory in the machine"))
        }
        folder => Ok(folder),
    }
}

/// Builds the answer of a command from the job's current state. The caller adds the output.
fn run_answer(id: JobId, accepted: &Moment, state: &JobState) -> types::RunAnswer {
    let exit_code = match state {
        JobState::Ended {
            outcome: Outcome::Succeeded(Success::Exec { exit_code }),
            ..
        } => Some(*exit_code),
        _ => None,
    };
    let Progress {
        state,
        wait_us,
        run_us,
    } = progress(accepted, state);
    types::RunAnswer {
        job_id: id.0,
        state,
        exit_code,
        output: Vec::new(),
        next_offset: 0,
        output_bytes: 0,
        wait_us,
        run_us,
    }
}

//! `machine.run` and its followed form; following jobs.

use std::time::Duration;

use jsonrpsee::core::server::SubscriptionSink;

use crate::dispatcher::{Job, JobState};
use crate::operation::Operation;
use crate::rpc::api::{MachineRun, MachineRunFollow};
use crate::rpc::convert;
use crate::rpc::notification::{self, Envelope};
use crate::rpc::server::{Caller, Registry, Server, Subscriber};
use crate::rpc::subscriptions::Outlet;
use crate::rpc::types::{Chunk, ErrorObject, Gap, JobEvent, RunParams};
use crate::spool::{self, Batch, Spool};

use super::{end, ended_well, resolve, submit};

/// Most output that an answer carries; the rest is read with `job.output`.
const INLINE_MAX: usize = 1 << 20;
/// Most output in one event.
const EVENT_BYTES_MAX: usize = 256 << 10;
/// A follower is told what its job waits for after this time, and looks again as often.
const WAITING_TOLD_AFTER: Duration = Duration::from_secs(1);

pub(super) fn register(registry: &mut Registry) {
    registry.method::<MachineRun, _, _>(async |server, params, caller| {
        let detach = params.detach;
        let mut job = begin(&server, &caller, params).await?;
        let state = if detach {
            job.state.borrow().clone()
        } else {
            end(&mut job).await?
        };
        if !detach {
            ended_well(&job, &state)?;
        }
        let mut answer = convert::run_answer(job.spec.id, &job.spec.accepted, &state);
        if let Some(spool) = job.spool.as_ref().filter(|_| !detach) {
            answer.output = inline(spool).await?;
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
    registry.subscription::<MachineRunFollow, _, _>(async |server, params, caller, subscriber| {
        if params.detach {
            let error = crate::rpc::errors::invalid(
                "detach",
                "a followed command is attached; use machine.run and job.follow",
            );
            return subscriber.reject(error).await;
        }
        match begin(&server, &caller, params).await {
            Ok(job) => {
                let id = job.spec.id;
                // Whoever gives up following gives up the command.
                if follow(&server, job, 0, subscriber).await.is_none() {
                    server.dispatcher.cancel(id).await;
                }
            }
            Err(error) => subscriber.reject(error).await,
        }
    });
}

async fn begin(server: &Server, caller: &Caller, params: RunParams) -> Result<Job, ErrorObject> {
    let options = params.options();
    let machine = resolve(server, caller, "machine", &params.machine).await?;
    let operation = Operation::Exec(machine.name, convert::exec_request(params)?);
    submit(server, caller, operation, machine.id, options).await
}

/// Reads the beginning of an ended job's output.
async fn inline(spool: &Spool) -> Result<Vec<Chunk>, ErrorObject> {
    let mut reader = spool.reader(0);
    let mut output = Vec::new();
    let mut room = INLINE_MAX;
    while room > 0 {
        match reader
            .next(room)
            .await
            .map_err(|error| convert::internal(&error.to_string()))?
        {
            Batch::Chunks(chunks) => {
                room = room.saturating_sub(chunks.iter().map(|chunk| chunk.bytes.len()).sum());
                output.extend(chunks.iter().map(convert::chunk));
            }
            // The offsets of what follows tell what is missing.
            Batch::Gap { .. } => {}
            Batch::End => break,
        }
    }
    Ok(output)
}

fn length(chunk: &Chunk) -> u64 {
    let text = chunk.text.as_ref().map_or(0, String::len);
    // Four characters of base64 stand for three bytes, less one for each '=' at the end.
    let base64 = chunk.base64.as_ref().map_or(0, |coded| {
        let padding = coded.bytes().rev().take_while(|byte| *byte == b'=').count();
        coded.len() / 4 * 3 - padding
    });
    (text + base64) as u64
}

/// Tells a follower what happens to a job until its end. `None` when the follower is gone before that.
pub(super) async fn follow(server: &Server, job: Job, offset: u64, subscriber: Subscriber) -> Option<()> {
    let sink = subscriber.pending.accept().await.ok()?;
    let follower = Follower {
        sink,
        outlet: subscriber.outlet,
    };
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
            from: offset,
            to: job.output_gone,
        };
        follower.tell(&JobEvent::Gap(gap)).await?;
    }
    let mut state = job.state.clone();
    tokio::select! {
        ended = state.wait_for(JobState::is_ended) => { ended.ok()?; }
        () = follower.sink.closed() => return None,
    }
    // A slow follower may come here long after the end, when the job is forgotten.
    let view = server.dispatcher.view(job.spec.id).await;
    follower
        .tell(&JobEvent::Ended {
            job: Box::new(convert::job(&view.unwrap_or_else(|| job.view()))),
        })
        .await
}

struct Follower {
    sink: SubscriptionSink,
    /// Every event goes this way, so that they stay in order.
    outlet: Outlet,
}

impl Follower {
    /// Sends one event, waiting for room. `None` when the follower is gone.
    async fn tell(&self, event: &JobEvent) -> Option<()> {
        self.send_line(notification::line(self.envelope(), event)?).await
    }

    async fn tell_output(&self, chunk: &spool::Chunk) -> Option<()> {
        self.send_line(notification::output_line(self.envelope(), chunk)?)
            .await
    }

    fn envelope(&self) -> Envelope<'_> {
        Envelope {
            method: self.sink.method_name(),
            subscription: self.sink.subscription_id(),
        }
    }

    async fn send_line(&self, line: Vec<u8>) -> Option<()> {
        (!self.sink.is_closed() && self.outlet.send(line).await).then_some(())
    }

    /// Waits for the start, and says what the job waits for when that takes long.
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
                () = self.sink.closed() => return None,
                () = tokio::time::sleep(WAITING_TOLD_AFTER) => {}
            }
            if let Some(waiting) = server.dispatcher.view(job.spec.id).await?.waiting_for {
                let waiting_for = convert::waiting_for(&waiting);
                let now = (waiting_for.job_id, waiting_for.limit.clone());
                if told.as_ref() != Some(&now) {
                    told = Some(now);
                    self.tell(&JobEvent::Waiting { waiting_for }).await?;
                }
            }
        }
    }

    /// Sends output as it comes, until there is no more.
    async fn output(&self, job: &Job, spool: &Spool, offset: u64) -> Option<()> {
        let mut reader = spool.follow(offset);
        loop {
            let batch = tokio::select! {
                batch = reader.next(EVENT_BYTES_MAX) => batch,
                () = self.sink.closed() => return None,
            };
            match batch {
                Ok(Batch::Chunks(chunks)) => {
                    for chunk in &chunks {
                        self.tell_output(chunk).await?;
                    }
                }
                Ok(Batch::Gap { from, to }) => self.tell(&JobEvent::Gap(Gap { from, to })).await?,
                Ok(Batch::End) => return Some(()),
                Err(error) => {
                    tracing::error!(
                        job_id = job.spec.id.0,
                        operation = job.spec.asked.operation.verb(),
                        client = %job.spec.asked.client.name,
                        %error,
                        "output cannot be read back"
                    );
                    let (from, to) = (reader.position(), spool.end());
                    return self.tell(&JobEvent::Gap(Gap { from, to })).await;
                }
            }
        }
    }
}

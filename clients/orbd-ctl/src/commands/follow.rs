//! Follows a job: streams its output unmodified, then returns its result. Used by `run` and `job output --follow`.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use orbd_client::Events;
use orbd_proto::errors::ErrorKind;
use orbd_proto::methods::{JobCancel, Subscription};
use orbd_proto::types::{Chunk, Gap, Job, JobEvent, JobParams, JobStateWord, RunAnswer, Stream};

use crate::console::Console;
use crate::context::TICK;
use crate::error::CliError;
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// Maximum number of output bytes in an answer; the daemon's limit for `machine.run`.
const INLINE_MAX: u64 = 1 << 20;

/// Destination of a job's output.
pub(super) enum Sink {
    /// Stdout to our stdout, stderr to our stderr.
    Streams,
    /// An answer in the format of `machine.run`.
    Answer(RunAnswer),
    /// A line of JSON for every event.
    Events,
}

impl Sink {
    /// Returns a sink with an empty answer.
    pub(super) fn answer() -> Self {
        Self::Answer(RunAnswer {
            job_id: 0,
            state: JobStateWord::Waiting,
            exit_code: None,
            output: Vec::new(),
            next_offset: 0,
            output_bytes: 0,
            wait_us: None,
            run_us: None,
        })
    }

    /// Consumes a chunk. `end` is the offset after its last byte.
    fn take(&mut self, console: &mut Console, chunk: Chunk, end: u64) -> Result<(), CliError> {
        match self {
            Self::Streams => write(console, &chunk),
            Self::Answer(answer) => {
                answer.output_bytes = end;
                // After the first omitted chunk all later ones are omitted too: `next_offset` is where the rest begins.
                if end <= INLINE_MAX && answer.next_offset == chunk.offset {
                    answer.next_offset = end;
                    answer.output.push(chunk);
                }
                Ok(())
            }
            Self::Events => Ok(()),
        }
    }
}

/// A job that was followed to its end.
pub(super) struct FollowedJob {
    /// The ended job.
    pub(super) job: Job,
    /// Some of its output is missing. A message has been printed; the caller also adjusts the exit code.
    pub(super) lost: bool,
}

/// Follows a job to its end, with its output from `offset` on. The first Ctrl-C cancels the job and waits for its end. `on_start` is
/// called when the job starts.
pub(super) fn follow<S: Subscription<Event = JobEvent>>(
    events: &mut Events<'_, S>,
    offset: u64,
    sink: &mut Sink,
    interrupt: &Interrupt,
    progress: &mut Progress<'_>,
    console: &mut Console,
    on_start: &mut dyn FnMut(u64) -> Result<(), CliError>,
) -> Result<FollowedJob, CliError> {
    let mut next = offset;
    let mut lost = false;
    let mut id = None;
    let mut started = false;
    let mut cancelled = false;
    loop {
        if interrupt.came() && !cancelled {
            progress.clear();
            let Some(id) = id.filter(|id| cancel(progress, *id)) else {
                console.eprint("interrupted; orbd stops the command");
                return Err(CliError::Interrupted);
            };
            cancelled = true;
            console.eprint(&format!(
                "cancelling job {id}; press Ctrl-C again to exit at once"
            ));
        }
        let Some(event) = events.next_event_within(TICK)? else {
            // After the job is accepted, the daemon sends events about what it waits for.
            if id.is_none() {
                progress.tick(console);
            }
            continue;
        };
        if matches!(sink, Sink::Events) {
            console.answer(&event, |_, _| String::new())?;
        }
        match event {
            JobEvent::Accepted { job_id } => {
                id = Some(job_id);
                if let Sink::Answer(answer) = sink {
                    answer.job_id = job_id;
                }
            }
            JobEvent::Waiting { waiting_for } if !cancelled => progress.waiting(console, &waiting_for),
            JobEvent::Waiting { .. } => {}
            JobEvent::Started {} => {
                progress.clear();
                if let (Some(id), false) = (id, started) {
                    on_start(id)?;
                }
                started = true;
            }
            JobEvent::Output(chunk) => {
                let taken = length(&chunk).and_then(|length| {
                    next = chunk.offset + length;
                    sink.take(console, chunk, next)
                });
                if let Err(error) = taken {
                    // The reader of our output has closed it, so cancel the command. Closing the connection would do so too.
                    if let Some(id) = id {
                        cancel(progress, id);
                    }
                    return Err(error);
                }
            }
            JobEvent::Gap(gap) => {
                progress.clear();
                say_gap(console, &gap);
                next = gap.next_offset;
                lost = true;
            }
            JobEvent::Ended { job } => {
                progress.clear();
                if cancelled {
                    console.eprint(&format!("job {} has ended", job.job_id));
                    return Err(CliError::Interrupted);
                }
                // There is no event for output that the daemon could not read back; the byte count reveals it.
                if next < job.output_bytes {
                    console.eprint(&format!(
                        "{} bytes of output are lost, from byte {next} on: orbd could not read them back; `orbd-ctl daemon logs` shows the reason",
                        job.output_bytes - next
                    ));
                    lost = true;
                }
                return Ok(FollowedJob { job: *job, lost });
            }
        }
    }
}

fn cancel(progress: &mut Progress<'_>, job_id: u64) -> bool {
    progress
        .side_connection()
        .is_some_and(|client| client.call::<JobCancel>(&JobParams { job_id }).is_ok())
}

/// Writes a chunk to our stdout or stderr, according to its stream.
pub(super) fn write(console: &mut Console, chunk: &Chunk) -> Result<(), CliError> {
    let bytes = content(chunk)?;
    match chunk.stream {
        Stream::Stdout => console.print(&bytes)?,
        Stream::Stderr => console.err.write_all(&bytes).and_then(|()| console.err.flush())?,
    }
    Ok(())
}

/// Returns the number of bytes in a chunk.
fn length(chunk: &Chunk) -> Result<u64, CliError> {
    Ok(u64::try_from(content(chunk)?.len()).unwrap_or(u64::MAX))
}

/// Decodes the bytes of a chunk.
fn content(chunk: &Chunk) -> Result<std::borrow::Cow<'_, [u8]>, CliError> {
    match (&chunk.text, &chunk.base64) {
        (Some(text), _) => Ok(text.as_bytes().into()),
        (None, Some(base64)) => match STANDARD.decode(base64) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => Err(CliError::Local {
                what: "cannot decode the command's output".into(),
                source: io::Error::new(io::ErrorKind::InvalidData, error),
            }),
        },
        (None, None) => Ok([].as_slice().into()),
    }
}

/// Prints a message that output is missing.
pub(super) fn say_gap(console: &mut Console, gap: &Gap) {
    console.eprint(&format!(
        "{} bytes of output are lost, from byte {} on: the client read too slowly",
        gap.next_offset.saturating_sub(gap.offset),
        gap.offset
    ));
}

/// Returns the exit code of an ended job's command, or the error that ended the job.
pub(super) fn exit_of(job: &Job) -> Result<u8, CliError> {
    let Some(outcome) = &job.outcome else {
        return Ok(0);
    };
    if let Some(error) = &outcome.error {
        return Err(CliError::Refused(error.clone()));
    }
    let kind = match (outcome.kind.as_str(), outcome.exit_code) {
        // Exit codes have eight bits.
        (_, Some(code)) => return Ok(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        ("succeeded", None) => return Ok(0),
        ("cancelled", None) => ErrorKind::JobCancelled,
        ("expired", None) => ErrorKind::DeadlineExceeded,
        ("interrupted", None) => ErrorKind::JobInterrupted,
        ("unknown", None) => ErrorKind::OutcomeUnknown,
        _ => ErrorKind::OrbctlFailed,
    };
    Err(CliError::Refused(
        kind.error(format!("job {} ended: {}", job.job_id, outcome.kind)),
    ))
}

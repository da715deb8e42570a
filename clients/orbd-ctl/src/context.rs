//! The state that every command shares, and the functions that make calls: they wait for the answer, report progress and handle
//! Ctrl-C.

use std::time::Duration;

use orbd_client::{Client, Pending, Sent};
use orbd_proto::methods::{JobCancel, Method};
use orbd_proto::types::{JobParams, JobStateWord};

use crate::args::{JobOptions, LeaseOptions, millis};
use crate::connect;
use crate::console::Console;
use crate::error::CliError;
use crate::interrupt::Interrupt;
use crate::link::Link;
use crate::progress::{Progress, Wait};
use crate::render;

/// How often a wait that handles Ctrl-C checks for it.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// How often any other wait updates its progress message.
const SLOW_TICK: Duration = Duration::from_secs(1);

/// Calls in flight at once, each on a connection of its own.
const CALLS_MAX: usize = 32;

/// The state that every command shares.
pub(crate) struct Context {
    /// The daemon's socket and how to start the daemon.
    pub(crate) link: Link,
    pub(crate) console: Console,
}

/// The parameters that every request for a job has.
#[derive(Debug, Clone, Default)]
pub(crate) struct JobFlags {
    /// Return the job id without waiting for the job.
    pub(crate) detach: bool,
    /// Maximum time in the queue; `None` for the daemon's default.
    pub(crate) queue_timeout_ms: Option<u64>,
    /// Maximum run time; `None` for the daemon's default.
    pub(crate) run_timeout_ms: Option<u64>,
    /// Label of the job; `None` for none.
    pub(crate) label: Option<String>,
}

/// Callback that prints the answer to the request with this index.
pub(crate) type AnswerHandler<'a, A> =
    dyn FnMut(&mut Console, usize, Result<A, CliError>) -> Result<(), CliError> + 'a;

/// Builds the parameters of a method that creates a job: the given fields and those of `JobFlags`.
macro_rules! request {
    ($job_flags:expr, $type:ident { $($field:ident $(: $value:expr)?),* $(,)? }) => {{
        let job_flags: &$crate::context::JobFlags = $job_flags;
        orbd_proto::types::$type {
            $($field $(: $value)?,)*
            detach: job_flags.detach,
            queue_timeout_ms: job_flags.queue_timeout_ms,
            run_timeout_ms: job_flags.run_timeout_ms,
            label: job_flags.label.clone(),
        }
    }};
}
pub(crate) use request;

impl JobOptions {
    /// Converts the command line options to request parameters.
    pub(crate) fn options(&self) -> JobFlags {
        JobFlags {
            detach: self.detach,
            ..self.limits.options()
        }
    }
}

impl LeaseOptions {
    /// Converts the command line options to request parameters. A lease belongs to its client, so it is never detached.
    pub(crate) fn options(&self) -> JobFlags {
        JobFlags {
            detach: false,
            queue_timeout_ms: self.queue_timeout.map(millis),
            run_timeout_ms: self.timeout.map(millis),
            label: self.label.clone(),
        }
    }
}

impl Context {
    /// Connects, starting the daemon if necessary.
    pub(crate) fn connect(&mut self) -> Result<Client, CliError> {
        connect::connect(&self.link, &mut self.console)
    }

    /// Makes a read-only call, sent in one message with the greeting. Ctrl-C has its default action.
    pub(crate) fn look<M: Method>(&mut self, watch: Wait, params: &M::Params) -> Result<M::Answer, CliError> {
        self.look_and_keep::<M>(watch, params).map(|(_, answer)| answer)
    }

    /// As [`Context::look`]; also returns the connection, for further calls.
    pub(crate) fn look_and_keep<M: Method>(
        &mut self,
        watch: Wait,
        params: &M::Params,
    ) -> Result<(Client, M::Answer), CliError> {
        let (mut client, sent) = connect::connect_and_ask::<M>(&self.link, &mut self.console, params)?;
        let answer = self.fetch(watch, &mut client, &sent)?;
        Ok((client, answer))
    }

    /// Makes a call that needs no cancellation. Ctrl-C has its default action.
    pub(crate) fn ask<M: Method>(&mut self, watch: Wait, params: &M::Params) -> Result<M::Answer, CliError> {
        let mut client = self.connect()?;
        let sent = client.send_one::<M>(params)?;
        self.fetch(watch, &mut client, &sent)
    }

    /// Waits for an answer and reports progress.
    fn fetch<M: Method>(
        &mut self,
        watch: Wait,
        client: &mut Client,
        sent: &Sent<M>,
    ) -> Result<M::Answer, CliError> {
        let mut progress = Progress::new(&self.link, watch);
        loop {
            match client.fetch(sent, SLOW_TICK)? {
                Some(answer) => return Ok(answer),
                None => progress.tick(&mut self.console),
            }
        }
    }

    /// Requests several changes in parallel, and passes each answer to `handler` in the order of the requests. Ctrl-C cancels the
    /// changes that have not started; the others finish.
    pub(crate) fn change<M: Method>(
        &mut self,
        verb: &'static str,
        what: &str,
        requests: &[M::Params],
        handler: &mut AnswerHandler<'_, M::Answer>,
    ) -> Result<(), CliError> {
        let interrupt = Interrupt::watch()?;
        for (part, requests) in requests.chunks(CALLS_MAX).enumerate() {
            let mut clients = requests
                .iter()
                .map(|_| self.connect())
                .collect::<Result<Vec<_>, _>>()?;
            let mut progress = Progress::new(&self.link, Wait::Ours(verb, what.to_owned()));
            let mut pending = clients
                .iter_mut()
                .zip(requests)
                .map(|(client, params)| client.start::<M>(params))
                .collect::<Result<Vec<_>, _>>()?;
            for (index, pending) in pending.iter_mut().enumerate() {
                let answer = wait_with_progress(pending, &interrupt, &mut progress, &mut self.console);
                progress.clear();
                if matches!(answer, Err(CliError::Interrupted)) {
                    return Err(CliError::Interrupted);
                }
                handler(&mut self.console, part * CALLS_MAX + index, answer)?;
            }
        }
        Ok(())
    }
}

/// Waits for the answer to a change, reports progress, and cancels pending jobs on Ctrl-C.
pub(crate) fn wait_with_progress<M: Method>(
    pending: &mut Pending<'_, M>,
    interrupt: &Interrupt,
    progress: &mut Progress<'_>,
    console: &mut Console,
) -> Result<M::Answer, CliError> {
    loop {
        if let Some(answer) = pending.wait(TICK)? {
            return Ok(answer);
        }
        if interrupt.came() {
            cancel_pending(progress, console);
            return Err(CliError::Interrupted);
        }
        progress.tick(console);
    }
}

/// Cancels our jobs that have not started, and prints what happens to each job.
fn cancel_pending(progress: &mut Progress<'_>, console: &mut Console) {
    progress.clear();
    let jobs = progress.open_jobs();
    if jobs.is_empty() {
        console.eprint("interrupted; orbd cancels jobs that have not started and finishes the others");
    }
    for job in jobs {
        let name = render::job_name(&job);
        let id = job.job_id;
        let result = if job.state == JobStateWord::Waiting {
            progress
                .side_connection()
                .and_then(|client| client.call::<JobCancel>(&JobParams { job_id: id }).ok())
                .map(|answer| answer.result)
        } else {
            None
        };
        match result.as_deref() {
            Some("never_started") => console.eprint(&format!("{name} cancelled before it started")),
            Some("already_ended") => {
                console.eprint(&format!("{name} has ended; `orbd-ctl job show {id}` shows the result"));
            }
            Some(_) => console.eprint(&format!("{name} is being stopped; `orbd-ctl job wait {id}` waits for it")),
            None => console.eprint(&format!(
                "{name} has started and keeps running; `orbd-ctl job wait {id}` waits for it, `orbd-ctl cancel {id}` stops it"
            )),
        }
    }
}

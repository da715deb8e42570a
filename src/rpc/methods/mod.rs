//! A file for each group of methods. A handler converts, asks, and converts back.

mod cache;
mod config;
mod daemon;
mod events;
mod job;
mod machine;
mod metrics;
mod orbstack;
mod queue;
mod run;
mod session;
mod unknown_form;

use std::sync::Arc;
use std::time::Duration;

use super::convert;
use super::errors::ErrorKind;
use super::server::{Caller, Registry, Server};
use super::types::{ChangeAnswer, ErrorObject, JobOptions};
use crate::dispatcher::{Executor, Job, JobState, ObservedAnswer, Submission};
use crate::job::{JobId, Outcome};
use crate::machine::{MachineId, MachineName};
use crate::operation::{MachineRef, Operation, Query};

/// Adds every method.
pub(super) fn register(registry: &mut Registry) {
    cache::register(registry);
    config::register(registry);
    daemon::register(registry);
    events::register(registry);
    job::register(registry);
    machine::register(registry);
    metrics::register(registry);
    orbstack::register(registry);
    queue::register(registry);
    run::register(registry);
    session::register(registry);
}

/// A machine that a caller named, by the name that its lane has.
struct Resolved {
    name: MachineName,
    /// The id, when it was named by that; checked again before anything is done.
    id: Option<MachineId>,
}

/// Turns what a caller named into a name. Only a text that is shaped like an id costs a look at the list.
async fn resolve(server: &Server, caller: &Caller, field: &str, text: &str) -> Result<Resolved, ErrorObject> {
    let (id, name) = match convert::machine_ref(field, text)? {
        MachineRef::Name(name) => return Ok(Resolved { name, id: None }),
        MachineRef::IdOrName(id, name) => (id, name),
    };
    let seen = read(server, caller, Query::List, None).await?;
    let machines = seen.value.machines().unwrap_or_default();
    if machines.iter().any(|machine| machine.name == name) {
        return Ok(Resolved { name, id: None });
    }
    if let Some(machine) = machines.iter().find(|machine| machine.id == id) {
        return Ok(Resolved {
            name: machine.name.clone(),
            id: Some(id),
        });
    }
    let mut data = ErrorKind::MachineNotFound.data();
    data.machine = Some(text.to_owned());
    Err(ErrorKind::MachineNotFound.with(format!("no machine has the id or name {text}"), data))
}

/// Reads facts.
async fn read(
    server: &Server,
    caller: &Caller,
    query: Query,
    max_age_ms: Option<u64>,
) -> Result<ObservedAnswer, ErrorObject> {
    let operation = Operation::Query(query.clone());
    server
        .dispatcher
        .read(query, max_age_ms.map(Duration::from_millis), caller.client()?)
        .await
        .map_err(|error| convert::read_error(&error, &operation))
}

/// Hands in an operation.
async fn submit(
    server: &Server,
    caller: &Caller,
    operation: Operation,
    expected_id: Option<MachineId>,
    options: JobOptions,
) -> Result<Job, ErrorObject> {
    let submission = Submission {
        operation,
        client: caller.client()?,
        executor: Executor::Daemon,
        expected_id,
        detached: options.detach,
        queue_timeout: convert::timeout("queue_timeout_ms", options.queue_timeout_ms)?,
        run_timeout: convert::timeout("run_timeout_ms", options.run_timeout_ms)?,
    };
    server
        .dispatcher
        .submit(submission)
        .await
        .map_err(|rejection| convert::rejection(&rejection))
}

/// Waits for a job's end.
async fn end(job: &mut Job) -> Result<JobState, ErrorObject> {
    match job.state.wait_for(JobState::is_ended).await {
        Ok(state) => Ok(state.clone()),
        Err(_) => Err(convert::rejection(&crate::dispatcher::Rejection::Stopping)),
    }
}

/// Hands in a change and answers it: at its end, or at once when detached.
async fn change(
    server: Arc<Server>,
    caller: Caller,
    operation: Operation,
    expected_id: Option<MachineId>,
    options: JobOptions,
) -> Result<ChangeAnswer, ErrorObject> {
    let mut job = submit(&server, &caller, operation, expected_id, options).await?;
    let state = if options.detach {
        job.state.borrow().clone()
    } else {
        end(&mut job).await?
    };
    if !options.detach {
        ended_well(&job, &state)?;
    }
    Ok(convert::change_answer(job.spec.id, &job.spec.accepted, &state))
}

/// Passes a success, and turns any other end into the error that it is.
fn ended_well(job: &Job, state: &JobState) -> Result<(), ErrorObject> {
    match state {
        JobState::Ended {
            outcome: Outcome::Succeeded(_),
            ..
        }
        | JobState::Waiting
        | JobState::Running { .. } => Ok(()),
        JobState::Ended { outcome, holder, .. } => Err(convert::outcome_error(
            outcome,
            job.spec.id,
            &job.spec.asked.operation,
            holder.as_ref(),
        )),
    }
}

/// Makes the error for a job that nobody remembers.
fn no_such_job(id: JobId) -> ErrorObject {
    let mut data = ErrorKind::JobNotFound.data();
    data.job_id = Some(id.0);
    ErrorKind::JobNotFound.with(
        format!("no job {id}: it never was, or it ended too long ago to be kept"),
        data,
    )
}

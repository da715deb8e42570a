//! The handlers of all methods, one file per group. A handler parses the parameters, calls the dispatcher and converts the answer.

mod cache;
mod config;
mod daemon;
mod events;
mod job;
mod lease;
mod machine;
mod metrics;
mod orbstack;
mod queue;
mod run;
mod unknown_form;

use std::sync::Arc;
use std::time::Duration;

use super::convert;
use super::registry::{Caller, Registry, Server};
use crate::dispatcher::{Executor, Job, JobState, ObservedAnswer, Submission};
use crate::job::{JobId, Outcome};
use crate::machine::{MachineId, MachineName};
use crate::operation::{MachineRef, Operation, Query};
use orbd_proto::errors::ErrorKind;
use orbd_proto::types::{ChangeAnswer, ErrorObject, JobOptions};

/// Registers all methods.
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
    lease::register(registry);
}

/// A machine that a caller named, by name or id.
struct Resolved {
    name: MachineName,
    /// The id, if the caller used it. It is checked again before the operation starts.
    id: Option<MachineId>,
}

/// Resolves a name or id to a name. Only text in the form of an id requires the machine list.
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
    Err(ErrorKind::MachineNotFound.with(format!("machine '{text}' not found (no such name or id)"), data))
}

/// Reads from the cache or from `orbctl`.
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

/// Submits an operation as a job.
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

/// Waits for the end of a job.
async fn end(job: &mut Job) -> Result<JobState, ErrorObject> {
    match job.state.wait_for(JobState::is_ended).await {
        Ok(state) => Ok(state.clone()),
        Err(_) => Err(convert::rejection(&crate::dispatcher::Rejection::Stopping)),
    }
}

/// Submits a change and returns its answer: when the job has ended, or at once if it is detached.
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

/// Returns the error for a job that ended without success; `Ok` for all others.
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
            &job.spec.submission.operation,
            holder.as_ref(),
        )),
    }
}

/// Returns the error for an unknown or expired job.
fn no_such_job(id: JobId) -> ErrorObject {
    let mut data = ErrorKind::JobNotFound.data();
    data.job_id = Some(id.0);
    ErrorKind::JobNotFound.with(
        format!("job {id} not found (unknown id, or expired from history)"),
        data,
    )
}

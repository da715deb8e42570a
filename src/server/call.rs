//! A call of a method, and what handlers do with it: read, resolve names, submit jobs and wait for them.

use std::sync::Arc;
use std::time::Duration;

use jsonrpsee::Extensions;

use super::connection::Connection;
use super::context::Server;
use super::jobs::{Progress, progress};
use super::{convert, errors};
use crate::clock::Moment;
use crate::dispatcher::{
    Client, Executor, Job, JobState, JobView, ObservedAnswer, Read, Rejection, Submission,
};
use crate::job::{JobId, Outcome, Success};
use crate::operation::{Action, Change, MachineRef};
use orbd_host::machine::{MachineId, MachineName};
use orbd_proto::errors::ErrorKind;
use orbd_proto::types::{ChangeAnswer, ErrorObject, JobOptions, Observed};

/// One call of a method: the state of the server and the connection of the caller.
pub(super) struct Call {
    pub(super) server: Arc<Server>,
    pub(super) connection: Arc<Connection>,
}

impl Call {
    pub(super) fn new(server: Arc<Server>, extensions: &Extensions) -> Result<Self, ErrorObject> {
        let connection = extensions.get::<Arc<Connection>>().cloned();
        Ok(Self {
            server,
            connection: connection.ok_or_else(|| errors::internal("a call has no connection"))?,
        })
    }

    /// Returns the client, as the dispatcher identifies it.
    pub(super) fn client(&self) -> Client {
        Client {
            id: self.connection.client(),
            connection: self.connection.id().0,
            gone: self.connection.gone().clone(),
            name: self.connection.name(),
            pid: self.connection.pid(),
            uid: self.connection.uid(),
        }
    }

    /// Resolves a name or id to a name. Only text in the form of an id requires the machine list.
    pub(super) async fn resolve(&self, field: &str, text: &str) -> Result<Resolved, ErrorObject> {
        let (id, name) = match convert::machine_ref(field, text)? {
            MachineRef::Name(name) => return Ok(Resolved { name, id: None }),
            MachineRef::IdOrName(id, name) => (id, name),
        };
        let resolved = self.read(Read::list(), None, |machines, _| {
            if machines.iter().any(|machine| machine.name == name) {
                return Some(Resolved { name, id: None });
            }
            let machine = machines.iter().find(|machine| machine.id == id)?;
            Some(Resolved {
                name: machine.name.clone(),
                id: Some(id),
            })
        });
        resolved.await?.ok_or_else(|| {
            let mut data = ErrorKind::MachineNotFound.data();
            data.machine = Some(text.to_owned());
            ErrorKind::MachineNotFound.with(format!("machine '{text}' not found (no such name or id)"), data)
        })
    }

    /// Reads from the cache or from `orbctl`.
    pub(super) async fn observe<A>(
        &self,
        read: &Read<A>,
        max_age_ms: Option<u64>,
    ) -> Result<ObservedAnswer, ErrorObject> {
        self.server
            .dispatcher
            .read(
                read.query.clone(),
                max_age_ms.map(Duration::from_millis),
                self.client(),
            )
            .await
            .map_err(|error| errors::read_error(&error, &read.query))
    }

    /// Reads from the cache or from `orbctl`, and converts the answer.
    pub(super) async fn read<A, T>(
        &self,
        read: Read<A>,
        max_age_ms: Option<u64>,
        convert: impl FnOnce(&A, Observed) -> T,
    ) -> Result<T, ErrorObject> {
        let seen = self.observe(&read, max_age_ms).await?;
        let answer = read
            .answer(&seen)
            .ok_or_else(|| errors::internal("the answer of a read has an unexpected type"))?;
        Ok(convert(answer, convert::observed(&seen, &Moment::now())))
    }

    /// Returns the job with this id, or the error that there is none.
    pub(super) async fn job(&self, id: JobId) -> Result<Job, ErrorObject> {
        let job = self.server.dispatcher.job(id).await;
        job.ok_or_else(|| no_such_job(id))
    }

    /// Describes a job. If it has expired from history by now, its handle still has the result.
    pub(super) async fn view(&self, job: &Job) -> JobView {
        let view = self.server.dispatcher.view(job.spec.id).await;
        view.unwrap_or_else(|| job.view())
    }

    /// Submits an action as a job.
    pub(super) async fn submit(
        &self,
        action: Action,
        expected_id: Option<MachineId>,
        options: JobOptions,
    ) -> Result<Job, ErrorObject> {
        let submission = Submission {
            executor: Executor::Daemon(action),
            client: self.client(),
            expected_id,
            detached: options.detach,
            queue_timeout: convert::timeout("queue_timeout_ms", options.queue_timeout_ms)?,
            run_timeout: convert::timeout("run_timeout_ms", options.run_timeout_ms)?,
            label: convert::label(options.label)?,
        };
        self.server
            .dispatcher
            .submit(submission)
            .await
            .map_err(|rejection| errors::rejection(&rejection))
    }

    /// Submits a change and returns its answer: when the job has ended, or at once if it is detached.
    pub(super) async fn change(
        &self,
        change: Change,
        expected_id: Option<MachineId>,
        options: JobOptions,
    ) -> Result<ChangeAnswer, ErrorObject> {
        let detach = options.detach;
        let mut job = self.submit(Action::Change(change), expected_id, options).await?;
        let state = if detach {
            job.state.borrow().clone()
        } else {
            end(&mut job).await?
        };
        if !detach {
            ended_well(&job, &state)?;
        }
        Ok(change_answer(job.spec.id, &job.spec.accepted, &state))
    }
}

/// A machine that a caller named, by name or id.
pub(super) struct Resolved {
    pub(super) name: MachineName,
    /// The id, if the caller used it. It is checked again before the operation starts.
    pub(super) id: Option<MachineId>,
}

/// Waits for the end of a job.
pub(super) async fn end(job: &mut Job) -> Result<JobState, ErrorObject> {
    match job.state.wait_for(JobState::is_ended).await {
        Ok(state) => Ok(state.clone()),
        Err(_) => Err(errors::rejection(&Rejection::Stopping)),
    }
}

/// Returns the error for a job that ended without success; `Ok` for all others.
pub(super) fn ended_well(job: &Job, state: &JobState) -> Result<(), ErrorObject> {
    match state {
        JobState::Ended {
            outcome: Outcome::Succeeded(_),
            ..
        }
        | JobState::Waiting
        | JobState::Running { .. } => Ok(()),
        JobState::Ended { outcome, holder, .. } => Err(errors::outcome_error(
            outcome,
            job.spec.id,
            &job.spec.info,
            holder.as_ref(),
        )),
    }
}

/// Returns the error for an unknown or expired job.
pub(super) fn no_such_job(id: JobId) -> ErrorObject {
    let mut data = ErrorKind::JobNotFound.data();
    data.job_id = Some(id.0);
    ErrorKind::JobNotFound.with(
        format!("job {id} not found (unknown id, or expired from history)"),
        data,
    )
}

/// Builds the answer of a change from the job's current state.
fn change_answer(id: JobId, accepted: &Moment, state: &JobState) -> ChangeAnswer {
    let (changed, warning) = match state {
        JobState::Ended {
            outcome: Outcome::Succeeded(Success::Change { changed }),
            ..
        } => (Some(*changed), None),
        JobState::Ended {
            outcome: Outcome::Succeeded(Success::Observed { changed, warning }),
            ..
        } => (*changed, Some(warning.to_string())),
        _ => (None, None),
    };
    let Progress {
        state,
        wait_us,
        run_us,
    } = progress(accepted, state);
    ChangeAnswer {
        job_id: id.0,
        state,
        changed,
        warning,
        wait_us,
        run_us,
    }
}

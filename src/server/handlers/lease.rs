//! `lease.*`: jobs that a process of the client carries out.
//!
//! Files and terminals of the Mac belong to the client: a launchd agent may not open the user's files and has no terminal. The client's
//! child waits for the answer of `lease.acquire` before it executes `orbctl`. The lanes are free when the child has exited, even if the
//! client or the daemon exited first. The arguments of `orbctl` stay with the client; the daemon gets only what it needs to choose the
//! lanes.

use super::{raw_read, unknown_form};
use crate::dispatcher::{
    Client, Executor, Job, JobSpec, JobState, LeaseProcesses, Read, Rejection, Released, Submission,
};
use crate::job::{Ending, JobId};
use crate::operation::{Force, JobInfo, Verb};
use crate::server::call::{Call, Resolved, end, ended_well};
use crate::server::convert::{self, force, parse};
use crate::server::registry::Registry;
use crate::server::{errors, jobs};
use crate::sys::{self, ChildIdentity};
use orbd_host::machine::MachineName;
use orbd_proto::errors::{ErrorKind, invalid};
use orbd_proto::methods::{LeaseAcquire, LeaseRead, LeaseRelease};
use orbd_proto::types::{
    self, ErrorObject, LeaseAnswer, LeaseOperation, LeaseParams, ReleaseAnswer, ReleaseParams,
};

/// Maximum number of machines of one lease.
const MACHINES_MAX: usize = 256;

pub(super) fn register(registry: &mut Registry) {
    registry.method::<LeaseAcquire, _, _>(async |call, params| {
        let options = params.options();
        if options.detach {
            return Err(invalid(
                "detach",
                "not accepted by lease.acquire: a lease is always attached",
            ));
        }
        let Some(orbctl) = (call.server.orbctl)() else {
            return Err(ErrorKind::OrbctlUnavailable
                .error("orbctl not found; install OrbStack, or set `orbctl` in orbd's configuration"));
        };
        let client = call.client();
        // Identified first: resolving machines may take a while, and process ids are reused.
        let owner = owner(&client)?;
        let child = process(params.pid, client.uid)?;
        let subject = subject(&call, &params).await?;
        let submission = Submission {
            executor: Executor::Client(subject.info, LeaseProcesses { child, owner }),
            client,
            // Ids are checked below, before the answer is sent, because the dispatcher starts a lease without checking them.
            expected_id: None,
            detached: false,
            queue_timeout: convert::timeout("queue_timeout_ms", options.queue_timeout_ms)?,
            run_timeout: convert::timeout("run_timeout_ms", options.run_timeout_ms)?,
            label: convert::label(options.label)?,
        };
        let mut job = call
            .server
            .dispatcher
            .submit(submission)
            .await
            .map_err(|rejection| errors::rejection(&rejection))?;
        started(&mut job).await?;
        if let Err(error) = still_named(&call, &subject.machines).await {
            call.server.dispatcher.cancel(job.spec.id).await;
            return Err(error);
        }
        // The job holds its lanes, so no command can open another one.
        if let Some(scope) = job.spec.info.disturbs() {
            call.server.dispatcher.close_channels(scope).await;
        }
        Ok(LeaseAnswer {
            job_id: job.spec.id.0,
            orbctl: orbctl.display().to_string(),
            marker: call.server.dispatcher.marker(&job.spec),
            machine_names: subject
                .machines
                .iter()
                .map(|machine| machine.name.to_string())
                .collect(),
        })
    });
    registry.method::<LeaseRead, _, _>(async |call, params| {
        let raw = Read::raw(raw_read::raw_query(&params.read)?);
        call.read(raw, params.max_age_ms, raw_read::raw_output).await
    });
    registry.method::<LeaseRelease, _, _>(async |call, params| {
        let id = JobId(params.job_id);
        let ending = ending(&params)?;
        let mut job = call.job(id).await?;
        if job.spec.lease.is_none() {
            return Err(invalid("job_id", "that job is not a lease"));
        }
        let released = call.server.dispatcher.release(id, ending).await;
        // The owner may have to exit within a deadline, and reconciliation may take minutes.
        if !released.as_ref().is_some_and(|released| released.is_reconciling) {
            end(&mut job).await?;
        }
        let view = call.view(&job).await;
        Ok(ReleaseAnswer {
            job: jobs::job(&view),
            signalled: released.and_then(|released| signalled(&released, &job.spec)),
        })
    });
}

/// Identifies the calling process, the owner of the lease. orbd ends the child of a lease whose owner has exited.
fn owner(client: &Client) -> Result<ChildIdentity, ErrorObject> {
    let Some(pid) = client.pid else {
        let why = "the system does not report the calling process, so orbd could not detect its exit";
        return Err(invalid("pid", why));
    };
    let started = sys::process_identity(pid);
    // The id cannot have been reused: the caller waits for this answer.
    let started = started.ok_or_else(|| errors::rejection(&Rejection::ClientGone))?;
    Ok(ChildIdentity { pid, started })
}

/// Identifies the child of a lease: a running process of the caller's user.
fn process(pid: u32, uid: u32) -> Result<ChildIdentity, ErrorObject> {
    match pid {
        0 => {
            return Err(invalid(
                "pid",
                "must not be 0; pass the id of the process that will run orbctl",
            ));
        }
        1 => {
            return Err(invalid(
                "pid",
                "must not be 1, the system's first process; pass the id of the process that will run orbctl",
            ));
        }
        own if own == std::process::id() => {
            return Err(invalid(
                "pid",
                "must not be orbd itself; pass the id of the process that will run orbctl",
            ));
        }
        _ => {}
    }
    let missing = || invalid("pid", "no such process");
    let identity = ChildIdentity {
        pid,
        started: sys::process_identity(pid).ok_or_else(missing)?,
    };
    if sys::process_owner(pid).ok_or_else(missing)? != uid {
        return Err(invalid("pid", "that process belongs to another user"));
    }
    // Checked last, so that all the checks apply to the same process.
    if sys::is_alive(&identity) {
        Ok(identity)
    } else {
        Err(missing())
    }
}

/// The job of a lease and the machines to pass to `orbctl`.
struct Subject {
    info: JobInfo,
    machines: Vec<Resolved>,
}

/// Rejects a parameter that the operation does not accept.
fn check_parameters(params: &LeaseParams) -> Result<(), ErrorObject> {
    use LeaseOperation as L;
    let operation = params.operation;
    let takes_several = matches!(operation, L::Start | L::Stop | L::Restart | L::Delete);
    let takes_new_name = matches!(operation, L::Rename | L::Clone);
    let takes_force = matches!(
        operation,
        L::Stop | L::StopAll | L::StartOrbstack | L::StopOrbstack
    );
    let takes_machine = !matches!(
        operation,
        L::ConfigSet
            | L::ConfigReset
            | L::StartAll
            | L::StopAll
            | L::RestartAll
            | L::StartOrbstack
            | L::StopOrbstack
            | L::RestartOrbstack
            | L::UpdateOrbstack
            | L::ResetOrbstack
            | L::Read
            | L::RunOrChange
    );
    raw_read::only_what_belongs(
        "operation",
        [
            ("machine", params.machine.is_some(), takes_machine),
            ("machine_names", !params.machine_names.is_empty(), takes_several),
            ("new_name", params.new_name.is_some(), takes_new_name),
            ("force", params.force, takes_force),
            ("read", params.read.is_some(), operation == L::Read),
            (
                "unknown_form",
                params.unknown_form.is_some(),
                unknown_form::is_taken_by(operation),
            ),
        ],
    )
}

/// Determines the operation and machines from the parameters.
async fn subject(call: &Call, params: &LeaseParams) -> Result<Subject, ErrorObject> {
    use LeaseOperation as L;
    check_parameters(params)?;
    if let Some(form) = &params.unknown_form {
        let (info, machines) = unknown_form::subject(call, params, form).await?;
        return Ok(Subject { info, machines });
    }
    let force = force(params.force);
    match params.operation {
        L::Push => in_machine(call, params, Verb::Push).await,
        L::Pull => in_machine(call, params, Verb::Pull).await,
        L::Run => in_machine(call, params, Verb::Run).await,
        L::Shell => in_machine(call, params, Verb::Shell).await,
        L::Logs => one(call, params, Verb::Logs, Force::No).await,
        L::Export => one(call, params, Verb::Export, Force::No).await,
        L::Import => new(params, Verb::Import),
        L::Create => new(params, Verb::Create),
        L::Start => several(call, params, Verb::Start, Force::No).await,
        L::Stop => several(call, params, Verb::Stop, force).await,
        L::Restart => several(call, params, Verb::Restart, Force::No).await,
        L::Delete => several(call, params, Verb::Delete, Force::No).await,
        L::Rename => renamed(call, params, Verb::Rename).await,
        L::Clone => renamed(call, params, Verb::Clone).await,
        L::SetDefault if params.machine.is_none() => Ok(Subject::of(Verb::SetDefault, Force::No)),
        L::SetDefault => one(call, params, Verb::SetDefault, Force::No).await,
        L::ConfigSet => Ok(Subject::of(Verb::ConfigSet, Force::No)),
        L::ConfigReset => Ok(Subject::of(Verb::ConfigReset, Force::No)),
        L::StartAll => Ok(Subject::of(Verb::StartAll, Force::No)),
        L::StopAll => Ok(Subject::of(Verb::StopAll, force)),
        L::RestartAll => Ok(Subject::of(Verb::RestartAll, Force::No)),
        L::StartOrbstack => Ok(Subject::of(Verb::StartOrbstack, force)),
        L::StopOrbstack => Ok(Subject::of(Verb::StopOrbstack, force)),
        L::RestartOrbstack => Ok(Subject::of(Verb::RestartOrbstack, Force::No)),
        L::UpdateOrbstack => Ok(Subject::of(Verb::UpdateOrbstack, Force::No)),
        L::ResetOrbstack => Ok(Subject::of(Verb::ResetOrbstack, Force::No)),
        L::Read => {
            let read = params
                .read
                .as_ref()
                .ok_or_else(|| invalid("read", "required by this operation"))?;
            // A session with a machine waits for a running change of it; a read must not wait, so it has none.
            Ok(Subject::of(
                raw_read::raw_query(read)?.subject().verb(),
                Force::No,
            ))
        }
        L::RunOrChange | L::Other => {
            let form = types::UnknownForm::default();
            let (info, machines) = unknown_form::subject(call, params, &form).await?;
            Ok(Subject { info, machines })
        }
    }
}

impl Subject {
    /// An operation on these machines.
    fn on(verb: Verb, machines: Vec<Resolved>, force: Force) -> Self {
        let names = machines.iter().map(|machine| machine.name.clone()).collect();
        Self {
            info: JobInfo::lease(verb, names, force),
            machines,
        }
    }

    /// An operation without machines.
    fn of(verb: Verb, force: Force) -> Self {
        Self::on(verb, Vec::new(), force)
    }
}

fn given<'a>(field: &str, text: Option<&'a String>) -> Result<&'a String, ErrorObject> {
    text.ok_or_else(|| invalid(field, "required by this operation"))
}

/// An operation on the machine in `machine`.
async fn one(call: &Call, params: &LeaseParams, verb: Verb, force: Force) -> Result<Subject, ErrorObject> {
    let text = given("machine", params.machine.as_ref())?;
    let machine = call.resolve("machine", text).await?;
    Ok(Subject::on(verb, vec![machine], force))
}

/// An operation in the machine in `machine`, or in the default machine.
async fn in_machine(call: &Call, params: &LeaseParams, verb: Verb) -> Result<Subject, ErrorObject> {
    if params.machine.is_some() {
        return one(call, params, verb, Force::No).await;
    }
    // Read now, because `orbctl` will use the current default machine. A session takes no lane, so a cached value suffices to describe it.
    let max_age_ms = (params.operation != LeaseOperation::Shell).then_some(0);
    let default = Read::default_machine();
    let name = call.read(default, max_age_ms, |name, _| name.clone()).await?;
    let name = name.ok_or_else(|| invalid("machine", "required: there is no default machine"))?;
    Ok(Subject::on(verb, vec![Resolved { name, id: None }], Force::No))
}

/// An operation that creates the machine in `machine`.
fn new(params: &LeaseParams, verb: Verb) -> Result<Subject, ErrorObject> {
    let name: MachineName = parse("machine", given("machine", params.machine.as_ref())?)?;
    Ok(Subject::on(verb, vec![Resolved { name, id: None }], Force::No))
}

/// An operation on each machine in `machine_names`.
async fn several(
    call: &Call,
    params: &LeaseParams,
    verb: Verb,
    force: Force,
) -> Result<Subject, ErrorObject> {
    match (&params.machine, params.machine_names.len()) {
        (_, 0) => return one(call, params, verb, force).await,
        (Some(_), _) => {
            return Err(invalid(
                "machine_names",
                "give at most one of machine and machine_names",
            ));
        }
        (None, count) if count > MACHINES_MAX => {
            return Err(invalid(
                "machine_names",
                format!("must have at most {MACHINES_MAX} entries"),
            ));
        }
        (None, _) => {}
    }
    let mut machines: Vec<Resolved> = Vec::with_capacity(params.machine_names.len());
    for text in &params.machine_names {
        machines.push(call.resolve("machine_names", text).await?);
    }
    Ok(Subject::on(verb, machines, force))
}

/// An operation on `machine` that also takes `new_name`.
async fn renamed(call: &Call, params: &LeaseParams, verb: Verb) -> Result<Subject, ErrorObject> {
    let name: MachineName = parse("new_name", given("new_name", params.new_name.as_ref())?)?;
    let text = given("machine", params.machine.as_ref())?;
    let machine = call.resolve("machine", text).await?;
    Ok(Subject::on(
        verb,
        vec![machine, Resolved { name, id: None }],
        Force::No,
    ))
}

/// Waits until the lease has been granted.
async fn started(job: &mut Job) -> Result<(), ErrorObject> {
    let state = match job
        .state
        .wait_for(|state| !matches!(state, JobState::Waiting))
        .await
    {
        Ok(state) => state.clone(),
        Err(_) => return Err(errors::internal("the dispatcher has stopped")),
    };
    ended_well(job, &state)
}

/// Checks that the ids still belong to the machines whose lanes are held. A machine may have been renamed while the lease waited.
async fn still_named(call: &Call, machines: &[Resolved]) -> Result<(), ErrorObject> {
    if machines.iter().all(|machine| machine.id.is_none()) {
        return Ok(());
    }
    let renamed = call
        .read(Read::list(), Some(0), |known, _| {
            machines.iter().find_map(|machine| {
                let id = machine.id.as_ref()?;
                let is_named = known
                    .iter()
                    .any(|seen| seen.id == *id && seen.name == machine.name);
                (!is_named).then_some((id, &machine.name))
            })
        })
        .await?;
    let Some((id, name)) = renamed else {
        return Ok(());
    };
    let mut data = ErrorKind::MachineNotFound.data();
    data.machine = Some(id.to_string());
    let text = format!("the machine with id {id} is no longer named '{name}'");
    Err(ErrorKind::MachineNotFound.with(text, data))
}

/// Parses how the child ended.
fn ending(params: &ReleaseParams) -> Result<Option<Ending>, ErrorObject> {
    match (params.exit_code, params.signal) {
        (None, None) => Ok(None),
        (Some(code), None) => Ok(Some(Ending::Exited(code))),
        (None, Some(signal @ 1..=127)) => Ok(Some(Ending::Signalled(signal))),
        (None, Some(_)) => Err(invalid("signal", "must be from 1 to 127")),
        (Some(_), Some(_)) => Err(invalid("signal", "give at most one of exit_code and signal")),
    }
}

/// Returns the error that says why orbd signalled the child of a lease; `None` if it did not.
fn signalled(released: &Released, spec: &JobSpec) -> Option<ErrorObject> {
    let holder = released.preempted_by.as_ref();
    let outcome = released.signalled.as_ref()?;
    Some(errors::outcome_error(outcome, spec.id, &spec.info, holder))
}

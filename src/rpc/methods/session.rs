//! `session.*`: places in the queue that a client uses itself.
//!
//! Files on the Mac are opened by the client, because a launchd agent lacks the rights that a terminal has. The client's process
//! waits for our answer before it runs the real tool; the place is free when that process is gone, whoever else died.

use std::path::PathBuf;

use crate::dispatcher::{Carrier, JobState, Submission};
use crate::job::JobId;
use crate::operation::Operation;
use crate::rpc::api::{SessionLease, SessionRelease};
use crate::rpc::convert::{self, parse};
use crate::rpc::errors::{ErrorKind, invalid};
use crate::rpc::server::Registry;
use crate::rpc::types::{JobAnswer, LeaseAnswer, LeaseOperation};
use crate::sys::{self, ChildIdentity};

use super::{ended_well, no_such_job, resolve};

pub(super) fn register(registry: &mut Registry) {
    registry.method::<SessionLease, _, _>(async |server, params, caller| {
        let options = params.options();
        if options.detach {
            return Err(invalid("detach", "a lease belongs to its client"));
        }
        let Some(orbctl) = server.about.orbctl.as_ref() else {
            return Err(ErrorKind::OrbctlUnavailable
                .error("orbctl was not found; set `orbctl` in orbd's configuration"));
        };
        let started = sys::process_identity(params.pid).ok_or_else(|| invalid("pid", "no such process"))?;
        let identity = ChildIdentity {
            pid: params.pid,
            started,
        };
        // The paths stay with the client: the daemon opens none of them.
        let (operation, expected_id) = match params.operation {
            LeaseOperation::Import => (
                Operation::Import(parse("machine", &params.machine)?, PathBuf::new()),
                None,
            ),
            of_existing => {
                let machine = resolve(&server, &caller, "machine", &params.machine).await?;
                let operation = match of_existing {
                    LeaseOperation::Push => Operation::Push(machine.name),
                    LeaseOperation::Pull => Operation::Pull(machine.name),
                    LeaseOperation::Export | LeaseOperation::Import => {
                        Operation::Export(machine.name, PathBuf::new())
                    }
                };
                (operation, machine.id)
            }
        };
        let submission = Submission {
            operation,
            client: caller.client()?,
            carrier: Carrier::Lease(identity),
            expected_id,
            detached: false,
            priority: convert::priority(options.priority),
            queue_timeout: convert::timeout("queue_timeout_ms", options.queue_timeout_ms)?,
            run_timeout: convert::timeout("run_timeout_ms", options.run_timeout_ms)?,
        };
        let mut job = server
            .dispatcher
            .submit(submission)
            .await
            .map_err(|rejection| convert::rejection(&rejection))?;
        let state = match job
            .state
            .wait_for(|state| !matches!(state, JobState::Waiting))
            .await
        {
            Ok(state) => state.clone(),
            Err(_) => return Err(convert::internal("the dispatcher is gone")),
        };
        ended_well(&job, &state)?;
        Ok(LeaseAnswer {
            job_id: job.spec.id.0,
            orbctl: orbctl.display().to_string(),
        })
    });
    registry.method::<SessionRelease, _, _>(async |server, params, _caller| {
        let id = JobId(params.job_id);
        let mut job = server.dispatcher.job(id).await.ok_or_else(|| no_such_job(id))?;
        if !matches!(job.spec.carrier, Carrier::Lease(_)) {
            return Err(invalid("job_id", "is not a lease"));
        }
        server.dispatcher.release(id, params.exit_code).await;
        super::end(&mut job).await?;
        let view = server.dispatcher.view(id).await.unwrap_or_else(|| job.view());
        Ok(JobAnswer {
            job: convert::job(&view),
        })
    });
}

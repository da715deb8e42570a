//! Values for the unit tests of the dispatcher's parts.

use std::sync::Arc;

use crate::cache::{Generation, Source};
use crate::clock::Moment;
use crate::job::JobId;
use crate::operation::JobInfo;
use crate::sys::{ChildIdentity, StartTime};
use orbd_host::machine::{Image, Machine, MachineConfig, MachineState};

use super::answer::{CachedAnswer, ObservedAnswer, QueryAnswer};
use super::submission::{Client, Executor, JobSpec, LeaseProcesses, Submission};

/// Returns a running machine whose id depends on its name's first letter.
pub(super) fn machine(name: &str) -> Machine {
    let last = name[..1].to_uppercase();
    Machine {
        id: format!("01M4HXHNTVZXRXR1F5PV7GC8R{last}").parse().expect("an id"),
        name: name.parse().expect("a valid name"),
        state: MachineState::Running,
        image: Image::default(),
        config: MachineConfig::default(),
        builtin: false,
    }
}

/// Returns an attached job that was just accepted.
pub(super) fn spec(id: u64, info: JobInfo) -> JobSpec {
    JobSpec::without_client(JobId(id), info, "test", false, Moment::now())
}

/// Returns an attached job of a connection, as it is accepted from a client.
pub(super) fn job(id: u64, executor: &Executor, connection: u64) -> JobSpec {
    let submission = Submission {
        executor: executor.clone(),
        client: Client {
            connection,
            ..spec(id, executor.info()).client
        },
        expected_id: None,
        detached: false,
        queue_timeout: None,
        run_timeout: None,
        label: None,
    };
    JobSpec::new(JobId(id), Moment::now(), &submission)
}

/// Returns the processes of a lease.
pub(super) fn processes() -> LeaseProcesses {
    let identity = |pid| ChildIdentity {
        pid,
        started: StartTime { at: 1, boot: 1 },
    };
    LeaseProcesses {
        child: identity(7),
        owner: identity(6),
    }
}

/// Returns an answer that was observed just now.
pub(super) fn seen(answer: QueryAnswer) -> ObservedAnswer {
    ObservedAnswer {
        value: Arc::new(CachedAnswer::new(answer)),
        generation: Generation::default(),
        observed_at: Moment::now(),
        source: Source::List,
        stale: None,
    }
}

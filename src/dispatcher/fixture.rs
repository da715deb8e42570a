//! Values for the unit tests of the dispatcher's parts.

use std::sync::Arc;

use crate::cache::{Generation, Source};
use crate::clock::Moment;
use crate::job::JobId;
use crate::machine::{Image, Machine, MachineConfig, MachineState};
use crate::operation::JobInfo;

use super::answer::{CachedAnswer, ObservedAnswer, QueryAnswer};
use super::handle::JobSpec;

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

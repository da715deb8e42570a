//! Converts events to wire types, and requested event types from them.

use super::{job, machine, observed, outcome_word, time};
use crate::clock::Moment;
use crate::dispatcher::Snapshot;
use crate::events::{Event, JobFacts, Kind, SequencedEvent};
use crate::job::{Outcome, Success};
use crate::machine::{Machine, MachineName};
use crate::operation::Scope;
use orbd_proto::types::{self, EventDetails, EventKind};

/// Converts a requested event type.
pub(in crate::server) fn event_kind(kind: EventKind) -> Kind {
    match kind {
        EventKind::MachinesKnown => Kind::MachinesKnown,
        EventKind::MachineAppeared => Kind::MachineAppeared,
        EventKind::MachineChanged => Kind::MachineChanged,
        EventKind::MachineGone => Kind::MachineGone,
        EventKind::OrbstackChanged => Kind::OrbstackChanged,
        EventKind::JobQueued => Kind::JobQueued,
        EventKind::JobStarted => Kind::JobStarted,
        EventKind::JobEnded => Kind::JobEnded,
        EventKind::CacheInvalidated => Kind::CacheInvalidated,
        EventKind::OrbctlUnhealthy => Kind::OrbctlUnhealthy,
        EventKind::OrbctlRecovered => Kind::OrbctlRecovered,
    }
}

/// Converts an event.
pub(in crate::server) fn event(told: &SequencedEvent, instance: &str) -> types::Event {
    let what = match &told.event {
        Event::MachinesKnown { machines, generation } => EventDetails::MachinesKnown {
            machines: machines.iter().map(machine).collect(),
            generation: generation.get(),
        },
        Event::MachineAppeared {
            machine: it,
            generation,
        } => EventDetails::MachineAppeared {
            machine: machine(it),
            generation: generation.get(),
        },
        Event::MachineChanged {
            machine: it,
            renamed_from,
            generation,
        } => EventDetails::MachineChanged {
            machine: machine(it),
            renamed_from: renamed_from.as_ref().map(MachineName::to_string),
            generation: generation.get(),
        },
        Event::MachineGone {
            machine: it,
            generation,
        } => EventDetails::MachineGone {
            machine: machine(it),
            generation: generation.get(),
        },
        Event::OrbstackChanged { status, generation } => EventDetails::OrbstackChanged {
            status: status.as_str().into(),
            generation: generation.get(),
        },
        Event::JobQueued(answer) => EventDetails::JobQueued {
            job: event_job(answer),
        },
        Event::JobStarted(answer) => EventDetails::JobStarted {
            job: event_job(answer),
        },
        Event::JobEnded(answer, outcome) => EventDetails::JobEnded {
            job: event_job(answer),
            outcome: event_outcome(outcome),
            reason: match outcome {
                Outcome::Failed(failure) => Some(failure.to_string()),
                _ => None,
            },
        },
        Event::CacheInvalidated { scope, generation } => {
            let (scope, machines) = match scope {
                Scope::Machines(names) => ("machines", names.iter().map(MachineName::to_string).collect()),
                Scope::Configuration => ("configuration", Vec::new()),
                Scope::Everything => ("everything", Vec::new()),
            };
            EventDetails::CacheInvalidated {
                scope: scope.into(),
                machines,
                generation: generation.get(),
            }
        }
        Event::OrbctlUnhealthy { reason } => EventDetails::OrbctlUnhealthy {
            reason: reason.to_string(),
        },
        Event::OrbctlRecovered => EventDetails::OrbctlRecovered {},
    };
    types::Event {
        sequence: told.sequence,
        instance: instance.to_owned(),
        noticed_at: time(told.at.wall),
        what,
    }
}

/// Builds a `state` event from a snapshot.
pub(in crate::server) fn event_state(snapshot: &Snapshot, instance: &str) -> types::Event {
    let now = Moment::now();
    let machine_list = snapshot.machines.as_ref().map(|seen| {
        let machines: &[Machine] = seen.value.machines().unwrap_or_default();
        let mut seen = observed(seen, &now);
        if snapshot.machines_stale {
            seen.stale = true;
            seen.stale_reason = Some("something may have changed since; orbd has not polled yet".into());
        }
        types::MachineListAnswer {
            machines: machines.iter().map(machine).collect(),
            observed: seen,
        }
    });
    let state = types::EventState {
        machine_list,
        orbstack: snapshot.status.as_ref().map(|status| status.as_str().to_owned()),
        jobs: snapshot.jobs.iter().map(job).collect(),
        more_jobs: snapshot.more_jobs,
        unhealthy: snapshot.outage.as_ref().map(super::outage),
    };
    at_overview(snapshot, instance, EventDetails::State(Box::new(state)))
}

/// Builds a `gap` event.
pub(in crate::server) fn event_gap(
    snapshot: &Snapshot,
    instance: &str,
    reason: types::GapReason,
) -> types::Event {
    at_overview(snapshot, instance, EventDetails::Gap { reason })
}

fn at_overview(snapshot: &Snapshot, instance: &str, what: EventDetails) -> types::Event {
    types::Event {
        sequence: snapshot.sequence,
        instance: instance.to_owned(),
        noticed_at: time(snapshot.at.wall),
        what,
    }
}

fn event_job(answer: &JobFacts) -> types::EventJob {
    types::EventJob {
        job_id: answer.id.0,
        operation: answer.verb.into(),
        machine: answer.machine.as_ref().map(MachineName::to_string),
        client: answer.client.to_string(),
    }
}

fn event_outcome(outcome: &Outcome) -> types::Outcome {
    let (exit_code, changed, warning) = match outcome {
        Outcome::Succeeded(Success::Exec { exit_code }) => (Some(*exit_code), None, None),
        Outcome::Succeeded(Success::Change { changed }) => (None, Some(*changed), None),
        Outcome::Succeeded(Success::Observed { changed, warning }) => {
            (None, *changed, Some(warning.to_string()))
        }
        _ => (None, None, None),
    };
    types::Outcome {
        kind: outcome_word(outcome).into(),
        exit_code,
        changed,
        warning,
        error: None,
    }
}

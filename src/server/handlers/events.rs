//! `events.subscribe`.
//!
//! The state of a subscriber is the number of the last event that it was sent. It reads from the shared event log and waits for the log to
//! grow and for room on its own connection, never for another subscriber. A subscriber that falls behind the log gets a `gap` and the
//! current state.

use std::sync::Arc;

use serde_json::value::RawValue;

use crate::clock::Moment;
use crate::dispatcher::{self, Rejection, Snapshot};
use crate::events::{Event, Gap, JobFacts, SequencedEvent};
use crate::job::{Outcome, Success};
use crate::operation::Scope;
use crate::server::context::Server;
use crate::server::convert::{machine, observed, outage, outcome_word, time};
use crate::server::errors;
use crate::server::jobs::job;
use crate::server::notifier::{Notifier, Subscriber};
use crate::server::registry::Registry;
use orbd_host::machine::{Machine, MachineName};
use orbd_proto::methods::EventsSubscribe;
use orbd_proto::types::{self, EventDetails, EventKind, EventsSubscribeParams, GapReason};

/// Maximum number of events read from the log at once.
const BATCH_MAX: usize = 64;

pub(super) fn register(registry: &mut Registry) {
    registry.subscription::<EventsSubscribe, _, _>(async |call, params, subscriber| {
        let kinds = &params.kinds;
        let wants_polling = kinds.is_empty() || kinds.iter().copied().any(is_found_by_polling);
        let Some(subscription) = call.server.dispatcher.subscribe(wants_polling).await else {
            return subscriber.reject(errors::rejection(&Rejection::Stopping)).await;
        };
        let begin = begin(&call.server, &params);
        // Returns when the subscription ends or the dispatcher stops.
        let _ = tell(&call.server, subscription, kinds, begin, subscriber).await;
    });
}

/// Start of a subscription.
enum Begin {
    /// With the current state.
    Now,
    /// After the event with this number.
    After(u64),
    /// After an event of another instance.
    Elsewhere,
}

fn begin(server: &Server, params: &EventsSubscribeParams) -> Begin {
    let is_ours = params
        .instance
        .as_ref()
        .is_none_or(|instance| *instance == server.info.instance);
    match params.since {
        None => Begin::Now,
        Some(number) if is_ours => Begin::After(number),
        Some(_) => Begin::Elsewhere,
    }
}

/// Sends events until the subscription ends or the dispatcher stops.
async fn tell(
    server: &Server,
    mut subscription: dispatcher::Subscriber,
    kinds: &[EventKind],
    begin: Begin,
    subscriber: Subscriber,
) -> Option<()> {
    let notifier = subscriber.accept().await?;
    let mut last = match begin {
        Begin::Now => everything(server, &notifier, None).await?,
        Begin::After(number) => number,
        Begin::Elsewhere => everything(server, &notifier, Some(GapReason::OtherInstance)).await?,
    };
    loop {
        let (newest, since) = {
            let ring = subscription.events.borrow_and_update();
            (ring.last(), ring.since(last, BATCH_MAX))
        };
        match since {
            Ok(events) if events.is_empty() => {
                tokio::select! {
                    changed = subscription.events.changed() => changed.ok()?,
                    () = notifier.closed() => return None,
                }
            }
            Ok(events) => {
                for told in events {
                    last = told.sequence;
                    if kinds.is_empty() || kinds.contains(&kind_of(&told.event)) {
                        notifier.send(&encoded(&told, &server.info.instance)?).await?;
                    }
                }
            }
            Err(Gap) => {
                // This instance has not assigned that number yet, so another instance did.
                let reason = if last > newest {
                    GapReason::OtherInstance
                } else {
                    GapReason::NotKept
                };
                last = everything(server, &notifier, Some(reason)).await?;
            }
        }
    }
}

/// Sends the current state, after a `gap` if there is one. Returns the number of the last event that the state includes.
async fn everything(server: &Server, notifier: &Notifier, gap: Option<GapReason>) -> Option<u64> {
    let snapshot: Snapshot = server.dispatcher.snapshot().await?;
    let instance = &server.info.instance;
    if let Some(reason) = gap {
        notifier.send(&event_gap(&snapshot, instance, reason)).await?;
    }
    notifier.send(&event_state(&snapshot, instance)).await?;
    Some(snapshot.sequence)
}

/// Returns the event as sent on the wire. It is encoded once; each subscriber gets a copy of the text.
fn encoded<'a>(told: &'a Arc<SequencedEvent>, instance: &str) -> Option<&'a RawValue> {
    let text = told.encoded.get_or_init(|| {
        serde_json::to_string(&event(told, instance))
            .unwrap_or_default()
            .into()
    });
    // The text is borrowed and only checked, which costs less than encoding it again.
    serde_json::from_str(text).ok()
}

/// Returns the type of an event on the wire.
fn kind_of(event: &Event) -> EventKind {
    match event {
        Event::MachinesKnown { .. } => EventKind::MachinesKnown,
        Event::MachineAppeared { .. } => EventKind::MachineAppeared,
        Event::MachineChanged { .. } => EventKind::MachineChanged,
        Event::MachineGone { .. } => EventKind::MachineGone,
        Event::OrbstackChanged { .. } => EventKind::OrbstackChanged,
        Event::JobQueued(_) => EventKind::JobQueued,
        Event::JobStarted(_) => EventKind::JobStarted,
        Event::JobEnded(..) => EventKind::JobEnded,
        Event::CacheInvalidated { .. } => EventKind::CacheInvalidated,
        Event::OrbctlUnhealthy { .. } => EventKind::OrbctlUnhealthy,
        Event::OrbctlRecovered => EventKind::OrbctlRecovered,
    }
}

/// Returns whether orbd detects such events by polling. orbd polls only while a subscriber wants one of them.
fn is_found_by_polling(kind: EventKind) -> bool {
    match kind {
        EventKind::MachinesKnown
        | EventKind::MachineAppeared
        | EventKind::MachineChanged
        | EventKind::MachineGone
        | EventKind::OrbstackChanged => true,
        EventKind::JobQueued
        | EventKind::JobStarted
        | EventKind::JobEnded
        | EventKind::CacheInvalidated
        | EventKind::OrbctlUnhealthy
        | EventKind::OrbctlRecovered => false,
    }
}

fn event(told: &SequencedEvent, instance: &str) -> types::Event {
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
fn event_state(snapshot: &Snapshot, instance: &str) -> types::Event {
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
        unhealthy: snapshot.outage.as_ref().map(outage),
    };
    at_overview(snapshot, instance, EventDetails::State(Box::new(state)))
}

/// Builds a `gap` event.
fn event_gap(snapshot: &Snapshot, instance: &str, reason: GapReason) -> types::Event {
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
        label: answer.label.as_deref().map(str::to_owned),
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

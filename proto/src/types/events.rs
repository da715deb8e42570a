//! Events of `events.subscribe`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::{Job, Machine, MachineListAnswer, Outage, Outcome};

/// The `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// First list of machines since the daemon started.
    MachinesKnown,
    /// A new machine was observed.
    MachineAppeared,
    /// The state, name or settings of a machine changed.
    MachineChanged,
    /// A machine no longer exists.
    MachineGone,
    /// OrbStack's status changed.
    OrbstackChanged,
    /// A job was accepted.
    JobQueued,
    /// A job started.
    JobStarted,
    /// A job ended.
    JobEnded,
    /// Cached observations became stale.
    CacheInvalidated,
    /// `orbctl` became unhealthy.
    OrbctlUnhealthy,
    /// `orbctl` became healthy again.
    OrbctlRecovered,
}

/// Parameters of `events.subscribe`.
#[skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsSubscribeParams {
    /// `sequence` of the last event that the client processed; the subscription starts with the next one. If absent, it starts with the
    /// current state.
    pub since: Option<u64>,
    /// `instance` of the event that `since` numbers. If it is not the running daemon's, the subscription starts with a `gap`. Default: the
    /// running daemon's.
    pub instance: Option<String>,
    /// Only events of these types, plus `gap` and `state`, which are always sent. Default: all. While a client subscribes to events of
    /// machines or OrbStack, the daemon polls `orbctl` every few seconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<EventKind>,
}

/// An event. To resume after a disconnect, subscribe with its `sequence` as `since` and its `instance`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Number of the event, starting at 1 for each instance and increasing by 1. For `gap` and `state`, the number of the last event before
    /// it.
    pub sequence: u64,
    /// Id of the run of the daemon that numbered the event.
    pub instance: String,
    /// Time at which orbd detected what happened.
    #[schemars(extend("format" = "date-time"))]
    pub noticed_at: String,
    /// What happened, by `type`.
    #[serde(flatten)]
    pub what: EventDetails,
}

words! {
    /// `machines`: the machine list and the details of `machines`. `configuration`: OrbStack's configuration and the default machine.
    /// `everything`: all observations.
    InvalidatedScope ["machines", "configuration", "everything"];
}

/// What happened. New types may be added; ignore those that you do not know.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventDetails {
    /// Events were missed. A `state` event follows.
    Gap {
        /// Why events were missed.
        reason: GapReason,
    },
    /// The current state. It is the first event unless `since` was given, and follows each `gap`.
    State(Box<EventState>),
    /// The machines were listed for the first time since the daemon started.
    MachinesKnown {
        /// All machines, in `orbctl`'s order.
        machines: Vec<Machine>,
        /// Generation in which the read began.
        generation: u64,
    },
    /// A new machine was observed.
    MachineAppeared {
        /// The machine in its current state.
        machine: Machine,
        /// Generation in which the read began.
        generation: u64,
    },
    /// The state, name or settings of a machine changed. Machines are identified by id.
    MachineChanged {
        /// The machine in its current state.
        machine: Machine,
        /// Previous name of the machine; absent unless it was renamed.
        renamed_from: Option<String>,
        /// Generation in which the read began.
        generation: u64,
    },
    /// A machine no longer exists.
    MachineGone {
        /// The machine as last observed.
        machine: Machine,
        /// Generation in which the read began.
        generation: u64,
    },
    /// OrbStack's status changed, or was read for the first time. While OrbStack is not running, the machines stay as last observed.
    OrbstackChanged {
        /// `running`, `stopped`, or another status as `orbctl` reports it.
        status: String,
        /// Generation in which the read began.
        generation: u64,
    },
    /// A job was accepted. Jobs that read cause no events.
    JobQueued {
        /// The job.
        job: EventJob,
    },
    /// A job started.
    JobStarted {
        /// The job.
        job: EventJob,
    },
    /// A job ended.
    JobEnded {
        /// The job.
        job: EventJob,
        /// Result of the job without its error, which `job.get` returns.
        outcome: Outcome,
        /// Why the job failed; absent unless it failed.
        reason: Option<String>,
    },
    /// Cached observations became stale: a change started or ended, or a client called `cache.invalidate`.
    CacheInvalidated {
        /// `machines`: the machine list and the details of `machines`. `configuration`: OrbStack's configuration and the default machine.
        /// `everything`: all observations.
        #[schemars(with = "InvalidatedScope")]
        scope: String,
        /// Names of the machines; absent unless `scope` is `machines`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        machines: Vec<String>,
        /// The new generation.
        generation: u64,
    },
    /// `orbctl` became unhealthy: it fails whatever the command.
    OrbctlUnhealthy {
        /// What is wrong with `orbctl`.
        reason: String,
    },
    /// `orbctl` became healthy again.
    OrbctlRecovered {},
    /// A type of a later version. This version never sends it; clients read unknown types as this.
    #[serde(other)]
    #[schemars(skip)]
    Other,
}

/// Why events were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// Newer events have displaced the missed ones: the daemon stores a limited number.
    NotKept,
    /// The daemon was restarted, so its numbers start again at 1.
    OtherInstance,
}

/// The state after the event with the number `sequence`.
#[skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EventState {
    /// Machines as last observed, as `machine.list` returns them; absent until the machines have been listed once. `stale` is true if
    /// something may have changed since.
    pub machine_list: Option<MachineListAnswer>,
    /// OrbStack's status as last observed; absent until it has been read once.
    pub orbstack: Option<String>,
    /// Waiting and running jobs, oldest first, without reads.
    pub jobs: Vec<Job>,
    /// Whether newer jobs were left out.
    pub more_jobs: bool,
    /// Why `orbctl` is unhealthy, and since when; absent while it is healthy.
    pub unhealthy: Option<Outage>,
}

/// The job of an event.
#[skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventJob {
    /// Id of the job.
    pub job_id: u64,
    /// Operation, such as `start`.
    pub operation: String,
    /// Machine that the job is about; absent if there is none, or more than one.
    pub machine: Option<String>,
    /// Name of the client that submitted the job.
    pub client: String,
    /// Label that the client gave the job; absent if it gave none.
    pub label: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_event_type_is_read_as_other_and_keeps_its_sequence() {
        let event = r#"{"sequence":7,"instance":"1-2","noticed_at":"2026-01-02T03:04:05.678Z","type":"comet","tail":[1]}"#;
        let event: Event = serde_json::from_str(event).expect("it is an event");
        assert_eq!((event.sequence, event.instance.as_str()), (7, "1-2"));
        assert!(matches!(event.what, EventDetails::Other));
    }
}

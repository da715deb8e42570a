//! What subscribers are told.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Job, Machine, MachineListAnswer, Outage, Outcome};

/// What an event is about: its `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The list of machines became known.
    MachinesKnown,
    /// There is a new machine.
    MachineAppeared,
    /// A machine is not as it was.
    MachineChanged,
    /// A machine is not there any more.
    MachineGone,
    /// OrbStack itself is not as it was.
    OrbstackChanged,
    /// A job was accepted.
    JobQueued,
    /// A job runs.
    JobStarted,
    /// A job is over.
    JobEnded,
    /// What was known became stale.
    CacheInvalidated,
    /// `orbctl` does not work.
    OrbctlUnhealthy,
    /// `orbctl` works again.
    OrbctlRecovered,
}

/// Parameters of `events.subscribe`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsSubscribeParams {
    /// Number of the last event that the caller was told: only what came after it is told. Everything as it is where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Instance that `since` was told by; another one than the daemon's is a gap. The daemon's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Only events of these kinds, and in any case `gap` and `state`. All where empty. As long as somebody wants to be told of
    /// machines or of OrbStack, the daemon looks again every few seconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<EventKind>,
}

/// What a subscriber is told. Whoever remembers `sequence` and `instance` can go on there after a break.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Number of the event, one more than that of the event before it, from 1. Of `gap` and `state`: of the last event before it.
    pub sequence: u64,
    /// Instance that numbered it.
    pub instance: String,
    /// When it was noticed.
    #[schemars(extend("format" = "date-time"))]
    pub noticed_at: String,
    /// What happened.
    #[serde(flatten)]
    pub what: EventDetails,
}

/// What happened. Other types may be added; a reader passes over those that it does not know.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventDetails {
    /// Events were missed, and `state` follows.
    Gap {
        /// Why.
        reason: GapReason,
    },
    /// Everything as it is. Told first unless `since` was given, and after each gap.
    State(Box<EventState>),
    /// The list of machines was seen for the first time since the daemon started.
    MachinesKnown {
        /// Every machine, in `orbctl`'s order.
        machines: Vec<Machine>,
        /// Generation in which the look began.
        generation: u64,
    },
    /// There is a machine that was not there before.
    MachineAppeared {
        /// As it is now.
        machine: Machine,
        /// Generation in which the look began.
        generation: u64,
    },
    /// A machine is not as it was. It is the same one if its id is the same.
    MachineChanged {
        /// As it is now.
        machine: Machine,
        /// Its name before, if it has another now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        renamed_from: Option<String>,
        /// Generation in which the look began.
        generation: u64,
    },
    /// A machine is not there any more.
    MachineGone {
        /// As it was last seen.
        machine: Machine,
        /// Generation in which the look began.
        generation: u64,
    },
    /// OrbStack itself is not as it was, or was seen for the first time. While it does not run, machines are as they were last seen.
    OrbstackChanged {
        /// `running`, `stopped`, or another word of `orbctl`'s.
        status: String,
        /// Generation in which the look began.
        generation: u64,
    },
    /// A job was accepted. Reads are not told.
    JobQueued {
        /// Which.
        job: EventJob,
    },
    /// A job runs.
    JobStarted {
        /// Which.
        job: EventJob,
    },
    /// A job is over.
    JobEnded {
        /// Which.
        job: EventJob,
        /// How it ended, without its error: `job.get` tells that.
        outcome: Outcome,
        /// Why it failed, in one sentence.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// What was known became stale: at the start and the end of each change, and on request.
    CacheInvalidated {
        /// `machines`: the list, and what is known of `machines`; `configuration`; `everything`.
        #[schemars(extend("enum" = ["machines", "configuration", "everything"]))]
        scope: String,
        /// The machines.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        machines: Vec<String>,
        /// The generation that began with it.
        generation: u64,
    },
    /// `orbctl` itself does not work.
    OrbctlUnhealthy {
        /// What is wrong with it.
        reason: String,
    },
    /// `orbctl` works again.
    OrbctlRecovered {},
    /// Of a later version: never told by this one.
    #[serde(other)]
    #[schemars(skip)]
    Other,
}

/// Why events were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// So many came since then that they are no longer kept.
    NotKept,
    /// The daemon has been started anew since then.
    OtherInstance,
}

/// Everything as it was when the event with the number `sequence` was the last.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EventState {
    /// Machines as they were last seen, in the form of `machine.list`; absent until `machines_known`. `stale` says that
    /// something may have changed since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_list: Option<MachineListAnswer>,
    /// OrbStack's status as it was last seen; absent until `orbstack_changed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orbstack: Option<String>,
    /// Jobs that wait or run, oldest first; reads are not among them.
    pub jobs: Vec<Job>,
    /// Whether younger ones were left out.
    pub more_jobs: bool,
    /// What ails `orbctl`; absent while it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<Outage>,
}

/// A job, as far as events tell of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventJob {
    /// Its id.
    pub job_id: u64,
    /// Verb, as in `start`.
    pub operation: String,
    /// Machine that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Name of who asked.
    pub client: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_that_came_later_keeps_its_number_and_can_be_passed_over() {
        let event = r#"{"sequence":7,"instance":"1-2","noticed_at":"2026-01-02T03:04:05.678Z","type":"comet","tail":[1]}"#;
        let event: Event = serde_json::from_str(event).expect("it is an event");
        assert_eq!((event.sequence, event.instance.as_str()), (7, "1-2"));
        assert!(matches!(event.what, EventDetails::Other));
    }
}

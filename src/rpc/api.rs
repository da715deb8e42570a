//! Every method, once: its name, what it takes, what it answers, and one sentence on what it does.
//!
//! The server registers handlers for these types, the client calls through them and `proto/openrpc.json` is generated from
//! them, so none of the three can part from the others.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};

use super::types::{
    CacheInvalidateAnswer, CacheInvalidateParams, CacheStatusAnswer, ChangeAnswer, ChangeParams,
    ConfigAnswer, ConfigGetAnswer, ConfigGetParams, ConfigSetParams, CountersAnswer, DaemonInfoAnswer,
    DefaultAnswer, Done, Event, EventsSubscribeParams, ForceParams, HelloAnswer, HelloParams, JobAnswer,
    JobCancelAnswer, JobEvent, JobFollowParams, JobInputAnswer, JobInputParams, JobListAnswer, JobListParams,
    JobOutputAnswer, JobOutputParams, JobParams, JobWaitParams, LeaseAnswer, LeaseParams, LeaseReadParams,
    LogsParams, MachineCloneParams, MachineCreateParams, MachineForceParams, MachineInfoAnswer,
    MachineInfoParams, MachineListAnswer, MachineParams, MachineRenameParams, MetricsHistoryAnswer,
    MetricsHistoryParams, MetricsSummaryAnswer, MetricsSummaryParams, NoParams, QueueStatusAnswer,
    QueueTargetParams, RawOutputAnswer, ReadParams, ReleaseAnswer, ReleaseParams, ReloadAnswer, RunAnswer,
    RunParams, SetDefaultParams, StatusAnswer, TextAnswer, VersionAnswer,
};

/// Version of the protocol. A new required field or a changed meaning raises it; additions do not.
pub const PROTOCOL_VERSION: u32 = 1;

/// A request with one answer.
pub trait Method {
    /// Name on the wire.
    const NAME: &'static str;
    /// One sentence for the published description.
    const SUMMARY: &'static str;
    /// What it takes, by name.
    type Params: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    /// What it answers.
    type Answer: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
}

/// A request that is answered with a subscription's id, followed by notifications until one says that it is over.
pub trait Subscription {
    /// Name of the request on the wire.
    const NAME: &'static str;
    /// Method of the notifications.
    const NOTIFICATION: &'static str;
    /// Name of the request that ends it early.
    const UNSUBSCRIBE: &'static str;
    /// One sentence for the published description.
    const SUMMARY: &'static str;
    /// What it takes, by name.
    type Params: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    /// What each notification carries as `params.result`.
    type Event: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
}

/// A method or subscription as the published description tells it.
pub struct Description {
    /// Name on the wire.
    pub name: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Schema of the parameters.
    pub params: fn(&mut SchemaGenerator) -> Schema,
    /// Schema of the answer, or of a notification's `result`.
    pub answer: fn(&mut SchemaGenerator) -> Schema,
    /// For a subscription: the method of its notifications and the request that ends it.
    pub subscription: Option<(&'static str, &'static str)>,
}

macro_rules! methods {
    (
        methods { $($method:ident $name:literal ($params:ty) -> $answer:ty, $summary:literal;)* }
        subscriptions { $($sub:ident $sub_name:literal / $notification:literal / $unsubscribe:literal ($sub_params:ty) -> $event:ty, $sub_summary:literal;)* }
    ) => {
        $(
            #[doc = $summary]
            pub struct $method;

            impl Method for $method {
                const NAME: &'static str = $name;
                const SUMMARY: &'static str = $summary;
                type Params = $params;
                type Answer = $answer;
            }
        )*
        $(
            #[doc = $sub_summary]
            pub struct $sub;

            impl Subscription for $sub {
                const NAME: &'static str = $sub_name;
                const NOTIFICATION: &'static str = $notification;
                const UNSUBSCRIBE: &'static str = $unsubscribe;
                const SUMMARY: &'static str = $sub_summary;
                type Params = $sub_params;
                type Event = $event;
            }
        )*

        /// Returns the request that ends subscriptions of this name.
        pub fn unsubscribe_of(subscription: &str) -> Option<&'static str> {
            match subscription {
                $($sub_name => Some($unsubscribe),)*
                _ => None,
            }
        }

        /// Returns every method and subscription in the order of the published description.
        pub fn descriptions() -> Vec<Description> {
            vec![
                $(Description {
                    name: $name,
                    summary: $summary,
                    params: SchemaGenerator::subschema_for::<$params>,
                    answer: SchemaGenerator::subschema_for::<$answer>,
                    subscription: None,
                },)*
                $(Description {
                    name: $sub_name,
                    summary: $sub_summary,
                    params: SchemaGenerator::subschema_for::<$sub_params>,
                    answer: SchemaGenerator::subschema_for::<$event>,
                    subscription: Some(($notification, $unsubscribe)),
                },)*
            ]
        }
    };
}

methods! {
    methods {
        DaemonHello "daemon.hello" (HelloParams) -> HelloAnswer,
            "Names the client on this connection and compares protocol versions.";
        DaemonInfo "daemon.info" (NoParams) -> DaemonInfoAnswer,
            "Tells version, instance, limits and where orbctl is.";
        DaemonStop "daemon.stop" (NoParams) -> Done,
            "Stops the daemon in order: new work is refused, waiting attached jobs are cancelled, commands are ended, changes are left to finish.";
        DaemonReload "daemon.reload" (NoParams) -> ReloadAnswer,
            "Reads the daemon's own configuration again, as SIGHUP does: what can change while it runs does, the rest is told as needing a restart.";
        MachineList "machine.list" (ReadParams) -> MachineListAnswer,
            "Lists every machine.";
        MachineInfo "machine.info" (MachineInfoParams) -> MachineInfoAnswer,
            "Tells one machine with its addresses and size.";
        MachineCreate "machine.create" (MachineCreateParams) -> ChangeAnswer,
            "Makes a machine and boots it.";
        MachineStart "machine.start" (MachineParams) -> ChangeAnswer,
            "Boots a machine; a running one is left as it is.";
        MachineStop "machine.stop" (MachineForceParams) -> ChangeAnswer,
            "Shuts a machine down; a stopped one is left as it is.";
        MachineRestart "machine.restart" (MachineParams) -> ChangeAnswer,
            "Shuts a machine down and boots it.";
        MachineDelete "machine.delete" (MachineParams) -> ChangeAnswer,
            "Destroys a machine with everything on it.";
        MachineRename "machine.rename" (MachineRenameParams) -> ChangeAnswer,
            "Gives a machine another name.";
        MachineClone "machine.clone" (MachineCloneParams) -> ChangeAnswer,
            "Copies a machine; the copy is stopped.";
        MachineStartAll "machine.start_all" (ChangeParams) -> ChangeAnswer,
            "Starts every machine.";
        MachineStopAll "machine.stop_all" (ForceParams) -> ChangeAnswer,
            "Stops every machine.";
        MachineRun "machine.run" (RunParams) -> RunAnswer,
            "Runs a command in a machine and answers with its exit code and output. A code other than zero is an answer, not an error.";
        MachineDefault "machine.default" (ReadParams) -> DefaultAnswer,
            "Tells the default machine.";
        MachineSetDefault "machine.set_default" (SetDefaultParams) -> ChangeAnswer,
            "Sets or clears the default machine.";
        MachineLogs "machine.logs" (LogsParams) -> TextAnswer,
            "Tells a machine's log so far.";
        MachineSsh "machine.ssh" (NoParams) -> TextAnswer,
            "Tells how to reach machines over SSH.";
        OrbstackStatus "orbstack.status" (ReadParams) -> StatusAnswer,
            "Tells whether OrbStack runs, without waking it.";
        OrbstackVersion "orbstack.version" (ReadParams) -> VersionAnswer,
            "Tells the version of orbctl.";
        OrbstackStart "orbstack.start" (ForceParams) -> ChangeAnswer,
            "Starts OrbStack itself.";
        OrbstackStop "orbstack.stop" (ForceParams) -> ChangeAnswer,
            "Stops OrbStack itself and with it every machine.";
        ConfigShow "config.show" (ReadParams) -> ConfigAnswer,
            "Tells OrbStack's whole configuration.";
        ConfigGet "config.get" (ConfigGetParams) -> ConfigGetAnswer,
            "Tells one key of OrbStack's configuration.";
        ConfigSet "config.set" (ConfigSetParams) -> ChangeAnswer,
            "Sets one key of OrbStack's configuration.";
        ConfigReset "config.reset" (ChangeParams) -> ChangeAnswer,
            "Puts OrbStack's whole configuration back to its defaults.";
        JobGet "job.get" (JobParams) -> JobAnswer,
            "Tells one job.";
        JobList "job.list" (JobListParams) -> JobListAnswer,
            "Lists jobs that wait, run, or ended a while ago.";
        JobWait "job.wait" (JobWaitParams) -> JobAnswer,
            "Waits for a job's end.";
        JobOutput "job.output" (JobOutputParams) -> JobOutputAnswer,
            "Reads what a job wrote, from any byte on, also while it runs.";
        JobInput "job.input" (JobInputParams) -> JobInputAnswer,
            "Gives input to a command that was started with `stdin_stream`.";
        JobCancel "job.cancel" (JobParams) -> JobCancelAnswer,
            "Cancels a job: a waiting one never starts, a running one is terminated.";
        QueueStatus "queue.status" (NoParams) -> QueueStatusAnswer,
            "Tells how many jobs wait and run and what is paused.";
        QueuePause "queue.pause" (QueueTargetParams) -> QueueStatusAnswer,
            "Starts nothing more, or nothing more on one machine; what waits stays waiting.";
        QueueResume "queue.resume" (QueueTargetParams) -> QueueStatusAnswer,
            "Ends a pause or a drain.";
        QueueDrain "queue.drain" (QueueTargetParams) -> QueueStatusAnswer,
            "Refuses new work and answers when everything accepted has ended.";
        CacheStatus "cache.status" (NoParams) -> CacheStatusAnswer,
            "Tells what is known and how old it is.";
        CacheInvalidate "cache.invalidate" (CacheInvalidateParams) -> CacheInvalidateAnswer,
            "Forgets what is known, so that the next reads ask orbctl.";
        MetricsSummary "metrics.summary" (MetricsSummaryParams) -> MetricsSummaryAnswer,
            "Counts, error rates and percentiles of waiting and running, kept across restarts.";
        MetricsHistory "metrics.history" (MetricsHistoryParams) -> MetricsHistoryAnswer,
            "Lists recorded operations, newest first.";
        MetricsCounters "metrics.counters" (NoParams) -> CountersAnswer,
            "Counts cache hits, joins, refusals and the like since the daemon's start.";
        LeaseAcquire "lease.acquire" (LeaseParams) -> LeaseAnswer,
            "Waits for a place in the queue that the caller uses itself: the named process, which waits for this answer, runs the real tool.";
        LeaseRead "lease.read" (LeaseReadParams) -> RawOutputAnswer,
            "Tells what the real tool prints for a read, byte for byte, and how it ends; equal reads share one run of it.";
        LeaseRelease "lease.release" (ReleaseParams) -> ReleaseAnswer,
            "Says how the process of a lease ended and waits until it is gone.";
    }
    subscriptions {
        MachineRunFollow "machine.run_follow" / "machine.run_event" / "machine.run_unfollow" (RunParams) -> JobEvent,
            "Runs a command in a machine and tells its output as it comes. Ending the subscription, or the connection, stops the command.";
        JobFollow "job.follow" / "job.event" / "job.unfollow" (JobFollowParams) -> JobEvent,
            "Tells a job's output and end as they come.";
        EventsSubscribe "events.subscribe" / "events.event" / "events.unsubscribe" (EventsSubscribeParams) -> Event,
            "Tells what happens to machines, jobs, the cache and orbctl as it happens: first everything as it is, or what came since the last event that was told.";
    }
}

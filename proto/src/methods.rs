//! The table of all methods: name, parameters, answer and summary.
//!
//! The server registers handlers for these types, the client calls through them, and `proto/openrpc.json` is generated from them, so the
//! three always agree.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};

use super::types::{
    CacheInvalidateAnswer, CacheInvalidateParams, CacheStatusAnswer, ChangeAnswer, ChangeParams,
    ConfigAnswer, ConfigEntryParams, ConfigGetAnswer, ConfigGetParams, ConfigSetParams, CountersAnswer,
    DaemonInfoAnswer, DefaultAnswer, Done, Event, EventsSubscribeParams, ForceParams, HelloAnswer,
    HelloParams, JobAnswer, JobCancelAnswer, JobEvent, JobFollowParams, JobInputAnswer, JobInputParams,
    JobListAnswer, JobListParams, JobOutputAnswer, JobOutputParams, JobParams, JobWaitParams, LeaseAnswer,
    LeaseParams, LeaseReadParams, LogsParams, MachineCloneParams, MachineCreateParams, MachineForceParams,
    MachineInfoAnswer, MachineInfoParams, MachineListAnswer, MachineParams, MachineRenameParams,
    MetricsHistoryAnswer, MetricsHistoryParams, MetricsSummaryAnswer, MetricsSummaryParams, NoParams,
    QueueStatusAnswer, QueueTargetParams, RawOutputAnswer, ReadParams, ReleaseAnswer, ReleaseParams,
    ReloadAnswer, RunAnswer, RunParams, SetDefaultParams, StatusAnswer, TextAnswer, VersionAnswer,
};

/// Newest version of the protocol that this build speaks. A new required field or a changed meaning raises it; additions do not.
pub const PROTOCOL_VERSION: u32 = 1;

/// Oldest version of the protocol that this build speaks. Raise it only when support for the older version is removed.
pub const PROTOCOL_MIN: u32 = 1;

/// A request with one answer.
pub trait Method {
    /// Name on the wire.
    const NAME: &'static str;
    /// Summary for the published description.
    const SUMMARY: &'static str;
    /// The parameters, by name.
    type Params: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    /// The result.
    type Answer: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
}

/// A request that is answered with a subscription id, followed by notifications until the last one.
pub trait Subscription {
    /// Name of the request on the wire.
    const NAME: &'static str;
    /// Method of the notifications.
    const NOTIFICATION: &'static str;
    /// Name of the request that ends the subscription early.
    const UNSUBSCRIBE: &'static str;
    /// Summary for the published description.
    const SUMMARY: &'static str;
    /// The parameters, by name.
    type Params: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    /// The `params.result` of each notification.
    type Event: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
}

/// A method or subscription, for the published description.
pub struct Description {
    /// Name on the wire.
    pub name: &'static str,
    /// Summary, one or two sentences.
    pub summary: &'static str,
    /// Schema of the parameters.
    pub params: fn(&mut SchemaGenerator) -> Schema,
    /// Schema of the answer, or of a notification's `result`.
    pub answer: fn(&mut SchemaGenerator) -> Schema,
    /// For a subscription: the method of its notifications, and the name of the request that ends it.
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

        /// Returns the name of the request that ends a subscription with this name.
        pub fn unsubscribe_of(subscription: &str) -> Option<&'static str> {
            match subscription {
                $($sub_name => Some($unsubscribe),)*
                _ => None,
            }
        }

        /// Names and summaries of all methods and subscriptions, in the order of the published description.
        pub const SUMMARIES: &[(&str, &str)] = &[$(($name, $summary),)* $(($sub_name, $sub_summary),)*];

        /// Returns all methods and subscriptions, in the order of the published description.
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
            "Sets the client's name for this connection and compares protocol versions.";
        DaemonInfo "daemon.info" (NoParams) -> DaemonInfoAnswer,
            "Returns the daemon's version, instance, limits, paths and health.";
        DaemonStop "daemon.stop" (NoParams) -> Done,
            "Shuts the daemon down: it refuses new jobs, cancels waiting attached jobs, ends running commands, and lets running changes finish.";
        DaemonReload "daemon.reload" (NoParams) -> ReloadAnswer,
            "Re-reads the daemon's configuration, as SIGHUP does. The answer lists the keys that changed and those that need a restart.";
        MachineList "machine.list" (ReadParams) -> MachineListAnswer,
            "Lists all machines.";
        MachineInfo "machine.info" (MachineInfoParams) -> MachineInfoAnswer,
            "Returns one machine with its addresses and disk size.";
        MachineCreate "machine.create" (MachineCreateParams) -> ChangeAnswer,
            "Creates a machine and starts it.";
        MachineStart "machine.start" (MachineParams) -> ChangeAnswer,
            "Starts a machine. A running machine is left unchanged.";
        MachineStop "machine.stop" (MachineForceParams) -> ChangeAnswer,
            "Stops a machine. A stopped machine is left unchanged.";
        MachineRestart "machine.restart" (MachineParams) -> ChangeAnswer,
            "Stops a machine and starts it again.";
        MachineDelete "machine.delete" (MachineParams) -> ChangeAnswer,
            "Deletes a machine with all its data.";
        MachineRename "machine.rename" (MachineRenameParams) -> ChangeAnswer,
            "Renames a machine.";
        MachineClone "machine.clone" (MachineCloneParams) -> ChangeAnswer,
            "Copies a machine. The copy is stopped.";
        MachineStartAll "machine.start_all" (ChangeParams) -> ChangeAnswer,
            "Starts all machines.";
        MachineStopAll "machine.stop_all" (ForceParams) -> ChangeAnswer,
            "Stops all machines.";
        MachineRun "machine.run" (RunParams) -> RunAnswer,
            "Runs a command in a machine and returns its exit code and output. An exit code other than 0 is not an error.";
        MachineDefault "machine.default" (ReadParams) -> DefaultAnswer,
            "Returns the default machine.";
        MachineSetDefault "machine.set_default" (SetDefaultParams) -> ChangeAnswer,
            "Sets or clears the default machine.";
        MachineLogs "machine.logs" (LogsParams) -> TextAnswer,
            "Returns a machine's log so far.";
        MachineSsh "machine.ssh" (NoParams) -> TextAnswer,
            "Returns how to connect to machines over SSH.";
        OrbstackStatus "orbstack.status" (ReadParams) -> StatusAnswer,
            "Returns whether OrbStack is running, without starting it.";
        OrbstackVersion "orbstack.version" (ReadParams) -> VersionAnswer,
            "Returns the version of OrbStack.";
        OrbstackStart "orbstack.start" (ForceParams) -> ChangeAnswer,
            "Starts OrbStack.";
        OrbstackStop "orbstack.stop" (ForceParams) -> ChangeAnswer,
            "Stops OrbStack and all machines.";
        ConfigShow "config.show" (ReadParams) -> ConfigAnswer,
            "Returns OrbStack's whole configuration.";
        ConfigGet "config.get" (ConfigGetParams) -> ConfigGetAnswer,
            "Returns the value of one key of OrbStack's configuration.";
        ConfigSet "config.set" (ConfigSetParams) -> ChangeAnswer,
            "Sets one key of OrbStack's configuration.";
        ConfigAdd "config.add" (ConfigEntryParams) -> ChangeAnswer,
            "Adds an entry to a key of OrbStack's configuration that holds a list.";
        ConfigRemove "config.remove" (ConfigEntryParams) -> ChangeAnswer,
            "Removes an entry from a key of OrbStack's configuration that holds a list.";
        ConfigReset "config.reset" (ChangeParams) -> ChangeAnswer,
            "Resets OrbStack's whole configuration to its defaults.";
        JobGet "job.get" (JobParams) -> JobAnswer,
            "Returns one job.";
        JobList "job.list" (JobListParams) -> JobListAnswer,
            "Lists waiting, running and recently ended jobs.";
        JobWait "job.wait" (JobWaitParams) -> JobAnswer,
            "Waits until a job has ended and returns it.";
        JobOutput "job.output" (JobOutputParams) -> JobOutputAnswer,
            "Returns output of a job from a given offset, also while the job runs.";
        JobInput "job.input" (JobInputParams) -> JobInputAnswer,
            "Sends input to a command that was started with `stdin_stream`.";
        JobCancel "job.cancel" (JobParams) -> JobCancelAnswer,
            "Cancels a job. A waiting job never starts; a running job is ended.";
        QueueStatus "queue.status" (NoParams) -> QueueStatusAnswer,
            "Returns the number of waiting and running jobs, and what is paused or draining.";
        QueuePause "queue.pause" (QueueTargetParams) -> QueueStatusAnswer,
            "Pauses the queue or the lane of one machine: no further jobs start, and waiting jobs keep waiting.";
        QueueResume "queue.resume" (QueueTargetParams) -> QueueStatusAnswer,
            "Ends a pause or a drain of the queue or of one machine's lane.";
        QueueDrain "queue.drain" (QueueTargetParams) -> QueueStatusAnswer,
            "Refuses new jobs, for the whole queue or one machine, and answers when all accepted jobs have ended.";
        CacheStatus "cache.status" (NoParams) -> CacheStatusAnswer,
            "Lists the cached observations and their ages.";
        CacheInvalidate "cache.invalidate" (CacheInvalidateParams) -> CacheInvalidateAnswer,
            "Invalidates cached observations, so that the next reads run orbctl.";
        MetricsSummary "metrics.summary" (MetricsSummaryParams) -> MetricsSummaryAnswer,
            "Returns counts, error rates and percentiles of waiting and running times, including those from before a restart.";
        MetricsHistory "metrics.history" (MetricsHistoryParams) -> MetricsHistoryAnswer,
            "Lists the records of ended jobs, newest first.";
        MetricsCounters "metrics.counters" (NoParams) -> CountersAnswer,
            "Returns counters since the daemon started, such as cache hits, joins and refusals.";
        LeaseAcquire "lease.acquire" (LeaseParams) -> LeaseAnswer,
            "Acquires a lease: waits in the queue for a job that the client's own child process carries out with orbctl.";
        LeaseRead "lease.read" (LeaseReadParams) -> RawOutputAnswer,
            "Runs a read command of orbctl and returns its output byte for byte and how it ended. Equal reads share one run.";
        LeaseRelease "lease.release" (ReleaseParams) -> ReleaseAnswer,
            "Releases a lease: reports how the child ended and waits until it has exited.";
    }
    subscriptions {
        MachineRunFollow "machine.run_follow" / "machine.run_event" / "machine.run_unfollow" (RunParams) -> JobEvent,
            "Runs a command in a machine and sends its output as it arrives. Ending the subscription or the connection stops the command.";
        JobFollow "job.follow" / "job.event" / "job.unfollow" (JobFollowParams) -> JobEvent,
            "Sends a job's output as it arrives, and its end. Ending the subscription does not stop the job.";
        EventsSubscribe "events.subscribe" / "events.event" / "events.unsubscribe" (EventsSubscribeParams) -> Event,
            "Sends events of machines, jobs, the cache and orbctl. The first event is the current state, or the next one after `since`.";
    }
}

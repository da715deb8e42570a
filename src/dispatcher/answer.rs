//! Answers to queries: typed facts, and the form in which orbd caches and serves them.

use std::sync::{Arc, OnceLock};

use crate::cache::{CacheKey, Generation, Observation, Source};
use crate::clock::Moment;
use crate::job::HealthProblem;
use crate::operation::{LogScope, Query, RawQuery};
pub use crate::orbctl::{QueryAnswer, RawOutput};
use orbd_host::machine::{Machine, MachineId, MachineInfo, MachineName, OrbctlVersion, OrbstackStatus};

/// A query together with the type of its answer.
#[derive(Debug)]
pub struct Read<A> {
    pub(crate) query: Query,
    answer: fn(&QueryAnswer) -> Option<&A>,
}

impl<A> Read<A> {
    /// Returns the answer in its own type. `None` would be a bug: the answer of another query.
    pub fn answer<'a>(&self, seen: &'a ObservedAnswer) -> Option<&'a A> {
        (self.answer)(&seen.value.answer)
    }
}

/// Defines a constructor for each query.
macro_rules! reads {
    ($($read:ident($($operand:ident: $type:ty),*) = $query:expr => $variant:ident($answer:ty);)*) => {$(
        impl Read<$answer> {
            #[doc = concat!("Returns the read of [`QueryAnswer::", stringify!($variant), "`].")]
            pub fn $read($($operand: $type),*) -> Self {
                Self {
                    query: $query,
                    answer: |answer| match answer {
                        QueryAnswer::$variant(answer) => Some(answer),
                        _ => None,
                    },
                }
            }
        }
    )*};
}

reads! {
    list() = Query::List => Machines(Vec<Machine>);
    info(machine: MachineName) = Query::Info(machine) => Info(Box<MachineInfo>);
    status() = Query::Status => Status(OrbstackStatus);
    version() = Query::Version => Version(OrbctlVersion);
    config() = Query::ConfigShow => Config(Vec<(String, String)>);
    default_machine() = Query::Default => Default(Option<MachineName>);
    ssh() = Query::Ssh => Text(String);
    logs(machine: MachineName, scope: LogScope) = Query::Logs(machine, scope) => Text(String);
    raw(query: RawQuery) = Query::RawQuery(query) => Raw(RawOutput);
}

/// An answer together with its JSON encoding, so that an answer that is served many times is encoded once.
#[derive(Debug)]
pub struct CachedAnswer {
    /// The parsed answer.
    pub answer: QueryAnswer,
    /// JSON encoding, set when the answer is first served.
    pub encoded: OnceLock<Box<str>>,
}

impl CachedAnswer {
    /// Wraps facts that have not been encoded yet.
    pub fn new(answer: QueryAnswer) -> Self {
        Self {
            answer,
            encoded: OnceLock::new(),
        }
    }

    /// Returns the machines if this is the answer to [`Query::List`].
    pub fn machines(&self) -> Option<&[Machine]> {
        match &self.answer {
            QueryAnswer::Machines(machines) => Some(machines),
            _ => None,
        }
    }
}

/// An answer with the time and the way it was observed, as callers receive it.
#[derive(Debug, Clone)]
pub struct ObservedAnswer {
    /// The answer.
    pub value: Arc<CachedAnswer>,
    /// Cache generation in which the read that observed the facts began.
    pub generation: Generation,
    /// When that read began.
    pub observed_at: Moment,
    /// Kind of read that observed the facts.
    pub source: Source,
    /// Why the facts are served although they may be out of date: the current problem of `orbctl`. `None` if they are current.
    pub stale: Option<HealthProblem>,
}

impl From<&Observation<Arc<CachedAnswer>>> for ObservedAnswer {
    fn from(seen: &Observation<Arc<CachedAnswer>>) -> Self {
        Self {
            value: seen.value.clone(),
            generation: seen.generation,
            observed_at: seen.observed_at,
            source: seen.source,
            stale: None,
        }
    }
}

/// Returns the key under which a query's answer is cached; `None` if it is not cached.
pub(super) fn cache_key(query: &Query) -> Option<CacheKey> {
    match query {
        Query::List => Some(CacheKey::Machines),
        Query::Info(name) => Some(CacheKey::Info(name.clone())),
        Query::Status => Some(CacheKey::Status),
        Query::Version => Some(CacheKey::Version),
        Query::ConfigShow => Some(CacheKey::Config),
        Query::Default => Some(CacheKey::Default),
        Query::Ssh => Some(CacheKey::Ssh),
        Query::Logs(..) | Query::RawQuery(RawQuery::Logs(..)) => None,
        Query::RawQuery(read) => Some(CacheKey::RawQuery(read.clone())),
    }
}

/// Returns the cache key of a query whose answer may be served stale; `None` for others. Only answers whose wire form has a `stale`
/// field qualify.
pub(super) fn stale_cache_key(query: &Query) -> Option<CacheKey> {
    match query {
        Query::Ssh | Query::Logs(..) | Query::RawQuery(_) => None,
        _ => cache_key(query),
    }
}

/// Finds a machine by name.
pub(super) fn by_name<'a>(machines: &'a [Machine], name: &MachineName) -> Option<&'a Machine> {
    machines.iter().find(|machine| machine.name == *name)
}

/// Finds a machine by id.
pub(super) fn by_id<'a>(machines: &'a [Machine], id: &MachineId) -> Option<&'a Machine> {
    machines.iter().find(|machine| machine.id == *id)
}

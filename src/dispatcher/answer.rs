//! What orbd knows of the world: typed facts, each in a form that can be served again and again.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::cache::{CacheKey, Generation, Observation, Source};
use crate::clock::Moment;
use crate::job::{Ending, HealthProblem};
use crate::machine::{Machine, MachineId, MachineInfo, MachineName, OrbctlVersion, OrbstackStatus};
use crate::operation::{Query, RawQuery};

/// The answer to one query.
#[derive(Debug, Clone, PartialEq)]
pub enum QueryAnswer {
    /// Every machine.
    Machines(Vec<Machine>),
    /// One machine.
    Info(Box<MachineInfo>),
    /// How OrbStack is.
    Status(OrbstackStatus),
    /// Which `orbctl` this is.
    Version(OrbctlVersion),
    /// Keys and values.
    Config(Vec<(String, String)>),
    /// The default machine.
    Default(Option<MachineName>),
    /// Text for people.
    Text(String),
    /// What `orbctl` printed.
    Raw(RawOutput),
}

/// What `orbctl` printed for a read, byte for byte, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawOutput {
    /// Its stdout.
    pub stdout: Bytes,
    /// Its stderr.
    pub stderr: Bytes,
    /// How it ended: by itself or by a signal that was not ours.
    pub ending: Ending,
}

/// Facts, and room for the form in which they are served, so that they are encoded once however often they are asked for.
#[derive(Debug)]
pub struct CachedAnswer {
    /// The facts.
    pub facts: QueryAnswer,
    /// Filled by whoever serves them first.
    pub encoded: OnceLock<Box<str>>,
}

impl CachedAnswer {
    /// Wraps facts that nobody served yet.
    pub fn new(facts: QueryAnswer) -> Self {
        Self {
            facts,
            encoded: OnceLock::new(),
        }
    }

    /// Returns the machines, if these facts are the list.
    pub fn machines(&self) -> Option<&[Machine]> {
        match &self.facts {
            QueryAnswer::Machines(machines) => Some(machines),
            _ => None,
        }
    }
}

/// Facts with when and how they were seen, as a caller is told them.
#[derive(Debug, Clone)]
pub struct ObservedAnswer {
    /// The facts.
    pub value: Arc<CachedAnswer>,
    /// The generation in which the read that saw them began.
    pub generation: Generation,
    /// When that read began.
    pub observed_at: Moment,
    /// What kind of read it was.
    pub source: Source,
    /// Why they are told although they are out of date: `orbctl` is sick.
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

/// Returns under what a query's answer is kept; `None` for answers that are not.
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

/// Returns under what an answer is kept that may be told although it is out of date: one that can say so on the wire.
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

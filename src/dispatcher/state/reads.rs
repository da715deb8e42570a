//! Reads: answered from what is known, shared with an equal one, or asked; and what is learned from them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::cache::{CacheKey, Recorded, Source};
use crate::clock::Moment;
use crate::events::Event;
use crate::job::{JobId, Outcome};
use crate::metrics::Counter;
use crate::operation::{Operation, Query, Scope};
use crate::orbctl::Orbctl;

use super::super::answer::{CachedAnswer, ObservedAnswer, QueryAnswer, cache_key};
use super::super::handle::{
    Client, Executor, JobSpec, Published, ReadError, Request, Submission, WaitingFor,
};
use super::super::run_job::JobResult;
use super::{PendingRead, State};

/// Longest printout that is kept: there may be as many as there are machines.
const PRINTOUT_MAX: usize = 256 << 10;

/// Says whether facts are told again. What a read that failed printed is its own caller's answer and nobody else's.
fn is_kept(outcome: &Outcome, facts: &QueryAnswer) -> bool {
    let fits = match facts {
        QueryAnswer::Raw(printed) => printed.stdout.len() + printed.stderr.len() <= PRINTOUT_MAX,
        _ => true,
    };
    fits && matches!(outcome, Outcome::Succeeded(_))
}

impl<O: Orbctl> State<O> {
    /// Answers a read from what is known, or joins an equal one, or asks.
    pub(super) fn read(
        &mut self,
        query: &Query,
        max_age: Option<Duration>,
        client: &Client,
        reply: oneshot::Sender<Result<ObservedAnswer, ReadError>>,
    ) {
        let now = Moment::now();
        let max_age = max_age
            .unwrap_or(self.settings.cache_max_age)
            .min(self.settings.cache_max_age);
        if let Some(cache_key) = cache_key(query)
            && let Some(seen) = self.cache.fresh(&cache_key, &now, max_age)
        {
            self.metrics.count(Counter::CacheHits);
            self.metrics.count(Counter::SpawnsSaved);
            let _ = reply.send(Ok(seen.into()));
            return;
        }
        self.metrics.count(Counter::CacheMisses);
        if self.outage().is_some()
            && let Some(seen) = self.last_known(query)
        {
            self.circuit_breaker.asked(now.instant);
            self.metrics.count(Counter::SpawnsSaved);
            let _ = reply.send(Ok(seen));
            return;
        }
        self.ask(query, max_age, client, reply);
    }

    /// Joins an equal read, or begins one. Returns the job that will answer; without one the refusal has been answered.
    pub(super) fn ask(
        &mut self,
        query: &Query,
        max_age: Duration,
        client: &Client,
        reply: oneshot::Sender<Result<ObservedAnswer, ReadError>>,
    ) -> Option<JobId> {
        let now = Moment::now();
        if let Some(reading) = self.reads.get_mut(query) {
            // A read may be shared while it waits; one that runs, only if nothing changed since it began and the caller
            // accepts an observation as old as that.
            let may_join = match &reading.start {
                None => true,
                Some(start) => {
                    let is_current = match &start.ticket {
                        Some(ticket) => self.cache.is_current(ticket),
                        None => start.generation == self.cache.generation(),
                    };
                    is_current && now.age_of(&start.at) <= max_age
                }
            };
            if may_join {
                self.metrics.count(Counter::Joins);
                self.metrics.count(Counter::SpawnsSaved);
                if let Some(entry) = self.jobs.get_mut(&reading.job) {
                    entry.joined += 1;
                }
                reading.waiters.push(reply);
                return Some(reading.job);
            }
        }
        if self.is_holding() {
            self.idle.hold_back(Request::Read {
                query: query.clone(),
                max_age: Some(max_age),
                client: client.clone(),
                reply,
            });
            return None;
        }
        let id = self.journal.next_id();
        let spec = Arc::new(JobSpec {
            id,
            accepted: now,
            asked: Submission {
                operation: Operation::Query(query.clone()),
                client: client.clone(),
                executor: Executor::Daemon,
                expected_id: None,
                // A read is shared, so no single client's going away ends it.
                detached: true,
                queue_timeout: Some(self.settings.queue_timeout),
                run_timeout: Some(self.settings.run_timeouts.query),
            },
        });
        match self.accept(&spec) {
            Ok(_) => {
                let before = self.reads.insert(
                    query.clone(),
                    PendingRead {
                        job: id,
                        start: None,
                        waiters: vec![reply],
                    },
                );
                // The one that could not be joined goes on; its waiters are told by its own end.
                if let Some(before) = before {
                    self.superseded(before);
                }
                Some(id)
            }
            Err(rejection) => {
                let _ = reply.send(Err(ReadError::Rejected(rejection)));
                None
            }
        }
    }

    /// Keeps the waiters of a read that newer callers could not join with its job.
    pub(super) fn superseded(&mut self, reading: PendingRead) {
        self.outdated.insert(reading.job, reading);
    }

    pub(super) fn finish_read(&mut self, id: JobId, finished: &mut JobResult, holder: Option<&WaitingFor>) {
        let Some(entry) = self.jobs.get(&id) else { return };
        let Operation::Query(query) = entry.spec.asked.operation.clone() else {
            return;
        };
        let reading = match self.reads.get(&query) {
            Some(reading) if reading.job == id => self.reads.remove(&query),
            _ => self.outdated.remove(&id),
        };
        let Some(reading) = reading else { return };
        let answer = match (finished.facts.take(), reading.start) {
            (Some(facts), Some(start)) => {
                let known = Arc::new(CachedAnswer::new(facts));
                let source = if self.watching.is_look(id) {
                    Source::Poll
                } else {
                    cache_key(&query).map_or(Source::Logs, |cache_key| cache_key.source())
                };
                let seen = ObservedAnswer {
                    value: known.clone(),
                    generation: start.generation,
                    observed_at: start.at,
                    source,
                    stale: None,
                };
                if let Some(ticket) = start.ticket
                    && is_kept(&finished.outcome, &known.facts)
                    && self.cache.record(ticket, known.clone()) == Recorded::Stored
                {
                    self.on_observation(id, &query, &known);
                }
                Ok(seen)
            }
            // Sick, perhaps as this very read has shown.
            _ => self.last_known(&query).ok_or_else(|| ReadError::Ended {
                id,
                outcome: finished.outcome.clone(),
                holder: holder.cloned(),
            }),
        };
        for waiter in reading.waiters {
            let _ = waiter.send(answer.clone());
        }
        self.looked(id, answer.as_ref().ok().map(|seen| &seen.value.facts));
    }

    /// Does what follows from something new being known.
    pub(super) fn on_observation(&mut self, id: JobId, query: &Query, known: &CachedAnswer) {
        if *query == Query::List {
            if let Some(machines) = known.machines() {
                self.cache
                    .retain_machines(machines.iter().map(|machine| &machine.name));
            }
            self.publish_machines();
            self.learned_machines(self.watching.is_look(id));
        }
        if *query == Query::Status {
            self.learned_status();
        }
    }

    /// Tells the fast path what it may answer, and how old that may be.
    pub(super) fn publish_machines(&self) {
        self.publish.send_replace(Published {
            machines: self.cache.get(&CacheKey::Machines).map(ObservedAnswer::from),
            cache_max_age: self.settings.cache_max_age,
        });
    }

    /// Makes stale what an operation touches.
    pub(super) fn touch(&mut self, operation: &Operation, scope: &Scope) {
        if let Operation::ClientAction(leased) = operation
            && leased.may_replace_orbctl()
        {
            self.cache.invalidate_all();
        }
        self.invalidate(scope);
    }

    /// Makes stale what may have changed without us. Of everything also the version, which no change of ours touches.
    pub(super) fn invalidate_untrusted(&mut self, scope: &Scope) {
        if *scope == Scope::Everything {
            self.cache.invalidate_all();
        }
        self.invalidate(scope);
        self.look_now();
    }

    pub(super) fn invalidate(&mut self, scope: &Scope) {
        let generation = self.cache.invalidate(scope);
        self.publish_machines();
        self.note(Event::CacheInvalidated {
            scope: scope.clone(),
            generation,
        });
        self.reset();
    }
}

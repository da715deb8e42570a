//! Answers reads: from the cache, by joining an equal read, or by running `orbctl`. Caches the results.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::cache::{CacheKey, Recorded, Source};
use crate::clock::Moment;
use crate::events::Event;
use crate::job::{JobId, Outcome};
use crate::metrics::Counter;
use crate::operation::{Action, JobInfo, Query, Scope};
use crate::orbctl::Orbctl;

use super::super::answer::{CachedAnswer, ObservedAnswer, QueryAnswer, cache_key};
use super::super::handle::{
    Client, Executor, JobSpec, Published, ReadError, Request, Submission, WaitingFor,
};
use super::super::run_job::JobResult;
use super::{PendingRead, State};

/// Largest raw output that is cached, in bytes. There may be as many as there are machines.
const RAW_OUTPUT_MAX: usize = 256 << 10;

/// Returns whether an answer may be cached. The output of a failed read answers only its own callers.
fn is_kept(outcome: &Outcome, answer: &QueryAnswer) -> bool {
    let fits = match answer {
        QueryAnswer::Raw(printed) => printed.stdout.len() + printed.stderr.len() <= RAW_OUTPUT_MAX,
        _ => true,
    };
    fits && matches!(outcome, Outcome::Succeeded(_))
}

impl<O: Orbctl> State<O> {
    /// Answers a read from the cache, joins an equal read, or begins one.
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
            self.circuit_breaker.note_demand(now.instant);
            self.metrics.count(Counter::SpawnsSaved);
            let _ = reply.send(Ok(seen));
            return;
        }
        self.ask(query, max_age, client, reply);
    }

    /// Joins an equal read, or begins one. Returns the job that will answer; `None` if the request was refused or held back.
    pub(super) fn ask(
        &mut self,
        query: &Query,
        max_age: Duration,
        client: &Client,
        reply: oneshot::Sender<Result<ObservedAnswer, ReadError>>,
    ) -> Option<JobId> {
        let now = Moment::now();
        if let Some(reading) = self.reads.get_mut(query) {
            // A read that waits can always be shared. A read that runs can be shared only if nothing has changed since it began and
            // the caller accepts an observation of that age.
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
        let submission = Submission {
            executor: Executor::Daemon(Action::Query(query.clone())),
            client: client.clone(),
            expected_id: None,
            // A read may be shared, so it must not end when one client disconnects.
            detached: true,
            queue_timeout: Some(self.settings.queue_timeout),
            run_timeout: Some(self.settings.run_timeouts.query),
        };
        let spec = Arc::new(JobSpec::new(id, now, &submission));
        match self.accept(&spec, submission.executor) {
            Ok(_) => {
                let before = self.reads.insert(
                    query.clone(),
                    PendingRead {
                        job: id,
                        start: None,
                        waiters: vec![reply],
                    },
                );
                // The older read, which could not be joined, continues; its end answers its own waiters.
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

    /// Keeps a read that newer callers cannot join until its job ends, so that its waiters are answered.
    pub(super) fn superseded(&mut self, reading: PendingRead) {
        self.outdated.insert(reading.job, reading);
    }

    pub(super) fn finish_read(&mut self, id: JobId, finished: &mut JobResult, holder: Option<&WaitingFor>) {
        let Some(entry) = self.jobs.get(&id) else { return };
        let Some(query) = entry.query().cloned() else {
            return;
        };
        let reading = match self.reads.get(&query) {
            Some(reading) if reading.job == id => self.reads.remove(&query),
            _ => self.outdated.remove(&id),
        };
        let Some(reading) = reading else { return };
        let answer = match (finished.answer.take(), reading.start) {
            (Some(answer), Some(start)) => {
                let known = Arc::new(CachedAnswer::new(answer));
                let source = if self.watch.is_poll(id) {
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
                    && is_kept(&finished.outcome, &known.answer)
                    && self.cache.record(ticket, known.clone()) == Recorded::Stored
                {
                    self.on_observation(id, &query, &known);
                }
                Ok(seen)
            }
            // There may be an outage, possibly detected by this read: serve a stale answer if there is one.
            _ => self.last_known(&query).ok_or_else(|| ReadError::Ended {
                id,
                outcome: finished.outcome.clone(),
                holder: holder.cloned(),
            }),
        };
        for waiter in reading.waiters {
            let _ = waiter.send(answer.clone());
        }
        let answer = answer.as_ref().ok().map(|seen| &seen.value.answer);
        let may_continue = !self.scheduler.is_closed() && !self.idle.is_holding();
        let now = Moment::now().instant;
        if let Some(next) = self.watch.on_read_end(id, answer, may_continue, now) {
            self.poll(&next);
        }
    }

    /// Updates the state that depends on an answer that was just cached.
    pub(super) fn on_observation(&mut self, id: JobId, query: &Query, known: &CachedAnswer) {
        if *query == Query::List {
            if let Some(machines) = known.machines() {
                self.cache
                    .retain_machines(machines.iter().map(|machine| &machine.name));
            }
            self.publish_machines();
            if let Some(seen) = self.cache.get(&CacheKey::Machines) {
                let is_poll = self.watch.is_poll(id);
                self.watch.on_machines(seen.into(), is_poll, Moment::now());
            }
        }
        if *query == Query::Status
            && let Some(seen) = self.cache.get(&CacheKey::Status)
        {
            self.watch.on_status(&seen.into(), Moment::now());
        }
    }

    /// Publishes the machine list, and the greatest age at which it may be served, to the fast path.
    pub(super) fn publish_machines(&self) {
        self.publish.send_replace(Published {
            machines: self.cache.get(&CacheKey::Machines).map(ObservedAnswer::from),
            cache_max_age: self.settings.cache_max_age,
        });
    }

    /// Invalidates the answers that a job may change.
    pub(super) fn touch(&mut self, info: &JobInfo, scope: &Scope) {
        if info.may_replace_orbctl() {
            self.cache.invalidate_all();
        }
        self.invalidate(scope);
    }

    /// Invalidates answers that may have changed outside orbd. `Everything` includes the version of `orbctl`, which orbd's own
    /// changes never affect.
    pub(super) fn invalidate_untrusted(&mut self, scope: &Scope) {
        if *scope == Scope::Everything {
            self.cache.invalidate_all();
        }
        self.invalidate(scope);
        self.poll_now();
    }

    pub(super) fn invalidate(&mut self, scope: &Scope) {
        let generation = self.cache.invalidate(scope);
        self.publish_machines();
        self.note(Event::CacheInvalidated {
            scope: scope.clone(),
            generation,
        });
        self.watch.reset_backoff(Moment::now().instant);
    }
}

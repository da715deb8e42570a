//! Answers reads: from the cache, by joining an equal read, or by running `orbctl`.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::CacheKey;
use crate::clock::Moment;
use crate::events::Event;
use crate::job::{JobId, Outcome};
use crate::metrics::Counter;
use crate::operation::{Action, JobInfo, Query, Scope};
use crate::orbctl::Orbctl;

use super::super::answer::ObservedAnswer;
use super::super::handle::Request;
use super::super::read_table::Waiter;
use super::super::run_job::JobResult;
use super::super::submission::{Client, Executor, JobSpec, Submission, WaitingFor};
use super::super::views::ReadError;
use super::State;

impl<O: Orbctl> State<O> {
    /// Answers a read from the cache, joins an equal read, or begins one.
    pub(super) fn read(&mut self, query: &Query, max_age: Option<Duration>, client: &Client, reply: Waiter) {
        let now = Moment::now();
        let max_age = max_age.unwrap_or(self.reads.max_age()).min(self.reads.max_age());
        if let Some(seen) = self.reads.fresh(query, max_age, &now) {
            self.metrics.count(Counter::CacheHits);
            self.metrics.count(Counter::SpawnsSaved);
            let _ = reply.send(Ok(seen));
            return;
        }
        self.metrics.count(Counter::CacheMisses);
        if let Some(seen) = self.last_known(query) {
            self.health.note_demand(now.instant);
            self.metrics.count(Counter::SpawnsSaved);
            let _ = reply.send(Ok(seen));
            return;
        }
        self.ask(query, max_age, client, reply);
    }

    /// Returns the last known answer, of any age, marked stale; `None` if there is none or while `orbctl` is healthy.
    pub(super) fn last_known(&self, query: &Query) -> Option<ObservedAnswer> {
        self.reads.last_known(query, self.health.problem()?)
    }

    /// Joins an equal read, or begins one. Returns the job that will answer; `None` if the request was refused or held back.
    pub(super) fn ask(
        &mut self,
        query: &Query,
        max_age: Duration,
        client: &Client,
        reply: Waiter,
    ) -> Option<JobId> {
        let now = Moment::now();
        let reply = match self.reads.join(query, max_age, &now, reply) {
            Ok(id) => {
                self.metrics.count(Counter::Joins);
                self.metrics.count(Counter::SpawnsSaved);
                self.jobs.share(id);
                return Some(id);
            }
            Err(reply) => reply,
        };
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
            queue_timeout: Some(self.jobs.queue_timeout()),
            run_timeout: Some(self.jobs.query_timeout()),
            label: None,
        };
        let spec = Arc::new(JobSpec::new(id, now, &submission));
        match self.accept(&spec, submission.executor) {
            Ok(_) => {
                self.reads.insert(query.clone(), id, reply);
                Some(id)
            }
            Err(rejection) => {
                let _ = reply.send(Err(ReadError::Rejected(rejection)));
                None
            }
        }
    }

    pub(super) fn finish_read(&mut self, id: JobId, finished: &mut JobResult, holder: Option<&WaitingFor>) {
        let Some(entry) = self.jobs.get(id) else { return };
        let Some(query) = entry.query().cloned() else {
            return;
        };
        let is_poll = self.watch.is_poll(id);
        let is_kept = matches!(finished.outcome, Outcome::Succeeded(_));
        let answer = finished.answer.take();
        let Some(mut read) = self.reads.finish(&query, id, answer, is_poll, is_kept) else {
            return;
        };
        // Before any reply: a caller that has the answer must find its events and the published list.
        if read.is_stored {
            self.on_observation(id, &query);
        }
        // There may be an outage, possibly detected by this read: serve a stale answer if there is one.
        let answer = read.seen.take().or_else(|| self.last_known(&query));
        let answer = answer.ok_or_else(|| ReadError::Ended {
            id,
            outcome: finished.outcome.clone(),
            holder: holder.cloned(),
        });
        read.answer(&answer);
        let answer = answer.as_ref().ok().map(|seen| &seen.value.answer);
        let may_continue = !self.scheduler.is_closed() && !self.idle.is_holding();
        let now = Moment::now().instant;
        if let Some(next) = self.watch.on_read_end(id, answer, may_continue, now) {
            self.poll(&next);
        }
    }

    /// Tells subscribers what is new in an answer that was just cached.
    pub(super) fn on_observation(&mut self, id: JobId, query: &Query) {
        let now = Moment::now();
        let cached = |key| self.reads.cache().get(&key).map(ObservedAnswer::from);
        match query {
            Query::List => {
                if let Some(seen) = cached(CacheKey::Machines) {
                    let is_poll = self.watch.is_poll(id);
                    self.close_channels_of_gone(&seen);
                    self.watch.on_machines(seen, is_poll, now);
                }
            }
            Query::Status => {
                if let Some(seen) = cached(CacheKey::Status) {
                    self.watch.on_status(&seen, now);
                }
            }
            _ => {}
        }
    }

    /// Invalidates the answers that a job may change.
    pub(super) fn touch(&mut self, info: &JobInfo, scope: &Scope) {
        if info.may_replace_orbctl() {
            self.reads.invalidate_all();
        }
        self.invalidate(scope);
    }

    /// Invalidates answers that may have changed outside orbd. `Everything` includes the version of `orbctl`, which orbd's own
    /// changes never affect.
    pub(super) fn invalidate_untrusted(&mut self, scope: &Scope) {
        if *scope == Scope::Everything {
            self.reads.invalidate_all();
        }
        self.invalidate(scope);
        self.runner.close_channels(scope.clone(), || {});
        self.poll_now();
    }

    fn invalidate(&mut self, scope: &Scope) {
        let generation = self.reads.invalidate(scope);
        self.note(Event::CacheInvalidated {
            scope: scope.clone(),
            generation,
        });
        self.watch.reset_backoff(Moment::now().instant);
    }
}

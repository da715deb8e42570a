//! Reads in progress and their waiters, and the cache that their answers go to.
//!
//! ```text
//!            insert            start                     finish
//! (no read) --------> queued ---------> running -----------------------> its waiters are answered
//!                       |                 |                                ^
//!                       |                 +--(cannot be joined)--> outdated -+
//!                       +--- join: any caller       join: callers that accept an answer of that age, while nothing has changed
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::cache::{Cache, CacheKey, Generation, Recorded, Source, Ticket};
use crate::clock::Moment;
use crate::job::{HealthProblem, JobId};
use crate::operation::{Query, Scope};

use super::answer::{CachedAnswer, ObservedAnswer, QueryAnswer, cache_key, stale_cache_key};
use super::views::{Published, ReadError};

/// Largest raw output that is cached, in bytes. There may be as many as there are machines.
const RAW_OUTPUT_MAX: usize = 256 << 10;

/// Receives the answer of a read.
pub(super) type Waiter = oneshot::Sender<Result<ObservedAnswer, ReadError>>;

/// Reads in progress, and the cache.
///
/// Each read in progress is either the one of its query that callers may join, or outdated; so each waiter belongs to one read, and
/// is answered when that read ends or earlier. The published list is always the one that the cache would serve.
pub(super) struct ReadTable {
    cache: Cache<Arc<CachedAnswer>>,
    /// Greatest age of a cached answer that may be served.
    max_age: Duration,
    publish: watch::Sender<Published>,
    reads: HashMap<Query, PendingRead>,
    /// Reads that newer callers could not join, by job. Their earlier waiters are still to be answered.
    outdated: HashMap<JobId, (Query, PendingRead)>,
}

/// An unfinished read and its waiters.
struct PendingRead {
    job: JobId,
    /// `None` while the read waits in the queue.
    start: Option<ReadStart>,
    waiters: Vec<Waiter>,
}

/// State recorded when a read starts.
struct ReadStart {
    /// Cache ticket; `None` for answers that are not cached.
    ticket: Option<Ticket>,
    /// Generation at the start. For an answer without a ticket, any later generation means that it may be out of date.
    generation: Generation,
    at: Moment,
}

/// A read that has ended and left the table.
#[must_use = "the waiters are to be answered"]
pub(super) struct FinishedRead {
    waiters: Vec<Waiter>,
    /// The answer, with the age at which it was observed; `None` if the read observed nothing.
    pub(super) seen: Option<ObservedAnswer>,
    /// Whether the answer is now the latest in the cache.
    pub(super) is_stored: bool,
}

impl ReadTable {
    pub(super) fn new(max_age: Duration, publish: watch::Sender<Published>) -> Self {
        let table = Self {
            cache: Cache::default(),
            max_age,
            publish,
            reads: HashMap::new(),
            outdated: HashMap::new(),
        };
        table.publish();
        table
    }

    /// Returns the cache, which only this table changes.
    pub(super) fn cache(&self) -> &Cache<Arc<CachedAnswer>> {
        &self.cache
    }

    /// Returns the greatest age of a cached answer that may be served.
    pub(super) fn max_age(&self) -> Duration {
        self.max_age
    }

    /// Sets the greatest age of a cached answer that may be served.
    pub(super) fn set_max_age(&mut self, max_age: Duration) {
        self.max_age = max_age;
        self.publish();
    }

    /// Returns the cached answer of a query if it is not stale and young enough.
    pub(super) fn fresh(&self, query: &Query, max_age: Duration, now: &Moment) -> Option<ObservedAnswer> {
        let seen = self.cache.fresh(&cache_key(query)?, now, max_age)?;
        Some(seen.into())
    }

    /// Returns the last known answer, of any age, marked as stale because of `problem`; `None` if there is none.
    pub(super) fn last_known(&self, query: &Query, problem: &HealthProblem) -> Option<ObservedAnswer> {
        let seen = self.cache.last_known(&stale_cache_key(query)?)?;
        Some(ObservedAnswer {
            stale: Some(problem.clone()),
            ..seen.into()
        })
    }

    /// Adds a waiter to an equal read, and returns the read's job. Gives the waiter back if there is no read that it may join.
    ///
    /// A read that waits can always be shared. A read that runs can be shared only if nothing has changed since it began and the
    /// caller accepts an observation of that age.
    pub(super) fn join(
        &mut self,
        query: &Query,
        max_age: Duration,
        now: &Moment,
        waiter: Waiter,
    ) -> Result<JobId, Waiter> {
        let may_join = |read: &&mut PendingRead| match &read.start {
            None => true,
            Some(start) => {
                let is_current = match &start.ticket {
                    Some(ticket) => self.cache.is_current(ticket),
                    None => start.generation == self.cache.generation(),
                };
                is_current && now.age_of(&start.at) <= max_age
            }
        };
        match self.reads.get_mut(query).filter(may_join) {
            Some(read) => {
                read.waiters.push(waiter);
                Ok(read.job)
            }
            None => Err(waiter),
        }
    }

    /// Adds a read that was accepted as this job. An older read of the query, which the waiter could not join, becomes outdated.
    pub(super) fn insert(&mut self, query: Query, job: JobId, waiter: Waiter) {
        self.outdate(&query);
        let read = PendingRead {
            job,
            start: None,
            waiters: vec![waiter],
        };
        self.reads.insert(query, read);
    }

    /// Records that a read starts now.
    pub(super) fn start(&mut self, query: &Query, job: JobId, is_poll: bool, now: &Moment) {
        let Some(read) = self.reads.get_mut(query).filter(|read| read.job == job) else {
            return;
        };
        let ticket = cache_key(query).map(|cache_key| self.cache.begin(&cache_key, now));
        read.start = Some(ReadStart {
            ticket: if is_poll {
                ticket.map(Ticket::as_poll)
            } else {
                ticket
            },
            generation: self.cache.generation(),
            at: *now,
        });
    }

    /// Ends a read: takes it from the table and caches its answer. `is_kept` is whether the answer may be cached: that of a failed
    /// read goes only to its own callers. `None` if the job is no read of this table.
    pub(super) fn finish(
        &mut self,
        query: &Query,
        job: JobId,
        answer: Option<QueryAnswer>,
        is_poll: bool,
        is_kept: bool,
    ) -> Option<FinishedRead> {
        let read = match self.reads.get(query) {
            Some(read) if read.job == job => self.reads.remove(query)?,
            _ => self.outdated.remove(&job)?.1,
        };
        let mut finished = FinishedRead {
            waiters: read.waiters,
            seen: None,
            is_stored: false,
        };
        if let (Some(answer), Some(start)) = (answer, read.start) {
            let known = Arc::new(CachedAnswer::new(answer));
            finished.seen = Some(ObservedAnswer {
                value: known.clone(),
                generation: start.generation,
                observed_at: start.at,
                source: if is_poll {
                    Source::Poll
                } else {
                    cache_key(query).map_or(Source::Logs, |cache_key| cache_key.source())
                },
                stale: None,
            });
            if let Some(ticket) = start.ticket.filter(|_| is_kept && fits(&known.answer)) {
                finished.is_stored = self.record(ticket, &known);
            }
        }
        Some(finished)
    }

    /// Keeps a read that newer callers cannot join until its job ends, so that its waiters are answered.
    fn outdate(&mut self, query: &Query) {
        if let Some((query, read)) = self.reads.remove_entry(query) {
            self.outdated.insert(read.job, (query, read));
        }
    }

    /// Answers readers when `orbctl` becomes unhealthy, if there is a last known answer for them. Running reads continue, because they
    /// may still succeed; but they may also hang until their limit, even past the recovery, so no new caller may join them. Returns
    /// the reads that wait in the queue: they would wait until the recovery.
    pub(super) fn on_outage(&mut self, problem: &HealthProblem) -> Vec<JobId> {
        for (query, mut read) in std::mem::take(&mut self.outdated).into_values() {
            self.tell_last_known(&query, &mut read, problem);
            self.outdated.insert(read.job, (query, read));
        }
        let mut queued = Vec::new();
        for (query, mut read) in std::mem::take(&mut self.reads) {
            self.tell_last_known(&query, &mut read, problem);
            if read.start.is_some() {
                self.outdated.insert(read.job, (query, read));
            } else {
                queued.push(read.job);
                self.reads.insert(query, read);
            }
        }
        queued
    }

    /// Answers the waiters of a read with the last known answer, if there is one. The read itself continues.
    fn tell_last_known(&self, query: &Query, read: &mut PendingRead, problem: &HealthProblem) {
        if let Some(known) = self.last_known(query, problem) {
            answer_all(read.waiters.drain(..), &Ok(known));
        }
    }

    /// Returns a ticket to cache the machine list of a health probe with.
    pub(super) fn begin_probe(&mut self, now: &Moment) -> Ticket {
        self.cache.begin(&CacheKey::Machines, now).as_poll()
    }

    /// Caches the machine list that a health probe observed. Returns whether it is now the latest.
    pub(super) fn record_probe(&mut self, ticket: Ticket, machines: QueryAnswer) -> bool {
        self.record(ticket, &Arc::new(CachedAnswer::new(machines)))
    }

    fn record(&mut self, ticket: Ticket, known: &Arc<CachedAnswer>) -> bool {
        let is_list = *ticket.cache_key() == CacheKey::Machines;
        if self.cache.record(ticket, known.clone()) == Recorded::Superseded {
            return false;
        }
        if is_list {
            if let Some(machines) = known.machines() {
                self.cache
                    .retain_machines(machines.iter().map(|machine| &machine.name));
            }
            self.publish();
        }
        true
    }

    /// Makes stale the answers that a change of this scope may affect. Returns the new generation.
    pub(super) fn invalidate(&mut self, scope: &Scope) -> Generation {
        let generation = self.cache.invalidate(scope);
        self.publish();
        generation
    }

    /// Makes stale all answers, also the version of `orbctl`, which no other invalidation affects.
    pub(super) fn invalidate_all(&mut self) {
        self.cache.invalidate_all();
        self.publish();
    }

    fn publish(&self) {
        self.publish.send_replace(Published {
            machines: self.cache.get(&CacheKey::Machines).map(ObservedAnswer::from),
            cache_max_age: self.max_age,
        });
    }
}

impl FinishedRead {
    /// Answers the waiters.
    pub(super) fn answer(self, answer: &Result<ObservedAnswer, ReadError>) {
        answer_all(self.waiters.into_iter(), answer);
    }
}

fn answer_all(waiters: impl Iterator<Item = Waiter>, answer: &Result<ObservedAnswer, ReadError>) {
    for waiter in waiters {
        // The caller may have stopped waiting.
        let _ = waiter.send(answer.clone());
    }
}

/// Returns whether an answer is small enough for the cache.
fn fits(answer: &QueryAnswer) -> bool {
    match answer {
        QueryAnswer::Raw(output) => output.stdout.len() + output.stderr.len() <= RAW_OUTPUT_MAX,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatcher::answer::RawOutput;
    use crate::dispatcher::fixture::machine;
    use crate::job::{Ending, Outcome, Success};
    use crate::operation::RawQuery;
    use orbd_host::machine::OrbstackStatus;

    type Answer = oneshot::Receiver<Result<ObservedAnswer, ReadError>>;

    const MINUTE: Duration = Duration::from_secs(60);

    struct Bench {
        table: ReadTable,
        published: watch::Receiver<Published>,
        now: Moment,
    }

    fn bench() -> Bench {
        let (publish, published) = watch::channel(Published::default());
        Bench {
            table: ReadTable::new(MINUTE, publish),
            published,
            now: Moment::now(),
        }
    }

    fn machines(names: &[&str]) -> QueryAnswer {
        QueryAnswer::Machines(names.iter().map(|name| machine(name)).collect())
    }

    fn problem() -> HealthProblem {
        HealthProblem::Blocked { verb: "list" }
    }

    impl Bench {
        fn pass(&mut self, time: Duration) {
            self.now.instant += time;
            self.now.wall += time;
        }

        /// Joins a read, or begins one as this job. Returns the job that will answer.
        fn ask(&mut self, query: &Query, job: u64, max_age: Duration) -> (JobId, Answer) {
            let (waiter, answer) = oneshot::channel();
            let job = match self.table.join(query, max_age, &self.now, waiter) {
                Ok(joined) => joined,
                Err(waiter) => {
                    self.table.insert(query.clone(), JobId(job), waiter);
                    JobId(job)
                }
            };
            (job, answer)
        }

        fn start(&mut self, query: &Query, job: JobId) {
            self.table.start(query, job, false, &self.now);
        }

        /// Ends a read with an answer, and passes it to the waiters. Returns whether it was cached.
        fn finish(&mut self, query: &Query, job: JobId, answer: QueryAnswer) -> bool {
            let mut read = self
                .table
                .finish(query, job, Some(answer), false, true)
                .expect("the read is in the table");
            let seen = read.seen.take().expect("the read has started");
            let is_stored = read.is_stored;
            read.answer(&Ok(seen));
            is_stored
        }

        fn published(&self) -> Option<usize> {
            let published = self.published.borrow();
            Some(published.machines.as_ref()?.value.machines()?.len())
        }
    }

    #[track_caller]
    fn listed(answer: &mut Answer) -> usize {
        let seen = answer.try_recv().expect("answered").expect("an answer");
        seen.value.machines().map_or(0, <[_]>::len)
    }

    #[test]
    fn queued_read_is_shared_and_answers_every_waiter_once() {
        let mut bench = bench();
        let (job, mut first) = bench.ask(&Query::List, 1, Duration::ZERO);
        let (same, mut second) = bench.ask(&Query::List, 2, Duration::ZERO);
        assert_eq!((job, same), (JobId(1), JobId(1)));
        let (other, mut status) = bench.ask(&Query::Status, 3, Duration::ZERO);
        assert_eq!(other, JobId(3));
        bench.start(&Query::List, job);
        assert!(bench.finish(&Query::List, job, machines(&["web"])));
        assert_eq!((listed(&mut first), listed(&mut second)), (1, 1));
        assert!(status.try_recv().is_err(), "its read has not ended");
        let again = bench.table.finish(&Query::List, job, None, false, true);
        assert!(again.is_none(), "the read has left the table");
    }

    #[test]
    fn running_read_is_joined_only_while_it_is_young_and_current() {
        let mut bench = bench();
        let (job, mut first) = bench.ask(&Query::List, 1, MINUTE);
        bench.start(&Query::List, job);
        bench.pass(MINUTE / 2);
        assert_eq!(bench.ask(&Query::List, 2, MINUTE).0, job);
        let (second_job, mut second) = bench.ask(&Query::List, 2, MINUTE / 4);
        assert_eq!(second_job, JobId(2), "the caller accepts no answer of that age");
        bench.start(&Query::List, second_job);
        bench.table.invalidate(&Scope::Everything);
        let (third_job, mut third) = bench.ask(&Query::List, 3, MINUTE);
        assert_eq!(third_job, JobId(3), "something has changed since");

        assert!(!bench.finish(&Query::List, job, machines(&[])), "outdated");
        assert_eq!(listed(&mut first), 0);
        assert!(second.try_recv().is_err() && third.try_recv().is_err());
        bench.start(&Query::List, third_job);
        assert!(bench.finish(&Query::List, third_job, machines(&["web"])));
        assert!(!bench.finish(&Query::List, second_job, machines(&["web", "db"])));
        assert_eq!((listed(&mut second), listed(&mut third)), (2, 1));
        assert_eq!(bench.published(), Some(1));
    }

    #[test]
    fn published_list_is_the_one_that_the_cache_would_serve() {
        let mut bench = bench();
        let (job, _answer) = bench.ask(&Query::List, 1, MINUTE);
        bench.start(&Query::List, job);
        bench.finish(&Query::List, job, machines(&["web"]));
        assert_eq!(bench.published(), Some(1));
        bench.table.invalidate(&Scope::Configuration);
        assert_eq!(bench.published(), None);
        let ticket = bench.table.begin_probe(&bench.now);
        assert!(bench.table.record_probe(ticket, machines(&["web", "db"])));
        assert_eq!(bench.published(), Some(2));
        bench.table.invalidate_all();
        assert_eq!(bench.published(), None);
        bench.table.set_max_age(2 * MINUTE);
        assert_eq!(bench.published.borrow().cache_max_age, 2 * MINUTE);
    }

    #[test]
    fn answers_of_failed_reads_and_large_output_are_not_cached() {
        let mut bench = bench();
        let query = Query::RawQuery(RawQuery::Status);
        let raw = |bytes| {
            QueryAnswer::Raw(RawOutput {
                stdout: vec![b'x'; bytes].into(),
                stderr: bytes::Bytes::new(),
                ending: Ending::Exited(0),
                failure: None,
            })
        };
        for (size, is_kept, is_stored) in [
            (RAW_OUTPUT_MAX, false, false),
            (RAW_OUTPUT_MAX + 1, true, false),
            (RAW_OUTPUT_MAX, true, true),
        ] {
            let (job, _answer) = bench.ask(&query, 1, MINUTE);
            bench.start(&query, job);
            let read = bench.table.finish(&query, job, Some(raw(size)), false, is_kept);
            assert_eq!(
                read.map(|read| read.is_stored),
                Some(is_stored),
                "{size} {is_kept}"
            );
        }
    }

    #[test]
    fn outage_answers_with_the_last_known_and_outdates_running_reads() {
        let mut bench = bench();
        let stopped = QueryAnswer::Status(OrbstackStatus::Stopped);
        let (job, _answer) = bench.ask(&Query::Status, 1, MINUTE);
        bench.start(&Query::Status, job);
        bench.finish(&Query::Status, job, stopped);
        bench.table.invalidate(&Scope::Everything);

        let (known, mut of_known) = bench.ask(&Query::Status, 2, MINUTE);
        bench.start(&Query::Status, known);
        let (unknown, mut of_unknown) = bench.ask(&Query::List, 3, MINUTE);
        bench.start(&Query::List, unknown);
        let (queued, mut of_queued) = bench.ask(&Query::Version, 4, MINUTE);
        assert_eq!(bench.table.on_outage(&problem()), [queued]);
        let seen = of_known.try_recv().expect("answered").expect("an answer");
        assert_eq!(seen.stale, Some(problem()));
        assert!(
            of_unknown.try_recv().is_err(),
            "nothing is known, and the read may succeed"
        );
        assert_eq!(
            bench.ask(&Query::List, 5, MINUTE).0,
            JobId(5),
            "it may hang past the recovery"
        );

        bench.finish(&Query::List, unknown, machines(&["web"]));
        assert_eq!(listed(&mut of_unknown), 1);
        let ended = bench.table.finish(&Query::Version, queued, None, false, false);
        let ended = ended.expect("the read is in the table");
        assert!(ended.seen.is_none());
        ended.answer(&Err(ReadError::Ended {
            id: queued,
            outcome: Outcome::Succeeded(Success::Read),
            holder: None,
        }));
        assert!(of_queued.try_recv().is_ok_and(|answer| answer.is_err()));
    }
}

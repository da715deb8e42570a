//! The health of `orbctl`: what it lets through, who is told what while it is sick, and the probes.

use std::time::Instant;

use crate::cache::{CacheKey, Recorded};
use crate::circuit_breaker::CircuitChange;
use crate::clock::Moment;
use crate::events::Event;
use crate::job::{Failure, HealthSignal, JobId, Outcome};
use crate::metrics::Counter;
use crate::operation::{Class, Operation, Query, Scope};
use crate::orbctl::Orbctl;
use crate::scheduler::CancelResult;

use super::super::answer::{CachedAnswer, ObservedAnswer, QueryAnswer, stale_cache_key};
use super::super::handle::{JobSpec, JobState, OutageView, Rejection};
use super::super::run_job::{JobResult, Note, Work, run_probe};
use super::super::stored;
use super::{Arc, Entry, State, scheduled};
use crate::dispatcher::about_job::about_job;

impl<O: Orbctl> State<O> {
    /// A running job says something.
    pub(super) fn on_job_event(&mut self, id: JobId, note: Note) {
        match note {
            Note::Started(child) => self.child_started(id, child, None),
            Note::Replaced => self.invalidate_untrusted(&Scope::Everything),
            Note::HealthSignal(signal, began) => self.heard(id, signal, began),
        }
    }

    fn heard(&mut self, by: JobId, signal: HealthSignal, began: Instant) {
        let turn = self.circuit_breaker.heard(signal, began, &Moment::now());
        self.turned(turn, by);
    }

    /// The one place where everybody else learns that the health of `orbctl` has changed.
    fn turned(&mut self, turn: CircuitChange, by: JobId) {
        let asked = self.jobs.get(&by).map(|entry| &entry.spec.asked);
        match turn {
            CircuitChange::None => {}
            CircuitChange::Opened => {
                if let Some(outage) = self.circuit_breaker.outage() {
                    tracing::warn!(
                        job_id = by.0,
                        operation = asked.map(|asked| asked.operation.verb()),
                        client = asked.map(|asked| tracing::field::display(&asked.client.name)),
                        problem = %outage.problem,
                        "orbctl is sick: only force is let through"
                    );
                    let reason = outage.problem.to_string().into();
                    self.note(Event::OrbctlUnhealthy { reason });
                }
                self.scheduler.hold();
                self.answer_readers();
            }
            CircuitChange::Recovered => {
                tracing::info!(
                    job_id = by.0,
                    operation = asked.map(|asked| asked.operation.verb()),
                    client = asked.map(|asked| tracing::field::display(&asked.client.name)),
                    "orbctl is well again"
                );
                self.stop_probe();
                self.scheduler.release();
                self.note(Event::OrbctlRecovered);
                self.look_now();
            }
        }
    }

    /// Returns what ails `orbctl`; `None` while it is well.
    pub(super) fn outage(&self) -> Option<OutageView> {
        self.circuit_breaker.outage().map(|outage| OutageView {
            since: outage.since,
            problem: outage.problem.clone(),
            retry_after: self.circuit_breaker.retry_after(Moment::now().instant),
        })
    }

    /// Refuses what would only wait for its limit. Force passes, because it mends, unless it names a machine by an id that cannot be
    /// checked now. So does a session, which is its user's own affair.
    pub(super) fn refuse_while_unhealthy(&mut self, spec: &JobSpec) -> Result<(), Rejection> {
        let is_urgent = spec.asked.operation.preempts() && spec.asked.expected_id.is_none();
        if is_urgent || spec.asked.operation.class() == Class::Session {
            return Ok(());
        }
        let Some(outage) = self.outage() else {
            return Ok(());
        };
        self.circuit_breaker.asked(spec.accepted.instant);
        self.metrics.count(Counter::Refusals);
        if spec.asked.operation.class() == Class::Query {
            // Whoever polls would fill the log, and it says already that nothing is asked.
            tracing::debug!(operation = spec.asked.operation.verb(), client = %spec.asked.client.name, "refused: orbctl is sick");
        } else {
            tracing::info!(operation = spec.asked.operation.verb(), client = %spec.asked.client.name, "refused: orbctl is sick");
        }
        Err(Rejection::Unhealthy(outage))
    }

    /// Returns what was last known, however old, marked as that; only while `orbctl` is sick.
    pub(super) fn last_known(&self, query: &Query) -> Option<ObservedAnswer> {
        let outage = self.circuit_breaker.outage()?;
        let seen = self.cache.last_known(&stale_cache_key(query)?)?;
        Some(ObservedAnswer {
            stale: Some(outage.problem.clone()),
            ..seen.into()
        })
    }

    /// Answers those who wait for reads: at once, where something is known. Of the rest, a read that runs may still succeed; one
    /// that waits would wait for the recovery, and reads wait behind nothing.
    fn answer_readers(&mut self) {
        let outdated: Vec<JobId> = self.outdated.keys().copied().collect();
        for id in outdated {
            let known = match self.jobs.get(&id).map(|entry| &entry.spec.asked.operation) {
                Some(Operation::Query(query)) => self.last_known(query),
                _ => None,
            };
            if let (Some(known), Some(reading)) = (known, self.outdated.get_mut(&id)) {
                reading.tell(&known);
            }
        }
        let queries: Vec<Query> = self.reads.keys().cloned().collect();
        for query in queries {
            let known = self.last_known(&query);
            let Some(reading) = self.reads.get_mut(&query) else {
                continue;
            };
            if let Some(known) = known {
                reading.tell(&known);
            }
            let id = reading.job;
            if reading.start.is_some() {
                // It may hang until its limit, also after the recovery: nobody is to join it any more.
                if let Some(reading) = self.reads.remove(&query) {
                    self.superseded(reading);
                }
            } else if self.scheduler.cancel(id) == CancelResult::NeverStarted {
                let failure = self
                    .circuit_breaker
                    .outage()
                    .map(|outage| Failure::OrbctlUnhealthy(outage.problem.clone()));
                if let Some(failure) = failure {
                    self.end_unstarted(id, Outcome::Failed(failure), None);
                }
            }
        }
    }

    /// Returns when a probe is to begin. With one invocation at a time it waits until nothing runs: the end of what does wakes us.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        let may_run = !self.stopping
            && !self.is_upgrading()
            && (!self.scheduler.limits().strict || self.scheduler.is_still());
        self.circuit_breaker.next_probe().filter(|_| may_run)
    }

    pub(super) fn probe_if_due(&mut self) {
        let now = Moment::now();
        if self.next_probe().is_none_or(|at| at > now.instant)
            || !self.circuit_breaker.begin_probe(now.instant)
        {
            return;
        }
        let probe = Operation::Query(Query::List);
        let mut spec = stored::revived(self.journal.next_id(), probe, PROBER, true, now);
        spec.asked.run_timeout = Some(self.settings.run_timeouts.query);
        let spec = Arc::new(spec);
        // Beside all limits: what hangs must not keep out what shows that nothing does any more.
        self.scheduler.restore_running(scheduled(&spec));
        self.enter(&spec);
        let Some(live) = self.jobs.get(&spec.id).and_then(Entry::live) else {
            return;
        };
        live.state.send_replace(JobState::Running { since: now });
        let work = Work {
            orbctl: self.orbctl.clone(),
            limits: self.settings.run_limits(),
            guest_env: self.settings.guest_env,
            probe_permits: self.probe_permits.clone(),
            stop: live.stop.clone(),
            abandon: live.abandon.clone(),
            spool: None,
            spool_dir: self.settings.spool.dir.clone(),
            input: None,
            marker: self.settings.markers.of(&spec),
            notes: self.notes.clone(),
            release: None,
            spec: spec.clone(),
        };
        self.probe = Some((spec.id, self.cache.begin(&CacheKey::Machines, &now).as_poll()));
        about_job!(debug, spec, "probes whether orbctl is well");
        self.spawn(&spec, run_probe(work));
    }

    /// Takes in the end of a probe. What it said about `orbctl` came before, as of any job; here it is only over. Returns whether the
    /// job was the probe.
    pub(super) fn finish_probe(&mut self, id: JobId, finished: &mut JobResult, now: Instant) -> bool {
        let Some((_, ticket)) = self.probe.take_if(|(probe, _)| *probe == id) else {
            return false;
        };
        if let Some(facts @ QueryAnswer::Machines(_)) = finished.facts.take() {
            let known = Arc::new(CachedAnswer::new(facts));
            if self.cache.record(ticket, known.clone()) == Recorded::Stored {
                self.on_observation(id, &Query::List, &known);
            }
        }
        if self.scheduler.waiting().total() > 0 {
            // Whoever waits still wants to know.
            self.circuit_breaker.asked(now);
        }
        self.circuit_breaker.probe_ended(now);
        true
    }

    pub(super) fn stop_probe(&self) {
        if let Some((id, _)) = &self.probe
            && let Some(live) = self.jobs.get(id).and_then(Entry::live)
        {
            live.stop.cancel();
        }
    }
}

/// The name that probes have in lists of jobs and in the metrics.
const PROBER: &str = "orbd";

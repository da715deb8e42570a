//! Applies the circuit breaker: refuses jobs while `orbctl` is unhealthy, serves stale answers to readers, and runs health probes.

use std::sync::Arc;
use std::time::Instant;

use crate::circuit_breaker::CircuitChange;
use crate::clock::Moment;
use crate::events::Event;
use crate::job::{Failure, HealthSignal, JobId, Outcome};
use crate::metrics::Counter;
use crate::operation::{JobInfo, Query, Scope};
use crate::orbctl::Orbctl;
use crate::scheduler::CancelResult;

use super::super::answer::QueryAnswer;
use super::super::run_job::{JobResult, Note, run_probe};
use super::super::submission::JobSpec;
use super::super::views::{OutageView, Rejection};
use super::{State, scheduled};
use crate::dispatcher::about_job::about_job;

impl<O: Orbctl> State<O> {
    /// Handles an event of a running job.
    pub(super) fn on_job_event(&mut self, id: JobId, note: Note) {
        match note {
            Note::Started(started) => {
                if started.in_channel {
                    self.jobs.note_channel(id);
                }
                self.child_started(id, started.child, None);
            }
            Note::Replaced => self.invalidate_untrusted(&Scope::Everything),
            Note::HealthSignal(signal, began) => self.on_health_signal(id, signal, began),
            Note::NotDurable(accepted, cause, reply) => self.roll_back(*accepted, cause, reply),
        }
    }

    fn on_health_signal(&mut self, by: JobId, signal: HealthSignal, began: Instant) {
        let turn = self.health.on_signal(signal, began, &Moment::now());
        self.turned(turn, by);
    }

    /// Handles a change of the circuit. All effects of a change on the rest of the dispatcher are here.
    fn turned(&mut self, turn: CircuitChange, by: JobId) {
        let spec = self.jobs.get(by).map(|entry| &entry.spec);
        match turn {
            CircuitChange::None => {}
            CircuitChange::Opened => {
                if let Some(problem) = self.health.problem() {
                    tracing::warn!(
                        job_id = by.0,
                        operation = spec.map(|spec| spec.info.verb.as_str()),
                        client = spec.map(|spec| tracing::field::display(&spec.client.name)),
                        %problem,
                        "orbctl is unhealthy; circuit open, only forced operations pass"
                    );
                    let reason = problem.to_string().into();
                    self.note(Event::OrbctlUnhealthy { reason });
                }
                self.scheduler.hold();
                self.answer_readers();
            }
            CircuitChange::Recovered => {
                tracing::info!(
                    job_id = by.0,
                    operation = spec.map(|spec| spec.info.verb.as_str()),
                    client = spec.map(|spec| tracing::field::display(&spec.client.name)),
                    "orbctl is healthy again; circuit closed"
                );
                self.stop_probe();
                self.scheduler.release();
                self.note(Event::OrbctlRecovered);
                self.poll_now();
            }
        }
    }

    /// Returns the current outage of `orbctl`; `None` while it is healthy.
    pub(super) fn outage(&self) -> Option<OutageView> {
        self.health.outage(Moment::now().instant)
    }

    pub(super) fn refuse_while_unhealthy(&mut self, spec: &JobSpec) -> Result<(), Rejection> {
        let Some(outage) = self.health.refuses(spec) else {
            return Ok(());
        };
        self.metrics.count(Counter::Refusals);
        if spec.info.is_read() {
            // At debug level: a client that polls would fill the log, and the open circuit has been logged already.
            tracing::debug!(operation = spec.info.verb.as_str(), client = %spec.client.name, "job refused: orbctl is unhealthy");
        } else {
            tracing::info!(operation = spec.info.verb.as_str(), client = %spec.client.name, "job refused: orbctl is unhealthy");
        }
        Err(Rejection::Unhealthy(outage))
    }

    /// Answers readers when the circuit opens. Readers get the last known answer at once, if there is one. Other waiting reads fail,
    /// because they would wait until the recovery.
    fn answer_readers(&mut self) {
        let Some(problem) = self.health.problem().cloned() else {
            return;
        };
        self.runner.close_channels(Scope::Everything, || {});
        for id in self.reads.on_outage(&problem) {
            if self.scheduler.cancel(id) == CancelResult::NeverStarted {
                let failure = Failure::OrbctlUnhealthy(problem.clone());
                self.end_unstarted(id, Outcome::Failed(failure), None);
            }
        }
    }

    /// Returns when the next probe is due. In strict mode, only while no job runs: the end of a job wakes the dispatcher again.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        let may_run = !self.scheduler.is_closed()
            && !self.idle.is_upgrading()
            && (!self.scheduler.limits().strict || self.scheduler.is_still());
        self.health.next_probe().filter(|_| may_run)
    }

    pub(super) fn probe_if_due(&mut self) {
        let now = Moment::now();
        if self.next_probe().is_none_or(|at| at > now.instant) {
            return;
        }
        let info = JobInfo::read(&Query::List);
        let spec = Arc::new(JobSpec {
            run_timeout: Some(self.jobs.query_timeout()),
            ..JobSpec::without_client(self.journal.next_id(), info, PROBER, true, now)
        });
        // Not subject to limits: jobs that hang must not block the probe that detects the recovery.
        self.scheduler.restore_running(scheduled(&spec));
        let (tokens, _) = self.jobs.insert_running(&spec, now, None);
        let work = self.runner.work(&spec, tokens, self.runner.marker(&spec));
        let ticket = self.reads.begin_probe(&now);
        self.health.begin_probe(spec.id, ticket, now.instant);
        about_job!(debug, spec, "probing whether orbctl is healthy");
        self.runner.spawn(&spec, run_probe(work));
    }

    /// Handles the end of a probe. Returns whether the job was the probe.
    pub(super) fn finish_probe(&mut self, id: JobId, finished: &mut JobResult, now: Instant) -> bool {
        let has_waiting = self.scheduler.waiting().total() > 0;
        let Some(ticket) = self.health.end_probe(id, has_waiting, now) else {
            return false;
        };
        if let Some(answer @ QueryAnswer::Machines(_)) = finished.answer.take()
            && self.reads.record_probe(ticket, answer)
        {
            self.on_observation(id, &Query::List);
        }
        true
    }

    pub(super) fn stop_probe(&self) {
        if let Some(probe) = self.health.probe() {
            // If it has just ended, there is nothing to stop.
            let _ = self.jobs.stop(probe);
        }
    }
}

/// Client name of probes in job lists and metrics.
const PROBER: &str = "orbd";

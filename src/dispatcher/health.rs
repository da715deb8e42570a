//! The health of `orbctl`: the circuit breaker, and the probe that detects a recovery.

use std::time::Instant;

use crate::cache::Ticket;
use crate::circuit_breaker::{CircuitBreaker, CircuitChange};
use crate::clock::Moment;
use crate::job::{HealthProblem, HealthSignal, JobId};
use crate::operation::Class;

use super::submission::JobSpec;
use super::views::OutageView;

/// The circuit breaker, and the job of the probe that it waits for: there is such a job exactly while a probe is in progress, so the
/// next probe is due only after the end of this one.
#[derive(Default)]
pub(super) struct Health {
    circuit_breaker: CircuitBreaker,
    /// The running probe, and the ticket to cache its list with.
    probe: Option<(JobId, Ticket)>,
}

impl Health {
    /// Handles what an invocation that began at `began` shows.
    pub(super) fn on_signal(&mut self, signal: HealthSignal, began: Instant, now: &Moment) -> CircuitChange {
        self.circuit_breaker.on_health_signal(signal, began, now)
    }

    /// Returns the current problem of `orbctl`; `None` while it is healthy.
    pub(super) fn problem(&self) -> Option<&HealthProblem> {
        self.circuit_breaker.outage().map(|outage| &outage.problem)
    }

    /// Describes the current outage; `None` while `orbctl` is healthy.
    pub(super) fn outage(&self, now: Instant) -> Option<OutageView> {
        self.circuit_breaker.outage().map(|outage| OutageView {
            since: outage.since,
            problem: outage.problem.clone(),
            retry_after: self.circuit_breaker.retry_after(now),
        })
    }

    /// Records a request, so that probes continue.
    pub(super) fn note_demand(&mut self, now: Instant) {
        self.circuit_breaker.note_demand(now);
    }

    /// Returns the outage because of which a new job is refused, and counts the job as demand: it could only run into its time limit.
    /// Forced changes pass, because they can fix the problem, unless they name a machine by an id, which cannot be checked now.
    /// Sessions pass too: their user watches them and can end them.
    pub(super) fn refuses(&mut self, spec: &JobSpec) -> Option<OutageView> {
        let is_urgent = spec.info.preempts && spec.expected_id.is_none();
        if is_urgent || spec.info.class == Class::Session {
            return None;
        }
        let outage = self.outage(spec.accepted.instant)?;
        self.note_demand(spec.accepted.instant);
        Some(outage)
    }

    /// Returns when the next probe is due; `None` while none is needed or one is running.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.circuit_breaker.next_probe()
    }

    /// Records that the probe that is due begins as this job.
    pub(super) fn begin_probe(&mut self, job: JobId, ticket: Ticket, now: Instant) {
        let is_due = self.circuit_breaker.begin_probe(now);
        debug_assert!(is_due, "probe {job} begins, but is not due");
        self.probe = Some((job, ticket));
    }

    /// Returns the job of the running probe.
    pub(super) fn probe(&self) -> Option<JobId> {
        self.probe.as_ref().map(|(job, _)| *job)
    }

    /// Ends the probe; its health signals were sent before, as for any job. Returns the ticket to cache its list with; `None` if the
    /// job is not the probe. Waiting jobs count as demand, so that probes continue.
    pub(super) fn end_probe(&mut self, job: JobId, has_waiting: bool, now: Instant) -> Option<Ticket> {
        let (_, ticket) = self.probe.take_if(|(probe, _)| *probe == job)?;
        if has_waiting {
            self.note_demand(now);
        }
        self.circuit_breaker.probe_ended(now);
        Some(ticket)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cache::{Cache, CacheKey};
    use crate::dispatcher::fixture::spec;
    use crate::operation::{Change, Force, JobInfo, Query, Verb};
    use orbd_host::machine::MachineId;

    fn unhealthy() -> (Health, Moment) {
        let (mut health, now) = (Health::default(), Moment::now());
        let problem = HealthProblem::Blocked { verb: "list" };
        let change = health.on_signal(HealthSignal::Unhealthy(problem), now.instant, &now);
        assert_eq!(change, CircuitChange::Opened);
        (health, now)
    }

    fn ticket(now: &Moment) -> Ticket {
        Cache::<()>::new().begin(&CacheKey::Machines, now)
    }

    #[test]
    fn during_an_outage_only_forced_changes_and_sessions_pass() {
        let (mut health, _) = unhealthy();
        let web = || "web".parse().expect("a valid name");
        let stop = |force| Change::Stop(web(), force).info();
        let id: MachineId = "01M4HXHNTVZXRXR1F5PV7GC8RA".parse().expect("an id");
        for (info, expected_id, passes) in [
            (JobInfo::read(&Query::List), None, false),
            (Change::Start(web()).info(), None, false),
            (stop(Force::No), None, false),
            (stop(Force::Yes), None, true),
            (stop(Force::Yes), Some(id), false),
            (JobInfo::lease(Verb::Shell, vec![web()], Force::No), None, true),
        ] {
            let mut spec = spec(1, info);
            spec.expected_id = expected_id;
            assert_eq!(health.refuses(&spec).is_none(), passes, "{spec:?}");
            assert!(Health::default().refuses(&spec).is_none());
        }
    }

    #[test]
    fn next_probe_is_due_only_after_the_end_of_the_running_one() {
        let (mut health, now) = unhealthy();
        let at = health.next_probe().expect("a probe is due");
        health.begin_probe(JobId(7), ticket(&now), at);
        assert_eq!((health.probe(), health.next_probe()), (Some(JobId(7)), None));
        assert_eq!(health.end_probe(JobId(6), false, at), None, "another job");
        assert!(health.end_probe(JobId(7), false, at).is_some());
        assert_eq!(health.probe(), None);
        assert!(health.next_probe().is_some_and(|next| next > at));
    }

    #[test]
    fn probes_stop_without_demand_and_waiting_jobs_are_demand() {
        for has_waiting in [false, true] {
            let (mut health, now) = unhealthy();
            let at = now.instant + Duration::from_secs(3600);
            health.begin_probe(JobId(7), ticket(&now), at);
            health.end_probe(JobId(7), has_waiting, at);
            assert_eq!(health.next_probe().is_some(), has_waiting);
        }
    }

    #[test]
    fn recovery_ends_the_outage_while_a_probe_still_runs() {
        let (mut health, now) = unhealthy();
        let at = health.next_probe().expect("a probe is due");
        health.begin_probe(JobId(7), ticket(&now), at);
        let later = now.instant + Duration::from_millis(1);
        let change = health.on_signal(HealthSignal::Healthy, later, &now);
        assert_eq!(change, CircuitChange::Recovered);
        assert!(health.problem().is_none() && health.outage(later).is_none());
        assert_eq!(health.probe(), Some(JobId(7)), "its job is still to be stopped");
    }
}

//! Start and stop: takes over the jobs of the previous instance, and leaves running changes to the next one.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::Moment;
use crate::job::{JobId, Outcome, ReconcileReport};
use crate::journal::{AcceptedJob, Entry as JournalEntry, InFlight, Recovered};
use crate::operation::{Action, Effect};
use crate::orbctl::Orbctl;
use crate::scheduler::NewJob;
use crate::sys::ChildIdentity;

use super::super::marker::{Survivor, adopt};
use super::super::run_job::run_orphan;
use super::super::stored;
use super::super::submission::{Executor, JobSpec, LeaseProcesses};
use super::{State, scheduled};
use crate::dispatcher::about_job::about_job;

impl<O: Orbctl> State<O> {
    /// Takes over from the previous instance: its child processes keep their lanes, and its accepted changes are queued again.
    pub(super) fn recover(&mut self, mut recovered: Recovered, survivors: Vec<Survivor>) {
        let now = Moment::now();
        let (processes, added) = adopt(&mut recovered, survivors);
        if let Some(last) = added.iter().max() {
            self.journal.skip_past(*last);
        }
        // So that the journal names them from now on.
        for found in recovered
            .in_flight
            .iter()
            .filter(|found| added.contains(&found.starting.job))
        {
            self.journal_append(&JournalEntry::Starting(found.starting.clone()));
        }
        self.recover_running(recovered.in_flight, processes, now);
        self.recover_waiting(recovered.waiting, recovered.uncertain, now);
    }

    fn recover_running(
        &mut self,
        in_flight: Vec<InFlight>,
        mut processes: BTreeMap<JobId, Vec<ChildIdentity>>,
        now: Moment,
    ) {
        for found in in_flight {
            let starting = &found.starting;
            // The start entry has the lanes, so it is enough if the change was written by a version that this one cannot decode.
            let change = found
                .accepted
                .as_ref()
                .and_then(|accepted| stored::decode(&accepted.operation));
            let info = change.map_or_else(|| stored::info(starting), |(change, _)| change.info());
            let client = found.accepted.as_ref().map_or("", |accepted| &accepted.client);
            let child = found.process.as_ref().and_then(stored::identity);
            let children = match child {
                Some(child) => vec![child],
                // The journal does not name the process: the instance died before it knew the process, or could not write the entry.
                None => processes.remove(&starting.job).unwrap_or_default(),
            };
            let owner = found.owner.as_ref().and_then(stored::identity);
            let lease = child
                .zip(owner)
                .filter(|_| info.is_lease)
                .map(|(child, owner)| LeaseProcesses { child, owner });
            let spec = JobSpec::without_client(starting.job, info, client, starting.detached, now);
            let spec = Arc::new(JobSpec { lease, ..spec });
            about_job!(
                warn,
                spec,
                children = children.len(),
                "job was left by the previous instance; its lanes are held until its processes exit"
            );
            self.scheduler.restore_running(scheduled(&spec));
            let touches = match &spec.info.effect {
                Effect::Changes(scope) => Some(scope.clone()),
                Effect::MayStart(_) | Effect::Reads => None,
            };
            let (tokens, release) = self.jobs.insert_running(&spec, now, touches);
            // The arguments of a command were lost with the instance, and its caller with the connection: stop it.
            if spec.info.is_command_of_daemon() {
                tokens.stop.cancel();
            }
            let work = self.runner.work(&spec, tokens, starting.marker.clone());
            self.runner.spawn(&spec, async move {
                match lease.zip(release) {
                    Some((processes, release)) => work.lease(processes, release).await,
                    None => run_orphan(work, children).await,
                }
            });
        }
    }

    fn recover_waiting(&mut self, waiting: Vec<AcceptedJob>, uncertain: Vec<AcceptedJob>, now: Moment) {
        for uncertain in uncertain {
            let Some((change, _)) = stored::decode(&uncertain.operation) else {
                continue;
            };
            let (id, info) = (uncertain.job, change.info());
            let spec = Arc::new(JobSpec::without_client(id, info, &uncertain.client, true, now));
            about_job!(error, spec, "job may or may not have run; the journal is damaged");
            let executor = Executor::Daemon(Action::Change(change));
            self.jobs.insert(&spec, executor);
            self.end_unstarted(id, Outcome::Unknown(ReconcileReport::NOTHING), None);
        }
        for waiting in waiting {
            let Some((change, expected_id)) = stored::decode(&waiting.operation) else {
                tracing::error!(
                    job_id = waiting.job.0,
                    client = %waiting.client,
                    "cannot decode an accepted job of the previous instance; dropping it"
                );
                continue;
            };
            let queue_timeout = waiting.queue_timeout.unwrap_or(self.jobs.queue_timeout());
            let spec = Arc::new(JobSpec {
                expected_id,
                queue_timeout: Some(queue_timeout),
                run_timeout: waiting.run_timeout,
                ..JobSpec::without_client(waiting.job, change.info(), &waiting.client, true, now)
            });
            // The job was acknowledged, so no limit of this instance may refuse it.
            let new = NewJob {
                queue_deadline: now.instant.checked_add(queue_timeout),
                ..scheduled(&spec)
            };
            self.scheduler.readmit(new);
            self.enter(&spec, Executor::Daemon(Action::Change(change)));
            about_job!(info, spec, "job queued again after a restart");
        }
    }

    /// Begins a stop: cancels waiting jobs that are not durable, stops commands and reads, and lets changes finish.
    pub(super) fn begin_stop(&mut self) {
        self.scheduler.close();
        tracing::info!(
            waiting = self.scheduler.waiting().total(),
            running = self.runner.running(),
            "orbd is stopping"
        );
        for id in self.jobs.ended_by_stop() {
            self.cancel(id);
        }
        self.jobs.abandon_all();
    }

    /// Abandons the jobs that still run, so that they continue without orbd: each has its own process group, and the journal records
    /// them.
    pub(super) fn leave(&mut self) {
        if self.runner.running() > 0 {
            tracing::warn!(
                jobs = self.runner.running(),
                "jobs are still running; leaving them to the next instance of orbd"
            );
        }
        self.runner.leave();
        self.jobs.leave(Moment::now());
    }
}

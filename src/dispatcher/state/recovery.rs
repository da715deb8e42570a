//! Start and stop: takes over the jobs of the previous instance, and leaves running changes to the next one.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::clock::Moment;
use crate::job::{JobId, Outcome, ReconcileReport};
use crate::journal::{AcceptedJob, Entry as JournalEntry, InFlight, Recovered};
use crate::operation::{Effect, JobInfo};
use crate::orbctl::Orbctl;
use crate::scheduler::NewJob;
use crate::sys::ChildIdentity;

use super::super::handle::{JobSpec, JobState, LeaseProcesses, StateFilter};
use super::super::jobs::entry::{ActiveJob, EndedJob, JobPhase, Output};
use super::super::marker::{Survivor, adopt};
use super::super::run_job::{Task, run_orphan};
use super::super::stored;
use super::{Entry, State, is_durable, scheduled};
use crate::dispatcher::about_job::{self, about_job};
use tracing::Instrument as _;

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
            let mut live = ActiveJob::new(None);
            live.state.send_replace(JobState::Running { since: now });
            live.touches = match &spec.info.effect {
                Effect::Changes(scope) => Some(scope.clone()),
                Effect::MayStart(_) | Effect::Reads => None,
            };
            let mut output = Output::None;
            // The arguments of a command were lost with the instance, and its caller with the connection: stop it. Its output was lost
            // with the instance that read it.
            if spec.info.is_command_of_daemon() {
                live.stop.cancel();
                output = Output::Kept(self.nothing.clone());
            }
            // The owner may reconnect to report how the child ended.
            let release = lease.map(|processes| {
                let (sender, release) = oneshot::channel();
                live.release = Some(sender);
                (processes, release)
            });
            let marker = starting.marker.clone();
            let work = self.work(&spec, live.stop.clone(), live.abandon.clone(), marker);
            self.jobs.insert(spec.id, Entry::new(spec.clone(), live, output));
            let span = about_job::span(&spec);
            let finish = async move {
                let finished = match release {
                    Some((processes, release)) => work.lease(processes, release).await,
                    None => run_orphan(work, children).await,
                };
                (spec.id, finished)
            };
            self.running.spawn(finish.instrument(span));
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
            let entry = Entry::new(spec, ActiveJob::new(None), Output::None);
            self.jobs.insert(id, entry);
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
            let queue_timeout = waiting.queue_timeout.unwrap_or(self.settings.queue_timeout);
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
            self.enter(&spec, ActiveJob::new(Some(Task::Change(change))), Output::None);
            about_job!(info, spec, "job queued again after a restart");
        }
    }

    /// Begins a stop: cancels waiting jobs that are not durable, stops commands and reads, and lets changes finish.
    pub(super) fn begin_stop(&mut self) {
        self.scheduler.close();
        tracing::info!(
            waiting = self.scheduler.waiting().total(),
            running = self.running.len(),
            "orbd is stopping"
        );
        let ids: Vec<JobId> = self
            .jobs
            .values()
            .filter(|entry| match entry.phase() {
                // A waiting detached change is in the journal: the next instance runs it.
                StateFilter::Waiting => !is_durable(&entry.spec),
                StateFilter::Running => !entry.is_left_to_finish(),
                StateFilter::Ended => false,
            })
            .map(|entry| entry.spec.id)
            .collect();
        for id in ids {
            self.cancel(id);
        }
        for live in self.jobs.values().filter_map(Entry::live) {
            live.abandon.cancel();
        }
    }

    /// Abandons the jobs that still run, so that they continue without orbd: each has its own process group, and the journal records
    /// them.
    pub(super) fn leave(&mut self) {
        if !self.running.is_empty() {
            tracing::warn!(
                jobs = self.running.len(),
                "jobs are still running; leaving them to the next instance of orbd"
            );
        }
        self.running.detach_all();
        // Answer the waiters with an unseen outcome; otherwise they would take the closed channel for a refusal and retry.
        let now = Moment::now();
        for entry in mem::take(&mut self.jobs).into_values() {
            let JobPhase::ActiveJob(live) = entry.phase else {
                continue;
            };
            let Some(since) = live.running_since() else {
                continue;
            };
            let over = EndedJob {
                since: Some(since),
                at: now,
                outcome: unobserved_outcome(&entry.spec.info),
                holder: None,
            };
            live.release_waiters().send_replace(over.state());
        }
    }
}

/// Returns the outcome of a job whose end orbd did not observe.
fn unobserved_outcome(info: &JobInfo) -> Outcome {
    if info.is_change() {
        Outcome::Unknown(ReconcileReport::NOTHING)
    } else {
        Outcome::Interrupted
    }
}

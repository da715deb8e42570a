//! The beginning, which takes over from the life before, and the stop, which leaves changes to finish.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::clock::Moment;
use crate::job::{JobId, Outcome, ReconcileReport};
use crate::journal::{AcceptedJob, Entry as JournalEntry, InFlight, Recovered};
use crate::operation::{Effect, Operation};
use crate::orbctl::Orbctl;
use crate::scheduler::{self, NewJob};
use crate::sys::ChildIdentity;

use super::super::handle::{Executor, JobState, LeaseProcesses, StateFilter, Submission};
use super::super::marker::{Survivor, adopt};
use super::super::run_job::{Work, run_orphan};
use super::super::stored;
use super::entry::{EndedJob, JobPhase};
use super::{Entry, State, is_durable, scheduled};
use crate::dispatcher::about_job::{self, about_job};
use tracing::Instrument as _;

impl<O: Orbctl> State<O> {
    /// Takes over from the life before: its children keep their lanes, its acknowledged changes their places.
    pub(super) fn recover(&mut self, mut recovered: Recovered, survivors: Vec<Survivor>) {
        let now = Moment::now();
        let (processes, added) = adopt(&mut recovered, survivors);
        if let Some(last) = added.iter().max() {
            self.journal.skip_past(*last);
        }
        // From now on the journal names them.
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
            // An outline holds the lane as well, should the whole be from a version that we do not understand.
            let accepted = found
                .accepted
                .as_ref()
                .and_then(|accepted| stored::decode(&accepted.operation));
            let Some(operation) = accepted
                .map(|(operation, _)| operation)
                .or_else(|| stored::outline(starting))
            else {
                tracing::error!(
                    job_id = starting.job.0,
                    operation = %starting.verb,
                    machine = starting.machine.as_ref().map(tracing::field::display),
                    client = found.accepted.as_ref().map_or("", |accepted| &accepted.client),
                    "a job of the last run cannot be read; its lane is not held"
                );
                continue;
            };
            let client = found.accepted.as_ref().map_or("", |accepted| &accepted.client);
            let child = found.process.as_ref().and_then(stored::identity);
            let is_lease = stored::is_lease(starting);
            let children = match child {
                Some(child) => vec![child],
                // The journal does not name the process: the instance died before it knew it, or could not write.
                None => processes.remove(&starting.job).unwrap_or_default(),
            };
            let owner = found.owner.as_ref().and_then(stored::identity);
            let lease = child
                .zip(owner)
                .filter(|_| is_lease)
                .map(|(child, owner)| LeaseProcesses { child, owner });
            let mut spec = stored::revived(starting.job, operation, client, starting.detached, now);
            spec.asked.executor = lease.map_or(Executor::Daemon, Executor::Lease);
            let spec = Arc::new(spec);
            about_job!(
                warn,
                spec,
                children = children.len(),
                "left by the last run; its lanes are held until its children are gone"
            );
            self.scheduler.restore_running(scheduled(&spec));
            let (mut live, output) = self.beginning(&spec);
            // What it wrote went with the life that read it.
            live.writer = None;
            live.state.send_replace(JobState::Running { since: now });
            // Its owner may come back to say how it ended.
            let release = lease.map(|_| {
                let (told, release) = oneshot::channel();
                live.release = Some(told);
                release
            });
            live.touches = match spec.asked.operation.effect() {
                Effect::Changes(scope) => Some(scope),
                Effect::Reads => None,
            };
            // A command's words died with its daemon, and whoever waited for it with the connection.
            if matches!(spec.asked.operation, Operation::Exec(..)) {
                live.stop.cancel();
            }
            self.operands += spec.asked.operation.weight();
            let mut work = Work {
                orbctl: self.orbctl.clone(),
                limits: self.settings.run_limits(),
                guest_env: self.settings.guest_env,
                probe_permits: self.probe_permits.clone(),
                stop: live.stop.clone(),
                abandon: live.abandon.clone(),
                spool: None,
                input: None,
                spool_dir: self.settings.spool.dir.clone(),
                marker: starting.marker.clone(),
                notes: self.notes.clone(),
                release,
                spec: spec.clone(),
            };
            self.jobs.insert(spec.id, Entry::new(spec.clone(), live, output));
            let span = about_job::span(&spec);
            let finish = async move {
                let finished = match lease {
                    Some(processes) => work.lease(processes).await,
                    None => run_orphan(work, children).await,
                };
                (spec.id, finished)
            };
            self.running.spawn(finish.instrument(span));
        }
    }

    fn recover_waiting(&mut self, waiting: Vec<AcceptedJob>, uncertain: Vec<AcceptedJob>, now: Moment) {
        for uncertain in uncertain {
            let Some((operation, _)) = stored::decode(&uncertain.operation) else {
                continue;
            };
            let spec = Arc::new(stored::revived(
                uncertain.job,
                operation,
                &uncertain.client,
                true,
                now,
            ));
            about_job!(error, spec, "may or may not have run: the journal is damaged");
            let entry = self.entry(&spec);
            self.jobs.insert(spec.id, entry);
            self.end_unstarted(uncertain.job, Outcome::Unknown(ReconcileReport::NOTHING), None);
        }
        for waiting in waiting {
            let Some((operation, expected_id)) = stored::decode(&waiting.operation) else {
                tracing::error!(
                    job_id = waiting.job.0,
                    client = %waiting.client,
                    "an accepted job of the last run cannot be read and is dropped"
                );
                continue;
            };
            let queue_timeout = waiting.queue_timeout.unwrap_or(self.settings.queue_timeout);
            let mut spec = stored::revived(waiting.job, operation, &waiting.client, true, now);
            spec.asked = Submission {
                expected_id,
                queue_timeout: Some(queue_timeout),
                run_timeout: waiting.run_timeout,
                ..spec.asked
            };
            let spec = Arc::new(spec);
            // It was acknowledged, so no limit of this life turns it away.
            let new = NewJob {
                queue_deadline: now.instant.checked_add(queue_timeout),
                ..scheduled(&spec)
            };
            self.scheduler.readmit(new);
            self.enter(&spec);
            about_job!(info, spec, "queued again after a restart");
        }
    }

    /// Cancels what waits for somebody, ends commands, and leaves changes to finish.
    pub(super) fn begin_stop(&mut self) {
        self.stopping = true;
        tracing::info!(
            waiting = self.scheduler.waiting().total(),
            running = self.running.len(),
            "stopping"
        );
        let ids: Vec<JobId> = self
            .jobs
            .values()
            .filter(|entry| match entry.phase() {
                // A detached change that waits is in the journal: the next life does it.
                StateFilter::Waiting => !is_durable(&entry.spec),
                StateFilter::Running => !entry.is_left_to_finish(),
                StateFilter::Ended => false,
            })
            .map(|entry| entry.spec.id)
            .collect();
        for id in ids {
            self.cancel(id);
        }
        self.scheduler.pause(scheduler::Target::All);
        for live in self.jobs.values().filter_map(Entry::live) {
            live.abandon.cancel();
        }
    }

    /// Lets go of changes that still run: their process groups are their own, and the journal remembers them.
    pub(super) fn leave(&mut self) {
        if !self.running.is_empty() {
            tracing::warn!(
                jobs = self.running.len(),
                "left to finish by themselves; the next start finds them"
            );
        }
        self.running.detach_all();
        // Whoever waits for them must not take our going away for a refusal and ask again.
        let now = Moment::now();
        for entry in mem::take(&mut self.jobs).into_values() {
            let JobPhase::ActiveJob(live) = entry.life else {
                continue;
            };
            let Some(since) = live.running_since() else {
                continue;
            };
            let over = EndedJob {
                since: Some(since),
                at: now,
                outcome: unseen(&entry.spec.asked.operation),
                holder: None,
            };
            live.release_waiters().send_replace(over.state());
        }
    }
}

/// Says what became of a job whose end nobody saw.
fn unseen(operation: &Operation) -> Outcome {
    match operation.effect() {
        Effect::Changes(_) => Outcome::Unknown(ReconcileReport::NOTHING),
        Effect::Reads => Outcome::Interrupted,
    }
}

//! Accepts jobs: writes them to the journal, queues them, and carries out what a forced change does to other jobs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::Moment;
use crate::job::{JobId, Outcome, Phase};
use crate::journal::{AcceptedJob, Entry as JournalEntry};
use crate::metrics::Counter;
use crate::operation::Action;
use crate::orbctl::Orbctl;
use crate::scheduler::{Admission, NewJob};
use orbd_host::error_chain::error_chain;

use super::super::jobs::OPERANDS_MAX;
use super::super::stored;
use super::super::submission::{Executor, Job, JobSpec, JobState, Submission};
use super::super::views::{Rejection, StateFilter};
use super::{State, scheduled};
use crate::dispatcher::about_job::about_job;

/// How long a caller that was refused because of [`OPERANDS_MAX`] should wait before trying again.
const OPERANDS_RETRY_AFTER: Duration = Duration::from_secs(1);

impl<O: Orbctl> State<O> {
    pub(super) fn submit(&mut self, submission: Submission, reply: oneshot::Sender<Result<Job, Rejection>>) {
        if submission.client.gone.is_cancelled() && !submission.detached {
            // The connection's end has already been handled, so nothing would ever cancel this job.
            let _ = reply.send(Err(Rejection::ClientGone));
            return;
        }
        let id = self.journal.next_id();
        let mut spec = JobSpec::new(id, Moment::now(), &submission);
        self.jobs.set_default_limits(&mut spec);
        let spec = Arc::new(spec);
        // Written before acceptance: an accepted job may start at once, and if it is forced, it ends other jobs.
        let written = if spec.is_durable()
            && let Executor::Daemon(Action::Change(change)) = &submission.executor
        {
            let entry = JournalEntry::Accepted(AcceptedJob {
                job: id,
                operation: stored::encode(change, spec.expected_id.as_ref()),
                client: spec.client.name.to_string(),
                accepted_ms: spec.accepted.unix_ms(),
                queue_timeout: spec.queue_timeout,
                run_timeout: spec.run_timeout,
            });
            match self.journal.append_durable(&entry) {
                Ok(written) => Some(written),
                Err(error) => {
                    let _ = reply.send(Err(Rejection::Journal(error_chain(&error).into())));
                    return;
                }
            }
        } else {
            None
        };
        let accepted = match self.accept(&spec, submission.executor) {
            Ok(job) => job,
            Err(rejection) => {
                if written.is_some() {
                    self.journal_append(&JournalEntry::Ended { job: id });
                }
                let _ = reply.send(Err(rejection));
                return;
            }
        };
        // The job may start at once, but is acknowledged only once its entry would survive a power loss.
        let Some(written) = written else {
            let _ = reply.send(Ok(accepted));
            return;
        };
        self.runner.acknowledge(accepted, written, reply);
    }

    /// Rolls back a job whose journal write failed. A job that has already started keeps running and is acknowledged, because a
    /// rejection would mean that it had no effect.
    pub(super) fn roll_back(
        &mut self,
        accepted: Job,
        cause: Arc<str>,
        reply: oneshot::Sender<Result<Job, Rejection>>,
    ) {
        let id = accepted.spec.id;
        let waits = self
            .jobs
            .get(id)
            .is_some_and(|entry| entry.phase() == StateFilter::Waiting);
        let answer = if waits {
            self.cancel(id);
            Err(Rejection::Journal(cause))
        } else {
            if let Some(entry) = self.jobs.get(id) {
                about_job!(error, entry.spec, %cause, "job is running but not durably journalled");
            }
            Ok(accepted)
        };
        let _ = reply.send(answer);
    }

    /// Queues a job, and carries out what its force does to other jobs.
    pub(super) fn accept(&mut self, spec: &Arc<JobSpec>, executor: Executor) -> Result<Job, Rejection> {
        if self.idle.is_upgrading() {
            return Err(Rejection::Upgrading);
        }
        if self.scheduler.is_closed() {
            return Err(Rejection::Stopping);
        }
        self.refuse_while_unhealthy(spec)?;
        let new = NewJob {
            queue_deadline: spec
                .queue_timeout
                .and_then(|limit| spec.accepted.instant.checked_add(limit)),
            ..scheduled(spec)
        };
        if !self.jobs.has_room_for(spec) {
            self.metrics.count(Counter::Refusals);
            return Err(Rejection::OperandsFull {
                limit: OPERANDS_MAX,
                retry_after: OPERANDS_RETRY_AFTER,
            });
        }
        let admission = self.scheduler.submit(new).map_err(|refusal| {
            self.metrics.count(Counter::Refusals);
            tracing::info!(operation = spec.info.verb.as_str(), client = %spec.client.name, %refusal, "job refused");
            Rejection::Refused(refusal)
        })?;
        let job = self.enter(spec, executor);
        about_job!(debug, spec, "job accepted");
        self.preempt(admission, spec.id);
        if spec.info.preempts {
            // In strict mode a probe that hangs would block the forced change.
            self.stop_probe();
        }
        Ok(job)
    }

    /// Adds an accepted job to the table.
    pub(super) fn enter(&mut self, spec: &Arc<JobSpec>, executor: Executor) -> Job {
        let job = self.jobs.insert(spec, executor);
        self.watch.note_job(spec, &JobState::Waiting, Moment::now());
        job
    }

    fn preempt(&mut self, admission: Admission, by: JobId) {
        // Preempted jobs report the forced change that preempted them.
        let force = self.jobs.get(by).map(|entry| entry.as_blocker(&Moment::now()));
        for id in admission.cancelled {
            self.end_unstarted(id, Outcome::Cancelled(Phase::Queued), force.clone());
        }
        for id in admission.stop {
            if let Some(spec) = self.jobs.preempt(id, force.clone()) {
                about_job!(info, spec, by = by.0, "job preempted");
            }
        }
    }
}

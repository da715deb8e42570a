//! Accepts jobs: writes them to the journal, queues them, and carries out what a forced change does to other jobs.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::error_chain::error_chain;
use crate::job::{JobId, Outcome, Phase};
use crate::journal::{AcceptedJob, Entry as JournalEntry};
use crate::metrics::Counter;
use crate::operation::{Operation, OutputKept, Stdin};
use crate::orbctl::Orbctl;
use crate::scheduler::{Admission, NewJob};
use crate::spool;

use super::super::handle::{Job, JobSpec, JobState, Rejection, Request, StateFilter, Submission};
use super::super::stored;
use super::entry::{ActiveJob, Output};
use super::{Entry, INPUT_MAX, OPERANDS_MAX, OPERANDS_RETRY_AFTER, State, is_durable, scheduled};
use crate::dispatcher::about_job::about_job;

impl<O: Orbctl> State<O> {
    pub(super) fn submit(
        &mut self,
        mut submission: Submission,
        reply: oneshot::Sender<Result<Job, Rejection>>,
    ) {
        if submission.client.gone.is_cancelled() && !submission.detached {
            // The connection's end has already been handled, so nothing would ever cancel this job.
            let _ = reply.send(Err(Rejection::ClientGone));
            return;
        }
        let class = submission.operation.class();
        submission
            .queue_timeout
            .get_or_insert(self.settings.queue_timeout);
        if submission.run_timeout.is_none() && submission.operation.has_run_limit() {
            submission.run_timeout = self.settings.run_timeouts.of(class);
        }
        let id = self.journal.next_id();
        let spec = Arc::new(JobSpec {
            id,
            accepted: Moment::now(),
            submission,
        });
        // Written before acceptance: an accepted job may start at once, and if it is forced, it ends other jobs.
        let written = if is_durable(&spec) {
            let entry = JournalEntry::Accepted(AcceptedJob {
                job: id,
                operation: stored::encode(&spec.submission.operation, spec.submission.expected_id.as_ref()),
                client: spec.submission.client.name.to_string(),
                accepted_ms: spec.accepted.unix_ms(),
                queue_timeout: spec.submission.queue_timeout,
                run_timeout: spec.submission.run_timeout,
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
        let accepted = match self.accept(&spec) {
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
        let requests = self.requests.clone();
        tokio::spawn(async move {
            match written.await {
                Ok(()) => {
                    let _ = reply.send(Ok(accepted));
                }
                Err(error) => {
                    // If the dispatcher has ended, the caller gets no reply.
                    if let Some(requests) = requests.upgrade() {
                        let _ = requests
                            .send(Request::RollBack(
                                Box::new(accepted),
                                error_chain(&error).into(),
                                reply,
                            ))
                            .await;
                    }
                }
            }
        });
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
            .get(&id)
            .is_some_and(|entry| entry.phase() == StateFilter::Waiting);
        let answer = if waits {
            self.cancel(id);
            Err(Rejection::Journal(cause))
        } else {
            if let Some(entry) = self.jobs.get(&id) {
                about_job!(error, entry.spec, %cause, "job is running but not durably journalled");
            }
            Ok(accepted)
        };
        let _ = reply.send(answer);
    }

    /// Queues a job, and carries out what its force does to other jobs.
    pub(super) fn accept(&mut self, spec: &Arc<JobSpec>) -> Result<Job, Rejection> {
        if self.is_upgrading() {
            return Err(Rejection::Upgrading);
        }
        if self.stopping {
            return Err(Rejection::Stopping);
        }
        self.refuse_while_unhealthy(spec)?;
        let new = NewJob {
            queue_deadline: spec
                .submission
                .queue_timeout
                .and_then(|limit| spec.accepted.instant.checked_add(limit)),
            ..scheduled(spec)
        };
        if self.operands.saturating_add(spec.submission.operation.weight()) > OPERANDS_MAX {
            self.metrics.count(Counter::Refusals);
            return Err(Rejection::OperandsFull {
                limit: OPERANDS_MAX,
                retry_after: OPERANDS_RETRY_AFTER,
            });
        }
        let admission = self.scheduler.submit(new).map_err(|refusal| {
            self.metrics.count(Counter::Refusals);
            tracing::info!(operation = spec.submission.operation.verb(), client = %spec.submission.client.name, %refusal, "job refused");
            Rejection::Refused(refusal)
        })?;
        let job = self.enter(spec);
        about_job!(debug, spec, "job accepted");
        self.preempt(admission, spec.id);
        if spec.submission.operation.preempts() {
            // In strict mode a probe that hangs would block the forced change.
            self.stop_probe();
        }
        Ok(job)
    }

    pub(super) fn enter(&mut self, spec: &Arc<JobSpec>) -> Job {
        let entry = self.entry(spec);
        let job = entry.job(&mut self.ended_job_watchers);
        self.operands += spec.submission.operation.weight();
        self.jobs.insert(spec.id, entry);
        self.jobs_by_connection.enter(spec);
        self.note_job(spec, &JobState::Waiting);
        job
    }

    pub(super) fn entry(&self, spec: &Arc<JobSpec>) -> Entry {
        let (live, output) = self.beginning(spec);
        Entry::new(spec.clone(), live, output)
    }

    /// Returns the channels, tokens and output of a new job.
    pub(super) fn beginning(&self, spec: &JobSpec) -> (ActiveJob, Output) {
        let mut live = ActiveJob {
            state: watch::Sender::new(JobState::Waiting),
            stop: CancellationToken::new(),
            abandon: CancellationToken::new(),
            writer: None,
            input: None,
            input_end: None,
            release: None,
            touches: None,
            preempted_by: None,
        };
        let Operation::Exec(_, request) = &spec.submission.operation else {
            return (live, Output::None);
        };
        let mut settings = self.settings.spool.clone();
        if request.output == OutputKept::Unread {
            settings.keep = spool::Keep::Unread;
        }
        let (writer, spool) = spool::spool(&settings, &self.spools);
        live.writer = Some(writer);
        if request.stdin == Stdin::Stream {
            let (input, input_end) = mpsc::channel(INPUT_MAX);
            (live.input, live.input_end) = (Some(input), Some(input_end));
        }
        (live, Output::Kept(spool))
    }

    fn preempt(&mut self, admission: Admission, by: JobId) {
        // Preempted jobs report the forced change that preempted them.
        let force = self.jobs.get(&by).map(Self::in_the_way);
        for id in admission.cancelled {
            self.end_unstarted(id, Outcome::Cancelled(Phase::Queued), force.clone());
        }
        for id in admission.stop {
            let Some(entry) = self.jobs.get_mut(&id) else {
                continue;
            };
            about_job!(info, entry.spec, by = by.0, "job preempted");
            if let Some(live) = entry.live_mut() {
                live.preempted_by.clone_from(&force);
                live.stop.cancel();
                live.abandon.cancel();
            }
        }
    }
}

//! Accepts jobs: writes them to the journal, queues them, and carries out what a forced change does to other jobs.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::clock::Moment;
use crate::error_chain::error_chain;
use crate::job::{JobId, Outcome, Phase};
use crate::journal::{AcceptedJob, Entry as JournalEntry};
use crate::metrics::Counter;
use crate::operation::{Action, OutputKept, Stdin};
use crate::orbctl::{Exec, Input, Orbctl};
use crate::scheduler::{Admission, NewJob};
use crate::spool;

use super::super::handle::{Executor, Job, JobSpec, JobState, Rejection, Request, StateFilter, Submission};
use super::super::jobs::entry::{ActiveJob, Output};
use super::super::run_job::Task;
use super::super::stored;
use super::{Entry, INPUT_MAX, OPERANDS_MAX, OPERANDS_RETRY_AFTER, State, is_durable, scheduled};
use crate::dispatcher::about_job::about_job;

impl<O: Orbctl> State<O> {
    pub(super) fn submit(&mut self, submission: Submission, reply: oneshot::Sender<Result<Job, Rejection>>) {
        if submission.client.gone.is_cancelled() && !submission.detached {
            // The connection's end has already been handled, so nothing would ever cancel this job.
            let _ = reply.send(Err(Rejection::ClientGone));
            return;
        }
        let id = self.journal.next_id();
        let mut spec = JobSpec::new(id, Moment::now(), &submission);
        spec.queue_timeout.get_or_insert(self.settings.queue_timeout);
        if spec.run_timeout.is_none() && spec.info.has_run_limit() {
            spec.run_timeout = self.settings.run_timeouts.of(spec.info.class);
        }
        let spec = Arc::new(spec);
        // Written before acceptance: an accepted job may start at once, and if it is forced, it ends other jobs.
        let written = if is_durable(&spec)
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
        if self.operands.saturating_add(spec.weight) > OPERANDS_MAX {
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
        let (live, output) = self.beginning(executor);
        let job = self.enter(spec, live, output);
        about_job!(debug, spec, "job accepted");
        self.preempt(admission, spec.id);
        if spec.info.preempts {
            // In strict mode a probe that hangs would block the forced change.
            self.stop_probe();
        }
        Ok(job)
    }

    pub(super) fn enter(&mut self, spec: &Arc<JobSpec>, live: ActiveJob, output: Output) -> Job {
        let entry = Entry::new(spec.clone(), live, output);
        let job = entry.job(&mut self.ended_job_watchers);
        self.operands += spec.weight;
        self.jobs.insert(spec.id, entry);
        self.jobs_by_connection.enter(spec);
        self.watch.note_job(spec, &JobState::Waiting, Moment::now());
        job
    }

    /// Returns the channels, tokens and output of a new job.
    fn beginning(&self, executor: Executor) -> (ActiveJob, Output) {
        let (machine, request) = match executor {
            Executor::Daemon(Action::Query(query)) => {
                return (ActiveJob::new(Some(Task::Query(query))), Output::None);
            }
            Executor::Daemon(Action::Change(change)) => {
                return (ActiveJob::new(Some(Task::Change(change))), Output::None);
            }
            Executor::Client(_, processes) => {
                let (sender, release) = oneshot::channel();
                let mut live = ActiveJob::new(Some(Task::Lease(processes, release)));
                live.release = Some(sender);
                return (live, Output::None);
            }
            Executor::Daemon(Action::Exec(machine, request)) => (machine, request),
        };
        let mut settings = self.settings.spool.clone();
        if request.output == OutputKept::Unread {
            settings.keep = spool::Keep::Unread;
        }
        let (output, spool) = spool::spool(&settings, &self.spools);
        let (stdin, input) = match &request.stdin {
            Stdin::Empty => (Input::Empty, None),
            Stdin::Bytes(bytes) => (Input::Bytes(bytes.clone()), None),
            Stdin::Stream => {
                let (input, stream) = mpsc::channel(INPUT_MAX);
                (Input::Stream(stream), Some(input))
            }
        };
        let exec = Exec {
            machine,
            request,
            stdin,
            output,
        };
        let mut live = ActiveJob::new(Some(Task::Exec(Box::new(exec))));
        live.input = input;
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

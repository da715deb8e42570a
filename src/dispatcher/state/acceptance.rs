//! Acceptance: into the queue, into the journal, and what force does to others.

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
use crate::scheduler::{Admission, NewJob, Refusal};
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
            // Its connection's end has been handled: nobody would ever cancel this.
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
            asked: submission,
        });
        // Written first: once it is accepted it may start at once, and its force has ended what others run.
        let written = if is_durable(&spec) {
            let entry = JournalEntry::Accepted(AcceptedJob {
                job: id,
                operation: stored::encode(&spec.asked.operation, spec.asked.expected_id.as_ref()),
                client: spec.asked.client.name.to_string(),
                accepted_ms: spec.accepted.unix_ms(),
                queue_timeout: spec.asked.queue_timeout,
                run_timeout: spec.asked.run_timeout,
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
        // It may start at once; it is acknowledged only when a power loss could no longer forget it.
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
                    // A dispatcher that is gone answers nobody.
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

    /// Takes back a job whose acceptance could not be written down. One that started meanwhile goes on, and is acknowledged:
    /// "nothing happened" would not be true of it.
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
                about_job!(error, entry.spec, %cause, "it runs, but a loss of power would forget it");
            }
            Ok(accepted)
        };
        let _ = reply.send(answer);
    }

    /// Puts a job into the queue and carries out what its force does to others.
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
                .asked
                .queue_timeout
                .and_then(|limit| spec.accepted.instant.checked_add(limit)),
            ..scheduled(spec)
        };
        if self.operands.saturating_add(spec.asked.operation.weight()) > OPERANDS_MAX {
            self.metrics.count(Counter::Refusals);
            return Err(Rejection::OperandsFull {
                limit: OPERANDS_MAX,
                retry_after: OPERANDS_RETRY_AFTER,
            });
        }
        let admission = self.scheduler.submit(new).map_err(|refusal| {
            self.metrics.count(Counter::Refusals);
            tracing::info!(operation = spec.asked.operation.verb(), client = %spec.asked.client.name, %refusal, "refused");
            rejected(refusal)
        })?;
        let job = self.enter(spec);
        about_job!(debug, spec, "accepted");
        self.preempt(admission, spec.id);
        if spec.asked.operation.preempts() {
            // With one invocation at a time a probe that hangs would be in the way of what mends.
            self.stop_probe();
        }
        Ok(job)
    }

    pub(super) fn enter(&mut self, spec: &Arc<JobSpec>) -> Job {
        let entry = self.entry(spec);
        let job = entry.job(&mut self.ended_job_watchers);
        self.operands += spec.asked.operation.weight();
        self.jobs.insert(spec.id, entry);
        self.jobs_by_connection.enter(spec);
        self.note_job(spec, &JobState::Waiting);
        job
    }

    pub(super) fn entry(&self, spec: &Arc<JobSpec>) -> Entry {
        let (live, output) = self.beginning(spec);
        Entry::new(spec.clone(), live, output)
    }

    /// Makes what a job needs that is not over.
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
        let Operation::Exec(_, request) = &spec.asked.operation else {
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
        // Whoever loses to force is told whose.
        let force = self.jobs.get(&by).map(Self::in_the_way);
        for id in admission.cancelled {
            self.end_unstarted(id, Outcome::Cancelled(Phase::Queued), force.clone());
        }
        for id in admission.stop {
            let Some(entry) = self.jobs.get_mut(&id) else {
                continue;
            };
            about_job!(info, entry.spec, by = by.0, "preempted");
            if let Some(live) = entry.live_mut() {
                live.preempted_by.clone_from(&force);
                live.stop.cancel();
                live.abandon.cancel();
            }
        }
    }
}

fn rejected(refusal: Refusal) -> Rejection {
    match refusal {
        Refusal::QueueFull { limit, retry_after } => Rejection::QueueFull { limit, retry_after },
        Refusal::ClientQueueFull { limit, retry_after } => Rejection::ClientQueueFull { limit, retry_after },
        Refusal::Draining { what } => Rejection::Draining {
            what: what.to_string(),
        },
    }
}

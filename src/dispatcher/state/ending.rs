//! Ends of jobs: answers waiters, records metrics, and keeps results and output for the configured time. Also cancellation and
//! disconnects.

use std::time::Instant;

use crate::clock::Moment;
use crate::job::{JobId, Outcome, Phase, Success};
use crate::journal::Entry as JournalEntry;
use crate::metrics::{self, Counter, OperationRecord, OutcomeWord};
use crate::operation::Query;
use crate::orbctl::Orbctl;
use crate::scheduler::{self, CancelResult};
use crate::spool;

use super::super::jobs::{EndedJob, EndingJob, Entry};
use super::super::run_job::JobResult;
use super::super::submission::{JobSpec, WaitingFor};
use super::super::views::Cancelled;
use super::State;
use super::watching::is_ourselves;
use crate::dispatcher::about_job::about_job;

impl<O: Orbctl> State<O> {
    /// Ends a running job.
    pub(super) fn end(&mut self, id: JobId, mut finished: JobResult) {
        let now = Moment::now();
        let Some(ending) = self.jobs.take_ending(id) else {
            debug_assert!(false, "job {id} ended, but is not active");
            return;
        };
        let EndingJob {
            spec,
            since,
            touches,
            preempted_by,
        } = ending;
        // Before any reply: a caller that reads after the reply must see the state after the change.
        if let Some(scope) = touches {
            self.touch(&spec.info, &scope);
            self.poll_now();
        }
        if !spec.info.is_read() {
            self.journal_append(&JournalEntry::Ended { job: id });
        }
        self.scheduler.end(id);
        let is_recorded = self.finish_reads(id, &mut finished, None);
        if matches!(
            finished.outcome,
            Outcome::Succeeded(Success::Change { changed: false })
        ) {
            self.metrics.count(Counter::ChangesSkipped);
            self.metrics.count(Counter::SpawnsSaved);
        }
        self.finalize(id, since, now, &finished, preempted_by, is_recorded);
    }

    /// Ends a job that never started. The scheduler has already removed it.
    pub(super) fn end_unstarted(&mut self, id: JobId, outcome: Outcome, holder: Option<WaitingFor>) {
        let now = Moment::now();
        if self.jobs.get(id).is_some_and(|entry| entry.spec.is_durable()) {
            self.journal_append(&JournalEntry::Ended { job: id });
        }
        let mut finished = JobResult::new(outcome);
        let is_recorded = self.finish_reads(id, &mut finished, holder.as_ref());
        self.finalize(id, None, now, &finished, holder, is_recorded);
    }

    /// Handles the result of a read, including orbd's own polls and health probes. Returns whether the job leaves a record: a poll or
    /// probe that observed nothing new leaves none, so that an idle subscriber neither fills the history nor wakes the metrics
    /// helper.
    fn finish_reads(&mut self, id: JobId, finished: &mut JobResult, holder: Option<&WaitingFor>) -> bool {
        if self.finish_probe(id, finished, Moment::now().instant) {
            let is_succeeded = matches!(finished.outcome, Outcome::Succeeded(_));
            return is_succeeded && self.outage().is_none();
        }
        let poll = self.poll_of_ours(id);
        let last_event = self.watch.last_event();
        self.finish_read(id, finished, holder);
        poll.is_none_or(|query| {
            let is_turn = self.watch.on_poll_outcome(query, &finished.outcome);
            is_turn || self.watch.last_event() != last_event
        })
    }

    /// Returns the query of a job that is a poll by orbd which no client shares; `None` for other jobs.
    fn poll_of_ours(&self, id: JobId) -> Option<Query> {
        let entry = self.jobs.get(id)?;
        let is_poll = self.watch.is_poll(id) && entry.joined == 0 && is_ourselves(&entry.spec);
        entry.query().filter(|_| is_poll).cloned()
    }

    /// Moves a job to its ended state: notifies watchers, records metrics, and keeps the result and output.
    fn finalize(
        &mut self,
        id: JobId,
        since: Option<Moment>,
        now: Moment,
        finished: &JobResult,
        holder: Option<WaitingFor>,
        is_recorded: bool,
    ) {
        let Some(entry) = self.jobs.get(id) else {
            return;
        };
        let spec = entry.spec.clone();
        if is_recorded {
            self.metrics.record(record(&spec, since, now, finished, entry));
        }
        if let Outcome::Succeeded(Success::Observed { warning, .. }) = &finished.outcome {
            about_job!(
                warn,
                spec,
                warning = &**warning,
                "change was cut short, but was observed to be done"
            );
        }
        let level_worthy = !matches!(finished.outcome, Outcome::Succeeded(_));
        // JSON has no 128-bit integers.
        let run_us = since.map(|since| {
            let ran = now.instant.saturating_duration_since(since.instant);
            u64::try_from(ran.as_micros()).unwrap_or(u64::MAX)
        });
        if level_worthy {
            about_job!(
                info,
                spec,
                outcome = outcome_word(&finished.outcome).as_str(),
                run_us,
                "job ended"
            );
        } else {
            about_job!(debug, spec, run_us, "job ended");
        }
        let over = EndedJob {
            since,
            at: now,
            outcome: finished.outcome.clone(),
            holder: holder.map(Box::new),
        };
        let Some(ended) = self.jobs.end(id, over) else {
            return;
        };
        // An attached caller has received the output, unless it is too large for one reply.
        if let Some(entry) = self.jobs.get(id)
            && (spec.detached || entry.output_bytes() > spool::MEMORY)
        {
            self.idle.touch(now.instant);
        }
        self.idle.job_ended(now.instant);
        self.watch.note_job(&spec, &ended, now);
    }

    pub(super) fn expire(&mut self, now: Instant) {
        for scheduler::Expired { id, blocker } in self.scheduler.expire(now) {
            let holder = self.waiting_for(&blocker);
            self.end_unstarted(id, Outcome::Expired(Phase::Queued), holder);
        }
    }

    pub(super) fn cancel(&mut self, id: JobId) -> Cancelled {
        if let Err(none) = self.jobs.stop(id) {
            return none;
        }
        match self.scheduler.cancel(id) {
            CancelResult::NeverStarted => {
                self.end_unstarted(id, Outcome::Cancelled(Phase::Queued), None);
                Cancelled::NeverStarted
            }
            CancelResult::Stopping | CancelResult::NoSuchJob => Cancelled::Stopping,
        }
    }

    /// Handles a closed connection.
    pub(super) fn on_disconnect(&mut self, connection: u64) {
        for id in self.jobs.ended_by_disconnect(connection) {
            self.cancel(id);
        }
    }
}

fn outcome_word(outcome: &Outcome) -> OutcomeWord {
    match outcome {
        Outcome::Succeeded(_) => OutcomeWord::Succeeded,
        Outcome::Failed(_) => OutcomeWord::Failed,
        Outcome::Cancelled(_) => OutcomeWord::Cancelled,
        Outcome::Expired(_) => OutcomeWord::Expired,
        Outcome::Interrupted => OutcomeWord::Interrupted,
        Outcome::Unknown(_) => OutcomeWord::Unknown,
    }
}

/// Returns the metrics record of an ended job. It holds no arguments, environment or input.
fn record(
    spec: &JobSpec,
    since: Option<Moment>,
    now: Moment,
    finished: &JobResult,
    entry: &Entry,
) -> OperationRecord {
    let micros = |from: Instant, to: Instant| {
        u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
    };
    let changed = match finished.outcome {
        Outcome::Succeeded(Success::Change { changed }) => Some(changed),
        Outcome::Succeeded(Success::Lease { changed } | Success::Observed { changed, .. }) => changed,
        _ => None,
    };
    OperationRecord {
        id: spec.id.0,
        operation: spec.info.verb.as_str().into(),
        machine: spec.info.machine.clone(),
        class: spec.info.class,
        client: metrics::Client {
            name: spec.client.name.clone(),
            pid: spec.client.pid,
            uid: spec.client.uid,
        },
        accepted_ms: spec.accepted.unix_ms(),
        started_ms: since.map(|since| since.unix_ms()),
        ended_ms: now.unix_ms(),
        wait_us: micros(spec.accepted.instant, since.unwrap_or(now).instant),
        run_us: since.map_or(0, |since| micros(since.instant, now.instant)),
        ending: finished.ending,
        outcome: outcome_word(&finished.outcome),
        exit_code: finished.exit_code,
        bytes_in: finished.bytes_in,
        bytes_out: finished.bytes_out,
        joined: entry.joined > 0,
        in_channel: entry.in_channel,
        changed,
        label: spec.label.clone(),
    }
}

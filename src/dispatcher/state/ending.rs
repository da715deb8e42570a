//! Ends: who is told, what is recorded, what is kept and for how long; cancelling and clients that go away.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use crate::clock::Moment;
use crate::job::{JobId, Outcome, Phase, Success};
use crate::journal::Entry as JournalEntry;
use crate::metrics::{self, Counter, OperationRecord, OutcomeWord};
use crate::operation::{Operation, Query};
use crate::orbctl::Orbctl;
use crate::scheduler::{self, CancelResult};
use crate::spool;

use super::super::handle::{Cancelled, Executor, JobSpec, WaitingFor};
use super::super::run_job::JobResult;
use super::entry::{EndedJob, JobPhase, Output};
use super::watching::is_ourselves;
use super::{State, is_durable};
use crate::dispatcher::about_job::about_job;

impl<O: Orbctl> State<O> {
    /// A running job is over.
    pub(super) fn end(&mut self, id: JobId, mut finished: JobResult) {
        let now = Moment::now();
        let found = self.jobs.get_mut(&id);
        let Some((spec, live)) = found.and_then(|entry| Some((entry.spec.clone(), entry.live_mut()?))) else {
            debug_assert!(false, "job {id} ends, but does not live");
            return;
        };
        let touches = live.touches.take();
        let preempted_by = live.preempted_by.take();
        let since = live.running_since();
        // Before anybody is answered: whoever reads after that answer reads what is true after the change.
        if let Some(scope) = touches {
            self.touch(&spec.asked.operation, &scope);
            self.look_now();
        }
        if !matches!(spec.asked.operation, Operation::Query(_)) {
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

    /// A job that never started is over; the scheduler has forgotten it.
    pub(super) fn end_unstarted(&mut self, id: JobId, outcome: Outcome, holder: Option<WaitingFor>) {
        let now = Moment::now();
        if self.jobs.get(&id).is_some_and(|entry| is_durable(&entry.spec)) {
            self.journal_append(&JournalEntry::Ended { job: id });
        }
        let mut finished = JobResult::new(outcome);
        let is_recorded = self.finish_reads(id, &mut finished, holder.as_ref());
        self.finalize(id, None, now, &finished, holder, is_recorded);
    }

    /// Takes in what a read found, whoever made it. Returns whether the job leaves a record: one that orbd made by itself and that
    /// found nothing new leaves none, so that an idle subscriber neither fills the history nor wakes the metrics' helper.
    fn finish_reads(&mut self, id: JobId, finished: &mut JobResult, holder: Option<&WaitingFor>) -> bool {
        if self.finish_probe(id, finished, Moment::now().instant) {
            let is_succeeded = matches!(finished.outcome, Outcome::Succeeded(_));
            return is_succeeded && self.outage().is_none();
        }
        let poll = self.poll_of_ours(id);
        let last_event = self.watching.last_event();
        self.finish_read(id, finished, holder);
        poll.is_none_or(|query| {
            let is_turn = self.watching.note_poll(query, &finished.outcome);
            is_turn || self.watching.last_event() != last_event
        })
    }

    /// Returns what a job polls if orbd made it by itself and no client shares it.
    fn poll_of_ours(&self, id: JobId) -> Option<Query> {
        let entry = self.jobs.get(&id)?;
        match &entry.spec.asked.operation {
            Operation::Query(query)
                if self.watching.is_look(id) && entry.joined == 0 && is_ourselves(&entry.spec) =>
            {
                Some(query.clone())
            }
            _ => None,
        }
    }

    /// Tells followers, records, and keeps what is to be kept.
    fn finalize(
        &mut self,
        id: JobId,
        since: Option<Moment>,
        now: Moment,
        finished: &JobResult,
        holder: Option<WaitingFor>,
        is_recorded: bool,
    ) {
        let Some(entry) = self.jobs.get_mut(&id) else {
            return;
        };
        let over = EndedJob {
            since,
            at: now,
            outcome: finished.outcome.clone(),
            holder: holder.map(Box::new),
        };
        let ended = over.state();
        let JobPhase::ActiveJob(live) = mem::replace(&mut entry.life, JobPhase::EndedJob(Box::new(over)))
        else {
            debug_assert!(false, "job {id} ends twice");
            return;
        };
        let channel = live.release_waiters();
        let spec = entry.spec.clone();
        if is_recorded {
            self.metrics
                .record(record(&spec, since, now, finished, entry.joined));
        }
        if let Outcome::Succeeded(Success::Observed { warning, .. }) = &finished.outcome {
            about_job!(warn, spec, warning = &**warning, "cut short, but done");
        }
        let level_worthy = !matches!(finished.outcome, Outcome::Succeeded(_));
        // JSON has no integers of 128 bits.
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
                "ended"
            );
        } else {
            about_job!(debug, spec, run_us, "ended");
        }
        channel.send_replace(ended.clone());
        self.ended_job_watchers.keep(id, channel);
        self.operands -= spec.asked.operation.weight();
        self.jobs_by_connection.leave(&spec);
        if matches!(spec.asked.operation, Operation::Exec(..)) {
            entry.spec = Arc::new(spec.forgotten());
        }
        if matches!(spec.asked.operation, Operation::Query(_)) {
            // Reads are answered to whoever waited, and there are many of them: the metrics remember them, the job list does not.
            self.jobs.remove(&id);
        } else {
            if let Output::Kept(spool) = &mut entry.output {
                if spool.is_nothing() {
                    *spool = self.nothing.clone();
                }
                let bytes = spool.end().min(spool::MEMORY);
                self.ended_bytes += bytes;
                self.outputs.push_back((id, bytes));
            }
            self.ended.push_back((now.instant, id));
            // Whoever was answered has it all, unless it is too much for one answer.
            if spec.asked.detached || entry.output.bytes() > spool::MEMORY {
                self.idle.touch(now.instant);
            }
        }
        self.idle.job_ended(now.instant);
        self.note_job(&spec, &ended);
    }

    pub(super) fn next_forgotten(&self) -> Option<Instant> {
        self.ended.front().map(|(at, _)| *at + self.settings.keep)
    }

    /// Forgets ended jobs that are too old or too many, and before that the oldest outputs, where they are too large.
    pub(super) fn forget(&mut self, now: Instant) {
        while self.ended_bytes > self.settings.keep_bytes && self.outputs.len() > 1 {
            self.forget_oldest_output();
        }
        while let Some((at, id)) = self.ended.front().copied() {
            let too_old = now.saturating_duration_since(at) >= self.settings.keep;
            let too_many = self.ended.len() > self.settings.keep_max;
            if !(too_old || too_many) {
                return;
            }
            self.ended.pop_front();
            // Both lines are in order of end, so its output is the oldest, if it is still there.
            if self.outputs.front().is_some_and(|(oldest, _)| *oldest == id) {
                self.forget_oldest_output();
            }
            self.jobs.remove(&id);
        }
    }

    fn forget_oldest_output(&mut self) {
        let Some((id, bytes)) = self.outputs.pop_front() else {
            return;
        };
        self.ended_bytes -= bytes;
        if let Some(entry) = self.jobs.get_mut(&id)
            && let Output::Kept(spool) = &entry.output
        {
            entry.output = Output::Gone(spool.end());
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        for scheduler::Expired { id, blocker } in self.scheduler.expire(now) {
            let holder = self.waiting_for(&blocker);
            self.end_unstarted(id, Outcome::Expired(Phase::Queued), holder);
        }
    }

    pub(super) fn cancel(&mut self, id: JobId) -> Cancelled {
        let Some(entry) = self.jobs.get(&id) else {
            return Cancelled::NoSuchJob;
        };
        let Some(live) = entry.live() else {
            return Cancelled::AlreadyEnded;
        };
        live.stop.cancel();
        match self.scheduler.cancel(id) {
            CancelResult::NeverStarted => {
                self.end_unstarted(id, Outcome::Cancelled(Phase::Queued), None);
                Cancelled::NeverStarted
            }
            CancelResult::Stopping | CancelResult::NoSuchJob => Cancelled::Stopping,
        }
    }

    /// Cancels what waits and stops commands of a client that is gone. A running change is left to finish, and a running lease to its
    /// processes: its owner may still release it on another connection.
    pub(super) fn on_disconnect(&mut self, connection: u64) {
        let attached: Vec<JobId> = self.jobs_by_connection.on(connection).collect();
        for id in attached {
            let found = self.jobs.get_mut(&id);
            let Some((spec, live)) = found.and_then(|entry| Some((entry.spec.clone(), entry.live_mut()?)))
            else {
                debug_assert!(false, "job {id} is attached, but does not live");
                continue;
            };
            let is_ours_to_end = matches!(spec.asked.operation, Operation::Exec(..))
                && matches!(spec.asked.executor, Executor::Daemon);
            if !spec.asked.detached && (live.is_waiting() || is_ours_to_end) {
                self.cancel(id);
            }
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

/// Describes an ended job to the metrics. Nothing of its arguments, environment or input is part of it.
fn record(
    spec: &JobSpec,
    since: Option<Moment>,
    now: Moment,
    finished: &JobResult,
    joined: u32,
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
        operation: spec.asked.operation.verb().into(),
        machine: spec.asked.operation.machine().cloned(),
        class: spec.asked.operation.class(),
        client: metrics::Client {
            name: spec.asked.client.name.clone(),
            pid: spec.asked.client.pid,
            uid: spec.asked.client.uid,
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
        joined: joined > 0,
        changed,
    }
}

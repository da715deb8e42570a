//! Starts: what is made stale and written down before a child may exist.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;

use crate::cache::{Cache, CacheKey, Ticket};
use crate::clock::Moment;
use crate::job::{Failure, JobId, Outcome};
use crate::journal::{Entry as JournalEntry, Starting};
use crate::machine::{MachineName, MachineState};
use crate::metrics::Counter;
use crate::operation::{ClientAction, Effect, Operation, Scope};
use crate::orbctl::Orbctl;
use crate::sys::ChildIdentity;

use super::super::answer::{CachedAnswer, by_name, cache_key};
use super::super::handle::{Executor, JobSpec, JobState};
use super::super::run_job::{Durable, JobResult, Work, run_job};
use super::super::stored;
use super::{Entry, ReadStart, State, is_durable};
use crate::dispatcher::about_job::{self, about_job};
use tracing::Instrument as _;

impl<O: Orbctl> State<O> {
    pub(super) fn start_ready(&mut self) {
        // What waits now is in the journal: the next instance starts it.
        while !self.is_upgrading()
            && let Some(id) = self.scheduler.start_next(Moment::now().instant)
        {
            self.start(id);
        }
    }

    fn start(&mut self, id: JobId) {
        let now = Moment::now();
        let found = self.jobs.get_mut(&id);
        let Some((spec, live)) = found.and_then(|entry| Some((entry.spec.clone(), entry.live_mut()?))) else {
            debug_assert!(false, "job {id} starts, but does not live");
            self.scheduler.end(id);
            return;
        };
        live.touches = match spec.asked.operation.effect() {
            Effect::Changes(scope) => Some(scope),
            Effect::Reads => may_start_its_machine(
                &spec.asked.operation,
                &self.cache,
                &now,
                self.settings.cache_max_age,
            ),
        };
        let release = matches!(spec.asked.executor, Executor::Lease(_)).then(|| {
            let (told, release) = oneshot::channel();
            live.release = Some(told);
            release
        });
        let work = Work {
            orbctl: self.orbctl.clone(),
            limits: self.settings.run_limits(),
            guest_env: self.settings.guest_env,
            probe_permits: self.probe_permits.clone(),
            stop: live.stop.clone(),
            abandon: live.abandon.clone(),
            spool: live.writer.take(),
            spool_dir: self.settings.spool.dir.clone(),
            input: live.input_end.take(),
            // The client gives its process the marker, and a lease journals the process before that runs.
            marker: match spec.asked.executor {
                Executor::Daemon => self.settings.markers.of(&spec),
                Executor::Lease(_) => String::new(),
            },
            notes: self.notes.clone(),
            release,
            spec: spec.clone(),
        };
        let touches = live.touches.clone();
        let mut durable = None;
        if let Operation::Query(query) = &spec.asked.operation {
            if let Some(reading) = self.reads.get_mut(query).filter(|reading| reading.job == id) {
                let ticket = cache_key(query).map(|cache_key| self.cache.begin(&cache_key, &now));
                let ticket = if self.watching.is_look(id) {
                    ticket.map(Ticket::as_poll)
                } else {
                    ticket
                };
                reading.start = Some(ReadStart {
                    ticket,
                    generation: self.cache.generation(),
                    at: now,
                });
            }
        } else {
            durable = self.journal_start(&spec, &work.marker);
        }
        if let Some(scope) = touches {
            self.touch(&spec.asked.operation, &scope);
        }
        // Last: whoever sees it run may act on it, a lease's owner at once, and by then our next life must know of it.
        let running = JobState::Running { since: now };
        self.note_job(&spec, &running);
        if let Some(live) = self.jobs.get(&id).and_then(Entry::live) {
            live.state.send_replace(running);
        }
        about_job!(debug, spec, "started");
        self.spawn(&spec, run_job(work, durable));
    }

    /// Runs a job's work in a task of its own.
    pub(super) fn spawn(&mut self, spec: &JobSpec, work: impl Future<Output = JobResult> + Send + 'static) {
        let id = spec.id;
        let work = work.instrument(about_job::span(spec));
        self.running.spawn(async move {
            // A panic in here is our fault; it must end this job and nothing else.
            let finished = AssertUnwindSafe(work).catch_unwind().await;
            let broken =
                || JobResult::new(Outcome::Failed(Failure::Internal("a job's task panicked".into())));
            (id, finished.unwrap_or_else(|_| broken()))
        });
    }

    /// Writes down that a child may exist from now on: without this line our next life could run beside it. For a change that
    /// was acknowledged to outlive us it returns what the child must wait for, so that no loss of power makes it run twice.
    fn journal_start(&self, spec: &JobSpec, marker: &str) -> Option<Durable> {
        let entry = JournalEntry::Starting(Starting {
            job: spec.id,
            marker: marker.to_owned(),
            lanes: spec.asked.operation.footprint().lanes().to_vec(),
            verb: spec.asked.operation.verb().to_owned(),
            machine: spec.asked.operation.machine().cloned(),
            class: spec.asked.operation.class(),
            detached: spec.asked.detached,
        });
        let durable = is_durable(spec).then(|| -> Durable {
            match self.journal.append_durable(&entry) {
                Ok(written) => Box::pin(written),
                Err(error) => Box::pin(std::future::ready(Err(error))),
            }
        });
        if durable.is_none() {
            self.journal_append(&entry);
        }
        if let Executor::Lease(processes) = spec.asked.executor {
            // Children of our own are counted where they are spawned.
            self.metrics.count(Counter::Spawns);
            self.child_started(spec.id, processes.child, Some(processes.owner));
        }
        durable
    }

    /// Journals a child, and of a lease the owner, whose exit ends the child also under our next life.
    pub(super) fn child_started(&self, id: JobId, child: ChildIdentity, owner: Option<ChildIdentity>) {
        let needed = self
            .jobs
            .get(&id)
            .is_some_and(|entry| !matches!(entry.spec.asked.operation, Operation::Query(_)));
        if needed {
            self.journal_append(&JournalEntry::Started {
                job: id,
                process: stored::process(&child),
                owner: owner.as_ref().map(stored::process),
            });
        }
    }

    /// Writes an entry if that is possible. Otherwise work goes on, because refusing a stop or a delete on a full disk would make things
    /// worse; the journal logs the failure and marks the job.
    pub(super) fn journal_append(&self, entry: &JournalEntry) {
        let _ = self.journal.append(entry);
    }
}

/// Says what a command makes stale: its machines, those that are not freshly seen running, because the command may start them.
fn may_start_its_machine(
    operation: &Operation,
    cache: &Cache<Arc<CachedAnswer>>,
    now: &Moment,
    max_age: Duration,
) -> Option<Scope> {
    let names: Vec<&MachineName> = match operation {
        Operation::Exec(name, _)
        | Operation::Push(name)
        | Operation::Pull(name)
        | Operation::ClientAction(ClientAction::Run(name) | ClientAction::Shell(name)) => vec![name],
        Operation::ClientAction(ClientAction::UnknownForm(form)) => form.machines().collect(),
        _ => return None,
    };
    let seen = cache.fresh(&CacheKey::Machines, now, max_age);
    let is_running = |name: &MachineName| {
        seen.and_then(|seen| by_name(seen.value.machines()?, name))
            .is_some_and(|machine| machine.state == MachineState::Running)
    };
    let stale: Vec<MachineName> = names
        .into_iter()
        .filter(|name| !is_running(name))
        .cloned()
        .collect();
    (!stale.is_empty()).then_some(Scope::Machines(stale))
}

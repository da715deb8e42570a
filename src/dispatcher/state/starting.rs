//! Starts of jobs: invalidates the cache and writes the journal before a child may exist.

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
        // Once an upgrade has begun, every waiting job is in the journal: the next instance starts it.
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
            debug_assert!(false, "job {id} started, but is not active");
            self.scheduler.end(id);
            return;
        };
        live.touches = match spec.submission.operation.effect() {
            Effect::Changes(scope) => Some(scope),
            Effect::Reads => may_start_its_machine(
                &spec.submission.operation,
                &self.cache,
                &now,
                self.settings.cache_max_age,
            ),
        };
        let release = matches!(spec.submission.executor, Executor::Lease(_)).then(|| {
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
            // For a lease, the client puts the marker into the environment of its process, and the journal names that process before
            // it runs `orbctl`.
            marker: match spec.submission.executor {
                Executor::Daemon => self.settings.markers.of(&spec),
                Executor::Lease(_) => String::new(),
            },
            notes: self.notes.clone(),
            release,
            spec: spec.clone(),
        };
        let touches = live.touches.clone();
        let mut durable = None;
        if let Operation::Query(query) = &spec.submission.operation {
            if let Some(reading) = self.reads.get_mut(query).filter(|reading| reading.job == id) {
                let ticket = cache_key(query).map(|cache_key| self.cache.begin(&cache_key, &now));
                let ticket = if self.watching.is_poll(id) {
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
            self.touch(&spec.submission.operation, &scope);
        }
        // Last, because a watcher may act on the new state at once, as a lease's owner does. By then the next instance must be able
        // to find the job in the journal.
        let running = JobState::Running { since: now };
        self.note_job(&spec, &running);
        if let Some(live) = self.jobs.get(&id).and_then(Entry::live) {
            live.state.send_replace(running);
        }
        about_job!(debug, spec, "job started");
        self.spawn(&spec, run_job(work, durable));
    }

    /// Runs a job in its own task.
    pub(super) fn spawn(&mut self, spec: &JobSpec, work: impl Future<Output = JobResult> + Send + 'static) {
        let id = spec.id;
        let work = work.instrument(about_job::span(spec));
        self.running.spawn(async move {
            // A panic here is a bug in orbd. It must end only this job.
            let finished = AssertUnwindSafe(work).catch_unwind().await;
            let broken = || JobResult::new(Outcome::Failed(Failure::Internal("job task panicked".into())));
            (id, finished.unwrap_or_else(|_| broken()))
        });
    }

    /// Records in the journal that a child may exist from now on. Without the entry, the next instance could run another job in the
    /// same lanes at the same time. For a durable job, returns a future that the child must wait for, so that a power loss cannot
    /// make the job run twice.
    fn journal_start(&self, spec: &JobSpec, marker: &str) -> Option<Durable> {
        let entry = JournalEntry::Starting(Starting {
            job: spec.id,
            marker: marker.to_owned(),
            lanes: spec.submission.operation.footprint().lanes().to_vec(),
            verb: spec.submission.operation.verb().to_owned(),
            machine: spec.submission.operation.machine().cloned(),
            class: spec.submission.operation.class(),
            detached: spec.submission.detached,
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
        if let Executor::Lease(processes) = spec.submission.executor {
            // orbd's own children are counted when they are spawned.
            self.metrics.count(Counter::Spawns);
            self.child_started(spec.id, processes.child, Some(processes.owner));
        }
        durable
    }

    /// Records a child in the journal. For a lease also records the owner, so that the next instance can end the child when the owner
    /// exits.
    pub(super) fn child_started(&self, id: JobId, child: ChildIdentity, owner: Option<ChildIdentity>) {
        let needed = self
            .jobs
            .get(&id)
            .is_some_and(|entry| !matches!(entry.spec.submission.operation, Operation::Query(_)));
        if needed {
            self.journal_append(&JournalEntry::Started {
                job: id,
                process: stored::process(&child),
                owner: owner.as_ref().map(stored::process),
            });
        }
    }

    /// Writes an entry to the journal if possible. If it fails, work continues, because refusing a stop or a delete on a full disk
    /// would make things worse; the journal logs the failure and marks the job.
    pub(super) fn journal_append(&self, entry: &JournalEntry) {
        let _ = self.journal.append(entry);
    }
}

/// Returns what a command invalidates: those of its machines that were not recently observed running, because the command may start
/// them. `None` if there are none.
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
